//! The NATS server is away for some time: the clients' streams stay open and have heartbeats, publications fail or wait, and then everything goes
//! on.

use std::time::Duration;

use testkit::{EventStreamClient, NatsServer};
use tower_push::{Event, Hub, source::hub::PublishOptions};
use tower_push_nats::{
    Error, JetStream, JetStreamBuilder, JetStreamHub, ReaderState, ReaderStatus,
};

use crate::nodes::builder;

const HEARTBEAT: Duration = Duration::from_millis(50);

/// The number of heartbeats after the reader has found out that the server is away.
const HEARTBEATS: usize = 20;

/// How the server is away.
#[derive(Clone, Copy, Debug)]
enum Absence {
    /// The server answers nothing.
    Silent,
    /// The server is killed, and starts again with its data.
    Killed,
}

impl Absence {
    fn begin(self, server: &mut NatsServer) {
        match self {
            Self::Silent => server.pause(),
            Self::Killed => server.kill(),
        }
    }

    fn end(self, server: &mut NatsServer) {
        match self {
            Self::Silent => server.resume(),
            Self::Killed => server.start_again(),
        }
    }
}

/// A node with a relay, or with a hub.
#[derive(Clone)]
enum Node {
    Relay(JetStream),
    Hub(JetStreamHub),
}

impl Node {
    async fn connect(server: &NatsServer, is_hub: bool, retry_time: Duration) -> Self {
        let builder: JetStreamBuilder = builder(server)
            .request_timeout(Duration::from_millis(300))
            .publish_retry_time(retry_time);
        match is_hub {
            true => Self::Hub(builder.connect_hub(Hub::builder()).await.unwrap()),
            false => Self::Relay(builder.connect().await.unwrap()),
        }
    }

    async fn client(&self) -> EventStreamClient {
        match self {
            Self::Relay(node) => EventStreamClient::connect(node.clone(), HEARTBEAT).await,
            Self::Hub(node) => {
                let source = node.hub().topics("room").unwrap();
                EventStreamClient::connect(source, HEARTBEAT).await
            }
        }
    }

    async fn publish(&self, text: &'static str) -> Result<(), Error> {
        match self {
            Self::Relay(node) => node.publish(&Event::text(text)).await.map(drop),
            Self::Hub(node) => {
                let options = PublishOptions::new();
                let published = node.hub().publish_and_wait("room", text, &options).await;
                published.map(drop).map_err(|error| {
                    assert!(error.is_publish_failed());
                    let source = std::error::Error::source(&error).unwrap();
                    source.downcast_ref::<Error>().unwrap().clone()
                })
            }
        }
    }

    fn status(&self) -> ReaderStatus {
        match self {
            Self::Relay(node) => node.reader_status(),
            Self::Hub(node) => node.reader_status(),
        }
    }
}

async fn server_is_away(absence: Absence, is_hub: bool) {
    let mut server = NatsServer::start("");
    let node = Node::connect(&server, is_hub, Duration::ZERO).await;
    let patient = Node::connect(&server, is_hub, Duration::from_secs(60)).await;
    let mut client = node.client().await;
    node.publish("before").await.unwrap();
    assert_eq!(client.next_data().await, "before");

    absence.begin(&mut server);
    // Until the NATS client has noticed that the server is away, it accepts publications, and may send them when it is connected again.
    let unknown = node.publish("unknown").await.unwrap_err();
    assert!(
        unknown.is_unavailable() && unknown.may_be_published(),
        "{unknown}"
    );
    // Later publications fail because there is no connection.
    loop {
        let error = node.publish("unknown").await.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        if !error.may_be_published() {
            break;
        }
    }
    // The readers find out within the time for which they wait for the server.
    let is_lost = |node: &Node| node.status().state == ReaderState::Reconnecting;
    while !is_lost(&node) || !is_lost(&patient) {
        client.expect_heartbeats(1).await;
    }
    // An event that the server may have got is not published again, so this publication begins without a connection.
    let waiting = tokio::spawn(async move { patient.publish("waited").await.map(|()| patient) });
    client.expect_heartbeats(HEARTBEATS).await;
    let status = node.status();
    assert_eq!(status.state, ReaderState::Reconnecting);
    assert!(
        status
            .error
            .as_ref()
            .is_some_and(|error| error.is_unavailable())
    );
    assert!(!status.is_healthy(HEARTBEAT * 10));
    assert!(!waiting.is_finished());

    absence.end(&mut server);
    let _patient = waiting.await.unwrap().unwrap();
    while node.publish("after").await.is_err() {
        client.expect_heartbeats(1).await;
    }
    // The event "after" may arrive more than once, because a publication that failed may reach the stream, too.
    let mut data = vec![client.next_data().await];
    while data.last().is_none_or(|last| last != "after") {
        data.push(client.next_data().await);
    }
    data.retain(|data| data != "unknown");
    assert_eq!(data, ["waited", "after"]);
    client.expect_heartbeats(2).await;
    assert_eq!(node.status().state, ReaderState::Following);
}

#[tokio::test]
async fn relay_survives_silent_server() {
    server_is_away(Absence::Silent, false).await;
}

#[tokio::test]
async fn relay_survives_killed_server() {
    server_is_away(Absence::Killed, false).await;
}

#[tokio::test]
async fn hub_survives_silent_server() {
    server_is_away(Absence::Silent, true).await;
}

#[tokio::test]
async fn hub_survives_killed_server() {
    server_is_away(Absence::Killed, true).await;
}
