//! Clients that know nothing of tower-push: SDKs of language models, GraphQL clients and readers of lines, from npm and PyPI.
//! `scripts/setup` installs them. Without one of them, its tests fail.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use testkit::{TestServer, programs};
use tower_push::{
    Event, EventId, Item, KeepAlive, PushSource,
    event::{EventType, IntoItem},
    format::{Multipart, Ndjson},
    service,
    source::source_fn,
    transport::{Chunked, LongPoll, Negotiate, Sse, Transport, sse::HeartbeatForm},
};

/// The interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(10);

/// The time before each event: a few heartbeats long.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);

/// The time in which a program must have exited. The import of `litellm` alone takes six seconds of a processor, which the tests share.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(120);

fn keep_alive() -> KeepAlive {
    KeepAlive::new().interval(HEARTBEAT_INTERVAL)
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
    read_source(language, client, transport, slow_source(items)).await
}

/// Returns what a client of `language` yields for a response with the items of a source.
async fn read_source(
    language: Language,
    client: &str,
    transport: impl Transport,
    source: impl PushSource + Clone + Send + Sync + 'static,
) -> Vec<Value> {
    let server = TestServer::start(service(source).transport(transport)).await;
    let mut command = match language {
        Language::JavaScript => programs::node_script("sdk_clients.mjs", "ai"),
        Language::Python => programs::python_script("sdk_clients.py"),
    };
    command.args([client, &server.url("/v1")]);
    programs::run_to_json_lines(command, PROGRAM_TIMEOUT).await
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

/// Returns events whose data is the text itself.
fn text_events() -> Vec<Item> {
    TEXTS.map(|text| event(Event::text(text))).to_vec()
}

fn json_events(json: impl Fn(&str) -> Value) -> Vec<Item> {
    let events = TEXTS.iter().map(|text| Event::json(&json(text)).unwrap());
    events.map(event).collect()
}

/// Returns chunks of the chat completions of OpenAI, and their end.
fn openai_chunks() -> Vec<Item> {
    let mut chunks = json_events(|text| {
        let delta = json!({ "role": "assistant", "content": text });
        let finish_reason = (text == TEXTS[1]).then_some("stop");
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish_reason });
        json!({
            "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "model", "choices": [choice],
        })
    });
    chunks.push(event(Event::text("[DONE]")));
    chunks
}

/// Returns chunks of Gemini. Their stream has no end but that of the body.
fn gemini_chunks() -> Vec<Item> {
    json_events(
        |text| json!({ "candidates": [{ "content": { "role": "model", "parts": [{ "text": text }] } }] }),
    )
}

