//! Clients that others wrote read our streams over sockets: curl, npm `eventsource`, `httpx-sse`, `sseclient-py` and other
//! readers from PyPI, and `reqwest-eventsource`. `scripts/setup` installs them; where one is missing, its tests fail.

mod support;

use std::{
    future::poll_fn,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use axum::{Router, extract, middleware, routing};
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use support::{Count, LONG, Server, VERSIONS, Version, event_source::Message};
use tokio::{io::AsyncReadExt, process::Command, sync::watch};
use tower_push::{
    BoxError, Event, EventId, Gap, GapReason, IntoItem, Item, KeepAlive, PushSource, service,
    source::source_fn,
    transport::{
        Chunked, Negotiate, Sse,
        chunked::{JsonSeq, Multipart, Ndjson},
    },
};

/// What is served at `/events`, and the cursor of each request for it.
struct App {
    server: Server,
    cursors: Arc<Mutex<Vec<String>>>,
}

impl App {
    async fn new(source: impl PushSource + Clone + Send + Sync + 'static) -> Self {
        let heartbeats = KeepAlive::every(Duration::from_millis(10));
        Self::routing(events(source, heartbeats)).await
    }

    async fn routing(router: Router) -> Self {
        let cursors = Arc::<Mutex<Vec<String>>>::default();
        let log = cursors.clone();
        let router = router.layer(middleware::map_request(move |request: extract::Request| {
            if request.uri().path() == "/events" {
                let cursor = request.headers().get("last-event-id");
                let cursor = cursor.map_or("", |id| id.to_str().unwrap());
                log.lock().unwrap().push(cursor.to_owned());
            }
            async { request }
        }));
        let server = Server::new(router).await;
        Self { server, cursors }
    }

    fn url(&self) -> String {
        self.server.url("/events")
    }

    fn cursors(&self) -> Vec<String> {
        self.cursors.lock().unwrap().clone()
    }
}

/// How long clients are told to wait before they reconnect.
const RETRY: Duration = Duration::from_millis(10);

fn events(
    source: impl PushSource + Clone + Send + Sync + 'static,
    keep_alive: KeepAlive,
) -> Router {
    let transports = Negotiate::only(Sse::new().retry(RETRY).keep_alive(keep_alive))
        .or(Chunked::new(Ndjson::new()).keep_alive(keep_alive))
        .or(Chunked::new(JsonSeq::new()).keep_alive(keep_alive))
        .or(Chunked::new(Multipart::mixed()).keep_alive(keep_alive));
    Router::new().route_service("/events", service(source).over(transports))
}

/// What careless encoders and parsers stumble over: type, id, payload.
fn vectors() -> Vec<(&'static str, &'static str, String)> {
    let payloads = [
        "a\r\nb\rc\nd",
        "",
        " lead and trail ",
        "a\n",
        "\r\n\r\n",
        ":comment",
        "x\rid: evil\r\rdata: pwn",
        "start\n\nevent: data\ndata: fake-event\n\nend",
        "\u{feff}bom",
        "größe € \u{1f600} \u{2028}\u{85}\u{b}\u{1e}",
        "nul\0",
        &"é".repeat(100_000),
    ];
    let mut vectors = payloads.map(|text| ("", "", text.to_owned())).to_vec();
    vectors.push(("price", "k3f9-1", "21.5".to_owned()));
    vectors.push(("größe", "A._~-2", String::new()));
    vectors
}

fn vector_event((event_type, id, payload): (&str, &str, String)) -> Event {
    let mut event = Event::text(payload);
    if !event_type.is_empty() {
        event = event.with_type(event_type).unwrap();
    }
    if !id.is_empty() {
        event = event.with_id(id).unwrap();
    }
    event
}

fn gap() -> Gap {
    Gap::new(GapReason::Lagged)
        .resumed(EventId::from(9))
        .missed(6)
}

/// The vectors, heartbeats, a gap, and the end for ever.
fn all_vectors() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(|_| async {
        let events = stream::iter(vectors()).map(|vector| Item::Event(vector_event(vector)));
        let rest = stream::once(heartbeats(Item::Gap(gap())));
        let end = stream::iter([Item::Finished]);
        Ok(events.chain(rest).chain(end))
    })
}

