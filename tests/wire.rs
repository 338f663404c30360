//! Streams over real sockets, with HTTP/1.1 and HTTP/2: which bytes arrive, when they arrive, and how a stream ends.

use std::sync::{Arc, Mutex};

use bytes::{BufMut, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE, request::Parts};
use testkit::{HttpConnection, HttpVersion, LiveCounter, TEST_TIMEOUT, TestServer, send_raw_http1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceBuilder;
use tower_http::{
    compression::{CompressionLayer, predicate::SizeAbove},
    cors::CorsLayer,
};
use tower_push::{
    Error, Event, EventId, Gap, KeepAlive, Push, PushSource,
    event::{Encoding, Fields},
    format::{Multipart, Raw},
    source::{Rejection, Subscription, source_fn},
    supervision::PendingSubscription,
    transport::{
        BoxResponseFuture, Chunked, Encoder, FrameBuffer, Negotiate, Sse, StreamEnd, Transport,
        respond_streaming,
    },
};

fn all_transports() -> Negotiate {
    let quiet = KeepAlive::disabled();
    Negotiate::only(Sse::new().keep_alive(quiet))
        .add_transport(Chunked::default().keep_alive(quiet))
        .add_transport(Chunked::new(tower_push::format::JsonSeq::new()).keep_alive(quiet))
        .add_transport(Chunked::new(Multipart::mixed()).keep_alive(quiet))
        .add_transport(Chunked::new(Multipart::replace()).keep_alive(quiet))
        .add_transport(Chunked::new(Raw::new()).keep_alive(quiet))
}

const TRANSPORT_NAMES: [&str; 6] = [
    "sse",
    "ndjson",
    "json-seq",
    "multipart",
    "multipart-replace",
    "raw",
];

/// Returns what a transport writes before the first event, for one event, and at the end.
fn expected_parts(name: &str, boundary: &str, text: &str) -> (String, String, String) {
    let (open, event, end) = match name {
        "sse" => (":\n", "data: TEXT\n\n", ""),
        "ndjson" => (
            " ",
            "{\"data\":\"TEXT\"}\n",
            "{\"end\":{\"finished\":false}}\n",
        ),
        "json-seq" => (
            "\u{1e}",
            "\u{1e}{\"data\":\"TEXT\"}\n",
            "\u{1e}{\"end\":{\"finished\":false}}\n",
        ),
        "multipart" => (
            "--B\r\n",
            "Content-Type: text/plain; charset=utf-8\r\nContent-Length: LENGTH\r\n\r\nTEXT\r\n--B\r\n",
            "Content-Type: application/vnd.tower-push+json\r\nContent-Length: 26\r\n\r\n{\"end\":{\"finished\":false}}\r\n--B--\r\n",
        ),
        "multipart-replace" => (
            "--B\r\n",
            "Content-Type: text/plain; charset=utf-8\r\nContent-Length: LENGTH\r\n\r\nTEXT\r\n--B\r\n",
            "End: {\"finished\":false}\r\n\r\n\r\n--B--\r\n",
        ),
        "raw" => ("\n", "TEXT\n", ""),
        _ => unreachable!(),
    };
    let fill = |template: &str| {
        let template = template.replace("--B", &format!("--{boundary}"));
        let length = text.len().to_string();
        template.replace("LENGTH", &length).replace("TEXT", text)
    };
    (fill(open), fill(event), fill(end))
}

fn boundary(content_type: &str) -> String {
    let boundary = content_type.split_once("boundary=");
    boundary.map_or(String::new(), |(_, boundary)| boundary.to_owned())
}

type FeedItem = Result<Event, &'static str>;

/// A source for one subscriber at a time, whose events the test sends.
#[derive(Clone, Default)]
struct ManualSource {
    next_receiver: Arc<Mutex<Option<mpsc::Receiver<FeedItem>>>>,
    live_streams: LiveCounter,
}

impl ManualSource {
    /// Returns the sender of the next subscriber's events.
    fn next_subscriber(&self) -> mpsc::Sender<FeedItem> {
        let (sender, receiver) = mpsc::channel(1024);
        *self.next_receiver.lock().unwrap() = Some(receiver);
        sender
    }

    /// Returns the source that the server serves.
    fn source(&self) -> impl PushSource + Clone + Send + Sync + use<> {
        let source = self.clone();
        source_fn(async move |_| {
            let receiver = source
                .next_receiver
                .lock()
                .unwrap()
                .take()
                .expect("next_subscriber() was called");
            Ok(source.live_streams.wrap(ReceiverStream::new(receiver)))
        })
    }
}

async fn send_text(events: &mpsc::Sender<FeedItem>, text: &str) {
    events.send(Ok(Event::text(text))).await.unwrap();
}

#[tokio::test]
async fn each_event_arrives_before_next_one_exists() {
    let source = ManualSource::default();
    let server =
        TestServer::start(tower_push::service(source.source()).transport(all_transports())).await;
    for version in HttpVersion::ALL {
        for name in TRANSPORT_NAMES {
            let events = source.next_subscriber();
            let mut client = HttpConnection::connect(&server, version).await;
            let mut response = client.get(&format!("/?transport={name}"), &[]).await;
            assert_eq!(response.head.status, 200);
            let boundary = boundary(response.header("content-type").unwrap());
            let (open, _, end) = expected_parts(name, &boundary, "");
            response.expect_bytes(open).await;
            for text in ["one", "two", "three"] {
                send_text(&events, text).await;
                response
                    .expect_bytes(expected_parts(name, &boundary, text).1)
                    .await;
            }
            drop(events);
            let (rest, ended) = response.read_to_end().await;
            assert_eq!(String::from_utf8(rest).unwrap(), end, "{version:?} {name}");
            ended.unwrap_or_else(|error| panic!("{version:?} {name}: {error}"));
        }
    }
}

#[tokio::test]
async fn failing_source_is_cut_after_its_events() {
    let source = ManualSource::default();
    let server =
        TestServer::start(tower_push::service(source.source()).transport(all_transports())).await;
    for version in HttpVersion::ALL {
        for name in TRANSPORT_NAMES {
            let events = source.next_subscriber();
            let mut client = HttpConnection::connect(&server, version).await;
            let mut response = client.get(&format!("/?transport={name}"), &[]).await;
            let boundary = boundary(response.header("content-type").unwrap());
            send_text(&events, "given").await;
            events.send(Err("broken")).await.unwrap();
            let (open, event, _) = expected_parts(name, &boundary, "given");
            response.expect_bytes(format!("{open}{event}")).await;
            let (rest, ended) = response.read_to_end().await;
            assert_eq!(rest, b"", "{version:?} {name}");
            let error = ended.expect_err("the stream must be cut off, not ended");
            if version == HttpVersion::Http2 {
                assert!(format!("{error:?}").contains("INTERNAL_ERROR"), "{error:?}");
            }
            source.live_streams.wait_for(0).await;
        }
    }
}

#[tokio::test]
async fn http1_response_matches_byte_for_byte() {
    let service = tower_push::service(source_fn(async |_| Ok(stream::iter(["hi"]))))
        .transport(all_transports());
    let server = TestServer::start(service).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n";
    let (_, read) = send_raw_http1(&server, request, "\r\n0\r\n\r\n").await;
    let (head, body) = read.split_once("\r\n\r\n").unwrap();
    let mut head: Vec<_> = head
        .lines()
        .filter(|line| !line.starts_with("date:"))
        .collect();
    head[1..].sort();
    assert_eq!(
        head,
        [
            "HTTP/1.1 200 OK",
            "cache-control: no-cache, no-transform",
            "content-type: text/event-stream; charset=utf-8",
            "incremental: ?1",
            "transfer-encoding: chunked",
            "vary: Accept",
            "x-accel-buffering: no",
            "x-content-type-options: nosniff",
        ]
    );
    let text = ":\ndata: hi\n\n";
    assert_eq!(body, format!("{:X}\r\n{text}\r\n0\r\n\r\n", text.len()));
}

#[tokio::test]
async fn head_request_gets_headers_of_get() {
    let service = tower_push::service(source_fn(async |_| Ok(stream::pending::<Event>())));
    let server = TestServer::start(service.transport(all_transports())).await;
    for version in HttpVersion::ALL {
        for name in ["sse", "ndjson"] {
            let mut client = HttpConnection::connect(&server, version).await;
            let path = format!("/?transport={name}");
            let head = client.send_request("HEAD", &path, &[]).await;
            let mut head_headers = head.head.headers.clone();
            let (body, ended) = head.read_to_end().await;
            assert!(body.is_empty() && ended.is_ok());
            let mut get_headers = client.get(&path, &[]).await.head.headers;
            // hyper adds the framing, and may omit it in the response to HEAD (RFC 9112 §6.1).
            for name in ["date", "transfer-encoding"] {
                head_headers.remove(name);
                get_headers.remove(name);
            }
            assert_eq!(head_headers, get_headers, "{version:?}");
        }
    }
}

#[tokio::test]
async fn post_request_gets_stream() {
    let server = TestServer::start(tower_push::service(source_fn(async |_| {
        Ok(stream::iter(["token"]))
    })))
    .await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let mut response = client.send_request("POST", "/", &[]).await;
        response.expect_bytes(":\ndata: token\n\n").await;
    }
}

