//! Random publications, feeds, trims, failures and restarts of two servers that show one broker, and clients that move between the servers with
//! one cursor and changing topics, compared with the list of all events.
//!
//! The promise: for each topic of a client, over all of its subscriptions together, the client gets exactly the events after its cursor, each
//! once and in order; or a gap stands where events are missing.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures_util::StreamExt;
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use tokio::time::{advance, timeout};
use tower_push::{
    Event, EventId, Gap, GapReason, Hub, Item,
    event::Topic,
    source::{
        StartPosition, TopicSet,
        hub::{HubBuilder, HubSubscriber, PublishOptions, TopicPattern},
        relay::UpstreamLimits,
    },
};

use crate::{
    broker::{Broker, Node, split_id},
    paused_clock::block_on_paused,
};

const TOPICS: [&str; 4] = ["a", "b", "c", "d"];
const CLIENTS: usize = 3;
const NODES: usize = 2;

/// One step of a run.
#[derive(Clone, Debug)]
enum Step {
    /// A server publishes to the topics of this bit set, with an echo to all but one client, or without history.
    Publish {
        node: usize,
        topics: u8,
        except: Option<usize>,
        is_ephemeral: bool,
    },
    /// The feed of a server gets the next events.
    Feed { node: usize, count: usize },
    /// The feed of a server gets its last events again.
    FeedAgain { node: usize, count: u64 },
    /// The broker drops its oldest events.
    Trim(usize),
    /// The broker is created anew.
    Recreate,
    /// The next call of the broker fails.
    Fail,
    /// A server restarts with the newest events of the broker.
    Restart { node: usize, tail: u64 },
    /// A client subscribes to the topics of this bit set on a server, with its cursor, if it has one. The topics of the second set are new.
    Subscribe {
        client: usize,
        node: usize,
        topics: u8,
        fresh: u8,
    },
    /// A client reads items.
    Read { client: usize, items: usize },
    /// Time passes.
    Wait(u64),
}

fn random_step() -> impl Strategy<Value = Step> {
    let topics = prop_oneof![3 => (0_u32..4).prop_map(|topic| 1_u8 << topic), 1 => 1_u8..16];
    let node = 0..NODES;
    let client = 0..CLIENTS;
    let except = prop_oneof![4 => Just(None), 1 => client.clone().prop_map(Some)];
    let is_ephemeral = prop_oneof![5 => Just(false), 1 => Just(true)];
    let fresh = prop_oneof![3 => Just(0_u8), 1 => 1_u8..16];
    prop_oneof![
        12 => (node.clone(), topics, except, is_ephemeral).prop_map(
            |(node, topics, except, is_ephemeral)| Step::Publish { node, topics, except, is_ephemeral }
        ),
        8 => (node.clone(), prop_oneof![1_usize..8, Just(usize::MAX)])
            .prop_map(|(node, count)| Step::Feed { node, count }),
        1 => (node.clone(), 1_u64..6).prop_map(|(node, count)| Step::FeedAgain { node, count }),
        1 => (1_usize..30).prop_map(Step::Trim),
        1 => Just(Step::Recreate),
        1 => Just(Step::Fail),
        1 => (node.clone(), 0_u64..8).prop_map(|(node, tail)| Step::Restart { node, tail }),
        5 => (client.clone(), node, 1_u8..16, fresh).prop_map(
            |(client, node, topics, fresh)| Step::Subscribe { client, node, topics, fresh }
        ),
        8 => (client, 1_usize..8).prop_map(|(client, items)| Step::Read { client, items }),
        1 => (1_u64..10_000).prop_map(Step::Wait),
    ]
}

/// The limits of the hubs.
#[derive(Clone, Debug)]
struct Limits {
    /// The number of events that each server keeps of a topic.
    max_events: [usize; NODES],
    max_ids: usize,
    max_topics: usize,
    page_events: usize,
    max_scan: usize,
    cache_bytes: usize,
}

