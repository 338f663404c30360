//! What clients get when a server or its stream fails: each event once and in order, or a gap that is true.

use std::{cell::Cell, time::Duration};

use serde_json::json;
use testkit::{NatsServer, RelayClient, TEST_TIMEOUT, free_port};
use tokio::time::sleep;
use tower_push::Event;
use tower_push_nats::ReaderState;

use crate::nodes::{
    Monitoring, Operator, builder, node, publish_numbers, sequence, wait_for_state, wait_until_read,
};

#[tokio::test]
async fn killed_server_loses_nothing() {
    let mut server = NatsServer::start("");
    let nodes = [node(&server).await, node(&server).await];
    let mut clients = [
        RelayClient::connect(nodes[0].relay()).await,
        RelayClient::connect(nodes[1].relay()).await,
    ];
    for round in 0..3 {
        publish_numbers(&nodes[0], 10 * round..10 * round + 5).await;
        server.kill();
        wait_for_state(&nodes[0], ReaderState::Reconnecting).await;
        server.start_again();
        publish_numbers(&nodes[1], 10 * round + 5..10 * round + 10).await;
        for client in &mut clients {
            client.expect_numbers(10 * round..10 * round + 10).await;
        }
        clients[0].move_to(nodes[1].relay());
        clients[1].move_to(nodes[0].relay());
    }
    assert!(nodes.iter().all(|node| node.relay().counts().gaps == 0));
}

/// The server has lost the newest messages after a crash, and gives their numbers to others, in a stream with the same time of creation.
#[tokio::test]
async fn lost_writes_are_gap() {
    let mut server = NatsServer::start("");
    let node = node(&server).await;
    let mut connected = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..5).await;
    connected.expect_numbers(0..3).await;
    let mut early = RelayClient::resume(node.relay(), &connected.cursor());
    connected.expect_numbers(3..5).await;
    server.kill();
    wait_for_state(&node, ReaderState::Reconnecting).await;
    server.save_data();
    server.start_again();
    let lost = publish_numbers(&node, 5..8).await.unwrap();
    connected.expect_numbers(5..8).await;

    server.kill();
    wait_for_state(&node, ReaderState::Reconnecting).await;
    server.restore_data();
    server.start_again();
    connected.expect(&["epoch None"]).await;
    publish_numbers(&node, 100..103).await;
    connected.expect_numbers(100..103).await;
    assert_eq!(sequence(&connected.cursor()), sequence(&lost));
    // A cursor that was not lost is as good as before, and one that was lost is not.
    early.move_to(node.relay());
    early.expect_numbers([3, 4, 100, 101, 102]).await;
    let mut returned = RelayClient::resume(node.relay(), &lost);
    assert_eq!(returned.next().await, "epoch None");
    assert_eq!(node.reader_status().replaced, 1);

    // The server has used the lost numbers again before the node is back.
    let lost = connected.cursor();
    let port = server.port();
    server.kill();
    server.restore_data();
    server.start_again_at(free_port());
    Operator::connect(&server)
        .await
        .publish_numbers(200..205)
        .await;
    server.kill();
    server.start_again_at(port);
    connected
        .expect(&["epoch None", "200", "201", "202", "203", "204"])
        .await;
    let mut returned = RelayClient::resume(node.relay(), &lost);
    assert_eq!(returned.next().await, "epoch None");
}

#[tokio::test]
async fn recreated_stream_is_gap() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    let returning = client.cursor();

    // The node creates the stream anew.
    operator.delete_stream().await;
    client.expect(&["epoch None"]).await;
    publish_numbers(&node, 10..12).await;
    client.expect_numbers(10..12).await;
    let mut returned = RelayClient::resume(node.relay(), &returning);
    returned.expect(&["epoch None", "10", "11"]).await;

    // Another program does, with more messages than the old stream had.
    operator.delete_stream().await;
    let create = operator.request(
        "STREAM.CREATE.EVENTS",
        json!({ "name": "EVENTS", "subjects": ["events", "events.>"], "allow_direct": true }),
    );
    // The node can be faster.
    let _ = tokio::time::timeout(TEST_TIMEOUT, create).await;
    client.expect(&["epoch None"]).await;
    publish_numbers(&node, 20..30).await;
    client.expect_numbers(20..30).await;
    assert_eq!(node.reader_status().replaced, 2);
}

#[tokio::test]
async fn stream_recreated_while_node_is_away_is_gap() {
    let mut server = NatsServer::start("");
    let in_memory = builder(&server).in_memory(true).connect().await.unwrap();
    let mut client = RelayClient::connect(in_memory.relay()).await;
    publish_numbers(&in_memory, 0..3).await;
    client.expect_numbers(0..3).await;
    server.kill();
    wait_for_state(&in_memory, ReaderState::Reconnecting).await;
    // The server has nothing on its disk, and the node creates the stream anew.
    server.start_again();
    client.expect(&["epoch None"]).await;
    publish_numbers(&in_memory, 10..15).await;
    client.expect_numbers(10..15).await;
}

/// A purge keeps the sequence numbers.
#[tokio::test]
async fn purge_is_no_gap_for_current_clients() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..10).await;
    client.expect_numbers(0..5).await;
    let behind = client.cursor();
    client.expect_numbers(5..10).await;
    operator.keep(0).await;
    publish_numbers(&node, 10..12).await;
    client.expect_numbers(10..12).await;
    // A client without the removed events gets a gap on a node that does not have them.
    let new = builder(&server).max_log_events(1).connect().await.unwrap();
    let mut returned = RelayClient::resume(new.relay(), &behind);
    returned.expect(&["expired Some(5)", "10", "11"]).await;
    assert_eq!(node.relay().counts().gaps, 0);
    assert_eq!(node.reader_status().reconnects, 0);
}

