//! A hub on a stream: what is in the messages, what clients of other servers get, and errors.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all};
use serde_json::json;
use testkit::{HubClient, NatsServer};
use tower_push::{
    Error, EventId, Hub,
    event::Payload,
    source::{
        StartPosition,
        hub::{HubBuilder, PublishOptions},
        relay::UpstreamLimits,
    },
};
use tower_push_nats::JetStreamHub;

use crate::nodes::{Operator, STREAM, builder};

pub(crate) async fn hub(server: &NatsServer) -> JetStreamHub {
    hub_with(server, Hub::builder(), 1024).await
}

async fn hub_with(server: &NatsServer, hub: HubBuilder, log_events: usize) -> JetStreamHub {
    let builder = builder(server).max_log_events(log_events);
    builder.connect_hub(hub).await.unwrap()
}

/// Starts a node whose clients read nearly everything in pages, of up to 10 events.
async fn hub_with_short_log(server: &NatsServer) -> JetStreamHub {
    let limits = UpstreamLimits::new().max_page_events(10);
    hub_with(server, Hub::builder().upstream_limits(limits), 1).await
}

async fn publish(node: &JetStreamHub, topics: &[&str], text: &str) -> EventId {
    publish_with(node, topics, text, &PublishOptions::new()).await
}

async fn publish_with(
    node: &JetStreamHub,
    topics: &[&str],
    text: &str,
    options: &PublishOptions,
) -> EventId {
    let published = node
        .hub()
        .publish_and_wait(topics.to_vec(), text.to_owned(), options);
    published.await.unwrap()
}

/// Publishes events to a topic: the numbers of the range.
async fn publish_numbers(node: &JetStreamHub, topic: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        publish(node, &[topic], &number.to_string()).await;
    }
}

fn nats_error(error: &Error) -> &tower_push_nats::Error {
    let source = std::error::Error::source(error).unwrap();
    source.downcast_ref().unwrap()
}

#[tokio::test]
async fn message_has_topics_and_options() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let operator = Operator::connect(&server).await;
    let mut messages = operator.subscribe("events.>").await;
    publish(&node, &["orders/42"], "one").await;
    let options = PublishOptions::new().except("tab 7").without_history();
    publish_with(&node, &["orders/42", "a b"], "two", &options).await;
    let once = PublishOptions::new().idempotency_key("k");
    publish_with(&node, &["news"], "three", &once).await;
    let mut read = async |subject: &str| {
        let message = messages.next().await.unwrap();
        assert_eq!(message.subject.as_str(), subject);
        let headers = message.headers.unwrap();
        let values = |name: &str| {
            let values = headers.get_all(name).map(|value| value.as_str());
            values.collect::<Vec<_>>().join(" ")
        };
        let names = [
            "Event-Topic",
            "Event-Except",
            "Event-History",
            "Nats-Msg-Id",
        ];
        let values = names.map(values).join("|");
        (String::from_utf8(message.payload.to_vec()).unwrap(), values)
    };
    assert_eq!(read("events.orders/42").await, ("one".into(), "|||".into()));
    let headers = "a%20b orders/42|tab%207|no|";
    assert_eq!(read("events.%topics").await, ("two".into(), headers.into()));
    // A hash of the topics, and the key.
    let headers = "|||dd9c4dd6083d06a8948919ecd39586bfa479d7a5:k";
    assert_eq!(read("events.news").await, ("three".into(), headers.into()));
}

#[tokio::test]
async fn client_moves_to_another_server() {
    let server = NatsServer::start("");
    let nodes = [hub(&server).await, hub(&server).await];
    let first = publish(&nodes[0], &["a"], "1").await;
    let mut client = HubClient::resume(nodes[1].hub(), &["a", "b"], &first);
    publish(&nodes[1], &["b"], "2").await;
    publish(&nodes[0], &["a", "b"], "3").await;
    client.expect_texts(&["2", "3"]).await;
    publish(&nodes[1], &["c"], "4").await;
    publish(&nodes[0], &["b", "c"], "5").await;
    publish(&nodes[1], &["a"], "6").await;
    // The client has another set of topics on the other server.
    client.move_to(nodes[0].hub(), &["b", "c"]);
    client.expect_texts(&["4", "5"]).await;
}

