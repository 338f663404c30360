//! Streams behind Debian's nginx, with the configuration in `docs/deploying.md`. The clients are curl. `scripts/setup` installs both.
//! Without one of them, the tests fail.

use std::{path::PathBuf, process::Stdio, time::Duration};

use futures_util::{StreamExt, stream};
use testkit::{
    LiveCounter, Nginx, SelfSignedCertificate, TEST_TIMEOUT, TestServer, nginx::replace_once,
    websocket::handshake_header_lines,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use tower_push::{
    BoxError, Channel, KeepAlive, PushSource,
    source::source_fn,
    transport::{Negotiate, Sse},
};

/// The configuration that `docs/deploying.md` shows.
const DOCUMENTED_CONFIGURATION: &str = include_str!("nginx/push.conf");

/// nginx in front of a server, with TLS.
struct TlsNginx {
    nginx: Nginx,
    /// nginx reads the files when it starts.
    _certificate: SelfSignedCertificate,
}

impl TlsNginx {
    /// Starts nginx in front of `server`, with the documented configuration except for the addresses.
    async fn start(server: &TestServer) -> Self {
        Self::start_with(server, DOCUMENTED_CONFIGURATION).await
    }

    /// Starts nginx in front of `server`, with another configuration.
    async fn start_with(server: &TestServer, configuration: &str) -> Self {
        let certificate = SelfSignedCertificate::new("DNS:push.example");
        let path = |path: PathBuf| path.display().to_string();
        let replacements = |port| {
            [
                ("127.0.0.1:3000", server.address.to_string()),
                (
                    "listen 443 ssl http2;",
                    format!("listen 127.0.0.1:{port} ssl http2;"),
                ),
                ("/etc/ssl/push.example.pem", path(certificate.path())),
                ("/etc/ssl/push.example.key", path(certificate.key_path())),
            ]
        };
        let nginx = Nginx::start(|port| {
            let replacements = replacements(port).into_iter();
            replacements.fold(configuration.to_owned(), |configuration, (from, to)| {
                replace_once(&configuration, from, &to)
            })
        });
        Self {
            nginx: nginx.await,
            _certificate: certificate,
        }
    }

    fn get(&self, query: &str, arguments: &[&str]) -> Curl {
        let mut process = Command::new("curl")
            .args(["--silent", "--show-error", "--no-buffer", "--insecure"])
            .args(arguments)
            .arg(format!(
                "https://127.0.0.1:{}/events?{query}",
                self.nginx.port()
            ))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("curl: run scripts/setup first");
        Curl {
            stdout: process.stdout.take().expect("stdout is piped"),
            process,
            read: Vec::new(),
        }
    }
}

/// A running curl, and what it has printed so far.
struct Curl {
    process: Child,
    stdout: ChildStdout,
    read: Vec<u8>,
}

/// The exit codes of curl for a transfer that was cut off: over HTTP/1.1 and over HTTP/2.
const EXIT_CODES_OF_CUT: [i32; 2] = [18, 92];

impl Curl {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Reads more output, and returns how many bytes were read.
    async fn read_more(&mut self) -> usize {
        let read = timeout(TEST_TIMEOUT, self.stdout.read_buf(&mut self.read)).await;
        read.unwrap_or_else(|_| panic!("no more output after {:?}", self.text()))
            .unwrap()
    }

    /// Reads until the output contains `wanted`.
    async fn wait_for_text(&mut self, wanted: &str) {
        while !self.text().contains(wanted) {
            assert_ne!(self.read_more().await, 0, "{wanted:?} in {:?}", self.text());
        }
    }

    /// Reads to the end. Returns the output and the exit code.
    async fn read_to_end(mut self) -> (String, i32) {
        while self.read_more().await > 0 {}
        let status = self.process.wait().await.unwrap();
        (self.text(), status.code().expect("an exit code"))
    }
}

async fn wait_until_unsubscribed(channel: &Channel) {
    let idle = timeout(TEST_TIMEOUT, channel.unsubscribed()).await;
    idle.expect("the subscription should end");
}

const HTTP_VERSION_FLAGS: [&str; 2] = ["--http1.1", "--http2"];

#[tokio::test]
async fn each_event_passes_before_next_one_exists() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let nginx = TlsNginx::start(&server).await;
    for version in HTTP_VERSION_FLAGS {
        for transport in ["sse", "ndjson", "json-seq", "multipart"] {
            let mut client = nginx.get(&format!("transport={transport}"), &[version]);
            channel.subscribed().await;
            for n in 1..=5 {
                let event = format!("event {n} over {transport}, {version}");
                channel.publish(event.as_str()).unwrap();
                client.wait_for_text(&event).await;
            }
            drop(client);
            // nginx closes the connection to the server when its client disconnects.
            timeout(TEST_TIMEOUT, channel.unsubscribed())
                .await
                .expect("the subscription should end");
        }
    }
}

