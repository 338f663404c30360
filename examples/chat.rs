//! A chat: one WebSocket for each tab, on which messages go both ways.
//!
//! ```text
//! cargo run --example chat
//! ```
//! prints an address to open in two tabs, or two browsers. A terminal can read along, over any other transport:
//! ```text
//! curl -N http://127.0.0.1:3000/chat
//! ```
//! Another address: `cargo run --example chat 0.0.0.0:8080`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::Html, routing};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, WatchStream},
};
use tower_push::{
    BoxError, Channel, Event, Item, Push, PushLayer, PushSource,
    event::Payload,
    source::{Incoming, Rejection, Start, Subscription, source_fn},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let page = Html(include_str!("chat/index.html"));
    let style = ([(CONTENT_TYPE, "text/css")], include_str!("chat/chat.css"));
    let script = (
        [(CONTENT_TYPE, "text/javascript")],
        include_str!("chat/chat.js"),
    );
    let app = Router::new()
        .route("/", routing::get(page))
        .route("/chat.css", routing::get(style))
        .route("/chat.js", routing::get(script))
        .route("/chat", routing::any(chat))
        .with_state(Arc::new(Room::new()))
        .layer(PushLayer::new());

    let address = std::env::args().nth(1);
    let address = address.as_deref().unwrap_or("127.0.0.1:3000");
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

async fn chat(State(room): State<Arc<Room>>) -> Push {
    Push::new(source_fn(async move |subscription| {
        room.join(subscription).await
    }))
}

struct Room {
    /// Who comes in gets the last of them, who comes back all that it has missed.
    messages: Channel,
    keys: Mutex<VecDeque<String>>,
    here: watch::Sender<usize>,
}

/// What a client says, and, with the time, what all hear.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Message {
    /// Made by the client, which says a message again until it hears it.
    key: Text<36>,
    name: Text<30>,
    text: Text<1000>,
    /// In milliseconds since 1970.
    #[serde(skip_deserializing)]
    at: u64,
}

/// From one character to this many.
#[derive(Deserialize, Serialize)]
#[serde(try_from = "String")]
struct Text<const MOST: usize>(String);

impl<const MOST: usize> TryFrom<String> for Text<MOST> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.trim().chars().count() {
            0 => Err("there is nothing in it".into()),
            length if length <= MOST => Ok(Self(text)),
            length => Err(format!("{length} characters are more than {MOST}")),
        }
    }
}

impl Room {
    fn new() -> Self {
        Self {
            messages: Channel::builder().start(Start::Last(50)).build(),
            keys: Mutex::default(),
            here: watch::Sender::new(0),
        }
    }

    async fn join(
        self: Arc<Self>,
        subscription: Subscription,
    ) -> Result<impl Stream<Item = Result<Item, BoxError>>, Rejection> {
        let (refuse, refused) = mpsc::channel(1);
        // Whoever has no WebSocket only listens.
        if let Some(said) = subscription.incoming() {
            tokio::spawn(self.clone().listen(said, refuse));
        }
        let here = WatchStream::new(self.here.subscribe());
        let here = here.map(|here| Event::text(here.to_string()).with_type("here"));
        let refused = ReceiverStream::new(refused);
        let refused = refused.map(|refusal| Event::json(&refusal)?.with_type("refused"));
        // Beside the channel, and without ids: this client's alone, and nothing to come back for.
        let beside = here.merge(refused).map(|event| Ok(Item::Event(event?)));
        let messages = self.messages.clone().subscribe(subscription).await?;
        Ok(messages.merge(beside))
    }

    /// To one client, until it is gone.
    async fn listen(self: Arc<Self>, mut said: Incoming, refuse: mpsc::Sender<serde_json::Value>) {
        self.here.send_modify(|here| *here += 1);
        while let Some(said) = said.next().await {
            if let Err(reason) = self.hear(&said) {
                let refusal = json!({ "said": said.as_text(), "reason": reason.to_string() });
                let _ = refuse.send(refusal).await;
            }
            // Whoever speaks faster than this waits: its socket is not read meanwhile.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.here.send_modify(|here| *here -= 1);
    }

    fn hear(&self, said: &Payload) -> Result<(), BoxError> {
        let said = serde_json::from_slice(said.as_bytes())?;
        let mut message: Message = serde_json::from_value(said)?;
        message.at = UNIX_EPOCH.elapsed()?.as_millis().try_into()?;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.contains(&message.key.0) {
            let event = Event::json(&message)?.with_type("message")?;
            self.messages.publish(event)?;
            keys.push_front(message.key.0);
            keys.truncate(1000);
        }
        Ok(())
    }
}
