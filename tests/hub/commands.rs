//! Commands on an open WebSocket, as `docs/hub-protocol.md` describes them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use serde_json::Value;
use testkit::{
    CommandingSubscriber, HttpConnection, HttpVersion, TestServer, next_item, wait_until,
    websocket::WebSocketConnection,
};
use tower_push::{
    EventId, Hub, Item,
    event::Topic,
    source::{
        Rejection, StartPosition, Subscription,
        hub::{ClientTopicsSource, HubCommands, PublishOptions, TopicAccess, Topics},
    },
};

/// A client that sends commands.
pub(crate) struct Client {
    socket: WebSocketConnection,
    _server: TestServer,
}

impl Client {
    /// Connects to a source of the hub's topics. Topics that begin with `secret` are refused, and clients may publish to topics that begin with
    /// `room`.
    async fn connect(hub: &Hub, query: &str, commands: HubCommands) -> Self {
        let topics = Topics::from_query("topic").max_topics(3);
        let source = hub
            .subscribe(topics)
            .authorize(async |_: Subscription, topic: Topic| match topic.as_str() {
                name if name.starts_with("secret") => {
                    Err(Rejection::new(http::StatusCode::FORBIDDEN))
                }
                name if name.starts_with("room") => Ok(TopicAccess::allow().with_publishing()),
                "lounge" => Ok(TopicAccess::allow().present("ada", 1).with_members()),
                _ => Ok(TopicAccess::allow()),
            });
        Self::connect_to(source.commands(commands), query).await
    }

    pub(crate) async fn connect_to(source: ClientTopicsSource, query: &str) -> Self {
        let server = TestServer::start(tower_push::service(source)).await;
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let protocol = ("sec-websocket-protocol", "json.tower-push");
        let result = client
            .open_websocket(&format!("/?{query}"), &[protocol])
            .await;
        let socket = result.unwrap_or_else(|refusal| panic!("{}", refusal.head.status));
        Self {
            socket,
            _server: server,
        }
    }

    pub(crate) async fn send(&mut self, message: &str) {
        self.socket.send_frame(0x81, message.as_bytes()).await;
    }

    pub(crate) async fn next(&mut self) -> String {
        let frame = self.socket.next_frame().await.expect("a message");
        assert_eq!(
            frame.first_byte,
            0x81,
            "{:?}",
            String::from_utf8_lossy(&frame.payload)
        );
        String::from_utf8(frame.payload).unwrap()
    }

    pub(crate) async fn expect(&mut self, expected: &str) {
        assert_eq!(self.next().await, expected);
    }

    /// Reads messages until one contains `end`. Returns the texts of the events before it.
    pub(crate) async fn event_texts_until(&mut self, end: &str) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            let message = self.next().await;
            if message.contains(end) {
                return texts;
            }
            let record: Value = serde_json::from_str(&message).unwrap();
            texts.extend(record["data"].as_str().map(str::to_owned));
        }
    }

    /// Returns the code of the next frame, which closes the connection.
    pub(crate) async fn read_close(&mut self) -> u16 {
        let close = self.socket.next_frame().await.expect("a close frame");
        close.close_code_and_reason().expect("a close frame").0
    }
}

