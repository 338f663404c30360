//! The time that it takes to build an event and to encode it: against axum, warp, and a copy of the same bytes.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench encode
//! ```
//!
//! Each contestant returns a response whose stream builds [`EVENTS_PER_BODY`] events in the way its users do. The time is measured from the first poll
//! of the response's body to its end. There is no server, no socket and no waiting, so the time is that of building the events, encoding them,
//! and putting them into the body's frames. `memcpy` copies the bytes that tower-push has written, event by event, into one buffer: this is the
//! lower bound.
//!
//! After divan's tables come the ratios, from rounds in which the contestants take turns, so that a disturbance affects all of them. They are
//! ratios of the best rounds.

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
    // `cargo test --benches` runs this file too, without the comparison.
    if std::env::args().any(|argument| argument == "--bench") {
        sse::compare();
        ndjson::compare();
        second_subscriber::compare();
    }
}

/// The number of events in one body, which makes the cost of the response's head negligible.
const EVENTS_PER_BODY: usize = 1000;

/// Returns a value that serializes to 128 bytes of JSON.
fn sample_json_value(n: usize) -> impl serde::Serialize {
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
        /// A text with an id and a type.
        WithIdAndType,
        Lines,
        Long,
        /// A value that is serialized to JSON.
        Json,
    }

    const CASES: [Case; 5] = [
        Case::Text,
        Case::WithIdAndType,
        Case::Lines,
        Case::Long,
        Case::Json,
    ];

    impl Case {
        fn text(self) -> String {
            match self {
                Self::Text | Self::WithIdAndType | Self::Json => "x".repeat(128),
                Self::Lines => vec!["x".repeat(15); 8].join("\n"),
                Self::Long => "x".repeat(4096),
            }
        }
    }

    impl fmt::Display for Case {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Text => "128 B",
                Self::WithIdAndType => "128 B, id and type",
                Self::Lines => "8 lines of 15 B",
                Self::Long => "4 KiB",
                Self::Json => "128 B of JSON",
            })
        }
    }

    #[divan::bench(args = CASES)]
    fn tower_push(bencher: Bencher, case: Case) {
        bench(bencher, || tower_push_body(case));
    }

    #[divan::bench(args = CASES)]
    fn axum(bencher: Bencher, case: Case) {
        bench(bencher, || axum_body(case));
    }

    #[divan::bench(args = CASES)]
    fn warp(bencher: Bencher, case: Case) {
        bench(bencher, || warp_body(case));
    }

    #[divan::bench(args = CASES)]
    fn memcpy(bencher: Bencher, case: Case) {
        bench_copy(bencher, tower_push_body(case));
    }

    pub(super) fn compare() {
        for case in CASES {
            let name = format!("sse {case}");
            super::compare(
                &name,
                [
                    ("tower-push", body_contestant(move || tower_push_body(case))),
                    ("axum", body_contestant(move || axum_body(case))),
                    ("warp", body_contestant(move || warp_body(case))),
                    ("memcpy", copy_contestant(tower_push_body(case))),
                ],
            );
        }
    }

    fn tower_push_body(case: Case) -> PushBody {
        let text = case.text();
        let events = (0..EVENTS_PER_BODY).map(move |n| match case {
            Case::Text | Case::Lines | Case::Long => Ok(Event::text(text.as_str())),
            Case::WithIdAndType => Event::text(text.as_str())
                .with_type("price")?
                .with_id(n as u64),
            Case::Json => Event::json(&sample_json_value(n)),
        });
        respond(&Sse::new(), stream::iter(events))
    }

    fn axum_body(case: Case) -> impl Body<Data = Bytes> {
        use axum::response::sse::{Event, Sse};

        let text = case.text();
        let events = (0..EVENTS_PER_BODY).map(move |n| match case {
            Case::Text | Case::Lines | Case::Long => Ok(Event::default().data(&text)),
            Case::WithIdAndType => {
                let event = Event::default().event("price").id(n.to_string());
                Ok(event.data(&text))
            }
            Case::Json => Event::default().json_data(sample_json_value(n)),
        });
        Sse::new(stream::iter(events)).into_response().into_body()
    }

    fn warp_body(case: Case) -> impl Body<Data = Bytes> {
        use warp::sse::{Event, reply};

        let text = case.text();
        let events = (0..EVENTS_PER_BODY).map(move |n| match case {
            Case::Text | Case::Lines | Case::Long => Ok(Event::default().data(text.as_str())),
            Case::WithIdAndType => {
                let event = Event::default().event("price").id(n.to_string());
                Ok(event.data(text.as_str()))
            }
            Case::Json => Event::default().json_data(sample_json_value(n)),
        });
        reply(stream::iter(events)).into_response().into_body()
    }
}

