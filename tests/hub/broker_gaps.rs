//! Where the gaps of a hub with a broker stand, and with which cursors: a client whose connection breaks after any item, and that moves to another
//! server, misses nothing in silence.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use testkit::{body_text, get_request_head, next_item, read_ready_items};
use tower_push::{
    EventId, Hub, Item, Push,
    source::{
        StartPosition,
        hub::{HubBuilder, HubSubscriber, PresenceOptions, TopicAccess, Topics},
    },
    transport::{LongPoll, Transport},
};

use crate::{
    broker::{Broker, Node, id},
    presence,
    requests::subscribe_to,
};

/// A server that keeps one event of each topic, and one that keeps all.
fn nodes(broker: &Broker) -> [Node; 2] {
    [1, 100].map(|events| broker.node(Hub::builder().max_events(events), 0))
}

fn subscribe(node: &Node, topics: &[&str], cursor: EventId) -> HubSubscriber {
    let source = node.hub.topics(topics.to_vec()).unwrap();
    source.subscribe_from(StartPosition::After(cursor)).unwrap()
}

fn publish(broker: &Broker, nodes: &mut [Node], topics: &[&str]) {
    for topic in topics {
        let text = (broker.lock().last_number() + 1).to_string();
        broker.publish(&[topic], &text);
    }
    nodes.iter_mut().for_each(|node| node.push(usize::MAX));
}

/// Returns the topic, the cursor and the number of missing events of a gap.
fn describe_gap(item: &Item) -> (Option<&str>, Option<EventId>, Option<u64>) {
    let Item::Gap(gap) = item else {
        panic!("{item:?}");
    };
    let topic = gap.topic.as_ref().map(|topic| topic.as_str());
    (topic, gap.resumed.clone(), gap.missed)
}

/// The server has lost an event of `b` that is older than those of `a`.
#[tokio::test]
async fn gap_precedes_later_events_of_other_topics() {
    let broker = Broker::default();
    let mut nodes = nodes(&broker);
    let mut slow = subscribe(&nodes[0], &["a", "b"], id(0, 0));
    publish(&broker, &mut nodes, &["b", "a", "b", "b"]);
    let gap = next_item(&mut slow).await;
    assert_eq!(describe_gap(&gap), (Some("b"), Some(id(0, 0)), Some(2)));
    // A client whose connection breaks before the event gets everything from the other server.
    let mut returned = subscribe(&nodes[1], &["a", "b"], id(0, 0));
    assert_eq!(read_ready_items(&mut returned), ["1", "2", "3", "4"]);
    assert_eq!(read_ready_items(&mut slow), ["2", "4"]);
}

/// Both gaps have the cursor of the client, which is before the first missing event of each.
#[tokio::test]
async fn gaps_of_two_topics_have_one_cursor() {
    let broker = Broker::default();
    let mut nodes = nodes(&broker);
    let mut slow = subscribe(&nodes[0], &["a", "b"], id(0, 0));
    publish(&broker, &mut nodes, &["b", "a", "a", "b"]);
    let mut topics = Vec::new();
    for _ in 0..2 {
        let gap = next_item(&mut slow).await;
        let (topic, cursor, missed) = describe_gap(&gap);
        assert_eq!((cursor, missed), (Some(id(0, 0)), Some(1)));
        topics.extend(topic.map(str::to_owned));
    }
    topics.sort();
    assert_eq!(topics, ["a", "b"]);
    assert_eq!(read_ready_items(&mut slow), ["3", "4"]);
}

