//! Runs: subscribers that have read a log up to the same event share the buffer with the next events, and its bytes are those that they would get one
//! event at a time.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_util::stream;
use http_body::Body;
use proptest::prelude::*;
use testkit::get_request_head;
use tower_push::{
    BoxError, Channel, Event, Guard, Item, KeepAlive, Push, PushBody, PushSource, Relay,
    format::{JsonSeq, Ndjson, Raw},
    source::StartPosition,
    transport::{Chunked, Sse, Transport},
};

/// Opens a stream that has no heartbeats.
async fn open(transport: &dyn Transport, source: impl PushSource + Send + 'static) -> PushBody {
    let mut head = get_request_head("/", &[]);
    let response = transport.respond(&mut head, Push::new(source)).await;
    assert_eq!(response.status(), 200);
    response.into_body()
}

fn sse() -> Sse {
    Sse::new().keep_alive(KeepAlive::disabled())
}

/// Returns the frames that are ready, and the error if the body has failed.
fn ready_frames(body: &mut PushBody) -> (Vec<Bytes>, Option<BoxError>) {
    let mut frames = Vec::new();
    let mut pending_polls = 0;
    // A body yields after some frames in a row, and before it fails.
    while pending_polls < 2 {
        match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => {
                frames.push(frame.into_data().unwrap());
                pending_polls = 0;
            }
            Poll::Ready(Some(Err(error))) => return (frames, Some(error)),
            Poll::Ready(None) => break,
            Poll::Pending => pending_polls += 1,
        }
    }
    (frames, None)
}

fn pointers(frames: &[Bytes]) -> Vec<*const u8> {
    frames.iter().map(|frame| frame.as_ptr()).collect()
}

#[tokio::test]
async fn burst_is_one_buffer_for_all() {
    let channel = Channel::new();
    let (mut one, mut other) = (
        open(&sse(), channel.clone()).await,
        open(&sse(), channel.clone()).await,
    );
    let mut held = open(&sse(), channel.clone().holding("a value")).await;
    for body in [&mut one, &mut other, &mut held] {
        ready_frames(body);
    }
    for number in 0..500 {
        channel.publish(format!("{number:0100}")).unwrap();
    }
    let (frames, _) = ready_frames(&mut one);
    assert!(frames.iter().all(|frame| frame.len() > 4096) && frames.len() > 3);
    for body in [&mut other, &mut held] {
        assert_eq!(pointers(&ready_frames(body).0), pointers(&frames));
    }
    let text = String::from_utf8(frames.concat()).unwrap();
    let numbers = text.lines().filter_map(|line| line.strip_prefix("data: "));
    assert!(numbers.map(|n| n.parse::<u32>().unwrap()).eq(0..500));
}

/// A stream behind an adapter, once its first item is sent, shares the buffer of a stream without an adapter.
#[tokio::test]
async fn burst_is_one_buffer_behind_each_adapter() {
    let channel = Channel::new();
    let adapted = [
        Push::new(channel.clone().preceded_by(async || "snapshot")),
        Push::new(channel.clone().respond_early()),
        Push::new(channel.clone().holding(())),
        Push::new(channel.clone().answering(async |_| None::<Event>)),
        Push::new(
            channel
                .clone()
                .respond_early()
                .preceded_by(async || "snapshot"),
        ),
    ];
    let mut plain = open(&sse(), channel.clone()).await;
    let mut bodies = Vec::new();
    for push in adapted {
        bodies.push(open(&sse(), push).await);
    }
    for body in bodies.iter_mut().chain([&mut plain]) {
        ready_frames(body);
    }
    for _ in 0..3 {
        channel.publish("x".repeat(100)).unwrap();
    }
    let (expected, _) = ready_frames(&mut plain);
    for body in &mut bodies {
        let (frames, error) = ready_frames(body);
        assert!(error.is_none());
        assert_eq!(pointers(&frames), pointers(&expected));
    }
}

#[tokio::test]
async fn burst_of_a_relay_is_one_buffer_for_all() {
    let (mut feed, relay) = Relay::builder().build();
    let mut one = open(&sse(), relay.clone()).await;
    let mut other = open(&sse(), relay.clone()).await;
    ready_frames(&mut one);
    ready_frames(&mut other);
    for number in 0..50_u64 {
        feed.push(Event::text("x".repeat(100)).with_event_id(number.into()))
            .unwrap();
    }
    let (frames, _) = ready_frames(&mut one);
    assert_eq!(pointers(&ready_frames(&mut other).0), pointers(&frames));
    assert_eq!(frames.len(), 1);
}

#[tokio::test]
async fn readers_that_start_apart_share_bytes_after_a_block() {
    let channel = Channel::new();
    let mut early = open(&sse(), channel.clone()).await;
    ready_frames(&mut early);
    for _ in 0..10 {
        channel.publish("x".repeat(100)).unwrap();
    }
    let mut late = open(&sse(), channel.with_start(StartPosition::Last(3))).await;
    for _ in 0..200 {
        channel.publish("x".repeat(100)).unwrap();
    }
    let (early, late) = (ready_frames(&mut early).0, ready_frames(&mut late).0);
    let shared = |frames: &[Bytes]| pointers(frames).split_off(frames.len() - 3);
    assert_eq!(shared(&early), shared(&late));
}

