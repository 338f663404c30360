//! The time that it takes to deliver messages to many subscribers: [`Channel`] against `tokio::sync::broadcast`, without sockets.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench fanout
//! ```
//!
//! Each subscriber is a task that takes one message after the other: from a `Channel` as a stream, and from tokio's channel with `recv` and
//! as a `BroadcastStream`. A round publishes one message, or a burst of eight without a pause, and ends when every subscriber has received all
//! of them. The publisher is also a task. The runtime has one thread (tokio's current-thread) or two (its multi-thread with two workers). All
//! messages are an [`Event`], so all contestants clone the same type.
//!
//! Each contestant has a process of its own, so that they do not share a heap. The contestants take turns, so that a disturbance affects all
//! of them. The table shows nanoseconds for each message and subscriber, for the best round and for the median round, and the ratio of
//! `Channel` to the better of tokio's two.

use std::{
    env,
    error::Error,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use futures_util::StreamExt;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Notify, broadcast},
};
use tokio_stream::wrappers::BroadcastStream;
use tower_push::{Channel, Event, source::StartPosition};

use testkit::current_exe_child::CurrentExeChild;

type BoxError = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [_, CONTESTANT_ROLE, contestant, threads, subscribers, burst] => {
            let spawn = CONTESTANTS[contestant.parse::<usize>()?];
            let (_, runtime) = RUNTIMES[threads.parse::<usize>()?];
            ContestantProcess::new(spawn, runtime, subscribers.parse()?, burst.parse()?)?
                .take_turns()
        }
        // `cargo test --benches` runs this file too, with a tiny load.
        _ => compare_contestants(arguments.contains(&"--bench")),
    }
}

/// The first argument of a contestant's process.
const CONTESTANT_ROLE: &str = "contestant";

fn compare_contestants(is_bench: bool) -> Result<(), BoxError> {
    let (trials, turns, shrink) = if is_bench { (3, 10, 1) } else { (1, 1, 100) };

    print_head();
    for (threads, (name, _)) in RUNTIMES.iter().enumerate() {
        for subscribers in [1_000 / shrink, 20_000 / shrink] {
            for burst in [1, 8] {
                let mut times = RoundTimes::default();
                for _ in 0..trials {
                    compare([threads, subscribers, burst], turns, &mut times)?;
                }
                print_row(name, subscribers, burst, times);
            }
        }
    }
    Ok(())
}

type MakeRuntime = fn() -> std::io::Result<Runtime>;

const RUNTIMES: [(&str, MakeRuntime); 2] = [
    ("one", || Builder::new_current_thread().build()),
    ("two", || {
        Builder::new_multi_thread().worker_threads(2).build()
    }),
];

/// The times of each contestant's rounds, in nanoseconds for each message and subscriber.
type RoundTimes = [Vec<f64>; CONTESTANTS.len()];

/// Starts a process for each contestant, lets them take turns, and adds their times. `setting` is the index of the runtime, the number of
/// subscribers, and the number of messages in a row.
fn compare(setting: [usize; 3], turns: usize, times: &mut RoundTimes) -> Result<(), BoxError> {
    let [threads, subscribers, burst] = setting;
    let mut contestants = Vec::new();
    for contestant in 0..CONTESTANTS.len() {
        let numbers = [contestant, threads, subscribers, burst].map(|number| number.to_string());
        let [contestant, threads, subscribers, burst] = numbers.each_ref().map(String::as_str);
        let arguments = [CONTESTANT_ROLE, contestant, threads, subscribers, burst];
        contestants.push(CurrentExeChild::spawn(&arguments)?);
    }
    for _ in 0..turns {
        for (contestant, times) in contestants.iter_mut().zip(times.iter_mut()) {
            let rounds = run_turn(contestant)?;
            times.extend(
                rounds
                    .iter()
                    .map(|time| time / (subscribers * burst) as f64),
            );
        }
    }
    contestants.into_iter().try_for_each(CurrentExeChild::close)
}

/// Makes a contestant's process take a turn, and returns the nanoseconds of its rounds.
fn run_turn(contestant: &mut CurrentExeChild) -> Result<Vec<f64>, BoxError> {
    contestant.write_line("")?;
    let times = contestant.read_line()?;
    let times: Result<Vec<f64>, _> = times.split_whitespace().map(str::parse).collect();
    Ok(times?)
}

/// Publishes one message.
type Publish = Box<dyn Fn() + Send + Sync>;

/// Spawns subscribers that count their messages, and returns a function that publishes one message.
type SpawnSubscribers = fn(&Runtime, usize, &Arc<BurstCounter>) -> Publish;

const CONTESTANTS: [SpawnSubscribers; 3] = [
    spawn_channel_subscribers,
    spawn_recv_subscribers,
    spawn_broadcast_stream_subscribers,
];

/// The number of messages that a channel can hold, which is more than a burst.
const CHANNEL_CAPACITY: usize = 64;

