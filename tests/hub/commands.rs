//! Commands on an open WebSocket, as `docs/hub-protocol.md` describes them.

use serde_json::Value;
use testkit::{
    HttpConnection, HttpVersion, TestServer, wait_until, websocket::WebSocketConnection,
};
use tower_push::{
    EventId, Hub,
    event::Topic,
    source::{
        Rejection, StartPosition, Subscription,
        hub::{ClientTopicsSource, HubCommands, TopicAccess, Topics},
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
        let topics = Topics::from_query("topic").at_most(3);
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
    let mut client = Client::connect(&hub, "topic=a", HubCommands::new().max_per_second(8)).await;
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

/// A client subscribes and unsubscribes as fast as it can, to other topics each time. Nothing of it remains.
#[tokio::test]
async fn flood_of_subscriptions_leaves_nothing() {
    const TOPICS: usize = 5_000;
    let hub = Hub::builder().max_events(0).build();
    let mut client =
        Client::connect(&hub, "topic=a", HubCommands::new().max_per_second(u32::MAX)).await;
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