fn random_limits() -> impl Strategy<Value = Limits> {
    let max_events = prop_oneof![1_usize..6, Just(100)];
    let small = ([max_events.clone(), max_events], 6_usize..30, 1_usize..5);
    let upstream = (1_usize..8, 1_usize..60, 0_usize..400);
    (small, upstream).prop_map(
        |((max_events, max_ids, max_topics), (page_events, max_scan, cache_bytes))| Limits {
            max_events,
            max_ids,
            max_topics,
            page_events,
            max_scan,
            cache_bytes,
        },
    )
}

impl Limits {
    /// Returns the builder of the hub of a server.
    fn hub(&self, node: usize) -> HubBuilder {
        let upstream = UpstreamLimits::new()
            .page_events(self.page_events)
            .max_scan(self.max_scan)
            .cache_bytes(self.cache_bytes);
        Hub::builder()
            .max_events(self.max_events[node])
            .max_ids(self.max_ids)
            .max_topics(self.max_topics)
            .max_patterns(CLIENTS)
            .upstream_limits(upstream)
    }
}

fn topic_names(bits: u8) -> Vec<&'static str> {
    let names = TOPICS.iter().enumerate();
    let names = names.filter(|(index, _)| bits & (1 << index) != 0);
    names.map(|(_, name)| *name).collect()
}

fn sender(client: usize) -> String {
    format!("client {client}")
}

/// The epoch and the number of an event.
type Place = (u64, u64);

#[derive(Default)]
struct Client {
    subscriber: Option<HubSubscriber>,
    cursor: Option<EventId>,
    /// The cursor with which the client has subscribed.
    requested: Option<EventId>,
    topics: u8,
    /// For each topic of the subscription: the place up to which the client has all events of the topic, or was told of a gap. `None` after a gap
    /// whose end is not known.
    complete_up_to: HashMap<&'static str, Option<Place>>,
    /// Where the new topics of the subscription begin.
    fresh_from: HashMap<&'static str, Place>,
    /// The last event that the subscription has got for each topic, since the last gap (`epoch`).
    last: HashMap<&'static str, Place>,
    /// The events that the client has got, each with the topics that were named.
    received: HashSet<(Place, &'static str)>,
    /// The events that the subscription has got.
    received_now: HashSet<Place>,
}

struct Model {
    broker: Broker,
    limits: Limits,
    nodes: Vec<Node>,
    clients: [Client; CLIENTS],
}

impl Model {
    fn subscribe(&mut self, client: usize, node: usize, topics: u8, fresh: u8) {
        let names = topic_names(topics);
        let node = &self.nodes[node];
        let fresh_topics = TopicSet::try_from(topic_names(fresh)).unwrap();
        // A client of all topics subscribes to a pattern.
        let source = match topics == 15 && fresh == 0 {
            true => node.hub.matching([TopicPattern::prefix("")]),
            false => node.hub.topics(names.clone()).unwrap(),
        };
        let source = source
            .with_fresh_topics(fresh_topics)
            .sender(sender(client));
        let cursor = self.clients[client].cursor.clone();
        let cursor_place = cursor.as_ref().map(split_id);
        let start = cursor.map_or(StartPosition::Now, StartPosition::After);
        let complete_up_to = |name: &&'static str| {
            let is_fresh = topic_names(fresh).contains(name);
            let place = match (cursor_place, is_fresh) {
                (None, _) => node.position(),
                (Some(cursor), false) => self.missing_since(client, name, cursor).unwrap_or(cursor),
                // A server that lags behind the cursor may begin earlier.
                (Some(cursor), true) => node.position().max(cursor),
            };
            (*name, Some(place))
        };
        let complete_up_to = names.iter().map(complete_up_to).collect();
        let client = &mut self.clients[client];
        client.subscriber = None;
        client.received_now.clear();
        client.last.clear();
        client.topics = topics;
        client.requested = client.cursor.clone();
        client.complete_up_to = complete_up_to;
        let fresh_from = topic_names(fresh).into_iter();
        client.fresh_from = fresh_from.map(|name| (name, node.position())).collect();
        // A hub that is full of other topics refuses the client.
        client.subscriber = source.subscribe_from(start).ok();
    }

