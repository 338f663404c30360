//! A broker is away for some time: the clients' streams stay open and have heartbeats, publications fail or wait, and then everything goes on.

use std::{error::Error, future::Future, time::Duration};

use tower_push::{
    Hub,
    source::{
        hub::PublishOptions,
        relay::{ReaderState, ReaderStatus},
    },
};

use crate::{Absence, BrokerServer, EventStreamClient};

/// A broker, and its nodes with a relay or with a hub.
pub trait AwayBroker {
    /// A server of the broker.
    type Server: BrokerServer;

    /// A node.
    type Node: Send + 'static;

    /// The error of a publication.
    type Error: Error + Clone + Send + Sync + 'static;

    /// Whether the broker's client accepts publications until it has noticed that the server is away, and may send them later.
    const SENDS_LATER: bool;

    /// Starts a server.
    fn start_server() -> Self::Server;

    /// Connects a node to which a silent server is away after 300 ms, and which publishes again for `retry_time`.
    fn connect(
        server: &Self::Server,
        is_hub: bool,
        retry_time: Duration,
    ) -> impl Future<Output = Self::Node>;

    /// Connects a client, to the topic `room` if the node has a hub.
    fn client(node: &Self::Node, heartbeat: Duration) -> impl Future<Output = EventStreamClient>;

    /// Publishes a text, to the topic `room` if the node has a hub.
    fn publish(
        node: &Self::Node,
        text: &'static str,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns the status of a node's reader.
    fn status(node: &Self::Node) -> ReaderStatus<Self::Error>;

    /// Returns whether an error says that the server is not available.
    fn is_unavailable(error: &Self::Error) -> bool;

    /// Returns whether an error says that the event may be published.
    fn may_be_published(error: &Self::Error) -> bool;
}

const HEARTBEAT: Duration = Duration::from_millis(50);

/// The number of heartbeats after the reader has found out that the server is away.
const HEARTBEATS: usize = 20;

/// Publishes a text to the topic `room` of a hub on a broker whose errors are `E`.
pub async fn publish_to_room<E: Error + Clone + 'static>(
    hub: &Hub,
    text: &'static str,
) -> Result<(), E> {
    let options = PublishOptions::new();
    let published = hub.publish_and_wait("room", text, &options).await;
    published.map(drop).map_err(|error| {
        assert!(error.is_publish_failed());
        let source = error.source().unwrap();
        source.downcast_ref::<E>().unwrap().clone()
    })
}

/// Takes the server away, and lets it come back.
pub async fn broker_is_away<B: AwayBroker>(absence: Absence, is_hub: bool) {
    let mut server = B::start_server();
    let node = B::connect(&server, is_hub, Duration::ZERO).await;
    let patient = B::connect(&server, is_hub, Duration::from_secs(60)).await;
    let mut client = B::client(&node, HEARTBEAT).await;
    B::publish(&node, "before").await.unwrap();
    assert_eq!(client.next_data().await, "before");

    absence.begin(&mut server);
    // A silent server may have got this publication.
    let unknown = B::publish(&node, "unknown").await.unwrap_err();
    assert!(B::is_unavailable(&unknown), "{unknown}");
    assert!(
        B::may_be_published(&unknown) || !B::SENDS_LATER,
        "{unknown}"
    );
    // Later publications fail because there is no connection.
    loop {
        let error = B::publish(&node, "unknown").await.unwrap_err();
        assert!(B::is_unavailable(&error), "{error}");
        if !B::may_be_published(&error) {
            break;
        }
        assert!(B::SENDS_LATER, "{error}");
    }
    // The readers find out within the time for which they wait for the server.
    let is_lost = |node| B::status(node).state == ReaderState::Reconnecting;
    while !is_lost(&node) || !is_lost(&patient) {
        client.expect_heartbeats(1).await;
    }
    // An event that the server may have got is not published again, so this publication begins without a connection.
    let waiting = async move { B::publish(&patient, "waited").await.map(|()| patient) };
    let mut waiting = Box::pin(waiting);
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("the publication does not wait"),
        () = client.expect_heartbeats(HEARTBEATS) => {}
    }
    let status = B::status(&node);
    assert_eq!(status.state, ReaderState::Reconnecting);
    assert!(status.error.as_ref().is_some_and(B::is_unavailable));
    assert!(!status.is_healthy(HEARTBEAT * 10));

    absence.end(&mut server);
    let _patient = waiting.await.unwrap();
    while B::publish(&node, "after").await.is_err() {
        client.expect_heartbeats(1).await;
    }
    let mut data = vec![client.next_data().await];
    while data.last().is_none_or(|last| last != "after") {
        data.push(client.next_data().await);
    }
    if !B::SENDS_LATER {
        let unknown = data.iter().filter(|data| *data == "unknown").count();
        assert!(
            unknown <= usize::from(absence == Absence::Silent),
            "{data:?}"
        );
    }
    data.retain(|data| data != "unknown");
    assert_eq!(data, ["waited", "after"]);
    client.expect_heartbeats(2).await;
    assert_eq!(B::status(&node).state, ReaderState::Following);
}