fn spawn_channel_subscribers(
    runtime: &Runtime,
    subscribers: usize,
    received: &Arc<BurstCounter>,
) -> Publish {
    let channel = Channel::builder().max_events(CHANNEL_CAPACITY).build();
    for _ in 0..subscribers {
        let received = received.clone();
        // The first item is the cursor.
        let mut items = channel.subscribe_from(StartPosition::Now).skip(1);
        runtime.spawn(async move {
            let mut received_in_burst = 0;
            while let Some(Ok(_)) = items.next().await {
                received.count(&mut received_in_burst);
            }
        });
    }
    Box::new(move || {
        let _ = channel.publish(Event::text(PAYLOAD));
    })
}

fn spawn_recv_subscribers(
    runtime: &Runtime,
    subscribers: usize,
    received: &Arc<BurstCounter>,
) -> Publish {
    let sender = broadcast::Sender::new(CHANNEL_CAPACITY);
    for _ in 0..subscribers {
        let received = received.clone();
        let mut receiver = sender.subscribe();
        runtime.spawn(async move {
            let mut received_in_burst = 0;
            while receiver.recv().await.is_ok() {
                received.count(&mut received_in_burst);
            }
        });
    }
    Box::new(move || {
        let _ = sender.send(Event::text(PAYLOAD));
    })
}

fn spawn_broadcast_stream_subscribers(
    runtime: &Runtime,
    subscribers: usize,
    received: &Arc<BurstCounter>,
) -> Publish {
    let sender = broadcast::Sender::new(CHANNEL_CAPACITY);
    for _ in 0..subscribers {
        let received = received.clone();
        let mut messages = BroadcastStream::new(sender.subscribe());
        runtime.spawn(async move {
            let mut received_in_burst = 0;
            while let Some(Ok(_)) = messages.next().await {
                received.count(&mut received_in_burst);
            }
        });
    }
    Box::new(move || {
        let _ = sender.send(Event::text(PAYLOAD));
    })
}

const PAYLOAD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Counts the subscribers that have received a whole burst.
struct BurstCounter {
    burst: usize,
    subscribers: usize,
    done: AtomicUsize,
    all_done: Notify,
}

impl BurstCounter {
    /// Counts a message of one subscriber. `received_in_burst` is how many messages of the burst this subscriber has received.
    fn count(&self, received_in_burst: &mut usize) {
        *received_in_burst += 1;
        if *received_in_burst == self.burst {
            *received_in_burst = 0;
            if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.subscribers {
                self.done.store(0, Ordering::Release);
                self.all_done.notify_one();
            }
        }
    }
}

/// A contestant's runtime with its subscribers.
struct ContestantProcess {
    runtime: Runtime,
    publish: Arc<Publish>,
    received: Arc<BurstCounter>,
}

impl ContestantProcess {
    fn new(
        spawn: SpawnSubscribers,
        runtime: MakeRuntime,
        subscribers: usize,
        burst: usize,
    ) -> Result<Self, BoxError> {
        let runtime = runtime()?;
        let received = Arc::new(BurstCounter {
            burst,
            subscribers,
            done: AtomicUsize::new(0),
            all_done: Notify::new(),
        });
        let publish = Arc::new(spawn(&runtime, subscribers, &received));
        Ok(Self {
            runtime,
            publish,
            received,
        })
    }

    /// Takes a turn for each line on standard input, and prints the nanoseconds of its rounds.
    fn take_turns(&self) -> Result<(), BoxError> {
        let rounds =
            (DELIVERIES_PER_TURN / (self.received.subscribers * self.received.burst)).max(1);
        for line in std::io::stdin().lines() {
            line?;
            // The first round is not measured. It loads the cache, and in the very first turn the subscribers only begin to wait.
            self.round()?;
            for _ in 0..rounds {
                print!("{} ", self.round()?);
            }
            println!();
        }
        Ok(())
    }

    fn round(&self) -> Result<u128, BoxError> {
        let (publish, received) = (self.publish.clone(), self.received.clone());
        let round = self.runtime.spawn(async move {
            let start = Instant::now();
            for _ in 0..received.burst {
                publish();
            }
            received.all_done.notified().await;
            start.elapsed().as_nanos()
        });
        Ok(self.runtime.block_on(round)?)
    }
}

/// The number of deliveries in a turn, over all subscribers. They take some hundredths of a second.
const DELIVERIES_PER_TURN: usize = 100_000;

fn print_head() {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    println!("ns per message and subscriber: best, median ({cores} cores)");
    println!(
        "{:7} {:>11} {:>5}  {:>13} {:>13} {:>15}  {:>13}",
        "threads", "subscribers", "burst", "Channel", "tokio recv", "BroadcastStream", "ratio"
    );
}

fn print_row(threads: &str, subscribers: usize, burst: usize, times: RoundTimes) {
    let [channel, recv, stream] = times.map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        (times[0], times[times.len() / 2])
    });
    let pair = |(best, median): (f64, f64)| format!("{best:.0}, {median:.0}");
    println!(
        "{threads:7} {subscribers:>11} {burst:>5}  {:>13} {:>13} {:>15}  {:>6.2}x {:>5.2}x",
        pair(channel),
        pair(recv),
        pair(stream),
        channel.0 / recv.0.min(stream.0),
        channel.1 / recv.1.min(stream.1),
    );
}