#[tokio::test]
async fn websocket_passes_for_same_origin() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let nginx = TlsNginx::start(&server).await;
    let mut asks = vec!["--http1.1", "--include"];
    let handshake = handshake_header_lines();
    for header in &handshake {
        asks.extend(["--header", header]);
    }
    let origin = format!("Origin: https://127.0.0.1:{}", nginx.nginx.port());
    let mut client = nginx.get("", &[&asks[..], &["--header", &origin]].concat());
    channel.subscribed().await;
    for n in 1..=5 {
        let event = format!("event {n}");
        channel.publish(event.as_str()).unwrap();
        client.wait_for_text(&event).await;
    }
    // curl prints the head only together with the first bytes after it.
    client.wait_for_text("101 Switching Protocols").await;
    drop(client);
    wait_until_unsubscribed(&channel).await;
    let foreign = ["--header", "Origin: https://evil.example"];
    let mut client = nginx.get("", &[&asks[..], &foreign].concat());
    client.wait_for_text("403 Forbidden").await;
}

#[tokio::test]
async fn stream_opens_before_its_first_event() {
    let server = TestServer::start(tower_push::service(Channel::new())).await;
    let nginx = TlsNginx::start(&server).await;
    for version in HTTP_VERSION_FLAGS {
        nginx
            .get("", &["--include", version])
            .wait_for_text("\r\n\r\n:\n")
            .await;
    }
}

