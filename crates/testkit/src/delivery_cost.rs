//! What a node that reads a broker costs for each delivered event, compared with a [`Channel`] in one process, and its memory.
//!
//! Each contestant has a process of its own with the same number of subscribers, each of which is a task. Another process publishes to the broker,
//! at the same rate as the process with the channel publishes to itself. The contestants take turns.

use std::{
    env,
    fmt::Debug,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tower_push::{BoxError, Channel, Event, Hub, Item, Relay, source::StartPosition};

use crate::CurrentExeChild;

/// A broker whose nodes [`run`] measures.
pub trait MeasuredBroker {
    /// A server of the broker. Dropping it ends the server.
    type Server;

    /// A node with a relay.
    type RelayNode;

    /// A node with a hub.
    type HubNode;

    /// Starts a server without events.
    fn start_server() -> Self::Server;

    /// Returns the URL of a server.
    fn url(server: &Self::Server) -> String;

    /// Connects a node whose log has at most this number of events.
    fn connect_relay(
        url: &str,
        log_events: usize,
    ) -> impl Future<Output = Result<Self::RelayNode, BoxError>>;

    /// Returns the relay of a node.
    fn relay(node: &Self::RelayNode) -> &Relay;

    /// Publishes an event.
    fn publish(node: &Self::RelayNode, event: &Event)
    -> impl Future<Output = Result<(), BoxError>>;

    /// Connects a node.
    fn connect_hub(url: &str) -> impl Future<Output = Result<Self::HubNode, BoxError>>;

    /// Returns the hub of a node.
    fn hub(node: &Self::HubNode) -> &Hub;
}

/// How many events are delivered to how many subscribers.
#[derive(Clone, Copy, Debug)]
struct Load {
    subscribers: usize,
    events: usize,
    /// The time between two events.
    interval: Duration,
}

/// The loads with many subscribers have the same number of deliveries per second. With one subscriber, the cost is that of reading the broker.
const LOADS: [Load; 3] = [
    Load {
        subscribers: 1,
        events: 2000,
        interval: Duration::from_millis(2),
    },
    Load {
        subscribers: 1000,
        events: 2000,
        interval: Duration::from_millis(2),
    },
    Load {
        subscribers: 10_000,
        events: 200,
        interval: Duration::from_millis(20),
    },
];

const ROUNDS: usize = 5;

const CONTESTANTS: [&str; 3] = ["channel", "relay", "hub"];

/// The number of events in the log of the node whose memory is measured.
const LOG_EVENTS: usize = 10_000;

/// Measures all contestants, and prints the CPU time of the process for each delivered event, and the ratio to the channel: of the best round, and of
/// the median round. Then prints the memory of a node.
///
/// The program calls this function in its `main`: it is started again for each contestant.
pub async fn run<B: MeasuredBroker>() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["contestant", name, url, load] => run_contestant::<B>(name, url, Load::parse(load)?).await,
        ["publish", url, load] => publish::<B>(url, Load::parse(load)?).await,
        ["node", url] => run_node::<B>(url).await,
        arguments => {
            // `cargo test --benches` runs a benchmark too, with a tiny load.
            let is_bench = arguments.contains(&"--bench");
            for load in LOADS {
                compare::<B>(match is_bench {
                    true => load,
                    false => load.tiny(),
                })?;
            }
            measure_memory::<B>(if is_bench { LOG_EVENTS } else { 100 }).await
        }
    }
}

impl Load {
    fn tiny(self) -> Self {
        Self {
            subscribers: self.subscribers.div_ceil(100),
            events: 10,
            interval: Duration::from_millis(2),
        }
    }

    fn to_argument(self) -> String {
        let interval = self.interval.as_micros();
        format!("{},{},{interval}", self.subscribers, self.events)
    }

    fn parse(argument: &str) -> Result<Self, BoxError> {
        let numbers: Result<Vec<u32>, _> = argument.split(',').map(str::parse).collect();
        let [subscribers, events, interval] = numbers?[..] else {
            return Err("a load is three numbers".into());
        };
        Ok(Self {
            subscribers: subscribers as usize,
            events: events as usize,
            interval: Duration::from_micros(interval.into()),
        })
    }

    fn ticks(self) -> Interval {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }
}

fn event() -> Event {
    Event::text("x".repeat(100))
}

