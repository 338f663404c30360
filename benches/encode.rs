//! What it costs to make an event and to write it: against axum, warp, and a copy of the same bytes.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench encode
//! ```
//!
//! Each contestant answers with a response whose stream makes [`EVENTS`] events as its users write them, and is measured
//! from the first poll of the response's body to its end. No server, no socket, no waiting: what is left is the events'
//! construction, their encoding, and their way into the body's frames. `memcpy` copies the bytes that tower-push wrote, event
//! by event, into one buffer: the floor.
//!
//! After divan's tables come the ratios, from rounds in which the contestants take turns, so that what disturbs one
//! disturbs all. They are ratios of each one's best round.

use std::{
    convert::Infallible,
    fmt,
    hint::black_box,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use axum::response::IntoResponse;
use bytes::{BufMut, Bytes, BytesMut};
use divan::{Bencher, counter::ItemsCount};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http_body::Body;
use tower_push::{
    Event, KeepAlive, Push, PushBody,
    event::{Encoding, Fields, IntoItem},
    format::Ndjson,
    transport::{Chunked, Sse, Transport},
};
use warp::Reply;

fn main() {
    divan::main();
    // `cargo test --benches` runs this file too, only to see that it runs.
    if std::env::args().any(|argument| argument == "--bench") {
        sse::compare();
        ndjson::compare();
        second_subscriber::compare();
    }
}

/// Events in one body: enough that its head does not count.
const EVENTS: usize = 1000;

/// What becomes 128 bytes of JSON.
fn value(n: usize) -> impl serde::Serialize {
    let tags = [
        "spot",
        "continuous",
        "a venue with quite a rather long name",
        "euro",
    ];
    (
        "ETH-EUR",
        2841.125,
        12.0625,
        "2026-01-05T12:00:00Z",
        1_000_000 + n,
        tags,
    )
}

/// Server-Sent Events.
mod sse {
    use super::*;

    #[derive(Clone, Copy)]
    enum Case {
        Text,
        /// With an id and a type.
        Named,
        Lines,
        Long,
        /// A value that becomes JSON.
        Json,
    }

    const CASES: [Case; 5] = [Case::Text, Case::Named, Case::Lines, Case::Long, Case::Json];

    impl Case {
        fn text(self) -> String {
            match self {
                Self::Text | Self::Named | Self::Json => "x".repeat(128),
                Self::Lines => vec!["x".repeat(15); 8].join("\n"),
                Self::Long => "x".repeat(4096),
            }
        }
    }

    impl fmt::Display for Case {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Text => "128 B",
                Self::Named => "128 B, id and type",
                Self::Lines => "8 lines of 15 B",
                Self::Long => "4 KiB",
                Self::Json => "128 B of JSON",
            })
        }
    }

    #[divan::bench(args = CASES)]
    fn tower_push(bencher: Bencher, case: Case) {
        bench(bencher, || ours(case));
    }

    #[divan::bench(args = CASES)]
    fn axum(bencher: Bencher, case: Case) {
        bench(bencher, || axums(case));
    }

    #[divan::bench(args = CASES)]
    fn warp(bencher: Bencher, case: Case) {
        bench(bencher, || warps(case));
    }

    #[divan::bench(args = CASES)]
    fn memcpy(bencher: Bencher, case: Case) {
        bench_copy(bencher, ours(case));
    }

    pub(super) fn compare() {
        for case in CASES {
            let name = format!("sse {case}");
            super::compare(
                &name,
                [
                    ("tower-push", contestant(move || ours(case))),
                    ("axum", contestant(move || axums(case))),
                    ("warp", contestant(move || warps(case))),
                    ("memcpy", copyist(ours(case))),
                ],
            );
        }
    }

    fn ours(case: Case) -> PushBody {
        let text = case.text();
        let events = (0..EVENTS).map(move |n| match case {
            Case::Text | Case::Lines | Case::Long => Ok(Event::text(text.as_str())),
            Case::Named => Event::text(text.as_str())
                .with_type("price")?
                .with_id(n as u64),
            Case::Json => Event::json(&value(n)),
        });
        respond(&Sse::new(), stream::iter(events))
    }

    fn axums(case: Case) -> impl Body<Data = Bytes> {
        use axum::response::sse::{Event, Sse};

        let text = case.text();
        let events = (0..EVENTS).map(move |n| match case {
            Case::Text | Case::Lines | Case::Long => Ok(Event::default().data(&text)),
            Case::Named => {
                let event = Event::default().event("price").id(n.to_string());
                Ok(event.data(&text))
            }
            Case::Json => Event::default().json_data(value(n)),
        });
        Sse::new(stream::iter(events)).into_response().into_body()
    }

    fn warps(case: Case) -> impl Body<Data = Bytes> {
        use warp::sse::{Event, reply};

        let text = case.text();
        let events = (0..EVENTS).map(move |n| match case {
            Case::Text | Case::Lines | Case::Long => Ok(Event::default().data(text.as_str())),
            Case::Named => {
                let event = Event::default().event("price").id(n.to_string());
                Ok(event.data(text.as_str()))
            }
            Case::Json => Event::default().json_data(value(n)),
        });
        reply(stream::iter(events)).into_response().into_body()
    }
}