/// No stream exists when the servers start.
#[tokio::test]
async fn first_cursor_is_valid_on_all_servers() {
    let server = NatsServer::start("");
    let (first, second) = tokio::join!(hub(&server), hub(&server));
    let mut client = HubClient::connect(first.hub(), &["a"]).await;
    let start = client.cursor();
    client.move_to(second.hub(), &["a"]);
    publish(&first, &["a"], "1").await;
    client.expect_texts(&["1"]).await;
    // The cursor is also valid on a server that starts later.
    for node in [hub(&server).await, hub_with_short_log(&server).await] {
        let mut client = HubClient::resume(node.hub(), &["a"], &start);
        client.expect_texts(&["1"]).await;
    }
}

#[tokio::test]
async fn other_programs_publish_to_topics() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let operator = Operator::connect(&server).await;
    let mut news = HubClient::connect(node.hub(), &["news"]).await;
    let mut sport = HubClient::connect(node.hub(), &["sport"]).await;
    operator.publish("events", &[], "nowhere").await;
    // The subject of "news" is another one.
    operator.publish("events.%6Eews", &[], "nowhere").await;
    operator.publish("events.other", &[], "other").await;
    let topics = [("Event-Topic", "sport"), ("Event-Topic", "news")];
    operator.publish("events.%topics", &topics, "hello").await;
    // Topics in headers count with this subject only.
    operator.publish("events.other", &topics, "other").await;
    let json = [
        ("Content-Type", "application/json"),
        ("Event-Type", "score"),
    ];
    operator.publish("events.sport", &json, "[1]").await;
    operator.publish("events.news", &[], "last").await;
    for (client, topic) in [(&mut news, "news"), (&mut sport, "sport")] {
        let event = client.next_event().await;
        assert_eq!(event.payload().as_text(), Some("hello"));
        assert_eq!(event.topic().map(|topic| topic.as_str()), Some(topic));
    }
    news.expect_texts(&["last"]).await;
    let score = sport.next_event().await;
    assert!(matches!(score.payload(), Payload::Json { .. }));
    assert_eq!(score.event_type().unwrap().as_str(), "score");
}

#[tokio::test]
async fn stream_of_any_subjects_is_hub() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    operator
        .create_stream(json!({ "subjects": ["orders.*", "%topics"] }))
        .await;
    let builder = builder(&server).subject_prefix("");
    let builder = builder.publish_retry_time(Duration::ZERO);
    let node = builder.connect_hub(Hub::builder()).await.unwrap();
    let mut client = HubClient::connect(node.hub(), &["orders.42", "orders.43"]).await;
    operator.publish("orders.42", &[], "1").await;
    publish(&node, &["orders.43"], "2").await;
    publish(&node, &["orders.42", "other"], "3").await;
    client.expect_texts(&["1", "2", "3"]).await;
    // The stream does not have this subject.
    let options = PublishOptions::new();
    let published = node.hub().publish_and_wait("other", "x", &options);
    let error = published.await.unwrap_err();
    assert!(error.is_publish_failed());
    let error = nats_error(&error);
    assert!(
        error.is_wrong_stream() && !error.may_be_published(),
        "{error}"
    );
    assert!(error.to_string().contains("\"other\""), "{error}");
}

#[tokio::test]
async fn idempotency_key_is_known_to_all_servers() {
    let server = NatsServer::start("");
    let nodes = [hub(&server).await, hub(&server).await];
    let once = PublishOptions::new().idempotency_key("order 42 shipped");
    let first = publish_with(&nodes[0], &["a"], "x", &once).await;
    assert_eq!(publish_with(&nodes[1], &["a"], "x", &once).await, first);
    assert_ne!(publish_with(&nodes[1], &["b"], "x", &once).await, first);
    assert_ne!(
        publish_with(&nodes[1], &["a", "b"], "x", &once).await,
        first
    );
    let operator = Operator::connect(&server).await;
    let info = operator.stream_request("STREAM.INFO", json!({})).await;
    assert_eq!(info["state"]["messages"], 3);
}

