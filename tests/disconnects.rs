//! When a client disconnects, in whatever way, the source's stream is dropped. A misbehaving client or source does not affect other
//! streams.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use socket2::SockRef;
use testkit::{
    HttpConnection, HttpVersion, LiveCounter, TestServer, get_request_head, send_raw_http1,
};
use tokio::io::AsyncWriteExt;
use tower_push::{
    Event, EventId, Item, KeepAlive, Push, PushSource,
    format::Raw,
    source::source_fn,
    transport::{Chunked, Negotiate, Sse, Transport},
};

/// A stream of one event, which stays open.
fn hello_then_pending() -> impl Stream<Item = &'static str> + Send {
    stream::iter(["hello"]).chain(stream::pending())
}

/// A source whose streams `live` counts while they are alive.
fn counted_source(live: &LiveCounter) -> impl PushSource + Clone + Send + Sync + use<> {
    let live = live.clone();
    source_fn(async move |_| Ok(live.wrap(hello_then_pending())))
}

const GET_REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const HELLO_EVENT: &str = "data: hello\n\n";

#[tokio::test]
async fn closed_connection_drops_source() {
    let live = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted_source(&live))).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let mut response = client.get("/", &[]).await;
        response.expect_bytes(":\ndata: hello\n\n").await;
        assert_eq!(live.get(), 1);
        drop((client, response));
        live.wait_for(0).await;
    }
}

#[tokio::test]
async fn half_closed_connection_drops_source() {
    let live = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted_source(&live))).await;
    let (mut socket, _) = send_raw_http1(&server, GET_REQUEST, HELLO_EVENT).await;
    assert_eq!(live.get(), 1);
    socket.shutdown().await.unwrap();
    live.wait_for(0).await;
}

#[tokio::test]
async fn reset_connection_drops_source() {
    let live = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted_source(&live))).await;
    let (socket, _) = send_raw_http1(&server, GET_REQUEST, HELLO_EVENT).await;
    assert_eq!(live.get(), 1);
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(socket);
    live.wait_for(0).await;
}

#[tokio::test]
async fn reset_http2_stream_leaves_its_siblings() {
    let live = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted_source(&live))).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let mut responses = Vec::new();
    for _ in 0..10 {
        let mut response = client.get("/", &[]).await;
        response.expect_bytes(":\ndata: hello\n\n").await;
        responses.push(response);
    }
    assert_eq!(live.get(), 10);
    // hyper's client sends RST_STREAM for a body that is dropped.
    responses.truncate(7);
    live.wait_for(7).await;
    drop(responses);
    live.wait_for(0).await;
}

/// hyper does not see the end of a connection while it holds unread bytes of it, so only the write of a heartbeat fails.
#[tokio::test]
async fn heartbeat_detects_hidden_disconnect() {
    let live = LiveCounter::default();
    let often = KeepAlive::new().interval(Duration::from_millis(20));
    let service =
        tower_push::service(counted_source(&live)).transport(Sse::new().keep_alive(often));
    let server = TestServer::start(service).await;
    let (mut socket, _) = send_raw_http1(&server, GET_REQUEST, HELLO_EVENT).await;
    socket.write_all(b"GET").await.unwrap();
    drop(socket);
    live.wait_for(0).await;
}

#[tokio::test]
async fn unpolled_response_drops_source() {
    let live = LiveCounter::default();
    let response = tower_push::respond(
        &mut get_request_head("/", &[]),
        live.wrap(hello_then_pending()),
    )
    .await;
    assert_eq!(live.get(), 1);
    drop(response);
    assert_eq!(live.get(), 0);

    let source = live.wrap(hello_then_pending());
    let mut head = get_request_head("/", &[]);
    let responding = tower_push::respond(&mut head, source);
    assert_eq!(live.get(), 1);
    drop(responding);
    assert_eq!(live.get(), 0);
}

#[tokio::test]
async fn disconnect_cancels_pending_subscription() {
    let live = LiveCounter::default();
    let pending_subscriptions = live.clone();
    let source = source_fn(async move |_| {
        let _counted = pending_subscriptions.wrap(stream::pending::<Event>());
        std::future::pending::<()>().await;
        Ok(stream::pending::<Event>())
    });
    let server = TestServer::start(tower_push::service(source)).await;
    let mut socket = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    socket.write_all(GET_REQUEST.as_bytes()).await.unwrap();
    live.wait_for(1).await;
    drop(socket);
    live.wait_for(0).await;
}

