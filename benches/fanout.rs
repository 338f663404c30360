//! What it costs to wake many subscribers: [`Channel`] against `tokio::sync::broadcast`, without sockets.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench fanout
//! ```
//!
//! Each subscriber is a task that takes one message after the other: from a `Channel` as its stream, from tokio's channel by
//! `recv`, and by `BroadcastStream`. A round publishes one message, or a burst of eight in a row without a pause, and ends when
//! every subscriber has got all. The publisher is a task like the others, on a runtime of one thread (tokio's current-thread) or
//! of two (its multi-thread with two workers). All messages are an [`Event`], so that what is cloned is alike.
//!
//! Each contestant has a process of its own, so that none has the better part of the heap, and they take turns, so that what
//! disturbs one disturbs all. The table shows nanoseconds for each message and subscriber, in the best round and in the median
//! one, and the ratio of `Channel` to the better one of tokio's two.

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

use testkit::child_process::ChildProcess;

type BoxError = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [_, CONTESTANT, contestant, threads, subscribers, burst] => {
            let spawn = CONTESTANTS[contestant.parse::<usize>()?];
            let (_, runtime) = RUNTIMES[threads.parse::<usize>()?];
            Group::new(spawn, runtime, subscribers.parse()?, burst.parse()?)?.take_turns()
        }
        // `cargo test --benches` runs this file too, only to see that it runs.
        _ => compare_all(arguments.contains(&"--bench")),
    }
}

/// What a contestant's process is, in its first argument.
const CONTESTANT: &str = "contestant";

