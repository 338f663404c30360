//! The cost of a [`Hub`] against that of a [`Channel`] with one topic, without sockets.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench hub
//! ```
//!
//! One thread publishes, and then polls each subscriber until it has its messages. The contestants take turns, so that a disturbance affects all of
//! them. The table shows nanoseconds for each publication, or for each message that was delivered, for the best round and for the median
//! round; the bytes that each of 100 000 topics takes with its one subscriber; and the time of a publication beside a topic that another thread keeps
//! busy.

use std::{
    alloc::System,
    env,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

use futures_util::{Stream, StreamExt};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower_push::{BoxError, Channel, Event, Hub, Item, source::StartPosition};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The number of events in each log.
const LOG_EVENTS: usize = 256;

fn main() {
    // `cargo test --benches` runs this file too, with a tiny load.
    let is_bench = env::args().any(|argument| argument == "--bench");
    let (rounds, scale) = if is_bench { (15, 1) } else { (1, 100) };
    println!("{:44} {:>8} {:>8}", "ns", "best", "median");
    compare_publications(rounds, 100_000 / scale);
    compare_deliveries(rounds, scale);
    measure_beside_busy_topic(rounds, 100_000 / scale);
    measure_topics(100_000 / scale);
}

/// One contestant: a name, and the function of one round, which returns the number of publications or deliveries.
struct Contestant<'a> {
    name: String,
    run_round: Box<dyn FnMut() -> usize + 'a>,
}

impl<'a> Contestant<'a> {
    fn new(name: impl Into<String>, run_round: impl FnMut() -> usize + 'a) -> Self {
        Self {
            name: name.into(),
            run_round: Box::new(run_round),
        }
    }
}

/// Lets the contestants take turns, and prints a row for each.
fn compare(rounds: usize, mut contestants: Vec<Contestant<'_>>) {
    let mut times = vec![Vec::new(); contestants.len()];
    for _ in 0..rounds {
        for (contestant, times) in contestants.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let count = (contestant.run_round)();
            times.push(start.elapsed().as_nanos() as f64 / count as f64);
        }
    }
    for (contestant, mut times) in contestants.iter().zip(times) {
        times.sort_unstable_by(f64::total_cmp);
        let median = times[times.len() / 2];
        println!("{:44} {:8.1} {:8.1}", contestant.name, times[0], median);
    }
}

fn compare_publications(rounds: usize, publications: usize) {
    let channel = Channel::builder().max_events(LOG_EVENTS).build();
    let hub = Hub::builder().max_events(LOG_EVENTS).build();
    let topic = hub.topic("orders/42").expect("a topic");
    let many = Hub::builder().max_events(LOG_EVENTS).build();
    for number in 0..publications {
        let _ = many.publish(format!("orders/{number}"), "x");
    }
    let one_of_many = many.topic("orders/42").expect("a topic");
    let without_history = Hub::builder().max_events(0).build();
    let nobody = without_history.topic("orders/42").expect("a topic");
    let repeat = |publish: &dyn Fn(Event)| {
        (0..publications).for_each(|_| publish(Event::text("x")));
        publications
    };
    compare(
        rounds,
        vec![
            Contestant::new("publish: channel", || {
                repeat(&|event| drop(channel.publish(event)))
            }),
            Contestant::new("publish: one topic", || {
                repeat(&|event| drop(topic.publish(event)))
            }),
            Contestant::new("publish: one of many topics", || {
                repeat(&|event| drop(one_of_many.publish(event)))
            }),
            Contestant::new("publish: a topic by its name", || {
                repeat(&|event| drop(hub.publish("orders/42", event)))
            }),
            Contestant::new("publish: no subscriber and no history", || {
                repeat(&|event| drop(nobody.publish(event)))
            }),
        ],
    );
}

/// Polls a subscriber until it has nothing more. Returns the number of events.
fn drain<S>(subscriber: &mut S) -> usize
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    let cx = &mut Context::from_waker(Waker::noop());
    let mut events = 0;
    while let Poll::Ready(Some(item)) = subscriber.poll_next_unpin(cx) {
        events += usize::from(matches!(item, Ok(Item::Event(_))));
    }
    events
}