/// Messages are removed while a node cannot read them.
#[tokio::test]
async fn messages_trimmed_before_reader_are_gap() {
    let mut server = NatsServer::start("");
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    server.kill();
    wait_for_state(&node, ReaderState::Reconnecting).await;
    let port = server.port();
    server.start_again_at(free_port());
    let operator = Operator::connect(&server).await;
    operator.publish_numbers(3..53).await;
    operator.keep(5).await;
    server.kill();
    server.start_again_at(port);
    client
        .expect(&["expired Some(45)", "48", "49", "50", "51", "52"])
        .await;
    assert_eq!(node.reader_status().trimmed, 1);
}

/// The limits of a stream remove each message when the next one comes.
#[tokio::test]
async fn stream_of_one_message_has_no_gaps() {
    let server = NatsServer::start("");
    let node = builder(&server).max_len(1).connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    for number in 0..20 {
        publish_numbers(&node, [number]).await;
        client.expect_numbers([number]).await;
    }
    assert_eq!(node.reader_status().trimmed, 0);
}

#[tokio::test]
async fn deleted_messages_are_gap() {
    let server = NatsServer::start("");
    let old = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(old.relay()).await;
    publish_numbers(&old, 0..10).await;
    client.expect_numbers(0..3).await;
    let third = client.cursor();
    // These messages are the events 3, 5 and 9.
    for sequence in [4, 6, 10] {
        operator.delete_message(sequence).await;
    }
    let new = builder(&server).max_log_events(1).connect().await.unwrap();
    let mut returned = RelayClient::resume(new.relay(), &third);
    returned
        .expect(&["expired Some(1)", "4", "expired Some(1)", "6", "7", "8"])
        .await;
    publish_numbers(&new, 10..12).await;
    returned.expect(&["expired Some(1)", "10", "11"]).await;
}

/// The server answers nothing for a while.
#[tokio::test]
async fn silent_server_is_noticed() {
    let server = NatsServer::start("");
    let timeout = Duration::from_millis(300);
    let node = builder(&server)
        .request_timeout(timeout)
        .publish_retry_time(Duration::ZERO);
    let node = node.connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..1).await;
    client.expect_numbers(0..1).await;
    server.pause();
    let error = node.publish(&"1".into()).await.unwrap_err();
    assert!(
        error.is_unavailable() && error.may_be_published(),
        "{error}"
    );
    wait_for_state(&node, ReaderState::Reconnecting).await;
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    server.resume();
    wait_for_state(&node, ReaderState::Following).await;
    assert!(node.reader_status().is_healthy(TEST_TIMEOUT));
    // The server may have got the first publication.
    publish_numbers(&node, 2..3).await;
    let mut item = client.next().await;
    if item == "1" {
        item = client.next().await;
    }
    assert_eq!(item, "2");
}

/// The server answers everything but the publications to one topic.
#[tokio::test]
async fn unanswered_publication_does_not_break_connection() {
    let monitoring = Monitoring::new();
    let server = NatsServer::start(&monitoring.config());
    let operator = Operator::connect(&server).await;
    operator
        .create_stream(json!({ "subjects": ["news"] }))
        .await;
    // With a subscriber, the server does not say that there is nobody to answer.
    let _silent_subscriber = operator.subscribe("unanswered").await;
    let node = builder(&server)
        .subject_prefix("")
        .request_timeout(Duration::from_millis(300))
        .publish_retry_time(Duration::ZERO);
    let node = node.connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    let connections = monitoring.connections();
    let expect_unanswered = async || {
        let event = Event::text("x").with_topic("unanswered").unwrap();
        let error = node.publish(&event).await.unwrap_err();
        assert!(
            error.is_unavailable() && error.may_be_published(),
            "{error}"
        );
    };

    // The server has nothing to send but the answer to a PING.
    expect_unanswered().await;
    // The server answers other publications meanwhile.
    let has_ended = Cell::new(false);
    let unanswered = async {
        for _ in 0..3 {
            expect_unanswered().await;
        }
        has_ended.set(true);
    };
    let answered = async {
        let mut published = 0;
        while !has_ended.get() {
            let event = Event::text(published.to_string());
            let event = event.with_topic("news").unwrap();
            node.publish(&event).await.unwrap();
            published += 1;
            sleep(Duration::from_millis(2)).await;
        }
        published
    };
    let ((), published) = tokio::join!(unanswered, answered);
    client.expect_numbers(0..published).await;
    assert_eq!(node.reader_status().reconnects, 0);
    assert_eq!(monitoring.connections(), connections);
}

/// The messages of a node are not lost while its process stands still: its consumer is gone, and its messages are trimmed.
#[tokio::test]
async fn lost_consumer_is_replaced() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    for round in 0..3 {
        publish_numbers(&node, 10 * round..10 * round + 5).await;
        operator.delete_consumers().await.unwrap();
        publish_numbers(&node, 10 * round + 5..10 * round + 10).await;
        client.expect_numbers(10 * round..10 * round + 10).await;
    }
    wait_until_read(&node).await;
    assert!(node.reader_status().reconnects >= 3);
    assert_eq!(node.relay().counts().gaps, 0);
}
