//! Where the gaps of a hub with a broker stand, and with which cursors: a client whose connection breaks after any item, and that moves to another
//! server, misses nothing in silence.

use std::time::Duration;

use futures_util::StreamExt;
use testkit::{next_item, read_ready_items};
use tower_push::{
    EventId, Hub, Item,
    source::{
        StartPosition,
        hub::{HubSubscriber, TopicAccess, Topics},
    },
};

use crate::{
    broker::{Broker, Node, id},
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
