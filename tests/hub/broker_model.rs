//! Random publications, feeds, trims, failures and restarts of two servers that show one broker, and clients that move between the servers with
//! one cursor and topics that change with each request or by commands, compared with the list of all events.
//!
//! The promise: for each topic of a client, over all of its subscriptions together, the client gets the events after its cursor; or a gap
//! stands where events are missing. Within a subscription, the events come once and in order. After each item, the client may return with its cursor.

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
use testkit::CommandingSubscriber;
use tokio::time::{advance, timeout};
use tower_push::{
    Event, EventId, Gap, GapReason, Hub, Item,
    event::Topic,
    source::{
        StartPosition,
        hub::{HubBuilder, PublishOptions, TopicAccess, Topics},
        relay::UpstreamLimits,
    },
};

use crate::{
    broker::{Broker, Node, id, split_id},
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
    /// The broker loses its last events, and all connections break. The clients whose cursor is lost return. The topics of the bit set are new for them.
    LoseLast { count: usize, fresh: u8 },
    /// So many calls of the broker fail.
    Fail(usize),
    /// A server restarts with the newest events of the broker.
    Restart { node: usize, tail: u64 },
    /// A client subscribes to the topics of this bit set on a server, with its cursor, if it has one. The topics of the second set are new.
    Subscribe {
        client: usize,
        node: usize,
        topics: u8,
        fresh: u8,
    },
    /// A client adds a topic by a command, or a pattern that matches all topics.
    Add {
        client: usize,
        topic: Option<usize>,
        cursor: CommandCursor,
    },
    /// A client leaves a topic by a command, or its pattern.
    Leave { client: usize, topic: Option<usize> },
    /// A client reads items.
    Read { client: usize, items: usize },
    /// Time passes.
    Wait(u64),
}

/// The cursor of a command.
#[derive(Clone, Debug)]
enum CommandCursor {
    None,
    /// So many events before the client's cursor.
    Before(u64),
    /// The last event of a server.
    LastOf(usize),
    /// A cursor of another broker.
    Foreign,
}

fn random_command_cursor() -> impl Strategy<Value = CommandCursor> {
    prop_oneof![
        2 => Just(CommandCursor::None),
        6 => (0_u64..30).prop_map(CommandCursor::Before),
        2 => (0..NODES).prop_map(CommandCursor::LastOf),
        1 => Just(CommandCursor::Foreign),
    ]
}