#[tokio::test]
async fn panicking_source_ends_only_its_own_stream() {
    let live = LiveCounter::default();
    let live_streams = live.clone();
    let source = source_fn(
        async move |subscription: tower_push::source::Subscription| {
            let panics = subscription.head().uri.path() == "/panics";
            let after = stream::poll_fn(move |_| match panics {
                true => panic!("a bug in a source"),
                false => Poll::Pending,
            });
            Ok(live_streams.wrap(stream::iter(["hello"]).chain(after)))
        },
    );
    let server = TestServer::start(tower_push::service(source)).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let mut unaffected = match version {
            HttpVersion::Http1 => {
                HttpConnection::connect(&server, version)
                    .await
                    .get("/", &[])
                    .await
            }
            HttpVersion::Http2 => client.get("/", &[]).await,
        };
        unaffected.expect_bytes(":\ndata: hello\n\n").await;
        // Over HTTP/1.1 the connection may be closed before the head of the response is sent.
        if version == HttpVersion::Http2 {
            let (_, ended) = client.get("/panics", &[]).await.read_to_end().await;
            ended.expect_err("the stream must be cut off, not ended");
        } else {
            let request = GET_REQUEST.replace(" / ", " /panics ");
            let (_, read) = send_raw_http1(&server, &request, "never").await;
            assert!(
                !read.ends_with("0\r\n\r\n"),
                "the stream must be cut off, not ended"
            );
        }
        live.wait_for(1).await;
        drop((client, unaffected));
        live.wait_for(0).await;
    }
}

/// A stream that never ends and is always ready.
#[derive(Clone)]
struct AlwaysReady(Item);

impl Stream for AlwaysReady {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Item>> {
        Poll::Ready(Some(self.0.clone()))
    }
}

fn always_ready_items() -> [Item; 3] {
    [
        Item::Event(Event::text("flood")),
        Item::Event(Event::text("")),
        // The raw format writes nothing for a cursor, so no buffer ever fills.
        Item::Cursor(EventId::from(1)),
    ]
}

#[tokio::test(flavor = "current_thread")]
async fn always_ready_source_yields_to_other_streams() {
    for item in always_ready_items() {
        let source = source_fn(
            async move |subscription: tower_push::source::Subscription| {
                Ok(match subscription.head().uri.path() {
                    "/flood" => AlwaysReady(item).left_stream(),
                    _ => hello_then_pending()
                        .map(|text| Item::Event(Event::text(text)))
                        .right_stream(),
                })
            },
        );
        let transports = Negotiate::new().add_transport(Chunked::new(Raw::new()));
        let server = TestServer::start(tower_push::service(source).transport(transports)).await;
        for version in HttpVersion::ALL {
            for name in ["sse", "raw"] {
                let mut client = HttpConnection::connect(&server, version).await;
                let flood = client.get(&format!("/flood?transport={name}"), &[]).await;
                let reading = tokio::spawn(flood.discard_rest());
                for _ in 0..3 {
                    let mut other_client = HttpConnection::connect(&server, version).await;
                    other_client
                        .get("/", &[])
                        .await
                        .expect_bytes(":\ndata: hello\n\n")
                        .await;
                }
                reading.abort();
            }
        }
    }
}

/// There is no server in this test, because a server may schedule fairly by itself.
#[tokio::test(flavor = "current_thread")]
async fn always_ready_body_yields_to_the_runtime() {
    for item in always_ready_items() {
        let raw = Chunked::new(Raw::new());
        let response = raw
            .respond(
                &mut get_request_head("/", &[]),
                Push::new(AlwaysReady(item)),
            )
            .await;
        let mut body = response.into_body();
        let reading = async { while body.frame().await.is_some() {} };
        let read = tokio::time::timeout(Duration::from_millis(10), reading).await;
        assert!(read.is_err(), "the body must let the timer run");
    }
}

#[tokio::test]
async fn silent_source_keeps_streams_open() {
    let live = LiveCounter::default();
    let live_streams = live.clone();
    let source = source_fn(async move |_| Ok(live_streams.wrap(stream::pending::<Event>())));
    let server = TestServer::start(tower_push::service(source)).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let mut responses = Vec::new();
    for _ in 0..100 {
        let mut response = client.get("/", &[]).await;
        response.expect_bytes(":\n").await;
        responses.push(response);
    }
    assert_eq!(live.get(), 100);
    drop(responses);
    live.wait_for(0).await;
}

/// The flow-control window of one stream is full, and the other streams of the connection continue.
#[tokio::test]
async fn unread_http2_stream_does_not_block_its_siblings() {
    let source = source_fn(
        async move |subscription: tower_push::source::Subscription| {
            Ok(match subscription.head().uri.path() {
                "/flood" => AlwaysReady(Item::Event(Event::text("x".repeat(1000)))).left_stream(),
                _ => {
                    let ticks = tokio::time::interval(Duration::from_millis(1));
                    let ticks = tokio_stream::wrappers::IntervalStream::new(ticks);
                    ticks
                        .map(|_| Item::Event(Event::text("tick")))
                        .right_stream()
                }
            })
        },
    );
    let server = TestServer::start(tower_push::service(source)).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let stalled = client.get("/flood", &[]).await;
    let mut flowing = client.get("/", &[]).await;
    flowing
        .expect_bytes(format!(":\n{}", "data: tick\n\n".repeat(100)))
        .await;
    drop(stalled);
}
