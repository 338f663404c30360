//! Random faults while two hubs publish, and clients of several topics move between the hubs. Each client gets each event of its topics once and in
//! order, or is told by a gap.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::json;
use testkit::{BreakableProxy, NatsServer, Random, TEST_TIMEOUT};
use tokio::time::{sleep, timeout};
use tower_push::{
    EventId, Gap, Hub, Item,
    source::{StartPosition, hub::PublishOptions, relay::UpstreamLimits},
};
use tower_push_nats::{JetStream, JetStreamHub, NatsServers};

use crate::nodes::{Operator, STREAM, sequence};

const TOPICS: [&str; 4] = ["a", "b.c", "d/e", "f g"];

/// The text of the last event, which all topics have.
const LAST: &str = "last";

/// An event that a node has published.
#[derive(Clone, Debug)]
struct PublishedEvent {
    text: String,
    topics: Vec<&'static str>,
    /// The client that does not get the event.
    except: Option<usize>,
}

/// What one client has got, in order.
#[derive(Clone, Debug)]
enum Received {
    /// The client has subscribed to topics, with a cursor if it has one.
    Subscribed {
        topics: Vec<&'static str>,
        cursor: Option<u64>,
    },
    Event {
        sequence: u64,
        topic: String,
        text: String,
    },
    Cursor(u64),
    Gap(Gap),
}

struct Run {
    seed: u64,
    /// Whether messages are removed from the stream, so that clients can get gaps.
    is_trimmed: bool,
    nodes: Vec<JetStreamHub>,
    /// The acknowledged events, by their sequence numbers.
    acknowledged: Mutex<BTreeMap<u64, PublishedEvent>>,
    is_over: AtomicBool,
}

fn random_topics(random: &mut Random) -> Vec<&'static str> {
    let bits = match random.below(3) {
        0 => 1 + random.below(15),
        _ => 1 << random.below(4),
    };
    let topics = TOPICS.iter().enumerate();
    let topics = topics.filter(|(index, _)| bits & (1 << index) != 0);
    topics.map(|(_, topic)| *topic).collect()
}

fn sender(client: usize) -> String {
    format!("client {client}")
}

impl Run {
    fn random_hub(&self, random: &mut Random) -> &Hub {
        self.nodes[random.below(self.nodes.len() as u64) as usize].hub()
    }

