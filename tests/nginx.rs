//! Behind nginx, as Debian has it, under the configuration that `docs/deploying.md` shows. Its clients are curl.
//! `scripts/setup` installs both; where one is missing, the tests fail.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{self, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use testkit::{LiveCounter, TEST_TIMEOUT, TestServer};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};
use tower_push::{
    BoxError, Channel, KeepAlive, PushSource,
    source::source_fn,
    transport::{Negotiate, Sse},
};

/// What users are told to write.
const DOCUMENTED: &str = include_str!("nginx/push.conf");

/// Replaces what is there exactly once.
fn change(configuration: &str, from: &str, to: &str) -> String {
    assert_eq!(configuration.matches(from).count(), 1, "{from}");
    configuration.replace(from, to)
}

/// A running nginx, killed when it is dropped, with all its files.
struct Nginx {
    process: process::Child,
    directory: PathBuf,
    port: u16,
}

impl Nginx {
    /// As documented, but for the addresses, in front of this server.
    async fn start(server: &TestServer) -> Self {
        Self::configured(server, DOCUMENTED).await
    }

    async fn configured(server: &TestServer, configuration: &str) -> Self {
        let directory = directory();
        make_certificate(&directory);
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
        let mut push = change(configuration, "127.0.0.1:3000", &server.address.to_string());
        push = change(
            &push,
            "listen 443 ssl http2;",
            &format!("listen 127.0.0.1:{port} ssl http2;"),
        );
        push = change(&push, "/etc/ssl/push.example.pem", "certificate.pem");
        push = change(&push, "/etc/ssl/push.example.key", "key.pem");
        write("push.conf", &push);
        write("nginx.conf", include_str!("nginx/nginx.conf"));
        let process = process::Command::new("nginx")
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(&directory)
            .spawn()
            .expect("nginx: see scripts/setup");
        let nginx = Self {
            process,
            directory,
            port,
        };
        nginx.listens().await;
        nginx
    }