/// Measures all contestants, in turns, and prints a table.
fn compare<B: MeasuredBroker>(load: Load) -> Result<(), BoxError> {
    let mut costs = CONTESTANTS.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (name, costs) in CONTESTANTS.iter().zip(&mut costs) {
            let server = B::start_server();
            let (url, load_argument) = (B::url(&server), load.to_argument());
            let arguments = ["contestant", name, &url, &load_argument];
            let mut contestant = CurrentExeChild::spawn(&arguments)?;
            contestant.read_line()?;
            let before = contestant.cpu_time()?;
            contestant.write_line("go")?;
            let publisher = match *name {
                "channel" => None,
                _ => Some(CurrentExeChild::spawn(&["publish", &url, &load_argument])?),
            };
            contestant.read_line()?;
            if let Some(mut publisher) = publisher {
                // The server stays until it has acknowledged the last event.
                publisher.read_line()?;
            }
            let cost = contestant.cpu_time()? - before;
            costs.push(cost.as_nanos() as f64 / (load.events * load.subscribers) as f64);
        }
    }
    for costs in &mut costs {
        costs.sort_unstable_by(f64::total_cmp);
    }
    let [channel, ..] = &costs;
    println!(
        "CPU time for each delivered event, {} subscribers, one event every {:?}:",
        load.subscribers, load.interval
    );
    for (name, costs) in CONTESTANTS.iter().zip(&costs) {
        let (best, median) = (costs[0], costs[ROUNDS / 2]);
        println!(
            "{name:8} best {best:6.1} ns ({:.2}), median {median:6.1} ns ({:.2})",
            best / channel[0],
            median / channel[ROUNDS / 2]
        );
    }
    Ok(())
}

/// Delivers events to subscribers. Writes a line when the subscribers wait, and when they have all events.
async fn run_contestant<B: MeasuredBroker>(
    name: &str,
    url: &str,
    load: Load,
) -> Result<(), BoxError> {
    let delivered = Arc::new(AtomicUsize::new(0));
    let subscribe = |stream| tokio::spawn(count_events(stream, load.events, delivered.clone()));
    let mut tasks = Vec::new();
    // The node of a contestant lives until its subscribers have all events.
    let (channel, relay, hub);
    match name {
        "channel" => {
            channel = Channel::new();
            for _ in 0..load.subscribers {
                tasks.push(subscribe(
                    channel.subscribe_from(StartPosition::Now).boxed(),
                ));
            }
            wait_for_start().await?;
            let mut ticks = load.ticks();
            for _ in 0..load.events {
                ticks.tick().await;
                channel.publish(event())?;
            }
        }
        "relay" => {
            relay = B::connect_relay(url, load.events).await?;
            for _ in 0..load.subscribers {
                let stream = B::relay(&relay).subscribe_from(StartPosition::Now);
                tasks.push(subscribe(stream.boxed()));
            }
            wait_for_start().await?;
        }
        _ => {
            hub = B::connect_hub(url).await?;
            for _ in 0..load.subscribers {
                let source = B::hub(&hub).topics("topic")?;
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

async fn count_events<E: Debug>(
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

/// Publishes events to the topic of the hub.
async fn publish<B: MeasuredBroker>(url: &str, load: Load) -> Result<(), BoxError> {
    let node = B::connect_relay(url, 1).await?;
    let event = event().with_topic("topic")?;
    let mut ticks = load.ticks();
    for _ in 0..load.events {
        ticks.tick().await;
        B::publish(&node, &event).await?;
    }
    println!("published");
    wait_for_line()
}

/// Prints the memory of a node without clients, with an empty log and with a full one.
async fn measure_memory<B: MeasuredBroker>(log_events: usize) -> Result<(), BoxError> {
    let server = B::start_server();
    let url = B::url(&server);
    for events in [0, log_events] {
        let publisher = B::connect_relay(&url, 1).await?;
        for _ in 0..events {
            B::publish(&publisher, &event()).await?;
        }
        let mut node = CurrentExeChild::spawn(&["node", &url])?;
        node.read_line()?;
        let mib = node.resident_memory()? as f64 / f64::from(1 << 20);
        println!("memory of a node with {events} events of 100 bytes in its log: {mib:.1} MiB");
    }
    Ok(())
}

/// Runs a node without clients until the standard input is closed.
async fn run_node<B: MeasuredBroker>(url: &str) -> Result<(), BoxError> {
    let node = B::connect_relay(url, LOG_EVENTS).await?;
    println!("{} events", B::relay(&node).len());
    wait_for_line()
}
