//! Which methods open a stream, through which entry point; and the form in the body of a `QUERY`.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{TryStreamExt, future::poll_immediate, stream};
use http::{Request, Response, Version, request::Parts};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use testkit::{HttpConnection, TestServer, body_text, empty_request, get_request_head};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_push::{
    Guard, Push, PushBody, PushLayer, PushSource, SseLayer, TransportLayer,
    guard::{Admission, RefusalReason},
    layer::{FormBodyLayer, FormRecordingBody},
    source::{FormBody, Subscription, query::decode_parameter, source_fn},
    transport::{
        BoxResponseFuture, Chunked, LongPoll, Negotiate, Sse, Transport, WebSocket,
        method_rejection, rejection_response,
    },
};

/// A request without a body.
type EmptyRequest = Request<Empty<Bytes>>;

const ALLOWED_METHODS: &str = "GET, HEAD, POST, QUERY, OPTIONS";

const SSE_BODY: &str = ":\ndata: event\n\n";
const NDJSON_BODY: &str = " {\"data\":\"event\"}\n{\"end\":{\"finished\":false}}\n";

fn one_event_push() -> Push {
    Push::new(stream::iter(["event"]))
}

/// A source whose only event is the client's cursor, and the parameter `topic` of its form.
fn cursor_and_topic_source() -> impl PushSource + Clone + Send + 'static {
    source_fn(async |subscription: Subscription| {
        let cursor = subscription.cursor().map(ToString::to_string);
        let form = subscription.head().extensions.get::<FormBody>();
        let form = form.map_or("", FormBody::as_str).to_owned();
        let topics: Vec<_> = decode_parameter(&form, "topic").map(String::from).collect();
        Ok(stream::iter([format!("{cursor:?} {topics:?}")]))
    })
}

