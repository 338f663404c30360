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

use axum::{
    Router,
    extract::State,
    http::header::CONTENT_TYPE,
    routing::{MethodRouter, any, get},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, WatchStream},
};
use tower_push::{
    BoxError, Channel, Event, Item, Push, PushLayer, PushSource,
    event::Payload,
    source::{ClientMessages, Rejection, StartPosition, Subscription, source_fn},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let room = Arc::new(Room {
        messages: Channel::builder().start(StartPosition::Last(50)).build(),
        keys: Mutex::default(),
        here: watch::Sender::new(0),
    });
    let app = Router::new()
        .route("/", file("text/html", include_str!("chat/index.html")))
        .route("/chat.css", file("text/css", include_str!("chat/chat.css")))
        .route(
            "/chat.js",
            file("text/javascript", include_str!("chat/chat.js")),
        )
        .route("/chat", any(chat).with_state(room))
        .layer(PushLayer::new());

    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("open http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

fn file(media_type: &'static str, content: &'static str) -> MethodRouter {
    get(([(CONTENT_TYPE, media_type)], content))
}

async fn chat(State(room): State<Arc<Room>>) -> Push {
    Push::new(source_fn(|subscription| room.join(subscription)))
}

struct Room {
    /// Who comes in gets the last of them, who comes back all that it has missed.
    messages: Channel,
    /// Of the last messages.
    keys: Mutex<VecDeque<String>>,
    /// How many there are who may speak.
    here: watch::Sender<usize>,
}

/// What a client says, and, with the time, what all hear.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Message {
    /// The client's own. It says a message again until it has heard it: a connection may be lost in between.
    key: String,
    name: String,
    text: String,
    /// In milliseconds since 1970.
    #[serde(skip_deserializing)]
    at: u64,
}

impl Room {
    async fn join(
        self: Arc<Self>,
        subscription: Subscription,
    ) -> Result<impl Stream<Item = Result<Item, BoxError>>, Rejection> {
        let (refuse, refused) = mpsc::channel(1);
        // Whoever has no WebSocket can only listen.
        if let Some(said) = subscription.client_messages() {
            tokio::spawn(self.clone().listen(said, refuse));
        }
        let here = WatchStream::new(self.here.subscribe());
        let here = here.map(|here| Event::text(here.to_string()).with_type("here"));
        let refused = ReceiverStream::new(refused);
        let refused = refused.map(|refusal| Event::json(&refusal)?.with_type("refused"));
        // Beside the channel, and without ids: for now, and not for all.
        let beside = here.merge(refused).map(|event| Ok(Item::Event(event?)));
        let messages = self.messages.clone().subscribe(subscription).await?;
        Ok(messages.merge(beside))
    }

    /// To one client, until it is gone.
    async fn listen(self: Arc<Self>, mut said: ClientMessages, refuse: mpsc::Sender<Value>) {
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
        let mut message: Message = serde_json::from_slice(said.as_bytes())?;
        message.at = UNIX_EPOCH.elapsed()?.as_millis().try_into()?;
        for (text, most) in [
            (&message.key, 36),
            (&message.name, 30),
            (&message.text, 1000),
        ] {
            if text.trim().is_empty() || text.chars().count() > most {
                return Err(format!("from 1 to {most} characters, please").into());
            }
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.contains(&message.key) {
            let event = Event::json(&message)?.with_type("message")?;
            self.messages.publish(event)?;
            keys.push_front(message.key);
            keys.truncate(1000);
        }
        Ok(())
    }
}
