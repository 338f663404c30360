//! What a node that reads JetStream costs for each delivered event, and its memory: see [`testkit::delivery_cost`].
//!
//! ```sh
//! cargo bench -p tower-push-nats --bench delivery_cost
//! ```

use testkit::{
    NatsServer,
    delivery_cost::{self, MeasuredBroker},
};
use tower_push::{BoxError, Event, Hub, Relay};
use tower_push_nats::{JetStream, JetStreamBuilder, JetStreamHub, NatsServers};

const STREAM: &str = "events";

struct Nats;

impl MeasuredBroker for Nats {
    type Server = NatsServer;
    type RelayNode = JetStream;
    type HubNode = JetStreamHub;

    fn start_server() -> NatsServer {
        NatsServer::start("")
    }

    fn url(server: &NatsServer) -> String {
        server.url()
    }

    async fn connect_relay(url: &str, log_events: usize) -> Result<JetStream, BoxError> {
        Ok(builder(url)?.max_log_events(log_events).connect().await?)
    }

    fn relay(node: &JetStream) -> &Relay {
        node.relay()
    }

    async fn publish(node: &JetStream, event: &Event) -> Result<(), BoxError> {
        node.publish(event).await?;
        Ok(())
    }

    async fn connect_hub(url: &str) -> Result<JetStreamHub, BoxError> {
        Ok(builder(url)?.connect_hub(Hub::builder()).await?)
    }

    fn hub(node: &JetStreamHub) -> &Hub {
        node.hub()
    }
}

fn builder(url: &str) -> Result<JetStreamBuilder, BoxError> {
    Ok(JetStream::builder(NatsServers::new(url)?, STREAM))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    delivery_cost::run::<Nats>().await
}