#[tokio::test]
async fn long_poll_is_answered_at_next_event() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let nginx = TlsNginx::start(&server).await;
    for version in HTTP_VERSION_FLAGS {
        let poll = async |event: &str, arguments: &[&str]| {
            let poll = nginx.get("transport=long-poll", arguments);
            channel.subscribed().await;
            channel.publish(event).unwrap();
            let (answer, code) = poll.read_to_end().await;
            assert!(answer.contains(event), "{answer}");
            assert_eq!(code, 0);
            wait_until_unsubscribed(&channel).await;
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

/// Starts an nginx that closes idle streams after a second, in front of a server with these heartbeats. Returns the channel too.
async fn start_with_1_s_timeout(keep_alive: KeepAlive) -> (TlsNginx, TestServer, Channel) {
    let channel = Channel::new();
    let transports = Negotiate::new().add_transport(Sse::new().keep_alive(keep_alive));
    let server =
        TestServer::start(tower_push::service(channel.clone()).transport(transports)).await;
    let impatient = replace_once(
        DOCUMENTED_CONFIGURATION,
        "proxy_read_timeout 60s;",
        "proxy_read_timeout 1s;",
    );
    (
        TlsNginx::start_with(&server, &impatient).await,
        server,
        channel,
    )
}

#[tokio::test]
async fn heartbeats_keep_idle_stream_open() {
    let often = KeepAlive::new().interval(Duration::from_millis(200));
    let (nginx, _server, channel) = start_with_1_s_timeout(often).await;
    for version in HTTP_VERSION_FLAGS {
        let mut client = nginx.get("transport=sse", &[version]);
        // This many heartbeats take more than three seconds.
        client.wait_for_text(&":\n".repeat(16)).await;
        channel.publish("still here").unwrap();
        client.wait_for_text("still here").await;
    }
}

#[tokio::test]
async fn idle_stream_without_heartbeats_is_cut() {
    let (nginx, _server, _channel) = start_with_1_s_timeout(KeepAlive::disabled()).await;
    for version in HTTP_VERSION_FLAGS {
        let (_, code) = nginx.get("transport=sse", &[version]).read_to_end().await;
        assert!(EXIT_CODES_OF_CUT.contains(&code), "{code}");
    }
}

#[tokio::test]
async fn response_headers_turn_buffering_off() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let silent = replace_once(DOCUMENTED_CONFIGURATION, "proxy_buffering off;", "");
    let nginx = TlsNginx::start_with(&server, &silent).await;
    for version in HTTP_VERSION_FLAGS {
        let mut client = nginx.get("", &[version]);
        channel.subscribed().await;
        channel.publish(version).unwrap();
        client.wait_for_text(version).await;
        drop(client);
        timeout(TEST_TIMEOUT, channel.unsubscribed())
            .await
            .expect("the subscription should end");
    }
}

#[tokio::test]
async fn buffering_delays_events() {
    let channel = Channel::new();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    let ignoring_headers = replace_once(
        DOCUMENTED_CONFIGURATION,
        "proxy_buffering off;",
        "proxy_ignore_headers X-Accel-Buffering;",
    );
    let old = replace_once(
        &ignoring_headers,
        "proxy_http_version 1.1;",
        "proxy_http_version 1.0;",
    );
    // The combination of HTTP/1.1 to the server and HTTP/2 to the client is left out, because this version of nginx happens not to delay
    // events there.
    for (configuration, version) in [
        (&ignoring_headers, "--http1.1"),
        (&old, "--http1.1"),
        (&old, "--http2"),
    ] {
        let nginx = TlsNginx::start_with(&server, configuration).await;
        let mut client = nginx.get("", &[version]);
        channel.subscribed().await;
        channel.publish("held back").unwrap();
        let received = timeout(
            Duration::from_millis(500),
            client.wait_for_text("held back"),
        )
        .await;
        assert!(received.is_err());
        channel.publish("x".repeat(64 * 1024)).unwrap();
        client.wait_for_text("held back").await;
        drop(client);
        wait_until_unsubscribed(&channel).await;
    }
}

/// A source of one event and then a failure.
fn event_then_failure() -> impl PushSource + Clone + Send + Sync {
    source_fn(async |_| {
        let event = stream::iter([Ok::<_, BoxError>("hello")]);
        Ok(event.chain(stream::iter([Err("it broke".into())])))
    })
}

#[tokio::test]
async fn cut_stream_stays_cut() {
    let server = TestServer::start(tower_push::service(event_then_failure())).await;
    let nginx = TlsNginx::start(&server).await;
    for version in HTTP_VERSION_FLAGS {
        let (read, code) = nginx.get("", &[version]).read_to_end().await;
        assert!(read.contains("hello"), "{read}");
        assert!(EXIT_CODES_OF_CUT.contains(&code), "{code}");
    }
}

#[tokio::test]
async fn cut_looks_like_end_over_http_1_0() {
    let server = TestServer::start(tower_push::service(event_then_failure())).await;
    let old = replace_once(
        DOCUMENTED_CONFIGURATION,
        "proxy_http_version 1.1;",
        "proxy_http_version 1.0;",
    );
    let nginx = TlsNginx::start_with(&server, &old).await;
    let (read, code) = nginx.get("", &["--http1.1"]).read_to_end().await;
    assert!(read.contains("hello"), "{read}");
    assert_eq!(code, 0);
}

#[tokio::test]
async fn nginx_disconnects_stalled_client() {
    let count = LiveCounter::default();
    let counting = count.clone();
    let flood = source_fn(async move |_| Ok(counting.wrap(stream::repeat("x".repeat(64 * 1024)))));
    let server = TestServer::start(tower_push::service(flood)).await;
    let impatient = replace_once(
        DOCUMENTED_CONFIGURATION,
        "proxy_buffering off;",
        "proxy_buffering off; send_timeout 1s;",
    );
    let nginx = TlsNginx::start_with(&server, &impatient).await;
    for version in HTTP_VERSION_FLAGS {
        let mut stalled = nginx.get("", &[version]);
        stalled.wait_for_text("xxx").await;
        // curl stops reading because no process reads the output of curl.
        count.wait_for(0).await;
    }
}

#[test]
fn documented_configuration_is_tested() {
    let document = include_str!("../docs/deploying.md");
    let shown = format!("```nginx\n{DOCUMENTED_CONFIGURATION}```\n");
    assert!(
        document.contains(&shown),
        "docs/deploying.md shows another push.conf"
    );
}
