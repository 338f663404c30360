//! A node of a cluster: any number of nodes show one feed, which is in Redis or Valkey, and a client may return to any of them.
//!
//! ```text
//! redis-server --save ''
//! cargo run --example cluster 127.0.0.1:3000 redis://127.0.0.1/
//! cargo run --example cluster 127.0.0.1:3001 redis://127.0.0.1/
//! ```
//! Each node publishes an event every second. Open the printed addresses in a browser: all pages show the events of all nodes. In a
//! terminal:
//! ```text
//! curl -N http://127.0.0.1:3000/feed                                             # Server-Sent Events
//! curl -N http://127.0.0.1:3001/feed -H 'last-event-id: AN-ID-OF-THE-OTHER-NODE' # continues after that event
//! curl http://127.0.0.1:3000/feed -d 'hello'                                     # publishes, on all nodes
//! curl http://127.0.0.1:3000/feed -d 'hello' -H 'idempotency-key: 7'             # publishes once
//! curl http://127.0.0.1:3000/ready                                               # 200, or 503 if Redis does not answer
//! redis-cli XADD events '*' data 'from the command line'
//! ```
//! Stop Redis and start it again: the streams stay open, and go on. Ctrl-C ends the streams first and then the node.

use std::{env, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    routing::{any, get},
};
use tokio::{net::TcpListener, time::interval};
use tower_push::{
    BoxError, Drain, Event, Guard, Push, guard::DrainPlan, layer::TransportLayer,
    source::StartPosition,
};
use tower_push_examples::demo;
use tower_push_redis::{Error, RedisServers, RedisStream, redis::IntoConnectionInfo};

/// The longest time for which Redis may say nothing: it answers every 5 s, even if there are no events.
const MAX_SILENCE: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::args().nth(2);
    let url = url.as_deref().unwrap_or("redis://127.0.0.1/");
    let stream = RedisStream::builder(RedisServers::single(url.into_connection_info()?)?, "events")
        .log_events(10_000)
        .max_len(100_000)
        // A node that starts before Redis waits, and so does a publication while Redis is away.
        .connect_wait(Duration::from_secs(60))
        .publish_retry_time(Duration::from_secs(5))
        .connect()
        .await?;

    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let transports = TransportLayer::with(guard.wrap(demo::transports()));
    let mut app = Router::new()
        .route("/feed", any(subscribe).layer(transports).post(publish))
        .route("/ready", get(ready));
    for (path, media_type, content) in demo::PAGE_FILES {
        app = app.route(path, get(([(CONTENT_TYPE, media_type)], content)));
    }
    let app = app.with_state(stream.clone());

    let listener = TcpListener::bind(demo::address()?).await?;
    let address = listener.local_addr()?;
    println!("open http://{address}");
    tokio::spawn(publish_ticks(stream, address.to_string()));
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

/// Clients without a cursor get the last events first.
async fn subscribe(State(stream): State<RedisStream>) -> Push {
    Push::new(stream.with_start(StartPosition::Last(10)))
}

/// Publishes the request's body. Returns the id of the event.
async fn publish(
    State(stream): State<RedisStream>,
    headers: HeaderMap,
    body: String,
) -> Result<String, (StatusCode, String)> {
    let event = Event::text(body);
    let key = headers.get("idempotency-key");
    let published = match key.and_then(|key| key.to_str().ok()) {
        Some(key) => {
            let published = stream.publish_once(&event, key).await;
            published.map(|publication| publication.id)
        }
        None => stream.publish(&event).await,
    };
    let id = published.map_err(|error| (status_of(&error), error.to_string()))?;
    Ok(id.as_str().to_owned())
}

fn status_of(error: &Error) -> StatusCode {
    match error.is_too_large() {
        true => StatusCode::PAYLOAD_TOO_LARGE,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The answer to a load balancer that asks whether this node can serve.
async fn ready(State(stream): State<RedisStream>) -> (StatusCode, String) {
    let status = stream.reader_status();
    let code = match status.is_healthy(MAX_SILENCE) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, format!("{status:#?}\n"))
}

/// Publishes an event every second.
async fn publish_ticks(stream: RedisStream, name: String) {
    let mut ticks = interval(Duration::from_secs(1));
    for number in 1_u64.. {
        ticks.tick().await;
        let event = Event::text(format!("tick {number} of {name}"));
        if let Err(error) = stream.publish(&event).await {
            eprintln!("{error}");
        }
    }
}
