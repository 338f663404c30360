//! Third-party WebSocket clients: npm `ws` and the PyPI package `websockets`, both with compression, and curl. `scripts/setup` installs
//! them. Without one of them, its tests fail.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::Router;
use serde_json::{Value, json};
use testkit::{
    ExampleProcess, TEST_TIMEOUT, TestServer, programs,
    websocket::{SAMPLE_ACCEPT, handshake_header_lines},
};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};
use tower_push::{
    Channel, Event, EventId, Item, PushSource, service,
    source::{Rejection, StartPosition, Subscription, source_fn},
    transport::WebSocket,
};

/// A server with `/echo`, with `/feed`, which sends the events of a channel, and with `/gone`, whose stream ends.
struct TestApp {
    server: TestServer,
    channel: Channel,
}

impl TestApp {
    async fn new() -> Self {
        let echo = source_fn(|subscription: Subscription| async move {
            let refused = Rejection::new(http::StatusCode::UPGRADE_REQUIRED);
            subscription.client_messages().ok_or(refused)
        });
        let transport = WebSocket::new()
            .max_message_size(1 << 20)
            .deflate_threshold(Some(0));
        let transport = transport.subprotocol(
            "echo",
            tower_push::transport::websocket::MessageFormat::Plain,
        );
        let channel = Channel::new();
        let gone = source_fn(|_| async {
            let events = [Event::text("größe"), Event::binary(&b"\xff\x00\n"[..])];
            Ok(futures_util::stream::iter(events))
        });
        let router = Router::new()
            .route_service("/echo", service(echo).transport(transport))
            .route_service("/feed", service(channel.with_start(StartPosition::Oldest)))
            .route_service("/gone", service(gone).transport(WebSocket::new()));
        let server = TestServer::start(router).await;
        Self { server, channel }
    }

    fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.server.address)
    }
}

/// The scripts that take the same options and print the same records.
#[derive(Clone, Copy, Debug)]
enum ScriptedClient {
    Ws,
    Websockets,
}

const SCRIPTED_CLIENTS: [ScriptedClient; 2] = [ScriptedClient::Ws, ScriptedClient::Websockets];

impl ScriptedClient {
    fn command(self) -> std::process::Command {
        match self {
            Self::Ws => programs::node_script("websocket.mjs", "ws"),
            Self::Websockets => programs::python_script("websocket.py"),
        }
    }

    /// Runs the script, and returns its records: what happened to the client from the handshake to the close.
    async fn run(self, url: &str, options: &[&str]) -> Vec<Value> {
        let mut command = self.command();
        command.arg(url).args(options);
        programs::run_to_json_lines(command, TEST_TIMEOUT).await
    }
}

fn open_record(protocol: Option<&str>, extensions: Option<&str>) -> Value {
    json!({ "open": { "status": 101, "protocol": protocol, "extensions": extensions } })
}

fn close_record(code: u16) -> Value {
    json!({ "close": { "code": code, "reason": "", "clean": true } })
}

/// Message sizes at the limits of each encoding of a frame's length, and one that is larger than a socket buffer.
const MESSAGE_SIZES: &str = "0,1,2,7,125,126,127,1000,65535,65536,300000";

const ECHO_COUNT: u64 = 22;

#[tokio::test]
async fn messages_are_echoed_unchanged() {
    let app = TestApp::new().await;
    let agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    for client in SCRIPTED_CLIENTS {
        for (deflate, prefix) in [
            (&["--no-deflate"][..], None),
            (&[], Some(agreed)),
            (&["--window", "9"], Some("permessage-deflate")),
            (&["--window", "15"], Some("permessage-deflate")),
        ] {
            for fragment in [&[][..], &["--fragment", "100"]] {
                let options = [
                    &["--protocol", "echo", "--echo", MESSAGE_SIZES],
                    deflate,
                    fragment,
                ];
                let records = client.run(&app.url("/echo"), &options.concat()).await;
                let extensions = records[0]["open"]["extensions"].as_str();
                assert_eq!(extensions.is_some(), prefix.is_some(), "{records:?}");
                let is_agreed = extensions.unwrap_or("").starts_with(prefix.unwrap_or(""));
                assert!(is_agreed, "{client:?} {deflate:?}: {extensions:?}");
                let expected = [
                    open_record(Some("echo"), extensions),
                    json!({ "echoed": ECHO_COUNT }),
                    close_record(1000),
                ];
                assert_eq!(records, expected, "{client:?} {deflate:?} {fragment:?}");
            }
        }
    }
}

