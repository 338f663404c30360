//! A guard counts events and gaps by a label of their topics.

use testkit::{body_text, get_request_head};
use tower_push::{
    Guard, Hub, Push,
    source::StartPosition,
    transport::{LongPoll, Sse, Transport},
};

/// Polls once, and returns the response's text.
async fn poll(guard: &Guard, push: Push, cursor: &str) -> String {
    let mut head = get_request_head("/", &[("last-event-id", cursor)]);
    let response = guard.wrap(LongPoll::new()).respond(&mut head, push).await;
    body_text(response.into_body()).await
}

#[tokio::test]
async fn events_and_gaps_are_counted_by_label() {
    let hub = Hub::builder().max_events(2).build();
    let guard = Guard::builder()
        .topic_labels(2, |topic| {
            topic.as_str().split('/').next().unwrap_or_default()
        })
        .build();
    let cursor = hub.publish("start", "x").unwrap();
    for (topic, text) in [
        ("orders/1", "1"),
        ("orders/1", "22"),
        ("orders/1", "333"),
        ("orders/2", "4444"),
        ("users/7", "5"),
        ("rooms/1", "6"),
        ("rooms/2", "7"),
        ("news", "8"),
    ] {
        hub.publish(topic, text).unwrap();
    }
    let names = [
        "orders/1", "orders/2", "users/7", "rooms/1", "rooms/2", "news",
    ];
    let source = || Push::new(hub.topics(names).unwrap());
    poll(&guard, source(), cursor.as_str()).await;
    let counts = guard.counts();
    let labels: Vec<_> = counts
        .by_topic_label
        .iter()
        .map(|(label, counts)| (&**label, counts.events, counts.bytes, counts.gaps))
        .collect();
    // One event of `orders/1` is missing. `rooms` and `news` exceed the maximum of two labels.
    assert_eq!(
        labels,
        [("orders", 3, 9, 1), ("other", 3, 3, 0), ("users", 1, 1, 0)]
    );
    assert_eq!((counts.events, counts.bytes, counts.gaps), (7, 13, 1));
    poll(&guard, source(), cursor.as_str()).await;
    assert_eq!(guard.counts().by_topic_label["orders"].events, 6);
    let text = format!("{:?}", guard.counts());
    assert!(text.contains("by_topic_label"), "{text}");
}

#[tokio::test]
async fn number_of_labels_is_bounded() {
    let hub = Hub::new();
    let guard = Guard::builder()
        .topic_labels(10, |topic| topic.as_str())
        .build();
    let names: Vec<_> = (0..100).map(|number| format!("user/{number}")).collect();
    let cursor = hub.publish("start", "x").unwrap();
    for name in &names {
        hub.publish(name.as_str(), "x").unwrap();
    }
    let source = hub.topics(names).unwrap().with_start(StartPosition::Now);
    poll(&guard, Push::new(source), cursor.as_str()).await;
    let by_label = guard.counts().by_topic_label;
    assert_eq!((by_label.len(), by_label["other"].events), (11, 90));
}

#[tokio::test]
async fn topics_are_not_counted_unless_asked() {
    let hub = Hub::builder().start(StartPosition::Oldest).build();
    hub.publish("a", "x").unwrap();
    let guard = Guard::new();
    let mut head = get_request_head("/", &[]);
    let push = Push::new(hub.topic("a").unwrap());
    let mut body = guard
        .wrap(Sse::new())
        .respond(&mut head, push)
        .await
        .into_body();
    http_body_util::BodyExt::frame(&mut body)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(guard.counts().events, 1);
    assert!(guard.counts().by_topic_label.is_empty());
}