#[tokio::test]
async fn http2_response_has_no_connection_headers() {
    let source = source_fn(async |_| Ok(stream::iter(["hi"])));
    let server = TestServer::start(tower_push::service(source).transport(all_transports())).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
    for name in TRANSPORT_NAMES {
        let response = client.get(&format!("/?transport={name}"), &[]).await;
        for absent in [
            "connection",
            "keep-alive",
            "transfer-encoding",
            "content-length",
        ] {
            assert_eq!(response.header(absent), None);
        }
    }
}

mod middleware {
    use super::*;

    /// Returns a client that decodes this one encoding while the bytes arrive.
    fn decoding_client(encoding: &str, version: HttpVersion) -> reqwest::Client {
        let builder = reqwest::Client::builder()
            .gzip(encoding == "gzip")
            .brotli(encoding == "br")
            .zstd(encoding == "zstd")
            .deflate(encoding == "deflate");
        match version {
            HttpVersion::Http1 => builder,
            HttpVersion::Http2 => builder.http2_prior_knowledge(),
        }
        .build()
        .unwrap()
    }

    #[tokio::test]
    async fn compressed_event_decodes_before_next_one_exists() {
        let source = ManualSource::default();
        let service = ServiceBuilder::new()
            .layer(CorsLayer::permissive())
            // The default predicate excludes event streams.
            .layer(CompressionLayer::new().compress_when(SizeAbove::new(0)))
            .service(tower_push::service(source.source()).transport(all_transports()));
        let server = TestServer::start(service).await;
        for version in HttpVersion::ALL {
            let encodings = ["gzip", "br", "zstd", "deflate"].into_iter();
            for (encoding, name) in encodings.flat_map(|e| TRANSPORT_NAMES.map(|name| (e, name))) {
                let events = source.next_subscriber();
                let url = server.url(&format!("/?transport={name}"));
                let request = decoding_client(encoding, version)
                    .get(url)
                    .header("origin", "http://a.example");
                let mut response = request.send().await.unwrap();
                assert_eq!(response.headers()["access-control-allow-origin"], "*");
                let content_type = response.headers()["content-type"]
                    .to_str()
                    .unwrap()
                    .to_owned();
                let boundary = boundary(&content_type);
                let mut read = BytesMut::new();
                let mut expected = expected_parts(name, &boundary, "").0;
                for text in ["one", "two", "three"] {
                    send_text(&events, text).await;
                    expected += &expected_parts(name, &boundary, text).1;
                    while read.len() < expected.len() {
                        let chunk = tokio::time::timeout(TEST_TIMEOUT, response.chunk()).await;
                        let chunk = chunk.unwrap_or_else(|_| {
                            panic!("{encoding} {name}: nothing arrives after {read:?}")
                        });
                        read.put(chunk.unwrap().unwrap());
                    }
                    assert_eq!(String::from_utf8_lossy(&read), expected);
                }
                drop(events);
                while let Some(bytes) = response.chunk().await.unwrap() {
                    read.put(bytes);
                }
                expected += &expected_parts(name, &boundary, "").2;
                assert_eq!(String::from_utf8_lossy(&read), expected);
            }
        }
    }

