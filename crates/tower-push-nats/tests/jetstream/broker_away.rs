//! NATS is away for some time: the clients' streams stay open and have heartbeats, publications fail or wait, and then everything goes on.

use std::time::Duration;

use testkit::{EventStreamClient, NatsServer};
use tower_push::Event;
use tower_push_nats::{JetStream, ReaderState};

use crate::nodes::{builder, wait_for_state};

const HEARTBEAT: Duration = Duration::from_millis(50);

/// The number of heartbeats after the reader has found out that NATS is away.
const HEARTBEATS: usize = 20;

async fn node(server: &NatsServer, retry_time: Duration) -> JetStream {
    let builder = builder(server).request_timeout(Duration::from_millis(300));
    builder
        .publish_retry_time(retry_time)
        .connect()
        .await
        .unwrap()
}

/// `begin` and `end` are what happens to the server.
async fn nats_is_away(begin: fn(&mut NatsServer), end: fn(&mut NatsServer)) {
    let mut server = NatsServer::start("");
    let node = node(&server, Duration::ZERO).await;
    let patient = self::node(&server, Duration::from_secs(60)).await;
    let mut client = EventStreamClient::connect(node.clone(), HEARTBEAT).await;
    node.publish(&Event::text("before")).await.unwrap();
    assert_eq!(client.next_data().await, "before");

    begin(&mut server);
    // The server may have got this publication.
    let error = node.publish(&Event::text("unknown")).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    while node.reader_status().state != ReaderState::Reconnecting {
        client.expect_heartbeats(1).await;
    }
    let error = node.publish(&Event::text("refused")).await.unwrap_err();
    assert!(
        error.is_unavailable() && !error.may_be_published(),
        "{error}"
    );
    let waiting = tokio::spawn(async move {
        // An event that the server may have got is not published again, so this publication begins without a connection.
        wait_for_state(&patient, ReaderState::Reconnecting).await;
        let published = patient.publish(&Event::text("waited")).await;
        published.map(|_| patient)
    });
    client.expect_heartbeats(HEARTBEATS).await;
    let status = node.reader_status();
    assert_eq!(status.state, ReaderState::Reconnecting);
    assert!(
        status
            .error
            .as_ref()
            .is_some_and(|error| error.is_unavailable())
    );
    assert!(!status.is_healthy(HEARTBEAT * 10));
    assert!(!waiting.is_finished());

    end(&mut server);
    let _patient = waiting.await.unwrap().unwrap();
    let mut data = client.next_data().await;
    if data == "unknown" {
        data = client.next_data().await;
    }
    assert_eq!(data, "waited");
    while node.publish(&Event::text("after")).await.is_err() {
        client.expect_heartbeats(1).await;
    }
    assert_eq!(client.next_data().await, "after");
    client.expect_heartbeats(2).await;
    assert_eq!(node.reader_status().state, ReaderState::Following);
}

#[tokio::test]
async fn relay_survives_silent_nats() {
    nats_is_away(|server| server.pause(), |server| server.resume()).await;
}

#[tokio::test]
async fn relay_survives_killed_nats() {
    nats_is_away(NatsServer::kill, NatsServer::start_again).await;
}
