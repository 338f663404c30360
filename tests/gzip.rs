//! Streams in gzip: each event is readable at once by clients of other projects, in hyper and after leaving hyper; which requests get gzip.

use std::{
    convert::Infallible,
    io::Read,
    pin::Pin,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use flate2::{Decompress, FlushDecompress, read::GzDecoder};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use hyper::body::Incoming;
use proptest::prelude::*;
use testkit::{
    HttpConnection, HttpVersion, TEST_TIMEOUT, TestServer, body_frames, get_request_head, programs,
    wait_until,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::ServiceExt;
use tower_push::{
    BoxError, Channel, Event, KeepAlive, Push, PushBody, PushSource,
    server::Server,
    service,
    source::{StartPosition, source_fn},
    transport::{Chunked, GzipConfig, Sse, Transport},
};

/// A server with a channel in gzip at `/stream`, and an empty page at `/page`.
struct GzipServer {
    server: TestServer,
    channel: Channel,
    /// The `Content-Encoding` of each response at `/stream`.
    encodings: Arc<Mutex<Vec<Option<HeaderValue>>>>,
}

impl GzipServer {
    /// Starts a server in which streams leave hyper if `server` is given.
    async fn start(server: Option<Server>, transport: impl Transport) -> Self {
        let channel = Channel::new();
        let pushes = service(channel.clone()).transport(transport);
        let encodings = Arc::new(Mutex::new(Vec::new()));
        let seen = encodings.clone();
        let app = tower::service_fn(move |request: Request<Incoming>| {
            let (pushes, seen) = (pushes.clone(), seen.clone());
            async move {
                if request.uri().path() != "/stream" {
                    let mut page = Response::new(PushBody::full("<!doctype html><title>x</title>"));
                    let html = HeaderValue::from_static("text/html");
                    page.headers_mut().insert(CONTENT_TYPE, html);
                    return Ok::<_, Infallible>(page);
                }
                let response = pushes.oneshot(request).await?;
                let encoding = response.headers().get("content-encoding").cloned();
                seen.lock().unwrap().push(encoding);
                Ok(response)
            }
        });
        let server = match server {
            Some(server) => TestServer::start_on(server, app).await,
            None => TestServer::start(app).await,
        };
        Self {
            server,
            channel,
            encodings,
        }
    }

    fn url(&self) -> String {
        self.server.url("/stream")
    }
}

/// A program that prints what it reads.
struct Reader {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped());
        let mut child = tokio::process::Command::from(std::mem::replace(command, Command::new("")))
            .kill_on_drop(true)
            .spawn()
            .expect("run scripts/setup first");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            _child: child,
            lines,
        }
    }

    /// Returns the next line that contains `text`. Returns `None` at the end of the output.
    async fn line_with(&mut self, text: &str) -> Option<String> {
        loop {
            let line = timeout(TEST_TIMEOUT, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("{text:?} does not arrive"));
            match line.unwrap() {
                Some(line) if !line.contains(text) => {}
                line => return line,
            }
        }
    }
}

fn curl(version: HttpVersion, url: &str) -> Command {
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--fail",
        "--compressed",
        "--no-buffer",
        "--noproxy",
        "*",
    ]);
    command.arg(match version {
        HttpVersion::Http1 => "--http1.1",
        HttpVersion::Http2 => "--http2-prior-knowledge",
    });
    command.arg(url);
    command
}

/// Publishes each event after the client has read the one before, on a server in hyper and on one that takes streams out of hyper.
async fn assert_events_are_read_at_once(client: &str, command: impl Fn(&str) -> Command) {
    for server in [None, Some(Server::new())] {
        let sse = Sse::new().gzip(GzipConfig::new());
        let gzip = GzipServer::start(server.clone(), sse).await;
        let is_subscribed = || gzip.channel.subscriber_count() == 1;
        let mut reader = Reader::start(&mut command(&gzip.url()));
        wait_until(is_subscribed, || format!("{client} does not connect")).await;
        if let Some(server) = server.as_ref().filter(|_| client != "curl over HTTP/2") {
            let is_detached = || server.counts().detached_streams == 1;
            wait_until(is_detached, || format!("{:?}", server.counts())).await;
        }
        // More events than a block of the log has.
        for number in 0..70 {
            let text = format!("event {number} of a stream");
            gzip.channel.publish(text.clone()).unwrap();
            let line = reader.line_with(&text).await;
            assert!(line.is_some(), "{client}: {text}");
        }
        gzip.channel.close();
        let finished = reader.line_with("\"finished\"").await;
        assert!(client == "node" || finished.is_some(), "{client}");
        assert_eq!(reader.line_with("unexpected").await, None, "{client}");
        let status = timeout(TEST_TIMEOUT, reader._child.wait()).await;
        assert!(status.unwrap().unwrap().success(), "{client}");
        assert_eq!(gzip.encodings.lock().unwrap()[0].as_ref().unwrap(), "gzip");
    }
}

