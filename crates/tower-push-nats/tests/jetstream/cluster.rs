//! A cluster of three servers, and what nodes do when some of the servers fail.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use testkit::{HubClient, NatsServer, RelayClient, TEST_TIMEOUT, free_port, wait_until};
use tokio::time::{sleep, timeout};
use tower_push::Hub;
use tower_push_nats::{JetStreamBuilder, ReaderState, ReaderStatus};

use crate::nodes::{
    Monitoring, Operator, STREAM, builder, publish_numbers, wait_for_state, wait_until_read,
};

/// Three servers that have the stream of the nodes.
struct NatsCluster {
    servers: [NatsServer; 3],
    /// The port of the first server.
    monitoring: Monitoring,
}

impl NatsCluster {
    async fn start() -> Self {
        let ports: [u16; 3] = std::array::from_fn(|_| free_port());
        let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\""));
        let routes = routes.join(", ");
        let monitoring = Monitoring::new();
        let mut config = monitoring.config();
        let servers = ports.map(|port| {
            let cluster = format!(
                "cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n{config}"
            );
            config.clear();
            NatsServer::start(&cluster)
        });
        let cluster = Self {
            servers,
            monitoring,
        };
        let created = async {
            // Until the servers know each other, a stream with three replicas is refused.
            while cluster.builder(0).connect().await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        let created = timeout(3 * TEST_TIMEOUT, created).await;
        created.expect("no cluster");
        cluster
    }

    /// Returns the builder of a node that connects to one of the servers.
    fn builder(&self, server: usize) -> JetStreamBuilder {
        builder(&self.servers[server]).replicas(3)
    }

    /// Returns the number of the server with this name.
    fn server_named(&self, name: &Value) -> usize {
        let mut servers = self.servers.iter();
        servers.position(|server| *name == server.name()).unwrap()
    }

    /// Gives the stream another leader, until it is not this server.
    async fn move_leader_from(&self, operator: &Operator, server: usize) {
        let moved = async {
            loop {
                let info = operator.stream_request("STREAM.INFO", json!({})).await;
                let leader = &info["cluster"]["leader"];
                if leader.is_string() && self.server_named(leader) != server {
                    return;
                }
                let _ = operator
                    .try_request(&format!("STREAM.LEADER.STEPDOWN.{STREAM}"), json!({}))
                    .await;
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(TEST_TIMEOUT, moved).await.expect("no other leader");
    }

    /// Starts nodes that are connected to the first server, until the consumer of one is on the server `on`.
    async fn node_with_consumer<N>(
        &self,
        operator: &Operator,
        on: usize,
        start_node: impl AsyncFn(JetStreamBuilder) -> N,
    ) -> N {
        let started = async {
            loop {
                let before = consumers(operator).await;
                let node = start_node(self.builder(0)).await;
                let mut now = consumers(operator).await;
                now.retain(|consumer| !before.contains(consumer));
                let name = now.pop_first().unwrap();
                let info = format!("CONSUMER.INFO.{STREAM}.{name}");
                let info = operator.request(&info, json!({})).await;
                if self.server_named(&info["cluster"]["leader"]) == on {
                    return node;
                }
            }
        };
        timeout(TEST_TIMEOUT, started).await.expect("no consumer")
    }
}

/// Returns the names of all consumers of the stream.
async fn consumers(operator: &Operator) -> BTreeSet<String> {
    let names = operator.stream_request("CONSUMER.NAMES", json!({})).await;
    let names = names["consumers"].as_array().into_iter().flatten();
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// The server with the consumers of two nodes dies and starts again, while the nodes are connected to another server. The consumers come back
/// without the requests of the nodes.
#[tokio::test]
async fn lost_request_for_messages_is_noticed() {
    let mut cluster = NatsCluster::start().await;
    let operator = Operator::connect(&cluster.servers[0]).await;
    cluster.move_leader_from(&operator, 2).await;
    let relay_node = cluster
        .node_with_consumer(&operator, 2, async |builder| {
            builder.connect().await.unwrap()
        })
        .await;
    let hub_node = cluster
        .node_with_consumer(&operator, 2, async |builder| {
            builder.connect_hub(Hub::builder()).await.unwrap()
        })
        .await;
    let mut relay_client = RelayClient::connect(relay_node.relay()).await;
    let mut hub_client = HubClient::connect(hub_node.hub(), &["room"]).await;
    let publish = async |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let payload = number.to_string();
            operator.publish("events.room", &[], &payload).await;
        }
    };
    publish(0..3).await;
    relay_client.expect_numbers(0..3).await;
    hub_client.expect_texts(&["0", "1", "2"]).await;

    let connections = cluster.monitoring.connections();
    cluster.servers[2].kill();
    publish(3..5).await;
    cluster.servers[2].start_again();
    publish(5..6).await;
    assert_eq!(hub_node.lag().await.unwrap(), 3);
    let is_healthy = |status: ReaderStatus| status.is_healthy(Duration::from_secs(7));
    let are_unhealthy =
        || !is_healthy(relay_node.reader_status()) && !is_healthy(hub_node.reader_status());
    wait_until(are_unhealthy, || "the nodes seem healthy").await;
    relay_client.expect_numbers(3..6).await;
    hub_client.expect_texts(&["3", "4", "5"]).await;
    wait_until_read(&relay_node).await;
    assert_eq!(hub_node.lag().await.unwrap(), 0);
    wait_for_state(&relay_node, ReaderState::Following).await;
    assert!(is_healthy(relay_node.reader_status()));
    assert_eq!(relay_node.relay().counts().gaps, 0);
    for status in [relay_node.reader_status(), hub_node.reader_status()] {
        assert_eq!(status.reconnects, 1);
    }
    // A silent consumer is no reason to leave the server.
    assert_eq!(cluster.monitoring.connections(), connections);
}

/// Two of three servers are gone, so that the third one has no quorum.
#[tokio::test]
async fn cluster_without_quorum_is_unavailable() {
    let mut cluster = NatsCluster::start().await;
    let builder = cluster.builder(0).publish_retry_time(Duration::ZERO);
    let node = builder.connect().await.unwrap();
    let mut client = RelayClient::connect(node.relay()).await;
    publish_numbers(&node, 0..3).await;
    client.expect_numbers(0..3).await;

    cluster.servers[1].kill();
    cluster.servers[2].kill();
    let error = node.publish(&"unknown".into()).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    // The server that is left takes up to 20 s to notice that it leads nobody. Until then, it answers the node's checks.
    let reconnecting = async {
        while node.reader_status().state != ReaderState::Reconnecting {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = timeout(3 * TEST_TIMEOUT, reconnecting).await;
    assert!(waited.is_ok(), "{:?}", node.reader_status());
    cluster.servers[1].start_again();
    cluster.servers[2].start_again();
    let published = async {
        while node.publish(&"after".into()).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(3 * TEST_TIMEOUT, published)
        .await
        .expect("no quorum");
    loop {
        match client.next().await.as_str() {
            "after" => break,
            // The remaining server had it in its log.
            "unknown" | "cursor" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(node.relay().counts().gaps, 0);
}
