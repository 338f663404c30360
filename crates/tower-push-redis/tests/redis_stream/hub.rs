//! A hub on a stream: what is in the entries, and what clients of other servers get.

use std::time::Duration;

use testkit::{
    CommandingSubscriber, HubClient, RedisProgram, RedisServer, TEST_TIMEOUT, next_item, wait_until,
};
use tokio::time::{sleep, timeout};
use tower_push::{
    EventId, Hub, Item,
    source::{
        StartPosition,
        hub::{HubBuilder, PublishOptions, Topics},
    },
};
use tower_push_redis::RedisHub;

use crate::nodes::{KEY, builder};

async fn hub(server: &RedisServer) -> RedisHub {
    hub_with(server, Hub::builder(), 1024).await
}

async fn hub_with(server: &RedisServer, hub: HubBuilder, log_events: usize) -> RedisHub {
    let builder = builder(server).max_log_events(log_events);
    builder.connect_hub(hub).await.unwrap()
}

fn subscribe(node: &RedisHub, topics: &[&str], start: StartPosition) -> HubClient {
    HubClient::subscribe(node.hub(), topics, start)
}

#[tokio::test]
async fn entry_has_topics_and_options() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = hub(&server).await;
    let options = PublishOptions::new().except("tab 7").without_history();
    let topics = ["orders/42", "news"];
    let id = node.hub().publish_and_wait(topics, "shipped", &options);
    let id = id.await.unwrap();
    let entry = server.command(&["XRANGE", KEY, "-", "+"]);
    let lines: Vec<_> = entry.lines().collect();
    let (entry_id, _) = id.as_str().split_once('~').unwrap();
    assert_eq!(lines[0], entry_id);
    let fields = "topic news topic orders/42 data shipped except tab 7 history no";
    assert_eq!(lines[1..].join(" "), fields);
}

#[tokio::test]
async fn client_moves_to_another_server() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [hub(&server).await, hub(&server).await];
    let options = PublishOptions::new();
    let publish = |node: usize, topic: &'static str, text: &'static str| {
        let (hub, options) = (nodes[node].hub().clone(), options.clone());
        async move { hub.publish_and_wait(topic, text, &options).await.unwrap() }
    };
    let first = publish(0, "a", "1").await;
    let mut client = subscribe(&nodes[1], &["a", "b"], StartPosition::After(first));
    publish(1, "b", "2").await;
    let third = publish(0, "a", "3").await;
    client.expect_texts(&["2", "3"]).await;
    publish(1, "c", "4").await;
    publish(0, "b", "5").await;
    publish(1, "a", "6").await;
    // The client has another set of topics on the other server.
    let mut client = subscribe(&nodes[0], &["b", "c"], StartPosition::After(third));
    client.expect_texts(&["4", "5"]).await;
}

/// The user may not do what the reader needs for a while.
#[tokio::test]
async fn lag_is_number_of_unread_entries() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = hub(&server).await;
    let mut client = HubClient::connect(node.hub(), &["a"]).await;
    let add = |text| server.command(&["XADD", KEY, "*", "topic", "a", "data", text]);
    let wait_until_read = async || {
        let wait = async {
            while node.lag().await.unwrap() > 0 {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(TEST_TIMEOUT, wait).await.expect("the reader lags");
    };
    add("1");
    client.expect_texts(&["1"]).await;
    wait_until_read().await;

    server.command(&["ACL", "SETUSER", "default", "-xrange"]);
    for text in ["2", "3", "4"] {
        add(text);
    }
    let describe = || format!("{:?}", node.reader_status());
    wait_until(|| node.reader_status().error.is_some(), describe).await;
    assert_eq!(node.lag().await.unwrap(), 3);
    server.command(&["ACL", "SETUSER", "default", "+xrange"]);
    client.expect_texts(&["2", "3", "4"]).await;
    wait_until_read().await;
}

/// No stream exists when the servers start.
#[tokio::test]
async fn first_cursor_is_valid_on_all_servers() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let (first, second) = tokio::join!(hub(&server), hub(&server));
    let mut client = HubClient::connect(first.hub(), &["a"]).await;
    let start = client.cursor();
    client.move_to(second.hub(), &["a"]);
    let options = PublishOptions::new();
    for text in ["1", "2"] {
        let published = first.hub().publish_and_wait("a", text, &options);
        published.await.unwrap();
    }
    client.expect_texts(&["1", "2"]).await;
    // The cursor is also valid on servers that start later.
    for log_events in [1, 1024] {
        let node = hub_with(&server, Hub::builder(), log_events).await;
        let mut client = HubClient::resume(node.hub(), &["a"], &start);
        client.expect_texts(&["1", "2"]).await;
        let cold_resumes = u64::from(log_events == 1);
        assert_eq!(node.hub().counts().backend_resumes, cold_resumes);
    }
    // The events are removed, and the stream is another one.
    server.command(&["XTRIM", KEY, "MAXLEN", "=", "1"]);
    let node = hub_with(&server, Hub::builder(), 1).await;
    let mut client = HubClient::resume(node.hub(), &["a"], &start);
    assert_eq!(client.next().await, "expired None");
    client.expect_texts(&["2"]).await;
    server.command(&["DEL", KEY]);
    let node = hub(&server).await;
    let mut client = HubClient::resume(node.hub(), &["a"], &start);
    assert_eq!(client.next().await, "epoch None");
}

