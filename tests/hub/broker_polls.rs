//! Clients of a hub with a broker that poll: each poll with older events moves the cursor on, whatever else the client reads.

use std::collections::BTreeMap;

use serde_json::Value;
use testkit::{body_text, get_request_head};
use tower_push::{
    Hub, Push,
    event::Topic,
    source::{
        StartPosition, Subscription,
        hub::{TopicAccess, Topics},
    },
    transport::{LongPoll, Transport},
};

use crate::broker::{Broker, Node};

/// A client that polls, and that names new topics in `fresh` until a record has moved its cursor.
struct PollingClient<'a> {
    topics: Vec<&'a str>,
    fresh: Vec<&'a str>,
    cursor: String,
    /// The texts of the events of each topic, in the order in which they came.
    events: BTreeMap<String, Vec<String>>,
    /// The topics and the reasons of gaps.
    gaps: Vec<String>,
}

impl<'a> PollingClient<'a> {
    fn new(topics: &[&'a str], cursor: &str) -> Self {
        Self {
            topics: topics.to_vec(),
            fresh: Vec::new(),
            cursor: cursor.to_owned(),
            events: BTreeMap::new(),
            gaps: Vec::new(),
        }
    }

    /// Polls once. A response has at most four records. At most the last two events of the topic `limited` are sent.
    async fn poll(&mut self, node: &Node) {
        let mut uri = format!("/?last_event_id={}&timeout=1", self.cursor);
        uri.extend(self.topics.iter().map(|topic| format!("&topic={topic}")));
        uri.extend(self.fresh.iter().map(|topic| format!("&fresh={topic}")));
        let mut head = get_request_head(&uri, &[("accept", "application/json")]);
        let source = node.hub.subscribe(Topics::from_query("topic"));
        let source = source.authorize(async |_: Subscription, topic: Topic| match topic.as_str() {
            "limited" => TopicAccess::allow().max_history(2),
            _ => TopicAccess::allow(),
        });
        let transport = LongPoll::new().max_events(4);
        let response = transport.respond(&mut head, Push::new(source)).await;
        if response.status() == http::StatusCode::NO_CONTENT {
            return;
        }
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        let cursor = tag.trim_matches('"').split('+').next().unwrap();
        let records = body_text(response.into_body()).await;
        let records: Vec<Value> = serde_json::from_str(&records).unwrap();
        assert!(
            cursor != self.cursor || records.is_empty(),
            "the same page again: {records:?}"
        );
        self.fresh.clear();
        self.cursor = cursor.to_owned();
        for record in records {
            self.take_record(&record);
        }
    }

    fn take_record(&mut self, record: &Value) {
        if let Value::Object(gap) = &record["gap"] {
            let topic = gap.get("topic").and_then(Value::as_str).unwrap_or("");
            let reason = gap["reason"].as_str().unwrap();
            self.gaps.push(format!("{topic} {reason}"));
        }
        let Some(text) = record["data"].as_str() else {
            return;
        };
        let first = std::slice::from_ref(&record["topic"]);
        let topics = record["topics"].as_array().map_or(first, |topics| topics);
        for topic in topics {
            let events = self.events.entry(topic.as_str().unwrap().to_owned());
            events.or_default().push(text.to_owned());
        }
    }

    /// Polls until the client has the cursor `end`.
    async fn poll_up_to(&mut self, node: &Node, end: &str) {
        for _ in 0..100 {
            if self.cursor == end {
                return;
            }
            self.poll(node).await;
        }
        panic!("the client polls for ever: {}", self.cursor);
    }

    fn texts(&self, topic: &str) -> &[String] {
        self.events.get(topic).map_or(&[], |texts| texts)
    }
}

/// Publishes 60 events, in turn to each of these topics.
fn publish(broker: &Broker, topics: &[&[&str]]) {
    for number in 0..60 {
        broker.publish(topics[number % topics.len()], &(number + 1).to_string());
    }
}

/// Returns the numbers of a range that leave `rest` when they are divided by `divisor`.
fn numbers(range: std::ops::RangeInclusive<usize>, divisor: usize, rest: usize) -> Vec<String> {
    let numbers = range.filter(|number| number % divisor == rest);
    numbers.map(|number| number.to_string()).collect()
}

/// The server has the last events only, so that the client reads the others from the broker.
#[tokio::test(start_paused = true)]
async fn polls_with_new_topic_go_on() {
    let broker = Broker::default();
    publish(&broker, &[&["old"], &["new"]]);
    let node = broker.node(Hub::builder().start(StartPosition::Oldest), 10);
    let mut client = PollingClient::new(&["old", "new"], "0.20");
    client.fresh = vec!["new"];
    client.poll_up_to(&node, "0.60").await;
    assert_eq!(client.texts("old"), numbers(21..=60, 2, 1));
    assert_eq!(client.texts("new"), numbers(21..=60, 2, 0));
    assert_eq!(client.gaps, [""; 0]);
}

/// The new topic has a value that is older than the client's cursor, and that only the server's log has among the events that are read.
#[tokio::test(start_paused = true)]
async fn polls_begin_with_older_value_of_new_topic() {
    let broker = Broker::default();
    broker.publish(&["new"], "value");
    publish(&broker, &[&["old"], &["other"]]);
    let hub = Hub::builder()
        .start(StartPosition::Last(1))
        .max_events(2)
        .max_ids(8);
    let node = broker.node(hub, 61);
    let mut client = PollingClient::new(&["old", "new"], "0.21");
    client.fresh = vec!["new"];
    client.poll_up_to(&node, "0.60").await;
    assert_eq!(client.texts("new"), ["value"]);
    // The cursor has gone back to the value.
    let texts = client.texts("old");
    assert_eq!(texts, numbers(1..=60, 2, 1));
}

/// The server has read fewer events of the broker than the client. The client goes back to the server's last event.
#[tokio::test(start_paused = true)]
async fn new_topic_on_server_that_lags_begins_at_its_last_event() {
    let broker = Broker::default();
    publish(&broker, &[&["old"], &["new"]]);
    let mut node = broker.node(Hub::builder().start(StartPosition::Last(1)), 60);
    publish(&broker, &[&["new"], &["old"]]);
    let mut client = PollingClient::new(&["old", "new"], "0.90");
    client.fresh = vec!["new"];
    client.poll(&node).await;
    assert_eq!(client.texts("new"), ["60"]);
    assert_eq!(client.cursor, "0.60");
    node.push(usize::MAX);
    client.poll_up_to(&node, "0.120").await;
    let mut texts = vec!["60".to_owned()];
    texts.extend(numbers(1..=60, 2, 1));
    assert_eq!(client.texts("new"), texts);
}

#[tokio::test(start_paused = true)]
async fn polls_with_limited_topic_go_on() {
    let broker = Broker::default();
    publish(&broker, &[&["old"], &["limited"], &["limited", "old"]]);
    let node = broker.node(Hub::builder(), 12);
    let mut client = PollingClient::new(&["old", "limited"], "0.20");
    client.poll_up_to(&node, "0.60").await;
    let mut old = numbers(21..=60, 3, 1);
    old.extend(numbers(21..=60, 3, 0));
    old.sort_by_key(|text| text.parse::<u64>().unwrap());
    assert_eq!(client.texts("old"), old);
    // The client is told that events are missing, and gets none but the last two.
    assert!(client.gaps.iter().all(|gap| gap == "limited expired"));
    assert!(!client.gaps.is_empty());
    let allowed = ["59".to_owned(), "60".to_owned()];
    assert!(
        client
            .texts("limited")
            .iter()
            .all(|text| allowed.contains(text))
    );
}

/// The last events of a limited topic are older than those of the other topic, and more than one response has.
#[tokio::test(start_paused = true)]
async fn last_events_of_limited_topic_do_not_move_cursor_back() {
    let broker = Broker::default();
    (1..=6).for_each(|number| drop(broker.publish(&["limited"], &format!("limited {number}"))));
    publish(&broker, &[&["old"]]);
    let node = broker.node(Hub::builder().max_events(3).max_ids(8), 66);
    let mut client = PollingClient::new(&["old", "limited"], "0.2");
    client.poll_up_to(&node, "0.66").await;
    assert_eq!(client.texts("old"), numbers(1..=60, 1, 0));
}