/// The third event of the run cannot be written.
#[tokio::test]
async fn unsendable_event_of_a_run_is_a_gap_for_each_stream() {
    let guard = Guard::new();
    let channel = Channel::new();
    let (sse, lines) = (guard.wrap(sse()), Chunked::new(Ndjson::new()));
    let mut body = open(&sse, channel.clone()).await;
    let mut lines = open(&lines, channel.clone()).await;
    let (_, _) = (ready_frames(&mut body), ready_frames(&mut lines));
    for event in [Event::text("a"), Event::text("b"), Event::binary(vec![255])] {
        channel.publish(event).unwrap();
    }
    channel.publish("c").unwrap();
    let (frames, error) = ready_frames(&mut body);
    assert!(error.is_none());
    let text = String::from_utf8(frames.concat()).unwrap();
    let lines_of = |start: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(start));
        lines.map(str::to_owned).collect()
    };
    let ids = lines_of("id: ");
    let gap = format!(
        r#"{{"reason":"unsupported","requested":null,"resumed":"{}","missed":1}}"#,
        ids[2]
    );
    assert_eq!(lines_of("data: "), ["a", "b", &gap, "c"]);
    assert_eq!(lines_of("event: "), ["gap"]);
    assert_eq!(ids.len(), 4);
    // The event is counted too, as if the events had been written one by one.
    let counts = guard.counts();
    assert_eq!((counts.events, counts.gaps), (4, 1));

    let (frames, _) = ready_frames(&mut lines);
    let text = String::from_utf8(frames.concat()).unwrap();
    assert_eq!(text.matches("data_base64").count(), 1, "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[tokio::test]
async fn guard_counts_every_event_of_a_run() {
    let guard = Guard::new();
    let channel = Channel::new();
    let mut body = open(&guard.wrap(sse()), channel.clone()).await;
    ready_frames(&mut body);
    for _ in 0..100 {
        channel.publish("four").unwrap();
    }
    ready_frames(&mut body);
    let counts = guard.counts();
    assert_eq!((counts.events, counts.bytes), (100, 400));
}

/// A step of a channel and its subscribers.
#[derive(Clone, Debug)]
enum Step {
    Publish { payload_len: usize, count: usize },
    Read,
    Subscribe,
}

fn step() -> impl Strategy<Value = Step> {
    let payload_len = prop_oneof![0..200_usize, 3000..9000_usize];
    prop_oneof![
        (payload_len, 1..80_usize)
            .prop_map(|(payload_len, count)| Step::Publish { payload_len, count }),
        Just(Step::Read),
        Just(Step::Subscribe),
    ]
}

fn transports() -> Vec<Box<dyn Transport>> {
    let quiet = KeepAlive::disabled();
    vec![
        Box::new(sse()),
        Box::new(Sse::data_only().gap_event(None).keep_alive(quiet)),
        Box::new(sse().base64()),
        Box::new(Chunked::new(Ndjson::new()).keep_alive(quiet)),
        Box::new(Chunked::new(JsonSeq::new()).keep_alive(quiet)),
        Box::new(Chunked::new(Raw::new()).keep_alive(quiet)),
    ]
}

/// A channel's stream as a stream of the user's own, which yields no runs.
fn without_runs(channel: &Channel, start: StartPosition) -> impl PushSource + Send + 'static {
    let subscriber = channel.subscribe_from(start);
    stream::unfold(subscriber, async |mut subscriber| {
        let item: Option<Result<Item, BoxError>> =
            futures_util::StreamExt::next(&mut subscriber).await;
        item.map(|item| (item, subscriber))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Streams with and without runs write the same bytes, while the channel also trims events that were not read.
    #[test]
    fn runs_change_no_byte(
        steps in proptest::collection::vec(step(), 1..30),
        max_events in prop_oneof![1..10_usize, 100..300_usize],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for transport in transports() {
            let channel = Channel::builder().max_events(max_events).build();
            let mut pairs = Vec::new();
            for step in &steps {
                match step {
                    Step::Publish { payload_len, count } => {
                        for n in 0..*count {
                            let event = Event::text("x".repeat(*payload_len));
                            let event = if n % 3 == 0 { event.with_type("t").unwrap() } else { event };
                            channel.publish(event).unwrap();
                        }
                    }
                    Step::Subscribe => {
                        let start = StartPosition::Last(pairs.len());
                        let source = channel.with_start(start.clone());
                        let one = runtime.block_on(open(&*transport, source));
                        let other = runtime.block_on(open(&*transport, without_runs(&channel, start)));
                        pairs.push((one, other));
                    }
                    Step::Read => for (one, other) in &mut pairs {
                        let (with_runs, error) = ready_frames(one);
                        let (without, other_error) = ready_frames(other);
                        prop_assert!(with_runs.concat() == without.concat());
                        prop_assert_eq!(error.is_some(), other_error.is_some());
                    }
                }
            }
        }
    }
}
