//! Third-party clients: curl, npm `eventsource`, `axios`, `@anthropic-ai/sdk` and `@modelcontextprotocol/sdk`, `httpx-sse`, `sseclient-py` and other readers from PyPI, and `reqwest-eventsource`.
//! `scripts/setup` installs them. Without one of them, its tests fail.

use std::{
    future::poll_fn,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, extract, http::StatusCode, middleware, response::IntoResponse, routing};
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use testkit::{
    HttpVersion, LiveCounter, TEST_TIMEOUT, TestServer, event_stream::MessageEvent, programs,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    sync::watch,
};
use tower_push::{
    BoxError, Event, EventId, Gap, GapReason, Guard, Item, KeepAlive, Push, PushLayer, PushSource,
    event::IntoItem,
    format::{JsonSeq, Multipart, Ndjson},
    guard::Admission,
    layer::TransportLayer,
    service,
    source::{Subscription, source_fn},
    transport::{Chunked, Negotiate, Sse},
};

/// A server of one source at `/events`, which records the cursor of each request.
struct RecordingApp {
    server: TestServer,
    cursors: Arc<Mutex<Vec<String>>>,
}

impl RecordingApp {
    async fn new(source: impl PushSource + Clone + Send + Sync + 'static) -> Self {
        let heartbeats = KeepAlive::new().interval(Duration::from_millis(10));
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
        let server = TestServer::start(router).await;
        Self { server, cursors }
    }

    fn url(&self) -> String {
        self.server.url("/events")
    }

    fn cursors(&self) -> Vec<String> {
        self.cursors.lock().unwrap().clone()
    }
}

/// The time to reconnect that the server sends.
const RETRY_DELAY: Duration = Duration::from_millis(10);

fn events(
    source: impl PushSource + Clone + Send + Sync + 'static,
    keep_alive: KeepAlive,
) -> Router {
    let transports = Negotiate::only(Sse::new().retry(RETRY_DELAY).keep_alive(keep_alive))
        .add_transport(Chunked::new(Ndjson::new()).keep_alive(keep_alive))
        .add_transport(Chunked::new(JsonSeq::new()).keep_alive(keep_alive))
        .add_transport(Chunked::new(Multipart::mixed()).keep_alive(keep_alive));
    Router::new().route_service("/events", service(source).transport(transports))
}

/// Events that careless encoders and parsers get wrong: type, id and payload.
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
    vectors.push(("", "2026-11-28T22:00:00+01:00", "t".to_owned()));
    vectors.push(("", r#"a"b\c,d/e%41=="#, "any visible ASCII".to_owned()));
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

/// A source of the vectors, a few heartbeats, a gap, and `Item::Finished`.
fn vectors_source() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(|_| async {
        let events = stream::iter(vectors()).map(|vector| Item::Event(vector_event(vector)));
        let gap = stream::once(async {
            heartbeats().await;
            Item::from(gap())
        });
        Ok(events.chain(gap).chain(stream::iter([Item::Finished])))
    })
}

/// Waits for a few heartbeats. Nothing else wakes this future, and the stream is polled again at each heartbeat.
async fn heartbeats() {
    let mut polls = 0..12;
    poll_fn(|_| polls.next().map_or(Poll::Ready(()), |_| Poll::Pending)).await;
}

/// The events that an event source dispatches for [`vectors_source`].
fn expected_messages() -> Vec<MessageEvent> {
    let text = |payload: String| payload.replace("\r\n", "\n").replace('\r', "\n");
    let mut messages: Vec<_> = vectors()
        .into_iter()
        .map(|(event_type, id, payload)| message(event_type, id, &text(payload)))
        .collect();
    messages.push(message("gap", "9", &gap().to_json()));
    messages.push(message(
        "finished",
        EventId::FINISHED,
        r#"{"finished":true}"#,
    ));
    messages
}

fn message(event_type: &str, id: &str, data: &str) -> MessageEvent {
    let event_type = if event_type.is_empty() {
        "message"
    } else {
        event_type
    };
    MessageEvent {
        event_type: event_type.to_owned(),
        data: data.to_owned(),
        last_event_id: id.to_owned(),
    }
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The source has finished for good.
    Finished,
    /// The stream ends, and the client may reconnect.
    Ended,
    /// The source fails.
    Cut,
}

impl Ending {
    fn item(self) -> Option<Result<Item, BoxError>> {
        match self {
            Self::Finished => Some(Ok(Item::Finished)),
            Self::Ended => None,
            Self::Cut => Some(Err("dropped".into())),
        }
    }
}

/// The last number of a feed.
const LAST_NUMBER: u64 = 10;

/// A source of the numbers from 1 to [`LAST_NUMBER`]. Each connection carries three of them and then ends in this way.
fn interrupted_feed(ending: Ending) -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(move |subscription| async move {
        let cursor = subscription.cursor();
        let after = cursor.map_or(0, |id| id.as_str().parse().unwrap());
        let until = LAST_NUMBER.min(after + 3);
        let ending = if until == LAST_NUMBER {
            Ending::Finished
        } else {
            ending
        };
        let numbers = (after + 1..=until).map(number);
        Ok(stream::iter(numbers.chain(ending.item())))
    })
}