#[tokio::test]
async fn other_programs_publish_to_topics() {
    let server = RedisServer::start(RedisProgram::Valkey, &[]);
    let node = hub(&server).await;
    let now = StartPosition::Now;
    let mut clients = ["news", "sport"].map(|topic| subscribe(&node, &[topic], now.clone()));
    let add = |fields: &str| {
        let command = format!("XADD {KEY} * {fields}");
        server.command(&command.split(' ').collect::<Vec<_>>());
    };
    add("data nowhere");
    add("data hello topic sport topic news");
    add("data unseen topic other");
    add("data last topic news");
    for (client, topic) in clients.iter_mut().zip(["news", "sport"]) {
        let event = client.next_event().await;
        assert_eq!(event.payload().as_text(), Some("hello"));
        assert_eq!(event.topic().map(|topic| topic.as_str()), Some(topic));
    }
    clients[0].expect_texts(&["last"]).await;
}

#[tokio::test]
async fn idempotency_key_is_known_to_all_servers() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [hub(&server).await, hub(&server).await];
    let once = PublishOptions::new().idempotency_key("order 42 shipped");
    let publish = |node: usize, topic: &'static str| {
        let (hub, once) = (nodes[node].hub().clone(), once.clone());
        async move { hub.publish_and_wait(topic, "x", &once).await.unwrap() }
    };
    let first = publish(0, "a").await;
    assert_eq!(publish(1, "a").await, first);
    assert_ne!(publish(1, "b").await, first);
    assert_eq!(server.command(&["XLEN", KEY]).trim(), "2");
}

#[tokio::test]
async fn sender_gets_no_echo_from_any_server() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [hub(&server).await, hub(&server).await];
    let hub = nodes[0].hub();
    let options = PublishOptions::new();
    let before = hub.publish_and_wait("room", "0", &options).await.unwrap();
    let no_echo = options.clone().except("tab 1");
    hub.publish_and_wait("room", "mine", &no_echo)
        .await
        .unwrap();
    hub.publish_and_wait("room", "other", &options)
        .await
        .unwrap();
    for node in &nodes {
        let source = node.hub().topics("room").unwrap();
        let start = StartPosition::After(before.clone());
        let subscribe = |sender: &'static str| {
            let source = source.clone().sender(sender);
            HubClient::from(source.subscribe_from(start.clone()).unwrap())
        };
        subscribe("tab 1").expect_texts(&["other"]).await;
        subscribe("tab 2").expect_texts(&["mine", "other"]).await;
    }
}

#[tokio::test]
async fn backend_resumes_read_pages_by_topic() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = hub(&server).await;
    let options = PublishOptions::new();
    let start = node
        .hub()
        .publish_and_wait("a", "0", &options)
        .await
        .unwrap();
    for number in 1..=600 {
        let topic = if number % 100 == 0 { "a" } else { "b" };
        let published = node
            .hub()
            .publish_and_wait(topic, number.to_string(), &options);
        published.await.unwrap();
    }
    // This server has only the newest events.
    let late = hub_with(&server, Hub::builder(), 10).await;
    let clients = (0..100).map(|_| subscribe(&late, &["a"], StartPosition::After(start.clone())));
    let clients: Vec<_> = clients.collect();
    let reads = server.call_count("xrange");
    for mut client in clients {
        client
            .expect_texts(&["100", "200", "300", "400", "500", "600"])
            .await;
    }
    let counts = late.hub().counts();
    assert_eq!((counts.backend_resumes, counts.lost_cursors), (100, 0));
    // The two readers look at their positions while they wait for entries.
    let reads = server.call_count("xrange") - reads;
    assert!(
        counts.backend_reads <= 20 && reads < 40,
        "{counts:?}, {reads} reads"
    );
}

#[tokio::test]
async fn publication_fails_with_error_of_this_crate() {
    let mut server = RedisServer::start(RedisProgram::Redis, &[]);
    let builder = builder(&server).publish_retry_time(Duration::ZERO);
    let node = builder
        .max_event_len(10)
        .connect_hub(Hub::builder())
        .await
        .unwrap();
    let options = PublishOptions::new();
    let too_long = node
        .hub()
        .publish_and_wait("a", "eleven bytes", &options)
        .await;
    assert!(too_long.unwrap_err().is_too_long());
    let without_wait = node.hub().publish("a", "x").unwrap_err();
    assert!(without_wait.is_wait_required());
    server.kill();
    let failed = node
        .hub()
        .publish_and_wait("a", "x", &options)
        .await
        .unwrap_err();
    assert!(failed.is_publish_failed());
    let source = std::error::Error::source(&failed).unwrap();
    let source = source.downcast_ref::<tower_push_redis::Error>().unwrap();
    assert!(source.is_unavailable());
}