/// NDJSON. axum and warp do not know the format, so their streams yield lines as their users would write them.
mod ndjson {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Case {
        /// A text of 128 bytes, as a JSON string.
        Text,
        /// A value that serializes to 128 bytes of JSON.
        Value,
        /// The same value with an id and a type.
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
        bench(bencher, || tower_push_body(case));
    }

    #[divan::bench(args = CASES)]
    fn axum(bencher: Bencher, case: Case) {
        bench(bencher, || axum_body(case));
    }

    #[divan::bench(args = CASES)]
    fn warp(bencher: Bencher, case: Case) {
        bench(bencher, || warp_body(case));
    }

    #[divan::bench(args = CASES)]
    fn memcpy(bencher: Bencher, case: Case) {
        bench_copy(bencher, tower_push_body(case));
    }

    pub(super) fn compare() {
        for case in CASES {
            let name = format!("ndjson {case}");
            super::compare(
                &name,
                [
                    ("tower-push", body_contestant(move || tower_push_body(case))),
                    ("axum", body_contestant(move || axum_body(case))),
                    ("warp", body_contestant(move || warp_body(case))),
                    ("memcpy", copy_contestant(tower_push_body(case))),
                ],
            );
        }
    }

    fn tower_push_body(case: Case) -> PushBody {
        let text = "x".repeat(128);
        let events = (0..EVENTS_PER_BODY).map(move |n| match case {
            Case::Text => Ok(Event::text(text.as_str())),
            Case::Value => Event::json(&sample_json_value(n)),
            Case::Envelope => Event::json(&sample_json_value(n))?
                .with_type("price")?
                .with_id(n as u64),
        });
        let format = match case {
            Case::Envelope => Ndjson::new(),
            Case::Text | Case::Value => Ndjson::data_only(),
        };
        respond(&Chunked::new(format), stream::iter(events))
    }

    fn axum_body(case: Case) -> impl Body<Data = Bytes> {
        axum::body::Body::from_stream(stream::iter(lines(case)))
    }

    fn warp_body(case: Case) -> impl Body<Data = Bytes> {
        warp::reply::stream(stream::iter(lines(case)))
            .into_response()
            .into_body()
    }

    fn lines(case: Case) -> impl Iterator<Item = serde_json::Result<Vec<u8>>> {
        let text = "x".repeat(128);
        (0..EVENTS_PER_BODY).map(move |n| {
            let mut line = match case {
                Case::Text => serde_json::to_vec(&text)?,
                Case::Value => serde_json::to_vec(&sample_json_value(n))?,
                Case::Envelope => {
                    let mut line = Vec::with_capacity(128);
                    line.put_slice(b"{\"id\":");
                    serde_json::to_writer(&mut line, &n.to_string())?;
                    line.put_slice(b",\"event\":\"price\",\"data\":");
                    serde_json::to_writer(&mut line, &sample_json_value(n))?;
                    line.put_u8(b'}');
                    line
                }
            };
            line.put_u8(b'\n');
            Ok(line)
        })
    }
}

/// A second subscriber, whose events are already encoded. They arrive one at a time, so that each becomes a frame.
mod second_subscriber {
    use super::*;

    /// tower-push, whose stream yields clones of the events.
    #[divan::bench]
    fn tower_push(bencher: Bencher) {
        let events = events();
        bench(bencher, || tower_push_body(&events));
    }

    /// axum, which clones each event with its bytes.
    #[divan::bench]
    fn axum(bencher: Bencher) {
        let events = axum_events();
        bench(bencher, || axum_body(&events));
    }

    /// A body of clones of the encoded bytes.
    #[divan::bench]
    fn bytes(bencher: Bencher) {
        let bytes = encoded();
        bench(bencher, || body_of_clones(&bytes));
    }

    /// Only the lookup of an event's encoding, as a transport does it.
    #[divan::bench]
    fn event_encoded(bencher: Bencher) {
        let event = &events()[0];
        bencher.bench(|| black_box(event).encoded::<PayloadEncoding>());
    }

    /// The lower bound of that lookup.
    #[divan::bench]
    fn bytes_clone(bencher: Bencher) {
        let bytes = &encoded()[0];
        bencher.bench(|| black_box(bytes).clone());
    }

    pub(super) fn compare() {
        let (events, theirs, bytes) = (events(), axum_events(), encoded());
        super::compare(
            "second subscriber, 128 B",
            [
                (
                    "tower-push",
                    body_contestant(move || tower_push_body(&events)),
                ),
                ("axum", body_contestant(move || axum_body(&theirs))),
                (
                    "a body of Bytes",
                    body_contestant(move || body_of_clones(&bytes)),
                ),
            ],
        );
        let (event, bytes) = (self::events(), encoded());
        super::compare(
            "second subscriber, Event::encoded",
            [
                (
                    "tower-push",
                    call_contestant(move || event[0].encoded::<PayloadEncoding>()),
                ),
                ("Bytes::clone", call_contestant(move || bytes[0].clone())),
            ],
        );
    }