    async fn listens(&self) {
        let connected = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TEST_TIMEOUT, connected)
            .await
            .expect("nginx listens");
    }

    fn get(&self, query: &str, arguments: &[&str]) -> Curl {
        let mut process = Command::new("curl")
            .args(["--silent", "--show-error", "--no-buffer", "--insecure"])
            .args(arguments)
            .arg(format!("https://127.0.0.1:{}/events?{query}", self.port))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("curl: see scripts/setup");
        Curl {
            stdout: process.stdout.take().expect("it is piped"),
            process,
            read: Vec::new(),
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A new directory, which nginx finds its files in.
fn directory() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("tower-push-nginx-{}-{number}", process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn make_certificate(directory: &Path) {
    let made = process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-subj", "/CN=push.example", "-days", "1"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(directory)
        .output()
        .expect("openssl: see scripts/setup");
    assert!(made.status.success(), "{made:?}");
}

/// A request, and what has been read of its answer.
struct Curl {
    process: Child,
    stdout: ChildStdout,
    read: Vec<u8>,
}

/// curl's exit codes for a transfer that was cut: over HTTP/1.1, and over HTTP/2.
const CUT: [i32; 2] = [18, 92];

impl Curl {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    async fn more(&mut self) -> usize {
        let read = timeout(TEST_TIMEOUT, self.stdout.read_buf(&mut self.read)).await;
        read.unwrap_or_else(|_| panic!("more than {:?}", self.text()))
            .unwrap()
    }

    /// Reads until this is there.
    async fn expect(&mut self, wanted: &str) {
        while !self.text().contains(wanted) {
            assert_ne!(self.more().await, 0, "{wanted:?} in {:?}", self.text());
        }
    }

    /// Reads to the end, and says how curl took it.
    async fn end(mut self) -> (String, i32) {
        while self.more().await > 0 {}
        let status = self.process.wait().await.unwrap();
        (self.text(), status.code().expect("an exit code"))
    }
}

async fn gone(channel: &Channel) {
    let idle = timeout(TEST_TIMEOUT, channel.unsubscribed()).await;
    idle.expect("the subscriber is gone");
}

const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

#[tokio::test]
async fn every_event_passes_before_the_next_one_exists() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let nginx = Nginx::start(&server).await;
    for version in VERSIONS {
        for transport in ["sse", "ndjson", "json-seq", "multipart"] {
            let mut client = nginx.get(&format!("transport={transport}"), &[version]);
            channel.subscribed().await;
            for n in 1..=5 {
                let event = format!("event {n} over {transport}, {version}");
                channel.publish(event.as_str()).unwrap();
                client.expect(&event).await;
            }
            drop(client);
            // nginx hangs up on the server when its client does.
            timeout(TEST_TIMEOUT, channel.unsubscribed())
                .await
                .expect("the subscriber is gone");
        }
    }
}

#[tokio::test]
async fn a_websocket_passes_for_pages_of_its_own_origin() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let nginx = Nginx::start(&server).await;
    let mut asks = vec!["--http1.1", "--include"];
    for header in [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ] {
        asks.extend(["--header", header]);
    }
    let origin = format!("Origin: https://127.0.0.1:{}", nginx.port);
    let mut client = nginx.get("", &[&asks[..], &["--header", &origin]].concat());
    channel.subscribed().await;
    for n in 1..=5 {
        let event = format!("event {n}");
        channel.publish(event.as_str()).unwrap();
        client.expect(&event).await;
    }
    // curl prints the head with the first bytes behind it.
    client.expect("101 Switching Protocols").await;
    drop(client);
    gone(&channel).await;
    let foreign = ["--header", "Origin: https://evil.example"];
    let mut client = nginx.get("", &[&asks[..], &foreign].concat());
    client.expect("403 Forbidden").await;
}

#[tokio::test]
async fn a_stream_opens_before_its_first_event() {
    let server = TestServer::start(tower_push::service(Channel::new())).await;
    let nginx = Nginx::start(&server).await;
    for version in VERSIONS {
        nginx
            .get("", &["--include", version])
            .expect("\r\n\r\n:\n")
            .await;
    }
}

#[tokio::test]
async fn a_long_poll_is_answered_when_there_is_something() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let nginx = Nginx::start(&server).await;
    for version in VERSIONS {
        let poll = async |event: &str, arguments: &[&str]| {
            let poll = nginx.get("transport=long-poll", arguments);
            channel.subscribed().await;
            channel.publish(event).unwrap();
            let (answer, code) = poll.end().await;
            assert!(answer.contains(event), "{answer}");
            assert_eq!(code, 0);
            gone(&channel).await;
            answer
        };
        let first = poll("at last", &["--include", version]).await;
        let again = format!("if-none-match: {}", header(&first, "etag: "));
        poll("and again", &[version, "--header", &again]).await;
    }
}

fn header<'a>(response: &'a str, name: &str) -> &'a str {
    let value = response.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("{name} in {response}"))
}

/// Behind an nginx that waits for a second: an idle stream with these heartbeats, and its channel.
async fn impatient(keep_alive: KeepAlive) -> (Nginx, TestServer, Channel) {
    let channel = Channel::new();
    let transports = Negotiate::new().add_transport(Sse::new().keep_alive(keep_alive));
    let server =
        TestServer::start(tower_push::service(channel.clone()).transport(transports)).await;
    let impatient = change(
        DOCUMENTED,
        "proxy_read_timeout 60s;",
        "proxy_read_timeout 1s;",
    );
    (
        Nginx::configured(&server, &impatient).await,
        server,
        channel,
    )
}

#[tokio::test]
async fn heartbeats_keep_an_idle_stream_open() {
    let often = KeepAlive::new().interval(Duration::from_millis(200));
    let (nginx, _server, channel) = impatient(often).await;
    for version in VERSIONS {
        let mut client = nginx.get("transport=sse", &[version]);
        // For three seconds and more.
        client.expect(&":\n".repeat(16)).await;
        channel.publish("still here").unwrap();
        client.expect("still here").await;
    }
}