    /// Checks `Content-Encoding` with another client, because reqwest removes the header when it decodes.
    #[tokio::test]
    async fn compressed_response_names_its_encoding() {
        let source = source_fn(async |_| Ok(stream::iter(["hi"])));
        let service = ServiceBuilder::new()
            .layer(CompressionLayer::new().compress_when(SizeAbove::new(0)))
            .service(tower_push::service(source).transport(all_transports()));
        let server = TestServer::start(service).await;
        for version in HttpVersion::ALL {
            for encoding in ["gzip", "br", "zstd", "deflate"] {
                for name in TRANSPORT_NAMES {
                    let mut client = HttpConnection::connect(&server, version).await;
                    let path = format!("/?transport={name}");
                    let response = client.get(&path, &[("accept-encoding", encoding)]).await;
                    assert_eq!(response.header("content-encoding"), Some(encoding));
                }
            }
        }
    }

    #[tokio::test]
    async fn compression_leaves_event_streams_alone() {
        let source = source_fn(async |_| Ok(stream::iter(["hi"])));
        let service = ServiceBuilder::new()
            .layer(CompressionLayer::new())
            .service(tower_push::service(source));
        let server = TestServer::start(service).await;
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let mut response = client.get("/", &[("accept-encoding", "gzip")]).await;
        assert_eq!(response.header("content-encoding"), None);
        response.expect_bytes(":\ndata: hi\n\n").await;
    }

