//! The NATS server is away for some time.

use std::time::Duration;

use testkit::{
    Absence, EventStreamClient, NatsServer,
    broker_away::{AwayBroker, broker_is_away, publish_to_room},
};
use tower_push::{Event, Hub};
use tower_push_nats::{Error, JetStream, JetStreamHub, ReaderStatus};

use crate::nodes::builder;

struct Nats;

/// A node with a relay, or with a hub.
enum Node {
    Relay(JetStream),
    Hub(JetStreamHub),
}

impl AwayBroker for Nats {
    type Server = NatsServer;
    type Node = Node;
    type Error = Error;

    const SENDS_LATER: bool = true;

    fn start_server() -> NatsServer {
        NatsServer::start("")
    }

    async fn connect(server: &NatsServer, is_hub: bool, retry_time: Duration) -> Node {
        let builder = builder(server)
            .request_timeout(Duration::from_millis(300))
            .publish_retry_time(retry_time);
        match is_hub {
            true => Node::Hub(builder.connect_hub(Hub::builder()).await.unwrap()),
            false => Node::Relay(builder.connect().await.unwrap()),
        }
    }

    async fn client(node: &Node, heartbeat: Duration) -> EventStreamClient {
        match node {
            Node::Relay(node) => EventStreamClient::connect(node.clone(), heartbeat).await,
            Node::Hub(node) => {
                let source = node.hub().topics("room").unwrap();
                EventStreamClient::connect(source, heartbeat).await
            }
        }
    }

    async fn publish(node: &Node, text: &'static str) -> Result<(), Error> {
        match node {
            Node::Relay(node) => node.publish(&Event::text(text)).await.map(drop),
            Node::Hub(node) => publish_to_room(node.hub(), text).await,
        }
    }

    fn status(node: &Node) -> ReaderStatus {
        match node {
            Node::Relay(node) => node.reader_status(),
            Node::Hub(node) => node.reader_status(),
        }
    }

    fn is_unavailable(error: &Error) -> bool {
        error.is_unavailable()
    }

    fn may_be_published(error: &Error) -> bool {
        error.may_be_published()
    }
}

#[tokio::test]
async fn relay_survives_silent_server() {
    broker_is_away::<Nats>(Absence::Silent, false).await;
}

#[tokio::test]
async fn relay_survives_killed_server() {
    broker_is_away::<Nats>(Absence::Killed, false).await;
}

#[tokio::test]
async fn hub_survives_silent_server() {
    broker_is_away::<Nats>(Absence::Silent, true).await;
}

#[tokio::test]
async fn hub_survives_killed_server() {
    broker_is_away::<Nats>(Absence::Killed, true).await;
}