/// The client's cursor is ahead of the feed when the broker is created anew.
#[tokio::test(start_paused = true)]
async fn gap_of_feed_ends_wait_for_feed() {
    let broker = Broker::default();
    let [mut node, _] = nodes(&broker);
    broker.publish(&["a"], "1");
    let mut ahead = subscribe(&node, &["a"], id(0, 1));
    let wait = tokio::time::timeout(Duration::from_secs(1), ahead.next());
    assert!(wait.await.is_err());
    broker.lock().recreate();
    broker.lock().recreate();
    broker.publish(&["a"], "2");
    let start = tokio::time::Instant::now();
    node.push(usize::MAX);
    let gap = next_item(&mut ahead).await;
    assert_eq!(describe_gap(&gap), (None, Some(id(2, 0)), None));
    assert_eq!(read_ready_items(&mut ahead), ["2"]);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// A client that may not read the history of a topic gets its gap once, although no event follows.
#[tokio::test]
async fn last_gap_moves_cursor_past_missing_events() {
    let broker = Broker::default();
    let mut nodes = nodes(&broker);
    publish(&broker, &mut nodes, &["a", "a", "a", "b"]);
    let topics = nodes[1].hub.subscribe(Topics::from_query("topic"));
    let source = topics.authorize(async |_, _| TopicAccess::allow().max_history(0));
    let resume = |cursor: EventId| {
        let uri = format!("/?topic=a&last_event_id={cursor}");
        subscribe_to(&source, &uri).unwrap()
    };
    let mut returned = resume(id(0, 0));
    let gap = next_item(&mut returned).await;
    assert_eq!(describe_gap(&gap), (Some("a"), Some(id(0, 3)), Some(3)));
    assert_eq!(read_ready_items(&mut returned), [""; 0]);
    assert_eq!(read_ready_items(&mut resume(id(0, 3))), [""; 0]);
}

/// A hub that keeps one event of each topic, so that a client reads the others from pages, and whose clients get lists of members.
fn hub_with_members() -> HubBuilder {
    Hub::builder()
        .max_events(1)
        .presence(PresenceOptions::new())
}

/// Polls after `cursor`. Returns the records, and the cursor of the next poll.
async fn poll(node: &Node, cursor: &str) -> (Vec<Value>, String) {
    let uri = format!("/?topic=room&last_event_id={cursor}&timeout=5");
    let mut head = get_request_head(&uri, &[("accept", "application/json")]);
    let push = Push::new(presence::source(&node.hub));
    let response = LongPoll::new().respond(&mut head, push).await;
    let cursor = response.headers()["etag"].to_str().unwrap();
    let cursor = cursor
        .trim_matches('"')
        .split('+')
        .next()
        .unwrap()
        .to_owned();
    let records = serde_json::from_str(&body_text(response.into_body()).await).unwrap();
    (records, cursor)
}

/// Returns the texts of events, the types of lists, and gaps.
fn describe_records(records: &[Value]) -> Vec<String> {
    let describe = |record: &Value| match (&record["event"], &record["gap"]) {
        (Value::String(name), _) => name.clone(),
        (_, Value::Object(gap)) => format!("gap {}", gap["reason"].as_str().unwrap()),
        _ => record["data"].as_str().unwrap().to_owned(),
    };
    records.iter().map(describe).collect()
}

/// More events follow the gap than one poll gets.
#[tokio::test]
async fn each_poll_after_gap_of_page_goes_on() {
    let broker = Broker::default();
    let mut node = broker.node(hub_with_members(), 0);
    for number in 1..=3000 {
        broker.publish(&["room"], &number.to_string());
        if number == 100 {
            node.push(usize::MAX);
        }
    }
    node.push(usize::MAX);
    broker.lock().trim(10);
    let mut cursor = "0.5".to_owned();
    let mut records = Vec::new();
    while cursor != "0.3000" {
        let (batch, next) = poll(&node, &cursor).await;
        assert_ne!(next, cursor);
        records.extend(batch);
        cursor = next;
    }
    let numbers = (11..=3000).map(|number| number.to_string());
    let expected = ["hub.members", "gap expired"].map(str::to_owned);
    let expected: Vec<_> = expected.into_iter().chain(numbers).collect();
    assert_eq!(describe_records(&records), expected);
}

/// The list would not have the changes that are missing, so the client gets the gap when the server has read up to its end.
#[tokio::test]
async fn gap_of_page_waits_for_list_of_members() {
    let broker = Broker::default();
    let mut node = broker.node(hub_with_members(), 0);
    for number in 1..=20 {
        broker.publish(&["room"], &number.to_string());
    }
    node.push(8);
    let resume = || presence::subscribe(&node.hub, "/?topic=room&last_event_id=0.2").unwrap();
    let mut client = resume();
    broker.lock().trim(10);
    broker.lock().counts_missed = true;
    let item = next_item(&mut client).await;
    assert!(matches!(item, Item::Ended { .. }), "{item:?}");
    assert_eq!(node.hub.counts().missed_on_resume, 0);
    drop(client);
    node.push(1);
    let mut returned = presence::subscribe(&node.hub, "/?topic=room&last_event_id=0.2").unwrap();
    for expected in ["hub.members", "gap"] {
        let item = next_item(&mut returned).await;
        match item {
            Item::Event(event) => assert_eq!(event.event_type().unwrap().as_str(), expected),
            item => assert_eq!(describe_gap(&item).0, None),
        }
    }
    assert_eq!(node.hub.counts().missed_on_resume, 8);
}

/// The broker has lost its last events, among them that of the client's cursor. The client also has a new topic.
#[tokio::test(start_paused = true)]
async fn cursor_that_broker_has_lost_is_gap_for_client_with_new_topic() {
    let broker = Broker::default();
    let [mut node, _] = nodes(&broker);
    publish(&broker, std::slice::from_mut(&mut node), &["old", "new"]);
    broker.publish(&["old"], "lost");
    broker.lock().lose_last(1);
    let source = node.hub.subscribe(Topics::from_query("topic"));
    let source = source.without_authorization();
    let resume = |uri: &str| subscribe_to(&source, uri).unwrap();
    let mut returned = resume("/?topic=old&topic=new&fresh=new&last_event_id=0.3");
    let gap = next_item(&mut returned).await;
    assert_eq!(describe_gap(&gap), (None, Some(id(0, 0)), None));
    assert_eq!(read_ready_items(&mut returned), ["1", "2"]);
    // A client of new topics gets a cursor that the broker knows.
    let mut returned = resume("/?topic=new&fresh=new&last_event_id=0.3");
    let cursor = next_item(&mut returned).await;
    assert!(
        matches!(&cursor, Item::Cursor(cursor) if *cursor == id(0, 2)),
        "{cursor:?}"
    );
}
