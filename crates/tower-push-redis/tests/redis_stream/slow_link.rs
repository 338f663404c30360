//! A link to Redis over which a large response does not come in time.

use std::time::Duration;

use testkit::{
    BreakableProxy, RedisProgram, RedisServer, RelayClient, TEST_TIMEOUT, free_port, wait_until,
};
use tokio::time::{Instant, sleep};
use tower_push::{EventId, Hub};
use tower_push_redis::{ReaderState, RedisServers, RedisStream, RedisStreamBuilder};

use crate::nodes::{KEY, builder};

/// The time for which a node waits for a response.
const TIMEOUT: Duration = Duration::from_millis(300);

/// A response of 24 entries does not come in time.
const BYTES_PER_SECOND: u64 = 800_000;
const ENTRY_BYTES: usize = 10_000;

/// All of them are one response over a fast link.
const ENTRIES: u64 = 40;

/// Returns the builder of a node that connects through a proxy.
fn builder_behind(proxy: &BreakableProxy) -> RedisStreamBuilder {
    let url = format!("redis://{}/", proxy.address());
    RedisStream::builder(RedisServers::single(url).unwrap(), KEY).command_timeout(TIMEOUT)
}

/// Publishes numbers with long texts. Returns the id of the first one.
async fn publish_large_events(server: &RedisServer) -> EventId {
    let node = builder(server).connect().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..ENTRIES {
        let text = format!("{number} {}", "x".repeat(ENTRY_BYTES));
        ids.push(node.publish(&text.as_str().into()).await.unwrap());
    }
    ids.swap_remove(0)
}

/// Reads the events from a number on. A client whose page could not be read returns.
async fn expect_large_events(node: &RedisStream, client: &mut RelayClient, from: u64) {
    let mut number = from;
    let deadline = Instant::now() + TEST_TIMEOUT;
    while number < ENTRIES {
        assert!(Instant::now() < deadline, "no event {number}");
        let text = client.next().await;
        match text.split_once(' ') {
            Some((found, rest)) if rest.len() == ENTRY_BYTES => {
                assert_eq!(found, number.to_string());
                number += 1;
            }
            _ if text == "cursor" => {}
            _ if text.starts_with("Ok(Ended") => {
                sleep(TIMEOUT / 10).await;
                client.move_to(node.relay());
            }
            _ => panic!("{text} instead of {number}"),
        }
    }
}

#[tokio::test]
async fn reader_catches_up_over_slow_link() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let proxy = BreakableProxy::start(server.port()).await;
    let node = builder_behind(&proxy).connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    proxy.set_server_port(free_port());
    proxy.break_connections();
    publish_large_events(&server).await;
    proxy.set_server_rate(BYTES_PER_SECOND);
    proxy.set_server_port(server.port());
    expect_large_events(&node, &mut client, 0).await;
    let is_following = || node.reader_status().state == ReaderState::Following;
    wait_until(is_following, || format!("{:?}", node.reader_status())).await;
}

#[tokio::test]
async fn node_starts_over_slow_link() {
    let server = RedisServer::start(RedisProgram::Valkey, &[]);
    let first = publish_large_events(&server).await;
    let proxy = BreakableProxy::start(server.port()).await;
    proxy.set_server_rate(BYTES_PER_SECOND);
    let builder = builder_behind(&proxy).connect_retry_time(TEST_TIMEOUT);
    let node = builder.connect().await.unwrap();
    let mut client = RelayClient::resume(node.relay(), &first);
    expect_large_events(&node, &mut client, 1).await;
}

#[tokio::test]
async fn old_cursor_resumes_over_slow_link() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let first = publish_large_events(&server).await;
    let proxy = BreakableProxy::start(server.port()).await;
    let node = builder_behind(&proxy).max_log_events(1).connect().await;
    let node = node.unwrap();
    proxy.set_server_rate(BYTES_PER_SECOND);
    proxy.break_connections();
    let mut client = RelayClient::resume(node.relay(), &first);
    expect_large_events(&node, &mut client, 1).await;
    let counts = node.relay().counts();
    assert!(counts.failed_reads > 0, "no page was too large: {counts:?}");
}

#[tokio::test]
async fn list_of_members_is_read_over_slow_link() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    for number in 0..ENTRIES {
        let member = format!("room\n{number}");
        let record = format!("1 \"{}\"", "x".repeat(ENTRY_BYTES));
        server.command(&["HSET", "{events}:presence:members", &member, &record]);
    }
    let proxy = BreakableProxy::start(server.port()).await;
    proxy.set_server_rate(BYTES_PER_SECOND);
    let builder = builder_behind(&proxy).connect_retry_time(TEST_TIMEOUT);
    let node = builder.connect_hub(Hub::builder()).await.unwrap();
    let members = || testkit::members(node.hub()).len() as u64;
    wait_until(|| members() == ENTRIES, || format!("{}", members())).await;
}