    /// If the client lacks events of the topic before its cursor, and no gap has told it so yet, returns the place after which they are missing. This
    /// happens when an event of another topic has moved the cursor before the gap was sent. The client must get the gap, or the events, with its next
    /// subscription.
    fn missing_since(
        &self,
        client: usize,
        topic: &'static str,
        (epoch, number): Place,
    ) -> Option<Place> {
        let before = (*self.clients[client].complete_up_to.get(topic)?)?;
        let is_missing =
            before.0 == epoch && !self.missing(client, topic, before, number).is_empty();
        is_missing.then_some(before)
    }

    /// Returns the numbers of the events that the client must have got for a topic after `from` and up to `to`.
    fn missing(
        &self,
        client: usize,
        topic: &'static str,
        (epoch, from): Place,
        to: u64,
    ) -> Vec<u64> {
        let broker = self.broker.lock();
        if epoch != broker.epoch {
            return Vec::new();
        }
        let sender = sender(client);
        let is_missing = |number: &u64| {
            let event = &broker.history[*number as usize - 1];
            event.topics().contains(topic)
                && event.has_history()
                && event.excluded_sender() != Some(&sender)
                && !self.clients[client]
                    .received
                    .contains(&((epoch, *number), topic))
        };
        (from + 1..=to).filter(is_missing).collect()
    }

    fn check_complete(&self, client: usize, topic: &'static str, (epoch, number): Place) {
        let Some((complete_epoch, from)) = self.clients[client].complete_up_to[topic] else {
            return;
        };
        if complete_epoch > epoch {
            // The client's cursor is of an earlier epoch than the begin of a new topic.
            return;
        }
        assert_eq!(complete_epoch, epoch, "a new epoch without a gap");
        let missing = self.missing(client, topic, (epoch, from), number);
        assert!(
            missing.is_empty(),
            "a hole in {topic} before {number}: {missing:?}"
        );
    }

    /// Checks an event. If the event `is_from_broker`, the client is still reading older events, and the events of its new topics come later; only an
    /// event that belongs to both an old and a new topic comes now.
    fn check_event(&mut self, client: usize, event: &Event, is_from_broker: bool) {
        // An event without history has no id.
        let Some(id) = event.id() else { return };
        let (epoch, number) = split_id(id);
        let static_name = |topic: &Topic| TOPICS.into_iter().find(|name| topic.as_str() == *name);
        let topics = event.topics().iter();
        let topics: Vec<_> = topics.map(|topic| static_name(topic).unwrap()).collect();
        assert!(!topics.is_empty());
        let (early, topics): (Vec<_>, Vec<_>) = topics.into_iter().partition(|topic| {
            is_from_broker && self.clients[client].fresh_from.contains_key(topic)
        });
        for topic in topics.iter().chain(&early) {
            if epoch == self.broker.lock().epoch {
                let broker = self.broker.lock();
                let published = &broker.history[number as usize - 1];
                assert!(published.topics().contains(topic));
                assert_ne!(published.excluded_sender(), Some(sender(client).as_str()));
            }
        }
        for topic in &topics {
            self.check_complete(client, topic, (epoch, number - 1));
        }
        let client = &mut self.clients[client];
        let place = Some((epoch, number));
        for topic in topics {
            let complete_up_to = client.complete_up_to.insert(topic, place).flatten();
            client
                .complete_up_to
                .insert(topic, complete_up_to.max(place));
            let last = client.last.insert(topic, (epoch, number));
            assert!(last < place, "{number} of {topic} after {last:?}");
            client.received.insert(((epoch, number), topic));
        }
        let early = early.into_iter().map(|topic| ((epoch, number), topic));
        client.received.extend(early);
        assert!(
            client.received_now.insert((epoch, number)),
            "{number} is repeated"
        );
    }

    fn check_cursor(&mut self, client: usize, id: &EventId) {
        let place = split_id(id);
        for topic in topic_names(self.clients[client].topics) {
            self.check_complete(client, topic, place);
        }
    }

