use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_core::Stream;
use tokio::time::{Instant, sleep};

use super::{ConnectionPoll, DrivenConnection, EventLoopSet};
use crate::{
    Channel, Hub, Item,
    source::{BoxItemStream, EventLoopJoin, StartPosition},
};

/// The polls and the waker of a test's connection, which the test shares with the connection.
#[derive(Default)]
struct Probe {
    polls: AtomicUsize,
    waker: Mutex<Option<Waker>>,
    is_dropped: AtomicBool,
}

impl Probe {
    fn polls(&self) -> usize {
        self.polls.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        let waker = self.waker.lock().unwrap().clone();
        waker.expect("the connection was polled").wake();
    }
}

/// A connection whose poll is a function of the number of its earlier polls.
struct ProbedConnection<F> {
    probe: Arc<Probe>,
    poll: F,
}

impl<F> DrivenConnection for ProbedConnection<F>
where
    F: FnMut(usize, &mut Context<'_>, Instant) -> ConnectionPoll + Send,
{
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> ConnectionPoll {
        *self.probe.waker.lock().unwrap() = Some(cx.waker().clone());
        let earlier_polls = self.probe.polls.fetch_add(1, Ordering::SeqCst);
        (self.poll)(earlier_polls, cx, now)
    }
}

impl<F> Drop for ProbedConnection<F> {
    fn drop(&mut self) {
        self.probe.is_dropped.store(true, Ordering::SeqCst);
    }
}

fn insert<F>(event_loops: &EventLoopSet, poll: F) -> Arc<Probe>
where
    F: FnMut(usize, &mut Context<'_>, Instant) -> ConnectionPoll + Send + 'static,
{
    let probe: Arc<Probe> = Arc::default();
    let connection = ProbedConnection {
        probe: probe.clone(),
        poll,
    };
    event_loops.insert(connection, Vec::new());
    probe
}

const IDLE: ConnectionPoll = ConnectionPoll::Pending { deadline: None };

async fn yield_often() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn woken_connection_is_polled_once_for_each_wake() {
    let event_loops = EventLoopSet::default();
    let probe = insert(&event_loops, |_, _, _| IDLE);
    yield_often().await;
    assert_eq!(probe.polls(), 1);
    for polls in 2..10 {
        probe.wake();
        probe.wake();
        yield_often().await;
        assert_eq!(probe.polls(), polls);
    }
}

#[tokio::test]
async fn busy_connection_leaves_turns_to_others() {
    let event_loops = EventLoopSet::default();
    let busy = insert(&event_loops, |_, cx, _| {
        cx.waker().wake_by_ref();
        IDLE
    });
    let other = insert(&event_loops, |_, _, _| IDLE);
    yield_often().await;
    let polls = busy.polls();
    assert!(polls > 100);
    assert_eq!(other.polls(), 1);
    other.wake();
    while other.polls() == 1 {
        tokio::task::yield_now().await;
    }
    // At most two turns: the one that had begun, and the next.
    assert!(busy.polls() <= polls + 2 * super::event_loop::MAX_POLLS_PER_TURN);
}

#[tokio::test]
async fn panicking_connection_is_dropped_alone() {
    let event_loops = EventLoopSet::default();
    let bystander = insert(&event_loops, |_, _, _| IDLE);
    let panicking = insert(&event_loops, |earlier_polls, _, _| {
        assert_ne!(earlier_polls, 1, "a panic that belongs to the test");
        IDLE
    });
    yield_often().await;
    panicking.wake();
    yield_often().await;
    assert!(panicking.is_dropped.load(Ordering::SeqCst));
    panicking.wake();
    bystander.wake();
    yield_often().await;
    assert_eq!((panicking.polls(), bystander.polls()), (2, 2));
    assert_eq!(event_loops.loads(), [1]);
}

#[tokio::test]
async fn closed_connection_leaves_nothing() {
    let event_loops = EventLoopSet::default();
    let probes: Vec<_> = (0..1000)
        .map(|_| {
            insert(&event_loops, |earlier_polls, _, now| match earlier_polls {
                0 => ConnectionPoll::Pending {
                    deadline: Some(now + Duration::from_secs(3600)),
                },
                _ => ConnectionPoll::Closed,
            })
        })
        .collect();
    yield_often().await;
    assert_eq!(event_loops.loads(), [1000]);
    for probe in &probes {
        probe.wake();
    }
    yield_often().await;
    assert!(
        probes
            .iter()
            .all(|probe| probe.is_dropped.load(Ordering::SeqCst))
    );
    assert_eq!(event_loops.loads(), [0]);
}

#[tokio::test(start_paused = true)]
async fn deadlines_are_kept() {
    let start = Instant::now();
    let event_loops = EventLoopSet::default();
    let polled_at: Arc<Mutex<Vec<u128>>> = Arc::default();
    let times = polled_at.clone();
    insert(&event_loops, move |_, _, now| {
        times.lock().unwrap().push(start.elapsed().as_millis());
        ConnectionPoll::Pending {
            deadline: Some(now + Duration::from_secs(15)),
        }
    });
    sleep(Duration::from_millis(45_001)).await;
    assert_eq!(*polled_at.lock().unwrap(), [0, 15_000, 30_000, 45_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_spread_evenly() {
    let event_loops = EventLoopSet::default();
    for _ in 0..1000 {
        insert(&event_loops, |_, _, _| IDLE);
    }
    let loads = event_loops.loads();
    // One event loop for each worker thread, however many processors there are.
    assert_eq!(loads, [500; 2]);
}

#[test]
fn connections_end_with_their_runtime() {
    let event_loops = EventLoopSet::default();
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.unwrap();
        let probe = runtime.block_on(async {
            let probe = insert(&event_loops, |_, _, _| IDLE);
            yield_often().await;
            assert_eq!(probe.polls(), 1);
            probe
        });
        drop(runtime);
        assert!(probe.is_dropped.load(Ordering::SeqCst));
    }
}

/// The event loops beside one that has ended keep their connections, and end with the last of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_event_loop_is_replaced() {
    let event_loops = EventLoopSet::default();
    let until = async |condition: &dyn Fn() -> bool| {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let old = [0, 1].map(|_| {
        insert(&event_loops, |earlier_polls, _, _| match earlier_polls {
            0 | 1 => IDLE,
            _ => ConnectionPoll::Closed,
        })
    });
    until(&|| old.iter().all(|probe| probe.polls() == 1)).await;
    let alive_tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    assert_eq!(alive_tasks(), 2);
    event_loops.close_event_loop(0);
    let new = insert(&event_loops, |_, _, _| IDLE);
    until(&|| new.polls() == 1).await;
    assert_eq!(alive_tasks(), 4);
    assert_eq!(event_loops.loads().iter().sum::<usize>(), 1);
    for polls in [2, 3] {
        old[1].wake();
        until(&|| old[1].polls() == polls).await;
    }
    until(&|| alive_tasks() == 3).await;
    assert!(!new.is_dropped.load(Ordering::SeqCst));
}

/// The connections of a multi-threaded runtime are driven by this runtime, whichever runtime has used the set first.
#[test]
fn runtimes_share_no_event_loop() {
    let event_loops = EventLoopSet::default();
    let runtime = |workers| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(workers).enable_time().build();
        runtime.unwrap()
    };
    let (first, second) = (runtime(1), runtime(3));
    let probe = || async {
        let probe = insert(&event_loops, |_, _, _| IDLE);
        while probe.polls() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        probe
    };
    let ended = first.block_on(probe());
    let alive = second.block_on(probe());
    assert_eq!(event_loops.loads(), [1, 1, 0, 0]);
    drop(first);
    assert!(ended.is_dropped.load(Ordering::SeqCst));
    second.block_on(async {
        alive.wake();
        while alive.polls() == 1 {
            sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(!alive.is_dropped.load(Ordering::SeqCst));
}

/// Counts the events that its stream has yielded.
struct CountingReader {
    stream: BoxItemStream,
    events: Arc<AtomicUsize>,
}

impl DrivenConnection for CountingReader {
    fn poll(&mut self, cx: &mut Context<'_>, _: Instant) -> ConnectionPoll {
        while let Poll::Ready(item) = Pin::new(&mut self.stream).poll_next(cx) {
            // A reader that begins in an empty log gets a cursor first.
            if matches!(item, Some(Ok(Item::Event(_)))) {
                self.events.fetch_add(1, Ordering::SeqCst);
            }
        }
        IDLE
    }
}

/// Events are published while readers subscribe and leave. Each reader reads each event after its first one.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_of_log_miss_no_event() {
    const EVENTS: usize = 20_000;
    const READERS: usize = 200;
    let event_loops = EventLoopSet::default();
    let channel = Channel::builder()
        .max_events(EVENTS)
        .max_bytes(usize::MAX)
        .build();
    let publisher = std::thread::spawn({
        let channel = channel.clone();
        move || {
            for n in 0..EVENTS {
                channel.publish(n.to_string()).unwrap();
                if n % 100 == 0 {
                    std::thread::yield_now();
                }
            }
        }
    });
    let mut counts = Vec::new();
    for _ in 0..READERS {
        let subscriber = channel.subscribe_from(StartPosition::Oldest);
        let mut stream = BoxItemStream::of(subscriber);
        let EventLoopJoin::Joined(logs) = stream.join_event_loop() else {
            panic!("a channel is read in event loops");
        };
        let events = Arc::default();
        counts.push(Arc::clone(&events));
        event_loops.insert(CountingReader { stream, events }, logs);
        tokio::task::yield_now().await;
    }
    publisher.join().unwrap();
    let read = |counts: &[Arc<AtomicUsize>]| -> Vec<usize> {
        counts
            .iter()
            .map(|count| count.load(Ordering::SeqCst))
            .collect()
    };
    for _ in 0..1000 {
        if read(&counts).iter().all(|count| *count == EVENTS) {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(read(&counts), [EVENTS; READERS]);
}

/// Records the texts of the events that its stream has yielded, and how often it was polled.
struct RecordingReader {
    stream: BoxItemStream,
    record: Arc<ReaderRecord>,
}

#[derive(Default)]
struct ReaderRecord {
    texts: Mutex<Vec<String>>,
    polls: AtomicUsize,
}

impl DrivenConnection for RecordingReader {
    fn poll(&mut self, cx: &mut Context<'_>, _: Instant) -> ConnectionPoll {
        self.record.polls.fetch_add(1, Ordering::SeqCst);
        while let Poll::Ready(item) = Pin::new(&mut self.stream).poll_next(cx) {
            match item {
                Some(Ok(Item::Event(event))) => {
                    let text = event.payload().as_text().unwrap().to_owned();
                    self.record.texts.lock().unwrap().push(text);
                }
                Some(Ok(Item::Cursor(_))) => {}
                other => panic!("{other:?}"),
            }
        }
        IDLE
    }
}

/// Moves a subscriber of topics of a hub to an event loop. Returns its record, and for how many topics it has joined groups.
fn insert_hub_reader(
    event_loops: &EventLoopSet,
    hub: &Hub,
    topics: &[&str],
) -> (Arc<ReaderRecord>, usize) {
    let source = hub.topics(topics.to_vec()).unwrap();
    let subscriber = source.subscribe_from(StartPosition::Oldest).unwrap();
    let mut stream = BoxItemStream::of(subscriber);
    let EventLoopJoin::Joined(logs) = stream.join_event_loop() else {
        panic!("a hub is read in event loops");
    };
    let record: Arc<ReaderRecord> = Arc::default();
    let group_count = logs.len();
    let reader = RecordingReader {
        stream,
        record: record.clone(),
    };
    event_loops.insert(reader, logs);
    (record, group_count)
}

/// Events are published to a topic of all readers and to topics of one reader each, while readers subscribe.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_of_topics_miss_no_event() {
    const EVENTS: usize = 5_000;
    const READERS: usize = 50;
    let topics_of = |n: usize| match n % 4 {
        0 => vec!["all".to_owned()],
        1 => vec!["all".to_owned(), format!("own/{}", n % READERS)],
        _ => vec![format!("own/{}", n % READERS)],
    };
    let event_loops = EventLoopSet::default();
    let hub = Hub::builder()
        .max_events(EVENTS)
        .max_bytes(usize::MAX)
        .build();
    let publisher = std::thread::spawn({
        let hub = hub.clone();
        move || {
            for n in 0..EVENTS {
                hub.publish(topics_of(n), n.to_string()).unwrap();
                if n % 100 == 0 {
                    std::thread::yield_now();
                }
            }
        }
    });
    let mut records = Vec::new();
    for reader in 0..READERS {
        let own = format!("own/{reader}");
        records.push(insert_hub_reader(&event_loops, &hub, &["all", &own]).0);
        tokio::task::yield_now().await;
    }
    publisher.join().unwrap();
    for (reader, record) in records.iter().enumerate() {
        let own = format!("own/{reader}");
        let is_read = |n: &usize| topics_of(*n).iter().any(|t| *t == "all" || *t == own);
        let expected: Vec<_> = (0..EVENTS).filter(is_read).map(|n| n.to_string()).collect();
        for _ in 0..1000 {
            if record.texts.lock().unwrap().len() >= expected.len() {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(*record.texts.lock().unwrap(), expected, "reader {reader}");
    }
}

#[tokio::test]
async fn busy_topic_wakes_its_readers_only() {
    let event_loops = EventLoopSet::default();
    let hub = Hub::new();
    let mut readers = [const { Vec::new() }; 2];
    for _ in 0..6 {
        for (readers, topic) in readers.iter_mut().zip(["busy", "quiet"]) {
            readers.push(insert_hub_reader(&event_loops, &hub, &[topic]));
        }
    }
    // The first readers of a topic have no group.
    for readers in &readers {
        let group_counts = readers.iter().map(|(_, count)| *count);
        assert_eq!(group_counts.collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
    }
    yield_often().await;
    let polls = |readers: &[(Arc<ReaderRecord>, usize)]| -> Vec<usize> {
        let readers = readers.iter();
        readers
            .map(|(record, _)| record.polls.load(Ordering::SeqCst))
            .collect()
    };
    let before = readers.each_ref().map(|readers| polls(readers));
    for n in 0..10 {
        hub.publish("busy", n.to_string()).unwrap();
        yield_often().await;
    }
    let after = readers.each_ref().map(|readers| polls(readers));
    let with_ten: Vec<_> = before[0].iter().map(|polls| polls + 10).collect();
    assert_eq!(after, [with_ten, before[1].clone()]);
}

#[tokio::test]
async fn reader_of_many_topics_leaves_its_groups() {
    let event_loops = EventLoopSet::default();
    let hub = Hub::new();
    let topics: Vec<_> = (0..20).map(|n| format!("topic/{n}")).collect();
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let keep: Vec<_> = (0..3)
        .map(|_| insert_hub_reader(&event_loops, &hub, &topics))
        .collect();
    let closing: Vec<_> = (0..10)
        .map(|reader| {
            let source = hub.topics(topics[reader..].to_vec()).unwrap();
            let subscriber = source.subscribe_from(StartPosition::Now).unwrap();
            let mut stream = BoxItemStream::of(subscriber);
            let EventLoopJoin::Joined(logs) = stream.join_event_loop() else {
                panic!("a hub is read in event loops");
            };
            assert_eq!(logs.len(), topics.len() - reader);
            let probe: Arc<Probe> = Arc::default();
            let closes_after = reader % 3;
            let connection = ProbedConnection {
                probe: probe.clone(),
                poll: move |earlier_polls, cx: &mut Context<'_>, _| {
                    while Pin::new(&mut stream).poll_next(cx).is_ready() {}
                    match earlier_polls > closes_after {
                        true => ConnectionPoll::Closed,
                        false => IDLE,
                    }
                },
            };
            event_loops.insert(connection, logs);
            probe
        })
        .collect();
    for n in 0..20 {
        hub.publish(topics.clone(), n.to_string()).unwrap();
        yield_often().await;
    }
    assert!(
        closing
            .iter()
            .all(|probe| probe.is_dropped.load(Ordering::SeqCst))
    );
    assert_eq!(event_loops.loads(), [3]);
    for (record, _) in keep {
        assert_eq!(record.texts.lock().unwrap().len(), 20);
    }
    for topic in topics {
        assert_eq!(hub.topic(topic).unwrap().subscriber_count(), 3);
    }
}

/// A stream of the application's own code is not moved to an event loop.
#[test]
fn application_streams_get_tasks_of_their_own() {
    let channel = Channel::new().subscribe_from(StartPosition::Now);
    let mut stream = BoxItemStream::of(futures_util::StreamExt::map(channel, |item| item));
    assert!(matches!(
        stream.join_event_loop(),
        EventLoopJoin::NeedsOwnTask
    ));
}
