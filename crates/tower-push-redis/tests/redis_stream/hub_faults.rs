//! Clients of hubs on one stream move between the servers with one cursor and changing topics, while both servers publish and their connections
//! to Redis break. What each client got is compared with the stream.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use testkit::{Random, RedisProgram, RedisServer, TEST_TIMEOUT};
use tokio::time::{sleep, timeout};
use tower_push::{
    EventId, Hub, Item,
    source::{
        StartPosition,
        hub::{HubSubscriber, PublishOptions},
        relay::UpstreamLimits,
    },
};
use tower_push_redis::RedisHub;

use crate::nodes::{KEY, builder};

const TOPICS: [&str; 4] = ["a", "b", "c", "d"];

/// The text of the last event, which is published to all topics.
const LAST: &str = "the last event";

/// The place of an entry in the stream: the two numbers of its id.
type Place = (u64, u64);

fn place(id: &EventId) -> Place {
    let (entry, _fingerprint) = id.as_str().split_once('~').unwrap();
    place_of_entry(entry)
}

fn place_of_entry(entry: &str) -> Place {
    let (ms, seq) = entry.split_once('-').unwrap();
    (ms.parse().unwrap(), seq.parse().unwrap())
}

/// What a client did and got.
#[derive(Debug)]
enum Step {
    Subscribe {
        cursor: Place,
        topics: Vec<&'static str>,
    },
    Event {
        place: Place,
        topic: String,
        text: String,
    },
    /// The client has all events of its topics up to this place.
    Cursor(Place),
    /// Events of this topic, or of all topics, are missing up to the place, if it is known.
    Gap {
        topic: Option<String>,
        resumed: Option<Place>,
    },
}

/// The entries that were ever in the stream: their topics and texts.
type Entries = BTreeMap<Place, (BTreeSet<String>, String)>;

/// Adds the entries of the stream.
fn collect_entries(server: &RedisServer, entries: &mut Entries) {
    let response = server.command(&["XRANGE", KEY, "-", "+"]);
    let mut lines = response.lines().peekable();
    while let Some(id) = lines.next() {
        let (mut topics, mut text) = (BTreeSet::new(), String::new());
        while let Some(name) = lines.next_if(|line| ["topic", "data"].contains(line)) {
            let value = lines.next().unwrap();
            match name {
                "topic" => topics.extend([value.to_owned()]),
                _ => text = value.to_owned(),
            }
        }
        entries.insert(place_of_entry(id), (topics, text));
    }
}

struct Run {
    seed: u64,
    nodes: Vec<RedisHub>,
    is_over: AtomicBool,
}

impl Run {
    /// Publishes on one server until the run is over.
    async fn publish(self: Arc<Self>, node: usize) {
        let mut random = Random::new(self.seed * 1000 + 100 + node as u64);
        let options = PublishOptions::new();
        let mut number = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(random.below(4))).await;
            let bits = match random.below(4) {
                0 => 1 + random.below(15),
                _ => 1 << random.below(4),
            };
            number += 1;
            let text = format!("{node}.{number}");
            let hub = self.nodes[node].hub();
            // A publication that fails is in the stream or not: the stream tells.
            let _ = hub.publish_and_wait(topics(bits), text, &options).await;
        }
    }

    /// Follows the hub until the last event, on changing servers and with changing topics.
    async fn follow(self: Arc<Self>, index: u64, mut cursor: EventId) -> Vec<Step> {
        let mut random = Random::new(self.seed * 1000 + index);
        let mut steps = Vec::new();
        loop {
            let topics = topics(1 + random.below(15));
            let node = &self.nodes[random.below(self.nodes.len() as u64) as usize];
            let source = node.hub().topics(topics.clone()).unwrap();
            let start = StartPosition::After(cursor.clone());
            let mut subscriber = source.subscribe_from(start).unwrap();
            steps.push(Step::Subscribe {
                cursor: place(&cursor),
                topics,
            });
            let items = 1 + random.below(60);
            let read = read(&mut subscriber, items, &mut cursor, &mut steps);
            let is_last = timeout(TEST_TIMEOUT, read).await.expect("no item");
            if is_last {
                return steps;
            }
            if random.below(4) == 0 {
                sleep(Duration::from_millis(random.below(200))).await;
            }
        }
    }

    /// Breaks the connections, or stops the server for a while.
    async fn fault(&self, server: &mut RedisServer, random: &mut Random, entries: &mut Entries) {
        match random.below(4) {
            0 | 1 => drop(server.command(&["CLIENT", "KILL", "TYPE", "normal"])),
            2 => {
                server.kill();
                sleep(Duration::from_millis(random.below(200))).await;
                server.start_again();
            }
            _ => {
                collect_entries(server, entries);
                // Entries that are added in between are newer than those that are removed.
                server.command(&["XTRIM", KEY, "MAXLEN", "=", "200"]);
            }
        }
    }
}

