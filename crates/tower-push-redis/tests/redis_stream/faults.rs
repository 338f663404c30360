//! What clients get when a server or its stream fails: each event once and in order, or a gap that is true.

use std::time::Duration;

use testkit::{RedisProgram, RedisServer, RelayClient, TEST_TIMEOUT, wait_until};
use tower_push::{Event, EventId};
use tower_push_redis::{ReaderState, RedisStream};

use crate::nodes::{KEY, builder, node, publish_numbers, transaction, wait_until_read};

/// The options of a server that has every event on its disk.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// The time after which a connection is checked before it is used.
const IDLE_TIME: Duration = Duration::from_millis(1100);

async fn wait_for_state(node: &RedisStream, state: ReaderState) {
    let describe = || format!("{:?}", node.reader_status());
    wait_until(|| node.reader_status().state == state, describe).await;
}

#[tokio::test]
async fn killed_server_loses_nothing() {
    let mut server = RedisServer::start(RedisProgram::Redis, &DURABLE);
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

/// A replica without the newest events becomes the master.
#[tokio::test]
async fn lost_writes_are_gap() {
    let mut server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let mut connected = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..5).await;
    connected.expect_numbers(0..3).await;
    let mut early = RelayClient::resume(node.relay(), &connected.cursor());
    connected.expect_numbers(3..5).await;
    let copy = server.start_replica();
    wait_until(|| copy.command(&["XLEN", KEY]) == "5", || "no replication").await;
    copy.command(&["REPLICAOF", "NO", "ONE"]);
    let lost = publish_numbers(&node, 5..8).await.unwrap();
    connected.expect_numbers(5..8).await;

    server.kill();
    server.start_again_with_data_of(&copy);
    connected.expect(&["epoch None"]).await;
    publish_numbers(&node, 100..103).await;
    connected.expect_numbers(100..103).await;
    // A cursor that was not lost is as good as before, and one that was lost is not.
    early.move_to(node.relay());
    early.expect_numbers([3, 4, 100, 101, 102]).await;
    let mut returned = RelayClient::resume(node.relay(), &lost);
    assert_eq!(returned.next().await, "epoch None");
    assert_eq!(node.reader_status().replaced, 1);

    // The new master gives the id of a lost event to another one.
    server.command(&["DEL", KEY]);
    connected.expect(&["epoch None"]).await;
    let reused = lost.as_str().split_once('~').unwrap().0;
    server.command(&["XADD", KEY, reused, "data", "other"]);
    connected.expect(&["other"]).await;
    let mut returned = RelayClient::resume(node.relay(), &lost);
    returned.expect(&["epoch None", "other"]).await;
}

#[tokio::test]
async fn demoted_master_is_left() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let other = RedisServer::start(RedisProgram::Redis, &[]);
    let node = builder(&server)
        .publish_retry_time(Duration::ZERO)
        .connect()
        .await
        .unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    other.command(&["REPLICAOF", "127.0.0.1", &server.port().to_string()]);
    wait_until(|| other.command(&["XLEN", KEY]) == "3", || "no replication").await;
    other.command(&["REPLICAOF", "NO", "ONE"]);
    server.command(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
    wait_for_state(&node, ReaderState::Reconnecting).await;
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    // An event of the new master, which the old one gets as a replica.
    other.command(&["XADD", KEY, "*", "data", "3"]);
    wait_until(
        || server.command(&["XLEN", KEY]) == "4",
        || "no replication",
    )
    .await;
    server.command(&["REPLICAOF", "NO", "ONE"]);
    client.expect_numbers([3]).await;
    assert_eq!(node.relay().counts().gaps, 0);
}

#[tokio::test]
async fn deleted_stream_is_gap() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    let returning = client.cursor();

    // The reader waits for an entry, and the new one has a lower id: the server does not wake the reader.
    transaction(&server, &["DEL events", "XADD events 1-1 data low"]);
    client.expect(&["epoch None", "low"]).await;
    let mut returned = RelayClient::resume(node.relay(), &returning);
    returned.expect(&["epoch None", "low"]).await;

    // The new entries have higher ids.
    transaction(
        &server,
        &["FLUSHALL", "XADD events * data 10", "XADD events * data 11"],
    );
    client.expect(&["epoch None", "10", "11"]).await;

    // There are no new entries.
    server.command(&["DEL", KEY]);
    client.expect(&["epoch None"]).await;
    publish_numbers(&node, 20..22).await;
    client.expect_numbers(20..22).await;
    assert_eq!(node.reader_status().replaced, 3);
}