/// Returns chunks of the AI SDK's stream of messages, and their end.
fn ui_message_chunks() -> Vec<Item> {
    let before = [
        json!({ "type": "start" }),
        json!({ "type": "text-start", "id": "1" }),
    ];
    let after = [
        json!({ "type": "text-end", "id": "1" }),
        json!({ "type": "finish" }),
    ];
    let item = |json: &Value| event(Event::json(json).unwrap());
    let mut chunks: Vec<_> = before.iter().map(item).collect();
    chunks.extend(json_events(
        |text| json!({ "type": "text-delta", "id": "1", "delta": text }),
    ));
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

/// Returns a client's error, which begins with this text.
fn is_error(record: &Value, start: &str) -> bool {
    let error = record["error"].as_str();
    error.is_some_and(|error| error.starts_with(start))
}

/// Reads with a client in each of these cases, and asserts that it yields the two texts.
async fn assert_texts_arrive(
    cases: Vec<(Language, &str, Vec<Item>)>,
    transport: impl Transport + Clone,
) {
    for (language, client, items) in cases {
        let read = read(language, client, transport.clone(), items).await;
        assert_eq!(read, TEXTS, "{language:?} {client}");
    }
}

/// Returns events of Cohere's chat.
fn cohere_events() -> Vec<Item> {
    let events = TEXTS.iter().map(|text| {
        let delta = json!({ "message": { "content": { "text": text } } });
        let json = json!({ "type": "content-delta", "index": 0, "delta": delta });
        let event = Event::json(&json).unwrap();
        event.with_type("content-delta").unwrap()
    });
    events.map(event).collect()
}

mod event_streams {
    use super::*;

    fn data_only() -> Sse {
        Sse::data_only().keep_alive(keep_alive())
    }

    /// Returns the transport with this form of opening and heartbeats.
    fn with_form(form: HeartbeatForm) -> Sse {
        data_only().opening(form.clone()).heartbeat(form)
    }

    #[tokio::test]
    async fn npm_clients_read_data_only() {
        let cases = || {
            vec![
                (JavaScript, "ai-sdk", openai_chunks()),
                (JavaScript, "ai-sdk-chat", ui_message_chunks()),
                (JavaScript, "openai", openai_chunks()),
                (JavaScript, "langchain", openai_chunks()),
                (JavaScript, "langchain-parser", text_events()),
                (JavaScript, "cohere", cohere_events()),
                (JavaScript, "huggingface", openai_chunks()),
                (JavaScript, "google-genai", gemini_chunks()),
                (JavaScript, "graphql-sse", graphql_sse_events()),
            ]
        };
        assert_texts_arrive(cases(), data_only()).await;
        let ended = cases().into_iter();
        let ended = ended.map(|(language, client, items)| (language, client, then_ended(items)));
        assert_texts_arrive(ended.collect(), data_only()).await;
    }

    #[tokio::test]
    async fn python_clients_read_data_only() {
        let cases = vec![
            (Python, "openai", openai_chunks()),
            (Python, "openai", then_ended(openai_chunks())),
            (Python, "groq", then_ended(openai_chunks())),
            (Python, "langchain", then_ended(openai_chunks())),
            (Python, "huggingface", then_ended(openai_chunks())),
            (Python, "cohere", then_ended(cohere_events())),
            (Python, "google-genai", gemini_chunks()),
            (Python, "google-genai", then_ended(gemini_chunks())),
            (Python, "litellm", gemini_chunks()),
            (Python, "litellm", then_ended(gemini_chunks())),
        ];
        assert_texts_arrive(cases, data_only()).await;
    }

    /// Some of these clients send `Accept: application/json` and read an event stream. A set of transports has to answer with the stream, and
    /// not with a poll.
    #[tokio::test]
    async fn long_polling_does_not_answer_sdks() {
        let set = Negotiate::only(data_only()).add_transport(LongPoll::new());
        let cases = vec![
            (JavaScript, "openai", openai_chunks()),
            (JavaScript, "langchain", openai_chunks()),
            (JavaScript, "huggingface", openai_chunks()),
            (JavaScript, "cohere", cohere_events()),
            (Python, "openai", openai_chunks()),
            (Python, "groq", openai_chunks()),
            (Python, "langchain", openai_chunks()),
        ];
        assert_texts_arrive(cases, set).await;
    }

    /// The reason for blank lines as openings and heartbeats.
    #[tokio::test]
    async fn comments_break_clients_of_gemini() {
        let comment = with_form(HeartbeatForm::Comment);
        let read_by = async |language| {
            let comment = comment.clone();
            read(language, "google-genai", comment, gemini_chunks()).await
        };
        assert_eq!(read_by(JavaScript).await, [] as [Value; 0]);
        assert!(is_error(
            &read_by(Python).await[0],
            "UnknownApiResponseError"
        ));
        let read = read(Python, "litellm", comment.clone(), gemini_chunks()).await;
        assert_eq!(read, [] as [Value; 0]);
    }

    #[tokio::test]
    async fn comments_suit_other_clients() {
        let cases = vec![
            (JavaScript, "ai-sdk", openai_chunks()),
            (JavaScript, "graphql-sse", graphql_sse_events()),
            (JavaScript, "langchain", openai_chunks()),
            (JavaScript, "cohere", cohere_events()),
            (JavaScript, "huggingface", openai_chunks()),
            (Python, "openai", openai_chunks()),
            (Python, "groq", openai_chunks()),
            (Python, "cohere", cohere_events()),
            (Python, "huggingface", openai_chunks()),
        ];
        assert_texts_arrive(cases, with_form(HeartbeatForm::Comment)).await;
    }

    /// The reason for `Sse::data_only` without `end` events.
    #[tokio::test]
    async fn end_event_breaks_ai_sdk_and_google_genai() {
        let ended = || Sse::new().keep_alive(KeepAlive::disabled());
        let ends_in_error = |records: &[Value], start: &str| {
            records[..2] == TEXTS && is_error(records.last().unwrap(), start)
        };
        for (client, items) in [
            ("ai-sdk", openai_chunks()),
            ("ai-sdk-chat", ui_message_chunks()),
        ] {
            let read = read(JavaScript, client, ended(), then_ended(items)).await;
            assert!(ends_in_error(&read, "Type validation failed"), "{read:?}");
        }
        let sse = data_only().end_event(EventType::new("end").unwrap());
        let read = read(Python, "google-genai", sse, then_ended(gemini_chunks())).await;
        assert!(ends_in_error(&read, "UnknownApiResponseError"), "{read:?}");
    }

    /// Cohere's SDK for JavaScript fails on an `end` event, its SDK for Python yields an event for it, and LangChain's parser yields its data.
    #[tokio::test]
    async fn end_event_reaches_cohere_and_langchain() {
        let ended = || Sse::new().keep_alive(KeepAlive::disabled());
        let read_by = async |language, client, items| {
            let mut read = read(language, client, ended(), then_ended(items)).await;
            let last = read.pop().unwrap();
            assert_eq!(read, TEXTS, "{client}");
            last
        };
        let error = read_by(JavaScript, "cohere", cohere_events()).await;
        assert!(
            is_error(&error, "response: Missing discriminant"),
            "{error}"
        );
        let event = read_by(Python, "cohere", cohere_events()).await;
        assert_eq!(event, "message-start");
        let data = read_by(JavaScript, "langchain-parser", text_events()).await;
        assert_eq!(data, r#"{"finished":false,"retry":1000}"#);
    }

    /// By the standard, a block without data is no event.
    #[tokio::test]
    async fn lone_cursor_is_empty_event_to_httpx2_and_aiosseclient() {
        let items = [vec![Item::Cursor(EventId::from(1))], text_events()].concat();
        for (client, last_id) in [("httpx2", json!("1")), ("aiosseclient", json!(null))] {
            let message = |data, id| json!({ "event": "message", "data": data, "id": id });
            let texts = TEXTS.map(|text| message(text, last_id.clone()));
            let cursors = read(Python, client, Sse::new(), items.clone()).await;
            assert_eq!(cursors[0], message("", json!("1")), "{client}");
            assert_eq!(cursors[1..], texts, "{client}");
            let last_id = if client == "httpx2" {
                json!("")
            } else {
                json!(null)
            };
            let texts = TEXTS.map(|text| message(text, last_id.clone()));
            let data_only = read(Python, client, data_only(), items.clone()).await;
            assert_eq!(data_only, texts, "{client}");
        }
    }

    /// The reason for `Sse::data_only` without cursors.
    #[tokio::test]
    async fn lone_cursor_breaks_clients_of_openai() {
        let cursor = vec![Item::Cursor(EventId::from(1))];
        for client in ["openai", "groq", "langchain"] {
            let items = [cursor.clone(), openai_chunks()].concat();
            let read = read(Python, client, Sse::new(), items).await;
            assert!(is_error(&read[0], "JSONDecodeError"), "{client}: {read:?}");
        }
    }

    /// A `retry` field and the blank line after it are a block without data.
    #[tokio::test]
    async fn retry_breaks_clients_of_openai() {
        let with_retry = || data_only().retry(Duration::from_secs(1));
        for client in ["openai", "groq", "langchain"] {
            let read = read(Python, client, with_retry(), openai_chunks()).await;
            assert!(is_error(&read[0], "JSONDecodeError"), "{client}: {read:?}");
        }
        let cases = vec![
            (JavaScript, "openai", openai_chunks()),
            (JavaScript, "google-genai", gemini_chunks()),
        ];
        assert_texts_arrive(cases, with_retry()).await;
    }

    /// It delivers a message for each blank line, and does not reconnect after a clean end.
    #[tokio::test]
    async fn fetch_event_source_needs_comments() {
        let client = "fetch-event-source";
        let message = |data: &str| json!({ "event": "", "data": data, "id": "" });
        let comment = with_form(HeartbeatForm::Comment);
        let [first, second] = TEXTS.map(message);
        assert_eq!(
            read(JavaScript, client, comment, text_events()).await,
            [first, second, json!({ "closed": true })]
        );
        let blank = read(JavaScript, client, data_only(), text_events()).await;
        assert_eq!(blank[0], message(""));
    }

    /// Without the parameter `charset`, `requests` decodes the text as ISO 8859-1.
    #[tokio::test]
    async fn requests_decodes_utf8() {
        let mut lines = read(Python, "requests", data_only(), text_events()).await;
        lines.retain(|line| line != "");
        assert_eq!(lines, TEXTS.map(|text| format!("data: {text}")));
        let events = read(Python, "httpx-sse", data_only(), text_events()).await;
        assert_eq!(
            events,
            TEXTS.map(|text| json!({ "event": "message", "data": text }))
        );
    }

    /// By default, `httpx` waits for 5 s for the next bytes, and a stream has a heartbeat every 15 s.
    #[tokio::test]
    async fn httpx_needs_frequent_heartbeats() {
        let pause = Duration::from_secs(7);
        let source = source_fn(move |_| async move {
            let later = stream::once(async move {
                tokio::time::sleep(pause).await;
                Event::text("two")
            });
            Ok(stream::iter([Event::text("one")]).chain(later))
        });
        let frequent = KeepAlive::new().interval(Duration::from_secs(1));
        let (rarely, often) = tokio::join!(
            read_source(Python, "httpx-sse", Sse::new(), source),
            read_source(Python, "httpx-sse", Sse::new().keep_alive(frequent), source),
        );
        let message = |data: &str| json!({ "event": "message", "data": data });
        assert_eq!(rarely[0], message("one"));
        assert!(is_error(&rarely[1], "ReadTimeout"), "{rarely:?}");
        assert_eq!(often, [message("one"), message("two")]);
    }

    /// An `EventSource` of undici stops at a 204. `event-source-polyfill` does not, and has to close at the event `finished`.
    #[tokio::test]
    async fn event_sources_learn_that_source_has_finished() {
        let items = vec![event(Event::text("one")), Item::Finished];
        let sse = || {
            Sse::new()
                .retry(HEARTBEAT_INTERVAL)
                .keep_alive(keep_alive())
        };
        for (client, is_stopped_by_204) in [
            ("undici-eventsource", true),
            ("event-source-polyfill", false),
        ] {
            let read = read(JavaScript, client, sse(), items.clone()).await;
            let events = [
                json!({ "type": "message", "data": "one" }),
                json!({ "type": "finished", "data": "{\"finished\":true}" }),
                json!({ "closed": false }),
                json!({ "closed": is_stopped_by_204 }),
            ];
            assert!(read.starts_with(&events), "{client}: {read:?}");
        }
    }
}

mod lines {
    use super::*;

    fn ndjson() -> Chunked {
        Chunked::new(Ndjson::data_only()).keep_alive(keep_alive())
    }

    #[tokio::test]
    async fn ollama_reads_data_only() {
        for language in [JavaScript, Python] {
            let read = read(language, "ollama", ndjson(), ollama_chunks()).await;
            assert_eq!(read, [TEXTS[0], TEXTS[1], ""], "{language:?}");
        }
    }

    /// Heartbeats before a line are white space within JSON. After the last line they look like a line that is not JSON.
    #[tokio::test]
    async fn strict_reader_of_json_lines_reads_data_only() {
        let lines = || json_events(|text| json!({ "text": text }));
        let expected = TEXTS.map(|text| json!({ "text": text }));
        assert_eq!(read(Python, "jsonlines", ndjson(), lines()).await, expected);
        let idle_at_end = read(Python, "jsonlines", ndjson(), then_ended(lines())).await;
        assert_eq!(idle_at_end[..2], expected);
        assert!(is_error(&idle_at_end[2], "InvalidLineError"));
        let quiet = Chunked::new(Ndjson::data_only()).keep_alive(KeepAlive::disabled());
        let read = read(Python, "jsonlines", quiet, then_ended(lines())).await;
        assert_eq!(read, expected);
    }

    /// The lines that `aiohttp` reads have at most 512 KiB by default.
    #[tokio::test]
    async fn aiohttp_limits_lines() {
        let line = |len: usize| vec![event(Event::text("x".repeat(len)))];
        let short = read(Python, "aiohttp", ndjson(), line(500_000)).await;
        assert!(short[0].as_u64() > Some(500_000), "{short:?}");
        let long = read(Python, "aiohttp", ndjson(), line(600_000)).await;
        assert!(is_error(&long[0], "LineTooLong"), "{long:?}");
    }
}

mod multipart {
    use super::*;

    fn multipart(format: Multipart) -> Chunked {
        Chunked::new(format).keep_alive(keep_alive())
    }

    #[tokio::test]
    async fn apollo_reads_data_only() {
        let cases = vec![
            (JavaScript, "apollo", graphql_parts()),
            (JavaScript, "apollo", then_ended(graphql_parts())),
        ];
        assert_texts_arrive(cases, multipart(Multipart::data_only())).await;
    }

    /// The reason for `Multipart::data_only` without control parts.
    #[tokio::test]
    async fn control_parts_break_apollo() {
        let mixed = multipart(Multipart::mixed());
        let read = read(JavaScript, "apollo", mixed, graphql_parts()).await;
        assert!(
            is_error(&read[0], "Unsupported patch content type"),
            "{read:?}"
        );
    }

    /// `meros` also yields the parts of heartbeats.
    #[tokio::test]
    async fn meros_reads_data_only() {
        let format = multipart(Multipart::data_only());
        let mut parts = read(JavaScript, "meros", format, then_ended(graphql_parts())).await;
        assert!(parts.contains(&json!({})), "{parts:?}");
        parts.retain(|part| *part != json!({}));
        let expected = TEXTS.map(|text| json!({ "payload": { "data": { "text": text } } }));
        assert_eq!(parts, expected);
    }
}