#[tokio::test]
async fn text_and_binary_arrive_and_end_asks_to_reconnect() {
    let app = TestApp::new().await;
    for client in SCRIPTED_CLIENTS {
        let records = client.run(&app.url("/gone"), &["--no-deflate"]).await;
        let expected = [
            open_record(None, None),
            json!({ "text": "größe" }),
            json!({ "binary": "\u{ff}\0\n" }),
        ];
        assert_eq!(records[..3], expected, "{client:?}");
        assert_eq!(records[3]["close"]["code"], 3000, "{records:?}");
        assert_eq!(records[3]["close"]["clean"], true, "{records:?}");
    }
}

#[tokio::test]
async fn overlong_message_closes_with_1009() {
    let app = TestApp::new().await;
    for client in SCRIPTED_CLIENTS {
        let records = client
            .run(&app.url("/echo"), &["--no-deflate", "--echo", "2000000"])
            .await;
        let last = records.last().unwrap();
        assert_eq!(last["close"]["code"], 1009, "{client:?}: {records:?}");
    }
}

/// Returns the text messages among these records, parsed as JSON.
fn envelopes(records: &[Value]) -> Vec<Value> {
    let texts = records.iter().filter_map(|record| record["text"].as_str());
    texts
        .map(|text| serde_json::from_str(text).unwrap())
        .collect()
}

#[tokio::test]
async fn client_resumes_with_its_cursor() {
    let app = TestApp::new().await;
    for n in 1..=6 {
        app.channel.publish(n.to_string()).unwrap();
    }
    for client in SCRIPTED_CLIENTS {
        let options = ["--protocol", "json.tower-push", "--take", "3"];
        let mut cursor = String::new();
        let mut read = Vec::new();
        for _ in 0..2 {
            let url = app.url(&format!("/feed?last_event_id={cursor}"));
            let records = client.run(&url, &options).await;
            assert_eq!(records[0]["open"]["protocol"], "json.tower-push");
            assert_eq!(records.last(), Some(&close_record(1000)));
            let envelopes = envelopes(&records);
            let last = envelopes.last().and_then(|last| last["id"].as_str());
            cursor = last.expect("an id").to_owned();
            read.extend(envelopes.iter().map(|envelope| envelope["data"].clone()));
        }
        assert_eq!(read, ["1", "2", "3", "4", "5", "6"], "{client:?}");
    }
}

/// The time to reconnect that the server sends. It is longer than the client's default.
const RETRY_DELAY: Duration = Duration::from_millis(1500);

/// A source of six events, two per connection. It records when each subscription began.
fn two_events_per_connection(
    request_times: Arc<Mutex<Vec<Instant>>>,
) -> impl PushSource + Clone + Send + Sync {
    source_fn(move |subscription: Subscription| {
        request_times.lock().unwrap().push(Instant::now());
        async move {
            let seen = subscription.cursor().map_or("0", EventId::as_str);
            let seen: u64 = seen.parse().unwrap();
            let event = |n: u64| Event::text(n.to_string()).with_id(n).map(Item::Event);
            let events = (seen + 1..=6).take(2).map(event);
            let end = match seen {
                0 => Some(Ok(Item::Ended { retry: RETRY_DELAY })),
                4 => Some(Ok(Item::Finished)),
                _ => None,
            };
            Ok(futures_util::stream::iter(events.chain(end)))
        }
    })
}