/// The item, behind a few heartbeats: nothing else wakes this future, and each of them has it asked anew.
async fn heartbeats(item: Item) -> Item {
    let mut polls = 0;
    let mut item = Some(item);
    poll_fn(|_| {
        polls += 1;
        if polls <= 12 {
            return Poll::Pending;
        }
        item.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// What an event source dispatches of [`all_vectors`].
fn all_messages() -> Vec<Message> {
    let text = |payload: String| payload.replace("\r\n", "\n").replace('\r', "\n");
    let mut messages: Vec<_> = vectors()
        .into_iter()
        .map(|(event_type, id, payload)| message(event_type, id, &text(payload)))
        .collect();
    messages.push(message("gap", "9", &gap().to_json()));
    messages.push(message("end", EventId::FINISHED, r#"{"finished":true}"#));
    messages
}

fn message(event_type: &str, id: &str, data: &str) -> Message {
    let event_type = if event_type.is_empty() {
        "message"
    } else {
        event_type
    };
    Message {
        event_type: event_type.to_owned(),
        data: data.to_owned(),
        last_event_id: id.to_owned(),
    }
}

/// How a connection comes to its end.
#[derive(Clone, Copy, Debug)]
enum Drop {
    Ended,
    Cut,
}

const DROPS: [Drop; 2] = [Drop::Ended, Drop::Cut];

/// The last of the numbers that a feed consists of.
const LAST: u64 = 10;

/// Numbers from 1 to [`LAST`], of which a connection carries three and is then dropped.
fn dropped_feed(drop: Drop) -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(move |subscription| async move {
        let after = subscription
            .cursor()
            .map_or(0, |id| id.as_str().parse().unwrap());
        let until = LAST.min(after + 3);
        let end = match drop {
            _ if until == LAST => Some(Ok(Item::Finished)),
            Drop::Ended => None,
            Drop::Cut => Some(Err(BoxError::from("dropped"))),
        };
        Ok(stream::iter((after + 1..=until).map(number).chain(end)))
    })
}

fn number(n: u64) -> Result<Item, BoxError> {
    Event::text(n.to_string()).with_id(n)?.into_item()
}

/// The cursors with which a client asks for a [`dropped_feed`].
const RESUMPTIONS: [&str; 5] = ["", "3", "6", "9", EventId::FINISHED];

/// The numbers from 1 to [`LAST`], each of which comes to be only after its predecessor was acknowledged; and nothing else,
/// no heartbeat, that could push one through.
struct LockStep {
    app: App,
    acknowledge: watch::Sender<u64>,
}

impl LockStep {
    async fn new() -> Self {
        let acknowledge = watch::Sender::new(0);
        let numbers = acknowledge.clone();
        let source = source_fn(move |_| async move { Ok(one_by_one(numbers.subscribe())) });
        let by_request = acknowledge.clone();
        let route = routing::get(|extract::Path(n): extract::Path<String>| async move {
            // The id of the end is no number.
            if let Ok(n) = n.parse() {
                by_request.send_replace(n);
            }
        });
        let router = events(source, KeepAlive::off()).route("/acknowledge/{n}", route);
        let app = App::routing(router).await;
        Self { app, acknowledge }
    }

    /// To which the id is appended.
    fn url(&self) -> String {
        self.app.server.url("/acknowledge/")
    }
}

fn one_by_one(acknowledged: watch::Receiver<u64>) -> impl Stream<Item = Result<Item, BoxError>> {
    stream::iter(1..=LAST + 1).then(move |n| {
        let mut acknowledged = acknowledged.clone();
        async move {
            acknowledged.wait_for(|last| *last == n - 1).await?;
            if n > LAST {
                Ok(Item::Finished)
            } else {
                number(n)
            }
        }
    })
}

/// The messages of a feed of numbers, without the end.
fn numbers() -> Vec<Message> {
    (1..=LAST)
        .map(|n| message("", &n.to_string(), &n.to_string()))
        .collect()
}

fn without_ends(messages: Vec<Message>) -> Vec<Message> {
    let is_end = |message: &Message| message.event_type == "end";
    messages.into_iter().filter(|m| !is_end(m)).collect()
}

/// What a program left behind.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// One JSON text a line.
    fn records(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        let lines = self.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

async fn run(mut command: Command) -> Ran {
    let output = spawn(&mut command).wait_with_output();
    let output = tokio::time::timeout(LONG, output).await;
    let output = output
        .unwrap_or_else(|_| panic!("{command:?} did not end"))
        .unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn spawn(command: &mut Command) -> tokio::process::Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.kill_on_drop(true).spawn();
    child.unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/setup first"))
}

/// A path in the repository that `scripts/setup` makes.
fn installed(path: &str) -> PathBuf {
    let path = in_repository(path);
    assert!(
        path.exists(),
        "{path:?} is missing: run scripts/setup first"
    );
    path
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The record of a message as the programs in `tests/js` and `tests/python` print it.
fn as_message(record: &Value) -> Option<Message> {
    let text = |key: &str| record[key].as_str().map(str::to_owned);
    Some(Message {
        event_type: text("type")?,
        data: text("data")?,
        last_event_id: text("id")?,
    })
}

mod curl {
    use super::*;

    fn curl(version: Version, arguments: &[&str], url: &str) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sS", "--no-buffer", "--noproxy", "*"]);
        command.arg(match version {
            Version::Http1 => "--http1.1",
            Version::Http2 => "--http2-prior-knowledge",
        });
        command.args(arguments).arg(url);
        command
    }

    /// The head that `-i` and `-I` print, its lines in alphabetical order and without the date; and the body.
    fn split(stdout: &str) -> (Vec<&str>, &str) {
        let (head, body) = stdout.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<_> = head.split("\r\n").collect();
        lines.retain(|line| !line.starts_with("date: "));
        lines[1..].sort_unstable();
        (lines, body)
    }

    fn head(version: Version, content_type: &str) -> Vec<String> {
        let content_type = format!("content-type: {content_type}");
        let head = [
            match version {
                Version::Http1 => "HTTP/1.1 200 OK",
                Version::Http2 => "HTTP/2 200 ",
            },
            "cache-control: no-cache, no-transform",
            &content_type,
            "transfer-encoding: chunked",
            "vary: Accept",
            "x-accel-buffering: no",
            "x-content-type-options: nosniff",
        ];
        let is_sent = |line: &&str| version == Version::Http1 || !line.starts_with("transfer");
        head.into_iter()
            .filter(is_sent)
            .map(str::to_owned)
            .collect()
    }

    const ONE_EVENT: &str = "retry: 10\n:\nid: 1\ndata: 1\n\n";

    fn one_event_and_an_end() -> impl PushSource + Clone + Send + Sync + 'static {
        source_fn(|_| async { Ok(stream::iter([number(1)])) })
    }

    #[tokio::test]
    async fn an_event_stream_arrives_to_the_byte() {
        let app = App::new(one_event_and_an_end()).await;
        for version in VERSIONS {
            let ran = run(curl(version, &["-i"], &app.url())).await;
            let (lines, body) = split(&ran.stdout);
            assert_eq!(lines, head(version, "text/event-stream"));
            let end = "event: end\ndata: {\"finished\":false}\n\n";
            assert_eq!(body, format!("{ONE_EVENT}{end}"));
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        }
    }

    #[tokio::test]
    async fn other_formats_are_had_by_header_and_by_query() {
        let app = App::new(one_event_and_an_end()).await;
        let record = "{\"id\":\"1\",\"data\":\"1\"}\n";
        let end = "{\"end\":{\"finished\":false}}\n";
        for (name, media_type, expected) in [
            ("ndjson", "application/x-ndjson", format!("\n{record}{end}")),
            ("ndjson", "application/jsonl", format!("\n{record}{end}")),
            (
                "json-seq",
                "application/json-seq",
                format!("\x1e\x1e{record}\x1e{end}"),
            ),
        ] {
            for version in VERSIONS {
                let accept = format!("accept: {media_type}");
                let ran = run(curl(version, &["-i", "-H", &accept], &app.url())).await;
                let (lines, body) = split(&ran.stdout);
                assert_eq!(lines, head(version, media_type));
                assert_eq!(body, expected);

                let url = format!("{}?transport={name}", app.url());
                assert_eq!(run(curl(version, &[], &url)).await.stdout, expected);
            }
        }
    }

    #[tokio::test]
    async fn head_is_answered_at_once_with_the_headers_of_get() {
        let open = Count::default();
        let counted = open.clone();
        let never =
            source_fn(move |_| async move { Ok(counted.around(stream::pending::<Event>())) });
        let app = App::new(never).await;
        for version in VERSIONS {
            let ran = run(curl(version, &["-I"], &app.url())).await;
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            let (lines, body) = split(&ran.stdout);
            assert_eq!(lines, head(version, "text/event-stream"));
            assert_eq!(body, "");
            assert_eq!(open.get(), 0, "the source is not asked");
        }
    }

    #[tokio::test]
    async fn post_is_answered_like_get() {
        let app = App::new(one_event_and_an_end()).await;
        for version in VERSIONS {
            let ran = run(curl(version, &["--data", "x=1"], &app.url())).await;
            assert!(ran.stdout.starts_with(ONE_EVENT), "{ran:?}");
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_refused_with_a_list_of_what_can() {
        let app = App::new(one_event_and_an_end()).await;
        for version in VERSIONS {
            for (arguments, query) in [
                (["-i", "-H", "accept: image/png"], ""),
                (["-i", "-H", "accept: */*"], "?transport=pigeon"),
            ] {
                let url = app.url() + query;
                let ran = run(curl(version, &arguments, &url)).await;
                let (lines, body) = split(&ran.stdout);
                assert!(lines[0].contains(" 406"), "{lines:?}");
                assert!(lines.contains(&"content-type: text/plain; charset=utf-8"));
                assert!(lines.contains(&&*format!("content-length: {}", body.len())));
                assert!(body.contains("application/x-ndjson"), "{body}");

                let ran = run(curl(version, &["--fail", arguments[1], arguments[2]], &url)).await;
                assert_eq!(ran.code, Some(22), "{}", ran.stderr);
            }
        }
    }

    #[tokio::test]
    async fn a_cut_is_an_error_whatever_the_format() {
        let app = App::new(dropped_feed(Drop::Cut)).await;
        for transport in ["sse", "ndjson", "json-seq", "multipart"] {
            for version in VERSIONS {
                let url = format!("{}?transport={transport}", app.url());
                let ran = run(curl(version, &[], &url)).await;
                // CURLE_PARTIAL_FILE and CURLE_HTTP2_STREAM.
                let expected = if version == Version::Http1 { 18 } else { 92 };
                assert_eq!(ran.code, Some(expected), "{transport}: {}", ran.stderr);
                assert!(
                    ran.stdout.contains('3'),
                    "what came before is there: {ran:?}"
                );
                assert!(!ran.stdout.contains("finished"), "{ran:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_endless_stream_lasts_as_long_as_curl_wants_it() {
        let open = Count::default();
        let counted = open.clone();
        let endless = source_fn(move |_| async move {
            Ok(counted.around(stream::iter([number(1)]).chain(stream::pending())))
        });
        let app = App::routing(events(endless, KeepAlive::off())).await;
        for version in VERSIONS {
            let ran = run(curl(version, &["--max-time", "1"], &app.url())).await;
            assert_eq!(ran.stdout, ONE_EVENT);
            assert_eq!(
                ran.code,
                Some(28),
                "CURLE_OPERATION_TIMEDOUT: {}",
                ran.stderr
            );
            open.becomes(0).await;
        }
    }

    #[tokio::test]
    async fn every_event_is_there_before_the_next_one_exists() {
        let formats: [(&str, fn(u64) -> String); 4] = [
            ("sse", |n| format!("id: {n}\ndata: {n}\n\n")),
            ("ndjson", |n| {
                format!("{{\"id\":\"{n}\",\"data\":\"{n}\"}}\n")
            }),
            ("json-seq", |n| {
                format!("\x1e{{\"id\":\"{n}\",\"data\":\"{n}\"}}\n")
            }),
            ("multipart", |n| format!("\r\n\r\n{n}\r\n--")),
        ];
        for (transport, whole) in formats {
            for version in VERSIONS {
                let lock_step = LockStep::new().await;
                let url = format!("{}?transport={transport}", lock_step.app.url());
                let mut child = spawn(&mut curl(version, &[], &url));
                let mut stdout = child.stdout.take().unwrap();
                let mut read = Vec::new();
                for n in 1..=LAST {
                    while !String::from_utf8_lossy(&read).contains(&whole(n)) {
                        let more = tokio::time::timeout(LONG, stdout.read_buf(&mut read)).await;
                        let more = more.unwrap_or_else(|_| panic!("{transport}: no {n}"));
                        assert_ne!(more.unwrap(), 0, "{transport}: ended before {n}");
                    }
                    lock_step.acknowledge.send_replace(n);
                }
                let status = tokio::time::timeout(LONG, child.wait()).await;
                assert!(status.unwrap().unwrap().success());
            }
        }
    }
}

mod npm_eventsource {
    use super::*;

    /// `CLOSED`, and `CONNECTING`, which is what an event source says of itself when it is about to reconnect.
    const CLOSED: u64 = 2;
    const CONNECTING: u64 = 0;

    async fn event_source(url: &str, acknowledge: &str) -> (Vec<Message>, Vec<Value>) {
        installed("tests/js/node_modules/eventsource");
        let mut command = Command::new("node");
        command.arg(in_repository("tests/js/eventsource.mjs"));
        command.args([url, acknowledge]);
        command.args(["message", "price", "größe", "gap", "end"]);
        let records = run(command).await.records();
        let (messages, errors): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| record.get("type").is_some());
        (messages.iter().filter_map(as_message).collect(), errors)
    }

    fn reconnecting() -> Value {
        json!({ "error": null, "state": CONNECTING })
    }

    fn closed_by_204() -> Value {
        json!({ "error": 204, "state": CLOSED })
    }

    #[tokio::test]
    async fn every_event_arrives_as_it_was_and_the_end_for_ever_ends_it() {
        let app = App::new(all_vectors()).await;
        let (messages, errors) = event_source(&app.url(), "").await;
        assert_eq!(messages, all_messages());
        assert_eq!(app.cursors(), ["", EventId::FINISHED]);
        assert_eq!(errors, [reconnecting(), closed_by_204()]);
    }

    #[tokio::test]
    async fn a_dropped_feed_goes_on_where_it_was() {
        for drop in DROPS {
            let app = App::new(dropped_feed(drop)).await;
            let (messages, errors) = event_source(&app.url(), "").await;
            assert_eq!(without_ends(messages), numbers(), "{drop:?}");
            assert_eq!(app.cursors(), RESUMPTIONS);
            assert_eq!(errors.last(), Some(&closed_by_204()));
        }
    }

    #[tokio::test]
    async fn every_event_is_there_before_the_next_one_exists() {
        let lock_step = LockStep::new().await;
        let (messages, _) = event_source(&lock_step.app.url(), &lock_step.url()).await;
        assert_eq!(without_ends(messages), numbers());
    }
}

mod python {
    use super::*;

    async fn read(
        client: &str,
        version: Version,
        url: &str,
        acknowledge: Option<&str>,
    ) -> Vec<Value> {
        let python = installed("target/python/bin/python");
        let text = |path| std::fs::read_to_string(in_repository(path)).unwrap_or_default();
        assert_eq!(
            text("tests/python/requirements.txt"),
            text("target/python/requirements.txt"),
            "what is installed is not what is required: run scripts/setup first"
        );
        let mut command = Command::new(python);
        command.arg(in_repository("tests/python/read.py"));
        command.args([
            client,
            if version == Version::Http1 { "1" } else { "2" },
            url,
        ]);
        command.args(acknowledge);
        run(command).await.records()
    }

    const EVENT_SOURCES: [&str; 2] = ["httpx-sse", "sseclient-py"];

    #[tokio::test]
    async fn every_event_arrives_as_it_was() {
        let app = App::new(all_vectors()).await;
        for client in EVENT_SOURCES {
            for version in VERSIONS {
                let records = read(client, version, &app.url(), None).await;
                let messages: Vec<_> = records.iter().filter_map(as_message).collect();
                assert_eq!(messages, all_messages(), "{client} {version:?}");
            }
        }
    }

    #[tokio::test]
    async fn every_json_text_is_one_event() {
        let app = App::new(all_vectors()).await;
        let mut expected: Vec<_> = vectors().into_iter().map(envelope).collect();
        expected.push(
            json!({ "id": "9", "gap": serde_json::from_str::<Value>(&gap().to_json()).unwrap() }),
        );
        expected.push(json!({ "id": EventId::FINISHED, "end": { "finished": true } }));
        for client in ["ndjson", "jsonseq"] {
            for version in VERSIONS {
                let records = read(client, version, &app.url(), None).await;
                assert_eq!(records, expected, "{client} {version:?}");
            }
        }
    }

    fn envelope((event_type, id, payload): (&str, &str, String)) -> Value {
        let mut envelope = json!({ "data": payload });
        if !event_type.is_empty() {
            envelope["event"] = event_type.into();
        }
        if !id.is_empty() {
            envelope["id"] = id.into();
        }
        envelope
    }

    #[tokio::test]
    async fn every_part_is_one_event() {
        let control = "application/vnd.tower-push+json";
        let typed = Event::json(&json!({ "eur": 21.5 })).unwrap();
        let typed = typed.with_type("price").unwrap().with_id("a-1").unwrap();
        let items = vec![
            Item::Event(typed),
            Item::Event(Event::text("größe\r\n--boundary\r\n")),
            Item::Event(Event::text("")),
            Item::Event(Event::binary(&b"\xff\x00\r\r\n-"[..])),
            Item::Cursor(EventId::from(7)),
            Item::Finished,
        ];
        let app = App::routing(events(
            source_fn(move |_| async move { Ok(stream::iter(items)) }),
            KeepAlive::off(),
        ));
        let app = app.await;
        let expected = [
            part(
                &[
                    ("content-type", "application/json"),
                    ("event-id", "a-1"),
                    ("event-type", "price"),
                ],
                b"{\"eur\":21.5}",
            ),
            part(
                &[("content-type", "text/plain; charset=utf-8")],
                "größe\r\n--boundary\r\n".as_bytes(),
            ),
            part(&[("content-type", "text/plain; charset=utf-8")], b""),
            part(
                &[("content-type", "application/octet-stream")],
                b"\xff\x00\r\r\n-",
            ),
            part(&[("content-type", control)], b"{\"id\":\"7\"}"),
            part(
                &[("content-type", control)],
                b"{\"id\":\"~finished\",\"end\":{\"finished\":true}}",
            ),
        ];
        for client in ["python-multipart", "email"] {
            for version in VERSIONS {
                let records = read(client, version, &app.url(), None).await;
                assert_eq!(records, expected, "{client} {version:?}");
            }
        }
    }

    /// As the script prints it: the bytes as code points.
    fn part(headers: &[(&str, &str)], body: &[u8]) -> Value {
        let mut all = json!({ "content-length": body.len().to_string() });
        for (name, value) in headers {
            all[name] = (*value).into();
        }
        let body: String = body.iter().copied().map(char::from).collect();
        json!({ "id": all.get("event-id"), "headers": all, "body": body })
    }

    #[tokio::test]
    async fn a_cut_is_an_error_behind_what_came_before() {
        let app = App::new(dropped_feed(Drop::Cut)).await;
        for client in ["httpx-sse", "sseclient-py", "ndjson", "python-multipart"] {
            for version in VERSIONS {
                let mut records = read(client, version, &app.url(), None).await;
                assert_eq!(
                    records.pop(),
                    Some(json!({ "cut": true })),
                    "{client} {version:?}"
                );
                let ids: Vec<_> = records.iter().map(|record| &record["id"]).collect();
                assert_eq!(ids, ["1", "2", "3"], "{client} {version:?}");
            }
        }
    }

    #[tokio::test]
    async fn every_event_is_there_before_the_next_one_exists() {
        for client in ["httpx-sse", "sseclient-py", "ndjson", "python-multipart"] {
            for version in VERSIONS {
                let lock_step = LockStep::new().await;
                let acknowledge = lock_step.url();
                let records = read(client, version, &lock_step.app.url(), Some(&acknowledge)).await;
                let mut ids: Vec<_> = (1..=LAST).map(|n| n.to_string()).collect();
                ids.push(EventId::FINISHED.to_owned());
                let read: Vec<_> = records
                    .iter()
                    .filter_map(|record| record["id"].as_str())
                    .collect();
                // TODO ids of multipart end
                assert_eq!(read, ids, "{client} {version:?}");
            }
        }
    }
}

mod reqwest_eventsource {
    use ::reqwest_eventsource::{Error, Event as Received, EventSource};

    use super::*;

    fn client(version: Version) -> reqwest::Client {
        let client = reqwest::Client::builder().no_proxy();
        match version {
            Version::Http1 => client.http1_only(),
            Version::Http2 => client.http2_prior_knowledge(),
        }
        .build()
        .unwrap()
    }

    /// Reads until the event source stops for good; each message is shown to `seen` before the next is asked for.
    async fn messages(
        client: &reqwest::Client,
        url: &str,
        seen: impl AsyncFn(&Message),
    ) -> (Vec<Message>, Vec<Error>) {
        let mut source = EventSource::new(client.get(url)).unwrap();
        let (mut messages, mut errors) = (Vec::new(), Vec::new());
        loop {
            let next = tokio::time::timeout(LONG, source.next());
            match next.await.expect("something should have come") {
                None => return (messages, errors),
                Some(Ok(Received::Open)) => {}
                Some(Ok(Received::Message(event))) => {
                    let message = message(&event.event, &event.id, &event.data);
                    seen(&message).await;
                    messages.push(message);
                }
                Some(Err(error)) => errors.push(error),
            }
        }
    }

    async fn unseen(_: &Message) {}

    fn is_204(error: &Error) -> bool {
        matches!(error, Error::InvalidStatusCode(status, _) if status.as_u16() == 204)
    }

    #[tokio::test]
    async fn every_event_arrives_as_it_was_and_the_end_for_ever_ends_it() {
        for version in VERSIONS {
            let app = App::new(all_vectors()).await;
            let (messages, errors) = messages(&client(version), &app.url(), unseen).await;
            assert_eq!(messages, all_messages(), "{version:?}");
            assert_eq!(app.cursors(), ["", EventId::FINISHED]);
            assert!(
                matches!(&errors[..], [Error::StreamEnded, last] if is_204(last)),
                "{errors:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_dropped_feed_goes_on_where_it_was() {
        for drop in DROPS {
            for version in VERSIONS {
                let app = App::new(dropped_feed(drop)).await;
                let (messages, errors) = messages(&client(version), &app.url(), unseen).await;
                assert_eq!(without_ends(messages), numbers(), "{drop:?} {version:?}");
                assert_eq!(app.cursors(), RESUMPTIONS);
                assert!(is_204(errors.last().unwrap()), "{errors:?}");
            }
        }
    }

    #[tokio::test]
    async fn every_event_is_there_before_the_next_one_exists() {
        for version in VERSIONS {
            let lock_step = LockStep::new().await;
            let client = client(version);
            let acknowledge = async |message: &Message| {
                let url = lock_step.url() + &message.last_event_id;
                client.get(url).send().await.unwrap();
            };
            let (messages, _) = messages(&client, &lock_step.app.url(), acknowledge).await;
            assert_eq!(without_ends(messages), numbers(), "{version:?}");
        }
    }
}