fn random_step() -> impl Strategy<Value = Step> {
    let topics = prop_oneof![3 => (0_u32..4).prop_map(|topic| 1_u8 << topic), 1 => 1_u8..16];
    let node = 0..NODES;
    let client = 0..CLIENTS;
    let except = prop_oneof![4 => Just(None), 1 => client.clone().prop_map(Some)];
    let is_ephemeral = prop_oneof![5 => Just(false), 1 => Just(true)];
    let fresh = prop_oneof![3 => Just(0_u8), 1 => 1_u8..16];
    let lost_events = (1_usize..8, fresh.clone());
    let added = prop_oneof![5 => (0..TOPICS.len()).prop_map(Some), 1 => Just(None)];
    prop_oneof![
        12 => (node.clone(), topics, except, is_ephemeral).prop_map(
            |(node, topics, except, is_ephemeral)| Step::Publish { node, topics, except, is_ephemeral }
        ),
        8 => (node.clone(), prop_oneof![1_usize..8, Just(usize::MAX)])
            .prop_map(|(node, count)| Step::Feed { node, count }),
        1 => (node.clone(), 1_u64..6).prop_map(|(node, count)| Step::FeedAgain { node, count }),
        1 => (1_usize..30).prop_map(Step::Trim),
        1 => Just(Step::Recreate),
        1 => lost_events.prop_map(|(count, fresh)| Step::LoseLast { count, fresh }),
        1 => (1_usize..5).prop_map(Step::Fail),
        1 => (node.clone(), 0_u64..8).prop_map(|(node, tail)| Step::Restart { node, tail }),
        5 => (client.clone(), node, 1_u8..16, fresh).prop_map(
            |(client, node, topics, fresh)| Step::Subscribe { client, node, topics, fresh }
        ),
        4 => (client.clone(), added.clone(), random_command_cursor()).prop_map(
            |(client, topic, cursor)| Step::Add { client, topic, cursor }
        ),
        2 => (client.clone(), added).prop_map(|(client, topic)| Step::Leave { client, topic }),
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
    /// The topics of which a client gets at most [`MAX_HISTORY`] events from before its subscription.
    limited_topics: u8,
    /// Where clients begin in new topics.
    start: StartPosition,
}

fn random_limits() -> impl Strategy<Value = Limits> {
    let max_events = prop_oneof![1_usize..6, Just(100)];
    let small = ([max_events.clone(), max_events], 6_usize..30, 1_usize..5);
    let upstream = (1_usize..8, 1_usize..60, 0_usize..400);
    let limited_topics = prop_oneof![2 => Just(0_u8), 1 => 1_u8..16];
    let start = prop_oneof![
        Just(StartPosition::Now),
        Just(StartPosition::Oldest),
        (1_usize..3).prop_map(StartPosition::Last),
    ];
    (small, upstream, limited_topics, start).prop_map(|(small, upstream, limited_topics, start)| {
        let (max_events, max_ids, max_topics) = small;
        let (page_events, max_scan, cache_bytes) = upstream;
        Limits {
            max_events,
            max_ids,
            max_topics,
            page_events,
            max_scan,
            cache_bytes,
            limited_topics,
            start,
        }
    })
}

impl Limits {
    /// Returns the builder of the hub of a server.
    fn hub(&self, node: usize) -> HubBuilder {
        let upstream = UpstreamLimits::new()
            .max_page_events(self.page_events)
            .max_scan(self.max_scan)
            .max_cache_bytes(self.cache_bytes);
        Hub::builder()
            .max_events(self.max_events[node])
            .max_ids(self.max_ids)
            .max_topics(self.max_topics)
            .max_patterns(CLIENTS)
            .start(self.start.clone())
            .upstream_limits(upstream)
    }
}

fn topic_names(bits: u8) -> Vec<&'static str> {
    let names = TOPICS.iter().enumerate();
    let names = names.filter(|(index, _)| bits & (1 << index) != 0);
    names.map(|(_, name)| *name).collect()
}

/// The number of events that a client gets of a limited topic.
const MAX_HISTORY: usize = 2;

fn bit_of(topic: &str) -> u8 {
    let index = TOPICS.iter().position(|name| *name == topic);
    1 << index.unwrap()
}

fn sender(client: usize) -> String {
    format!("client-{client}")
}

/// The epoch and the number of an event.
type Place = (u64, u64);

#[derive(Default)]
struct Client {
    subscriber: Option<CommandingSubscriber>,
    cursor: Option<EventId>,
    /// The topics whose events the client gets.
    topics: u8,
    /// The topics that the client has asked for by their names.
    named_topics: u8,
    /// Whether the client has a pattern that matches all topics.
    has_pattern: bool,
    /// The server of the subscription.
    node: usize,
    /// The last event of this server, if it has stopped since, and the client still reads it.
    stopped_at: Option<Place>,
    /// The topics (`None`: the pattern) for which a command was sent, each with the place in the command. The answer has not come yet.
    commanded: HashMap<Option<&'static str>, Option<Place>>,
    /// The new topics for which the cursor has not moved yet.
    unconfirmed: HashSet<&'static str>,
    /// For each topic of the subscription: the place up to which the client has all events of the topic, or was told of a gap. `None` after a gap
    /// whose end is not known.
    complete_up_to: HashMap<&'static str, Option<Place>>,
    /// The topics of the subscription with a gap whose end is not known, and without an event since.
    open_gaps: HashSet<&'static str>,
    /// Where the new topics of the subscription begin.
    fresh_from: HashMap<&'static str, Place>,
    /// For each limited topic of the request: the first event that the client may get.
    allowed_from: HashMap<&'static str, Place>,
    /// The last event that the subscription has got for each topic, since the last gap (`epoch`).
    last: HashMap<&'static str, Place>,
    /// The cursor of the subscription, if the broker has lost it, and the client was not told yet.
    lost_cursor: Option<Place>,
    /// The events that the client has got, each with the topics that were named.
    received: HashSet<(Place, &'static str)>,
}

fn static_name(topic: &Topic) -> &'static str {
    let mut names = TOPICS.into_iter();
    names.find(|name| topic.as_str() == *name).unwrap()
}