    fn check_gap(&mut self, client: usize, gap: &Gap) {
        let client = &mut self.clients[client];
        // A gap in the logs precedes all events that the client has not got, and its end is not known. A gap in a page, or in the feed, ends at
        // its cursor.
        let has_pattern = client.topics == 15 && client.fresh_from.is_empty();
        let is_in_logs = gap.topic.is_some()
            || gap.reason == GapReason::Lagged
            || (gap.reason == GapReason::Expired && has_pattern);
        let resumed = gap.resumed.as_ref().map(split_id);
        let end = resumed.filter(|_| !is_in_logs);
        let is_new_begin = gap.reason == GapReason::Epoch && gap.topic.is_none();
        for (topic, complete_up_to) in &mut client.complete_up_to {
            let name = gap.topic.as_ref().map(|name| name.as_str());
            if name.is_some_and(|name| name != *topic) {
                continue;
            }
            if let (Some((epoch, _)), Some((resumed_epoch, _))) = (*complete_up_to, resumed) {
                assert!(
                    epoch == resumed_epoch || gap.reason == GapReason::Epoch,
                    "{gap:?}"
                );
            }
            let fresh_from = client.fresh_from.get(topic).copied();
            *complete_up_to = match (*complete_up_to, end) {
                (None, Some(end)) if is_new_begin => Some(end).max(fresh_from),
                // The server is in an earlier epoch than the client was, and the client gets the events after the gap's end.
                (Some(before), Some(end)) if is_new_begin && before.0 > end.0 => {
                    Some(end).max(fresh_from)
                }
                // No other gap shortens an earlier one.
                (Some(before), Some(end)) => Some(before.max(end)).max(fresh_from),
                _ => None,
            };
        }
        if is_new_begin {
            client.received_now.clear();
            client.last.clear();
        }
    }

    fn check_item(&mut self, client: usize, item: &Item) {
        match item {
            Item::Event(event) => self.check_event(client, event, false),
            Item::EventWithCursor { event, cursor } => {
                let is_from_broker = self.clients[client].requested.as_ref() == Some(cursor);
                self.check_event(client, event, is_from_broker);
                self.check_cursor(client, cursor);
            }
            Item::Gap(gap) => self.check_gap(client, gap),
            Item::Cursor(id) => self.check_cursor(client, id),
            Item::Ended { .. } => {}
            other => panic!("{other:?}"),
        }
        if let Some(cursor) = item.cursor() {
            self.clients[client].cursor = Some(cursor.clone());
        }
    }

    /// Reads up to `max_items` items. Returns `true` if the client has to wait for longer than `max_wait`.
    async fn read(&mut self, client: usize, max_items: usize, max_wait: Duration) -> bool {
        for _ in 0..max_items {
            let Some(subscriber) = &mut self.clients[client].subscriber else {
                return true;
            };
            match timeout(max_wait, subscriber.next()).await {
                Err(_) => return true,
                Ok(Some(item)) => {
                    let item = item.unwrap();
                    self.check_item(client, &item);
                    if let Item::Ended { retry } = item {
                        advance(retry).await;
                    }
                }
                Ok(None) => {
                    let topics = self.clients[client].topics;
                    self.subscribe(client, client % NODES, topics, 0);
                }
            }
        }
        false
    }

    async fn publish(&self, node: usize, topics: u8, options: PublishOptions) {
        let fails = self.broker.lock().failures > 0;
        let hub = &self.nodes[node].hub;
        let published = hub
            .publish_and_wait(topic_names(topics), "x", &options)
            .await;
        match published {
            Ok(id) => assert_eq!(id, self.broker.lock().last_id()),
            Err(error) => assert!(fails && error.is_publish_failed()),
        }
    }