/// NDJSON, of which the others know no more than a body of lines: each line here is one that their users would write.
mod ndjson {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Case {
        /// A text of 128 bytes, as a JSON string.
        Text,
        /// A value that becomes 128 bytes of JSON.
        Value,
        /// The same under an id and a type.
        Envelope,
    }

    const CASES: [Case; 3] = [Case::Text, Case::Value, Case::Envelope];

    impl fmt::Display for Case {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Text => "128 B of text",
                Self::Value => "128 B of JSON",
                Self::Envelope => "128 B of JSON, id and type",
            })
        }
    }

    #[divan::bench(args = CASES)]
    fn tower_push(bencher: Bencher, case: Case) {
        bench(bencher, || ours(case));
    }

    #[divan::bench(args = CASES)]
    fn axum(bencher: Bencher, case: Case) {
        bench(bencher, || axums(case));
    }

    #[divan::bench(args = CASES)]
    fn warp(bencher: Bencher, case: Case) {
        bench(bencher, || warps(case));
    }

    #[divan::bench(args = CASES)]
    fn memcpy(bencher: Bencher, case: Case) {
        bench_copy(bencher, ours(case));
    }

    pub(super) fn compare() {
        for case in CASES {
            let name = format!("ndjson {case}");
            super::compare(
                &name,
                [
                    ("tower-push", contestant(move || ours(case))),
                    ("axum", contestant(move || axums(case))),
                    ("warp", contestant(move || warps(case))),
                    ("memcpy", copyist(ours(case))),
                ],
            );
        }
    }

    fn ours(case: Case) -> PushBody {
        let text = "x".repeat(128);
        let events = (0..EVENTS).map(move |n| match case {
            Case::Text => Ok(Event::text(text.as_str())),
            Case::Value => Event::json(&value(n)),
            Case::Envelope => Event::json(&value(n))?
                .with_type("price")?
                .with_id(n as u64),
        });
        let format = match case {
            Case::Envelope => Ndjson::new(),
            Case::Text | Case::Value => Ndjson::new().bare(),
        };
        respond(&Chunked::new(format), stream::iter(events))
    }

    fn axums(case: Case) -> impl Body<Data = Bytes> {
        axum::body::Body::from_stream(stream::iter(lines(case)))
    }

    fn warps(case: Case) -> impl Body<Data = Bytes> {
        warp::reply::stream(stream::iter(lines(case)))
            .into_response()
            .into_body()
    }

    fn lines(case: Case) -> impl Iterator<Item = serde_json::Result<Vec<u8>>> {
        let text = "x".repeat(128);
        (0..EVENTS).map(move |n| {
            let mut line = match case {
                Case::Text => serde_json::to_vec(&text)?,
                Case::Value => serde_json::to_vec(&value(n))?,
                Case::Envelope => {
                    let mut line = Vec::with_capacity(128);
                    line.put_slice(b"{\"id\":");
                    serde_json::to_writer(&mut line, &n.to_string())?;
                    line.put_slice(b",\"event\":\"price\",\"data\":");
                    serde_json::to_writer(&mut line, &value(n))?;
                    line.put_u8(b'}');
                    line
                }
            };
            line.put_u8(b'\n');
            Ok(line)
        })
    }
}

