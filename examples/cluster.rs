//! A node of a cluster: any number of nodes show one feed, which is in Redis, Valkey or NATS, and a client may return to any of them.
//!
//! ```text
//! redis-server --save ''
//! cargo run --example cluster 127.0.0.1:3000 redis://127.0.0.1/
//! cargo run --example cluster 127.0.0.1:3001 redis://127.0.0.1/
//! ```
//! With NATS JetStream instead:
//! ```text
//! nats-server --jetstream --store_dir /tmp/nats
//! cargo run --example cluster 127.0.0.1:3000 nats://127.0.0.1/
//! cargo run --example cluster 127.0.0.1:3001 nats://127.0.0.1/
//! ```
//! Each node publishes an event every second. Open the printed addresses in a browser: all pages show the events of all nodes. In a
//! terminal:
//! ```text
//! curl -N http://127.0.0.1:3000/feed                                             # Server-Sent Events
//! curl -N http://127.0.0.1:3001/feed -H 'last-event-id: AN-ID-OF-THE-OTHER-NODE' # continues after that event
//! curl http://127.0.0.1:3000/feed -d 'hello'                                     # publishes, on all nodes
//! curl http://127.0.0.1:3000/feed -d 'hello' -H 'idempotency-key: 7'             # publishes once
//! curl http://127.0.0.1:3000/ready                                               # 200, or 503 if the broker does not answer
//! redis-cli XADD events '*' data 'from the command line'
//! nats pub events 'from the command line'
//! ```
//! Stop the broker and start it again: the streams stay open, and go on. Ctrl-C ends the streams first and then the node.

use std::{env, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::{any, get},
};
use tokio::{net::TcpListener, time::interval};
use tower_push::{
    BoxError, Drain, Event, EventId, Guard, Push, PushLayer, guard::DrainPlan,
    source::StartPosition,
};
use tower_push_examples::{demo, page};
use tower_push_nats::{JetStream, NatsServers};
use tower_push_redis::{RedisServers, RedisStream, redis::IntoConnectionInfo};

/// The longest time for which the broker may say nothing: it answers every 5 s, even if there are no events.
const MAX_SILENCE: Duration = Duration::from_secs(15);

/// The number of events in the memory of each node, from which clients resume.
const LOG_EVENTS: usize = 10_000;

/// The number of events that the broker keeps.
const MAX_LEN: u64 = 100_000;

/// The time for which a node that starts before its broker waits.
const CONNECT_WAIT: Duration = Duration::from_secs(60);

/// The time for which a publication waits while the broker is away.
const PUBLISH_RETRY_TIME: Duration = Duration::from_secs(5);

/// The feed that all nodes share.
#[derive(Clone)]
enum SharedFeed {
    Redis(RedisStream),
    Nats(JetStream),
}

impl SharedFeed {
    /// Connects to the broker with this URL.
    async fn connect(url: &str) -> Result<Self, BoxError> {
        if url.starts_with("nats://") {
            let stream = JetStream::builder(NatsServers::new(url)?, "events")
                .max_log_events(LOG_EVENTS)
                .max_len(MAX_LEN)
                .connect_retry_time(CONNECT_WAIT)
                .publish_retry_time(PUBLISH_RETRY_TIME);
            return Ok(Self::Nats(stream.connect().await?));
        }
        let servers = RedisServers::single(url.into_connection_info()?)?;
        let stream = RedisStream::builder(servers, "events")
            .max_log_events(LOG_EVENTS)
            .max_len(MAX_LEN)
            .connect_retry_time(CONNECT_WAIT)
            .publish_retry_time(PUBLISH_RETRY_TIME);
        Ok(Self::Redis(stream.connect().await?))
    }

    /// Returns the feed for one client. Clients without a cursor get the last events first.
    fn push(&self) -> Push {
        let start = StartPosition::Last(10);
        match self {
            Self::Redis(stream) => Push::new(stream.with_start(start)),
            Self::Nats(stream) => Push::new(stream.with_start(start)),
        }
    }