/// The cursors of a client's requests for a [`interrupted_feed`].
const INTERRUPTED_FEED_CURSORS: [&str; 5] = ["", "3", "6", "9", EventId::FINISHED];

/// A source of one number per connection, except that the second connection ends without a number.
fn feed_with_idle_connection() -> impl PushSource + Clone + Send + Sync + 'static {
    let connections = Arc::new(AtomicU64::new(0));
    source_fn(move |_| async move {
        let items = match connections.fetch_add(1, Ordering::SeqCst) {
            0 => vec![number(1)],
            1 => vec![],
            _ => vec![number(2), Ok(Item::Finished)],
        };
        Ok(stream::iter(items))
    })
}

/// The cursors of a client's requests for a [`feed_with_idle_connection`].
const IDLE_FEED_CURSORS: [&str; 4] = ["", "1", "1", EventId::FINISHED];

fn number(n: u64) -> Result<Item, BoxError> {
    Event::text(n.to_string()).with_id(n)?.into_item()
}

/// A feed of the numbers from 1 to [`LAST_NUMBER`], and then an end. The source yields a number only after the client has acknowledged the one
/// before it. There are no heartbeats, which could push a delayed event through.
struct AcknowledgedFeed {
    app: RecordingApp,
    acknowledged: watch::Sender<u64>,
}

impl AcknowledgedFeed {
    async fn new(ending: Ending) -> Self {
        let acknowledged = watch::Sender::new(0);
        let receiver = acknowledged.subscribe();
        let source = source_fn(move |_| async move { Ok(acknowledged_numbers(receiver, ending)) });
        let sender = acknowledged.clone();
        let acknowledge = routing::get(|extract::Path(id): extract::Path<String>| async move {
            // The id of the end is not a number.
            if let Ok(n) = id.parse() {
                sender.send_replace(n);
            }
        });
        let router = events(source, KeepAlive::disabled()).route("/acknowledge/{id}", acknowledge);
        let app = RecordingApp::routing(router).await;
        Self { app, acknowledged }
    }

    /// Returns the URL to which a client appends an event's id to acknowledge it.
    fn acknowledge(&self) -> String {
        self.app.server.url("/acknowledge/")
    }
}

fn acknowledged_numbers(
    acknowledged: watch::Receiver<u64>,
    ending: Ending,
) -> impl Stream<Item = Result<Item, BoxError>> {
    let items = (1..=LAST_NUMBER).map(number).chain(ending.item());
    stream::iter((0..).zip(items)).then(move |(before, item)| {
        let mut acknowledged = acknowledged.clone();
        async move {
            acknowledged.wait_for(|n| *n == before).await?;
            item
        }
    })
}

/// Returns the events of a feed of numbers, without the event at the end.
fn numbers() -> Vec<MessageEvent> {
    (1..=LAST_NUMBER)
        .map(|n| message("", &n.to_string(), &n.to_string()))
        .collect()
}

fn without_ends(messages: Vec<MessageEvent>) -> Vec<MessageEvent> {
    let is_end = |message: &MessageEvent| message.event_type == "finished";
    messages.into_iter().filter(|m| !is_end(m)).collect()
}

