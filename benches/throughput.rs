//! The throughput of one stream over a socket: against axum's `Sse`, and against a plain loop that writes the same bytes.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench throughput
//! ```
//!
//! A round is one response over one connection on loopback, from a server thread to a client thread that reads and discards the response to
//! its end. All events carry 64 bytes of text and are ready at once. Each event is built anew (`new`), or all are clones of one event
//! (`shared`), as in a channel. The HTTP contestants run on the same server: hyper's HTTP/1.1 with its defaults, on one tokio thread. `raw` is a
//! blocking loop that writes tower-push's SSE bytes, encoded beforehand, 64 KiB at a time.
//!
//! The contestants take turns, so that a disturbance affects all of them. The table shows the best round of each, and its ratios to the best
//! rounds of axum's counterpart (`new` to `new`, `shared` to `shared`) and of `raw`.

use std::{
    cell::Cell,
    convert::Infallible,
    error::Error,
    future::ready,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use axum::response::{IntoResponse, sse};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{Request, Response};
use http_body::Body;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tower_push::{
    Event, Push,
    event::IntoItem,
    transport::{Chunked, Sse, Transport},
};

type BoxError = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), BoxError> {
    // `cargo test --benches` runs this file too, with a tiny load.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (rounds, shrink) = if is_bench { (20, 1) } else { (1, 100) };

    let mut best = [Throughput::default(); CONTESTANTS.len()];
    for _ in 0..rounds {
        for (contestant, best) in CONTESTANTS.iter().zip(&mut best) {
            let speed = measure_round(contestant.server, contestant.events / shrink)?;
            if speed.events > best.events {
                *best = speed;
            }
        }
    }
    print_table(&best);
    Ok(())
}

/// Answers one request on one connection with a number of events.
type ServeResponse = fn(TcpListener, usize) -> Result<(), BoxError>;

struct Contestant {
    name: &'static str,
    server: ServeResponse,
    /// The number of events in one round, which takes about a tenth of a second.
    events: usize,
    /// The index of axum's counterpart.
    axum: usize,
}

const AXUM_NEW: usize = 0;
const AXUM_SHARED: usize = 1;
const RAW: usize = 2;

const CONTESTANTS: [Contestant; 7] = [
    Contestant {
        name: "axum Sse, new",
        server: axum_new,
        events: 50_000,
        axum: AXUM_NEW,
    },
    Contestant {
        name: "axum Sse, shared",
        server: axum_shared,
        events: 50_000,
        axum: AXUM_SHARED,
    },
    Contestant {
        name: "raw",
        server: serve_raw,
        events: 1_000_000,
        axum: AXUM_NEW,
    },
    Contestant {
        name: "tower-push SSE, new",
        server: |listener, events| {
            let events = repeat_event(events, || Event::text(PAYLOAD));
            serve_push(listener, &Sse::new(), events)
        },
        events: 500_000,
        axum: AXUM_NEW,
    },
    Contestant {
        name: "tower-push SSE, shared",
        server: |listener, events| {
            let event = Event::text(PAYLOAD);
            serve_push(
                listener,
                &Sse::new(),
                repeat_event(events, move || event.clone()),
            )
        },
        events: 500_000,
        axum: AXUM_SHARED,
    },
    Contestant {
        name: "tower-push NDJSON, new",
        server: |listener, events| {
            let events = repeat_event(events, || Event::text(PAYLOAD));
            serve_push(listener, &Chunked::default(), events)
        },
        events: 500_000,
        axum: AXUM_NEW,
    },
    Contestant {
        name: "tower-push NDJSON, shared",
        server: |listener, events| {
            let event = Event::text(PAYLOAD);
            serve_push(
                listener,
                &Chunked::default(),
                repeat_event(events, move || event.clone()),
            )
        },
        events: 500_000,
        axum: AXUM_SHARED,
    },
];

/// The payload of every event: 64 bytes.
const PAYLOAD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The event on the wire, as tower-push's SSE encodes it.
const ENCODED: &str = "data: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n\n";

/// A stream of this many events.
fn repeat_event<T>(events: usize, event: impl Fn() -> T) -> impl Stream<Item = T> {
    stream::iter((0..events).map(move |_| event()))
}