fn topics(bits: u64) -> Vec<&'static str> {
    let names = TOPICS.iter().enumerate();
    let names = names.filter(|(index, _)| bits & (1 << index) != 0);
    names.map(|(_, name)| *name).collect()
}

/// Reads up to this number of items. Returns whether the client has got the last event.
async fn read(
    subscriber: &mut HubSubscriber,
    max_items: u64,
    cursor: &mut EventId,
    steps: &mut Vec<Step>,
) -> bool {
    for _ in 0..max_items {
        let Some(item) = subscriber.next().await else {
            return false;
        };
        let item = item.unwrap();
        match &item {
            Item::Event(event) | Item::EventWithCursor { event, .. } => {
                let text = event.payload().as_text().unwrap().to_owned();
                let topic = event.topic().unwrap().as_str().to_owned();
                let place = place(event.id().unwrap());
                steps.push(Step::Event { place, topic, text });
            }
            Item::Gap(gap) => steps.push(Step::Gap {
                topic: gap.topic.as_ref().map(|topic| topic.as_str().to_owned()),
                resumed: gap.resumed.as_ref().map(place),
            }),
            _ => {}
        }
        if let Some(next) = item.cursor() {
            *cursor = next.clone();
        }
        let is_last = matches!(steps.last(), Some(Step::Event { text, .. }) if text == LAST);
        match &item {
            Item::Cursor(id) | Item::EventWithCursor { cursor: id, .. } => {
                steps.push(Step::Cursor(place(id)));
            }
            Item::Ended { .. } => {
                // A page could not be read.
                sleep(Duration::from_millis(20)).await;
                return false;
            }
            _ => {}
        }
        if is_last {
            return true;
        }
    }
    false
}

/// Compares what a client got with the entries.
struct Check<'a> {
    entries: &'a Entries,
    /// For each topic of the subscription: the place up to which the client has the topic's events, or was told of a gap. `None` after a gap
    /// whose end is not known.
    complete_up_to: HashMap<String, Option<Place>>,
    received: BTreeSet<Place>,
    received_now: BTreeSet<Place>,
    /// The topics of the gaps since the last event. Such a gap can end before an event that the client gets, or misses, next.
    gap_topics: Vec<String>,
    /// The cursor of the subscription.
    cursor: Place,
    gaps: usize,
}

