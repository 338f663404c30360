//! How often a node tries again while Redis does not do what the node needs.

use std::time::Duration;

use testkit::{BreakableProxy, RedisProgram, RedisServer, TEST_TIMEOUT, hub_retries};
use tower_push_redis::{RedisServers, RedisStream};

use crate::nodes::KEY;

/// Fails when Redis does not do what the node needs after `fail`: the feed, members, publications and the pages of old events.
async fn expect_few_attempts(fail: impl AsyncFnOnce(&mut RedisServer)) {
    let mut server = RedisServer::start(RedisProgram::Redis, &[]);
    let proxy = BreakableProxy::start(server.port()).await;
    let servers = RedisServers::single(format!("redis://{}/", proxy.address())).unwrap();
    let builder = RedisStream::builder(servers, KEY)
        .command_timeout(Duration::from_millis(300))
        .connect_retry_time(TEST_TIMEOUT)
        .max_log_events(1)
        .publish_retry_time(hub_retries::TIME * 2);
    let node = builder.connect_hub(hub_retries::hub()).await.unwrap();
    hub_retries::expect_few_attempts(node.hub(), &proxy, fail(&mut server)).await;
}

/// Runs these commands when the node is connected, and lets the node notice its state.
async fn expect_few_attempts_after(commands: &[&[&str]]) {
    expect_few_attempts(async |server| {
        for command in commands {
            server.command(command);
        }
        // A blocked read does not notice that the server has changed.
        server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    })
    .await;
}

#[tokio::test]
async fn killed_server_is_not_tried_in_busy_loop() {
    expect_few_attempts(async |server| server.kill()).await;
}

#[tokio::test]
async fn silent_server_is_not_tried_in_busy_loop() {
    expect_few_attempts(async |server| server.pause()).await;
}

#[tokio::test]
async fn refused_commands_are_not_tried_in_busy_loop() {
    let refused = ["-xread", "-xrange", "-xadd", "-evalsha", "-hscan"];
    for command in refused {
        expect_few_attempts_after(&[&["ACL", "SETUSER", "default", command]]).await;
    }
}

#[tokio::test]
async fn full_server_is_not_tried_in_busy_loop() {
    expect_few_attempts_after(&[&["CONFIG", "SET", "maxmemory", "1"]]).await;
}

#[tokio::test]
async fn key_of_other_type_is_not_tried_in_busy_loop() {
    expect_few_attempts_after(&[&["SET", KEY, "text"]]).await;
}

#[tokio::test]
async fn replica_is_not_tried_in_busy_loop() {
    expect_few_attempts_after(&[&["REPLICAOF", "127.0.0.1", "1"]]).await;
}