#[tokio::test]
async fn curl_reads_each_event_at_once() {
    assert_events_are_read_at_once("curl", |url| curl(HttpVersion::Http1, url)).await;
    assert_events_are_read_at_once("curl over HTTP/2", |url| curl(HttpVersion::Http2, url)).await;
}

#[tokio::test]
async fn python_reads_each_event_at_once() {
    assert_events_are_read_at_once("python", |url| {
        let mut command = programs::python_script("read.py");
        command.args(["httpx-sse", "1", url]);
        command
    })
    .await;
}

fn node(client: &str, url: &str) -> Command {
    let mut command = programs::node_script_with_chromium("gzip.mjs");
    command.args([client, url]);
    command
}

#[tokio::test]
async fn node_reads_each_event_at_once() {
    assert_events_are_read_at_once("node", |url| node("node", url)).await;
}

#[tokio::test]
async fn event_source_in_chromium_reads_each_event_at_once() {
    assert_events_are_read_at_once("eventsource", |url| node("eventsource", url)).await;
}

#[tokio::test]
async fn fetch_in_chromium_reads_each_event_at_once() {
    assert_events_are_read_at_once("fetch", |url| node("fetch", url)).await;
}

fn sse() -> Sse {
    Sse::new().keep_alive(KeepAlive::disabled())
}

/// Opens a stream with these request headers. Returns the response.
async fn respond(
    transport: &dyn Transport,
    source: impl PushSource + Send + 'static,
    headers: &[(&str, &str)],
) -> Response<PushBody> {
    let mut head = get_request_head("/", headers);
    transport.respond(&mut head, Push::new(source)).await
}

const ACCEPTS_GZIP: (&str, &str) = ("accept-encoding", "gzip, br");

fn has_gzip(headers: &HeaderMap) -> bool {
    headers
        .get("content-encoding")
        .is_some_and(|value| value == "gzip")
}

fn vary(headers: &HeaderMap) -> Vec<&HeaderValue> {
    headers.get_all("vary").iter().collect()
}

#[tokio::test]
async fn request_that_accepts_gzip_gets_gzip() {
    let sse = sse().gzip(GzipConfig::new());
    for (accept_encoding, expected) in [("gzip", true), ("gzip;q=0", false), ("br", false)] {
        let headers = [("accept-encoding", accept_encoding)];
        let response = respond(&sse, Channel::new(), &headers).await;
        assert_eq!(has_gzip(response.headers()), expected, "{accept_encoding}");
        assert_eq!(vary(response.headers()), ["Accept-Encoding"]);
    }
    let response = respond(&sse, Channel::new(), &[]).await;
    assert!(!has_gzip(response.headers()));
    let chunked = Chunked::default().gzip(GzipConfig::new());
    let response = respond(&chunked, Channel::new(), &[ACCEPTS_GZIP]).await;
    assert!(has_gzip(response.headers()));
    assert_eq!(vary(response.headers()), ["Accept", "Accept-Encoding"]);
}

#[tokio::test]
async fn gzip_is_off_by_default() {
    for transport in [
        &sse() as &dyn Transport,
        &sse().gzip(GzipConfig::new()).gzip(None),
    ] {
        let response = respond(transport, Channel::new(), &[ACCEPTS_GZIP]).await;
        assert!(!has_gzip(response.headers()) && vary(response.headers()).is_empty());
    }
}

#[tokio::test]
async fn head_request_gets_the_same_headers() {
    let mut head = get_request_head("/", &[ACCEPTS_GZIP]);
    head.method = http::Method::HEAD;
    let transport = sse().gzip(GzipConfig::new());
    let response = transport
        .respond(&mut head, Push::new(Channel::new()))
        .await;
    assert!(has_gzip(response.headers()));
}