impl Check<'_> {
    /// Returns the first event of the topic that the client has not got, between two places that are not included.
    fn missing(&self, topic: &str, after: Place, before: Place) -> Option<Place> {
        if after >= before {
            return None;
        }
        let between = (
            std::ops::Bound::Excluded(after),
            std::ops::Bound::Excluded(before),
        );
        let mut between = self.entries.range(between);
        let found = between
            .find(|(place, (topics, _))| topics.contains(topic) && !self.received.contains(place));
        found.map(|(place, _)| *place)
    }

    fn check_complete(&self, topic: &str, before: Place) {
        if let Some(after) = self.complete_up_to[topic] {
            let missing = self.missing(topic, after, before);
            assert_eq!(
                missing, None,
                "a hole in {topic} after {after:?} and before {before:?}"
            );
        }
    }

    /// Extends the gaps since the last event by the event at `place`, if they end before it.
    fn extend_gaps(&mut self, place: Place) {
        let previous = self.entries.range(..place).next_back();
        let previous = previous.map(|(place, _)| *place);
        for topic in &self.gap_topics {
            let up_to = self.complete_up_to.get_mut(topic).and_then(Option::as_mut);
            if let Some(up_to) = up_to.filter(|up_to| Some(**up_to) == previous) {
                *up_to = place;
            }
        }
    }

    fn check_step(&mut self, step: &Step) {
        match step {
            Step::Subscribe { cursor, topics } => {
                let after_cursor = (cursor.0, cursor.1 + 1);
                let complete_up_to = topics.iter().map(|topic| {
                    let before = self.complete_up_to.get(*topic).copied().flatten();
                    let is_missing =
                        |after: &Place| self.missing(topic, *after, after_cursor).is_some();
                    let complete_up_to = before.filter(is_missing).unwrap_or(*cursor);
                    ((*topic).to_owned(), Some(complete_up_to))
                });
                self.complete_up_to = complete_up_to.collect();
                self.cursor = *cursor;
                self.received_now.clear();
                self.gap_topics.clear();
            }
            Step::Event { place, topic, text } => {
                let (topics, expected) = &self.entries[place];
                assert!(topics.contains(topic) && text == expected, "{step:?}");
                self.check_complete(topic, *place);
                assert!(*place > self.cursor, "{step:?} is before {:?}", self.cursor);
                assert!(self.received_now.insert(*place), "{step:?} is repeated");
                self.extend_gaps(*place);
                self.gap_topics.clear();
                self.received.insert(*place);
                let complete_up_to = self.complete_up_to.get_mut(topic).unwrap();
                *complete_up_to = (*complete_up_to).max(Some(*place));
            }
            Step::Cursor(place) => {
                let topics: Vec<_> = self.complete_up_to.keys().cloned().collect();
                let after = (place.0, place.1 + 1);
                topics
                    .iter()
                    .for_each(|topic| self.check_complete(topic, after));
            }
            Step::Gap { topic, resumed } => {
                let gap_topic = topic;
                self.gaps += 1;
                if let Some(place) = resumed {
                    self.extend_gaps(*place);
                }
                for (name, complete_up_to) in &mut self.complete_up_to {
                    if topic.as_ref().is_none_or(|topic| topic == name) {
                        // The gap of a topic precedes all events, and its end is not known. No later gap shortens it.
                        let end = resumed.filter(|_| gap_topic.is_none());
                        *complete_up_to = complete_up_to.and(end);
                        self.gap_topics.push(name.clone());
                    }
                }
            }
        }
    }
}

async fn run_random_faults(seed: u64, program: RedisProgram) {
    // The server writes each event to its disk, and a restart after SIGKILL loses nothing.
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::start(program, &options);
    let mut nodes = Vec::new();
    for log_events in [30, 300] {
        let upstream = UpstreamLimits::new().max_page_events(40);
        let hub = Hub::builder().max_events(20).max_ids(100).max_topics(4);
        let builder = builder(&server).max_log_events(log_events);
        let builder = builder.publish_retry_time(Duration::from_millis(200));
        nodes.push(
            builder
                .connect_hub(hub.upstream_limits(upstream))
                .await
                .unwrap(),
        );
    }
    let options = PublishOptions::new();
    let first = nodes[0]
        .hub()
        .publish_and_wait("first", "x", &options)
        .await
        .unwrap();
    let run = Arc::new(Run {
        seed,
        nodes,
        is_over: AtomicBool::new(false),
    });
    let clients = (0..10).map(|index| tokio::spawn(run.clone().follow(index, first.clone())));
    let clients: Vec<_> = clients.collect();
    let publishers = [0, 1].map(|node| tokio::spawn(run.clone().publish(node)));
    let mut random = Random::new(seed);
    let mut entries = Entries::new();
    for _ in 0..12 {
        sleep(Duration::from_millis(random.below(300))).await;
        run.fault(&mut server, &mut random, &mut entries).await;
    }
    run.is_over.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let last = async {
        let hub = run.nodes[0].hub();
        while hub.publish_and_wait(TOPICS, LAST, &options).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, last).await.expect("no publication");
    let mut gaps = Vec::new();
    for client in clients {
        let steps = timeout(TEST_TIMEOUT, client)
            .await
            .expect("no end")
            .unwrap();
        collect_entries(&server, &mut entries);
        let mut check = Check {
            entries: &entries,
            complete_up_to: HashMap::new(),
            received: BTreeSet::new(),
            received_now: BTreeSet::new(),
            gap_topics: Vec::new(),
            cursor: (0, 0),
            gaps: 0,
        };
        steps.iter().for_each(|step| check.check_step(step));
        gaps.push((check.gaps, check.received.len()));
    }
    println!(
        "seed {seed}: {} entries, gaps and events {gaps:?}",
        entries.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_redis_hubs_lose_nothing_in_silence() {
    for seed in 1..=3 {
        run_random_faults(seed, RedisProgram::Redis).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_valkey_hubs_lose_nothing_in_silence() {
    run_random_faults(11, RedisProgram::Valkey).await;
}
