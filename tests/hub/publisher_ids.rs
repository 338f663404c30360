//! Events whose ids their publishers choose.

use std::task::Poll;

use testkit::{body_text, get_request_head, poll_next};
use tower_push::{
    EventId, Hub, Item, Push,
    event::Topic,
    source::{
        StartPosition, TopicSet,
        hub::{HubSubscriber, PublishOptions},
    },
    transport::{Sse, Transport},
};

fn id(text: &str) -> EventId {
    EventId::new(text).unwrap()
}

fn publish(hub: &Hub, topics: &[&str], text: &str, own_id: &str) -> EventId {
    let options = PublishOptions::new().id(id(own_id));
    hub.publish_with(topics.to_vec(), text, &options).unwrap()
}

fn resume(hub: &Hub, cursor: &EventId) -> HubSubscriber {
    let source = hub.topics(["a", "b"]).unwrap();
    let start = StartPosition::After(cursor.clone());
    source.subscribe_from(start).unwrap()
}

fn read_items(subscriber: &mut HubSubscriber) -> Vec<Item> {
    let mut items = Vec::new();
    while let Poll::Ready(Some(item)) = poll_next(subscriber) {
        items.push(item.unwrap());
    }
    items
}

#[test]
fn client_resumes_from_id_of_publisher() {
    let hub = Hub::new();
    let own = id("urn:uuid:5e94c686-2c0b-4f9b-958c-92ccc3bbb4eb");
    assert_eq!(publish(&hub, &["a"], "1", own.as_str()), own);
    publish(&hub, &["a", "b"], "2", "https://example.com/2?x=\"y\"");
    let last = hub.publish("b", "3").unwrap();
    let mut subscriber = resume(&hub, &own);
    assert!(!subscriber.has_gap());
    let items = read_items(&mut subscriber);
    let ids: Vec<_> = items.iter().filter_map(Item::cursor).cloned().collect();
    assert_eq!(ids, [id("https://example.com/2?x=\"y\""), last]);
    let topics = hub.topics_of(&id("https://example.com/2?x=\"y\""));
    assert_eq!(topics, Some(TopicSet::try_from(["a", "b"]).unwrap()));
    let history = hub.topic("b").unwrap().history(Some(&own), 10);
    assert_eq!((history.events.len(), history.has_gap), (2, false));
}

#[test]
fn forgotten_id_is_a_gap() {
    let hub = Hub::builder().max_publisher_ids(1).build();
    let first = publish(&hub, &["a"], "1", "x1");
    let second = publish(&hub, &["a"], "2", "x2");
    assert!(resume(&hub, &first).has_gap());
    assert_eq!(hub.topics_of(&first), None);
    assert!(!resume(&hub, &second).has_gap());
    // A repeated id names the first of its events: the client may get an event twice, and misses none.
    publish(&hub, &["a"], "3", "x2");
    let items = read_items(&mut resume(&hub, &second));
    assert!(matches!(&items[..], [Item::Event(event)] if event.payload().as_text() == Some("3")));
}

#[test]
fn ids_with_a_meaning_are_replaced() {
    let hub = Hub::new();
    let own = hub.publish("a", "1").unwrap();
    for forged in [EventId::FINISHED, "~x", own.as_str()] {
        let given = publish(&hub, &["a"], "2", forged);
        assert_ne!(given.as_str(), forged);
        assert!(!resume(&hub, &given).has_gap());
    }
}

#[tokio::test]
async fn event_without_history_has_no_id() {
    let hub = Hub::builder().max_events(0).build();
    let mut subscriber = resume(&hub, &id("x"));
    read_items(&mut subscriber);
    publish(&hub, &["a"], "1", "x1");
    let items = read_items(&mut subscriber);
    assert!(matches!(&items[..], [Item::Event(event)] if event.id().is_none()));
    assert_eq!(hub.topics_of(&id("x1")), None);
}

#[tokio::test]
async fn long_topic_is_on_the_wire() {
    let topic = Topic::new("x".repeat(1024)).unwrap();
    let event = tower_push::Event::text("1").with_event_topic(topic.clone());
    let push = Push::new(tokio_stream::iter([event]));
    let mut head = get_request_head("/", &[]);
    let body = Sse::new().respond(&mut head, push).await.into_body();
    assert_eq!(
        body_text(body).await,
        format!(":\ntopic: {topic}\ndata: 1\n\n")
    );
}