    async fn run(mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Publish {
                    node,
                    topics,
                    except,
                    is_ephemeral,
                } => {
                    let mut options = PublishOptions::new();
                    if let Some(client) = except {
                        options = options.except(sender(client));
                    }
                    if is_ephemeral {
                        options = options.without_history();
                    }
                    self.publish(node, topics, options).await;
                }
                Step::Feed { node, count } => self.nodes[node].push(count),
                Step::FeedAgain { node, count } => self.nodes[node].push_again(count),
                Step::Trim(count) => self.broker.lock().trim(count),
                Step::Recreate => self.broker.lock().recreate(),
                Step::Fail => self.broker.lock().failures += 1,
                Step::Restart { node, tail } => {
                    self.nodes[node] = self.broker.node(self.limits.hub(node), tail);
                }
                Step::Subscribe {
                    client,
                    node,
                    topics,
                    fresh,
                } => self.subscribe(client, node, topics, fresh & topics),
                Step::Read { client, items } => {
                    self.read(client, items, READ_TIME).await;
                }
                Step::Wait(millis) => advance(Duration::from_millis(millis)).await,
            }
        }
        self.finish().await;
    }

    /// Everything works again, and every client gets to the end.
    async fn finish(&mut self) {
        self.broker.lock().failures = 0;
        for topics in [1, 2, 4, 8] {
            self.publish(0, topics, PublishOptions::new()).await;
        }
        self.nodes.iter_mut().for_each(|node| node.push(usize::MAX));
        let (epoch, last) = self.nodes[0].position();
        for client in 0..CLIENTS {
            let mut is_waiting = false;
            for _ in 0..3 {
                is_waiting = self.read(client, 10_000, 100 * READ_TIME).await;
                assert!(is_waiting, "the client gets items for ever");
                advance(Duration::from_secs(10)).await;
            }
            assert!(is_waiting);
            if self.clients[client].subscriber.is_none() {
                continue;
            }
            for topic in topic_names(self.clients[client].topics) {
                self.check_complete(client, topic, (epoch, last));
            }
        }
    }
}

/// How long the broker takes for an answer. A client that waits for no longer is between two pages, or leaves while one is being read.
const READ_TIME: Duration = Duration::from_millis(1);

async fn run_steps(limits: Limits, steps: Vec<Step>) {
    let broker = Broker::default();
    broker.lock().delay = READ_TIME;
    let nodes = (0..NODES)
        .map(|node| broker.node(limits.hub(node), 0))
        .collect();
    let model = Model {
        broker,
        limits,
        nodes,
        clients: Default::default(),
    };
    model.run(steps).await;
}

fn run_to_end(limits: Limits, steps: Vec<Step>) {
    block_on_paused(run_steps(limits, steps));
}