#[tokio::test]
async fn stream_deleted_while_node_is_away_is_gap() {
    let mut server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    server.kill();
    wait_for_state(&node, ReaderState::Reconnecting).await;
    // The server has nothing on its disk.
    server.start_again();
    server.command(&["XADD", KEY, "*", "data", "10"]);
    server.command(&["XADD", KEY, "*", "data", "11"]);
    let gap = client.next().await;
    assert!(gap == "epoch None" || gap == "expired None", "{gap}");
    client.expect_numbers(10..12).await;

    // A node that has never seen an event knows the beginning of its stream.
    let other = RedisServer::start(RedisProgram::Redis, &[]);
    publish_numbers(&crate::nodes::node(&other).await, 20..22).await;
    server.command(&["DEL", KEY]);
    let empty = crate::nodes::node(&server).await;
    let mut new = RelayClient::connect(empty.relay()).await;
    server.kill();
    wait_for_state(&empty, ReaderState::Reconnecting).await;
    server.start_again_with_data_of(&other);
    new.expect(&["epoch None", "20", "21"]).await;
}

#[tokio::test]
async fn entries_trimmed_before_reader_are_gap() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    let adds: Vec<_> = (3..53)
        .map(|number| format!("XADD events * data {number}"))
        .collect();
    let mut commands: Vec<_> = adds.iter().map(String::as_str).collect();
    commands.push("XTRIM events MAXLEN = 5");
    transaction(&server, &commands);
    client
        .expect(&["expired Some(45)", "48", "49", "50", "51", "52"])
        .await;
    assert_eq!(node.reader_status().trimmed, 1);

    // A stream of one entry: each event removes the one before it, and nothing is missing.
    for number in 53..60 {
        transaction(
            &server,
            &[&format!("XADD events MAXLEN = 1 * data {number}")],
        );
        client.expect_numbers([number]).await;
    }
    assert_eq!(node.reader_status().trimmed, 1);
}

/// A node that starts after the stream was emptied knows the end of the stream by another cursor than an older node.
#[tokio::test]
async fn end_of_emptied_stream_is_resumed_on_all_nodes() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let old = node(&server).await;
    let mut connected = RelayClient::connect(old.relay()).await;
    publish_numbers(&old, 0..3).await;
    connected.expect_numbers(0..3).await;
    server.command(&["XTRIM", KEY, "MAXLEN", "=", "0"]);
    let new = node(&server).await;
    let mut to_old = RelayClient::connect(new.relay()).await;
    let mut to_new = RelayClient::resume(old.relay(), &connected.cursor());
    assert_ne!(to_old.cursor(), to_new.cursor());
    to_old.move_to(old.relay());
    to_new.move_to(new.relay());
    for client in [&mut to_old, &mut to_new] {
        assert_eq!(client.next().await, "cursor");
    }
    publish_numbers(&new, 3..5).await;
    for client in [&mut to_old, &mut to_new, &mut connected] {
        client.expect_numbers(3..5).await;
    }
    // The newest entry is deleted before a node starts that has older ones.
    let newest = connected.cursor();
    let entry_id = newest.as_str().split_once('~').unwrap().0;
    server.command(&["XDEL", KEY, entry_id]);
    let newer = node(&server).await;
    to_new.move_to(newer.relay());
    assert_eq!(to_new.next().await, "cursor");
    publish_numbers(&new, 5..7).await;
    to_new.expect_numbers(5..7).await;
    for node in [&old, &new, &newer] {
        assert_eq!(node.relay().counts().gaps, 0);
    }
}

/// The stream is emptied before the reader has read its newest entries.
#[tokio::test]
async fn gap_at_end_of_emptied_stream_is_sent_once() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = node(&server).await;
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;
    let add = "XADD events * data lost";
    transaction(&server, &[add, add, "XTRIM events MAXLEN = 0"]);
    client.expect(&["expired Some(2)"]).await;
    let other = crate::nodes::node(&server).await;
    let mut returned = [
        RelayClient::resume(node.relay(), &client.cursor()),
        RelayClient::resume(other.relay(), &client.cursor()),
    ];
    publish_numbers(&node, 3..5).await;
    client.expect_numbers(3..5).await;
    for client in &mut returned {
        client.expect_numbers(3..5).await;
    }
}