fn serve_push<S>(
    listener: TcpListener,
    transport: &impl Transport,
    events: S,
) -> Result<(), BoxError>
where
    S: Stream<Item: IntoItem> + Send + 'static,
{
    let (mut head, ()) = Request::new(()).into_parts();
    let response = transport.respond(&mut head, Push::new(events));
    let response = response.now_or_never();
    serve(listener, response.expect("a stream subscribes at once"))
}

fn axum_new(listener: TcpListener, events: usize) -> Result<(), BoxError> {
    let events = repeat_event(events, || sse::Event::default().data(PAYLOAD));
    serve(
        listener,
        sse::Sse::new(events.map(Ok::<_, Infallible>)).into_response(),
    )
}

fn axum_shared(listener: TcpListener, events: usize) -> Result<(), BoxError> {
    let event = sse::Event::default().data(PAYLOAD);
    let events = repeat_event(events, move || event.clone());
    serve(
        listener,
        sse::Sse::new(events.map(Ok::<_, Infallible>)).into_response(),
    )
}

/// Serves one connection, and answers its one request with this response.
fn serve<B>(listener: TcpListener, response: Response<B>) -> Result<(), BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    let response = Cell::new(Some(response));
    let service = service_fn(|_| ready(response.take().ok_or("a second request")));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let (socket, _) = tokio::net::TcpListener::from_std(listener)?
            .accept()
            .await?;
        socket.set_nodelay(true)?;
        http1::Builder::new()
            .serve_connection(TokioIo::new(socket), service)
            .await?;
        Ok(())
    })
}

/// The number of bytes in one write of the raw loop. Longer writes would be faster: the loop is a yardstick, not the socket's maximum.
const RAW_WRITE_LEN: usize = 64 * 1024;

fn serve_raw(listener: TcpListener, events: usize) -> Result<(), BoxError> {
    let events_per_write = RAW_WRITE_LEN / ENCODED.len();
    let encoded = ENCODED.repeat(events_per_write);
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let _ = socket.read(&mut [0; REQUEST.len()])?;
    for _ in 0..events / events_per_write {
        socket.write_all(encoded.as_bytes())?;
    }
    socket.write_all(ENCODED.repeat(events % events_per_write).as_bytes())?;
    Ok(())
}

/// Events and bytes per second.
#[derive(Clone, Copy, Default)]
struct Throughput {
    events: f64,
    bytes: f64,
}

/// Serves and receives one response.
fn measure_round(server: ServeResponse, events: usize) -> Result<Throughput, BoxError> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || server(listener, events));
    let (bytes, elapsed) = receive_response(address)?;
    server.join().expect("a server that does not panic")?;
    if bytes < events * PAYLOAD.len() {
        return Err("the response was cut off".into());
    }
    Ok(Throughput {
        events: events as f64 / elapsed.as_secs_f64(),
        bytes: bytes as f64 / elapsed.as_secs_f64(),
    })
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// The buffer size of the client's reads, in bytes.
const READ_BUFFER_LEN: usize = 256 * 1024;

/// Sends a request and reads the response to its end. Returns the number of bytes and the time.
fn receive_response(address: SocketAddr) -> Result<(usize, Duration), BoxError> {
    let mut socket = TcpStream::connect(address)?;
    let mut buffer = vec![0; READ_BUFFER_LEN];
    let start = Instant::now();
    socket.write_all(REQUEST)?;
    let mut bytes = 0;
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok((bytes, start.elapsed())),
            read => bytes += read,
        }
    }
}

fn print_table(best: &[Throughput; CONTESTANTS.len()]) {
    println!(
        "{:26} {:>10} {:>8} {:>8} {:>8}",
        "64 B, one subscriber", "events/s", "MB/s", "axum", "raw"
    );
    for (contestant, speed) in CONTESTANTS.iter().zip(best) {
        println!(
            "{:26} {:>8.2} M {:>8.0} {:>7.2}x {:>7.2}x",
            contestant.name,
            speed.events / 1e6,
            speed.bytes / 1e6,
            speed.events / best[contestant.axum].events,
            speed.events / best[RAW].events,
        );
    }
}
