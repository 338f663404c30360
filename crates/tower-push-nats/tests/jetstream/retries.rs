//! How often a node tries again while the server does not do what the node needs.

use std::time::Duration;

use serde_json::json;
use testkit::{BreakableProxy, NatsServer, TEST_TIMEOUT, hub_retries};
use tokio::time::sleep;
use tower_push_nats::{JetStream, JetStreamHub, NatsServers};

use crate::{
    nodes::{Operator, STREAM},
    presence::MEMBERS_STREAM,
};

/// A user who may publish nothing, and so make no request.
const WITHOUT_PERMISSIONS: &str = r#"
no_auth_user: limited
authorization {
  users = [ { user: limited, password: secret, permissions: { publish: { allow: ["_none"] } } } ]
}"#;

/// Fails when a server does not do what the node needs: the feed, members, publications and the pages of old events.
async fn expect_few_attempts(fail: impl AsyncFnOnce(&mut NatsServer)) {
    let mut server = NatsServer::start("");
    let proxy = BreakableProxy::start(server.port()).await;
    let servers = NatsServers::new(&format!("nats://{}", proxy.address())).unwrap();
    let builder = JetStream::builder(servers, STREAM).subject_prefix("events");
    let builder = builder
        .request_timeout(Duration::from_millis(300))
        .connect_retry_time(TEST_TIMEOUT)
        .max_log_events(1)
        // The node cannot put a missing stream right.
        .create_stream(false);
    let operator = Operator::connect(&server).await;
    operator.create_stream(json!({})).await;
    let config = json!({
        "name": MEMBERS_STREAM,
        "subjects": ["$MEMBERS.EVENTS", "$MEMBERS.EVENTS.>"],
        "allow_direct": true,
    });
    let create = format!("STREAM.CREATE.{MEMBERS_STREAM}");
    operator.request(&create, config).await;
    let node: JetStreamHub = builder
        .publish_retry_time(hub_retries::TIME * 2)
        .connect_hub(hub_retries::hub())
        .await
        .unwrap();
    hub_retries::expect_few_attempts(node.hub(), &proxy, fail(&mut server)).await;
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
async fn missing_stream_is_not_tried_in_busy_loop() {
    expect_few_attempts(async |server| Operator::connect(server).await.delete_stream().await).await;
}

#[tokio::test]
async fn refused_requests_are_not_tried_in_busy_loop() {
    expect_few_attempts(async |server| {
        server.kill();
        server.set_config(WITHOUT_PERMISSIONS);
        server.start_again();
        // The connections of the client find the new server.
        sleep(Duration::from_millis(500)).await;
    })
    .await;
}

/// The server answers each request at once, with an error.
#[tokio::test]
async fn server_without_jetstream_is_not_tried_in_busy_loop() {
    expect_few_attempts(async |server| {
        server.kill();
        server.set_config(WITHOUT_JETSTREAM);
        server.start_again();
        sleep(Duration::from_millis(500)).await;
    })
    .await;
}

/// The account of the clients has no JetStream.
const WITHOUT_JETSTREAM: &str = r#"
no_auth_user: user
accounts { PLAIN { users = [ { user: user, password: secret } ] } }"#;

/// The stream is full, and takes no more messages.
#[tokio::test]
async fn full_stream_is_not_tried_in_busy_loop() {
    expect_few_attempts(async |server| {
        let operator = Operator::connect(server).await;
        for stream in [STREAM, MEMBERS_STREAM] {
            let info = operator
                .request(&format!("STREAM.INFO.{stream}"), json!({}))
                .await;
            let mut config = info["config"].clone();
            config["discard"] = json!("new");
            config["max_msgs"] = info["state"]["messages"].clone();
            operator
                .request(&format!("STREAM.UPDATE.{stream}"), config)
                .await;
        }
    })
    .await;
}