fn compare_all(is_bench: bool) -> Result<(), BoxError> {
    let (trials, turns, shrink) = if is_bench { (3, 10, 1) } else { (1, 1, 100) };

    print_head();
    for (threads, (name, _)) in RUNTIMES.iter().enumerate() {
        for subscribers in [1_000 / shrink, 20_000 / shrink] {
            for burst in [1, 8] {
                let mut times = Times::default();
                for _ in 0..trials {
                    compare([threads, subscribers, burst], turns, &mut times)?;
                }
                print(name, subscribers, burst, times);
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

/// The nanoseconds of each contestant's rounds, for a message and subscriber.
type Times = [Vec<f64>; CONTESTANTS.len()];

/// Adds the times of one process for each contestant, in so many turns, with so many threads, subscribers and messages in a row.
fn compare(setting: [usize; 3], turns: usize, times: &mut Times) -> Result<(), BoxError> {
    let [threads, subscribers, burst] = setting;
    let mut contestants = Vec::new();
    for contestant in 0..CONTESTANTS.len() {
        let numbers = [contestant, threads, subscribers, burst].map(|number| number.to_string());
        let [contestant, threads, subscribers, burst] = numbers.each_ref().map(String::as_str);
        let arguments = [CONTESTANT, contestant, threads, subscribers, burst];
        contestants.push(ChildProcess::spawn_current_program(&arguments)?);
    }
    for _ in 0..turns {
        for (contestant, times) in contestants.iter_mut().zip(times.iter_mut()) {
            let turn = turn(contestant)?;
            times.extend(turn.iter().map(|time| time / (subscribers * burst) as f64));
        }
    }
    contestants.into_iter().try_for_each(ChildProcess::close)
}

/// Has a contestant's process take a turn.
fn turn(contestant: &mut ChildProcess) -> Result<Vec<f64>, BoxError> {
    contestant.write_line("")?;
    let times = contestant.read_line()?;
    let times: Result<Vec<f64>, _> = times.split_whitespace().map(str::parse).collect();
    Ok(times?)
}

/// What publishes one message.
type Publish = Box<dyn Fn() + Send + Sync>;

/// Spawns so many subscribers, each of which counts what it gets.
type Spawn = fn(&Runtime, usize, &Arc<Received>) -> Publish;

const CONTESTANTS: [Spawn; 3] = [channel, recv, broadcast_stream];

/// Messages that a channel has room for: more than a burst.
const CAPACITY: usize = 64;

fn channel(runtime: &Runtime, subscribers: usize, received: &Arc<Received>) -> Publish {
    let channel = Channel::builder().max_events(CAPACITY).build();
    for _ in 0..subscribers {
        let received = received.clone();
        // Its first item is its cursor.
        let mut items = channel.subscribe_from(StartPosition::Now).skip(1);
        runtime.spawn(async move {
            let mut mine = 0;
            while let Some(Ok(_)) = items.next().await {
                received.count(&mut mine);
            }
        });
    }
    Box::new(move || {
        let _ = channel.publish(Event::text(PAYLOAD));
    })
}

fn recv(runtime: &Runtime, subscribers: usize, received: &Arc<Received>) -> Publish {
    let sender = broadcast::Sender::new(CAPACITY);
    for _ in 0..subscribers {
        let received = received.clone();
        let mut receiver = sender.subscribe();
        runtime.spawn(async move {
            let mut mine = 0;
            while receiver.recv().await.is_ok() {
                received.count(&mut mine);
            }
        });
    }
    Box::new(move || {
        let _ = sender.send(Event::text(PAYLOAD));
    })
}

fn broadcast_stream(runtime: &Runtime, subscribers: usize, received: &Arc<Received>) -> Publish {
    let sender = broadcast::Sender::new(CAPACITY);
    for _ in 0..subscribers {
        let received = received.clone();
        let mut messages = BroadcastStream::new(sender.subscribe());
        runtime.spawn(async move {
            let mut mine = 0;
            while let Some(Ok(_)) = messages.next().await {
                received.count(&mut mine);
            }
        });
    }
    Box::new(move || {
        let _ = sender.send(Event::text(PAYLOAD));
    })
}

const PAYLOAD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Who has got a whole burst.
struct Received {
    burst: usize,
    subscribers: usize,
    done: AtomicUsize,
    all: Notify,
}

impl Received {
    /// One subscriber got one more.
    fn count(&self, mine: &mut usize) {
        *mine += 1;
        if *mine == self.burst {
            *mine = 0;
            if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.subscribers {
                self.done.store(0, Ordering::Release);
                self.all.notify_one();
            }
        }
    }
}

/// One contestant with its subscribers.
struct Group {
    runtime: Runtime,
    publish: Arc<Publish>,
    received: Arc<Received>,
}

impl Group {
    fn new(
        spawn: Spawn,
        runtime: MakeRuntime,
        subscribers: usize,
        burst: usize,
    ) -> Result<Self, BoxError> {
        let runtime = runtime()?;
        let received = Arc::new(Received {
            burst,
            subscribers,
            done: AtomicUsize::new(0),
            all: Notify::new(),
        });
        let publish = Arc::new(spawn(&runtime, subscribers, &received));
        Ok(Self {
            runtime,
            publish,
            received,
        })
    }

    /// Takes a turn for each line that comes in, and answers with the nanoseconds of its rounds.
    fn take_turns(&self) -> Result<(), BoxError> {
        let rounds = (MESSAGES / (self.received.subscribers * self.received.burst)).max(1);
        for line in std::io::stdin().lines() {
            line?;
            // Its memory is to be in the cache, as far as it goes; and in the very first round the subscribers only begin to wait.
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
            received.all.notified().await;
            start.elapsed().as_nanos()
        });
        Ok(self.runtime.block_on(round)?)
    }
}

/// In a turn, over all subscribers: what takes some hundredths of a second.
const MESSAGES: usize = 100_000;

fn print_head() {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    println!("ns per message and subscriber: best, median ({cores} cores)");
    println!(
        "{:7} {:>11} {:>5}  {:>13} {:>13} {:>15}  {:>13}",
        "threads", "subscribers", "burst", "Channel", "tokio recv", "BroadcastStream", "ratio"
    );
}

fn print(threads: &str, subscribers: usize, burst: usize, times: Times) {
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
