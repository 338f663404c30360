//! Clients that know nothing of tower-push: SDKs of language models, GraphQL clients and readers of lines, from npm and PyPI.
//! `scripts/setup` installs them. Without one of them, its tests fail.

use std::{process::Stdio, time::Duration};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use testkit::{TEST_TIMEOUT, TestServer, programs};
use tokio::process::Command;
use tower_push::{
    Event, Item, KeepAlive, PushSource,
    event::{EventType, IntoItem},
    format::{Multipart, Ndjson},
    service,
    source::source_fn,
    transport::{Chunked, Sse, Transport, sse::HeartbeatForm},
};

/// The interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(10);

/// The time before each event: a few heartbeats long.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);

fn keep_alive() -> KeepAlive {
    KeepAlive::new().interval(HEARTBEAT_INTERVAL)
}

fn sse(sse: Sse) -> Sse {
    sse.keep_alive(keep_alive())
}

fn chunked(format: impl tower_push::format::Format) -> Chunked {
    Chunked::new(format).keep_alive(keep_alive())
}

/// Returns a source of these items. A few heartbeats precede each item.
fn slow_source(items: Vec<Item>) -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(move |_| async move {
        Ok(stream::iter(items).then(|item| async {
            tokio::time::sleep(EVENT_INTERVAL).await;
            item
        }))
    })
}

/// Returns what a client of `language` yields for a response with these items.
async fn read(
    language: Language,
    client: &str,
    transport: impl Transport,
    items: Vec<Item>,
) -> Vec<Value> {
    let server = TestServer::start(service(slow_source(items)).transport(transport)).await;
    let mut command = Command::from(match language {
        Language::JavaScript => programs::node_script("sdk_clients.mjs", "ai"),
        Language::Python => programs::python_script("sdk_clients.py"),
    });
    command.args([client, &server.url("/v1")]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TEST_TIMEOUT, command.output()).await;
    let output = output.expect("the program should have exited").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let records = text.lines().map(serde_json::from_str);
    records.collect::<Result<_, _>>().unwrap_or_else(|error| {
        let log = String::from_utf8_lossy(&output.stderr);
        panic!("{client}: {error}: {text}\n{log}")
    })
}

#[derive(Clone, Copy, Debug)]
enum Language {
    JavaScript,
    Python,
}
use Language::{JavaScript, Python};

/// The texts that the sources of the tests send.
const TEXTS: [&str; 2] = ["Hel", "lo größe"];

fn event(event: Event) -> Item {
    event.into_item().unwrap()
}

fn json_events(json: impl Fn(&str) -> Value) -> Vec<Item> {
    let events = TEXTS.iter().map(|text| Event::json(&json(text)).unwrap());
    events.map(event).collect()
}

/// Returns chunks of the chat completions of OpenAI, and their end.
fn openai_chunks() -> Vec<Item> {
    let mut chunks = json_events(|text| {
        let delta = json!({ "role": "assistant", "content": text });
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": null });
        json!({
            "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "model", "choices": [choice],
        })
    });
    chunks.push(event(Event::text("[DONE]")));
    chunks
}

/// Returns chunks of Gemini. Their stream has no end but that of the body.
fn gemini_chunks() -> Vec<Item> {
    json_events(|text| json!({ "candidates": [{ "content": { "role": "model", "parts": [{ "text": text }] } }] }))
}

/// Returns chunks of the AI SDK's stream of messages, and their end.
fn ui_message_chunks() -> Vec<Item> {
    let before = [json!({ "type": "start" }), json!({ "type": "text-start", "id": "1" })];
    let after = [json!({ "type": "text-end", "id": "1" }), json!({ "type": "finish" })];
    let item = |json: &Value| event(Event::json(json).unwrap());
    let mut chunks: Vec<_> = before.iter().map(item).collect();
    chunks.extend(json_events(|text| json!({ "type": "text-delta", "id": "1", "delta": text })));
    chunks.extend(after.iter().map(item));
    chunks.push(event(Event::text("[DONE]")));
    chunks
}

/// Returns the events of GraphQL over SSE, in its mode of distinct connections.
fn graphql_sse_events() -> Vec<Item> {
    let next = TEXTS.iter().map(|text| {
        let result = json!({ "data": { "text": text } });
        Event::json(&result).unwrap().with_type("next").unwrap()
    });
    let complete = Event::text("").with_type("complete").unwrap();
    next.chain([complete]).map(event).collect()
}

/// Returns the parts of a GraphQL subscription over multipart HTTP.
fn graphql_parts() -> Vec<Item> {
    json_events(|text| json!({ "payload": { "data": { "text": text } } }))
}

/// Returns chunks of ollama's chat.
fn ollama_chunks() -> Vec<Item> {
    let chunk = |text: &str, done: bool| {
        let message = json!({ "role": "assistant", "content": text });
        json!({ "model": "model", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": done })
    };
    let mut chunks = json_events(|text| chunk(text, false));
    chunks.push(event(Event::json(&chunk("", true)).unwrap()));
    chunks
}

/// Returns `items`, and then an end with a time to reconnect, as a server that stops sends it.
fn then_ended(mut items: Vec<Item>) -> Vec<Item> {
    let retry = Duration::from_secs(1);
    items.push(Item::Ended { retry });
    items
}

/// The clients of event streams that expect data only, and the chunks that they read.
fn sse_clients() -> Vec<(Language, &'static str, Vec<Item>)> {
    vec![
        (JavaScript, "ai-sdk", openai_chunks()),
        (JavaScript, "ai-sdk-chat", ui_message_chunks()),
        (JavaScript, "openai", openai_chunks()),
        (JavaScript, "google-genai", gemini_chunks()),
        (JavaScript, "graphql-sse", graphql_sse_events()),
        (Python, "openai", openai_chunks()),
        (Python, "groq", openai_chunks()),
        (Python, "google-genai", gemini_chunks()),
    ]
}

#[tokio::test]
async fn sdks_read_data_only_event_streams() {
    for (language, client, chunks) in sse_clients() {
        for items in [chunks.clone(), then_ended(chunks)] {
            let read = read(language, client, sse(Sse::data_only()), items).await;
            assert_eq!(read, TEXTS, "{language:?} {client}");
        }
    }
}