/// Another subscriber of events that are encoded already, and that come one at a time, so that each is a frame.
mod second_subscriber {
    use super::*;

    /// The response of tower-push, whose stream hands out clones.
    #[divan::bench]
    fn tower_push(bencher: Bencher) {
        let events = events();
        bench(bencher, || ours(&events));
    }

    /// What axum has to clone: the event, bytes and all.
    #[divan::bench]
    fn axum(bencher: Bencher) {
        let events = axums_events();
        bench(bencher, || axums(&events));
    }

    /// A body of clones of encoded bytes, and nothing else.
    #[divan::bench]
    fn bytes(bencher: Bencher) {
        let bytes = encoded();
        bench(bencher, || clones(&bytes));
    }

    /// The encoding alone, as a transport asks for it.
    #[divan::bench]
    fn event_encoded(bencher: Bencher) {
        let event = &events()[0];
        bencher.bench(|| black_box(event).encoded::<Plain>());
    }

    /// The floor of that.
    #[divan::bench]
    fn bytes_clone(bencher: Bencher) {
        let bytes = &encoded()[0];
        bencher.bench(|| black_box(bytes).clone());
    }

    pub(super) fn compare() {
        let (events, theirs, bytes) = (events(), axums_events(), encoded());
        super::compare(
            "second subscriber, 128 B",
            [
                ("tower-push", contestant(move || ours(&events))),
                ("axum", contestant(move || axums(&theirs))),
                ("a body of Bytes", contestant(move || clones(&bytes))),
            ],
        );
        let (event, bytes) = (self::events(), encoded());
        super::compare(
            "second subscriber, Event::encoded",
            [
                ("tower-push", repeated(move || event[0].encoded::<Plain>())),
                ("Bytes::clone", repeated(move || bytes[0].clone())),
            ],
        );
    }

    struct Plain;

    impl Encoding for Plain {
        fn encode(fields: &Fields, out: &mut BytesMut) {
            out.put_slice(fields.payload.as_bytes());
        }
    }

    fn events() -> Arc<[Event]> {
        let payload = "x".repeat(128);
        let events: Arc<[_]> = (0..EVENTS).map(|_| Event::text(&payload)).collect();
        // The first subscriber.
        drain(ours(&events));
        events
    }

    fn ours(events: &Arc<[Event]>) -> PushBody {
        respond(
            &Sse::new().keep_alive(KeepAlive::disabled()),
            one_by_one(events),
        )
    }

    fn axums_events() -> Arc<[axum::response::sse::Event]> {
        let payload = "x".repeat(128);
        (0..EVENTS)
            .map(|_| axum::response::sse::Event::default().data(&payload))
            .collect()
    }

    fn axums(events: &Arc<[axum::response::sse::Event]>) -> impl Body<Data = Bytes> + use<> {
        let events = one_by_one(events).map(Ok::<_, Infallible>);
        axum::response::Sse::new(events).into_response().into_body()
    }

    fn encoded() -> Arc<[Bytes]> {
        (0..EVENTS).map(|_| Bytes::from(vec![b'x'; 136])).collect()
    }

