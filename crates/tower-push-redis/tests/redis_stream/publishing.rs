//! Publications: idempotency, trimming, limits.

use std::time::Duration;

use futures_util::StreamExt;
use testkit::{RedisProgram, RedisServer, RelayClient, wait_until};
use tower_push::{Event, Item, event::Payload, source::StartPosition};

use crate::nodes::{KEY, builder, node, publish_numbers};

#[tokio::test]
async fn event_keeps_its_fields() {
    let server = RedisServer::start(RedisProgram::Valkey, &[]);
    let node = node(&server).await;
    let subscriber = node.relay().subscribe_from(StartPosition::Oldest);
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
    let item = subscriber.skip(1).next().await.unwrap().unwrap();
    let Item::Event(read) = item else {
        panic!("{item:?}")
    };
    assert_eq!(read.id(), Some(&id));
    assert_eq!(read.event_type(), event.event_type());
    assert_eq!(read.topic(), event.topic());
    assert!(matches!(read.payload(), Payload::Json { .. }));
    assert_eq!(read.payload(), event.payload());
}

async fn event_is_published_once(program: RedisProgram) {
    let server = RedisServer::start(program, &[]);
    let nodes = [node(&server).await, node(&server).await];
    let mut client = RelayClient::connect(nodes[0].relay()).await;
    let first = nodes[0].publish_once(&"0".into(), "order 7").await.unwrap();
    assert!(!first.is_duplicate);
    client.expect_numbers([0]).await;
    assert_eq!(client.cursor(), first.id);
    // The second publication is on another node, and its event has other content.
    let second = nodes[1].publish_once(&"x".into(), "order 7").await.unwrap();
    assert_eq!((second.id, second.is_duplicate), (first.id, true));
    let third = nodes[1].publish_once(&"1".into(), "order 8").await.unwrap();
    assert!(!third.is_duplicate);
    client.expect_numbers([1]).await;
    // The server forgets a key in time.
    let forgetful = builder(&server)
        .idempotency_lifetime(Duration::from_millis(1))
        .max_len(100)
        .connect()
        .await
        .unwrap();
    forgetful
        .publish_once(&"2".into(), "order 9")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let again = forgetful
        .publish_once(&"3".into(), "order 9")
        .await
        .unwrap();
    assert!(!again.is_duplicate);
    client.expect_numbers([2, 3]).await;
}

#[tokio::test]
async fn redis_event_is_published_once() {
    event_is_published_once(RedisProgram::Redis).await;
}

#[tokio::test]
async fn valkey_event_is_published_once() {
    event_is_published_once(RedisProgram::Valkey).await;
}

/// The server is killed while publications are in progress. Each is tried again until it has succeeded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_with_key_survive_restarts() {
    let mut server = RedisServer::start(
        RedisProgram::Redis,
        &["--appendonly", "yes", "--appendfsync", "always"],
    );
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
    let server = RedisServer::start(RedisProgram::Redis, &["--stream-node-max-entries", "10"]);
    let by_number = builder(&server).max_len(30).connect().await.unwrap();
    publish_numbers(&by_number, 0..200).await;
    let length = |server: &RedisServer| server.command(&["XLEN", KEY]).parse::<u64>().unwrap();
    assert!((30..50).contains(&length(&server)), "{}", length(&server));

    server.command(&["DEL", KEY]);
    let both = builder(&server)
        .max_len(1000)
        .max_age(Duration::from_secs(60));
    let both = both.connect().await.unwrap();
    add_entries_of_last_hours(&server);
    publish_numbers(&both, 0..40).await;
    assert!((60..100).contains(&length(&server)), "{}", length(&server));

    server.command(&["DEL", KEY]);
    let by_age = builder(&server).max_age(Duration::from_secs(60));
    let by_age = by_age.connect().await.unwrap();
    add_entries_of_last_hours(&server);
    publish_numbers(&by_age, 0..3).await;
    assert!((23..43).contains(&length(&server)), "{}", length(&server));
}

/// Adds 80 entries with ages of more than a minute, and then 20 with ages of less.
fn add_entries_of_last_hours(server: &RedisServer) {
    let now_ms = server_ms(server);
    for number in 0..80 {
        let id = format!("{}-1", now_ms - 8_000_000 + number * 1000);
        server.command(&["XADD", KEY, &id, "data", "x"]);
    }
    for number in 0..20 {
        let id = format!("{}-1", now_ms - 50_000 + number);
        server.command(&["XADD", KEY, &id, "data", "x"]);
    }
}