/// The exit code and the output of a program.
#[derive(Debug)]
struct ProgramOutput {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl ProgramOutput {
    /// Parses the standard output, which has one JSON text per line.
    fn records(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        let records = self.stdout.lines().map(serde_json::from_str);
        records.collect::<Result<_, _>>().unwrap()
    }
}

async fn run(mut command: Command) -> ProgramOutput {
    finish(spawn(&mut command)).await
}

async fn finish(child: Child) -> ProgramOutput {
    let output = tokio::time::timeout(TEST_TIMEOUT, child.wait_with_output()).await;
    let output = output.expect("the program should have exited").unwrap();
    ProgramOutput {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.kill_on_drop(true).spawn();
    child.unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/setup first"))
}

/// Converts a record as the scripts in `tests/js` and `tests/python` print it. Returns `None` if it is not an event.
fn as_message(record: &Value) -> Option<MessageEvent> {
    let text = |key: &str| record[key].as_str().map(str::to_owned);
    Some(MessageEvent {
        event_type: text("type")?,
        data: text("data")?,
        last_event_id: text("id")?,
    })
}

mod curl {
    use super::*;

    fn curl(version: HttpVersion, arguments: &[&str], url: &str) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sS", "--no-buffer", "--noproxy", "*"]);
        command.arg(match version {
            HttpVersion::Http1 => "--http1.1",
            HttpVersion::Http2 => "--http2-prior-knowledge",
        });
        command.args(arguments).arg(url);
        command
    }

    /// Splits the output of `-i` or `-I` into the lines of the head, in alphabetical order and without the date, and the body.
    fn split(stdout: &str) -> (Vec<&str>, &str) {
        let (head, body) = stdout.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<_> = head.split("\r\n").collect();
        lines.retain(|line| !line.starts_with("date: "));
        lines[1..].sort_unstable();
        (lines, body)
    }

    fn head(version: HttpVersion, content_type: &str) -> Vec<String> {
        let content_type = format!("content-type: {content_type}");
        let head = [
            match version {
                HttpVersion::Http1 => "HTTP/1.1 200 OK",
                HttpVersion::Http2 => "HTTP/2 200 ",
            },
            "cache-control: no-cache, no-transform",
            &content_type,
            "incremental: ?1",
            "transfer-encoding: chunked",
            "vary: Accept",
            "x-accel-buffering: no",
            "x-content-type-options: nosniff",
        ];
        let is_sent = |line: &&str| version == HttpVersion::Http1 || !line.starts_with("transfer");
        head.into_iter()
            .filter(is_sent)
            .map(str::to_owned)
            .collect()
    }

    // Exit codes of curl, which its documentation calls `CURLE_…`.
    const PARTIAL_FILE: i32 = 18;
    const HTTP_RETURNED_ERROR: i32 = 22;
    const OPERATION_TIMEDOUT: i32 = 28;
    const HTTP2_STREAM: i32 = 92;

    const ONE_EVENT: &str = "retry: 10\n:\nid: 1\ndata: 1\n\n";

    fn one_event_and_an_end() -> impl PushSource + Clone + Send + Sync + 'static {
        source_fn(|_| async { Ok(stream::iter([number(1)])) })
    }

    #[tokio::test]
    async fn event_stream_arrives_byte_for_byte() {
        let app = RecordingApp::new(one_event_and_an_end()).await;
        for version in HttpVersion::ALL {
            let output = run(curl(version, &["-i"], &app.url())).await;
            let (lines, body) = split(&output.stdout);
            assert_eq!(lines, head(version, "text/event-stream; charset=utf-8"));
            assert_eq!(body, ONE_EVENT);
            assert_eq!(output.code, Some(0), "{}", output.stderr);
        }
    }

    /// Event sources do not report heartbeats, so curl checks that the stream contains some.
    #[tokio::test]
    async fn vectors_contain_heartbeats() {
        let app = RecordingApp::new(vectors_source()).await;
        let output = run(curl(HttpVersion::Http1, &[], &app.url())).await;
        assert!(
            output.stdout.contains("data:\n\n:\n:\n"),
            "{:?}",
            output.stderr
        );
    }

    #[tokio::test]
    async fn formats_are_selected_by_header_or_query() {
        let app = RecordingApp::new(one_event_and_an_end()).await;
        let record = "{\"id\":\"1\",\"data\":\"1\"}\n";
        let end = "{\"end\":{\"finished\":false}}\n";
        for (name, media_type, expected) in [
            ("ndjson", "application/x-ndjson", format!(" {record}{end}")),
            ("ndjson", "application/jsonl", format!(" {record}{end}")),
            (
                "json-seq",
                "application/json-seq",
                format!("\x1e\x1e{record}\x1e{end}"),
            ),
        ] {
            for version in HttpVersion::ALL {
                let accept = format!("accept: {media_type}");
                let output = run(curl(version, &["-i", "-H", &accept], &app.url())).await;
                let (lines, body) = split(&output.stdout);
                assert_eq!(lines, head(version, media_type));
                assert_eq!(body, expected);

                let url = format!("{}?transport={name}", app.url());
                assert_eq!(run(curl(version, &[], &url)).await.stdout, expected);
            }
        }
    }