#[tokio::test]
async fn sender_gets_no_echo_from_any_server() {
    let server = NatsServer::start("");
    let nodes = [hub(&server).await, hub(&server).await];
    let before = publish(&nodes[0], &["room"], "0").await;
    let no_echo = PublishOptions::new().except("tab 1\n");
    publish_with(&nodes[0], &["room"], "mine", &no_echo).await;
    publish(&nodes[0], &["room"], "other").await;
    let cold = hub_with_short_log(&server).await;
    for node in nodes.iter().chain([&cold]) {
        let source = node.hub().topics("room").unwrap();
        let subscribe = |sender: &'static str| {
            let start = StartPosition::After(before.clone());
            let source = source.clone().sender(sender);
            HubClient::from(source.subscribe_from(start).unwrap())
        };
        subscribe("tab 1\n").expect_texts(&["other"]).await;
        subscribe("tab 2").expect_texts(&["mine", "other"]).await;
    }
}

#[tokio::test]
async fn cold_resumes_read_only_their_topics() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let start = publish(&node, &["a"], "0").await;
    for number in 1..=600 {
        let topics: &[&str] = match number % 100 {
            0 => &["a"],
            50 => &["b", "a"],
            _ => &["b"],
        };
        publish(&node, topics, &number.to_string()).await;
    }
    let late = hub_with(&server, Hub::builder(), 10).await;
    let operator = Operator::connect(&server).await;
    let requests = operator.api_requests().await;
    let clients = (0..100).map(|_| {
        let mut client = HubClient::resume(late.hub(), &["a"], &start);
        async move {
            let texts = (1..=12).map(|number| (number * 50).to_string());
            let texts: Vec<_> = texts.collect();
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            client.expect_texts(&texts).await;
        }
    });
    join_all(clients).await;
    let counts = late.hub().counts();
    assert_eq!((counts.backend_resumes, counts.lost_cursors), (100, 0));
    // A page has at most 256 events, so the 600 events of all topics would take more.
    assert_eq!(counts.backend_reads, 1, "{counts:?}");
    // Two descriptions, the messages at both ends, and the first and the next message of two subjects. The readers of both nodes ask for a description
    // every 5 s.
    let requests = operator.api_requests().await - requests;
    assert!(requests <= 8 + 10, "{requests} requests");
}

/// Near the end of the stream, a page of topics costs no more than a page of all topics.
#[tokio::test]
async fn page_near_end_costs_two_requests() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let mut cursors = Vec::new();
    for number in 0..40 {
        cursors.push(publish(&node, &["a"], &number.to_string()).await);
    }
    let late = hub_with(&server, Hub::builder(), 1).await;
    let operator = Operator::connect(&server).await;
    let mut requests = operator.subscribe("$JS.API.*.*.EVENTS").await;
    for (number, cursor) in cursors[..20].iter().enumerate() {
        let mut client = HubClient::resume(late.hub(), &["a"], cursor);
        client.expect_texts(&[&(number + 1).to_string()]).await;
    }
    let pages = late.hub().counts().backend_reads;
    // The server delivers this message after all requests.
    operator.send("$JS.API.END.END.EVENTS", "").await;
    let mut counts = std::collections::HashMap::new();
    loop {
        let request = requests.next().await.unwrap().subject.to_string();
        match request.strip_prefix("$JS.API.").unwrap() {
            "END.END.EVENTS" => break,
            request => *counts.entry(request.to_owned()).or_insert(0) += 1,
        }
    }
    assert_eq!(
        counts.remove("DIRECT.GET.EVENTS"),
        Some(pages),
        "{counts:?}"
    );
    // The readers of both nodes ask for a description every 5 s.
    let descriptions = counts.remove("STREAM.INFO.EVENTS").unwrap();
    assert!(
        (pages..pages + 10).contains(&descriptions),
        "{descriptions} for {pages}"
    );
    assert!(pages >= 20 && counts.is_empty(), "{pages} {counts:?}");
}

