//! How fast one subscriber can be fed over a socket: against axum's `Sse`, and against a plain loop that writes the same bytes.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench throughput
//! ```
//!
//! A round is one response over one connection on loopback, from a server thread to a client thread that reads and discards
//! until the end. All events carry 64 bytes of text and are ready at once. They are made one by one (`new`), or are clones of
//! one (`shared`), as a channel hands them out. The HTTP contestants run on the same server, hyper's HTTP/1.1 on one thread of
//! tokio, with its defaults. `raw` is a blocking loop that writes tower-push's SSE bytes, encoded beforehand, 64 KiB at a time.
//!
//! The contestants take turns, so that what disturbs one disturbs all. The table shows each one's best round, and its ratios to
//! the best rounds of axum's like (`new` to `new`, `shared` to `shared`) and of `raw`.

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
    // `cargo test --benches` runs this file too, only to see that it runs.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (rounds, shrink) = if is_bench { (20, 1) } else { (1, 100) };

    let mut best = [Speed::default(); CONTESTANTS.len()];
    for _ in 0..rounds {
        for (contestant, best) in CONTESTANTS.iter().zip(&mut best) {
            let speed = round(contestant.server, contestant.events / shrink)?;
            if speed.events > best.events {
                *best = speed;
            }
        }
    }
    print(&best);
    Ok(())
}

/// Answers one connection's request with so many events.
type Server = fn(TcpListener, usize) -> Result<(), BoxError>;

struct Contestant {
    name: &'static str,
    server: Server,
    /// In one round: what takes about a tenth of a second.
    events: usize,
    /// The place of axum's like.
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
        server: raw,
        events: 1_000_000,
        axum: AXUM_NEW,
    },
    Contestant {
        name: "tower-push SSE, new",
        server: |listener, events| {
            let events = times(events, || Event::text(PAYLOAD));
            ours(listener, &Sse::new(), events)
        },
        events: 500_000,
        axum: AXUM_NEW,
    },
    Contestant {
        name: "tower-push SSE, shared",
        server: |listener, events| {
            let event = Event::text(PAYLOAD);
            ours(listener, &Sse::new(), times(events, move || event.clone()))
        },
        events: 500_000,
        axum: AXUM_SHARED,
    },
    Contestant {
        name: "tower-push NDJSON, new",
        server: |listener, events| {
            let events = times(events, || Event::text(PAYLOAD));
            ours(listener, &Chunked::default(), events)
        },
        events: 500_000,
        axum: AXUM_NEW,
    },
    Contestant {
        name: "tower-push NDJSON, shared",
        server: |listener, events| {
            let event = Event::text(PAYLOAD);
            ours(
                listener,
                &Chunked::default(),
                times(events, move || event.clone()),
            )
        },
        events: 500_000,
        axum: AXUM_SHARED,
    },
];

/// The payload of every event: 64 bytes.
const PAYLOAD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What tower-push's SSE makes of it.
const ENCODED: &str = "data: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n\n";

fn times<T>(events: usize, event: impl Fn() -> T) -> impl Stream<Item = T> {
    stream::iter((0..events).map(move |_| event()))
}

fn ours<S>(listener: TcpListener, transport: &impl Transport, events: S) -> Result<(), BoxError>
where
    S: Stream<Item: IntoItem> + Send + 'static,
{
    let (mut head, ()) = Request::new(()).into_parts();
    let response = transport.respond(&mut head, Push::new(events));
    let response = response.now_or_never();
    serve(listener, response.expect("a stream subscribes at once"))
}

fn axum_new(listener: TcpListener, events: usize) -> Result<(), BoxError> {
    let events = times(events, || sse::Event::default().data(PAYLOAD));
    serve(
        listener,
        sse::Sse::new(events.map(Ok::<_, Infallible>)).into_response(),
    )
}

fn axum_shared(listener: TcpListener, events: usize) -> Result<(), BoxError> {
    let event = sse::Event::default().data(PAYLOAD);
    let events = times(events, move || event.clone());
    serve(
        listener,
        sse::Sse::new(events.map(Ok::<_, Infallible>)).into_response(),
    )
}

/// Serves one connection, and gives its one request this response.
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

/// Bytes in one write of the raw loop. Longer ones are faster still: it is a yardstick, not the most that the socket can take.
const RAW_WRITE: usize = 64 * 1024;

fn raw(listener: TcpListener, events: usize) -> Result<(), BoxError> {
    let a_write = RAW_WRITE / ENCODED.len();
    let encoded = ENCODED.repeat(a_write);
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let _ = socket.read(&mut [0; REQUEST.len()])?;
    for _ in 0..events / a_write {
        socket.write_all(encoded.as_bytes())?;
    }
    socket.write_all(ENCODED.repeat(events % a_write).as_bytes())?;
    Ok(())
}

/// Per second.
#[derive(Clone, Copy, Default)]
struct Speed {
    events: f64,
    bytes: f64,
}

fn round(server: Server, events: usize) -> Result<Speed, BoxError> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || server(listener, events));
    let (bytes, took) = receive(address)?;
    server.join().expect("a server that does not panic")?;
    if bytes < events * PAYLOAD.len() {
        return Err("the response was cut".into());
    }
    Ok(Speed {
        events: events as f64 / took.as_secs_f64(),
        bytes: bytes as f64 / took.as_secs_f64(),
    })
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// Bytes in one read of the client.
const READ: usize = 256 * 1024;

/// Asks, and counts what comes until the end.
fn receive(address: SocketAddr) -> Result<(usize, Duration), BoxError> {
    let mut socket = TcpStream::connect(address)?;
    let mut buffer = vec![0; READ];
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

fn print(best: &[Speed; CONTESTANTS.len()]) {
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
