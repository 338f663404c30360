//! Publications: idempotency, trimming, limits.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use testkit::{NatsServer, RelayClient, wait_until};
use tower_push::{
    Event, Hub, Item,
    event::Payload,
    source::{StartPosition, hub::PublishOptions},
};

use crate::nodes::{Monitoring, Operator, builder, node, publish_numbers, sequence};

#[tokio::test]
async fn event_keeps_its_fields() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let mut subscriber = node.relay().subscribe_from(StartPosition::Oldest);
    let event = Event::json_text(r#"{"a":"b\n"}"#).unwrap();
    let event = event
        .with_type("temperature")
        .unwrap()
        .with_topic("rooms/7")
        .unwrap();
    let id = node
        .publish(&event.clone().with_id("ignored").unwrap())
        .await
        .unwrap();
    let read = loop {
        if let Item::Event(read) = subscriber.next().await.unwrap().unwrap() {
            break read;
        }
    };
    assert_eq!(read.id(), Some(&id));
    assert_eq!(read.event_type(), event.event_type());
    assert_eq!(read.topic(), event.topic());
    assert!(matches!(read.payload(), Payload::Json { .. }));
    assert_eq!(read.payload(), event.payload());
    let binary = Event::binary(vec![0xff, 0]);
    node.publish(&binary).await.unwrap();
    let Item::Event(read) = subscriber.next().await.unwrap().unwrap() else {
        panic!("no event")
    };
    assert_eq!(read.payload(), binary.payload());
}

#[tokio::test]
async fn publication_is_one_request() {
    const PUBLICATIONS: u64 = 100;
    /// The readers of the two nodes check the stream every 5 s.
    const MAX_OTHER_MESSAGES: u64 = 20;
    let monitoring = Monitoring::new();
    let server = NatsServer::start(&monitoring.config());
    let relay_node = node(&server).await;
    let hub_node = builder(&server).connect_hub(Hub::builder()).await.unwrap();
    let mut client = RelayClient::connect(relay_node.relay()).await;
    let before = monitoring.messages();
    publish_numbers(&relay_node, 0..PUBLICATIONS).await;
    let options = PublishOptions::new();
    for number in 0..PUBLICATIONS {
        let event = Event::text((PUBLICATIONS + 2 * number).to_string());
        let key = number.to_string();
        relay_node.publish_once(&event, &key).await.unwrap();
        let text = (PUBLICATIONS + 2 * number + 1).to_string();
        let published = hub_node.hub().publish_and_wait(["a", "b"], text, &options);
        published.await.unwrap();
    }
    client.expect_numbers(0..3 * PUBLICATIONS).await;
    let sent = || monitoring.messages() - before;
    wait_until(|| sent() >= 3 * PUBLICATIONS, || "no messages").await;
    let other = sent() - 3 * PUBLICATIONS;
    assert!(other <= MAX_OTHER_MESSAGES, "{other} other messages");
}

#[tokio::test]
async fn event_is_published_once() {
    let server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let mut client = RelayClient::connect(nodes[0].relay()).await;
    let first = nodes[0]
        .publish_once(&"0".into(), "order 7\n")
        .await
        .unwrap();
    assert!(!first.is_duplicate);
    client.expect_numbers([0]).await;
    assert_eq!(client.cursor(), first.id);
    // The second publication is on another node, and its event has other content.
    let second = nodes[1]
        .publish_once(&"x".into(), "order 7\n")
        .await
        .unwrap();
    assert_eq!((second.id, second.is_duplicate), (first.id, true));
    let third = nodes[1].publish_once(&"1".into(), "order 8").await.unwrap();
    assert!(!third.is_duplicate);
    client.expect_numbers([1]).await;
    assert_eq!(client.cursor(), third.id);
}

/// The server is killed while publications are in progress. Each is tried again until it has succeeded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_with_key_survive_restarts() {
    let mut server = NatsServer::start("");
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    let publisher = node.clone();
    let publish = tokio::spawn(async move {
        for number in 0..300_u64 {
            let event = Event::text(number.to_string());
            let key = number.to_string();
            publisher.publish_once(&event, &key).await.unwrap();
        }
    });
    for number in 0..300 {
        client.expect_numbers([number]).await;
        if number % 100 == 50 {
            server.kill();
            server.start_again();
        }
    }
    publish.await.unwrap();
}

#[tokio::test]
async fn stream_is_trimmed() {
    let server = NatsServer::start("");
    let by_number = builder(&server).max_len(30).connect().await.unwrap();
    let operator = Operator::connect(&server).await;
    publish_numbers(&by_number, 0..100).await;
    let info = operator.stream_request("STREAM.INFO", json!({})).await;
    assert_eq!(info["state"]["messages"], 30);
    operator.delete_stream().await;
    drop(by_number);

    let server = NatsServer::start("");
    let by_age = builder(&server)
        .max_age(Duration::from_secs(1))
        .max_log_events(1);
    let by_age = by_age.connect().await.unwrap();
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(by_age.relay()).await;
    publish_numbers(&by_age, 0..1).await;
    client.expect_numbers([0]).await;
    publish_numbers(&by_age, 1..5).await;
    while operator.stream_request("STREAM.INFO", json!({})).await["state"]["messages"] != 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.move_to(by_age.relay());
    client.expect(&["expired Some(4)"]).await;
    publish_numbers(&by_age, 5..6).await;
    client.expect_numbers([5]).await;
}

