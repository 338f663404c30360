//! Redis is away for some time.

use std::time::Duration;

use testkit::{
    Absence, EventStreamClient, RedisProgram, RedisServer,
    broker_away::{AwayBroker, broker_is_away, publish_to_room},
};
use tower_push::{Event, Hub};
use tower_push_redis::{Error, ReaderStatus, RedisHub, RedisStream};

use crate::nodes::{DURABLE, builder};

struct Redis;

/// A node with a relay, or with a hub.
enum Node {
    Relay(RedisStream),
    Hub(RedisHub),
}

impl AwayBroker for Redis {
    type Server = RedisServer;
    type Node = Node;
    type Error = Error;

    const SENDS_LATER: bool = false;

    fn start_server() -> RedisServer {
        RedisServer::start(RedisProgram::Redis, &DURABLE)
    }

    async fn connect(server: &RedisServer, is_hub: bool, retry_time: Duration) -> Node {
        let builder = builder(server)
            .command_timeout(Duration::from_millis(300))
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
async fn relay_survives_silent_redis() {
    broker_is_away::<Redis>(Absence::Silent, false).await;
}

#[tokio::test]
async fn relay_survives_killed_redis() {
    broker_is_away::<Redis>(Absence::Killed, false).await;
}

#[tokio::test]
async fn hub_survives_silent_redis() {
    broker_is_away::<Redis>(Absence::Silent, true).await;
}

#[tokio::test]
async fn hub_survives_killed_redis() {
    broker_is_away::<Redis>(Absence::Killed, true).await;
}