fn event(id: &EventId, topic: &str, data: &str) -> String {
    format!(r#"{{"id":"{id}","topic":"{topic}","data":{data}}}"#)
}

#[tokio::test]
async fn subscribed_client_is_a_member() {
    let hub = Hub::new();
    let lounge = hub.presence("lounge").unwrap();
    let mut client = Client::connect(&hub, "", HubCommands::new()).await;
    client.next().await; // the cursor
    client.send(r#"{"subscribe":{"topic":"lounge"}}"#).await;
    client
        .expect(r#"{"topic":"lounge","event":"hub.members","data":{"members":[]}}"#)
        .await;
    client
        .expect(r#"{"topic":"lounge","event":"hub.subscribed","data":{}}"#)
        .await;
    let joined = &hub.topic("lounge").unwrap().history(None, 1).events[0];
    let id = joined.id().unwrap();
    let data = r#"{"member":"ada","value":1}"#;
    client
        .expect(&format!(
            r#"{{"id":"{id}","topic":"lounge","event":"hub.join","data":{data}}}"#
        ))
        .await;
    assert_eq!(lounge.len(), 1);
    client.send(r#"{"unsubscribe":{"topic":"lounge"}}"#).await;
    client
        .expect(r#"{"topic":"lounge","event":"hub.unsubscribed","data":{}}"#)
        .await;
    assert!(lounge.is_empty());
}

#[tokio::test]
async fn client_subscribes_and_unsubscribes() {
    let hub = Hub::new();
    let mut client = Client::connect(&hub, "", HubCommands::new()).await;
    client.next().await; // the cursor
    client.send(r#"{"subscribe":{"topic":"a"},"ref":1}"#).await;
    client
        .expect(r#"{"topic":"a","event":"hub.subscribed","data":{"ref":1}}"#)
        .await;
    let first = hub.publish("a", "1").unwrap();
    hub.publish("b", "2").unwrap();
    client.expect(&event(&first, "a", "\"1\"")).await;
    client.send(r#"{"subscribe":{"topic":"a"}}"#).await;
    client
        .expect(r#"{"topic":"a","event":"hub.subscribed","data":{}}"#)
        .await;
    client
        .send(r#"{"unsubscribe":{"topic":"a"},"ref":"x"}"#)
        .await;
    client
        .expect(r#"{"topic":"a","event":"hub.unsubscribed","data":{"ref":"x"}}"#)
        .await;
    assert_eq!(hub.topic("a").unwrap().subscriber_count(), 0);
    hub.publish("a", "3").unwrap();
    client.send(r#"{"subscribe":{"topic":"b"}}"#).await;
    client
        .expect(r#"{"topic":"b","event":"hub.subscribed","data":{}}"#)
        .await;
    let last = hub.publish("b", "4").unwrap();
    client.expect(&event(&last, "b", "\"4\"")).await;
}

#[tokio::test]
async fn further_topic_catches_up_with_resumable_cursors() {
    let hub = Hub::builder().start(StartPosition::Last(2)).build();
    let publish = |topic: &str| hub.publish(topic, "x").unwrap();
    let ids = ["b", "b", "b", "a"].map(publish);
    let query = format!("topic=a&last_event_id={}", ids[3]);
    let mut client = Client::connect(&hub, &query, HubCommands::new()).await;
    let live = publish("a");
    client.expect(&event(&live, "a", "\"x\"")).await;
    client
        .send(&format!(
            r#"{{"subscribe":{{"topic":"b","cursor":"{}"}}}}"#,
            ids[0]
        ))
        .await;
    client
        .expect(r#"{"topic":"b","event":"hub.subscribed","data":{}}"#)
        .await;
    client.expect(&event(&ids[1], "b", "\"x\"")).await;
    // After the last of the older events, the client returns to the cursor that it had.
    let caught_up = format!(
        r#"{{"id":"{}","cursor":"{live}","topic":"b","data":"x"}}"#,
        ids[2]
    );
    client.expect(&caught_up).await;
    let next = publish("b");
    client.expect(&event(&next, "b", "\"x\"")).await;
    // A cursor of another hub.
    client
        .send(r#"{"subscribe":{"topic":"c","cursor":"7"}}"#)
        .await;
    client
        .expect(r#"{"topic":"c","event":"hub.subscribed","data":{}}"#)
        .await;
    let gap = client.next().await;
    assert!(
        gap.contains(r#""reason":"epoch","requested":"7""#) && gap.contains(r#""topic":"c""#),
        "{gap}"
    );
}

/// Returns a hub of last values, in which the value of `b` is far older than that of `a`, and the id of the newest event.
fn hub_of_last_values(b: &PublishOptions) -> (Hub, EventId) {
    let hub = Hub::builder().last_value_only().build();
    hub.publish("a", "first").unwrap();
    hub.publish_with("b", "value", b).unwrap();
    let publish = |number: u32| hub.publish("a", number.to_string()).unwrap();
    let ids: Vec<_> = (0..100).map(publish).collect();
    (hub, ids[99].clone())
}

/// Connects a client of `a` that has everything, and adds `b`. Returns the cursor that the client has after this.
async fn add_older_value(hub: &Hub, last: &EventId) -> (Vec<String>, EventId) {
    let topics = Topics::from_query("topic").sender_from_query("sender");
    let source = hub.subscribe(topics).without_authorization();
    let source = source.commands(HubCommands::new());
    let query = format!("topic=a&sender=tab&last_event_id={last}");
    let mut client = Client::connect_to(source, &query).await;
    for command in ["subscribe", "unsubscribe"] {
        client
            .send(&format!(r#"{{"{command}":{{"topic":"b"}}}}"#))
            .await;
        // The topic is answered, and has caught up, before the second command arrives.
        if command == "subscribe" {
            client.next().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let (mut texts, mut cursor) = (Vec::new(), last.clone());
    loop {
        let message = client.next().await;
        if message.contains("hub.unsubscribed") {
            return (texts, cursor);
        }
        let record: Value = serde_json::from_str(&message).unwrap();
        texts.extend(record["data"].as_str().map(str::to_owned));
        let id = record["cursor"].as_str().or(record["id"].as_str());
        cursor = EventId::new(id.unwrap()).unwrap();
    }
}

/// After the older value of a new topic, the cursor is where it was. A client whose connection breaks then gets neither a gap nor an event.
#[tokio::test]
async fn cursor_comes_forward_after_older_value() {
    for (options, expected) in [
        (PublishOptions::new(), vec!["value"]),
        (PublishOptions::new().except("tab"), Vec::new()),
    ] {
        let (hub, last) = hub_of_last_values(&options);
        let (texts, cursor) = add_older_value(&hub, &last).await;
        assert_eq!(
            (texts, &cursor),
            (expected.iter().map(ToString::to_string).collect(), &last)
        );
        let source = hub.topics(["a", "b"]).unwrap();
        let mut returned = source.subscribe_from(StartPosition::After(cursor)).unwrap();
        assert!(returned.next().now_or_never().is_none());
    }
}

/// A client leaves the new topic while its older events come. The cursor then comes forward, although no event follows.
#[tokio::test]
async fn cursor_comes_forward_after_topic_is_left() {
    let hub = Hub::builder().start(StartPosition::Oldest).build();
    (0..100).for_each(|number| drop(hub.publish("b", number.to_string()).unwrap()));
    let last = hub.publish("a", "last").unwrap();
    let source = hub.subscribe(Topics::from_query("topic"));
    let uri = format!("/?topic=a&last_event_id={last}");
    let source = source.without_authorization();
    let mut client = CommandingSubscriber::subscribe(source, &uri, None).unwrap();
    client.send(r#"{"subscribe":{"topic":"b"}}"#);
    let answer = next_item(&mut client.items).await;
    assert!(matches!(answer, Item::Event(event) if event.id().is_none()));
    let first = next_item(&mut client.items).await;
    assert_ne!(first.cursor(), Some(&last));
    client.send(r#"{"unsubscribe":{"topic":"b"}}"#);
    let mut cursor = None;
    while let Some(item) = client.items.next().now_or_never() {
        let item = item.unwrap().unwrap();
        cursor = item.cursor().cloned().or(cursor);
    }
    assert_eq!(cursor, Some(last));
}

#[tokio::test]
async fn clients_publish_where_allowed() {
    let hub = Hub::new();
    let mut client = Client::connect(&hub, "topic=room/1", HubCommands::new()).await;
    client.next().await; // the cursor
    client
        .send(r#"{"publish":{"topic":"room/1","event":"chat","data":{"a":1}},"ref":7}"#)
        .await;
    let published = client.next().await;
    let id = hub.topic("room/1").unwrap().history(None, 1).events[0]
        .id()
        .unwrap()
        .clone();
    assert_eq!(
        published,
        format!(r#"{{"topic":"room/1","event":"hub.published","data":{{"id":"{id}","ref":7}}}}"#)
    );
    client
        .expect(&format!(
            r#"{{"id":"{id}","topic":"room/1","event":"chat","data":{{"a":1}}}}"#
        ))
        .await;
    for _ in 0..2 {
        client
            .send(r#"{"publish":{"topic":"room/1","data":"quiet","echo":false,"key":"k"}}"#)
            .await;
        assert!(client.next().await.contains("hub.published"));
    }
    assert_eq!(
        hub.topic("room/1").unwrap().len(),
        2,
        "the second is a repetition"
    );
    for (topic, status) in [("a", 403), ("secret", 403)] {
        client
            .send(&format!(r#"{{"publish":{{"topic":"{topic}","data":1}}}}"#))
            .await;
        client.expect(&format!(r#"{{"topic":"{topic}","event":"hub.refused","data":{{"message":"Forbidden","status":{status}}}}}"#)).await;
    }
    assert!(hub.topic("a").unwrap().is_empty());
}

#[tokio::test]
async fn commands_are_refused_in_band() {
    let hub = Hub::new();
    let mut client = Client::connect(&hub, "topic=a", HubCommands::new().max_rate(8)).await;
    client.next().await; // the cursor
    client
        .send(r#"{"subscribe":{"topic":"secret"},"ref":1}"#)
        .await;
    client.expect(r#"{"topic":"secret","event":"hub.refused","data":{"message":"Forbidden","ref":1,"status":403}}"#).await;
    for topic in ["b", "c"] {
        client
            .send(&format!(r#"{{"subscribe":{{"topic":"{topic}"}}}}"#))
            .await;
        assert!(client.next().await.contains("hub.subscribed"));
    }
    client.send(r#"{"subscribe":{"topic":"d"}}"#).await;
    client.expect(r#"{"topic":"d","event":"hub.refused","data":{"message":"more than 3 topics","status":400}}"#).await;
    client.send("not JSON").await;
    client.expect(r#"{"event":"hub.refused","data":{"message":"a command is a JSON object","status":400}}"#).await;
    // The flood is answered, and bounded: at most 8 commands in a second are executed.
    for _ in 0..1000 {
        client.send(r#"{"unsubscribe":{"topic":"x"}}"#).await;
    }
    let mut executed = 0;
    for _ in 0..1000 {
        let answer = client.next().await;
        executed += usize::from(answer.contains("hub.unsubscribed"));
        assert!(
            answer.contains("hub.unsubscribed") || answer.contains("\"status\":429"),
            "{answer}"
        );
    }
    assert!(executed < 500, "{executed}");
    hub.publish("a", "still open").unwrap();
    assert!(client.next().await.contains("still open"));
}

#[tokio::test]
async fn revocation_ends_socket_with_commands() {
    let hub = Hub::new();
    let mut client = Client::connect(&hub, "", HubCommands::new()).await;
    client.next().await; // the cursor
    client.send(r#"{"subscribe":{"topic":"a"}}"#).await;
    client.next().await;
    assert_eq!(hub.revoke("a", |_| true).unwrap(), 1);
    client.next().await; // the end
    assert_eq!(client.socket.read_close().await.unwrap().0, 3005);
    assert_eq!(hub.topic("a").unwrap().subscriber_count(), 0);
}

/// Access is revoked while a program decides about a publication.
#[tokio::test]
async fn publication_is_decided_anew_after_revocation() {
    let hub = Hub::new();
    let (revoking_hub, decisions) = (hub.clone(), AtomicUsize::new(0));
    let authorize = move |_: Subscription, _: Topic| {
        let hub = revoking_hub.clone();
        let is_first = decisions.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            if is_first {
                hub.revoke("room", |_| true).unwrap();
                return Ok(TopicAccess::allow().with_publishing());
            }
            Err(Rejection::new(http::StatusCode::FORBIDDEN))
        }
    };
    let source = hub
        .subscribe(Topics::from_query("topic"))
        .authorize(authorize);
    let mut client = Client::connect_to(source.commands(HubCommands::new()), "").await;
    client.next().await; // the cursor
    client
        .send(r#"{"publish":{"topic":"room","data":1},"ref":1}"#)
        .await;
    let answer = client.next().await;
    assert!(
        answer.contains("hub.refused") && answer.contains("403"),
        "{answer}"
    );
    assert_eq!(hub.counts().published, 0);
}

/// Access is revoked during each decision. The client is told to try later, and the stream goes on.
#[tokio::test]
async fn command_is_refused_after_too_many_decisions() {
    let hub = Hub::new();
    let decisions = Arc::new(AtomicUsize::new(0));
    let (revoking_hub, counted) = (hub.clone(), decisions.clone());
    let authorize = move |_: Subscription, topic: Topic| {
        if topic.as_str() == "busy" {
            counted.fetch_add(1, Ordering::Relaxed);
            revoking_hub.revoke("other", |_| true).unwrap();
        }
        std::future::ready(TopicAccess::allow().with_publishing())
    };
    let source = hub
        .subscribe(Topics::from_query("topic"))
        .authorize(authorize);
    let mut client = CommandingSubscriber::subscribe(source, "/?topic=quiet", None).unwrap();
    assert!(matches!(
        next_item(&mut client.items).await,
        Item::Cursor(_)
    ));
    for command in [
        r#"{"subscribe":{"topic":"busy"},"ref":1}"#,
        r#"{"publish":{"topic":"busy","data":1},"ref":1}"#,
    ] {
        assert!(client.send(command));
        let Item::Event(answer) = next_item(&mut client.items).await else {
            panic!("no answer");
        };
        assert_eq!(answer.event_type().unwrap().as_str(), "hub.refused");
        let data: Value = serde_json::from_slice(answer.payload().as_bytes()).unwrap();
        assert_eq!((&data["status"], &data["ref"]), (&503.into(), &1.into()));
        assert_eq!(decisions.swap(0, Ordering::Relaxed), 8);
    }
    assert_eq!(hub.counts().published, 0);
    hub.publish("quiet", "still open").unwrap();
    let event = next_item(&mut client.items).await;
    assert!(matches!(event, Item::Event(event) if event.payload().as_text() == Some("still open")));
}

/// A client subscribes and unsubscribes as fast as it can, to other topics each time. Nothing of it remains.
#[tokio::test]
async fn flood_of_subscriptions_leaves_nothing() {
    const TOPICS: usize = 5_000;
    let hub = Hub::builder().max_events(0).build();
    let mut client = Client::connect(&hub, "topic=a", HubCommands::new().max_rate(u32::MAX)).await;
    for first in (0..TOPICS).step_by(100) {
        let topics = first..first + 100;
        for topic in topics.clone() {
            let name = format!(r#"{{"topic":"flood/{topic}"}}"#);
            client.send(&format!(r#"{{"subscribe":{name}}}"#)).await;
            client.send(&format!(r#"{{"unsubscribe":{name}}}"#)).await;
        }
        for topic in topics {
            for answer in ["hub.subscribed", "hub.unsubscribed"] {
                client
                    .expect(&format!(
                        r#"{{"topic":"flood/{topic}","event":"{answer}","data":{{}}}}"#
                    ))
                    .await;
            }
        }
    }
    assert_eq!(hub.counts().topics, 1);
    hub.publish("a", "still open").unwrap();
    assert!(client.next().await.contains("still open"));
}

#[tokio::test]
async fn full_hub_refuses_topics_until_one_is_free() {
    let hub = Hub::builder().max_topics(1).build();
    let source = hub
        .subscribe(Topics::from_query("topic"))
        .without_authorization();
    let server = TestServer::start(tower_push::service(source.clone())).await;
    let mut connection = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let stream = connection.get("/?topic=a", &[]).await;
    assert_eq!(stream.head.status, 200);
    let mut other = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let refused = other.get("/?topic=b", &[]).await;
    assert_eq!(refused.head.status, 503);
    assert_eq!(refused.header("retry-after"), Some("10"));
    let mut client = Client::connect_to(source.commands(HubCommands::new()), "").await;
    client.next().await; // the cursor
    client.send(r#"{"subscribe":{"topic":"b"},"ref":1}"#).await;
    let refused = client.next().await;
    assert!(
        refused.contains("hub.refused") && refused.contains(r#""status":503"#),
        "{refused}"
    );
    drop((stream, connection));
    wait_until(|| hub.counts().topics == 0, || "the topic is still there").await;
    client.send(r#"{"subscribe":{"topic":"b"},"ref":2}"#).await;
    client
        .expect(r#"{"topic":"b","event":"hub.subscribed","data":{"ref":2}}"#)
        .await;
    assert_eq!(hub.counts().topics, 1);
}
