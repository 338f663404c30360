//! What a node that reads a broker costs for each delivered event, compared with a [`Channel`] in one process, and its memory.
//!
//! ```sh
//! cargo bench -p tower-push-redis --bench delivery_cost
//! ```
//!
//! Each contestant has a process of its own with the same number of subscribers, each of which is a task. Another process publishes to the Redis server,
//! at the same rate as the process with the channel publishes to itself. The contestants take turns. The table shows the CPU time of the process
//! for each delivered event, and the ratio to the channel: of the best round, and of the median round.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use testkit::{CurrentExeChild, RedisProgram, RedisServer};
use tokio::time::{MissedTickBehavior, interval};
use tower_push::{BoxError, Channel, Event, Hub, Item, source::StartPosition};
use tower_push_redis::{RedisServers, RedisStream, RedisStreamBuilder};

const KEY: &str = "events";

/// The number of subscribers of each contestant.
const SUBSCRIBERS: usize = 1000;

/// The time between two events.
const INTERVAL: Duration = Duration::from_millis(2);

const ROUNDS: usize = 5;

const CONTESTANTS: [&str; 3] = ["channel", "relay", "hub"];

/// The number of events in the log of the node whose memory is measured.
const LOG_EVENTS: usize = 10_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["contestant", name, url, events] => run_contestant(name, url, events.parse()?).await,
        ["publish", url, events] => publish(url, events.parse()?).await,
        ["node", url] => run_node(url).await,
        // `cargo test --benches` runs this file too, with a tiny load.
        arguments => compare(match arguments.contains(&"--bench") {
            true => 2000,
            false => 20,
        }),
    }
}

fn builder(url: &str) -> RedisStreamBuilder {
    RedisStream::builder(RedisServers::single(url.to_owned()).unwrap(), KEY)
}

fn event() -> Event {
    Event::text("x".repeat(100))
}

/// Measures all contestants, in turns, and prints a table.
fn compare(events: usize) -> Result<(), BoxError> {
    let mut costs = CONTESTANTS.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (name, costs) in CONTESTANTS.iter().zip(&mut costs) {
            let server = RedisServer::start(RedisProgram::Redis, &[]);
            let events_text = events.to_string();
            let url = server.url();
            let arguments = ["contestant", name, &url, &events_text];
            let mut contestant = CurrentExeChild::spawn(&arguments)?;
            contestant.read_line()?;
            let before = contestant.cpu_time()?;
            contestant.write_line("go")?;
            let publisher = match *name {
                "channel" => None,
                _ => Some(CurrentExeChild::spawn(&["publish", &url, &events_text])?),
            };
            contestant.read_line()?;
            drop(publisher);
            let cost = contestant.cpu_time()? - before;
            costs.push(cost.as_nanos() as f64 / (events * SUBSCRIBERS) as f64);
        }
    }
    for costs in &mut costs {
        costs.sort_unstable_by(f64::total_cmp);
    }
    let [channel, ..] = &costs;
    println!(
        "CPU time for each delivered event, {SUBSCRIBERS} subscribers, one event every {INTERVAL:?}:"
    );
    for (name, costs) in CONTESTANTS.iter().zip(&costs) {
        let (best, median) = (costs[0], costs[ROUNDS / 2]);
        println!(
            "{name:8} best {best:6.1} ns ({:.2}), median {median:6.1} ns ({:.2})",
            best / channel[0],
            median / channel[ROUNDS / 2]
        );
    }
    measure_memory()
}

/// Delivers events to subscribers. Writes a line when the subscribers wait, and when they have all events.
async fn run_contestant(name: &str, url: &str, events: usize) -> Result<(), BoxError> {
    let delivered = Arc::new(AtomicUsize::new(0));
    let subscribe = |stream| tokio::spawn(count_events(stream, events, delivered.clone()));
    let mut tasks = Vec::new();
    // The node of a contestant lives until its subscribers have all events.
    let (channel, relay, hub);
    match name {
        "channel" => {
            channel = Channel::new();
            for _ in 0..SUBSCRIBERS {
                tasks.push(subscribe(
                    channel.subscribe_from(StartPosition::Now).boxed(),
                ));
            }
            wait_for_start().await?;
            let mut ticks = ticks();
            for _ in 0..events {
                ticks.tick().await;
                channel.publish(event())?;
            }
        }
        "relay" => {
            relay = builder(url).connect().await?;
            for _ in 0..SUBSCRIBERS {
                let stream = relay.relay().subscribe_from(StartPosition::Now);
                tasks.push(subscribe(stream.boxed()));
            }
            wait_for_start().await?;
        }
        _ => {
            hub = builder(url).connect_hub(Hub::builder()).await?;
            for _ in 0..SUBSCRIBERS {
                let source = hub.hub().topics("topic")?;
                let stream = source.subscribe_from(StartPosition::Now);
                let stream = stream.map_err(|rejection| format!("{rejection:?}"))?;
                tasks.push(subscribe(stream.boxed()));
            }
            wait_for_start().await?;
        }
    }
    for task in tasks {
        task.await?;
    }
    println!("{} delivered", delivered.load(Ordering::Relaxed));
    wait_for_line()
}

/// Lets the subscribers wait for events, and then waits for the start of the measurement.
async fn wait_for_start() -> Result<(), BoxError> {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    println!("ready");
    wait_for_line()
}

/// Waits for a line, or for the end of the standard input.
fn wait_for_line() -> Result<(), BoxError> {
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

async fn count_events<E: std::fmt::Debug>(
    mut stream: impl Stream<Item = Result<Item, E>> + Unpin,
    events: usize,
    delivered: Arc<AtomicUsize>,
) {
    let mut count = 0;
    while count < events {
        match stream.next().await {
            Some(Ok(Item::Event(_) | Item::EventWithCursor { .. })) => count += 1,
            Some(Ok(Item::Cursor(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    delivered.fetch_add(count, Ordering::Relaxed);
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Publishes events to the topic of the hub.
async fn publish(url: &str, events: usize) -> Result<(), BoxError> {
    let node = builder(url).log_events(1).connect().await?;
    let event = event().with_topic("topic")?;
    let mut ticks = ticks();
    for _ in 0..events {
        ticks.tick().await;
        node.publish(&event).await?;
    }
    Ok(())
}

/// Prints the memory of a node without clients, with an empty log and with a full one.
fn measure_memory() -> Result<(), BoxError> {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    for events in [0, LOG_EVENTS] {
        let script = format!(
            "local data = string.rep('x', 100)
             for i = 1, {events} do redis.call('XADD', KEYS[1], '*', 'data', data) end"
        );
        server.command(&["EVAL", &script, "1", KEY]);
        let mut node = CurrentExeChild::spawn(&["node", &server.url()])?;
        node.read_line()?;
        let mib = node.resident_memory()? as f64 / f64::from(1 << 20);
        println!("memory of a node with {events} events of 100 bytes in its log: {mib:.1} MiB");
    }
    Ok(())
}

/// Runs a node without clients until the standard input is closed.
async fn run_node(url: &str) -> Result<(), BoxError> {
    let node = builder(url).log_events(LOG_EVENTS).connect().await?;
    println!("{} events", node.relay().len());
    wait_for_line()
}