#[tokio::test]
async fn without_heartbeats_an_idle_stream_is_cut() {
    let (nginx, _server, _channel) = impatient(KeepAlive::disabled()).await;
    for version in VERSIONS {
        let (_, code) = nginx.get("transport=sse", &[version]).end().await;
        assert!(CUT.contains(&code), "{code}");
    }
}

#[tokio::test]
async fn the_responses_alone_turn_buffering_off() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let silent = change(DOCUMENTED, "proxy_buffering off;", "");
    let nginx = Nginx::configured(&server, &silent).await;
    for version in VERSIONS {
        let mut client = nginx.get("", &[version]);
        channel.subscribed().await;
        channel.publish(version).unwrap();
        client.expect(version).await;
        drop(client);
        timeout(TEST_TIMEOUT, channel.unsubscribed())
            .await
            .expect("the subscriber is gone");
    }
}

#[tokio::test]
async fn where_nobody_turns_buffering_off_events_are_held_back() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let deaf = change(
        DOCUMENTED,
        "proxy_buffering off;",
        "proxy_ignore_headers X-Accel-Buffering;",
    );
    let old = change(&deaf, "proxy_http_version 1.1;", "proxy_http_version 1.0;");
    // Between HTTP/1.1 and HTTP/2 nothing waits in this version of nginx, which is luck.
    for (configuration, version) in [(&deaf, "--http1.1"), (&old, "--http1.1"), (&old, "--http2")] {
        let nginx = Nginx::configured(&server, configuration).await;
        let mut client = nginx.get("", &[version]);
        channel.subscribed().await;
        channel.publish("held back").unwrap();
        let came = timeout(Duration::from_millis(500), client.expect("held back")).await;
        assert!(came.is_err());
        channel.publish("x".repeat(64 * 1024)).unwrap();
        client.expect("held back").await;
        drop(client);
        gone(&channel).await;
    }
}

/// An event, and then a failure.
fn failing() -> impl PushSource + Clone + Send + Sync {
    source_fn(async |_| {
        let event = stream::iter([Ok::<_, BoxError>("hello")]);
        Ok(event.chain(stream::iter([Err("it broke".into())])))
    })
}

#[tokio::test]
async fn a_cut_stays_a_cut() {
    let server = TestServer::start(tower_push::service(failing())).await;
    let nginx = Nginx::start(&server).await;
    for version in VERSIONS {
        let (read, code) = nginx.get("", &[version]).end().await;
        assert!(read.contains("hello"), "{read}");
        assert!(CUT.contains(&code), "{code}");
    }
}

#[tokio::test]
async fn over_http_1_0_a_cut_looks_like_an_end() {
    let server = TestServer::start(tower_push::service(failing())).await;
    let old = change(
        DOCUMENTED,
        "proxy_http_version 1.1;",
        "proxy_http_version 1.0;",
    );
    let nginx = Nginx::configured(&server, &old).await;
    let (read, code) = nginx.get("", &["--http1.1"]).end().await;
    assert!(read.contains("hello"), "{read}");
    assert_eq!(code, 0);
}

#[tokio::test]
async fn nginx_puts_out_a_client_that_stops_reading() {
    let count = LiveCounter::default();
    let counting = count.clone();
    let flood = source_fn(async move |_| Ok(counting.wrap(stream::repeat("x".repeat(64 * 1024)))));
    let server = TestServer::start(tower_push::service(flood)).await;
    let impatient = change(
        DOCUMENTED,
        "proxy_buffering off;",
        "proxy_buffering off; send_timeout 1s;",
    );
    let nginx = Nginx::configured(&server, &impatient).await;
    for version in VERSIONS {
        let mut stalled = nginx.get("", &[version]);
        stalled.expect("xxx").await;
        // curl reads no more than it can write.
        count.wait_for(0).await;
    }
}

#[test]
fn what_the_document_shows_is_what_is_tested() {
    let document = include_str!("../docs/deploying.md");
    let shown = format!("```nginx\n{DOCUMENTED}```\n");
    assert!(
        document.contains(&shown),
        "docs/deploying.md shows another push.conf"
    );
}