    #[tokio::test]
    async fn head_gets_headers_of_get_at_once() {
        let open = LiveCounter::default();
        let counted = open.clone();
        let never = source_fn(move |_| async move { Ok(counted.wrap(stream::pending::<Event>())) });
        let app = RecordingApp::new(never).await;
        for version in HttpVersion::ALL {
            let output = run(curl(version, &["-I"], &app.url())).await;
            assert_eq!(output.code, Some(0), "{}", output.stderr);
            let (lines, body) = split(&output.stdout);
            let mut expected = head(version, "text/event-stream; charset=utf-8");
            // RFC 9112 §6.1 allows a server to omit this header in the response to HEAD, and hyper omits it.
            expected.retain(|line| !line.starts_with("transfer-encoding"));
            assert_eq!(lines, expected);
            assert_eq!(body, "");
            assert_eq!(open.get(), 0, "the source is not asked");
        }
    }

    #[tokio::test]
    async fn unacceptable_request_gets_406_with_list() {
        let app = RecordingApp::new(one_event_and_an_end()).await;
        for version in HttpVersion::ALL {
            for (arguments, query) in [
                (["-i", "-H", "accept: image/png"], ""),
                (["-i", "-H", "accept: */*"], "?transport=pigeon"),
            ] {
                let url = app.url() + query;
                let output = run(curl(version, &arguments, &url)).await;
                let (lines, body) = split(&output.stdout);
                assert!(lines[0].contains(" 406"), "{lines:?}");
                assert!(lines.contains(&"content-type: text/plain; charset=utf-8"));
                assert!(lines.contains(&&*format!("content-length: {}", body.len())));
                assert!(body.contains("application/x-ndjson"), "{body}");

                let output =
                    run(curl(version, &["--fail", arguments[1], arguments[2]], &url)).await;
                assert_eq!(output.code, Some(HTTP_RETURNED_ERROR), "{}", output.stderr);
            }
        }
    }

    #[tokio::test]
    async fn endless_stream_lasts_until_curl_stops() {
        let open = LiveCounter::default();
        let counted = open.clone();
        let endless = source_fn(move |_| async move {
            Ok(counted.wrap(stream::iter([number(1)]).chain(stream::pending())))
        });
        let app = RecordingApp::routing(events(endless, KeepAlive::disabled())).await;
        for version in HttpVersion::ALL {
            let output = run(curl(version, &["--max-time", "1"], &app.url())).await;
            assert_eq!(output.stdout, ONE_EVENT);
            assert_eq!(output.code, Some(OPERATION_TIMEDOUT), "{}", output.stderr);
            open.wait_for(0).await;
        }
    }

    /// Reads one event after the other and acknowledges each. Returns the output of curl.
    async fn read_acknowledging(
        version: HttpVersion,
        more: &[&str],
        transport: &str,
        ending: Ending,
    ) -> ProgramOutput {
        let read_acknowledging = AcknowledgedFeed::new(ending).await;
        let url = format!("{}?transport={transport}", read_acknowledging.app.url());
        let mut child = spawn(&mut curl(version, more, &url));
        let mut stdout = child.stdout.take().unwrap();
        let mut read = Vec::new();
        for n in 1..=LAST_NUMBER {
            while !has_complete_event(n, transport, &String::from_utf8_lossy(&read)) {
                let more = tokio::time::timeout(TEST_TIMEOUT, stdout.read_buf(&mut read)).await;
                let more = more.unwrap_or_else(|_| panic!("{transport}: no {n}"));
                assert_ne!(more.unwrap(), 0, "{transport}: ended before {n}");
            }
            read_acknowledging.acknowledged.send_replace(n);
        }
        let (rest, ended) = tokio::join!(stdout.read_to_end(&mut read), finish(child));
        rest.unwrap();
        let stdout = String::from_utf8(read).unwrap();
        ProgramOutput { stdout, ..ended }
    }

