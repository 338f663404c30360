//! Whoever leaves, and however: the source's stream is dropped. Whoever misbehaves: the others do not feel it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use socket2::SockRef;
use testkit::{HttpClient, HttpVersion, LiveCounter, TestServer, get_request_head, send_raw_http1};
use tokio::io::AsyncWriteExt;
use tower_push::{
    Event, EventId, Item, KeepAlive, Push, PushSource,
    format::Raw,
    source::source_fn,
    transport::{Chunked, Negotiate, Sse, Transport},
};

/// An event, and then nothing.
fn silent() -> impl Stream<Item = &'static str> + Send {
    stream::iter(["hello"]).chain(stream::pending())
}

/// Counts the streams that are alive.
fn counted(count: &LiveCounter) -> impl PushSource + Clone + Send + Sync + use<> {
    let count = count.clone();
    source_fn(async move |_| Ok(count.wrap(silent())))
}

const ASKING: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const HELLO: &str = "data: hello\n\n";

#[tokio::test]
async fn a_client_that_closes_is_gone() {
    let count = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted(&count))).await;
    for version in HttpVersion::ALL {
        let mut client = HttpClient::connect(&server, version).await;
        let mut response = client.get("/", &[]).await;
        response.expect_bytes(":\ndata: hello\n\n").await;
        assert_eq!(count.get(), 1);
        drop((client, response));
        count.wait_for(0).await;
    }
}

#[tokio::test]
async fn a_client_that_closes_its_half_is_gone() {
    let count = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted(&count))).await;
    let (mut socket, _) = send_raw_http1(&server, ASKING, HELLO).await;
    assert_eq!(count.get(), 1);
    socket.shutdown().await.unwrap();
    count.wait_for(0).await;
}

#[tokio::test]
async fn a_client_that_resets_its_connection_is_gone() {
    let count = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted(&count))).await;
    let (socket, _) = send_raw_http1(&server, ASKING, HELLO).await;
    assert_eq!(count.get(), 1);
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(socket);
    count.wait_for(0).await;
}

#[tokio::test]
async fn a_stream_that_is_reset_is_gone_and_its_siblings_stay() {
    let count = LiveCounter::default();
    let server = TestServer::start(tower_push::service(counted(&count))).await;
    let mut client = HttpClient::connect(&server, HttpVersion::Http2).await;
    let mut responses = Vec::new();
    for _ in 0..10 {
        let mut response = client.get("/", &[]).await;
        response.expect_bytes(":\ndata: hello\n\n").await;
        responses.push(response);
    }
    assert_eq!(count.get(), 10);
    // hyper's client sends RST_STREAM for a body that is dropped.
    responses.truncate(7);
    count.wait_for(7).await;
    drop(responses);
    count.wait_for(0).await;
}

/// hyper cannot see the end of a connection behind bytes that it has not read yet: a heartbeat finds it.
#[tokio::test]
async fn a_client_that_hides_its_leaving_is_found_by_a_heartbeat() {
    let count = LiveCounter::default();
    let often = KeepAlive::new().interval(Duration::from_millis(20));
    let service = tower_push::service(counted(&count)).transport(Sse::new().keep_alive(often));
    let server = TestServer::start(service).await;
    let (mut socket, _) = send_raw_http1(&server, ASKING, HELLO).await;
    socket.write_all(b"GET").await.unwrap();
    drop(socket);
    count.wait_for(0).await;
}

