//! A chat with a list of the members of each room: each browser tab has one WebSocket, with messages in both directions.
//!
//! ```text
//! cargo run --example chat
//! ```
//! The program prints an address to open in two tabs or two browsers. `/?room=garden` is another room. A terminal can read a room too, over any
//! other transport:
//! ```text
//! curl -N 'http://127.0.0.1:3000/chat?room=lobby'
//! ```
//! Another address: `cargo run --example chat 0.0.0.0:8080`.

use std::{
    future::ready,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Query, State},
    routing::any,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{net::TcpListener, time::sleep};
use tower_push::{
    BoxError, Event, Hub, Push, PushLayer, PushSource,
    event::{Payload, Topic},
    source::{
        StartPosition,
        hub::{PresenceOptions, PublishOptions, TopicAccess, Topics},
    },
};
use tower_push_examples::{demo, page};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A new client gets the last 50 messages of its room, and a client that returns gets all that it has missed.
    let presence = PresenceOptions::new().topic_suffix("/members");
    let hub = Hub::builder()
        .start(StartPosition::Last(50))
        .presence(presence.grace(Duration::from_secs(3)))
        .build();
    let app = page::routes(include_str!("chat/index.html"))
        .route(
            "/chat.css",
            page::file("text/css", include_str!("chat/chat.css")),
        )
        .route("/chat.js", page::script(include_str!("chat/chat.js")))
        .merge(Router::new().route("/chat", any(chat)).with_state(hub))
        .layer(PushLayer::new());
    let listener = TcpListener::bind(demo::address()?).await?;
    println!("open http://{}", listener.local_addr()?);
    tower_push::serve(listener, app).await?;
    Ok(())
}

/// Who opens a connection. In a real chat, the member is that of a session.
#[derive(Deserialize)]
struct Visitor {
    room: String,
    /// The key of the member. A client without a key only reads.
    me: Option<String>,
    #[serde(default)]
    name: String,
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

async fn chat(State(hub): State<Hub>, Query(visitor): Query<Visitor>) -> Push {
    let Visitor { room, me, name } = visitor;
    // The messages of the room, and who is there. A room `lobby/members` would be the members of the lobby: it has no topic, and is refused.
    let names = match room.contains('/') {
        true => Vec::new(),
        false => vec![room.clone(), format!("{room}/members")],
    };
    let topics = Topics::from_fn(move |_| names.clone());
    let member = me.clone();
    let source = hub.subscribe(topics).authorize(move |_, topic: Topic| {
        let access = TopicAccess::allow();
        ready(match &member {
            _ if topic.as_str().ends_with("/members") => access.with_members(),
            Some(key) => access.present(key.as_str(), name.as_str()),
            None => access,
        })
    });
    Push::new(source.answering(move |message: Payload| {
        let published = match &me {
            Some(key) => publish(&hub, &room, key, &message),
            None => Err("a client without a key only reads".into()),
        };
        // Only the client that has sent the message gets the refusal.
        let refusal = published.err().map(|reason| {
            let refusal = json!({ "said": message.as_text(), "reason": reason.to_string() });
            Event::json(&refusal)?.with_type("refused")
        });
        async {
            // Limits the rate of messages: the next one is read when this one is answered.
            sleep(Duration::from_millis(20)).await;
            refusal
        }
    }))
}

/// Checks a message, and publishes it unless it was published before.
fn publish(hub: &Hub, room: &str, member: &str, payload: &Payload) -> Result<(), BoxError> {
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
    // The others see the name under which the member has spoken last.
    let _ = hub.presence(room)?.update(member, message.name.as_str());
    let event = Event::json(&message)?.with_type("message")?;
    let once = PublishOptions::new().idempotency_key(message.key);
    hub.publish_with(room, event, &once)?;
    Ok(())
}