/// Does the random runs that follow from a number.
fn run_random_steps(seed: u64) {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let runs = (
        random_limits(),
        proptest::collection::vec(random_step(), 1..100),
    );
    let result = TestRunner::new_with_rng(config, rng).run(&runs, |(limits, steps)| {
        run_to_end(limits, steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("BROKER_MODEL_SEED={seed} gives these runs again: {error}");
    }
}

#[test]
fn clients_of_any_server_get_each_event_once_or_a_gap() {
    run_random_steps(1);
}

/// The runs are new each time, unless the variable `BROKER_MODEL_SEED` has the number from which they follow.
#[test]
fn clients_of_any_server_miss_nothing_in_new_runs() {
    let seed = std::env::var("BROKER_MODEL_SEED").ok();
    let seed = seed.map(|seed| seed.parse().expect("a number"));
    run_random_steps(seed.unwrap_or_else(|| RandomState::new().hash_one(0)));
}

/// Returns the limits of servers that keep one event of each topic.
fn limits(max_ids: usize, max_topics: usize, page_events: usize) -> Limits {
    Limits {
        max_events: [1; NODES],
        max_ids,
        max_topics,
        page_events,
        max_scan: 1,
        cache_bytes: 0,
    }
}

fn publish(topics: u8) -> Step {
    Step::Publish {
        node: 0,
        topics,
        except: None,
        is_ephemeral: false,
    }
}

fn subscribe(node: usize, topics: u8, fresh: u8) -> Step {
    Step::Subscribe {
        client: 1,
        node,
        topics,
        fresh,
    }
}

const READ_ONE: Step = Step::Read {
    client: 1,
    items: 1,
};

/// The broker is created anew after the client has got the gap of a page.
#[test]
fn recreation_after_last_page_is_an_epoch_gap() {
    let feed = Step::Feed { node: 0, count: 1 };
    let mut steps = vec![
        subscribe(0, 1, 0),
        publish(1),
        Step::Trim(1),
        READ_ONE,
        feed,
    ];
    steps.extend([subscribe(0, 1, 0), READ_ONE, Step::Wait(1)]);
    steps.extend([
        Step::Recreate,
        Step::Recreate,
        Step::Recreate,
        Step::Recreate,
    ]);
    steps.push(publish(1));
    run_to_end(limits(6, 2, 2), steps);
}

/// The log of one topic of a returning client has lost an event after a gap of the feed that the client has not got.
#[test]
fn gap_in_topic_follows_gap_of_feed() {
    let feed = Step::Feed { node: 0, count: 1 };
    let mut steps = vec![
        Step::Recreate,
        publish(1),
        subscribe(0, 1, 0),
        READ_ONE,
        feed,
    ];
    steps.extend([
        Step::Recreate,
        Step::Recreate,
        subscribe(0, 11, 1),
        Step::Recreate,
    ]);
    run_to_end(limits(8, 3, 1), steps);
}

/// A gap of the feed ends before the gap of the page that the client has got.
#[test]
fn gap_of_page_ends_after_gap_of_feed() {
    let feed = |count| Step::Feed { node: 1, count };
    let mut steps = vec![
        subscribe(0, 1, 0),
        READ_ONE,
        publish(4),
        publish(4),
        feed(2),
    ];
    steps.extend([subscribe(1, 15, 1), publish(1), Step::Trim(3), publish(2)]);
    steps.extend([feed(1), Step::Trim(1)]);
    run_to_end(limits(8, 4, 1), steps);
}

/// A client has a new topic, which the server reads from its log, and another one, which it reads from the broker. An event of both topics is in a page
/// before the feed of the server pushes it.
#[test]
fn event_of_page_ahead_of_feed_names_new_topic() {
    let steps = vec![
        subscribe(0, 1, 0),
        publish(1),
        Step::Feed { node: 0, count: 1 },
        publish(14),
        READ_ONE,
        READ_ONE,
        subscribe(1, 6, 2),
        READ_ONE,
        READ_ONE,
    ];
    let limits = Limits {
        max_events: [1, 4],
        ..limits(11, 3, 1)
    };
    run_to_end(limits, steps);
}

/// Like `event_of_page_ahead_of_feed_names_new_topic`, with events without history and more events in the page.
#[test]
fn event_of_page_ahead_of_restarted_server_names_new_topic() {
    let mut steps = vec![publish(1); 5];
    steps.extend([Step::Restart { node: 0, tail: 0 }, publish(8)]);
    steps.extend([subscribe(0, 3, 0), READ_ONE]);
    steps.extend([Step::Feed { node: 0, count: 1 }, subscribe(0, 9, 1)]);
    steps.push(Step::Publish {
        node: 0,
        topics: 1,
        except: None,
        is_ephemeral: true,
    });
    steps.extend([READ_ONE, publish(13), READ_ONE, READ_ONE, READ_ONE]);
    let limits = Limits {
        max_events: [2, 1],
        max_scan: 4,
        ..limits(6, 2, 3)
    };
    run_to_end(limits, steps);
}

/// A client moves to a server that does not know of the new broker yet, and is told that it begins there anew.
#[test]
fn client_follows_server_of_earlier_epoch() {
    let feed = |node, count| Step::Feed { node, count };
    let read = Step::Read {
        client: 1,
        items: 6,
    };
    let mut steps = vec![subscribe(1, 2, 0), publish(2), publish(1), feed(0, 2)];
    steps.extend([Step::Recreate, publish(2), feed(1, 1), read.clone()]);
    steps.extend([Step::Recreate, subscribe(0, 2, 0), read]);
    run_to_end(limits(6, 1, 1), steps);
}
