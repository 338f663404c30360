//! What clients make of the openings and heartbeats of an event stream: each row of the table in `docs/clients.md`, with each of its clients.
//! `scripts/setup` installs the clients. Without one of them, its test fails.

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body, http::Uri, http::header::CONTENT_TYPE, response::IntoResponse};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use testkit::{TestServer, programs};

/// The time in which a program must have read all streams.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(120);

/// The time before each write, so that each one arrives alone.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);

/// The texts that each stream contains.
const TEXTS: [&str; 2] = ["Hel", "lo"];

/// How each row of the table begins, and the bytes that precede each `data` field.
const FORMS: [(&str, &str); 7] = [
    (r"a comment, `:\n`", ":\n"),
    (r"a comment and a blank line, `:\n\n`", ":\n\n"),
    (r"a blank line, `\n`", "\n"),
    (r"an id, `id: x\n\n`", "id: x\n\n"),
    ("`retry: …` directly before `data:`", "retry: 1000\n"),
    ("`retry: …` and a blank line", "retry: 1000\n\n"),
    (
        "an event `ping` with the data `{}`",
        "event: ping\ndata: {}\n\n",
    ),
];

/// A column of the table.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Column {
    GenaiJavaScript = 1,
    GenaiPython,
    Litellm,
    OpenaiPython,
    Httpx2,
    FetchEventSource,
}

/// Returns the cells of a column, one for each of [`FORMS`].
fn documented_cells(column: Column) -> Vec<&'static str> {
    let (_, table) = include_str!("../docs/clients.md")
        .split_once("\n| form |")
        .expect("the table");
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let cells: Vec<_> = rows
        .zip(FORMS)
        .map(|(row, (start, _))| {
            assert!(row[2..].starts_with(start), "{row}");
            row.split('|').nth(column as usize + 1).unwrap().trim()
        })
        .collect();
    assert_eq!(cells.len(), FORMS.len());
    cells
}

/// Returns the data of an event of the API that the path names.
fn event_data(api: &str, text: &str) -> String {
    let json = match api {
        "openai" => {
            let delta = json!({ "role": "assistant", "content": text });
            let choice = json!({ "index": 0, "delta": delta, "finish_reason": null });
            json!({
                "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "model", "choices": [choice],
            })
        }
        "gemini" => {
            json!({ "candidates": [{ "content": { "role": "model", "parts": [{ "text": text }] } }] })
        }
        _ => return text.to_owned(),
    };
    json.to_string()
}

/// Responds to `/FORM/API/…` with a stream in which the form precedes the events.
async fn event_stream(uri: Uri) -> impl IntoResponse {
    let mut segments = uri.path().split('/').skip(1);
    let (_, form) = FORMS[segments.next().unwrap().parse::<usize>().unwrap()];
    let api = segments.next().unwrap_or_default();
    let events = TEXTS.map(|text| event_data(api, text));
    let end = (api == "openai").then(|| "[DONE]".to_owned());
    let writes = events.into_iter().chain(end).flat_map(|data| {
        let event = format!("data: {data}\n\n");
        [Bytes::from_static(form.as_bytes()), Bytes::from(event)]
    });
    let writes = stream::iter(writes.collect::<Vec<_>>()).then(async |bytes| {
        tokio::time::sleep(WRITE_INTERVAL).await;
        Ok::<_, Infallible>(bytes)
    });
    (
        [(CONTENT_TYPE, "text/event-stream")],
        Body::from_stream(writes),
    )
}

/// What a client makes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientResult {
    /// The client yields the texts.
    Texts,
    /// The client fails.
    Error,
    /// The client yields less than the texts.
    Loss,
    /// The client yields the texts, and empty messages.
    EmptyMessages,
    /// The client yields the texts, and something else.
    Other,
}

/// Classifies the records that a script has printed for one stream.
fn classify(records: &[Value]) -> ClientResult {
    let text = |record: &Value| {
        record
            .as_str()
            .or(record["data"].as_str())
            .map(str::to_owned)
    };
    let texts: Vec<_> = records.iter().map(text).collect();
    let is_text = |text: &&Option<String>| TEXTS.map(Some).contains(&text.as_deref());
    if records.iter().any(|record| record["error"].is_string()) {
        ClientResult::Error
    } else if texts.iter().filter(is_text).count() < TEXTS.len() {
        ClientResult::Loss
    } else if texts.len() == TEXTS.len() {
        ClientResult::Texts
    } else if texts.contains(&Some(String::new())) {
        ClientResult::EmptyMessages
    } else {
        ClientResult::Other
    }
}

