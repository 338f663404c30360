//! A hub with a broker: publications, what reaches the clients of other servers, resumes from the broker, and the end of a feed.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use testkit::{CommandingSubscriber, HttpConnection, HttpVersion, TestServer, next_item};
use tower::ServiceExt;
use tower_push::{
    EventId, GapReason, Hub, Item, PushBody,
    source::{
        StartPosition,
        hub::{HubCommands, HubSubscriber, PublishOptions, TopicAccess, TopicPattern, Topics},
        relay::UpstreamLimits,
    },
};

use crate::{
    broker::{Broker, Node, id},
    requests::subscribe_to,
};

fn two_nodes(broker: &Broker) -> [Node; 2] {
    [(); 2].map(|()| broker.node(Hub::builder(), 0))
}

fn subscribe(node: &Node, topics: &[&str], start: StartPosition) -> HubSubscriber {
    let source = node.hub.topics(topics.to_vec()).unwrap();
    source.subscribe_from(start).unwrap()
}

/// Reads items until there is an event, and returns its text.
async fn next_text(subscriber: &mut HubSubscriber) -> String {
    loop {
        match next_item(subscriber).await {
            Item::Event(event) => return event.payload().as_text().unwrap().to_owned(),
            Item::Cursor(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn publication_returns_id_of_broker() {
    let broker = Broker::default();
    broker.lock().delay = Duration::from_millis(5);
    let mut nodes = two_nodes(&broker);
    let mut subscriber = subscribe(&nodes[1], &["news", "sport"], StartPosition::Now);
    let hub = &nodes[0].hub;
    assert!(hub.publish("news", "x").unwrap_err().is_wait_required());
    let topic = hub.topic("news").unwrap();
    assert!(topic.publish("x").unwrap_err().is_wait_required());
    let options = PublishOptions::new();
    let first = hub.publish_and_wait(["sport", "news"], "a", &options).await;
    assert_eq!(first.unwrap(), id(0, 1));
    assert_eq!(
        topic.publish_and_wait("b", &options).await.unwrap(),
        id(0, 2)
    );
    assert_eq!((topic.len(), nodes[1].hub.counts().published), (0, 0));
    nodes[1].push(usize::MAX);
    assert_eq!(next_text(&mut subscriber).await, "a");
    assert_eq!(next_text(&mut subscriber).await, "b");
    broker.lock().failures = 1;
    let failed = nodes[0].hub.publish_and_wait("news", "c", &options).await;
    let failed = failed.unwrap_err();
    assert!(failed.is_publish_failed());
    let source = std::error::Error::source(&failed).unwrap();
    assert_eq!(source.to_string(), "the broker is away");
}

#[tokio::test]
async fn id_of_publisher_is_refused() {
    let broker = Broker::default();
    let node = broker.node(Hub::builder(), 0);
    let options = PublishOptions::new().id(EventId::new("chosen").unwrap());
    let refused = node.hub.publish_and_wait("news", "a", &options).await;
    assert!(refused.unwrap_err().is_publisher_id_unsupported());
    assert_eq!(broker.lock().last_number(), 0);
}

#[tokio::test(start_paused = true)]
async fn flush_window_holds_events_of_feed_together() {
    let window = Duration::from_millis(100);
    let broker = Broker::default();
    let mut node = broker.node(Hub::builder().flush_window(window), 0);
    let mut subscriber = subscribe(&node, &["a"], StartPosition::Now);
    assert!(matches!(next_item(&mut subscriber).await, Item::Cursor(_)));
    let has_item = async |subscriber: &mut HubSubscriber| {
        let next = tokio::time::timeout(Duration::ZERO, subscriber.next());
        next.await.is_ok()
    };
    // The first event after a quiet time is sent at once, and the next ones together.
    for text in ["1", "2", "3"] {
        broker.publish(&["a"], text);
        node.push(usize::MAX);
        if text == "1" {
            assert_eq!(next_text(&mut subscriber).await, "1");
        }
        assert!(!has_item(&mut subscriber).await);
    }
    tokio::time::advance(window).await;
    assert_eq!(next_text(&mut subscriber).await, "2");
    assert_eq!(next_text(&mut subscriber).await, "3");
    // A gap of the feed waits for no window, and neither does the end of the feed.
    broker.publish(&["a"], "4");
    node.push(usize::MAX);
    broker.lock().recreate();
    node.push(usize::MAX);
    let Item::Gap(gap) = next_item(&mut subscriber).await else {
        panic!("no gap");
    };
    assert_eq!(gap.reason, GapReason::Epoch);
    broker.publish(&["a"], "5");
    node.push(usize::MAX);
    drop(node);
    assert_eq!(next_text(&mut subscriber).await, "5");
    assert!(matches!(
        next_item(&mut subscriber).await,
        Item::Ended { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn idempotency_key_is_known_to_all_servers() {
    let broker = Broker::default();
    let nodes = two_nodes(&broker);
    let once = PublishOptions::new().idempotency_key("k");
    let first = nodes[0].hub.publish_and_wait("news", "a", &once).await;
    let second = nodes[1].hub.publish_and_wait("news", "a", &once).await;
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(broker.lock().last_number(), 1);
    let other = nodes[1].hub.publish_and_wait("sport", "a", &once).await;
    assert_eq!(other.unwrap(), id(0, 2));
}

#[tokio::test(start_paused = true)]
async fn sender_gets_no_echo_from_another_server() {
    let broker = Broker::default();
    let mut nodes = two_nodes(&broker);
    let source = |node: &Node| node.hub.topics("room").unwrap().sender("tab-1");
    let mut connected = source(&nodes[1])
        .subscribe_from(StartPosition::Now)
        .unwrap();
    let no_echo = PublishOptions::new().except("tab-1");
    let options = PublishOptions::new();
    nodes[0]
        .hub
        .publish_and_wait("room", "mine", &no_echo)
        .await
        .unwrap();
    nodes[0]
        .hub
        .publish_and_wait("room", "other", &options)
        .await
        .unwrap();
    nodes[1].push(usize::MAX);
    assert_eq!(next_text(&mut connected).await, "other");
    // The client returns to a server that does not have these events.
    let restarted = broker.node(Hub::builder(), 0);
    let start = StartPosition::After(id(0, 0));
    let mut returned = source(&restarted).subscribe_from(start.clone()).unwrap();
    assert_eq!(next_text(&mut returned).await, "other");
    let mut stranger = subscribe(&restarted, &["room"], start);
    assert_eq!(next_text(&mut stranger).await, "mine");
}

#[tokio::test(start_paused = true)]
async fn event_without_history_reaches_all_servers() {
    let broker = Broker::default();
    let mut nodes = two_nodes(&broker);
    let mut subscriber = subscribe(&nodes[1], &["room"], StartPosition::Now);
    let typing = PublishOptions::new().without_history();
    nodes[0]
        .hub
        .publish_and_wait("room", "typing", &typing)
        .await
        .unwrap();
    nodes[0]
        .hub
        .publish_and_wait("room", "hello", &PublishOptions::new())
        .await
        .unwrap();
    nodes[1].push(usize::MAX);
    assert_eq!(next_text(&mut subscriber).await, "typing");
    assert_eq!(next_text(&mut subscriber).await, "hello");
    nodes[0].push(usize::MAX);
    let mut returned = subscribe(&nodes[0], &["room"], StartPosition::After(id(0, 0)));
    assert_eq!(next_text(&mut returned).await, "hello");
    // The id of an event without history is a cursor, too.
    let mut returned = subscribe(&nodes[0], &["room"], StartPosition::After(id(0, 1)));
    assert_eq!(next_text(&mut returned).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn clients_with_one_cursor_share_reads() {
    let broker = Broker::default();
    for number in 1..=1000 {
        let topic = if number % 10 == 0 { "news" } else { "other" };
        broker.publish(&[topic], &number.to_string());
    }
    let node = broker.node(Hub::builder(), 5);
    broker.lock().delay = Duration::from_millis(1);
    let start = StartPosition::After(id(0, 500));
    let subscribers: Vec<_> = (0..1000)
        .map(|_| subscribe(&node, &["news"], start.clone()))
        .collect();
    for mut subscriber in subscribers {
        for number in (510..=1000).step_by(10) {
            assert_eq!(next_text(&mut subscriber).await, number.to_string());
        }
    }
    let counts = node.hub.counts();
    // 500 events in pages of 256.
    assert_eq!((counts.backend_resumes, counts.backend_reads), (1000, 2));
    assert_eq!((counts.lost_cursors, counts.failed_reads), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn backend_resume_fills_in_removed_topic() {
    let broker = Broker::default();
    let mut node = broker.node(Hub::builder().max_topics(1), 0);
    broker.publish(&["a"], "1");
    broker.publish(&["b"], "2");
    node.push(usize::MAX);
    // The hub knows the cursor, and has removed `a`.
    assert_eq!(node.hub.counts().topics, 1);
    let mut returned = subscribe(&node, &["a"], StartPosition::After(id(0, 0)));
    assert_eq!(next_text(&mut returned).await, "1");
    broker.publish(&["a"], "3");
    node.push(usize::MAX);
    assert_eq!(next_text(&mut returned).await, "3");
    assert_eq!(node.hub.counts().backend_resumes, 1);
}

#[tokio::test(start_paused = true)]
async fn pending_reads_are_counted() {
    let broker = Broker::default();
    (1..=10).for_each(|_| drop(broker.publish(&["a"], "x")));
    let node = broker.node(Hub::builder(), 1);
    broker.lock().delay = Duration::from_secs(1);
    let mut clients = [3, 3, 5].map(|number| {
        let start = StartPosition::After(id(0, number));
        subscribe(&node, &["a"], start)
    });
    for client in &mut clients {
        assert!(client.next().now_or_never().is_none());
    }
    // Two clients share a read.
    assert_eq!(node.hub.counts().pending_reads, 2);
    for client in &mut clients {
        next_text(client).await;
    }
    assert_eq!(node.hub.counts().pending_reads, 0);
}

#[tokio::test(start_paused = true)]
async fn client_that_is_too_far_behind_gets_gap() {
    let broker = Broker::default();
    (1..=100).for_each(|number| drop(broker.publish(&["a"], &number.to_string())));
    let limits = UpstreamLimits::new().max_page_events(10).max_scan(20);
    let node = broker.node(Hub::builder().upstream_limits(limits), 3);
    let mut returned = subscribe(&node, &["a"], StartPosition::After(id(0, 10)));
    for number in 11..=30 {
        assert_eq!(next_text(&mut returned).await, number.to_string());
    }
    let Item::Gap(gap) = next_item(&mut returned).await else {
        panic!("no gap");
    };
    assert_eq!(
        (gap.reason, gap.requested),
        (GapReason::Expired, Some(id(0, 30)))
    );
    assert_eq!((gap.resumed, gap.topic), (Some(id(0, 97)), None));
    assert_eq!(next_text(&mut returned).await, "98");
    assert_eq!(node.hub.counts().lost_cursors, 1);
}

#[tokio::test(start_paused = true)]
async fn limited_history_is_not_read_from_broker() {
    let broker = Broker::default();
    (1..=10).for_each(|number| drop(broker.publish(&["a"], &number.to_string())));
    let node = broker.node(Hub::builder(), 5);
    let access = |_, _| std::future::ready(TopicAccess::allow().max_history(2));
    let source = node
        .hub
        .subscribe(Topics::from_query("topic"))
        .authorize(access);
    let service = tower_push::service(source);
    let request = Request::get("/?topic=a").header("last-event-id", "0.2");
    let response = service
        .oneshot(request.body(PushBody::empty()).unwrap())
        .await
        .unwrap();
    let mut body = response.into_body();
    let mut text = String::new();
    while !text.contains("data: 10") {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        text.push_str(std::str::from_utf8(&frame).unwrap());
    }
    assert!(
        text.contains("epoch") && !text.contains("data: 8\n"),
        "{text}"
    );
    assert!(text.contains("data: 9\n"), "{text}");
    assert!(broker.lock().requests.is_empty());
}

#[tokio::test(start_paused = true)]
async fn pattern_resumes_from_broker() {
    let broker = Broker::default();
    for (topic, text) in [
        ("room/1", "1"),
        ("news", "2"),
        ("room/2", "3"),
        ("room/1", "4"),
    ] {
        broker.publish(&[topic], text);
    }
    let mut node = broker.node(Hub::builder().max_patterns(1), 1);
    let source = node.hub.matching([TopicPattern::prefix("room/")]);
    let start = StartPosition::After(id(0, 1));
    let mut returned = source.subscribe_from(start.clone()).unwrap();
    assert_eq!(next_text(&mut returned).await, "3");
    assert_eq!(next_text(&mut returned).await, "4");
    broker.publish(&["room/3"], "5");
    node.push(usize::MAX);
    assert_eq!(next_text(&mut returned).await, "5");
    let without_patterns = broker.node(Hub::builder(), 1);
    let source = without_patterns
        .hub
        .matching([TopicPattern::prefix("room/")]);
    let refused = source.subscribe_from(start).unwrap_err();
    assert!(refused.is_patterns_disabled());
}

#[tokio::test(start_paused = true)]
async fn gap_of_feed_reaches_every_client_once() {
    let broker = Broker::default();
    let mut node = broker.node(Hub::builder().max_patterns(1), 0);
    let pattern = node.hub.matching([TopicPattern::prefix("")]);
    let mut clients = [
        subscribe(&node, &["a"], StartPosition::Now),
        subscribe(&node, &["a", "b"], StartPosition::Now),
        pattern.subscribe_from(StartPosition::Now).unwrap(),
    ];
    broker.publish(&["a"], "unread");
    node.push(usize::MAX);
    broker.lock().recreate();
    broker.lock().recreate();
    broker.publish(&["b"], "1");
    broker.publish(&["a"], "2");
    node.push(usize::MAX);
    for client in &mut clients {
        assert!(matches!(next_item(client).await, Item::Cursor(_)));
        let Item::Gap(gap) = next_item(client).await else {
            panic!("no gap");
        };
        assert_eq!((gap.reason, gap.topic), (GapReason::Epoch, None));
        assert_eq!((gap.resumed, gap.missed), (Some(id(2, 0)), None));
    }
    assert_eq!(next_text(&mut clients[0]).await, "2");
    assert_eq!(next_text(&mut clients[1]).await, "1");
    assert_eq!(next_text(&mut clients[1]).await, "2");
    assert_eq!(next_text(&mut clients[2]).await, "1");
    assert_eq!(node.hub.counts().feed_gaps, 1);
    // A cursor before the gap is of another broker.
    let mut returned = subscribe(&node, &["a"], StartPosition::After(id(0, 1)));
    let Item::Gap(gap) = next_item(&mut returned).await else {
        panic!("no gap");
    };
    assert_eq!(
        (gap.reason, gap.resumed),
        (GapReason::Epoch, Some(id(2, 0)))
    );
    assert_eq!(next_text(&mut returned).await, "2");
}

#[tokio::test(start_paused = true)]
async fn streams_end_after_feed() {
    let broker = Broker::default();
    let mut node = broker.node(Hub::builder(), 0);
    let mut connected = subscribe(&node, &["a"], StartPosition::Now);
    // This client is ahead of the feed.
    broker.publish(&["a"], "1");
    broker.publish(&["b"], "2");
    let mut ahead = subscribe(&node, &["a"], StartPosition::After(id(0, 2)));
    assert!(
        tokio::time::timeout(Duration::from_secs(1), ahead.next())
            .await
            .is_err()
    );
    node.push(1);
    let hub = node.hub.clone();
    drop(node);
    assert_eq!(next_text(&mut connected).await, "1");
    for mut subscriber in [connected, ahead] {
        assert!(matches!(
            next_item(&mut subscriber).await,
            Item::Ended { .. }
        ));
        assert!(subscriber.next().await.is_none());
    }
    let late = hub
        .topic("a")
        .unwrap()
        .subscribe_from(StartPosition::Oldest);
    let mut late = late.unwrap();
    assert_eq!(next_text(&mut late).await, "1");
    assert!(matches!(next_item(&mut late).await, Item::Ended { .. }));
}

#[tokio::test(start_paused = true)]
async fn failed_read_ends_stream_with_time_to_return() {
    let broker = Broker::default();
    (1..=10).for_each(|_| drop(broker.publish(&["a"], "x")));
    let node = broker.node(Hub::builder(), 1);
    broker.lock().failures = 1;
    let mut returned = subscribe(&node, &["a"], StartPosition::After(id(0, 3)));
    let Item::Ended { retry } = next_item(&mut returned).await else {
        panic!("no end");
    };
    assert!((Duration::from_millis(2500)..=Duration::from_millis(7500)).contains(&retry));
    assert!(returned.next().await.is_none());
    assert_eq!(node.hub.counts().unavailable, 1);
}

#[tokio::test(start_paused = true)]
async fn revoked_client_gets_no_page() {
    let broker = Broker::default();
    (1..=10).for_each(|_| drop(broker.publish(&["a"], "secret")));
    let node = broker.node(Hub::builder(), 1);
    let topics = node.hub.subscribe(Topics::from_query("topic"));
    let service = tower_push::service(topics.without_authorization());
    let request = Request::get("/?topic=a").header("last-event-id", "0.3");
    let request = request.body(PushBody::empty()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(node.hub.revoke("a", |_| true).unwrap(), 1);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn members_without_presence_backend_are_refused() {
    let (_feed, hub) = Hub::builder().build_with_backend(Broker::default(), id(0, 0));
    let room = hub.presence("room").unwrap();
    let refused = room.enter("user/7", 1).unwrap_err();
    assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
    assert!(room.list().members.is_empty());
}

#[tokio::test]
async fn publisher_waits_for_broker() {
    let broker = Broker::default();
    let node = broker.node(Hub::builder(), 0);
    let publisher = node.hub.publisher().without_authorization();
    let post = |path: &str, body: &'static str| {
        let request = Request::post(path).header("content-type", "text/plain");
        let request = request.body(axum::body::Body::from(body)).unwrap();
        publisher.clone().oneshot(request)
    };
    let published = post("/news", "a").await.unwrap();
    assert_eq!(published.status(), StatusCode::OK);
    let body = published.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"id":"0.1"}"#);
    broker.lock().failures = 1;
    let failed = post("/news", "b").await.unwrap();
    assert_eq!(failed.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(failed.headers()["retry-after"], "5");
    assert_eq!(broker.lock().last_number(), 1);
}

#[tokio::test]
async fn commands_publish_through_broker() {
    let broker = Broker::default();
    let mut node = broker.node(Hub::builder(), 0);
    let topics = node.hub.subscribe(Topics::from_query("topic"));
    let access = |_, _| std::future::ready(TopicAccess::allow().with_publishing());
    let source = topics.authorize(access).commands(HubCommands::new());
    let server = TestServer::start(tower_push::service(source)).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let protocol = ("sec-websocket-protocol", "json.tower-push");
    let opened = client.open_websocket("/?topic=room", &[protocol]).await;
    let Ok(mut socket) = opened else {
        panic!("refused");
    };
    let mut answers = Vec::new();
    broker.lock().failures = 1;
    for reference in [1, 2] {
        let command =
            format!(r#"{{"publish":{{"topic":"room","data":"x","echo":true}},"ref":{reference}}}"#);
        socket.send_frame(0x81, command.as_bytes()).await;
    }
    while answers.len() < 3 {
        let frame = socket.next_frame().await.expect("a message");
        answers.push(String::from_utf8(frame.payload).unwrap());
    }
    assert_eq!(answers[0], r#"{"id":"0.0"}"#);
    assert!(
        answers[1].contains(r#""event":"hub.refused""#),
        "{}",
        answers[1]
    );
    assert!(answers[1].contains(r#""status":503"#), "{}", answers[1]);
    assert_eq!(
        answers[2],
        r#"{"topic":"room","event":"hub.published","data":{"id":"0.1","ref":2}}"#
    );
    node.push(usize::MAX);
    let frame = socket.next_frame().await.expect("the event");
    let event = String::from_utf8(frame.payload).unwrap();
    assert_eq!(event, r#"{"id":"0.1","topic":"room","data":"x"}"#);
}

#[tokio::test]
async fn feed_of_hub_that_is_gone_does_nothing() {
    let broker = Broker::default();
    let (mut feed, hub) = Hub::builder().build_with_backend(broker.clone(), id(0, 0));
    assert_eq!(feed.last_id(), Some(id(0, 0)));
    broker.publish(&["a"], "x");
    let event = broker.lock().events[0].clone();
    feed.push(event.clone()).unwrap();
    assert_eq!(feed.last_id(), Some(id(0, 1)));
    drop(hub);
    feed.push(event).unwrap();
    assert_eq!(feed.last_id(), None::<EventId>);
}

/// A client adds a topic while it reads pages of the broker. An event that it has got for another topic is in the log of the new topic, too.
#[tokio::test]
async fn topic_added_during_backend_resume_gets_events_of_earlier_pages() {
    let broker = Broker::default();
    let upstream = UpstreamLimits::new().max_page_events(1);
    let hub = Hub::builder().max_events(1).upstream_limits(upstream);
    let mut node = broker.node(hub, 0);
    for topics in [&["old"][..], &["old", "new"], &["old"], &["old"]] {
        broker.publish(topics, "x");
    }
    node.push(usize::MAX);
    broker.lock().delay = Duration::from_millis(100);
    let topics = node.hub.subscribe(Topics::from_query("topic"));
    let source = topics.without_authorization().commands(HubCommands::new());
    let server = TestServer::start(tower_push::service(source)).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let protocol = ("sec-websocket-protocol", "json.tower-push");
    let uri = "/?topic=old&last_event_id=0.0";
    let Ok(mut socket) = client.open_websocket(uri, &[protocol]).await else {
        panic!("refused");
    };
    let mut events = Vec::new();
    while events.len() < 5 {
        let frame = socket.next_frame().await.expect("a message");
        let record: Value = serde_json::from_slice(&frame.payload).unwrap();
        if let (Some(id), Some(topic)) = (record["id"].as_str(), record["topic"].as_str()) {
            events.push(format!("{id} {topic}"));
        }
        if events.len() == 2 && !events.contains(&"0.2 new".to_owned()) {
            let command = br#"{"subscribe":{"topic":"new","cursor":"0.0"}}"#;
            socket.send_frame(0x81, command).await;
        }
    }
    events.sort();
    assert_eq!(
        events,
        ["0.1 old", "0.2 new", "0.2 old", "0.3 old", "0.4 old"]
    );
}

/// The only first event of a new topic is the client's own, which it does not get. The next event of the topic is in the pages, although the server gets
/// it before the client reads.
#[tokio::test(start_paused = true)]
async fn event_after_first_events_does_not_precede_pages() {
    let broker = Broker::default();
    broker.publish(&["old"], "1");
    let hub = Hub::builder().start(StartPosition::Oldest).max_ids(2);
    let mut node = broker.node(hub, 1);
    let own = PublishOptions::new().except("tab-1");
    node.hub.publish_and_wait("new", "own", &own).await.unwrap();
    broker.publish(&["old"], "2");
    broker.publish(&["old"], "3");
    node.push(usize::MAX);
    let topics = Topics::from_query("topic").sender_from_query("sender");
    let source = node.hub.subscribe(topics).without_authorization();
    let uri = "/?topic=old&topic=new&fresh=new&sender=tab-1&last_event_id=0.2";
    let mut subscriber = subscribe_to(&source, uri).unwrap();
    broker.publish(&["old"], "4");
    broker.publish(&["new"], "5");
    node.push(usize::MAX);
    for text in ["2", "3", "4", "5"] {
        assert_eq!(next_text(&mut subscriber).await, text);
    }
}

/// A client leaves a new topic while it gets the first events of the topic, which precede the pages of its other topic.
#[tokio::test(start_paused = true)]
async fn unsubscribe_ends_first_events_of_new_topic() {
    let broker = Broker::default();
    (1..=100).for_each(|number| drop(broker.publish(&["new"], &number.to_string())));
    (1..=20).for_each(|number| drop(broker.publish(&["old"], &number.to_string())));
    let hub = Hub::builder()
        .start(StartPosition::Oldest)
        .max_events(100)
        .max_ids(5);
    let node = broker.node(hub, 110);
    let source = node.hub.subscribe(Topics::from_query("topic"));
    let source = source.without_authorization();
    let uri = "/?topic=old&topic=new&fresh=new";
    let mut client = CommandingSubscriber::subscribe(source, uri, Some(&id(0, 105))).unwrap();
    assert!(matches!(next_item(&mut client.items).await, Item::Event(_)));
    assert!(client.send(r#"{"unsubscribe":{"topic":"new"}}"#));
    let (mut left_at, mut topics) = (None, Vec::new());
    while let Ok(Some(item)) =
        tokio::time::timeout(Duration::from_secs(30), client.items.next()).await
    {
        if let Item::Event(event) | Item::EventWithCursor { event, .. } = item.unwrap() {
            match event.event_type() {
                Some(_) => left_at = Some(topics.len()),
                None => topics.push(event.topic().unwrap().as_str().to_owned()),
            }
        }
    }
    let left_at = left_at.expect("an answer");
    assert!(left_at < 80, "{left_at} events before the answer");
    assert_eq!(topics[left_at..], vec!["old"; 15]);
}

/// A client resumes a topic from the broker, and a pattern that matches the topic from now on. The log of the pattern has events of pages, too.
#[tokio::test(start_paused = true)]
async fn event_of_page_is_not_repeated_by_pattern() {
    let broker = Broker::default();
    broker.publish(&["room/1"], "1");
    let mut node = broker.node(Hub::builder().max_patterns(1), 0);
    let topics = Topics::from_query("topic").max_patterns(1);
    let source = (node.hub.subscribe(topics))
        .authorize(async |_, _| true)
        .authorize_patterns(async |_, _| TopicAccess::allow().max_history(0));
    let uri = "/?topic=room/1&pattern_prefix=room/&last_event_id=0.0";
    let mut subscriber = subscribe_to(&source, uri).unwrap();
    for (topics, text) in [(["room/1", "other"], "2"), (["room/2", "room/1"], "3")] {
        broker.publish(&topics, text);
    }
    broker.publish(&["room/1"], "4");
    node.push(usize::MAX);
    let mut texts = Vec::new();
    while let Ok(Some(item)) =
        tokio::time::timeout(Duration::from_secs(30), subscriber.next()).await
    {
        if let Item::Event(event) | Item::EventWithCursor { event, .. } = item.unwrap() {
            let names: Vec<_> = event.topics().iter().map(|topic| topic.as_str()).collect();
            texts.push(format!(
                "{} {}",
                event.payload().as_text().unwrap(),
                names.join(" ")
            ));
        }
    }
    assert_eq!(
        texts,
        ["1 room/1", "2 room/1", "3 room/1", "4 room/1", "3 room/2"]
    );
}