    struct PayloadEncoding;

    impl Encoding for PayloadEncoding {
        fn encode(fields: &Fields, out: &mut BytesMut) {
            out.put_slice(fields.payload.as_bytes());
        }
    }

    fn events() -> Arc<[Event]> {
        let payload = "x".repeat(128);
        let events: Arc<[_]> = (0..EVENTS_PER_BODY)
            .map(|_| Event::text(&payload))
            .collect();
        // The first subscriber encodes the events.
        drain(tower_push_body(&events));
        events
    }

    fn tower_push_body(events: &Arc<[Event]>) -> PushBody {
        respond(
            &Sse::new().keep_alive(KeepAlive::disabled()),
            yielding_after_pending(events),
        )
    }

    fn axum_events() -> Arc<[axum::response::sse::Event]> {
        let payload = "x".repeat(128);
        (0..EVENTS_PER_BODY)
            .map(|_| axum::response::sse::Event::default().data(&payload))
            .collect()
    }

    fn axum_body(events: &Arc<[axum::response::sse::Event]>) -> impl Body<Data = Bytes> + use<> {
        let events = yielding_after_pending(events).map(Ok::<_, Infallible>);
        axum::response::Sse::new(events).into_response().into_body()
    }

    fn encoded() -> Arc<[Bytes]> {
        (0..EVENTS_PER_BODY)
            .map(|_| Bytes::from(vec![b'x'; 136]))
            .collect()
    }

    fn body_of_clones(bytes: &Arc<[Bytes]>) -> impl Body<Data = Bytes> + use<> {
        axum::body::Body::from_stream(yielding_after_pending(bytes).map(Ok::<_, Infallible>))
    }

    /// A stream of clones that is pending once before each item.
    fn yielding_after_pending<T: Clone>(values: &Arc<[T]>) -> impl Stream<Item = T> + use<T> {
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

/// Returns the body of tower-push's response to a request without headers.
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

/// Polls a body to its end, and returns its length. `black_box` keeps the compiler from removing the frames.
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
        .counter(ItemsCount::new(EVENTS_PER_BODY))
        .with_inputs(body)
        .bench_values(drain);
}

fn bench_copy(bencher: Bencher, body: impl Body<Data = Bytes>) {
    let (event, mut out) = average_event(body);
    bencher
        .counter(ItemsCount::new(EVENTS_PER_BODY))
        .bench_local(|| copy(&event, &mut out));
}

/// Returns an event of average length, and a buffer for all events of a body.
fn average_event(body: impl Body<Data = Bytes>) -> (Vec<u8>, Vec<u8>) {
    let len = drain(body);
    (vec![b'x'; len / EVENTS_PER_BODY], Vec::with_capacity(len))
}

fn copy(event: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for _ in 0..EVENTS_PER_BODY {
        out.extend_from_slice(black_box(event));
    }
    black_box(out);
}

/// Runs a round, and returns its time.
type MeasureRound = Box<dyn FnMut() -> Duration>;

fn body_contestant<B: Body<Data = Bytes>>(body: impl Fn() -> B + 'static) -> MeasureRound {
    Box::new(move || {
        let body = body();
        time_call(|| drain(body))
    })
}

fn copy_contestant(body: impl Body<Data = Bytes>) -> MeasureRound {
    let (event, mut out) = average_event(body);
    Box::new(move || time_call(|| copy(&event, &mut out)))
}

fn call_contestant<T>(f: impl Fn() -> T + 'static) -> MeasureRound {
    Box::new(move || {
        time_call(|| {
            for _ in 0..EVENTS_PER_BODY {
                black_box(f());
            }
        })
    })
}

fn time_call<T>(f: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(f());
    start.elapsed()
}

/// Prints how much faster the first contestant is than each of the others.
fn compare<const N: usize>(name: &str, mut contestants: [(&str, MeasureRound); N]) {
    const ROUNDS: usize = 300;
    let mut best = [Duration::MAX; N];
    for _ in 0..ROUNDS {
        for (best, (_, round)) in best.iter_mut().zip(&mut contestants) {
            *best = round().min(*best);
        }
    }
    let nanos = best.map(|best| best.as_secs_f64() * 1e9 / EVENTS_PER_BODY as f64);
    let ratios: Vec<_> = (1..N)
        .map(|i| format!("{:.2}x {}", nanos[i] / nanos[0], contestants[i].0))
        .collect();
    println!("{name}: {:.1} ns an event, {}", nanos[0], ratios.join(", "));
}