/// Returns the records that a script has printed for the stream of each of [`FORMS`].
async fn records_by_form(
    mut command: std::process::Command,
    client: &str,
    api: &str,
) -> Vec<Vec<Value>> {
    let server = TestServer::start(Router::new().fallback(event_stream)).await;
    command.arg(client);
    command.args((0..FORMS.len()).map(|form| server.url(&format!("/{form}/{api}"))));
    let records = programs::run_to_json_lines(command, PROGRAM_TIMEOUT).await;
    // The script prints this record after those of each stream.
    let end = json!({ "end": true });
    let mut streams: Vec<_> = records.split(|record| *record == end).collect();
    assert_eq!(streams.pop(), Some(&[][..]), "{records:?}");
    assert_eq!(streams.len(), FORMS.len(), "{records:?}");
    streams.into_iter().map(<[Value]>::to_vec).collect()
}

fn node() -> std::process::Command {
    programs::node_script("sdk_clients.mjs", "ai")
}

fn python() -> std::process::Command {
    programs::python_script("sdk_clients.py")
}

/// The number of runs of a program. A package can fail for reasons of its own, such as a time-out on a busy machine.
const MAX_RUNS: usize = 3;

/// Asserts that what a client makes of each form is what the column says. `meaning` says what a cell means for this client.
async fn assert_documented(
    column: Column,
    command: fn() -> std::process::Command,
    client: &str,
    api: &str,
    meaning: fn(&str) -> ClientResult,
) {
    let cells = documented_cells(column);
    let mut differences = Vec::new();
    for _ in 0..MAX_RUNS {
        let records_by_form = records_by_form(command(), client, api).await;
        let rows = cells.iter().zip(FORMS).zip(records_by_form);
        let differing = rows.filter(|((cell, _), records)| classify(records) != meaning(cell));
        differences = differing.collect();
        if differences.is_empty() {
            return;
        }
        eprintln!("{client}: {differences:?}");
    }
    panic!("{client} is not as documented: {differences:?}");
}

/// Returns what a cell means, except where it names clients.
fn meaning(cell: &str) -> ClientResult {
    match cell {
        "reads" => ClientResult::Texts,
        "throws" => ClientResult::Error,
        "chunks are lost" | "an empty answer" => ClientResult::Loss,
        "empty messages" => ClientResult::EmptyMessages,
        "a message" => ClientResult::Other,
        _ => panic!("{cell}"),
    }
}

#[tokio::test]
async fn google_genai_for_javascript_is_as_documented() {
    let column = Column::GenaiJavaScript;
    assert_documented(column, node, "google-genai", "gemini", meaning).await;
}

#[tokio::test]
async fn google_genai_for_python_is_as_documented() {
    let column = Column::GenaiPython;
    assert_documented(column, python, "google-genai", "gemini", meaning).await;
}

#[tokio::test]
async fn litellm_is_as_documented() {
    assert_documented(Column::Litellm, python, "litellm", "gemini", meaning).await;
}

#[tokio::test]
async fn python_clients_of_openai_are_as_documented() {
    const CELL: &str = "yields it as a chunk; LangChain skips it";
    let column = Column::OpenaiPython;
    for client in ["openai", "groq"] {
        assert_documented(column, python, client, "openai", |cell| match cell {
            CELL => ClientResult::Other,
            cell => meaning(cell),
        })
        .await;
    }
    assert_documented(column, python, "langchain", "openai", |cell| match cell {
        CELL => ClientResult::Texts,
        cell => meaning(cell),
    })
    .await;
}

#[tokio::test]
async fn httpx2_and_aiosseclient_are_as_documented() {
    for client in ["httpx2", "aiosseclient"] {
        assert_documented(Column::Httpx2, python, client, "text", meaning).await;
    }
}

#[tokio::test]
async fn fetch_event_source_is_as_documented() {
    let column = Column::FetchEventSource;
    assert_documented(column, node, "fetch-event-source", "text", meaning).await;
}