#[tokio::test]
async fn trimmed_cursor_is_gap_and_rest_of_topic() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let start = publish(&node, &["a"], "0").await;
    publish_numbers(&node, "b", 0..30).await;
    publish(&node, &["a"], "1").await;
    publish_numbers(&node, "b", 30..50).await;
    publish(&node, &["a", "b"], "2").await;
    publish_numbers(&node, "b", 50..80).await;
    let operator = Operator::connect(&server).await;
    let late = hub_with_short_log(&server).await;
    let mut client = HubClient::resume(late.hub(), &["a"], &start);
    client.expect_texts(&["1", "2"]).await;
    operator.keep(45).await;
    let late = hub_with_short_log(&server).await;
    let mut client = HubClient::resume(late.hub(), &["a"], &start);
    assert_eq!(client.next().await, "expired None");
    client.expect_texts(&["2"]).await;
    publish(&node, &["a"], "3").await;
    client.expect_texts(&["3"]).await;
    // The messages of the topic are removed, and a message of another one is the oldest.
    operator.keep(10).await;
    let late = hub_with_short_log(&server).await;
    let mut client = HubClient::resume(late.hub(), &["a"], &start);
    assert_eq!(client.next().await, "expired None");
    client.expect_texts(&["3"]).await;
}

/// A deleted message leaves a hole, so that the numbers do not say whether a topic is concerned.
#[tokio::test]
async fn deleted_message_is_gap() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let start = publish(&node, &["a"], "0").await;
    publish_numbers(&node, "b", 0..30).await;
    let deleted = publish(&node, &["a"], "1").await;
    publish_numbers(&node, "b", 30..60).await;
    publish(&node, &["a"], "2").await;
    publish_numbers(&node, "b", 60..90).await;
    let operator = Operator::connect(&server).await;
    operator
        .delete_message(crate::nodes::sequence(&deleted))
        .await;
    let late = hub_with_short_log(&server).await;
    let mut client = HubClient::resume(late.hub(), &["a"], &start);
    let mut items = Vec::new();
    while items.last().is_none_or(|item| item != "2") {
        let item = client.next().await;
        if item != "cursor" {
            items.push(item);
        }
    }
    assert_eq!(items, ["expired None", "2"]);
}

#[tokio::test]
async fn deleted_stream_is_gap() {
    let server = NatsServer::start("");
    let nodes = [hub(&server).await, hub(&server).await];
    let mut client = HubClient::connect(nodes[0].hub(), &["a"]).await;
    publish(&nodes[0], &["a"], "1").await;
    client.expect_texts(&["1"]).await;
    let old = client.cursor();
    Operator::connect(&server).await.delete_stream().await;
    assert_eq!(client.next().await, "epoch None");
    publish(&nodes[1], &["a"], "2").await;
    client.expect_texts(&["2"]).await;
    for node in &nodes {
        let mut client = HubClient::resume(node.hub(), &["a"], &old);
        assert_eq!(client.next().await, "epoch None");
        client.expect_texts(&["2"]).await;
    }
}

#[tokio::test]
async fn cursors_of_other_streams_are_gaps() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let first = publish(&node, &["a"], "0").await;
    publish_numbers(&node, "b", 0..30).await;
    publish(&node, &["a"], "1").await;
    let stream = first.as_str().split('-').nth(1).unwrap();
    for node in [&node, &hub_with_short_log(&server).await] {
        for cursor in [
            "42",
            "2-aaaaaa-aaaaaa",
            "1716402-0~k3vq7a",
            &format!("1-{stream}-aaaaaa"),
            &format!("99-{stream}-aaaaaa"),
        ] {
            let mut client = HubClient::resume(node.hub(), &["a"], &cursor.parse().unwrap());
            assert_eq!(client.next().await, "epoch None", "{cursor}");
        }
    }
}