#[tokio::test]
async fn deleted_entries_are_no_gap() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = builder(&server).max_log_events(8).connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..2).await;
    client.expect_numbers(0..2).await;
    let second = client.cursor();
    let newest = publish_numbers(&node, 2..10).await.unwrap();
    client.expect_numbers(2..10).await;
    let entry_id = |id: &EventId| id.as_str().split_once('~').unwrap().0.to_owned();

    // The newest entry, on which the reader waits.
    server.command(&["XDEL", KEY, &entry_id(&newest)]);
    publish_numbers(&node, 10..12).await;
    client.expect_numbers(10..12).await;
    // The relay's log knows this event still.
    let mut returned = RelayClient::resume(node.relay(), &newest);
    returned.expect_numbers(10..12).await;

    // One in the middle, with which a client returns.
    server.command(&["XDEL", KEY, &entry_id(&second)]);
    let mut returned = RelayClient::resume(node.relay(), &second);
    assert_eq!(returned.next().await, "epoch None");
    assert_eq!(node.relay().counts().gaps, 0);
}

/// The server's clock seems to go back: the newest id is in the future. Redis goes on with higher ids.
#[tokio::test]
async fn clock_that_goes_back_loses_nothing() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [node(&server).await, node(&server).await];
    let mut client = RelayClient::connect(nodes[0].relay()).await;
    publish_numbers(&nodes[0], 0..2).await;
    server.command(&["XADD", KEY, "99999999999999-7", "data", "2"]);
    publish_numbers(&nodes[1], 3..6).await;
    client.expect_numbers(0..4).await;
    wait_until_read(&nodes[1]).await;
    client.move_to(nodes[1].relay());
    client.expect_numbers(4..6).await;
}

/// The server answers nothing for a while.
#[tokio::test]
async fn silent_server_is_noticed() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let timeout = Duration::from_millis(300);
    let node = builder(&server)
        .command_timeout(timeout)
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
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    wait_for_state(&node, ReaderState::Reconnecting).await;
    assert!(!node.reader_status().is_healthy(Duration::from_secs(5)));
    server.resume();
    wait_for_state(&node, ReaderState::Following).await;
    assert!(node.reader_status().is_healthy(TEST_TIMEOUT));
    // The server executes the first publication when it goes on.
    client.expect_numbers(1..2).await;
    publish_numbers(&node, 2..3).await;
    client.expect_numbers(2..3).await;
}

/// The server closes connections that are idle.
#[tokio::test]
async fn closed_idle_connection_is_replaced() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let node = builder(&server).max_log_events(1).connect().await.unwrap();
    let first = publish_numbers(&node, 0..1).await.unwrap();
    publish_numbers(&node, 1..3).await;
    wait_until_read(&node).await;
    RelayClient::resume(node.relay(), &first)
        .expect_numbers(1..3)
        .await;
    // All connections but the reader's, which waits for an entry.
    let clients = server.command(&["CLIENT", "LIST", "TYPE", "NORMAL"]);
    let idle = clients
        .lines()
        .filter(|line| line.contains("user=") && !line.contains("flags=b"));
    let idle: Vec<_> = idle.filter(|line| !line.contains("cmd=client")).collect();
    assert_eq!(idle.len(), 2, "{clients}");
    for line in idle {
        let id = line.split(' ').next().unwrap().strip_prefix("id=").unwrap();
        server.command(&["CLIENT", "KILL", "ID", id]);
    }
    tokio::time::sleep(IDLE_TIME).await;
    // Neither a publication nor an upstream resume learns of it.
    let event = Event::text("3");
    node.publish(&event).await.unwrap();
    wait_until_read(&node).await;
    RelayClient::resume(node.relay(), &first)
        .expect_numbers(1..4)
        .await;
    assert_eq!(node.relay().counts().unavailable, 0);
    assert_eq!(node.reader_status().reconnects, 0);
}