fn compare_deliveries(rounds: usize, scale: usize) {
    for (topics, subscribers) in [(1, 100), (1_000 / scale, 100), (1, 1), (100_000 / scale, 1)] {
        let channel = Channel::builder().max_events(LOG_EVENTS).build();
        let mut of_channel: Vec<_> = (0..subscribers)
            .map(|_| channel.subscribe_from(StartPosition::Now))
            .collect();
        let hub = Hub::builder().max_events(LOG_EVENTS).build();
        let mut of_topics: Vec<_> = (0..topics)
            .map(|number| {
                let topic = hub.topic(format!("topic/{number}")).expect("a topic");
                let subscribe = |_| topic.subscribe_from(StartPosition::Now).expect("room");
                let subscribers: Vec<_> = (0..subscribers).map(subscribe).collect();
                (topic.clone(), subscribers)
            })
            .collect();
        let mut of_channels: Vec<_> = (0..topics)
            .map(|_| {
                let channel = Channel::builder().max_events(LOG_EVENTS).build();
                let subscribe = |_| channel.subscribe_from(StartPosition::Now);
                let subscribers: Vec<_> = (0..subscribers).map(subscribe).collect();
                (channel.clone(), subscribers)
            })
            .collect();
        let publications = topics.max(10_000 / scale / subscribers);
        let (mut next, mut next_channel) = (0, 0);
        compare(
            rounds,
            vec![
                Contestant::new(
                    format!("deliver: channel, {subscribers} subscribers"),
                    || {
                        let deliver = |_| {
                            let _ = channel.publish("x");
                            of_channel.iter_mut().map(drain).sum::<usize>()
                        };
                        (0..publications).map(deliver).sum()
                    },
                ),
                Contestant::new(
                    format!("deliver: {topics} channels, {subscribers} subscribers"),
                    || {
                        let deliver = |_| {
                            next_channel = (next_channel + 1) % of_channels.len();
                            let (channel, subscribers) = &mut of_channels[next_channel];
                            let _ = channel.publish("x");
                            subscribers.iter_mut().map(drain).sum::<usize>()
                        };
                        (0..publications).map(deliver).sum()
                    },
                ),
                Contestant::new(
                    format!("deliver: {topics} topics, {subscribers} subscribers"),
                    || {
                        let deliver = |_| {
                            next = (next + 1) % of_topics.len();
                            let (topic, subscribers) = &mut of_topics[next];
                            let _ = topic.publish("x");
                            subscribers.iter_mut().map(drain).sum::<usize>()
                        };
                        (0..publications).map(deliver).sum()
                    },
                ),
            ],
        );
    }
}

/// Measures publications to a topic while another thread publishes to another one without a pause.
fn measure_beside_busy_topic(rounds: usize, publications: usize) {
    let hub = Hub::new();
    let (quiet, busy) = (hub.topic("quiet"), hub.topic("busy"));
    let (quiet, busy) = (quiet.expect("a topic"), busy.expect("a topic"));
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let _ = busy.publish("x");
            }
        });
        let publish = || {
            (0..publications).for_each(|_| drop(quiet.publish("x")));
            publications
        };
        compare(
            rounds,
            vec![Contestant::new("publish: beside a busy topic", publish)],
        );
        is_done.store(true, Ordering::Relaxed);
    });
}

fn measure_topics(topics: usize) {
    let hub = Hub::builder().max_topics(topics).build();
    let mut subscribers = Vec::with_capacity(topics);
    let region = Region::new(ALLOCATOR);
    for number in 0..topics {
        let topic = hub.topic(format!("user/{number}")).expect("a topic");
        let mut subscriber = topic.subscribe_from(StartPosition::Now).expect("room");
        drain(&mut subscriber);
        subscribers.push(Box::new(subscriber));
    }
    let change = region.change();
    let held = change.bytes_allocated - change.bytes_deallocated;
    println!(
        "{} bytes for each of {topics} topics and its subscriber",
        held / topics
    );
}
