//! A user's notifications in all of the user's tabs. Each user is a topic of a hub, which exists while somebody uses it.
//!
//! ```text
//! cargo run --example notifications
//! ```
//! The program prints an address to open in several tabs, as one user or as several. Other programs notify users over HTTP:
//! ```text
//! curl -d 'Your order was shipped' http://127.0.0.1:3000/topics/user/ada
//! ```
//! Another address: `cargo run --example notifications 0.0.0.0:8080`.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::request::Parts,
    routing::any,
};
use tokio::net::TcpListener;
use tower_push::{
    BoxError, Hub, Push, PushLayer,
    event::Topic,
    source::{Rejection, StartPosition},
};
use tower_push_examples::{demo, page};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A new tab gets the last 20 notifications, and a tab that returns gets all that it has missed.
    let hub = Hub::builder().start(StartPosition::Last(20)).build();
    let publisher = hub.publisher().authorize(may_notify);
    let app = page::routes(include_str!("notifications/index.html"))
        .route(
            "/notifications.js",
            page::script(include_str!("notifications/notifications.js")),
        )
        .nest_service("/topics", publisher)
        .merge(
            Router::new()
                .route("/notifications/{user}", any(notifications))
                .with_state(hub),
        )
        .layer(PushLayer::new());
    let listener = TcpListener::bind(demo::address()?).await?;
    println!("open http://{}", listener.local_addr()?);
    tower_push::serve(listener, app).await?;
    Ok(())
}

/// The notifications of one user. A real program takes the user from the session: nobody may read those of another user.
async fn notifications(
    State(hub): State<Hub>,
    Path(user): Path<String>,
) -> Result<Push, Rejection> {
    Ok(Push::new(hub.topic(format!("user/{user}"))?))
}

/// Here, everybody may notify every user. A real program looks at `head.headers` or `head.extensions`.
async fn may_notify(_head: Arc<Parts>, topic: Topic) -> bool {
    topic.as_str().starts_with("user/")
}
