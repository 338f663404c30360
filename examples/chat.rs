//! A chat: each browser tab has one WebSocket, with messages in both directions.
//!
//! ```text
//! cargo run --example chat
//! ```
//! The program prints an address to open in two tabs or two browsers. A terminal can read the chat too, over any other transport:
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
    serve::ListenerExt,
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
        recent_keys: Mutex::default(),
        participants: watch::Sender::new(0),
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
    // Without this option, TCP may hold an event back until the client has acknowledged the one before it.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
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
    /// The messages of the chat. A new client gets the last 50, and a client that resumes gets all that it has missed.
    messages: Channel,
    /// The keys of the last 1000 messages.
    recent_keys: Mutex<VecDeque<String>>,
    /// The number of clients that can send messages.
    participants: watch::Sender<usize>,
}

/// A message as a client sends it, and, with the time, as all clients receive it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Message {
    /// A key that the client chooses. The client sends its message again until it has received the message, because a connection may be
    /// lost in between.
    key: String,
    name: String,
    text: String,
    /// The time of the message, in milliseconds since 1970.
    #[serde(skip_deserializing)]
    at: u64,
}

impl Room {
    async fn join(
        self: Arc<Self>,
        subscription: Subscription,
    ) -> Result<impl Stream<Item = Result<Item, BoxError>>, Rejection> {
        let (refusal_sender, refusals) = mpsc::channel(1);
        // Without a WebSocket a client can only read.
        if let Some(messages) = subscription.client_messages() {
            tokio::spawn(self.clone().read_messages(messages, refusal_sender));
        }
        let counts = WatchStream::new(self.participants.subscribe());
        let counts = counts.map(|count| Event::text(count.to_string()).with_type("here"));
        let refusals = ReceiverStream::new(refusals);
        let refusals = refusals.map(|refusal| Event::json(&refusal)?.with_type("refused"));
        // These events concern one client at this moment. They have no ids and are not in the channel, so no client resumes from
        // them.
        let side_events = counts.merge(refusals).map(|event| Ok(Item::Event(event?)));
        let messages = self.messages.clone().subscribe(subscription).await?;
        Ok(messages.merge(side_events))
    }

    /// Reads the messages of one client until it disconnects.
    async fn read_messages(
        self: Arc<Self>,
        mut messages: ClientMessages,
        refusal_sender: mpsc::Sender<Value>,
    ) {
        self.participants.send_modify(|count| *count += 1);
        while let Some(message) = messages.next().await {
            if let Err(reason) = self.publish_message(&message) {
                let refusal = json!({ "said": message.as_text(), "reason": reason.to_string() });
                let _ = refusal_sender.send(refusal).await;
            }
            // Limits the rate of messages: the client's socket is not read meanwhile.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.participants.send_modify(|count| *count -= 1);
    }

    /// Checks a message, and publishes it unless it was published before.
    fn publish_message(&self, payload: &Payload) -> Result<(), BoxError> {
        let mut message: Message = serde_json::from_slice(payload.as_bytes())?;
        message.at = UNIX_EPOCH.elapsed()?.as_millis().try_into()?;
        for (text, max_chars) in [
            (&message.key, 36),
            (&message.name, 30),
            (&message.text, 1000),
        ] {
            if text.trim().is_empty() || text.chars().count() > max_chars {
                return Err(format!("from 1 to {max_chars} characters, please").into());
            }
        }
        let mut recent_keys = self
            .recent_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !recent_keys.contains(&message.key) {
            let event = Event::json(&message)?.with_type("message")?;
            self.messages.publish(event)?;
            recent_keys.push_front(message.key);
            recent_keys.truncate(1000);
        }
        Ok(())
    }
}