#[tokio::test]
async fn a_response_that_is_never_polled_is_dropped_with_its_source() {
    let count = LiveCounter::default();
    let response = tower_push::respond(&mut get_request_head("/", &[]), count.wrap(silent())).await;
    assert_eq!(count.get(), 1);
    drop(response);
    assert_eq!(count.get(), 0);

    let source = count.wrap(silent());
    let mut head = get_request_head("/", &[]);
    let responding = tower_push::respond(&mut head, source);
    assert_eq!(count.get(), 1);
    drop(responding);
    assert_eq!(count.get(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_the_source_is_being_asked_withdraws_the_subscription() {
    let count = LiveCounter::default();
    let asked = count.clone();
    let source = source_fn(async move |_| {
        let _asked = asked.wrap(stream::pending::<Event>());
        std::future::pending::<()>().await;
        Ok(stream::pending::<Event>())
    });
    let server = TestServer::start(tower_push::service(source)).await;
    let mut socket = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    socket.write_all(ASKING.as_bytes()).await.unwrap();
    count.wait_for(1).await;
    drop(socket);
    count.wait_for(0).await;
}

#[tokio::test]
async fn a_source_that_panics_takes_nobody_with_it() {
    let count = LiveCounter::default();
    let counting = count.clone();
    let source = source_fn(
        async move |subscription: tower_push::source::Subscription| {
            let panics = subscription.head().uri.path() == "/panics";
            let after = stream::poll_fn(move |_| match panics {
                true => panic!("a bug in a source"),
                false => Poll::Pending,
            });
            Ok(counting.wrap(stream::iter(["hello"]).chain(after)))
        },
    );
    let server = TestServer::start(tower_push::service(source)).await;
    for version in HttpVersion::ALL {
        let mut client = HttpClient::connect(&server, version).await;
        let mut well = match version {
            HttpVersion::Http1 => {
                HttpClient::connect(&server, version)
                    .await
                    .get("/", &[])
                    .await
            }
            HttpVersion::Http2 => client.get("/", &[]).await,
        };
        well.expect_bytes(":\ndata: hello\n\n").await;
        // HTTP/1.1 may be cut before its head is out.
        if version == HttpVersion::Http2 {
            let (_, ended) = client.get("/panics", &[]).await.read_to_end().await;
            ended.expect_err("a cut, not an end");
        } else {
            let asking = ASKING.replace(" / ", " /panics ");
            let (_, read) = send_raw_http1(&server, &asking, "never").await;
            assert!(!read.ends_with("0\r\n\r\n"), "a cut, not an end");
        }
        count.wait_for(1).await;
        drop((client, well));
        count.wait_for(0).await;
    }
}

/// Always ready, for ever.
#[derive(Clone)]
struct Flood(Item);

impl Stream for Flood {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Item>> {
        Poll::Ready(Some(self.0.clone()))
    }
}

fn floods() -> [Item; 3] {
    [
        Item::Event(Event::text("flood")),
        Item::Event(Event::text("")),
        // Writes nothing in raw, so that no buffer ever fills.
        Item::Cursor(EventId::from(1)),
    ]
}

#[tokio::test(flavor = "current_thread")]
async fn a_source_that_never_pauses_lets_its_neighbours_run() {
    for item in floods() {
        let source = source_fn(
            async move |subscription: tower_push::source::Subscription| {
                Ok(match subscription.head().uri.path() {
                    "/flood" => Flood(item).left_stream(),
                    _ => silent()
                        .map(|text| Item::Event(Event::text(text)))
                        .right_stream(),
                })
            },
        );
        let transports = Negotiate::new().add_transport(Chunked::new(Raw::new()));
        let server = TestServer::start(tower_push::service(source).transport(transports)).await;
        for version in HttpVersion::ALL {
            for name in ["sse", "raw"] {
                let mut client = HttpClient::connect(&server, version).await;
                let flood = client.get(&format!("/flood?transport={name}"), &[]).await;
                let reading = tokio::spawn(flood.discard_rest());
                for _ in 0..3 {
                    let mut neighbour = HttpClient::connect(&server, version).await;
                    neighbour
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

/// Without a server, which might be fair by itself.
#[tokio::test(flavor = "current_thread")]
async fn a_body_that_is_always_ready_pauses_by_itself() {
    for item in floods() {
        let raw = Chunked::new(Raw::new());
        let response = raw
            .respond(&mut get_request_head("/", &[]), Push::new(Flood(item)))
            .await;
        let mut body = response.into_body();
        let reading = async { while body.frame().await.is_some() {} };
        let read = tokio::time::timeout(Duration::from_millis(10), reading).await;
        assert!(read.is_err(), "the timer had its turn");
    }
}

#[tokio::test]
async fn a_source_that_never_yields_is_held_quietly() {
    let count = LiveCounter::default();
    let counting = count.clone();
    let source = source_fn(async move |_| Ok(counting.wrap(stream::pending::<Event>())));
    let server = TestServer::start(tower_push::service(source)).await;
    let mut client = HttpClient::connect(&server, HttpVersion::Http2).await;
    let mut responses = Vec::new();
    for _ in 0..100 {
        let mut response = client.get("/", &[]).await;
        response.expect_bytes(":\n").await;
        responses.push(response);
    }
    assert_eq!(count.get(), 100);
    drop(responses);
    count.wait_for(0).await;
}

/// One stream of a connection is full; the others flow.
#[tokio::test]
async fn a_stream_that_is_not_read_does_not_hold_its_siblings() {
    let source = source_fn(
        async move |subscription: tower_push::source::Subscription| {
            Ok(match subscription.head().uri.path() {
                "/flood" => Flood(Item::Event(Event::text("x".repeat(1000)))).left_stream(),
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
    let mut client = HttpClient::connect(&server, HttpVersion::Http2).await;
    let stalled = client.get("/flood", &[]).await;
    let mut flowing = client.get("/", &[]).await;
    flowing
        .expect_bytes(format!(":\n{}", "data: tick\n\n".repeat(100)))
        .await;
    drop(stalled);
}