#[tokio::test]
async fn refused_publications_are_errors() {
    let server = NatsServer::start("max_payload: 1000");
    let operator = Operator::connect(&server).await;
    operator
        .create_stream(json!({ "max_msgs": 3, "discard": "new", "max_msg_size": 500 }))
        .await;
    let node = builder(&server).connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    // Above the limit of the server, and above that of the stream.
    for len in [1001, 600] {
        let large = Event::text("x".repeat(len));
        for error in [
            node.publish(&large).await.unwrap_err(),
            node.publish_once(&large, "key").await.unwrap_err(),
        ] {
            assert!(error.is_too_large() && !error.may_be_published(), "{error}");
        }
    }
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(error.is_full() && !error.may_be_published(), "{error}");
    operator.keep(0).await;
    publish_numbers(&node, 3..4).await;
    client.expect_numbers(3..4).await;
}

#[tokio::test]
async fn full_stream_is_error() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    operator
        .create_stream(json!({ "max_bytes": 1000, "discard": "new" }))
        .await;
    let node = builder(&server).connect().await.unwrap();
    let event = Event::text("x".repeat(200));
    let error = loop {
        if let Err(error) = node.publish(&event).await {
            break error;
        }
    };
    assert!(error.is_full() && !error.may_be_published(), "{error}");
}

#[tokio::test]
async fn full_account_is_error() {
    let config = r#"
no_auth_user: app
accounts { A: {
  users: [ { user: app, password: secret } ]
  jetstream: { max_file: 20000, max_mem: 20000 }
} }"#;
    let server = NatsServer::start(config);
    let node = builder(&server).connect().await.unwrap();
    let event = Event::text("x".repeat(500));
    let mut published = 0;
    let error = loop {
        match node.publish(&event).await {
            Ok(_) => published += 1,
            Err(error) => break error,
        }
        assert!(published < 100);
    };
    assert!(error.is_full() && !error.may_be_published(), "{error}");
    assert!(published > 0);
}

/// A mirror has the messages of another stream, which gets the publications.
#[tokio::test]
async fn publication_beside_mirror_may_be_published() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    let origin = json!({ "name": "ORIGIN", "subjects": ["events", "events.>"] });
    operator.request("STREAM.CREATE.ORIGIN", origin).await;
    let mirror = json!({ "mirror": { "name": "ORIGIN" }, "subjects": [] });
    operator.create_stream(mirror).await;
    let node = builder(&server).connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    let error = node.publish(&"0".into()).await.unwrap_err();
    assert!(
        error.is_wrong_stream() && error.may_be_published(),
        "{error}"
    );
    client.expect_numbers(0..1).await;
}

#[tokio::test]
async fn publication_to_missing_stream_is_error() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    operator.create_stream(json!({})).await;
    let builder = builder(&server).create_stream(false);
    let node = builder
        .publish_retry_time(Duration::ZERO)
        .connect()
        .await
        .unwrap();
    operator.delete_stream().await;
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    testkit::wait_until(
        || {
            node.reader_status()
                .error
                .is_some_and(|error| error.is_not_found())
        },
        || format!("{:?}", node.reader_status()),
    )
    .await;
    operator.create_stream(json!({})).await;
    let following = tower_push_nats::ReaderState::Following;
    crate::nodes::wait_for_state(&node, following).await;
    publish_numbers(&node, 0..1).await;
}

#[tokio::test]
async fn streams_with_any_subjects_are_feeds() {
    let server = NatsServer::start("");
    let operator = Operator::connect(&server).await;
    operator
        .create_stream(json!({ "subjects": ["orders.*", "news"] }))
        .await;
    let node = builder(&server).subject_prefix("").connect().await.unwrap();
    assert!(
        node.publish(&"x".into())
            .await
            .unwrap_err()
            .is_missing_topic()
    );
    let mut client = RelayClient::connect(node.relay()).await;
    for (number, topic) in ["orders.7", "news"].into_iter().enumerate() {
        let event = Event::text(number.to_string()).with_topic(topic).unwrap();
        let id = node.publish(&event).await.unwrap();
        assert_eq!(sequence(&id), number as u64 + 1);
    }
    client.expect_numbers(0..2).await;
}

/// The node learns of a new stream by the number of its own publication.
#[tokio::test]
async fn id_after_recreation_is_of_new_stream() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let operator = Operator::connect(&server).await;
    publish_numbers(&node, 0..5).await;
    operator.delete_stream().await;
    let id = publish_numbers(&node, 10..11).await.unwrap();
    assert_eq!(sequence(&id), 1);
    let mut client = RelayClient::resume(node.relay(), &id);
    publish_numbers(&node, 11..12).await;
    client.expect_numbers(11..12).await;
}
