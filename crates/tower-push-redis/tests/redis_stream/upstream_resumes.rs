//! Clients whose cursor is older than the log of a node.

use futures_util::future::join_all;
use testkit::{RedisProgram, RedisServer, RelayClient};

use crate::nodes::{KEY, builder, node, publish_numbers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_upstream_resumes_share_reads() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let first = node(&server).await;
    let mut cursors = Vec::new();
    for number in 0..1000 {
        cursors.push(publish_numbers(&first, [number]).await.unwrap());
    }
    let node = builder(&server).max_log_events(10).connect().await.unwrap();
    let reads_before = server.call_count("xrange");
    // 2000 clients with 20 cursors.
    let clients = (0..2000_usize).map(|index| {
        let number = index % 20 * 10;
        let mut client = RelayClient::resume(node.relay(), &cursors[number]);
        async move { client.expect_numbers(number as u64 + 1..1000).await }
    });
    join_all(clients).await;
    let counts = node.relay().counts();
    assert_eq!((counts.upstream_resumes, counts.unavailable), (2000, 0));
    // A cursor needs at most 1000 events in pages of 64 to 256. The readers of both nodes read nothing meanwhile, but for their checks.
    let reads = server.call_count("xrange") - reads_before;
    assert!(reads <= 20 * 10 + 20, "{reads} reads");
}

#[tokio::test]
async fn cursors_of_other_streams_are_gaps() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let last = publish_numbers(&node, 0..3).await.unwrap();
    let mut follower = RelayClient::resume(node.relay(), &last);
    let entry = last.as_str().split_once('~').unwrap().0;
    for cursor in [
        "42",
        "0-0",
        "0-0~aaaaaa",
        "99999999999999-0~aaaaaa",
        entry,
        &format!("{entry}~aaaaaa"),
    ] {
        let mut client = RelayClient::resume(node.relay(), &cursor.parse().unwrap());
        client.expect(&["epoch None", "0", "1", "2"]).await;
    }
    let mut client = RelayClient::resume(node.relay(), &"1-0~aaaaaa".parse().unwrap());
    client.expect(&["expired None", "0", "1", "2"]).await;
    publish_numbers(&node, 3..4).await;
    follower.expect_numbers(3..4).await;
}

#[tokio::test]
async fn trimmed_cursor_is_gap_and_rest() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let first = node(&server).await;
    let mut client = RelayClient::connect(first.relay()).await;
    publish_numbers(&first, 0..600).await;
    client.expect_numbers(0..10).await;
    server.command(&["XTRIM", KEY, "MAXLEN", "=", "500"]);
    let node = builder(&server).max_log_events(10).connect().await.unwrap();
    client.move_to(node.relay());
    client.expect(&["expired None"]).await;
    client.expect_numbers(100..600).await;

    // All events are removed. A client that has them all has missed nothing, on an old node and on a new one.
    server.command(&["XTRIM", KEY, "MAXLEN", "=", "0"]);
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