    /// Publishes events to random topics on one node until the run is over.
    async fn publish(self: Arc<Self>, node: usize) {
        let mut random = Random::new(self.seed * 100 + node as u64);
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            sleep(Duration::from_millis(1)).await;
            let event = PublishedEvent {
                text: format!("{node}.{number}"),
                topics: random_topics(&mut random),
                except: (random.below(5) == 0).then(|| random.below(CLIENTS as u64) as usize),
            };
            match random.below(3) {
                0 => self.publish_once(node, event).await,
                _ => _ = self.try_publish(node, &event, PublishOptions::new()).await,
            }
        }
    }

    /// Publishes many events to a topic that no client has until the run is over, as another program does.
    async fn publish_strangers(self: Arc<Self>, operator: Operator) {
        while !self.is_over.load(Ordering::Relaxed) {
            for _ in 0..5 {
                operator.send("events.other", "x").await;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Publishes an event with an idempotency key, on one node after the other, until a node has published it.
    async fn publish_once(&self, node: usize, event: PublishedEvent) {
        for node in (node..).map(|node| node % self.nodes.len()) {
            let options = PublishOptions::new().idempotency_key(event.text.as_str());
            if self.try_publish(node, &event, options).await.is_some() {
                return;
            }
        }
    }

    async fn try_publish(
        &self,
        node: usize,
        event: &PublishedEvent,
        options: PublishOptions,
    ) -> Option<EventId> {
        let options = match event.except {
            Some(client) => options.except(sender(client)),
            None => options,
        };
        let hub = self.nodes[node].hub();
        let published = hub.publish_and_wait(event.topics.clone(), event.text.clone(), &options);
        let id = published.await.ok()?;
        let mut acknowledged = self.acknowledged.lock().unwrap();
        let other = acknowledged.insert(sequence(&id), event.clone());
        assert!(
            other.is_none(),
            "{id:?} is the id of {other:?} and {event:?}"
        );
        Some(id)
    }

    /// Follows random topics, and moves between the nodes, until the last event. Returns what the client has got.
    async fn follow(self: Arc<Self>, client: usize) -> Vec<Received> {
        let mut random = Random::new(self.seed * 1000 + client as u64);
        let mut received = Vec::new();
        let mut cursor: Option<EventId> = None;
        let mut topics = random_topics(&mut random);
        loop {
            received.push(Received::Subscribed {
                topics: topics.clone(),
                cursor: cursor.as_ref().map(sequence),
            });
            let source = self.random_hub(&mut random).topics(topics.clone()).unwrap();
            let start = cursor
                .clone()
                .map_or(StartPosition::Now, StartPosition::After);
            let source = source.sender(sender(client));
            let mut subscriber = source.subscribe_from(start).unwrap();
            let items = 1 + random.below(40);
            for _ in 0..items {
                let next = timeout(TEST_TIMEOUT, subscriber.next()).await;
                let Some(item) = next.expect("no item in time") else {
                    break;
                };
                let item = item.unwrap();
                if let Item::Ended { .. } = item {
                    // A page could not be read.
                    sleep(Duration::from_millis(100)).await;
                    break;
                }
                cursor = item.cursor().cloned().or(cursor);
                if received_from(&item, &mut received) {
                    return received;
                }
            }
            if random.below(3) == 0 {
                sleep(Duration::from_millis(random.below(500))).await;
            }
            if random.below(3) == 0 {
                topics = random_topics(&mut random);
            }
        }
    }

    /// Causes one fault.
    async fn fault(
        &self,
        server: &mut NatsServer,
        proxies: &[BreakableProxy],
        random: &mut Random,
    ) -> &'static str {
        match random.below(if self.is_trimmed { 9 } else { 6 }) {
            0 => {
                server.kill();
                sleep(Duration::from_millis(random.below(300))).await;
                server.start_again();
                "restart"
            }
            1 => {
                server.pause();
                sleep(Duration::from_millis(random.below(500))).await;
                server.resume();
                "SIGSTOP"
            }
            2 => {
                let operator = Operator::connect(server).await;
                let _ = operator.delete_consumers().await;
                "deleted consumers"
            }
            6 | 7 => {
                let operator = Operator::connect(server).await;
                operator.keep(random.below(50)).await;
                "purge"
            }
            8 => {
                let operator = Operator::connect(server).await;
                let info = operator.stream_request("STREAM.INFO", json!({})).await;
                let newest = info["state"]["last_seq"].as_u64().unwrap();
                let request = json!({ "seq": newest.saturating_sub(random.below(50)) });
                let name = format!("STREAM.MSG.DELETE.{STREAM}");
                // The message may have been removed before.
                let _ = operator.try_request(&name, request).await;
                "deleted message"
            }
            number => {
                proxies[number as usize % proxies.len()].break_connections();
                "broken connection"
            }
        }
    }
}

/// Adds what a client has got with an item. Returns whether this is the last event.
fn received_from(item: &Item, received: &mut Vec<Received>) -> bool {
    let mut is_last = false;
    if let Some(event) = item.event() {
        let text = event.payload().as_text().unwrap().to_owned();
        is_last = text == LAST;
        received.push(Received::Event {
            sequence: sequence(event.id().unwrap()),
            topic: event.topic().unwrap().as_str().to_owned(),
            text,
        });
    }
    match item {
        Item::Gap(gap) => received.push(Received::Gap((**gap).clone())),
        item => received.extend(item.cursor().map(|id| Received::Cursor(sequence(id)))),
    }
    is_last
}

/// Compares what a client has got with the acknowledged events. Returns the number of gaps.
///
/// The invariant: when the client has a cursor, it has each event of its topics up to this cursor, or was told by a gap.
struct ClientCheck<'a> {
    client: usize,
    acknowledged: &'a BTreeMap<u64, PublishedEvent>,
    topics: Vec<&'static str>,
    /// The sequence number up to which the client has everything. `None` before the first cursor, and after a gap.
    complete_to: Option<u64>,
    /// The cursor with which the client has subscribed.
    subscribed_at: u64,
    /// The events that the client has got.
    sequences: BTreeSet<u64>,
    /// Those of the current subscription.
    sequences_now: BTreeSet<u64>,
    texts: BTreeMap<String, u64>,
    gaps: usize,
}

impl<'a> ClientCheck<'a> {
    fn new(client: usize, acknowledged: &'a BTreeMap<u64, PublishedEvent>) -> Self {
        Self {
            client,
            acknowledged,
            topics: Vec::new(),
            complete_to: None,
            subscribed_at: 0,
            sequences: BTreeSet::new(),
            sequences_now: BTreeSet::new(),
            texts: BTreeMap::new(),
            gaps: 0,
        }
    }

    fn check_all(&mut self, received: &[Received]) {
        let mut progress = CheckProgress { received, count: 0 };
        for item in received {
            progress.count += 1;
            self.check(item);
        }
    }

    fn check(&mut self, received: &Received) {
        match received {
            Received::Subscribed { topics, cursor } => {
                self.topics.clone_from(topics);
                self.complete_to = *cursor;
                self.subscribed_at = cursor.unwrap_or(0);
                self.sequences_now.clear();
            }
            Received::Event {
                sequence,
                topic,
                text,
            } => self.check_event(*sequence, topic, text),
            Received::Cursor(sequence) => self.check_cursor(*sequence),
            Received::Gap(gap) => {
                self.gaps += 1;
                self.complete_to = gap.resumed.as_ref().map(sequence);
            }
        }
    }