/// A new client gets the last values that the node has read. A client with a cursor also gets those that only the stream has.
#[tokio::test]
async fn last_values_before_the_log_need_a_cursor() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = hub(&server).await;
    let options = PublishOptions::new();
    let publish = async |topic: &'static str, text: &str| {
        let published = node
            .hub()
            .publish_and_wait(topic, text.to_owned(), &options);
        published.await.unwrap()
    };
    let start = publish("other", "0").await;
    publish("quiet", "last value").await;
    for number in 0..30 {
        publish("busy", &number.to_string()).await;
    }
    let late = hub_with(&server, Hub::builder().last_value_only(), 10).await;
    let topics = &["busy", "quiet"];
    let mut client = HubClient::subscribe(late.hub(), topics, StartPosition::Last(1));
    client.expect_texts(&["29"]).await;
    publish("quiet", "new value").await;
    client.expect_texts(&["new value"]).await;
    let mut client = HubClient::resume(late.hub(), topics, &start);
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != "new value") {
        texts.push(client.next().await);
    }
    assert!(texts.iter().any(|text| text == "last value"), "{texts:?}");

    // The stream has removed the values. Clients are told that events are missing.
    for number in 30..60 {
        publish("busy", &number.to_string()).await;
    }
    server.command(&["XTRIM", KEY, "MAXLEN", "=", "20"]);
    let late = hub_with(&server, Hub::builder().last_value_only(), 10).await;
    let mut client = HubClient::resume(late.hub(), topics, &start);
    assert_eq!(client.next().await, "expired None");
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != "59") {
        texts.push(client.next().await);
    }
    assert!(
        !texts.iter().any(|text| text.ends_with("value")),
        "{texts:?}"
    );
    // A node whose log has the whole stream has all values that are left.
    publish("quiet", "kept").await;
    for number in 60..70 {
        publish("busy", &number.to_string()).await;
    }
    let whole = hub_with(&server, Hub::builder().last_value_only(), 1000).await;
    let mut client = HubClient::subscribe(whole.hub(), topics, StartPosition::Last(1));
    client.expect_texts(&["kept", "69"]).await;
}

#[tokio::test]
async fn streams_end_with_last_clone() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = hub(&server).await;
    let mut client = subscribe(&node, &["a"], StartPosition::Now);
    drop(node);
    client.expect_end().await;
}

/// Reads items until there is an event with this text, or an answer of this type.
async fn read_until(client: &mut CommandingSubscriber, end: &str) {
    loop {
        let item = next_item(&mut client.items).await;
        match item {
            Item::Event(event) | Item::EventWithCursor { event, .. } => {
                let name = event.event_type().map(|name| name.as_str());
                assert_eq!(name.or(event.payload().as_text()), Some(end));
                return;
            }
            Item::Cursor(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A client adds topics with a cursor that it got on another server. This server has only the newest event.
#[tokio::test]
async fn command_with_cursor_of_another_server_reads_stream() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let first = hub(&server).await;
    let options = PublishOptions::new();
    let publish = async |topic: &'static str, text: &'static str| {
        let published = first.hub().publish_and_wait(topic, text, &options);
        published.await.unwrap()
    };
    let cursor = publish("a", "1").await;
    for (topic, text) in [("a", "2"), ("b", "3"), ("a", "4"), ("b", "5")] {
        publish(topic, text).await;
    }
    let late = hub_with(&server, Hub::builder(), 1).await;
    let source = late.hub().subscribe(Topics::from_query("topic"));
    let source = source.without_authorization();
    let mut client = CommandingSubscriber::subscribe(source, "/?topic=b", None).unwrap();
    let subscribe = |topic: &str, cursor: &EventId| {
        format!(r#"{{"subscribe":{{"topic":"{topic}","cursor":"{cursor}"}}}}"#)
    };
    assert!(client.send(&subscribe("a", &cursor)));
    for expected in ["hub.subscribed", "2", "4"] {
        read_until(&mut client, expected).await;
    }
    // A cursor that this server's feed may not have reached yet.
    let cursor = publish("c", "6").await;
    publish("c", "7").await;
    assert!(client.send(&subscribe("c", &cursor)));
    for expected in ["hub.subscribed", "7"] {
        read_until(&mut client, expected).await;
    }
    for (topic, text) in [("a", "8"), ("b", "9"), ("c", "10")] {
        publish(topic, text).await;
        read_until(&mut client, text).await;
    }
    let counts = late.hub().counts();
    assert_eq!((counts.lost_cursors, counts.missed_on_resume), (0, 0));
    assert!(counts.backend_resumes >= 1, "{counts:?}");
}
