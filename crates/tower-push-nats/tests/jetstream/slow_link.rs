//! A link to the server over which many messages do not come in time.

use std::time::Duration;

use testkit::{BreakableProxy, HubClient, NatsServer, RelayClient, TEST_TIMEOUT, wait_until};
use tokio::time::{Instant, sleep};
use tower_push::{
    Event, EventId, Hub,
    source::{hub::PresenceOptions, relay::UpstreamLimits},
};
use tower_push_nats::{JetStream, JetStreamBuilder, NatsServers};

use crate::nodes::{STREAM, builder};

/// The time for which a node waits for an answer.
const TIMEOUT: Duration = Duration::from_millis(300);

/// 24 messages do not come in time.
const BYTES_PER_SECOND: u64 = 800_000;
const MESSAGE_BYTES: usize = 10_000;

/// All of them are one page over a fast link.
const MESSAGES: usize = 60;

/// Returns the builder of a node that connects through a proxy, and reads old messages only when a client asks for them.
fn builder_behind(proxy: &BreakableProxy) -> JetStreamBuilder {
    let servers = NatsServers::new(&format!("nats://{}", proxy.address())).unwrap();
    JetStream::builder(servers, STREAM)
        .subject_prefix("events")
        .request_timeout(TIMEOUT)
        .connect_retry_time(TEST_TIMEOUT)
        .max_log_events(1)
}

async fn slow_proxy(server: &NatsServer) -> BreakableProxy {
    let proxy = BreakableProxy::start(server.port()).await;
    proxy.set_server_rate(BYTES_PER_SECOND);
    proxy
}

/// Publishes long texts. Returns the id of the first one.
async fn publish_long_texts(server: &NatsServer, topic: Option<&'static str>) -> EventId {
    let node = builder(server).connect().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..MESSAGES {
        let event = Event::text(long_text(number));
        let event = match topic {
            Some(topic) => event.with_topic(topic).unwrap(),
            None => event,
        };
        ids.push(node.publish(&event).await.unwrap());
    }
    ids.swap_remove(0)
}

fn long_text(number: usize) -> String {
    format!("{number} {}", "x".repeat(MESSAGE_BYTES))
}

/// Checks the texts of a client that gets the events after the first one.
async fn expect_long_texts(mut next: impl AsyncFnMut() -> String) {
    let mut number = 1;
    let deadline = Instant::now() + TEST_TIMEOUT;
    while number < MESSAGES {
        assert!(Instant::now() < deadline, "no text {number}");
        match next().await {
            text if text == long_text(number) => number += 1,
            text if text == "cursor" => {}
            // The client returns as soon as it can.
            text if text.starts_with("Ok(Ended") => sleep(TIMEOUT / 10).await,
            text => panic!("{text} instead of {number}"),
        }
    }
}

#[tokio::test]
async fn old_cursor_resumes_over_slow_link() {
    let server = NatsServer::start("");
    let first = publish_long_texts(&server, None).await;
    let proxy = slow_proxy(&server).await;
    let node = builder_behind(&proxy).connect().await.unwrap();
    let mut client = RelayClient::resume(node.relay(), &first);
    expect_long_texts(async || {
        let text = client.next().await;
        if text.starts_with("Ok(Ended") {
            client.move_to(node.relay());
        }
        text
    })
    .await;
}

/// The server selects the messages of a topic.
#[tokio::test]
async fn old_cursor_of_topic_resumes_over_slow_link() {
    let server = NatsServer::start("");
    let first = publish_long_texts(&server, Some("news")).await;
    let proxy = slow_proxy(&server).await;
    let limits = UpstreamLimits::new().max_page_events(40);
    let hub = Hub::builder().upstream_limits(limits);
    let node = builder_behind(&proxy).connect_hub(hub).await.unwrap();
    let mut client = HubClient::resume(node.hub(), &["news"], &first);
    expect_long_texts(async || {
        let text = client.next().await;
        if text.starts_with("Ok(Ended") {
            client.move_to(node.hub(), &["news"]);
        }
        text
    })
    .await;
}

#[tokio::test]
async fn list_of_members_is_read_over_slow_link() {
    let server = NatsServer::start("");
    let options = PresenceOptions::new().max_member_len(2 * MESSAGE_BYTES);
    let hub = Hub::builder().presence(options);
    let node = builder(&server).connect_hub(hub).await.unwrap();
    let mut connections = Vec::new();
    for number in 0..MESSAGES {
        // Each member is a message of the log.
        let value = long_text(number);
        connections.push(testkit::enter(node.hub(), &number.to_string(), value));
        let is_confirmed = || node.hub().counts().pending_members == 0;
        wait_until(is_confirmed, || "no answer").await;
    }
    let proxy = slow_proxy(&server).await;
    let slow = builder_behind(&proxy).connect_hub(Hub::builder()).await;
    let slow = slow.unwrap();
    let members = || testkit::members(slow.hub()).len();
    wait_until(|| members() == MESSAGES, || members().to_string()).await;
}
