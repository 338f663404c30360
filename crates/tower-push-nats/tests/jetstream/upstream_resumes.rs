//! Clients whose cursor is older than the log of a node.

use futures_util::future::join_all;
use testkit::{NatsServer, RelayClient};
use tower_push::Event;

use tower_push_nats::{JetStream, NatsServers};

use crate::nodes::{Operator, builder, node, publish_numbers, sequence};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_upstream_resumes_share_reads() {
    let server = NatsServer::start("");
    let first = node(&server).await;
    let mut cursors = Vec::new();
    for number in 0..1000 {
        cursors.push(publish_numbers(&first, [number]).await.unwrap());
    }
    let node = builder(&server).max_log_events(10).connect().await.unwrap();
    let operator = Operator::connect(&server).await;
    let requests_before = operator.api_requests().await;
    // 2000 clients with 20 cursors.
    let clients = (0..2000_usize).map(|index| {
        let number = index % 20 * 10;
        let mut client = RelayClient::resume(node.relay(), &cursors[number]);
        async move { client.expect_numbers(number as u64 + 1..1000).await }
    });
    join_all(clients).await;
    let counts = node.relay().counts();
    assert_eq!((counts.upstream_resumes, counts.unavailable), (2000, 0));
    // A cursor needs at most 1000 events in pages of 256, and each page one description of the stream. The readers of both nodes ask for one every
    // 5 s.
    let requests = operator.api_requests().await - requests_before;
    assert!((20..20 * 5 + 20).contains(&requests), "{requests} requests");
}

#[tokio::test]
async fn cursors_of_other_streams_are_gaps() {
    let server = NatsServer::start("");
    let node = node(&server).await;
    let last = publish_numbers(&node, 0..3).await.unwrap();
    let mut follower = RelayClient::resume(node.relay(), &last);
    let stream = last.as_str().split('-').nth(1).unwrap();
    let servers = NatsServers::new(&server.url()).unwrap();
    let other = JetStream::builder(servers, "OTHER").connect().await;
    let of_other = publish_numbers(&other.unwrap(), 0..2).await.unwrap();
    for cursor in [
        of_other.as_str(),
        "42",
        "0-aaaaaa",
        "2-aaaaaa-aaaaaa",
        "1716402-0~k3vq7a",
        &format!("2-{stream}-aaaaaa"),
        &format!("4-{stream}"),
        &format!("99-{stream}-aaaaaa"),
    ] {
        let mut client = RelayClient::resume(node.relay(), &cursor.parse().unwrap());
        client.expect(&["epoch None", "0", "1", "2"]).await;
    }
    publish_numbers(&node, 3..4).await;
    follower.expect_numbers(3..4).await;
}

/// A new leader of a stream may not have applied all messages yet.
#[tokio::test]
async fn lagging_leader_is_asked_again() {
    let server = NatsServer::start("");
    let first = node(&server).await;
    let cursor = publish_numbers(&first, 0..5).await.unwrap();
    publish_numbers(&first, 5..10).await;
    let operator = Operator::connect(&server).await;
    let leader = operator.lagging_leader("lagging").await;
    let node = builder(&server).domain("lagging").max_log_events(1);
    let node = node.connect().await.unwrap();
    leader.answer_late_once();
    let mut client = RelayClient::resume(node.relay(), &cursor);
    client.expect_numbers(5..10).await;
    assert!(leader.has_answered_late());
}

#[tokio::test]
async fn trimmed_cursor_is_gap_and_rest() {
    let server = NatsServer::start("");
    let first = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(first.relay()).await;
    publish_numbers(&first, 0..600).await;
    client.expect_numbers(0..10).await;
    operator.keep(500).await;
    let node = builder(&server).max_log_events(10).connect().await.unwrap();
    client.move_to(node.relay());
    client.expect(&["expired Some(90)"]).await;
    client.expect_numbers(100..600).await;

    // All events are removed. A client that has them all has missed nothing, on an old node and on a new one.
    operator.keep(0).await;
    let new = crate::nodes::node(&server).await;
    let cursor = client.cursor();
    let mut clients = [
        client,
        RelayClient::resume(node.relay(), &cursor),
        RelayClient::resume(new.relay(), &cursor),
    ];
    assert_eq!(clients[2].next().await, "cursor");
    publish_numbers(&new, 600..602).await;
    for client in &mut clients {
        client.expect_numbers(600..602).await;
    }
}

/// The message of the cursor is removed, and nothing after it.
#[tokio::test]
async fn removed_cursor_message_is_no_gap() {
    let server = NatsServer::start("");
    let first = node(&server).await;
    let operator = Operator::connect(&server).await;
    let mut client = RelayClient::connect(first.relay()).await;
    publish_numbers(&first, 0..10).await;
    client.expect_numbers(0..5).await;
    operator.delete_message(sequence(&client.cursor())).await;
    let new = builder(&server).max_log_events(1).connect().await.unwrap();
    client.move_to(new.relay());
    client.expect_numbers(5..10).await;
}

#[tokio::test]
async fn pages_have_large_events() {
    let server = NatsServer::start("");
    let first = node(&server).await;
    let cursor = publish_numbers(&first, 0..1).await.unwrap();
    let large = |number: u64| format!("{number}{}", "x".repeat(700_000));
    for number in 0..8 {
        first.publish(&Event::text(large(number))).await.unwrap();
    }
    let new = builder(&server).max_log_events(1).connect().await.unwrap();
    let mut client = RelayClient::resume(new.relay(), &cursor);
    for number in 0..8 {
        assert!(client.next().await == large(number), "{number}");
    }
}