/// Returns the members of a command that name a topic, or the pattern that matches all topics.
fn requested_name(topic: Option<&str>) -> String {
    match topic {
        Some(topic) => format!(r#""topic":"{topic}""#),
        None => r#""pattern":{"prefix":""}"#.to_owned(),
    }
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
        let unconfirmed = self.clients[client].unconfirmed.iter();
        let unconfirmed = unconfirmed.map(|name| bit_of(name)).sum::<u8>();
        let fresh = (fresh | unconfirmed) & topics;
        // A client of all topics subscribes to a pattern.
        let has_pattern = topics == 15 && fresh == 0;
        let mut uri = format!("/?sender={}", sender(client));
        match has_pattern {
            true => uri += "&pattern_prefix=",
            false => uri.extend(names.iter().map(|name| format!("&topic={name}"))),
        }
        let fresh_names = topic_names(fresh);
        uri.extend(fresh_names.iter().map(|name| format!("&fresh={name}")));
        let location = Topics::from_query("topic").max_patterns(1);
        let location = location.sender_from_query("sender");
        let limited = self.limits.limited_topics;
        let source = self.nodes[node].hub.subscribe(location);
        let source = source
            .authorize(move |_, topic: Topic| {
                let is_limited = limited & bit_of(topic.as_str()) != 0;
                let access = TopicAccess::allow();
                std::future::ready(match is_limited {
                    true => access.max_history(MAX_HISTORY),
                    false => access,
                })
            })
            .authorize_patterns(async |_, _| true);
        let cursor = self.clients[client].cursor.clone();
        let cursor_place = cursor.as_ref().map(split_id);
        let has_old_topics = topics & !fresh & !limited != 0;
        let lost_cursor = cursor_place.filter(|(epoch, number)| {
            let broker = self.broker.lock();
            has_old_topics && *epoch == broker.epoch && *number > broker.last_number()
        });
        let position = self.nodes[node].position();
        self.clients[client].subscriber = None;
        // A hub that is full of other topics refuses the client. It may remove other topics for those of the client.
        let subscriber = CommandingSubscriber::subscribe(source, &uri, cursor.as_ref()).ok();
        let complete_up_to = |name: &&'static str| {
            let place = match (cursor_place, fresh & bit_of(name) != 0) {
                (None, _) => self.first_load(node, name).unwrap_or(position),
                (Some(cursor), false) => self.missing_since(client, name, cursor).unwrap_or(cursor),
                // A server that lags behind the cursor may begin earlier.
                (Some(cursor), true) => {
                    let begin = self.first_load(node, name);
                    begin.unwrap_or(position.max(cursor))
                }
            };
            (*name, Some(place))
        };
        let complete_up_to = names.iter().map(complete_up_to).collect();
        let allowed_from = names.iter().filter(|_| !has_pattern);
        let allowed_from =
            allowed_from.filter_map(|name| Some((*name, self.allowed_from(node, name)?)));
        let allowed_from = allowed_from.collect();
        let client = &mut self.clients[client];
        client.subscriber = subscriber;
        client.node = node;
        client.stopped_at = None;
        client.lost_cursor = lost_cursor;
        client.last.clear();
        client.open_gaps.clear();
        client.commanded.clear();
        client.unconfirmed = fresh_names.iter().copied().collect();
        client.topics = topics;
        client.named_topics = if has_pattern { 0 } else { topics };
        client.has_pattern = has_pattern;
        client.complete_up_to = complete_up_to;
        client.allowed_from = allowed_from;
        client.fresh_from = fresh_names.iter().map(|name| (*name, position)).collect();
    }

    /// Returns the places of the events in a server's log of a topic.
    fn log(&self, node: usize, topic: &str) -> Vec<Place> {
        let topic = self.nodes[node].hub.topic(topic).unwrap();
        let events = topic.history(None, usize::MAX).events.into_iter();
        events.map(|event| split_id(event.id().unwrap())).collect()
    }

    /// Returns the place before the first event that a client without a cursor gets from a server's log of a topic. Returns `None` if the client gets
    /// no such event.
    fn first_load(&self, node: usize, topic: &str) -> Option<Place> {
        let log = self.log(node, topic);
        let is_limited = self.limits.limited_topics & bit_of(topic) != 0;
        let len = match self.limits.start {
            StartPosition::Oldest => log.len(),
            StartPosition::Last(events) => events,
            _ => 0,
        };
        let len = if is_limited {
            len.min(MAX_HISTORY)
        } else {
            len
        };
        let first = log.get(log.len().saturating_sub(len));
        first.map(|(epoch, number)| (*epoch, number - 1))
    }

    /// Returns the first event that a client may get of a limited topic, as far as the server's log says it.
    fn allowed_from(&self, node: usize, topic: &str) -> Option<Place> {
        let log = self.log(node, topic);
        let is_limited = self.limits.limited_topics & bit_of(topic) != 0;
        let first = log.len().checked_sub(MAX_HISTORY).filter(|_| is_limited)?;
        log.get(first).copied()
    }

    /// Sends a command that adds a topic, or the pattern.
    fn add(&mut self, client: usize, topic: Option<usize>, cursor: &CommandCursor) {
        let positions: Vec<_> = self.nodes.iter().map(Node::position).collect();
        let client = &mut self.clients[client];
        let name = topic.map(|topic| TOPICS[topic]);
        let has_topic = match name {
            Some(name) => client.named_topics & bit_of(name) != 0,
            None => client.has_pattern,
        };
        let (Some(subscriber), false) = (
            &client.subscriber,
            has_topic || client.commanded.contains_key(&name),
        ) else {
            return;
        };
        let own = client.cursor.as_ref().map(split_id);
        let place = match cursor {
            CommandCursor::None => None,
            CommandCursor::Before(back) => {
                own.map(|(epoch, number)| (epoch, number.saturating_sub(*back)))
            }
            CommandCursor::LastOf(node) => Some(positions[*node]),
            CommandCursor::Foreign => Some((1000, 7)),
        };
        let cursor = place.map(|(epoch, number)| id(epoch, number));
        let cursor = cursor.map(|id| format!(r#","cursor":"{id}""#));
        let cursor = cursor.unwrap_or_default();
        let requested = requested_name(name);
        subscriber.send(&format!(r#"{{"subscribe":{{{requested}{cursor}}}}}"#));
        client.commanded.insert(name, place);
    }

    /// Sends a command that removes a topic, or the pattern.
    fn leave(&mut self, client: usize, topic: Option<usize>) {
        let client = &mut self.clients[client];
        let name = topic.map(|topic| TOPICS[topic]);
        if let Some(subscriber) = &client.subscriber {
            let requested = requested_name(name);
            subscriber.send(&format!(r#"{{"unsubscribe":{{{requested}}}}}"#));
        }
    }

    /// Takes an answer to a command.
    fn take_answer(&mut self, client: usize, event: &Event) {
        let name = event.topic().map(static_name);
        let event_type = event.event_type().map(|event_type| event_type.as_str());
        match event_type {
            Some("hub.subscribed") => self.take_topics(client, name),
            Some("hub.unsubscribed" | "hub.refused") => {
                let client = &mut self.clients[client];
                if event_type == Some("hub.refused") {
                    client.commanded.remove(&name);
                }
                match name {
                    Some(name) => client.named_topics &= !bit_of(name),
                    None => client.has_pattern = false,
                }
                let kept = if client.has_pattern {
                    15
                } else {
                    client.named_topics
                };
                for name in topic_names(client.topics & !kept) {
                    client.complete_up_to.remove(name);
                    client.fresh_from.remove(name);
                    client.unconfirmed.remove(name);
                }
                client.topics = kept;
            }
            // An event without history.
            _ => {}
        }
    }

    /// Begins to expect the events of a topic, or of all topics that the client does not have yet.
    fn take_topics(&mut self, client: usize, name: Option<&'static str>) {
        let Some(place) = self.clients[client].commanded.remove(&name) else {
            return;
        };
        let node = self.clients[client].node;
        let position = self.nodes[node].position();
        let has_stopped = self.clients[client].stopped_at.is_some();
        let new = match name {
            Some(name) => vec![name],
            None => topic_names(!self.clients[client].topics & 15),
        };
        for name in new {
            let first_load = self.first_load(node, name).filter(|_| !has_stopped);
            let client = &mut self.clients[client];
            let cursor = client.cursor.as_ref().map(split_id);
            // A server that has stopped does not get the later events of the broker.
            let begin = client.stopped_at.map_or(position, |stopped_at| {
                cursor.map_or(stopped_at, |cursor| stopped_at.max(cursor))
            });
            let begin = begin.max(cursor.unwrap_or(begin));
            if place.is_none() {
                client.fresh_from.insert(name, begin);
            }
            let mut complete_up_to = Some(place.unwrap_or(first_load.unwrap_or(begin)));
            if client.topics & bit_of(name) != 0 {
                // The client gets the events of the topic for its pattern.
                let known = client.complete_up_to.get(name).copied().flatten();
                complete_up_to = known.map(|known| complete_up_to.unwrap_or(known).max(known));
            }
            client.complete_up_to.insert(name, complete_up_to);
            client.last.remove(name);
            client.open_gaps.remove(name);
            client.unconfirmed.insert(name);
            // The server's log may have gone on since the command.
            client.allowed_from.remove(name);
        }
        let client = &mut self.clients[client];
        match name {
            Some(name) => client.named_topics |= bit_of(name),
            None => client.has_pattern = true,
        }
        client.topics |= name.map_or(15, bit_of);
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

    fn check_event(&mut self, client: usize, event: &Event) {
        // An event without history has no id.
        let Some(id) = event.id() else {
            return self.take_answer(client, event);
        };
        let (epoch, number) = split_id(id);
        let topics: Vec<_> = event.topics().iter().map(static_name).collect();
        for topic in &topics {
            let topics = self.clients[client].topics;
            assert!(
                topics & bit_of(topic) != 0,
                "an event of a topic that the client has left"
            );
            let broker = self.broker.lock();
            if epoch == broker.epoch {
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
            let allowed_from = client.allowed_from.get(topic).copied();
            let is_allowed = allowed_from.is_none_or(|from| from.0 != epoch || from.1 <= number);
            assert!(
                is_allowed || client.has_pattern,
                "{number} of {topic} is before {allowed_from:?}"
            );
            let complete_up_to = client.complete_up_to.insert(topic, place).flatten();
            client
                .complete_up_to
                .insert(topic, complete_up_to.max(place));
            client.open_gaps.remove(topic);
            let last = client.last.insert(topic, (epoch, number));
            // A topic that the client adds to a pattern begins anew, in a log of its own.
            let has_two_logs = client.has_pattern && client.named_topics & bit_of(topic) != 0;
            assert!(
                last < place || has_two_logs,
                "{number} of {topic} after {last:?}"
            );
            client.received.insert(((epoch, number), topic));
        }
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
        let has_pattern = client.has_pattern;
        let is_in_logs = gap.topic.is_some()
            || gap.reason == GapReason::Lagged
            || (gap.reason == GapReason::Expired && has_pattern);
        let resumed = gap.resumed.as_ref().map(split_id);
        let end = resumed.filter(|_| !is_in_logs);
        let is_new_begin = gap.reason == GapReason::Epoch && gap.topic.is_none();
        if is_new_begin {
            client.lost_cursor = None;
        }
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
                // An earlier gap is about the events after this one, too.
                (None, Some(_)) if client.open_gaps.contains(topic) => None,
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
            client.last.clear();
        }
        // The log of a limited topic may begin after this gap.
        if gap.reason == GapReason::Epoch && gap.requested.is_some() {
            let limited = topic_names(self.limits.limited_topics & client.named_topics);
            for name in limited {
                client.complete_up_to.insert(name, None);
                client.open_gaps.insert(name);
            }
        }
        // The gap of a pattern is one of its topics, which begin at the oldest events of the server's logs.
        if let (None, None, Some(_)) = (&gap.topic, &gap.resumed, &gap.requested) {
            let of_pattern = topic_names(client.topics & !client.named_topics);
            let of_pattern = of_pattern.into_iter().chain(client.unconfirmed.clone());
            for name in of_pattern {
                client.open_gaps.insert(name);
                client.last.remove(name);
            }
        }
        // The topic begins at the oldest event of the server's log.
        if let (Some(topic), None) = (&gap.topic, &gap.resumed) {
            client.open_gaps.insert(static_name(topic));
            client.last.remove(static_name(topic));
        }
    }

    fn check_item(&mut self, client: usize, item: &Item) {
        if std::env::var("MODEL_PRINT").is_ok_and(|v| !v.is_empty()) {
            println!(
                "{client}: {item:?} cursor {:?} complete {:?}",
                self.clients[client].cursor, self.clients[client].complete_up_to
            );
        }
        if !matches!(item, Item::Gap(_)) && item.cursor().is_some() {
            self.check_told(client);
        }
        match item {
            Item::Event(event) => self.check_event(client, event),
            Item::EventWithCursor { event, cursor } => {
                let state = &self.clients[client];
                let told_gaps = state.complete_up_to.iter();
                let told_gaps = told_gaps.filter(|(_, complete_up_to)| complete_up_to.is_none());
                let told_gaps: Vec<_> = told_gaps.map(|(name, _)| *name).collect();
                self.check_event(client, event);
                if event.id().is_some_and(|id| split_id(cursor) > split_id(id)) {
                    // The gap is about the events up to the cursor.
                    let complete_up_to = &mut self.clients[client].complete_up_to;
                    complete_up_to.extend(told_gaps.into_iter().map(|name| (name, None)));
                }
                self.check_cursor(client, cursor);
            }
            Item::Gap(gap) => self.check_gap(client, gap),
            Item::Cursor(id) => self.check_cursor(client, id),
            Item::Ended { .. } => {}
            other => panic!("{other:?}"),
        }
        let client = &mut self.clients[client];
        if let Some(cursor) = item
            .cursor()
            .filter(|cursor| client.cursor.as_ref() != Some(cursor))
        {
            client.cursor = Some(cursor.clone());
            client.unconfirmed.clear();
        }
    }

    /// Reads up to `max_items` items. Returns `true` if the client has to wait for longer than `max_wait`.
    async fn read(&mut self, client: usize, max_items: usize, max_wait: Duration) -> bool {
        for _ in 0..max_items {
            let Some(subscriber) = &mut self.clients[client].subscriber else {
                return true;
            };
            match timeout(max_wait, subscriber.items.next()).await {
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

    /// Replaces a server. Its clients read the old one up to its end.
    fn restart(&mut self, node: usize, tail: u64) {
        let position = self.nodes[node].position();
        let clients = self.clients.iter_mut();
        for client in clients.filter(|client| client.node == node) {
            client.stopped_at.get_or_insert(position);
        }
        self.nodes[node] = self.broker.node(self.limits.hub(node), tail);
    }

    /// The broker loses its last events, and later ones get their ids. The servers notice it at once.
    async fn lose_last(&mut self, count: usize, fresh: u8) {
        let (epoch, last) = {
            let mut broker = self.broker.lock();
            broker.lose_last(count);
            (broker.epoch, broker.last_number())
        };
        self.nodes.iter_mut().for_each(|node| node.push(0));
        let is_lost = |place: &Place| place.0 == epoch && place.1 > last;
        for client in &mut self.clients {
            client.subscriber = None;
            client.received.retain(|(place, _)| !is_lost(place));
            let lost_cursor = client.cursor.as_ref().map(split_id).filter(is_lost);
            for place in client.complete_up_to.values_mut().flatten() {
                // If the broker has an event with the id of the lost cursor when the client returns, then nobody knows what the client lacks.
                *place = match lost_cursor {
                    Some(cursor) => cursor.max(*place),
                    None if is_lost(place) => (epoch, last),
                    None => *place,
                };
            }
        }
        // The servers have kept pages with the lost events for a while.
        advance(Duration::from_secs(31)).await;
        for client in 0..CLIENTS {
            let Client { cursor, topics, .. } = &self.clients[client];
            if cursor
                .as_ref()
                .map(split_id)
                .is_some_and(|cursor| is_lost(&cursor))
            {
                let topics = *topics;
                self.subscribe(client, client % NODES, topics, fresh & topics);
                let is_idle = self.read(client, 2, 100 * READ_TIME).await;
                if is_idle && self.clients[client].subscriber.is_some() {
                    self.check_told(client);
                }
            }
        }
    }

    /// The client gets a record after its cursor was lost.
    fn check_told(&self, client: usize) {
        let Some((epoch, number)) = self.clients[client].lost_cursor else {
            return;
        };
        let broker = self.broker.lock();
        assert!(
            epoch != broker.epoch || number <= broker.last_number(),
            "the client was not told that its cursor is lost"
        );
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
                Step::LoseLast { count, fresh } => self.lose_last(count, fresh).await,
                Step::Fail(count) => self.broker.lock().failures += count,
                Step::Restart { node, tail } => self.restart(node, tail),
                Step::Subscribe {
                    client,
                    node,
                    topics,
                    fresh,
                } => self.subscribe(client, node, topics, fresh & topics),
                Step::Add {
                    client,
                    topic,
                    cursor,
                } => self.add(client, topic, &cursor),
                Step::Leave { client, topic } => self.leave(client, topic),
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
                is_waiting = self.read(client, 1000, 100 * READ_TIME).await;
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
    let cases = std::env::var("BROKER_MODEL_CASES").ok();
    let config = ProptestConfig {
        cases: cases.map_or(500, |cases| cases.parse().expect("a number")),
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

/// The runs are new each time, unless the variable `BROKER_MODEL_SEED` has the number from which they follow. `BROKER_MODEL_CASES` is their number.
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
        limited_topics: 0,
        start: StartPosition::Now,
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

/// The broker is created anew while a pattern that the client has added is read from it.
#[test]
fn recreation_during_resume_of_added_pattern_is_a_gap() {
    let steps = vec![
        subscribe(0, 1, 0),
        publish(2),
        Step::Feed { node: 0, count: 1 },
        Step::Read {
            client: 1,
            items: 2,
        },
        Step::Add {
            client: 1,
            topic: None,
            cursor: CommandCursor::Before(0),
        },
        Step::Read {
            client: 1,
            items: 2,
        },
        publish(1),
        Step::Fail(1),
        Step::Recreate,
        Step::Fail(1),
        Step::Recreate,
    ];
    run_to_end(limits(6, 1, 1), steps);
}
