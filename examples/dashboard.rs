//! A dashboard: each page chooses its topics, and gets them over one connection. The last value of a topic comes first.
//!
//! ```text
//! cargo run --example dashboard
//! ```
//! The program prints an address to open in a browser. Two topics in a terminal:
//! ```text
//! curl -N 'http://127.0.0.1:3000/loads?topic=machine/1&topic=machine/2'
//! ```
//! Another address: `cargo run --example dashboard 0.0.0.0:8080`.

use std::time::Duration;

use axum::{Router, extract::State, routing::any};
use serde_json::json;
use tokio::{net::TcpListener, time::interval};
use tower_push::{
    BoxError, Error, Event, Hub, Push, PushLayer,
    event::Topic,
    source::hub::{ClientTopicsSource, HubCommands, Topics},
};
use tower_push_examples::{demo, page};

/// The topics are `machine/1` to `machine/24`.
const MACHINES: usize = 24;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let hub = Hub::builder().last_value_only().build();
    // A page names its topics in the query, and changes them by commands on its WebSocket.
    let source = hub
        .subscribe(Topics::from_query("topic").max_topics(MACHINES))
        .authorize(async |_, topic: Topic| is_machine(&topic))
        .commands(HubCommands::new());
    let app = page::routes(include_str!("dashboard/index.html"))
        .route(
            "/dashboard.js",
            page::script(include_str!("dashboard/dashboard.js")),
        )
        .merge(Router::new().route("/loads", any(loads)).with_state(source))
        .layer(PushLayer::new());
    tokio::spawn(measure(hub));
    let listener = TcpListener::bind(demo::address()?).await?;
    println!("open http://{}", listener.local_addr()?);
    tower_push::serve(listener, app).await?;
    Ok(())
}

async fn loads(State(source): State<ClientTopicsSource>) -> Push {
    Push::new(source)
}

fn is_machine(topic: &Topic) -> bool {
    let number = topic.as_str().strip_prefix("machine/");
    let number = number.and_then(|number| number.parse().ok());
    number.is_some_and(|number| (1..=MACHINES).contains(&number))
}

/// Publishes the load of the machine `n` every `n` seconds.
async fn measure(hub: Hub) -> Result<(), Error> {
    let mut seconds = interval(Duration::from_secs(1));
    for second in 0_usize.. {
        seconds.tick().await;
        for machine in (1..=MACHINES).filter(|machine| second % machine == 0) {
            let phase = (second + 7 * machine) as f64 / 10.0;
            let load = 50.0 + 45.0 * phase.sin();
            let value = Event::json(&json!({ "load": load.round(), "second": second }))?;
            hub.publish(format!("machine/{machine}"), value)?;
        }
    }
    Ok(())
}