/// Returns the time of the server's clock in milliseconds.
fn server_ms(server: &RedisServer) -> u64 {
    let time = server.command(&["TIME"]);
    let seconds: u64 = time.lines().next().unwrap().parse().unwrap();
    seconds * 1000
}

/// An entry of another program is ahead of the time, and so are the ids of all later entries. Then the stream is deleted, and the ids are right again.
#[tokio::test]
async fn ids_ahead_of_the_time_remove_no_entry() {
    let server = RedisServer::start(RedisProgram::Redis, &["--stream-node-max-entries", "1"]);
    let node = builder(&server).max_age(Duration::from_secs(60));
    let node = node.connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..20).await;
    server.command(&["XADD", KEY, "99999999999999-1", "data", "20"]);
    publish_numbers(&node, 21..40).await;
    client.expect_numbers(0..40).await;
    let length = || server.command(&["XLEN", KEY]).parse::<u64>().unwrap();
    assert_eq!(length(), 40);

    server.command(&["DEL", KEY]);
    for number in 40..50_u64 {
        publish_numbers(&node, number..number + 1).await;
        assert_eq!(length(), number - 39, "the entry is in the stream");
    }
}

#[tokio::test]
async fn refused_publications_are_errors() {
    let server = RedisServer::start(RedisProgram::Redis, &["--maxmemory-policy", "noeviction"]);
    let node = builder(&server).max_event_len(100).connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    let large = Event::text("x".repeat(101));
    assert!(node.publish(&large).await.unwrap_err().is_too_large());
    assert!(
        node.publish_once(&large, "key")
            .await
            .unwrap_err()
            .is_too_large()
    );
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for error in [
        node.publish(&"x".into()).await.unwrap_err(),
        node.publish_once(&"x".into(), "key").await.unwrap_err(),
    ] {
        assert!(error.is_full() && !error.may_be_published(), "{error:?}");
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    publish_numbers(&node, 0..1).await;
    client.expect_numbers(0..1).await;
}

#[tokio::test]
async fn publication_is_one_command() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let nodes = [node(&server).await, node(&server).await];
    // The nodes have created the stream.
    let counts = || ["xadd", "eval", "evalsha"].map(|command| server.call_count(command));
    let [adds, evals, cached_evals] = counts();
    publish_numbers(&nodes[0], 0..10).await;
    assert_eq!(counts(), [adds + 10, evals, cached_evals]);
}

/// A server that has too few replicas, and a server that cannot write to its disk.
#[tokio::test]
async fn server_that_refuses_writes_is_error() {
    // The server cannot write to this directory.
    let server = RedisServer::start(RedisProgram::Redis, &["--dir", "/proc"]);
    let node = builder(&server).publish_retry_time(Duration::ZERO);
    let node = node.connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    publish_numbers(&node, 0..1).await;
    client.expect_numbers(0..1).await;

    server.command(&["CONFIG", "SET", "save", "3600 1"]);
    server.command(&["BGSAVE"]);
    let has_failed = || {
        let info = server.command(&["INFO", "persistence"]);
        info.contains("rdb_last_bgsave_status:err")
    };
    wait_until(has_failed, || "the server writes to /proc").await;
    let error = node.publish(&"x".into()).await.unwrap_err();
    assert!(error.is_full() && !error.may_be_published(), "{error}");
    server.command(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    publish_numbers(&node, 1..2).await;
    client.expect_numbers(1..2).await;
}

/// The server would close the connection on which it gets a value above its own limit.
#[tokio::test]
async fn event_above_limit_of_server_is_error() {
    let server = RedisServer::start(RedisProgram::Redis, &["--proto-max-bulk-len", "1048576"]);
    let node = builder(&server).max_event_len(8 << 20);
    let node = node.connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    for round in 0..5 {
        let large = Event::text("x".repeat(2 << 20));
        for error in [
            node.publish(&large).await.unwrap_err(),
            node.publish_once(&large, "key").await.unwrap_err(),
        ] {
            assert!(error.is_too_large() && !error.may_be_published(), "{error}");
        }
        publish_numbers(&node, [round]).await;
        client.expect_numbers([round]).await;
    }
}