    /// Returns whether the event has arrived completely.
    fn has_complete_event(n: u64, transport: &str, read: &str) -> bool {
        let record = format!("{{\"id\":\"{n}\",\"data\":\"{n}\"}}\n");
        let delimiter = read.lines().next().unwrap_or_default();
        read.contains(&match transport {
            "sse" => format!("id: {n}\ndata: {n}\n\n"),
            "ndjson" => record,
            "json-seq" => format!("\x1e{record}"),
            "multipart" => format!("\r\n\r\n{n}\r\n{delimiter}\r\n"),
            other => panic!("{other}?"),
        })
    }

    const TRANSPORTS: [&str; 4] = ["sse", "ndjson", "json-seq", "multipart"];

    #[tokio::test]
    async fn each_event_arrives_before_next_one_exists() {
        for transport in TRANSPORTS {
            for version in HttpVersion::ALL {
                let output = read_acknowledging(version, &[], transport, Ending::Finished).await;
                assert_eq!(
                    output.code,
                    Some(0),
                    "{transport} {version:?}: {}",
                    output.stderr
                );
                assert!(output.stdout.contains("\"finished\":true"), "{output:?}");
            }
        }
    }

    #[tokio::test]
    async fn cut_stream_is_an_error() {
        for transport in TRANSPORTS {
            for (version, code) in [
                (HttpVersion::Http1, PARTIAL_FILE),
                (HttpVersion::Http2, HTTP2_STREAM),
            ] {
                let output = read_acknowledging(version, &[], transport, Ending::Cut).await;
                assert_eq!(
                    output.code,
                    Some(code),
                    "{transport} {version:?}: {}",
                    output.stderr
                );
                assert!(!output.stdout.contains("finished"), "{output:?}");
            }
        }
    }

    #[tokio::test]
    async fn post_gets_response_of_get() {
        // The HTTP/2 request has no body. A server that does not read a request's body resets the stream after the response
        // (RFC 9113 §8.1), and this version of curl discards what arrives together with a reset.
        for (version, post) in [
            (HttpVersion::Http1, ["--data", "x=1"]),
            (HttpVersion::Http1, ["--request", "POST"]),
            (HttpVersion::Http2, ["--request", "POST"]),
        ] {
            let output = read_acknowledging(version, &post, "sse", Ending::Ended).await;
            assert_eq!(output.code, Some(0), "{version:?}: {}", output.stderr);
        }
    }

    #[tokio::test]
    async fn query_method_has_cursor_in_form() {
        let id = "2026-11-28T22:00:00+01:00/=&,";
        let echo = source_fn(async |subscription: Subscription| {
            let cursor = subscription.cursor().map(ToString::to_string);
            Ok(stream::iter([cursor.unwrap_or_default()]))
        });
        let server = TestServer::start(service(echo)).await;
        let field = format!("last_event_id={id}");
        let arguments = ["--request", "QUERY", "--data-urlencode", &field];
        for version in HttpVersion::ALL {
            let output = run(curl(version, &arguments, &server.url("/"))).await;
            assert_eq!(output.code, Some(0), "{version:?}: {}", output.stderr);
            let data = format!("data: {id}\n");
            assert!(output.stdout.contains(&data), "{}", output.stdout);
        }
    }
}

mod npm_eventsource {
    use super::*;

    /// The `readyState` of an event source that has stopped.
    const CLOSED: u64 = 2;
    /// The `readyState` of an event source that is about to reconnect.
    const CONNECTING: u64 = 0;

    async fn event_source(url: &str, acknowledge: &str) -> (Vec<MessageEvent>, Vec<Value>) {
        let mut command = Command::from(programs::node_script("eventsource.mjs", "eventsource"));
        command.args([url, acknowledge]);
        command.args(["message", "price", "größe", "gap", "end", "finished"]);
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
    async fn events_arrive_unchanged_until_finished() {
        let app = RecordingApp::new(vectors_source()).await;
        let (messages, errors) = event_source(&app.url(), "").await;
        assert_eq!(messages, expected_messages());
        assert_eq!(app.cursors(), ["", EventId::FINISHED]);
        assert_eq!(errors, [reconnecting(), closed_by_204()]);
    }

    #[tokio::test]
    async fn interrupted_feed_resumes() {
        for ending in [Ending::Ended, Ending::Cut] {
            let app = RecordingApp::new(interrupted_feed(ending)).await;
            let (messages, errors) = event_source(&app.url(), "").await;
            assert_eq!(without_ends(messages), numbers(), "{ending:?}");
            assert_eq!(app.cursors(), INTERRUPTED_FEED_CURSORS);
            assert_eq!(errors.last(), Some(&closed_by_204()));
        }
    }

    #[tokio::test]
    async fn idle_connection_keeps_cursor() {
        let app = RecordingApp::new(feed_with_idle_connection()).await;
        event_source(&app.url(), "").await;
        assert_eq!(app.cursors(), IDLE_FEED_CURSORS);
    }

    #[tokio::test]
    async fn each_event_arrives_before_next_one_exists() {
        let read_acknowledging = AcknowledgedFeed::new(Ending::Finished).await;
        let (messages, _) = event_source(
            &read_acknowledging.app.url(),
            &read_acknowledging.acknowledge(),
        )
        .await;
        assert_eq!(without_ends(messages), numbers());
    }
}

/// Clients that `POST`, and whose `Accept` header does not name the media type of event streams.
mod npm_post {
    use super::*;