    fn check_event(&mut self, sequence: u64, topic: &str, text: &str) {
        let is_later = sequence > self.subscribed_at;
        assert!(
            is_later,
            "{sequence} after the cursor {}",
            self.subscribed_at
        );
        let last = self.sequences_now.last().copied().unwrap_or(0);
        assert!(sequence > last, "{sequence} ({topic}) after {last}");
        assert!(self.topics.contains(&topic), "{topic} in {:?}", self.topics);
        self.sequences_now.insert(sequence);
        self.sequences.insert(sequence);
        let known = self.texts.insert(text.to_owned(), sequence);
        let is_same = known.is_none_or(|known| known == sequence);
        assert!(is_same, "{text} is {sequence} and {known:?}");
        if let Some(event) = self.acknowledged.get(&sequence) {
            assert_eq!(event.text, text);
            assert!(event.topics.contains(&topic));
            assert_ne!(event.except, Some(self.client));
        }
    }

    fn check_cursor(&mut self, cursor: u64) {
        if let Some(complete_to) = self.complete_to.replace(cursor) {
            assert!(cursor >= complete_to, "{cursor} after {complete_to}");
            for (sequence, event) in self.acknowledged.range(complete_to + 1..=cursor) {
                let mut topics = event.topics.iter();
                let is_expected = topics.any(|topic| self.topics.contains(topic))
                    && event.except != Some(self.client);
                assert!(
                    !is_expected || self.sequences.contains(sequence),
                    "{sequence} {event:?} is missing between {complete_to} and {cursor}"
                );
            }
        }
    }
}

/// Prints the last items that were checked if a check panics.
struct CheckProgress<'a> {
    received: &'a [Received],
    count: usize,
}

impl Drop for CheckProgress<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let first = self.count.saturating_sub(10);
            println!("{:#?}", &self.received[first..self.count]);
        }
    }
}

const CLIENTS: usize = 10;

/// Starts a node that connects through a proxy.
async fn node(proxy: &BreakableProxy, log_events: usize) -> JetStreamHub {
    let servers = NatsServers::new(&format!("nats://{}", proxy.address())).unwrap();
    let limits = UpstreamLimits::new().max_page_events(20);
    JetStream::builder(servers, STREAM)
        .subject_prefix("events")
        .publish_retry_time(Duration::from_millis(200))
        .max_log_events(log_events)
        .connect_hub(Hub::builder().max_ids(50).upstream_limits(limits))
        .await
        .unwrap()
}

async fn run_random_faults(seed: u64, is_trimmed: bool) {
    let mut server = NatsServer::start("");
    let mut proxies = Vec::new();
    let mut nodes = Vec::new();
    for log_events in [10, 1000] {
        let proxy = BreakableProxy::start(server.port()).await;
        nodes.push(node(&proxy, log_events).await);
        proxies.push(proxy);
    }
    let run = Arc::new(Run {
        seed,
        is_trimmed,
        nodes,
        acknowledged: Mutex::default(),
        is_over: AtomicBool::new(false),
    });
    let clients = (0..CLIENTS).map(|client| tokio::spawn(run.clone().follow(client)));
    let clients: Vec<_> = clients.collect();
    let publishers = [0, 1].map(|node| tokio::spawn(run.clone().publish(node)));
    let operator = Operator::connect(&server).await;
    let strangers = tokio::spawn(run.clone().publish_strangers(operator));
    let mut random = Random::new(seed);
    let mut faults = Vec::new();
    for _ in 0..8 {
        sleep(Duration::from_millis(random.below(400))).await;
        faults.push(run.fault(&mut server, &proxies, &mut random).await);
    }
    sleep(Duration::from_millis(300)).await;
    run.is_over.store(true, Ordering::Relaxed);
    for publisher in publishers.into_iter().chain([strangers]) {
        publisher.await.unwrap();
    }
    let last = PublishedEvent {
        text: LAST.to_owned(),
        topics: TOPICS.to_vec(),
        except: None,
    };
    run.publish_once(0, last).await;
    let mut gaps = 0;
    let mut events = 0;
    for (index, client) in clients.into_iter().enumerate() {
        let received = client.await.unwrap();
        let acknowledged = run.acknowledged.lock().unwrap().clone();
        let mut check = ClientCheck::new(index, &acknowledged);
        check.check_all(&received);
        gaps += check.gaps;
        events += check.sequences.len();
    }
    assert!(
        is_trimmed || gaps == 0,
        "seed {seed}: a gap that is not true"
    );
    let operator = Operator::connect(&server).await;
    let info = operator.stream_request("STREAM.INFO", json!({})).await;
    let published = info["state"]["last_seq"].as_u64().unwrap();
    let counts = run
        .nodes
        .iter()
        .map(|node| node.hub().counts().backend_resumes);
    let backend_resumes: u64 = counts.sum();
    assert!(backend_resumes > 0, "all clients have resumed from memory");
    println!(
        "seed {seed}: {faults:?}, {published} published, {events} received, {gaps} gaps, {backend_resumes} resumes from the broker"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_hubs_get_each_event_once() {
    for seed in 1..=3 {
        run_random_faults(seed, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_messages_are_gaps() {
    for seed in 11..=13 {
        run_random_faults(seed, true).await;
    }
}