#[tokio::test]
async fn request_with_credentials_gets_no_gzip() {
    for credentials in ["authorization", "cookie", "proxy-authorization"] {
        let headers = [ACCEPTS_GZIP, (credentials, "x")];
        let response = respond(&sse().gzip(GzipConfig::new()), Channel::new(), &headers).await;
        assert!(!has_gzip(response.headers()), "{credentials}");
        let allowed = sse().gzip(GzipConfig::new().with_credentials(true));
        let response = respond(&allowed, Channel::new(), &headers).await;
        assert!(has_gzip(response.headers()), "{credentials}");
    }
}

/// Why credentials turn gzip off: the events of a stream are compressed together.
#[tokio::test]
async fn gzip_length_reveals_secret_of_same_stream() {
    let secret = "session=f3b6a1c09d7e4528";
    let length_after = async |guess: &str| {
        let channel = Channel::new();
        let transport = sse().gzip(GzipConfig::new());
        let mut body = respond(&transport, channel.clone(), &[ACCEPTS_GZIP])
            .await
            .into_body();
        ready_bytes(&mut body);
        for text in [secret, guess] {
            channel.publish(text).unwrap();
            let len = ready_bytes(&mut body).0.len();
            if text == guess {
                return len;
            }
        }
        unreachable!("the guess is published")
    };
    let wrong = length_after("session=0123456789abcdef").await;
    assert!(length_after("session=f3b6a1c09d7e4528 ").await + 4 < wrong);
}

/// Returns the bytes that are ready, and the error if the body has failed.
fn ready_bytes(body: &mut PushBody) -> (Vec<u8>, Option<BoxError>) {
    let mut bytes = Vec::new();
    let mut pending_polls = 0;
    // A body yields after some frames in a row, and before it fails.
    while pending_polls < 2 {
        match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => {
                bytes.extend_from_slice(&frame.into_data().unwrap());
                pending_polls = 0;
            }
            Poll::Ready(Some(Err(error))) => return (bytes, Some(error)),
            Poll::Ready(None) => break,
            Poll::Pending => pending_polls += 1,
        }
    }
    (bytes, None)
}

/// Returns what can be read of the beginning of a stream in gzip.
fn inflate_beginning(gzip: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(1 << 20);
    let mut inflater = Decompress::new(false);
    let blocks = &gzip[10.min(gzip.len())..];
    inflater
        .decompress_vec(blocks, &mut text, FlushDecompress::None)
        .unwrap();
    text
}

#[tokio::test]
async fn clean_end_has_a_trailer() {
    let source = stream::iter(["one", "two"]);
    let transport = Chunked::default().gzip(GzipConfig::new());
    let body = respond(&transport, source, &[ACCEPTS_GZIP])
        .await
        .into_body();
    let (frames, result) = body_frames(body).await;
    result.unwrap();
    let mut text = String::new();
    let gzip = frames.concat();
    GzDecoder::new(&gzip[..]).read_to_string(&mut text).unwrap();
    assert!(
        text.ends_with("{\"data\":\"two\"}\n{\"end\":{\"finished\":false}}\n"),
        "{text}"
    );
}

#[tokio::test]
async fn failed_stream_has_no_trailer() {
    let items: [Result<Event, BoxError>; 2] = [Ok(Event::text("one")), Err("broken".into())];
    let transport = sse().gzip(GzipConfig::new());
    let body = respond(&transport, stream::iter(items), &[ACCEPTS_GZIP])
        .await
        .into_body();
    let (frames, result) = body_frames(body).await;
    assert!(result.is_err());
    let gzip = frames.concat();
    assert_eq!(inflate_beginning(&gzip), b":\ndata: one\n\n");
    let mut text = String::new();
    assert!(GzDecoder::new(&gzip[..]).read_to_string(&mut text).is_err());
}

/// Reads a stream of two events over a connection. Returns the bytes in gzip, and whether the body was complete.
async fn read_over_connection(detaches: bool, fails: bool) -> (Vec<u8>, bool) {
    let server = detaches.then(Server::new);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Result<Event, BoxError>>();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let source = source_fn(async move |_| {
        let receiver = receiver.lock().unwrap().take();
        Ok(UnboundedReceiverStream::new(receiver.unwrap()))
    });
    let app = service(source).transport(sse().gzip(GzipConfig::new()));
    let test_server = match server.clone() {
        Some(server) => TestServer::start_on(server, app).await,
        None => TestServer::start(app).await,
    };
    let mut client = HttpConnection::connect(&test_server, HttpVersion::Http1).await;
    let response = client.get("/", &[ACCEPTS_GZIP]).await;
    assert!(has_gzip(&response.head.headers));
    if let Some(server) = server {
        let is_detached = || server.counts().detached_streams == 1;
        wait_until(is_detached, || format!("{:?}", server.counts())).await;
    }
    for text in ["one", "two"] {
        sender.send(Ok(Event::text(text))).unwrap();
    }
    if fails {
        sender.send(Err("broken".into())).unwrap();
    }
    drop(sender);
    let (gzip, result) = response.read_to_end().await;
    (gzip, result.is_ok())
}