fn query_request(
    uri: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let head = empty_request("QUERY", uri, headers).into_parts().0;
    Request::from_parts(head, Full::new(body.into()))
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// The header wins over the query, and the query over the form.
#[tokio::test]
async fn query_method_has_its_cursor_in_a_form() {
    let layer_around_service = ServiceBuilder::new()
        .layer(FormBodyLayer::new())
        .layer(PushLayer::new())
        .service_fn(async |_: Request<FormRecordingBody<_>>| {
            Ok::<_, Infallible>(Push::new(cursor_and_topic_source()))
        });
    let mut source_service = tower_push::service(cursor_and_topic_source());
    let header = ("last-event-id", "in-header");
    let charset = (
        "content-type",
        "Application/X-WWW-Form-Urlencoded; charset=utf-8",
    );
    for (uri, headers, expected) in [
        ("/", vec![FORM], r#"Some("in:form") ["x", "y z"]"#),
        ("/", vec![charset], r#"Some("in:form") ["x", "y z"]"#),
        (
            "/?last_event_id=in-query",
            vec![FORM],
            r#"Some("in-query") ["x", "y z"]"#,
        ),
        (
            "/?lastEventId=in-query",
            vec![FORM, header],
            r#"Some("in-header") ["x", "y z"]"#,
        ),
    ] {
        let form = "topic=x&last_event_id=in%3Aform&topic=y+z";
        let request = || query_request(uri, &headers, form);
        let responses: [BoxBody<_, _>; 2] = [
            source_service
                .call(request())
                .await
                .unwrap()
                .into_body()
                .boxed(),
            layer_around_service
                .clone()
                .oneshot(request())
                .await
                .unwrap()
                .into_body()
                .boxed(),
        ];
        for body in responses {
            let body = body.collect().await.unwrap().to_bytes();
            let body = String::from_utf8_lossy(&body);
            assert!(body.contains(expected), "{uri} {body}");
        }
    }
}

#[tokio::test]
async fn query_method_needs_no_body() {
    let mut service = tower_push::service(cursor_and_topic_source());
    for headers in [vec![], vec![FORM], vec![("content-type", "text/plain")]] {
        let response = service
            .call(query_request("/?last_event_id=a", &headers, ""))
            .await;
        let body = body_text(response.unwrap().into_body()).await;
        assert!(body.contains(r#"Some("a") []"#), "{body}");
    }
}

/// A body that never ends.
struct PendingBody;

impl Body for PendingBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_body_of_query_method_is_rejected() {
    let subscriptions = Arc::new(AtomicUsize::new(0));
    let mut service = tower_push::service(counted_source(&subscriptions));
    let json = ("content-type", "application/json");
    let too_long = vec![b'x'; 64 * 1024 + 1];
    for (headers, body, status) in [
        (vec![], b"last_event_id=a".to_vec(), 400),
        (vec![json], b"{}".to_vec(), 415),
        (vec![FORM], too_long.clone(), 413),
        (vec![json], too_long, 413),
    ] {
        let response = service
            .call(query_request("/", &headers, body))
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{headers:?}");
        let accept_query = response.headers().get("accept-query");
        assert_eq!(accept_query.is_some(), matches!(status, 400 | 415));
        if let Some(media_type) = accept_query {
            assert_eq!(media_type, "application/x-www-form-urlencoded");
        }
    }
    let broken = stream::iter([Err(std::io::Error::other("broken off"))]);
    let head = empty_request("QUERY", "/", &[FORM]).into_parts().0;
    let request = Request::from_parts(
        head.clone(),
        StreamBody::new(broken.map_ok(Frame::<Bytes>::data)),
    );
    assert_eq!(service.call(request).await.unwrap().status(), 400);
    let endless = Request::from_parts(head, PendingBody);
    assert_eq!(service.call(endless).await.unwrap().status(), 408);
    assert_eq!(subscriptions.load(Ordering::Relaxed), 0);
    let longest = vec![b'x'; 64 * 1024];
    let response = service
        .call(query_request("/", &[FORM], longest))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}

/// The inner service gets each body as the client has sent it.
#[tokio::test]
async fn form_body_layer_hands_bodies_on() {
    let service = ServiceBuilder::new()
        .layer(FormBodyLayer::new())
        .service_fn(async |request: Request<FormRecordingBody<_>>| {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Infallible>(Response::new(Full::new(body)))
        });
    let long = vec![b'x'; 64 * 1024 + 1];
    for (method, content_type, body) in [
        ("QUERY", FORM.1, b"a=b".to_vec()),
        ("QUERY", "application/json", b"{}".to_vec()),
        ("POST", FORM.1, b"a=b".to_vec()),
        ("QUERY", FORM.1, long),
    ] {
        let mut request = query_request("/", &[("content-type", content_type)], body.clone());
        *request.method_mut() = method.parse().unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            body
        );
    }
}

/// The body of a form in two frames.
fn form_in_two_frames() -> impl Body<Data = Bytes, Error = Infallible> + Send + 'static {
    let frames = ["topic=x&last_", "event_id=a%3Ab"].map(|data| Frame::data(Bytes::from(data)));
    StreamBody::new(stream::iter(frames.map(Ok)))
}

/// The push sees the whole form, whatever part of the body the handler has read.
#[tokio::test]
async fn push_sees_form_that_handler_has_read() {
    for read_frames in 0..=3 {
        let kept_bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = kept_bodies.clone();
        let service = ServiceBuilder::new()
            .layer(FormBodyLayer::new())
            .layer(SseLayer::new())
            .service_fn(move |request: Request<FormRecordingBody<_>>| {
                let kept = kept.clone();
                async move {
                    let mut body = request.into_body();
                    for _ in 0..read_frames {
                        body.frame().await.transpose().unwrap();
                    }
                    kept.lock().unwrap().push(body);
                    Ok::<_, Infallible>(Push::new(cursor_and_topic_source()))
                }
            });
        let head = empty_request("QUERY", "/", &[FORM]).into_parts().0;
        let request = Request::from_parts(head, form_in_two_frames());
        let response = service.oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(r#"Some("a:b") ["x"]"#), "{body}");
        // The handler gets no frames once the push has begun to read.
        let mut kept = kept_bodies.lock().unwrap().pop().unwrap();
        assert!(kept.is_end_stream());
        assert!(kept.frame().await.is_none());
    }
}

/// A service of one's own with a guard gets what the layers have: the form of a `QUERY`, and `Connection: close` for a refused upgrade.
#[tokio::test]
async fn respond_with_reads_form_and_closes_refused_upgrade() {
    let guard = Guard::new();
    let transport = Arc::new(guard.wrap(Negotiate::only(Sse::new())));
    let service = ServiceBuilder::new()
        .layer(FormBodyLayer::new())
        .service_fn({
            let transport = transport.clone();
            move |request: Request<FormRecordingBody<_>>| {
                let transport = transport.clone();
                async move {
                    let (mut head, _) = request.into_parts();
                    let source = cursor_and_topic_source();
                    let response = tower_push::respond_with(&transport, &mut head, source).await;
                    Ok::<_, Infallible>(response)
                }
            }
        });
    let request = query_request("/", &[FORM], b"topic=x&last_event_id=a%3Ab".to_vec());
    let response = service.oneshot(request).await.unwrap();
    let body = body_text(response.into_body()).await;
    assert!(body.contains(r#"Some("a:b") ["x"]"#), "{body}");
    assert_eq!(guard.counts().opened, 1);

    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    for transport in [Negotiate::only(Sse::new()), Negotiate::new()] {
        let mut head = get_request_head("/?transport=raw", &upgrade);
        let source = stream::iter(["event"]);
        let response = tower_push::respond_with(&Arc::new(transport), &mut head, source).await;
        assert_eq!(response.headers()["connection"], "close", "{response:?}");
    }
}

/// [`respond`](tower_push::respond) reads the form that the layer has found.
#[tokio::test]
async fn respond_inside_form_body_layer_reads_form() {
    let service = ServiceBuilder::new()
        .layer(FormBodyLayer::new())
        .service_fn(async |request: Request<FormRecordingBody<_>>| {
            let (mut head, _) = request.into_parts();
            let response = tower_push::respond(&mut head, cursor_and_topic_source()).await;
            Ok::<_, Infallible>(response)
        });
    let too_long = vec![b'x'; 64 * 1024 + 1];
    for (body, status, expected) in [
        (b"lastEventId=a&topic=x".to_vec(), 200, r#"Some("a") ["x"]"#),
        (too_long, 413, "Payload Too Large"),
    ] {
        let request = query_request("/", &[FORM], body);
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
        let body = body_text(response.into_body()).await;
        assert!(body.contains(expected), "{body}");
    }
}

/// A body that must not be read.
struct UnreadableBody;

impl Body for UnreadableBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body of a refused request was read")
    }
}

/// Guards are around the transport of a service or a layer, around each other, and around one transport of a set.
#[tokio::test]
async fn guard_refuses_before_body_is_read() {
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .build();
    let open = Guard::new();
    let transports: [Arc<dyn Transport>; 4] = [
        Arc::new(full.wrap(Negotiate::new())),
        Arc::new(full.wrap(open.wrap(Sse::new()))),
        Arc::new(open.wrap(full.wrap(Sse::new()))),
        Arc::new(Negotiate::only(full.wrap(Sse::new()))),
    ];
    for transport in transports {
        let head = empty_request("QUERY", "/", &[FORM]).into_parts().0;
        let request = || Request::from_parts(head.clone(), UnreadableBody);
        let service = tower_push::service(cursor_and_topic_source()).transport(transport.clone());
        let response = service.oneshot(request()).await.unwrap();
        assert_eq!(response.status(), 503, "{transport:?}");
        let layers = ServiceBuilder::new()
            .layer(FormBodyLayer::new())
            .layer(TransportLayer::with(transport.clone()))
            .service_fn(async |_: Request<FormRecordingBody<_>>| {
                Ok::<_, Infallible>(Push::new(cursor_and_topic_source()))
            });
        let response = layers.oneshot(request()).await.unwrap();
        assert_eq!(response.status(), 503, "{transport:?}");
    }
    assert_eq!(full.counts().refused(RefusalReason::Full), 8);
    assert_eq!(open.counts().opened, 0);
}

/// A request whose form is awaited holds its place, until the form is there, or the client has left, or the form is late.
#[tokio::test(start_paused = true)]
async fn request_is_admitted_while_its_form_arrives() {
    let admission = Admission::builder().max_streams(1).build();
    let guard = Guard::builder().admission(&admission).build();
    let service = || tower_push::service(cursor_and_topic_source()).guard(&guard);
    let request = |body: PendingBody| {
        let head = empty_request("QUERY", "/", &[FORM]).into_parts().0;
        Request::from_parts(head, body)
    };
    let mut waiting = Box::pin(service().oneshot(request(PendingBody)));
    assert!(poll_immediate(&mut waiting).await.is_none());
    let refused = service().oneshot(empty_request("GET", "/", &[])).await;
    assert_eq!(refused.unwrap().status(), 503);
    assert_eq!(waiting.await.unwrap().status(), 408);
    assert_eq!(guard.counts().refused(RefusalReason::Source), 1);

    let mut waiting = Box::pin(service().oneshot(request(PendingBody)));
    assert!(poll_immediate(&mut waiting).await.is_none());
    drop(waiting);
    let form = query_request("/", &[FORM], "last_event_id=a&topic=x");
    let response = service().oneshot(form).await.unwrap();
    assert_eq!(guard.counts().open(), 1);
    let body = body_text(response.into_body()).await;
    assert!(body.contains(r#"Some("a") ["x"]"#), "{body}");
    assert_eq!(guard.counts().open(), 0);
}

#[tokio::test]
async fn query_request_reaches_axum_and_service() {
    use axum::{Router, routing::any};
    let app = Router::new()
        .route(
            "/handler",
            any(async || Push::new(cursor_and_topic_source())),
        )
        .layer(PushLayer::new())
        .layer(FormBodyLayer::new())
        .route_service("/service", tower_push::service(cursor_and_topic_source()));
    let server = TestServer::start(app).await;
    for path in ["/handler", "/service"] {
        let request = format!(
            "QUERY {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: 27\r\n\r\n\
             Last-Event-ID=a%2Fb&topic=t",
            FORM.1
        );
        let (_, response) = testkit::send_raw_http1(&server, &request, "[\"t\"]").await;
        assert!(response.contains("text/event-stream"), "{response}");
        assert!(response.contains(r#"Some("a/b") ["t"]"#), "{response}");
    }
}

/// A source that counts its subscriptions.
fn counted_source(subscriptions: &Arc<AtomicUsize>) -> impl PushSource + Clone + Send + 'static {
    let subscriptions = subscriptions.clone();
    source_fn(async move |_| {
        subscriptions.fetch_add(1, Ordering::Relaxed);
        Ok(stream::iter(["event"]))
    })
}

#[tokio::test]
async fn other_methods_do_not_run_the_source() {
    let subscriptions = Arc::new(AtomicUsize::new(0));
    let source = counted_source(&subscriptions);
    let transports: [Arc<dyn Transport>; 4] = [
        Arc::new(Negotiate::new()),
        Arc::new(Sse::new()),
        Arc::new(Chunked::default()),
        Arc::new(LongPoll::new()),
    ];
    for (method, status) in [
        ("OPTIONS", 204),
        ("PUT", 405),
        ("DELETE", 405),
        ("PATCH", 405),
        ("TRACE", 405),
        ("BREW", 405),
        ("get", 405),
    ] {
        for transport in &transports {
            for accept in ["*/*", "application/json", "text/html"] {
                let request = empty_request(method, "/", &[("accept", accept)]);
                let mut head = request.into_parts().0;
                let push = Push::new(source.clone());
                let response = transport.respond(&mut head, push).await;
                assert_eq!(response.status(), status, "{method} {transport:?}");
                assert_eq!(response.headers()["allow"], ALLOWED_METHODS);
                assert_eq!(response.headers()["cache-control"], "no-store");
            }
        }
    }
    assert_eq!(subscriptions.load(Ordering::Relaxed), 0);
    for method in ["GET", "POST", "QUERY"] {
        let mut head = empty_request(method, "/", &[]).into_parts().0;
        let response = tower_push::respond(&mut head, source.clone()).await;
        assert_eq!(response.status(), 200, "{method}");
    }
    assert_eq!(subscriptions.load(Ordering::Relaxed), 3);
}

/// Returns the status and `Allow` of a response.
fn status_and_allow(response: &Response<PushBody>) -> (u16, Option<&str>) {
    let allow = response.headers().get("allow");
    let allow = allow.map(|value| value.to_str().unwrap());
    (response.status().as_u16(), allow)
}

/// A transport that names fewer methods than the others.
#[derive(Debug)]
struct PostOnly(Sse);

impl Transport for PostOnly {
    fn name(&self) -> &'static str {
        "post-only"
    }
    fn media_types(&self) -> &[&'static str] {
        &["text/x-post"]
    }
    fn methods(&self, _: Version) -> &[&'static str] {
        &["POST"]
    }
    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        match method_rejection(&head.method, self.methods(head.version)) {
            Some(rejection) => Box::pin(async { rejection_response(rejection) }),
            None => self.0.respond(head, push),
        }
    }
}

/// `Allow` lists the methods that do not get 405, over the version of HTTP in use, through each entry point.
#[tokio::test]
async fn allow_lists_methods_of_transports() {
    let guard = Guard::new();
    let web_socket = "GET, HEAD, OPTIONS";
    let with_post = || Negotiate::only(WebSocket::new()).add_transport(PostOnly(Sse::new()));
    let cases: [(Arc<dyn Transport>, _, _); 7] = [
        (Arc::new(WebSocket::new()), Version::HTTP_11, web_socket),
        (
            Arc::new(WebSocket::new()),
            Version::HTTP_2,
            "CONNECT, OPTIONS",
        ),
        (
            Arc::new(guard.wrap(WebSocket::new())),
            Version::HTTP_11,
            web_socket,
        ),
        (
            Arc::new(Negotiate::only(WebSocket::new())),
            Version::HTTP_11,
            web_socket,
        ),
        (
            Arc::new(with_post()),
            Version::HTTP_11,
            "GET, HEAD, POST, OPTIONS",
        ),
        (
            Arc::new(PostOnly(Sse::new())),
            Version::HTTP_11,
            "POST, OPTIONS",
        ),
        (
            Arc::new(Negotiate::new()),
            Version::HTTP_2,
            "GET, HEAD, POST, QUERY, CONNECT, OPTIONS",
        ),
    ];
    for (transport, version, allow) in cases {
        let methods: Vec<_> = allow.split(", ").collect();
        for method in ["GET", "HEAD", "POST", "QUERY", "PUT", "DELETE", "OPTIONS"] {
            let request = || {
                let mut request = empty_request(method, "/", &[]);
                *request.version_mut() = version;
                request
            };
            let source = source_fn(async |_| Ok(stream::iter(["event"])));
            let service = tower_push::service(source).transport(transport.clone());
            let layer = TransportLayer::with(transport.clone());
            let layered = layer.layer(service_fn(async |_: EmptyRequest| {
                Ok::<_, Infallible>(one_event_push())
            }));
            for response in [
                service.oneshot(request()).await.unwrap(),
                layered.oneshot(request()).await.unwrap(),
            ] {
                let (status, allowed) = status_and_allow(&response);
                if method == "OPTIONS" {
                    assert_eq!((status, allowed), (204, Some(allow)), "{transport:?}");
                    let mut cors = methods.clone();
                    cors.retain(|method| !matches!(*method, "CONNECT" | "OPTIONS"));
                    let cors_header = response.headers().get("access-control-allow-methods");
                    let cors_header = cors_header.map_or("", |value| value.to_str().unwrap());
                    assert_eq!(cors_header, cors.join(", "), "{transport:?}");
                } else if methods.contains(&method) {
                    assert_ne!(status, 405, "{method} {transport:?}");
                    assert_eq!(allowed, None, "{method} {transport:?}");
                } else {
                    assert_eq!(
                        (status, allowed),
                        (405, Some(allow)),
                        "{method} {transport:?}"
                    );
                }
            }
        }
    }
}

/// A set chooses among the transports that name the method. A request with another method than `GET` opens no WebSocket.
#[tokio::test]
async fn negotiate_chooses_transport_that_names_method() {
    let set = Negotiate::only(PostOnly(Sse::new())).add_transport(Chunked::default());
    for (method, expected) in [
        ("GET", NDJSON_BODY),
        ("POST", SSE_BODY),
        ("QUERY", NDJSON_BODY),
    ] {
        let mut head = empty_request(method, "/", &[]).into_parts().0;
        let response = set.respond(&mut head, one_event_push()).await;
        assert_eq!(body_text(response.into_body()).await, expected, "{method}");
    }
    let upgrade = [("upgrade", "websocket"), ("connection", "upgrade")];
    for (method, status) in [("POST", 200), ("DELETE", 405), ("OPTIONS", 204)] {
        let mut head = empty_request(method, "/", &upgrade).into_parts().0;
        let response = tower_push::respond(&mut head, stream::iter(["event"])).await;
        let allow = (status != 200).then_some(ALLOWED_METHODS);
        assert_eq!(status_and_allow(&response), (status, allow));
        assert_eq!(response.headers()["connection"], "close");
    }
    let mut connect = empty_request("GET", "/", &[]).into_parts().0;
    connect.method = http::Method::CONNECT;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        connect.version = version;
        let response = Negotiate::new()
            .respond(&mut connect, one_event_push())
            .await;
        assert_eq!(status_and_allow(&response), (501, None));
    }
}

#[tokio::test]
async fn options_answers_preflights() {
    let mut head = empty_request("OPTIONS", "/", &[]).into_parts().0;
    let response = tower_push::respond(&mut head, stream::iter(["event"])).await;
    let headers = response.headers();
    assert_eq!(
        headers["access-control-allow-methods"],
        "GET, HEAD, POST, QUERY"
    );
    assert_eq!(
        headers["access-control-allow-headers"],
        "Last-Event-ID, If-None-Match, If-Modified-Since, Cache-Control, Content-Type"
    );
    assert_eq!(headers["access-control-max-age"], "300");
    assert!(!headers.contains_key("access-control-allow-origin"));
    assert_eq!(response.body().size_hint().exact(), Some(0));
}

/// The README's routes accept any method, because a WebSocket over HTTP/2 is opened by CONNECT.
#[tokio::test]
async fn any_route_opens_streams_for_four_methods() {
    use axum::{Router, routing::any};
    let app = Router::new()
        .route("/", any(async || one_event_push()))
        .layer(PushLayer::new());
    let server = TestServer::start(app).await;
    for (method, status) in [
        ("GET", 200),
        ("HEAD", 200),
        ("POST", 200),
        ("QUERY", 200),
        ("OPTIONS", 204),
        ("PUT", 405),
        ("DELETE", 405),
    ] {
        let mut client = HttpConnection::connect(&server, testkit::HttpVersion::Http1).await;
        let response = client.send_request(method, "/", &[]).await;
        assert_eq!(response.head.status, status, "{method}");
        let allow = matches!(status, 204 | 405).then_some(ALLOWED_METHODS);
        assert_eq!(response.header("allow"), allow, "{method}");
    }
}