#[tokio::test]
async fn refused_publications_are_errors() {
    let mut server = NatsServer::start("max_payload: 1000");
    let builder = builder(&server).publish_retry_time(Duration::ZERO);
    let node = builder.connect_hub(Hub::builder()).await.unwrap();
    let hub = node.hub();
    let options = PublishOptions::new();
    let too_long = hub.publish_and_wait("a", "x".repeat(1001), &options).await;
    assert!(too_long.unwrap_err().is_too_long());
    // The topics do not fit into the message.
    let topics: Vec<_> = (0..500).map(|number| format!("topic {number}")).collect();
    let too_long = hub.publish_and_wait(topics, "x", &options).await;
    assert!(too_long.unwrap_err().is_too_long());
    let topics: Vec<_> = (0..1025).map(|number| number.to_string()).collect();
    let too_long = hub.publish_and_wait(topics, "x", &options).await;
    assert!(too_long.unwrap_err().is_too_long());
    assert!(hub.publish("a", "x").unwrap_err().is_wait_required());
    server.kill();
    let failed = hub.publish_and_wait("a", "x", &options).await.unwrap_err();
    assert!(failed.is_publish_failed());
    assert!(nats_error(&failed).is_unavailable());
}

#[tokio::test]
async fn wrong_stream_or_user_is_error() {
    let server = NatsServer::start(crate::connecting::USERS);
    let connect = async |user: &str, stream: &str| {
        let url = format!("nats://{user}:secret@127.0.0.1:{}", server.port());
        let servers = tower_push_nats::NatsServers::new(&url).unwrap();
        let builder = tower_push_nats::JetStream::builder(servers, stream);
        let builder = builder.subject_prefix("events").create_stream(false);
        builder.connect_hub(Hub::builder()).await
    };
    assert!(
        connect("guest", STREAM)
            .await
            .unwrap_err()
            .is_unauthorized()
    );
    assert!(connect("app", STREAM).await.unwrap_err().is_not_found());
    let writer = connect_app(&server).await;
    let start = publish(&writer, &["a"], "0").await;
    let reader = connect("reader", STREAM).await.unwrap();
    let mut client = HubClient::resume(reader.hub(), &["a"], &start);
    let options = PublishOptions::new();
    for topics in [&["a"][..], &["a", "b"]] {
        let published = reader
            .hub()
            .publish_and_wait(topics.to_vec(), "x", &options);
        let error = published.await.unwrap_err();
        let error = nats_error(&error);
        assert!(
            error.is_unauthorized() && !error.may_be_published(),
            "{error}"
        );
    }
    publish(&writer, &["a", "b"], "1").await;
    client.expect_texts(&["1"]).await;
}

async fn connect_app(server: &NatsServer) -> JetStreamHub {
    let url = format!("nats://app:secret@127.0.0.1:{}", server.port());
    let servers = tower_push_nats::NatsServers::new(&url).unwrap();
    let builder = tower_push_nats::JetStream::builder(servers, STREAM).subject_prefix("events");
    builder.connect_hub(Hub::builder()).await.unwrap()
}

/// A new client gets the last values that the node has read. A client with a cursor also gets those that only the stream has.
#[tokio::test]
async fn last_values_before_the_log_need_a_cursor() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let start = publish(&node, &["other"], "0").await;
    publish(&node, &["quiet"], "last value").await;
    publish_numbers(&node, "busy", 0..30).await;
    let late = hub_with(&server, Hub::builder().last_value_only(), 10).await;
    let topics = &["busy", "quiet"];
    let mut client = HubClient::subscribe(late.hub(), topics, StartPosition::Last(1));
    client.expect_texts(&["29"]).await;
    publish(&node, &["quiet"], "new value").await;
    client.expect_texts(&["new value"]).await;
    let mut client = HubClient::resume(late.hub(), topics, &start);
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != "new value") {
        texts.push(client.next().await);
    }
    assert!(texts.iter().any(|text| text == "last value"), "{texts:?}");

    // The stream has removed the values. Clients are told that events are missing.
    let operator = Operator::connect(&server).await;
    publish_numbers(&node, "busy", 30..60).await;
    operator.keep(20).await;
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
    publish(&node, &["quiet"], "kept").await;
    publish_numbers(&node, "busy", 60..70).await;
    let whole = hub_with(&server, Hub::builder().last_value_only(), 1000).await;
    let mut client = HubClient::subscribe(whole.hub(), topics, StartPosition::Last(1));
    client.expect_texts(&["kept", "69"]).await;
}

#[tokio::test]
async fn streams_end_with_last_clone() {
    let server = NatsServer::start("");
    let node = hub(&server).await;
    let mut client = HubClient::connect(node.hub(), &["a"]).await;
    drop(node);
    client.expect_end().await;
}
