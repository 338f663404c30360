//! A channel or a relay with a flush window sends the first event at once and later ones together, on every transport and over both kinds of
//! connections; the window loses no event, changes no count, and delays no end.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt};
use proptest::{collection::vec, prelude::*};
use testkit::{
    TEST_TIMEOUT, describe_item,
    pipe_client::{PipeClient, SSE, WEBSOCKET},
    read_ready_items,
};
use tokio::{
    runtime,
    sync::oneshot,
    task::yield_now,
    time::{Instant, advance, sleep, timeout},
};
use tower_push::{
    BoxError, Channel, Drain, Event, EventId, Guard, Hub, Item, Relay,
    guard::DrainPlan,
    server::Server,
    service,
    source::{
        StartPosition,
        channel::{ChannelCounts, LagPolicy},
    },
};

const WINDOW: Duration = Duration::from_millis(100);
/// tokio's timers have a resolution of one millisecond.
const TIMER_RESOLUTION: Duration = Duration::from_millis(2);

const NDJSON: &str = "accept: application/x-ndjson\r\n";
const JSON_SEQ: &str = "accept: application/json-seq\r\n";
const MULTIPART: &str = "accept: multipart/mixed\r\n";
const LONG_POLL: &str = "accept: application/json\r\n";

const STREAMS: [&str; 5] = [SSE, NDJSON, JSON_SEQ, MULTIPART, WEBSOCKET];

fn channel() -> Channel {
    Channel::builder().flush_window(WINDOW).build()
}

/// Asserts that `time` is `expected` after `start`, up to the resolution of timers.
fn assert_time(time: Instant, start: Instant, expected: Duration, context: &str) {
    let elapsed = time - start;
    let range = expected..=expected + TIMER_RESOLUTION;
    assert!(
        range.contains(&elapsed),
        "{elapsed:?}, not {expected:?}: {context}"
    );
}

/// A server that detaches streams and drives them in event loops, and one that leaves them to hyper.
fn servers() -> [Server; 2] {
    [true, false].map(|detaches| Server::builder().detach(detaches).build())
}

// --- when events arrive