#[tokio::test]
async fn trailer_is_right_in_hyper_and_detached() {
    for detaches in [false, true] {
        let (gzip, is_complete) = read_over_connection(detaches, false).await;
        assert!(is_complete);
        // The decoder compares the CRC and the length of the trailer with the text.
        let mut text = String::new();
        let mut decoder = GzDecoder::new(&gzip[..]);
        decoder.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(":\ndata: one\n\ndata: two\n\n"), "{text}");
        assert!(decoder.into_inner().is_empty(), "the trailer is the end");

        let (gzip, is_complete) = read_over_connection(detaches, true).await;
        assert!(!is_complete, "the last chunk is missing");
        assert_eq!(inflate_beginning(&gzip), b":\ndata: one\n\ndata: two\n\n");
        let mut text = String::new();
        assert!(GzDecoder::new(&gzip[..]).read_to_string(&mut text).is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeat_is_readable() {
    let transport = Sse::new().gzip(GzipConfig::new());
    let mut body = respond(&transport, Channel::new(), &[ACCEPTS_GZIP])
        .await
        .into_body();
    let (mut gzip, _) = ready_bytes(&mut body);
    let heartbeat = http_body_util::BodyExt::frame(&mut body)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&heartbeat.data_ref().unwrap()[..], b"\0\x02\0\xfd\xff:\n");
    gzip.extend_from_slice(heartbeat.data_ref().unwrap());
    let text = inflate_beginning(&gzip);
    assert!(text.starts_with(b":\n") && text.ends_with(b"\n:\n"));
}

proptest! {
    /// Readers of a small channel, in gzip and without, are polled at the same times. They join at any event, lag and get gaps.
    #[test]
    fn gzip_of_a_channel_equals_uncompressed_stream(
        steps in proptest::collection::vec((0..4_usize, 0..40_usize), 1..80),
        is_sse in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let channel = Channel::builder().max_events(30).start(StartPosition::Oldest).build();
            let sse = sse();
            let ndjson = Chunked::default().keep_alive(KeepAlive::disabled());
            let open = async |with_gzip: bool| {
                let gzip = with_gzip.then(GzipConfig::new);
                let transport: Box<dyn Transport> = match is_sse {
                    true => Box::new(sse.clone().gzip(gzip)),
                    false => Box::new(ndjson.clone().gzip(gzip)),
                };
                respond(&*transport, channel.clone(), &[ACCEPTS_GZIP]).await.into_body()
            };
            let mut readers = Vec::new();
            let mut number = 0;
            for (step, count) in steps {
                match readers.get_mut(step) {
                    None => {
                        readers.push((open(true).await, Vec::new(), open(false).await, Vec::new()));
                    }
                    Some((gzip, gzip_bytes, plain, plain_bytes)) => {
                        gzip_bytes.extend(ready_bytes(gzip).0);
                        plain_bytes.extend(ready_bytes(plain).0);
                        assert_eq!(
                            String::from_utf8_lossy(&inflate_beginning(gzip_bytes)),
                            String::from_utf8_lossy(plain_bytes),
                        );
                    }
                }
                // Usually one event at a time, so that runs of one event occur.
                for _ in 0..if count < 30 { count % 3 } else { count } {
                    number += 1;
                    channel.publish(format!("{{\"number\":{number},\"kind\":\"trade\"}}")).unwrap();
                }
            }
            channel.close();
            for (gzip, mut gzip_bytes, plain, mut plain_bytes) in readers {
                gzip_bytes.extend(body_frames(gzip).await.0.concat());
                plain_bytes.extend(body_frames(plain).await.0.concat());
                let mut text = Vec::new();
                GzDecoder::new(&gzip_bytes[..]).read_to_end(&mut text).unwrap();
                assert!(text == plain_bytes);
            }
        });
    }
}
