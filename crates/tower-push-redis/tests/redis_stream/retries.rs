//! How often a node tries again while Redis does not do what the node needs.

use std::time::Duration;

use testkit::{BreakableProxy, HubClient, RedisProgram, RedisServer, TEST_TIMEOUT, wait_until};
use tokio::time::timeout;
use tower_push::{
    Hub,
    source::hub::{PresenceOptions, PublishOptions},
};
use tower_push_redis::{RedisServers, RedisStream};

use crate::nodes::KEY;

/// The time for which the attempts are counted.
const TIME: Duration = Duration::from_secs(3);

/// A node without pauses makes some thousands in this time. With pauses, it makes about 40.
const MAX_ATTEMPTS: u64 = 200;

/// Fails when Redis does not do what the node needs after `fail`: the feed, members, publications and the pages of old events.
async fn expect_few_attempts(fail: impl AsyncFnOnce(&mut RedisServer)) {
    let mut server = RedisServer::start(RedisProgram::Redis, &[]);
    let proxy = BreakableProxy::start(server.port()).await;
    let servers = RedisServers::single(format!("redis://{}/", proxy.address())).unwrap();
    let builder = RedisStream::builder(servers, KEY)
        .command_timeout(Duration::from_millis(300))
        .connect_retry_time(TEST_TIMEOUT)
        .max_log_events(1)
        .publish_retry_time(TIME * 2);
    let presence = PresenceOptions::new().node_timeout(Duration::from_secs(1));
    let hub = Hub::builder().presence(presence).max_events(1);
    let node = builder.connect_hub(hub).await.unwrap();
    let options = PublishOptions::default();
    let publish = || node.hub().publish_and_wait("news", "text", &options);
    let first = publish().await.unwrap();
    for _ in 0..10 {
        publish().await.unwrap();
    }
    let _ada = testkit::enter(node.hub(), "ada", 1);
    let is_confirmed = || node.hub().counts().pending_members == 0;
    wait_until(is_confirmed, || "no answer").await;

    fail(&mut server).await;
    let before = proxy.attempts();
    let _bob = testkit::enter(node.hub(), "bob", 1);
    let mut client = HubClient::resume(node.hub(), &["news"], &first);
    let read = async {
        while !client.next().await.starts_with("Ok(Ended") {}
        std::future::pending::<()>().await;
    };
    let all = async { tokio::join!(publish(), publish(), read) };
    assert!(timeout(TIME, all).await.is_err());
    let attempts = proxy.attempts() - before;
    assert!((2..MAX_ATTEMPTS).contains(&attempts), "{attempts} attempts");
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
