//! What a node that reads Redis costs for each delivered event, and its memory: see [`testkit::delivery_cost`].
//!
//! ```sh
//! cargo bench -p tower-push-redis --bench delivery_cost
//! ```

use testkit::{
    RedisProgram, RedisServer,
    delivery_cost::{self, MeasuredBroker},
};
use tower_push::{BoxError, Event, Hub, Relay};
use tower_push_redis::{RedisHub, RedisServers, RedisStream, RedisStreamBuilder};

const KEY: &str = "events";

struct Redis;

impl MeasuredBroker for Redis {
    type Server = RedisServer;
    type RelayNode = RedisStream;
    type HubNode = RedisHub;

    fn start_server() -> RedisServer {
        RedisServer::start(RedisProgram::Redis, &[])
    }

    fn url(server: &RedisServer) -> String {
        server.url()
    }

    async fn connect_relay(url: &str, log_events: usize) -> Result<RedisStream, BoxError> {
        Ok(builder(url)?.max_log_events(log_events).connect().await?)
    }

    fn relay(node: &RedisStream) -> &Relay {
        node.relay()
    }

    async fn publish(node: &RedisStream, event: &Event) -> Result<(), BoxError> {
        node.publish(event).await?;
        Ok(())
    }

    async fn connect_hub(url: &str) -> Result<RedisHub, BoxError> {
        Ok(builder(url)?.connect_hub(Hub::builder()).await?)
    }

    fn hub(node: &RedisHub) -> &Hub {
        node.hub()
    }
}

fn builder(url: &str) -> Result<RedisStreamBuilder, BoxError> {
    Ok(RedisStream::builder(
        RedisServers::single(url.to_owned())?,
        KEY,
    ))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    delivery_cost::run::<Redis>().await
}
