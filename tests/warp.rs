//! Pushes in warp: replies for a layer around `warp::service`, and routes that take the request's head.

use std::net::SocketAddr;

use http::{StatusCode, request::Parts};
use testkit::{HttpConnection, HttpVersion, TestServer};
use tokio::net::TcpListener;
use tower::Layer;
use tower_push::{
    Channel, Event, EventId, OriginPolicy, Push, PushLayer, PushSource,
    layer::warp::{into_reply, request_head},
    source::{Rejection, StartPosition, Subscription, source_fn},
    transport::{Negotiate, Transport, WebSocket},
};
use warp::Filter;

/// A source of a finite stream, which begins after the client's cursor.
fn countdown() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(async |subscription: Subscription| {
        let cursor = subscription.cursor().map(EventId::as_str);
        let start = cursor.map_or(1, |id| id.parse::<u64>().unwrap() + 1);
        let events = (start..4).map(|n| Event::text(format!("event {n}")).with_id(n).unwrap());
        Ok(tokio_stream::iter(events))
    })
}

/// A route that responds over the transports of `negotiate`.
fn route<S>(
    source: S,
    negotiate: Negotiate,
) -> impl Filter<Extract = (warp::reply::Response,), Error = warp::Rejection> + Clone
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    warp::path!("feed")
        .and(request_head())
        .then(move |mut head: Parts| {
            let responding = negotiate.respond(&mut head, Push::new(source.clone()));
            async move { into_reply(responding.await) }
        })
}

/// Runs `warp::serve` on a free port.
async fn start_warp<F>(route: F) -> SocketAddr
where
    F: Filter<Extract = (warp::reply::Response,), Error = warp::Rejection>,
    F: Clone + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(warp::serve(route).incoming(listener).run());
    address
}

#[tokio::test]
async fn warp_test_sees_the_whole_push() {
    let route = route(countdown(), Negotiate::new());
    for (path, expected) in [
        (
            "/feed?transport=ndjson",
            "{\"id\":\"1\",\"data\":\"event 1\"}\n",
        ),
        (
            "/feed?transport=ndjson&last_event_id=2",
            "{\"id\":\"3\",\"data\":\"event 3\"}\n",
        ),
    ] {
        let response = warp::test::request().path(path).reply(&route).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        assert!(body.contains(expected), "{body}");
    }
    let request = warp::test::request().path("/feed");
    let request = request.header("accept", "text/event-stream");
    let response = request.header("last-event-id", "2").reply(&route).await;
    let body = String::from_utf8(response.body().to_vec()).unwrap();
    assert!(body.contains("id: 3\ndata: event 3\n\n"), "{body}");
    assert!(!body.contains("event 2"), "{body}");
}

#[tokio::test]
async fn complete_response_announces_its_length() {
    let server = TestServer::start(warp::service(route(countdown(), Negotiate::new()))).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let response = client.get("/feed?transport=long-poll", &[]).await;
        let length: usize = response.header("content-length").unwrap().parse().unwrap();
        assert_eq!(response.header("transfer-encoding"), None);
        assert_eq!(response.read_to_end().await.0.len(), length);
        let head = client.send_request("HEAD", "/feed", &[]).await;
        assert_eq!(
            head.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        assert!(head.read_to_end().await.0.is_empty());
    }
}

#[tokio::test]
async fn request_head_has_all_parts() {
    let request = warp::test::request()
        .method("POST")
        .path("http://example.com/a/b?c=%20d&e")
        .header("accept", "text/html");
    let head = request.filter(&request_head()).await.unwrap();
    assert_eq!(
        (head.method.as_str(), head.uri.to_string()),
        ("POST", "/a/b?c=%20d&e".to_owned())
    );
    assert_eq!(head.headers["accept"], "text/html");
    // The host of an HTTP/2 request is in its URI.
    assert_eq!(head.headers["host"], "example.com");

    for host in ["", "no host"] {
        let request = warp::test::request().path("/").header("host", host);
        let head = request.filter(&request_head()).await.unwrap();
        assert_eq!(head.headers["host"], host);
        assert_eq!(head.uri, "/");
    }
}

#[tokio::test]
async fn websocket_opens_inside_warp() {
    let channel = Channel::new();
    channel.publish("hello").unwrap();
    let source = channel.with_start(StartPosition::Oldest);
    let listed = OriginPolicy::same_origin();
    let negotiate = Negotiate::new().add_transport(WebSocket::new().origin_policy(listed));
    let route = route(source, negotiate);
    let same_origin = [("origin", "http://localhost")];

    // `warp::serve` offers no WebSockets over HTTP/2.
    let address = start_warp(route.clone()).await;
    let mut client = HttpConnection::connect_to(address, HttpVersion::Http1).await;
    let mut socket = client.open_websocket("/feed", &same_origin).await.unwrap();
    assert_eq!(socket.next_frame().await.unwrap().payload, b"hello");

    let server = TestServer::start(warp::service(route)).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let mut socket = client.open_websocket("/feed", &same_origin).await.unwrap();
        assert_eq!(socket.next_frame().await.unwrap().payload, b"hello");
        let mut client = HttpConnection::connect(&server, version).await;
        let foreign = client
            .open_websocket("/feed", &[("origin", "http://evil.org")])
            .await;
        assert_eq!(foreign.unwrap_err().head.status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn push_is_a_reply_for_a_layer() {
    let routes = warp::path!("feed").map(|| Push::new(countdown()));
    let carrier = warp::test::request().path("/feed").reply(&routes).await;
    assert_eq!(carrier.status(), StatusCode::INTERNAL_SERVER_ERROR);

    let server = TestServer::start(PushLayer::new().layer(warp::service(routes))).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let response = client
            .get("/feed", &[("accept", "text/event-stream")])
            .await;
        assert_eq!(
            response.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        let body = String::from_utf8(response.read_to_end().await.0).unwrap();
        assert!(body.contains("data: event 3\n\n"), "{body}");
        let missing = client.get("/other", &[]).await;
        assert_eq!(missing.head.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn rejection_is_a_reply() {
    let route = warp::any().map(|| Rejection::new(StatusCode::FORBIDDEN).message("not for you"));
    let response = warp::test::request().reply(&route).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.body(), "not for you");
}

/// `warp::serve` gives no access to its connections.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connection_inherits_nodelay_of_its_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    socket2::SockRef::from(&listener)
        .set_tcp_nodelay(true)
        .unwrap();
    let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    assert!(accepted.nodelay().unwrap());
}