    fn clones(bytes: &Arc<[Bytes]>) -> impl Body<Data = Bytes> + use<> {
        axum::body::Body::from_stream(one_by_one(bytes).map(Ok::<_, Infallible>))
    }

    /// Clones, each of which is ready only after one poll that finds nothing.
    fn one_by_one<T: Clone>(values: &Arc<[T]>) -> impl Stream<Item = T> + use<T> {
        let values = values.clone();
        let mut polls = 0;
        stream::poll_fn(move |_| {
            polls += 1;
            match polls % 2 {
                1 => Poll::Pending,
                _ => Poll::Ready(values.get(polls / 2 - 1).cloned()),
            }
        })
    }
}

/// The body of tower-push's response to a client that asks for nothing in particular.
fn respond<S>(transport: &impl Transport, stream: S) -> PushBody
where
    S: Stream<Item: IntoItem> + Send + 'static,
{
    let (mut head, ()) = http::Request::new(()).into_parts();
    let response = transport
        .respond(&mut head, Push::new(stream))
        .now_or_never();
    response.expect("a stream subscribes at once").into_body()
}

/// Polls a body to its end, and hands each frame to the optimizer as used.
fn drain(body: impl Body<Data = Bytes>) -> usize {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    let mut len = 0;
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                len += black_box(frame).data_ref().map_or(0, Bytes::len);
            }
            Poll::Ready(Some(Err(_))) => panic!("the body failed"),
            Poll::Ready(None) => return len,
            Poll::Pending => {}
        }
    }
}

fn bench<B: Body<Data = Bytes>>(bencher: Bencher, body: impl Fn() -> B + Sync) {
    bencher
        .counter(ItemsCount::new(EVENTS))
        .with_inputs(body)
        .bench_values(drain);
}

fn bench_copy(bencher: Bencher, body: impl Body<Data = Bytes>) {
    let (event, mut out) = one_of(body);
    bencher
        .counter(ItemsCount::new(EVENTS))
        .bench_local(|| copy(&event, &mut out));
}

/// The bytes of one event, on average, and room for all.
fn one_of(body: impl Body<Data = Bytes>) -> (Vec<u8>, Vec<u8>) {
    let len = drain(body);
    (vec![b'x'; len / EVENTS], Vec::with_capacity(len))
}

fn copy(event: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for _ in 0..EVENTS {
        out.extend_from_slice(black_box(event));
    }
    black_box(out);
}

/// How long one round takes.
type Contestant = Box<dyn FnMut() -> Duration>;

fn contestant<B: Body<Data = Bytes>>(body: impl Fn() -> B + 'static) -> Contestant {
    Box::new(move || {
        let body = body();
        timed(|| drain(body))
    })
}

fn copyist(body: impl Body<Data = Bytes>) -> Contestant {
    let (event, mut out) = one_of(body);
    Box::new(move || timed(|| copy(&event, &mut out)))
}

fn repeated<T>(f: impl Fn() -> T + 'static) -> Contestant {
    Box::new(move || {
        timed(|| {
            for _ in 0..EVENTS {
                black_box(f());
            }
        })
    })
}

fn timed<T>(f: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(f());
    start.elapsed()
}

/// Prints how many times as fast as each of the others the first is.
fn compare<const N: usize>(name: &str, mut contestants: [(&str, Contestant); N]) {
    const ROUNDS: usize = 300;
    let mut best = [Duration::MAX; N];
    for _ in 0..ROUNDS {
        for (best, (_, round)) in best.iter_mut().zip(&mut contestants) {
            *best = round().min(*best);
        }
    }
    let nanos = best.map(|best| best.as_secs_f64() * 1e9 / EVENTS as f64);
    let ratios: Vec<_> = (1..N)
        .map(|i| format!("{:.2}x {}", nanos[i] / nanos[0], contestants[i].0))
        .collect();
    println!("{name}: {:.1} ns an event, {}", nanos[0], ratios.join(", "));
}