#[tokio::test]
async fn documented_client_reconnects_until_finished() {
    let request_times = Arc::<Mutex<Vec<Instant>>>::default();
    let server = TestServer::start(service(two_events_per_connection(request_times.clone()))).await;
    let mut command = programs::node_script("follow.mjs", "ws");
    command.arg(server.url("/feed"));
    let records = programs::run_to_json_lines(command, TEST_TIMEOUT).await;
    let shown: Vec<_> = records.iter().map(|record| &record["shown"]).collect();
    let events = (1..=6).map(|n| json!([n.to_string(), n]));
    let expected: Vec<_> = events.chain([json!(["the end"])]).collect();
    assert_eq!(shown, expected.iter().collect::<Vec<_>>());
    let request_times = request_times.lock().unwrap();
    assert!(
        request_times[1] - request_times[0] >= RETRY_DELAY,
        "{:?}",
        request_times[1] - request_times[0]
    );
}

#[tokio::test]
async fn cursor_of_other_epoch_gets_gap() {
    let app = TestApp::new().await;
    app.channel.publish("1").unwrap();
    for client in SCRIPTED_CLIENTS {
        let options = ["--protocol", "json.tower-push", "--take", "1"];
        let url = app.url("/feed?last_event_id=another-1");
        let records = client.run(&url, &options).await;
        assert!(envelopes(&records)[0]["gap"].is_object(), "{records:?}");
    }
}

#[tokio::test]
async fn nchan_client_reads_id_before_message() {
    let app = TestApp::new().await;
    app.channel.publish("größe").unwrap();
    for client in SCRIPTED_CLIENTS {
        let options = ["--protocol", "ws+meta.nchan", "--take", "1"];
        let records = client.run(&app.url("/feed"), &options).await;
        let message = records[1]["text"].as_str().unwrap();
        let (head, data) = message.split_once("\n\n").unwrap();
        let head: Vec<_> = head.lines().collect();
        assert!(head[0].starts_with("id: "), "{head:?}");
        assert!(head[1].starts_with("content-type: "), "{head:?}");
        assert_eq!(data, "größe");
    }
}

#[tokio::test]
async fn foreign_origin_is_refused_with_403() {
    let app = TestApp::new().await;
    for client in SCRIPTED_CLIENTS {
        let options = ["--origin", "https://evil.example", "--take", "1"];
        let records = client.run(&app.url("/gone"), &options).await;
        assert_eq!(records[0]["refused"]["status"], 403, "{client:?}");

        let own = format!("http://{}", app.server.address);
        let options = ["--origin", &own, "--take", "1"];
        let records = client.run(&app.url("/gone"), &options).await;
        assert_eq!(records[1], json!({ "text": "größe" }), "{client:?}");
    }
}

mod curl {
    use super::*;