    /// Publishes an event. With an idempotency key, publishes the event once, however often the client asks for it.
    async fn publish(&self, event: &Event, key: Option<&str>) -> Result<EventId, PublishError> {
        match self {
            Self::Redis(stream) => {
                let published = match key {
                    Some(key) => stream
                        .publish_once(event, key)
                        .await
                        .map(|publication| publication.id),
                    None => stream.publish(event).await,
                };
                published.map_err(|error| publish_error(&error, error.is_too_large()))
            }
            Self::Nats(stream) => {
                let published = match key {
                    Some(key) => stream
                        .publish_once(event, key)
                        .await
                        .map(|publication| publication.id),
                    None => stream.publish(event).await,
                };
                published.map_err(|error| publish_error(&error, error.is_too_large()))
            }
        }
    }

    /// Returns whether the broker answers, and a description of the reader.
    fn health(&self) -> (bool, String) {
        match self {
            Self::Redis(stream) => {
                let status = stream.reader_status();
                (status.is_healthy(MAX_SILENCE), format!("{status:#?}\n"))
            }
            Self::Nats(stream) => {
                let status = stream.reader_status();
                (status.is_healthy(MAX_SILENCE), format!("{status:#?}\n"))
            }
        }
    }
}

/// The response to a publication that has failed: its status and its text.
type PublishError = (StatusCode, String);

fn publish_error(error: &impl ToString, is_too_large: bool) -> PublishError {
    let status = match is_too_large {
        true => StatusCode::PAYLOAD_TOO_LARGE,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, error.to_string())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::args().nth(2);
    let url = url.as_deref().unwrap_or("redis://127.0.0.1/");
    let feed = SharedFeed::connect(url).await?;

    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let transports = PushLayer::new().guard(&guard);
    let routes = Router::new()
        .route("/feed", any(subscribe).layer(transports).post(publish))
        .route("/ready", get(ready))
        .with_state(feed.clone());
    let script = page::script(include_str!("cluster/cluster.js"));
    let app = page::routes(include_str!("cluster/index.html"))
        .route("/cluster.js", script)
        .merge(routes);

    let listener = TcpListener::bind(demo::address()?).await?;
    let address = listener.local_addr()?;
    println!("open http://{address}");
    tokio::spawn(publish_ticks(feed, address.to_string()));
    let stop = {
        let drain = drain.clone();
        async move {
            let _ = tokio::signal::ctrl_c().await;
            drain.start(DrainPlan::within(Duration::from_secs(5)));
        }
    };
    tokio::spawn(stop);
    tower_push::serve(listener, app).drain(&drain).await?;
    Ok(())
}

async fn subscribe(State(feed): State<SharedFeed>) -> Push {
    feed.push()
}

/// Publishes the request's body. Returns the id of the event.
async fn publish(
    State(feed): State<SharedFeed>,
    headers: HeaderMap,
    body: String,
) -> Result<String, PublishError> {
    let key = headers.get("idempotency-key");
    let key = key.and_then(|key| key.to_str().ok());
    let id = feed.publish(&Event::text(body), key).await?;
    Ok(id.as_str().to_owned())
}

/// The answer to a load balancer that asks whether this node can serve.
async fn ready(State(feed): State<SharedFeed>) -> (StatusCode, String) {
    let (is_healthy, description) = feed.health();
    let status = match is_healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, description)
}

/// Publishes an event every second.
async fn publish_ticks(feed: SharedFeed, name: String) {
    let mut ticks = interval(Duration::from_secs(1));
    for number in 1_u64.. {
        ticks.tick().await;
        let event = Event::text(format!("tick {number} of {name}"));
        if let Err((_, error)) = feed.publish(&event, None).await {
            eprintln!("{error}");
        }
    }
}