    async fn post(client: &str, server: &TestServer) -> Vec<Value> {
        let script = programs::node_script("post.mjs", "@modelcontextprotocol/sdk");
        let mut command = Command::from(script);
        command.args([client, &server.url("")]);
        run(command).await.records()
    }

    /// The events of a message in the API of Anthropic.
    fn message_events() -> Vec<Value> {
        vec![
            json!({ "type": "message_start", "message": { "id": "m", "content": [] } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "hel" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "lo" } }),
            json!({ "type": "message_stop" }),
        ]
    }

    fn message_push() -> Push {
        let events = message_events().into_iter().map(|event| {
            let event_type = event["type"].as_str().unwrap().to_owned();
            Event::json(&event)?.with_type(event_type)
        });
        // Each event comes alone. A poll would have the first event only.
        Push::new(stream::iter(events).then(async |event| {
            tokio::task::yield_now().await;
            event
        }))
    }

    #[tokio::test]
    async fn whole_stream_arrives() {
        let app = Router::new()
            .fallback(async || message_push())
            .layer(PushLayer::new());
        let server = TestServer::start(app).await;
        let answers = post("anthropic", &server).await;
        assert!(answers.starts_with(&message_events()), "{answers:?}");
        let answers = post("axios", &server).await;
        assert_eq!(answers[0]["type"], "text/event-stream");
        let body = answers[0]["data"].as_str().unwrap();
        assert!(body.contains("message_stop"), "{body}");
    }

    #[tokio::test]
    async fn refusal_is_503_with_retry_after() {
        let admission = Admission::builder().max_streams(0).build();
        let guard = Guard::builder().admission(&admission).build();
        let layer = TransportLayer::with(guard.wrap(Negotiate::new()));
        let app = Router::new().fallback(async || message_push()).layer(layer);
        let server = TestServer::start(app).await;
        for client in ["anthropic", "axios"] {
            let answers = post(client, &server).await;
            assert_eq!(answers[0]["status"], 503, "{client}");
            assert!(answers[0]["retryAfter"].as_u64() > Some(0), "{client}");
        }
        assert_eq!(post("mcp", &server).await, [json!({ "status": 503 })]);
    }

    /// Answers a message of the Model Context Protocol.
    fn mcp_answer(message: &Value) -> Option<Push> {
        let result = match message["method"].as_str()? {
            "initialize" => json!({
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": { "tools": {} },
                "serverInfo": { "name": "test", "version": "1" },
            }),
            "tools/list" => {
                json!({ "tools": [{ "name": "search", "inputSchema": { "type": "object" } }] })
            }
            _ => return None,
        };
        let response = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
        Some(Push::new(stream::iter([Event::json(&response)])))
    }

    /// The default event stream suits a client of the Model Context Protocol: the client skips events of other types and comments, and stops
    /// when the stream of notifications has finished.
    #[tokio::test]
    async fn mcp_client_reads_default_event_stream() {
        let answer_post = async |body: String| {
            let message = serde_json::from_str(&body).unwrap();
            let answer = mcp_answer(&message);
            answer.map_or_else(|| StatusCode::ACCEPTED.into_response(), Push::into_response)
        };
        let answer_get = async || {
            let method = "notifications/resources/list_changed";
            let notification = Event::json(&json!({ "jsonrpc": "2.0", "method": method }));
            let event = Item::Event(notification.unwrap());
            Push::new(stream::iter([event, Item::Finished]))
        };
        let app = Router::new()
            .route("/", routing::get(answer_get).post(answer_post))
            .layer(PushLayer::new());
        let server = TestServer::start(app).await;
        let expected = [
            json!({ "tools": ["search"] }),
            json!({ "notified": "notifications/resources/list_changed" }),
            json!({ "statuses": [200, 204], "errors": [] }),
        ];
        assert_eq!(post("mcp", &server).await, expected);
    }
}