    /// Runs curl. Returns the lines of the response head in alphabetical order, and the bytes after the head.
    async fn curl(url: &str, until: usize, headers: &[&str]) -> (Vec<String>, Vec<u8>) {
        let mut command = Command::new("curl");
        command.args(["-sS", "-i", "--http1.1", "--no-buffer", "--noproxy", "*"]);
        for header in headers {
            command.args(["-H", header]);
        }
        command.arg(url).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut read = Vec::new();
        let reading = async {
            loop {
                if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                    let head = String::from_utf8(read[..end].to_vec()).unwrap();
                    let body = &read[end + 4..];
                    if body.len() >= until {
                        let lines = head.split("\r\n").filter(|line| !line.starts_with("date:"));
                        let mut lines: Vec<_> = lines.map(str::to_ascii_lowercase).collect();
                        lines[1..].sort_unstable();
                        return (lines, body.to_vec());
                    }
                }
                let more = stdout.read_buf(&mut read).await.unwrap();
                assert_ne!(more, 0, "it ended: {}", String::from_utf8_lossy(&read));
            }
        };
        timeout(TEST_TIMEOUT, reading)
            .await
            .expect("more bytes should have arrived")
    }

    #[tokio::test]
    async fn curl_receives_exact_frames() {
        let app = TestApp::new().await;
        let url = format!("http://{}/gone", app.server.address);
        let handshake = handshake_header_lines();
        let headers = handshake.each_ref().map(String::as_str);
        let frames = [
            &b"\x81\x07"[..],
            "größe".as_bytes(),
            b"\x82\x03\xff\x00\n\x88",
        ]
        .concat();
        let (head, read) = curl(&url, frames.len(), &headers).await;
        assert_eq!(head[0], "http/1.1 101 switching protocols");
        let accept = format!(
            "sec-websocket-accept: {}",
            SAMPLE_ACCEPT.to_ascii_lowercase()
        );
        assert_eq!(
            head[1..],
            ["connection: upgrade", &accept, "upgrade: websocket"]
        );
        assert_eq!(read[..frames.len()], frames);
        let code = u16::from_be_bytes([read[frames.len() + 1], read[frames.len() + 2]]);
        assert_eq!(code, 3000);
    }

    #[tokio::test]
    async fn invalid_handshake_is_refused_with_explanation() {
        let app = TestApp::new().await;
        let url = format!("http://{}/gone", app.server.address);
        let handshake = handshake_header_lines();
        let [connection, upgrade, key, version] = handshake.each_ref().map(String::as_str);
        for (headers, status, says) in [
            (vec![], "426", "upgrade: websocket"),
            (
                vec![connection, upgrade, key],
                "426",
                "sec-websocket-version: 13",
            ),
            (
                vec![connection, upgrade, key, "sec-websocket-version: 8"],
                "426",
                "sec-websocket-version: 13",
            ),
            (vec![connection, upgrade, version], "400", ""),
            (
                vec![connection, upgrade, version, "sec-websocket-key: short"],
                "400",
                "",
            ),
            (
                vec![connection, upgrade, version, key, "origin: null"],
                "403",
                "",
            ),
        ] {
            let (head, _) = curl(&url, 0, &headers).await;
            assert_eq!(
                head[0].split(' ').nth(1),
                Some(status),
                "{headers:?}: {head:?}"
            );
            let says_so = says.is_empty() || head.iter().any(|line| line == says);
            assert!(says_so, "{headers:?}: {head:?}");
        }
    }
}

#[tokio::test]
async fn graphql_ws_client_sees_results_and_close_codes() {
    let example = tokio::task::spawn_blocking(|| ExampleProcess::start("graphql_ws", &[]));
    let example = example.await.unwrap();
    let mut script = programs::node_script("graphql_ws.mjs", "graphql-ws");
    script.arg(example.next_address());
    let records = programs::run_to_json_lines(script, TEST_TIMEOUT).await;
    let data = |field: &str, value: Value| json!({ "data": { field: value } });
    let countdown = |from: u64| (0..=from).rev().map(|n| data("countdown", json!(n)));
    let closed = |scenario: &str, code: u16, reason: &str| json!({ "scenario": scenario, "code": code, "reason": reason });
    let expected = [
        json!({
            "scenario": "results",
            "hello": [data("hello", json!("Hello, world!"))],
            "numbers": countdown(2).collect::<Vec<_>>(),
            "unknown": [{ "error": [{ "message": "unknown operation: { nothing }" }] }],
        }),
        json!({ "scenario": "first", "data": { "countdown": 100 } }),
        json!({
            "scenario": "one too many",
            "results": [{ "error": [{ "message": "too many operations" }] }],
        }),
        closed("disposed", 1000, ""),
        closed(
            "invalid message",
            4400,
            "Invalid message: expected ident at line 1 column 2",
        ),
        closed("subscribe before init", 4401, "Unauthorized"),
        closed("wrong token", 4403, "Forbidden"),
        closed("no subprotocol", 4406, "Subprotocol not acceptable"),
        closed("no init", 4408, "Connection initialisation timeout"),
        closed("same id twice", 4409, "Subscriber for twice already exists"),
        closed("init twice", 4429, "Too many initialisation requests"),
        closed("internal error", 4500, "Internal server error"),
    ];
    assert_eq!(records, expected);
}