    #[tokio::test]
    async fn cors_layer_answers_preflight_for_cursor() {
        let source = source_fn(async |_| Ok(stream::iter(["hi"])));
        let cors = CorsLayer::new()
            .allow_origin(["http://a.example".parse().unwrap()])
            .allow_headers([tower_push::source::LAST_EVENT_ID]);
        let service = ServiceBuilder::new()
            .layer(cors)
            .service(tower_push::service(source));
        let server = TestServer::start(service).await;
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let request = [
            ("origin", "http://a.example"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "last-event-id"),
        ];
        let response = client.send_request("OPTIONS", "/", &request).await;
        assert_eq!(
            response.header("access-control-allow-headers"),
            Some("last-event-id")
        );
        assert_eq!(
            response.header("access-control-allow-origin"),
            Some("http://a.example")
        );
        let mut response = client.get("/", &[("origin", "http://a.example")]).await;
        assert_eq!(
            response.header("access-control-allow-origin"),
            Some("http://a.example")
        );
        let vary = response.head.headers.get_all("vary").iter();
        assert!(vary.into_iter().any(|value| value == "Accept"));
        response.expect_bytes(":\ndata: hi\n\n").await;
    }
}

/// A transport outside the library, which writes each payload after its length.
mod custom_transport {
    use super::*;

    #[derive(Debug)]
    struct LengthDelimited;

    impl Transport for LengthDelimited {
        fn name(&self) -> &'static str {
            "length-delimited"
        }

        fn media_types(&self) -> &[&'static str] {
            &["application/x-length-delimited"]
        }

        fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
            let content_type = HeaderValue::from_static("application/x-length-delimited");
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, content_type)]);
            let pending = PendingSubscription::new(head, self.name());
            respond_streaming(
                pending,
                push,
                headers,
                Box::new(Self),
                KeepAlive::disabled(),
            )
        }
    }

    impl Encoding for LengthDelimited {
        fn encode(fields: &Fields, out: &mut BytesMut) {
            let payload = fields.payload.as_bytes();
            out.put_u8(payload.len() as u8);
            out.put_slice(payload);
        }
    }

    impl Encoder for LengthDelimited {
        fn open(&mut self, _: &mut FrameBuffer) {}

        fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
            out.push_event::<Self>(event);
            Ok(())
        }

        fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
            self.event(&Event::text(gap.to_json()), out)
        }

        fn cursor(&mut self, _: &EventId, _: &mut FrameBuffer) {}

        fn heartbeat(&mut self, out: &mut FrameBuffer) {
            out.buffer().put_u8(0);
        }

        fn end(&mut self, _: StreamEnd, out: &mut FrameBuffer) {
            out.buffer().put_u8(0);
        }
    }

    #[tokio::test]
    async fn custom_transport_is_negotiated_and_served() {
        let source = source_fn(async |subscription: Subscription| {
            if subscription.head().uri.path() == "/forbidden" {
                return Err(Rejection::new(http::StatusCode::FORBIDDEN));
            }
            Ok(stream::iter(["one", subscription.transport()]))
        });
        let service =
            tower_push::service(source).transport(Negotiate::new().add_transport(LengthDelimited));
        let server = TestServer::start(service).await;
        for version in HttpVersion::ALL {
            let mut client = HttpConnection::connect(&server, version).await;
            for (path, accept) in [
                ("/", "application/x-length-delimited"),
                ("/?transport=length-delimited", "*/*"),
            ] {
                let mut response = client.get(path, &[("accept", accept)]).await;
                assert_eq!(
                    response.header("cache-control"),
                    Some("no-cache, no-transform")
                );
                response
                    .expect_bytes(b"\x03one\x10length-delimited\0")
                    .await;
                assert!(response.read_to_end().await.1.is_ok());
            }
            let forbidden = client
                .get("/forbidden?transport=length-delimited", &[])
                .await;
            assert_eq!(forbidden.head.status, 403);
        }
    }
}