mod python {
    use super::*;

    async fn read(
        client: &str,
        version: HttpVersion,
        url: &str,
        acknowledge: Option<&str>,
    ) -> Vec<Value> {
        let mut command = Command::from(programs::python_script("read.py"));
        command.args([
            client,
            if version == HttpVersion::Http1 {
                "1"
            } else {
                "2"
            },
            url,
        ]);
        command.args(acknowledge);
        run(command).await.records()
    }

    /// The readers that return an event as soon as its last byte has arrived. `jsonseq` waits for the beginning of the next record, and
    /// `email` for the end of the body.
    const INCREMENTAL_READERS: [&str; 4] = [
        "httpx-sse",
        "sseclient-py",
        "httpx-lines",
        "python-multipart",
    ];

    const EVENT_SOURCES: [&str; 2] = ["httpx-sse", "sseclient-py"];

    #[tokio::test]
    async fn events_arrive_unchanged() {
        let app = RecordingApp::new(vectors_source()).await;
        for client in EVENT_SOURCES {
            for version in HttpVersion::ALL {
                let records = read(client, version, &app.url(), None).await;
                let messages: Vec<_> = records.iter().filter_map(as_message).collect();
                assert_eq!(messages, expected_messages(), "{client} {version:?}");
            }
        }
    }