#[tokio::test(start_paused = true)]
async fn later_events_arrive_together_at_end_of_window() {
    for server in servers() {
        for headers in STREAMS {
            let channel = channel();
            let mut client =
                PipeClient::request(&server, service(channel.clone()), None, headers).await;
            client.expect("HTTP/1.1").await;
            channel.subscribed().await;
            sleep(Duration::from_secs(1)).await;
            let start = Instant::now();
            channel.publish("event-1").unwrap();
            let first = client.expect("event-1").await;
            assert_time(first, start, Duration::ZERO, headers);
            for text in ["event-2", "event-3"] {
                sleep(WINDOW / 4).await;
                channel.publish(text).unwrap();
            }
            let second = client.expect("event-2").await;
            assert_time(second, start, WINDOW, headers);
            let third = client.expect("event-3").await;
            assert_time(third, start, WINDOW, headers);
            // The flush of the events 2 and 3 has begun the next window.
            sleep(WINDOW / 2).await;
            channel.publish("event-4").unwrap();
            let fourth = client.expect("event-4").await;
            assert_time(fourth, start, 2 * WINDOW, headers);
            // After a window without an event, an event is not held back.
            sleep(2 * WINDOW).await;
            let start = Instant::now();
            channel.publish("event-5").unwrap();
            let fifth = client.expect("event-5").await;
            assert_time(fifth, start, Duration::ZERO, headers);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn relay_holds_back_events_too() {
    for server in servers() {
        let (mut feed, relay) = Relay::builder().flush_window(WINDOW).build();
        let mut push = move |id: u64| {
            let event = Event::text(format!("event-{id}")).with_id(id).unwrap();
            feed.push(event).unwrap();
        };
        let mut client = PipeClient::request(&server, service(relay.clone()), None, SSE).await;
        client.expect("HTTP/1.1").await;
        while relay.subscriber_count() == 0 {
            yield_now().await;
        }
        let start = Instant::now();
        push(1);
        assert_time(
            client.expect("event-1").await,
            start,
            Duration::ZERO,
            "first",
        );
        push(2);
        assert_time(client.expect("event-2").await, start, WINDOW, "second");
    }
}

#[tokio::test(start_paused = true)]
async fn poll_gets_published_events_at_once() {
    let server = Server::new();
    let channel = channel();
    let poll = |cursor: &EventId| {
        let cursor = cursor.clone();
        let service = service(channel.clone());
        let server = server.clone();
        async move { PipeClient::request(&server, service, Some(&cursor), LONG_POLL).await }
    };
    let start = Instant::now();
    let first = channel.publish("event-1").unwrap();
    let second = channel.publish("event-2").unwrap();
    // Event 2 is held back from connected clients, but was published before this request.
    let arrived = poll(&first).await.expect("event-2").await;
    assert_time(arrived, start, Duration::ZERO, "published before the poll");
    // A poll that waits gets the next event with the flush.
    let mut waiting = poll(&second).await;
    sleep(WINDOW / 2).await;
    let third = channel.publish("event-3").unwrap();
    assert_time(
        waiting.expect("event-3").await,
        start,
        WINDOW,
        "waiting poll",
    );
    // A poll that waits in a quiet time gets the next event at once.
    let mut waiting = poll(&third).await;
    sleep(3 * WINDOW).await;
    let start = Instant::now();
    channel.publish("event-4").unwrap();
    assert_time(
        waiting.expect("event-4").await,
        start,
        Duration::ZERO,
        "quiet",
    );
}

#[tokio::test(start_paused = true)]
async fn new_stream_begins_with_all_published_events() {
    for server in servers() {
        for headers in STREAMS {
            let channel = channel();
            let first = channel.publish("event-1").unwrap();
            channel.publish("event-2").unwrap();
            let start = Instant::now();
            let service = service(channel.clone());
            let mut client = PipeClient::request(&server, service, Some(&first), headers).await;
            let second = client.expect("event-2").await;
            assert_time(second, start, Duration::ZERO, headers);
            channel.publish("event-3").unwrap();
            assert_time(client.expect("event-3").await, start, WINDOW, headers);
        }
    }
}

// --- ends

#[tokio::test(start_paused = true)]
async fn close_sends_held_events_at_once() {
    for server in servers() {
        for headers in [SSE, NDJSON, JSON_SEQ, MULTIPART, WEBSOCKET, LONG_POLL] {
            let channel = channel();
            let first = channel.publish("event-1").unwrap();
            let service = service(channel.clone());
            let mut client = PipeClient::request(&server, service, Some(&first), headers).await;
            channel.subscribed().await;
            sleep(WINDOW / 10).await;
            channel.publish("event-2").unwrap();
            let start = Instant::now();
            channel.close();
            assert_time(
                client.expect("event-2").await,
                start,
                Duration::ZERO,
                headers,
            );
            let end = match headers {
                // A close frame with the code 1000.
                WEBSOCKET => "\u{88}\u{2}\u{3}\u{e8}",
                _ => r#""finished":true"#,
            };
            let end_time = client.expect(end).await;
            assert_time(end_time, start, Duration::ZERO, headers);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drain_sends_held_events_before_the_end() {
    for server in servers() {
        for headers in [SSE, NDJSON, JSON_SEQ, MULTIPART, WEBSOCKET, LONG_POLL] {
            let channel = channel();
            let first = channel.publish("event-1").unwrap();
            let drain = Drain::new();
            let guard = Guard::builder().drain(&drain).build();
            let service = service(channel.clone()).guard(&guard);
            let mut client = PipeClient::request(&server, service, Some(&first), headers).await;
            channel.subscribed().await;
            sleep(WINDOW / 10).await;
            channel.publish("event-2").unwrap();
            channel.publish("event-3").unwrap();
            let start = Instant::now();
            drain.start(DrainPlan::within(Duration::from_secs(5)).spread(Duration::ZERO));
            let end = match headers {
                // The end of a poll is the end of its response.
                LONG_POLL => "event-3",
                _ => r#""finished":false"#,
            };
            let end_time = client.expect(end).await;
            assert_time(end_time, start, Duration::ZERO, headers);
            let position = |text| client.response.find(text);
            let (second, third) = (position("event-2"), position("event-3"));
            assert!(second.is_some() && second < third, "{}", client.response);
            assert!(third <= position(end), "{}", client.response);
            assert_eq!(guard.counts().events, 2, "{headers}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drain_ends_stream_of_busy_channel() {
    let channel = Channel::builder()
        .flush_window(Duration::from_millis(1))
        .build();
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let service = service(channel.clone()).guard(&guard);
    let mut client = PipeClient::request(&Server::new(), service, None, SSE).await;
    channel.subscribed().await;
    let publisher = tokio::spawn(async move {
        loop {
            channel.publish("x").unwrap();
            yield_now().await;
        }
    });
    drain.start(DrainPlan::within(Duration::from_secs(5)).spread(Duration::ZERO));
    client.expect("\"finished\":false").await;
    publisher.abort();
}

// --- every event, once

/// A step of a random run.
#[derive(Clone, Debug)]
enum Step {
    /// Publishes this many events.
    Publish(u32),
    Advance(Duration),
    /// The subscriber reads what is ready.
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..20_u32).prop_map(Step::Publish),
        (0..250_u64).prop_map(|millis| Step::Advance(Duration::from_millis(millis))),
        Just(Step::Read),
    ]
}

/// Runs the steps on a channel with a log of `max_events`. Returns what a subscriber got, and the channel's counts.
async fn run_steps(
    steps: &[Step],
    max_events: usize,
    policy: LagPolicy,
) -> (Vec<String>, ChannelCounts) {
    let builder = Channel::builder().max_events(max_events).lag_policy(policy);
    let channel = builder.flush_window(WINDOW).build();
    let mut subscriber = channel.subscribe_from(StartPosition::Oldest);
    let (mut published, mut read) = (0, Vec::new());
    for step in steps {
        match step {
            Step::Publish(count) => {
                for _ in 0..*count {
                    published += 1;
                    channel.publish(published.to_string()).unwrap();
                }
            }
            Step::Advance(time) => advance(*time).await,
            Step::Read => read.extend(read_ready_items(&mut subscriber)),
        }
    }
    channel.close();
    while let Some(item) = subscriber.next().await {
        read.push(describe_item(item));
    }
    (read, channel.counts())
}

fn runtime_with_paused_clock() -> runtime::Runtime {
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn events_and_gaps_add_up(steps in vec(step(), 0..40), max_events in 1..40_usize) {
        let run = run_steps(&steps, max_events, LagPolicy::Gap);
        let (read, counts) = runtime_with_paused_clock().block_on(run);
        let mut next = 1;
        for item in &read {
            if let Some(missed) = item.strip_prefix("lagged Some(") {
                next += missed.trim_end_matches(')').parse::<u64>().unwrap();
            } else if let Ok(number) = item.parse::<u64>() {
                prop_assert_eq!(number, next);
                next += 1;
            } else {
                prop_assert!(["cursor", "finished"].contains(&&**item), "{}", item);
            }
        }
        prop_assert_eq!(next, counts.published + 1, "{:?}", read);
        let texts = read.iter().filter(|item| item.parse::<u64>().is_ok()).count();
        prop_assert_eq!(counts.lagged + texts as u64, counts.published);
    }
}

/// A subscriber that is polled whenever it is woken misses no event, because the log never holds back more than half of its limits.
#[tokio::test(start_paused = true)]
async fn window_makes_no_gap() {
    let channel = Channel::builder()
        .max_events(8)
        .flush_window(WINDOW)
        .build();
    let mut subscriber = channel.subscribe_from(StartPosition::Now);
    assert!(matches!(subscriber.next().await, Some(Ok(Item::Cursor(_)))));
    let reader = tokio::spawn(async move {
        let mut read = Vec::new();
        while let Some(item) = subscriber.next().await {
            read.push(describe_item(item));
        }
        read
    });
    for number in 0..1000 {
        channel.publish(number.to_string()).unwrap();
        yield_now().await;
    }
    channel.close();
    let expected = (0..1000).map(|number| number.to_string());
    let expected: Vec<_> = expected.chain(["finished".to_owned()]).collect();
    assert_eq!(reader.await.unwrap(), expected);
    assert_eq!(channel.counts().lagged, 0);
}

#[tokio::test(start_paused = true)]
async fn conflating_channel_holds_back_more_than_its_log() {
    let by_text = |event: &Event| event.payload().as_text().unwrap().to_owned();
    let builder = Channel::builder()
        .max_events(1)
        .lag_policy(LagPolicy::conflate(by_text));
    let channel = builder.flush_window(WINDOW).build();
    let mut subscriber = channel.subscribe_from(StartPosition::Oldest);
    let start = Instant::now();
    for text in ["a", "a", "b", "a"] {
        channel.publish(text).unwrap();
        yield_now().await;
    }
    let mut read = Vec::new();
    while read.len() < 3 {
        read.push(describe_item(subscriber.next().await.unwrap()));
    }
    assert!(start.elapsed() <= WINDOW + TIMER_RESOLUTION);
    assert_eq!(read, ["cursor", "b", "a"]);
}

/// Lets each publisher publish `count` events in a thread of its own, while the subscribers read. Each subscriber must get all events, in the
/// order of their ids.
async fn publish_while_reading<S, P>(
    subscribers: impl IntoIterator<Item = S>,
    publishers: [P; 4],
    count: usize,
) where
    S: Stream<Item = Result<Item, BoxError>> + Send + Unpin + 'static,
    P: Fn() + Send + 'static,
{
    let total = publishers.len() * count;
    let readers: Vec<_> = subscribers
        .into_iter()
        .map(|mut subscriber| {
            tokio::spawn(async move {
                let mut ids = Vec::new();
                while ids.len() < total {
                    match timeout(TEST_TIMEOUT, subscriber.next()).await.unwrap() {
                        Some(Ok(Item::Cursor(_))) => {}
                        Some(Ok(Item::Event(event))) => ids.push(event.id().unwrap().clone()),
                        item => panic!("{item:?}"),
                    }
                }
                ids
            })
        })
        .collect();
    let publishers = publishers.map(|publish| {
        thread::spawn(move || {
            for number in 0..count {
                publish();
                if number % 100 == 0 {
                    thread::sleep(Duration::from_micros(1500));
                }
            }
        })
    });
    for reader in readers {
        let ids = reader.await.unwrap();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }
    publishers
        .into_iter()
        .for_each(|publisher| publisher.join().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_publishers_and_readers_lose_no_event() {
    const EVENTS: usize = 2000;
    let builder = Channel::builder().max_events(4 * EVENTS);
    let channel = builder.flush_window(Duration::from_millis(1)).build();
    let subscribers = [(); 8].map(|()| channel.subscribe_from(StartPosition::Oldest));
    let publishers = [(); 4].map(|()| {
        let channel = channel.clone();
        move || _ = channel.publish("x").unwrap()
    });
    publish_while_reading(subscribers, publishers, EVENTS).await;
}

// --- hubs

fn hub() -> Hub {
    Hub::builder().flush_window(WINDOW).build()
}

#[tokio::test(start_paused = true)]
async fn hub_holds_back_events_of_each_topic() {
    for server in servers() {
        for headers in STREAMS {
            let hub = hub();
            let service = service(hub.topics(["a", "b"]).unwrap());
            let mut client = PipeClient::request(&server, service, None, headers).await;
            client.expect("HTTP/1.1").await;
            while hub.topic("b").unwrap().subscriber_count() == 0 {
                yield_now().await;
            }
            let start = Instant::now();
            hub.publish("a", "event-1").unwrap();
            let time = client.expect("event-1").await;
            assert_time(time, start, Duration::ZERO, headers);
            sleep(WINDOW / 4).await;
            hub.publish("a", "event-2").unwrap();
            sleep(WINDOW / 4).await;
            hub.publish("a", "event-3").unwrap();
            let time = client.expect("event-2").await;
            assert_time(time, start, WINDOW, headers);
            let time = client.expect("event-3").await;
            assert_time(time, start, WINDOW, headers);
            // An event of a quiet topic is sent at once, and with it the earlier event of the other topic.
            sleep(WINDOW / 4).await;
            hub.publish("a", "event-4").unwrap();
            let start = Instant::now();
            hub.publish("b", "event-5").unwrap();
            let time = client.expect("event-5").await;
            assert_time(time, start, Duration::ZERO, headers);
            assert!(client.response.find("event-4") < client.response.find("event-5"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hub_reader_begins_and_ends_with_all_events() {
    for server in servers() {
        let hub = hub();
        let mut other = hub
            .topic("a")
            .unwrap()
            .subscribe_from(StartPosition::Now)
            .unwrap();
        read_ready_items(&mut other);
        let first = hub.publish("a", "event-1").unwrap();
        hub.publish("a", "event-2").unwrap();
        let start = Instant::now();
        let drain = Drain::new();
        let guard = Guard::builder().drain(&drain).build();
        let service = service(hub.topic("a").unwrap()).guard(&guard);
        let mut client = PipeClient::request(&server, service, Some(&first), SSE).await;
        let time = client.expect("event-2").await;
        assert_time(time, start, Duration::ZERO, "published before the request");
        hub.publish("a", "event-3").unwrap();
        drain.start(DrainPlan::within(Duration::from_secs(5)).spread(Duration::ZERO));
        let time = client.expect(r#""finished":false"#).await;
        assert_time(time, start, Duration::ZERO, "drain");
        assert!(client.response.contains("event-3"), "{}", client.response);
    }
}

/// A step of a random run of a hub.
#[derive(Clone, Debug)]
enum HubStep {
    /// Publishes to one of three topics, of which the subscriber reads the first two.
    Publish {
        topic: usize,
    },
    Advance(Duration),
    Read,
}

fn hub_step() -> impl Strategy<Value = HubStep> {
    prop_oneof![
        4 => (0..3_usize).prop_map(|topic| HubStep::Publish { topic }),
        2 => (0..150_u64).prop_map(|millis| HubStep::Advance(Duration::from_millis(millis))),
        2 => Just(HubStep::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hub_reader_gets_each_event_once(steps in vec(hub_step(), 0..100)) {
        let (read, expected) = runtime_with_paused_clock().block_on(async {
            let hub = hub();
            let source = hub.topics(["a", "b"]).unwrap();
            let mut subscriber = source.subscribe_from(StartPosition::Now).unwrap();
            let (mut read, mut expected) = (Vec::new(), Vec::new());
            for (number, step) in steps.iter().enumerate() {
                match step {
                    HubStep::Publish { topic } => {
                        hub.publish(["a", "b", "c"][*topic], number.to_string()).unwrap();
                        expected.extend((*topic < 2).then(|| number.to_string()));
                    }
                    HubStep::Advance(time) => advance(*time).await,
                    HubStep::Read => read.extend(read_ready_items(&mut subscriber)),
                }
            }
            // The subscriber waits, and the window ends.
            read.extend(read_ready_items(&mut subscriber));
            sleep(2 * WINDOW).await;
            read.extend(read_ready_items(&mut subscriber));
            read.retain(|item| item != "cursor");
            (read, expected)
        });
        prop_assert_eq!(read, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_publishers_of_a_hub_lose_no_event() {
    const EVENTS: usize = 1000;
    let builder = Hub::builder().max_events(4 * EVENTS);
    let hub = builder.flush_window(Duration::from_millis(1)).build();
    let subscribers = [(); 8].map(|()| {
        let source = hub.topics(["a", "b"]).unwrap();
        source.subscribe_from(StartPosition::Now).unwrap()
    });
    let publishers = ["a", "b", "a", "b"].map(|topic| {
        let hub = hub.clone();
        move || _ = hub.publish(topic, "x").unwrap()
    });
    publish_while_reading(subscribers, publishers, EVENTS).await;
}

// --- runtimes

/// Polls a future whenever it is woken, on a thread without a tokio runtime.
fn block_on_without_runtime<F: Future>(future: F) -> F::Output {
    struct ThreadWaker(thread::Thread);
    impl Wake for ThreadWaker {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn reader_without_runtime_gets_events_at_once() {
    let channel = Channel::builder()
        .flush_window(Duration::from_secs(10))
        .build();
    let mut subscriber = channel.subscribe_from(StartPosition::Oldest);
    let reader = thread::spawn(move || {
        let mut next = || block_on_without_runtime(subscriber.next()).unwrap();
        [(); 4].map(|()| describe_item(next()))
    });
    for text in ["a", "b", "c"] {
        channel.publish(text).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(reader.join().unwrap(), ["cursor", "a", "b", "c"]);
}

/// The timer of the window belongs to the runtime of one reader. Another reader gets the events even if that runtime ends.
#[test]
fn end_of_one_runtime_delays_no_other_reader() {
    let channel = Channel::builder()
        .flush_window(Duration::from_secs(10))
        .build();
    let first = channel.publish("a").unwrap();
    let doomed = runtime_with_paused_clock();
    let mut reader = channel.subscribe_from(StartPosition::After(first.clone()));
    doomed.block_on(async {
        // The reader waits, and sets the timer.
        assert!(reader.next().now_or_never().is_none());
    });
    let (ready, is_ready) = oneshot::channel();
    let other = thread::spawn({
        let mut subscriber = channel.subscribe_from(StartPosition::After(first));
        move || {
            runtime_with_paused_clock().block_on(async {
                // The clock of this runtime stands still while the test holds it awake.
                let (_, item) = tokio::join!(async { ready.send(()) }, async {
                    tokio::select! {
                        item = subscriber.next() => item.map(describe_item),
                        () = keep_awake() => None,
                    }
                });
                item
            })
        }
    });
    is_ready.blocking_recv().unwrap();
    channel.publish("b").unwrap();
    drop(doomed);
    assert_eq!(other.join().unwrap().as_deref(), Some("b"));
}

/// Keeps the runtime busy for [`TEST_TIMEOUT`], so that its paused clock does not advance.
async fn keep_awake() {
    let start = std::time::Instant::now();
    while start.elapsed() < TEST_TIMEOUT {
        yield_now().await;
    }
}