    #[tokio::test]
    async fn each_json_text_is_one_event() {
        let app = RecordingApp::new(vectors_source()).await;
        let mut expected: Vec<_> = vectors().into_iter().map(envelope).collect();
        let gap: Value = serde_json::from_str(&gap().to_json()).unwrap();
        expected.push(json!({ "id": "9", "gap": gap }));
        expected.push(json!({ "id": EventId::FINISHED, "end": { "finished": true } }));
        // `httpx-lines` also splits at U+0085, U+2028 and others, all of which are escaped.
        for client in ["ndjson", "httpx-lines", "jsonseq"] {
            for version in HttpVersion::ALL {
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
    async fn each_part_is_one_event() {
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
        let source = source_fn(move |_| async move { Ok(stream::iter(items)) });
        let app = RecordingApp::new(source).await;
        let text = "text/plain; charset=utf-8";
        let of_typed = [("event-id", "a-1"), ("event-type", "price")];
        let finished = b"{\"id\":\"~finished\",\"end\":{\"finished\":true}}";
        let expected = [
            part("application/json", &of_typed, b"{\"eur\":21.5}"),
            part(text, &[], "größe\r\n--boundary\r\n".as_bytes()),
            part(text, &[], b""),
            part("application/octet-stream", &[], b"\xff\x00\r\r\n-"),
            part(control, &[], b"{\"id\":\"7\"}"),
            part(control, &[], finished),
        ];
        for client in ["python-multipart", "email"] {
            for version in HttpVersion::ALL {
                let records = read(client, version, &app.url(), None).await;
                assert_eq!(records, expected, "{client} {version:?}");
            }
        }
    }

    /// Returns a part as the script prints it, with each byte as a code point.
    fn part(content_type: &str, more: &[(&str, &str)], body: &[u8]) -> Value {
        let length = body.len().to_string();
        let mut headers = json!({ "content-type": content_type, "content-length": length });
        for (name, value) in more {
            headers[name] = (*value).into();
        }
        let body: String = body.iter().copied().map(char::from).collect();
        json!({ "id": headers.get("event-id"), "headers": headers, "body": body })
    }

    #[tokio::test]
    async fn cut_is_an_error_after_earlier_events() {
        let app = RecordingApp::new(interrupted_feed(Ending::Cut)).await;
        for client in INCREMENTAL_READERS {
            for version in HttpVersion::ALL {
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
    async fn each_event_arrives_before_next_one_exists() {
        for client in INCREMENTAL_READERS {
            for version in HttpVersion::ALL {
                let read_acknowledging = AcknowledgedFeed::new(Ending::Finished).await;
                let acknowledge = read_acknowledging.acknowledge();
                let records = read(
                    client,
                    version,
                    &read_acknowledging.app.url(),
                    Some(&acknowledge),
                )
                .await;
                let ids = records.iter().filter_map(|record| record["id"].as_str());
                let ids: Vec<_> = ids.filter(|id| *id != EventId::FINISHED).collect();
                let expected: Vec<_> = (1..=LAST_NUMBER).map(|n| n.to_string()).collect();
                assert_eq!(ids, expected, "{client} {version:?}");
            }
        }
    }
}

mod reqwest_eventsource {
    use ::reqwest_eventsource::{Error, Event as Received, EventSource};

    use super::*;

    fn client(version: HttpVersion) -> reqwest::Client {
        let client = reqwest::Client::builder().no_proxy();
        match version {
            HttpVersion::Http1 => client.http1_only(),
            HttpVersion::Http2 => client.http2_prior_knowledge(),
        }
        .build()
        .unwrap()
    }

    /// Reads until the event source stops for good. Calls `on_message` with each event before it polls for the next one.
    async fn messages(
        client: &reqwest::Client,
        url: &str,
        on_message: impl AsyncFn(&MessageEvent),
    ) -> (Vec<MessageEvent>, Vec<Error>) {
        let mut source = EventSource::new(client.get(url)).unwrap();
        let (mut messages, mut errors) = (Vec::new(), Vec::new());
        let reading = async {
            while let Some(next) = source.next().await {
                match next {
                    Ok(Received::Open) => {}
                    Ok(Received::Message(event)) => {
                        let message = message(&event.event, &event.id, &event.data);
                        on_message(&message).await;
                        messages.push(message);
                    }
                    Err(error) => errors.push(error),
                }
            }
        };
        let ended = tokio::time::timeout(TEST_TIMEOUT, reading).await.is_ok();
        assert!(ended, "it should have stopped: {messages:?} {errors:?}");
        (messages, errors)
    }

    async fn ignore_message(_: &MessageEvent) {}

    fn is_204(error: &Error) -> bool {
        matches!(error, Error::InvalidStatusCode(status, _) if status.as_u16() == 204)
    }

    #[tokio::test]
    async fn events_arrive_unchanged_until_finished() {
        for version in HttpVersion::ALL {
            let app = RecordingApp::new(vectors_source()).await;
            let (messages, errors) = messages(&client(version), &app.url(), ignore_message).await;
            assert_eq!(messages, expected_messages(), "{version:?}");
            assert_eq!(app.cursors(), ["", EventId::FINISHED]);
            assert!(
                matches!(&errors[..], [Error::StreamEnded, last] if is_204(last)),
                "{errors:?}"
            );
        }
    }

    #[tokio::test]
    async fn interrupted_feed_resumes() {
        for ending in [Ending::Ended, Ending::Cut] {
            for version in HttpVersion::ALL {
                let app = RecordingApp::new(interrupted_feed(ending)).await;
                let (messages, errors) =
                    messages(&client(version), &app.url(), ignore_message).await;
                assert_eq!(without_ends(messages), numbers(), "{ending:?} {version:?}");
                assert_eq!(app.cursors(), INTERRUPTED_FEED_CURSORS);
                let was_cut = matches!(errors[0], Error::Transport(_));
                assert_eq!(was_cut, ending == Ending::Cut, "{errors:?}");
                assert!(is_204(errors.last().unwrap()), "{errors:?}");
            }
        }
    }

    /// Version 0.6 takes its cursor from each event, and forgets it at an event without an id.
    #[tokio::test]
    async fn idle_connection_keeps_cursor() {
        for version in HttpVersion::ALL {
            let app = RecordingApp::new(feed_with_idle_connection()).await;
            messages(&client(version), &app.url(), ignore_message).await;
            assert_eq!(app.cursors(), IDLE_FEED_CURSORS, "{version:?}");
        }
    }

    #[tokio::test]
    async fn each_event_arrives_before_next_one_exists() {
        for version in HttpVersion::ALL {
            let read_acknowledging = AcknowledgedFeed::new(Ending::Finished).await;
            let client = client(version);
            let acknowledge = async |message: &MessageEvent| {
                let url = read_acknowledging.acknowledge() + &message.last_event_id;
                client.get(url).send().await.unwrap();
            };
            let (messages, _) = messages(&client, &read_acknowledging.app.url(), acknowledge).await;
            assert_eq!(without_ends(messages), numbers(), "{version:?}");
        }
    }
}
