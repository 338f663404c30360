//! The four ways to turn a push into a response, and the responses that a layer passes through unchanged.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper_util::rt::TokioIo;
use testkit::{
    HttpConnection, LiveCounter, TestServer, body_text, empty_request, get_request_head,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_push::{
    ChunkedLayer, Event, Push, PushBody, PushLayer, PushSource, SseLayer,
    format::Multipart,
    layer::FormBodyLayer,
    source::{FormBody, Rejection, Subscription, query::decode_parameter, source_fn},
    transport::{Chunked, LongPoll, Negotiate, Sse, Transport},
};

/// A request without a body.
type EmptyRequest = Request<Empty<Bytes>>;

fn one_event_push() -> Push {
    Push::new(stream::iter(["event"]))
}

const ALLOWED_METHODS: &str = "GET, HEAD, POST, QUERY, OPTIONS";

const SSE_BODY: &str = ":\ndata: event\n\n";
const NDJSON_BODY: &str = " {\"data\":\"event\"}\n{\"end\":{\"finished\":false}}\n";

#[tokio::test]
async fn layer_turns_returned_push_into_response() {
    let push_service = || service_fn(async |_: EmptyRequest| Ok::<_, Infallible>(one_event_push()));
    let ndjson = [("accept", "application/x-ndjson")];

    let sse = ServiceBuilder::new()
        .layer(SseLayer::new())
        .service(push_service());
    let response = sse
        .oneshot(empty_request("GET", "/", &ndjson))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, SSE_BODY);

    let chunked = ChunkedLayer::new().layer(push_service());
    let response = chunked
        .oneshot(empty_request("GET", "/", &[]))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, NDJSON_BODY);

    let multipart = ChunkedLayer::with(Chunked::new(Multipart::mixed())).layer(push_service());
    let response = multipart
        .oneshot(empty_request("GET", "/", &[]))
        .await
        .unwrap();
    assert!(
        body_text(response.into_body())
            .await
            .contains("\r\n\r\nevent\r\n--")
    );

    let negotiating = PushLayer::new().layer(push_service());
    let response = negotiating
        .oneshot(empty_request("GET", "/", &ndjson))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, NDJSON_BODY);
}

#[tokio::test]
async fn map_response_turns_stream_into_push() {
    let service = ServiceBuilder::new()
        .layer(SseLayer::new())
        .map_response(Push::new)
        .service_fn(async |_: EmptyRequest| Ok::<_, Infallible>(stream::iter(["event"])));
    let response = service
        .oneshot(empty_request("GET", "/", &[]))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, SSE_BODY);
}

#[tokio::test]
async fn source_service_serves_one_source() {
    let source = source_fn(async |subscription: Subscription| {
        let cursor = subscription.cursor().map(ToString::to_string);
        let text = format!("{} after {cursor:?}", subscription.transport());
        Ok(stream::iter([text]))
    });
    let mut service = tower_push::service(source);
    for (method, headers, status, expected) in [
        ("GET", vec![], 200, "data: sse after None"),
        (
            "GET",
            vec![("last-event-id", "a-1")],
            200,
            "data: sse after Some(\"a-1\")",
        ),
        (
            "GET",
            vec![("accept", "application/x-ndjson")],
            200,
            "\"ndjson after None\"",
        ),
        ("POST", vec![], 200, "data: sse after None"),
        ("HEAD", vec![], 200, ""),
        ("QUERY", vec![], 200, "data: sse after None"),
        ("OPTIONS", vec![], 204, ""),
        ("DELETE", vec![], 405, "Method Not Allowed"),
        ("BREW", vec![], 405, "Method Not Allowed"),
        (
            "GET",
            vec![("accept", "text/html")],
            406,
            "text/event-stream",
        ),
    ] {
        let response = service
            .call(empty_request(method, "/", &headers))
            .await
            .unwrap();
        assert_eq!(response.status(), status);
        let allow = matches!(status, 204 | 405).then_some(ALLOWED_METHODS);
        assert_eq!(
            response.headers().get("allow").map(|v| v.to_str().unwrap()),
            allow
        );
        let body = body_text(response.into_body()).await;
        assert!(body.contains(expected), "{body}");
    }
    let mut ndjson = service.transport(Chunked::default());
    let response = ndjson.call(empty_request("GET", "/", &[])).await.unwrap();
    assert!(
        body_text(response.into_body())
            .await
            .contains("\"ndjson after None\"")
    );
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
        .service_fn(async |_: Request<Full<Bytes>>| {
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

/// The inner service gets the body of a form again, and other bodies unread.
#[tokio::test]
async fn form_body_layer_hands_bodies_on() {
    let service = ServiceBuilder::new()
        .layer(FormBodyLayer::new())
        .service_fn(async |request: Request<Full<Bytes>>| {
            let has_form = request.extensions().get::<FormBody>().is_some();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let text = format!("{has_form} {}", String::from_utf8_lossy(&body));
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        });
    let too_long = vec![b'x'; 64 * 1024 + 1];
    for (method, content_type, body, status, expected) in [
        ("QUERY", FORM.1, b"a=b".to_vec(), 200, "true a=b"),
        ("QUERY", "application/json", b"{}".to_vec(), 200, "false {}"),
        ("POST", FORM.1, b"a=b".to_vec(), 200, "false a=b"),
        ("QUERY", FORM.1, too_long, 413, "Payload Too Large"),
    ] {
        let mut request = query_request("/", &[("content-type", content_type)], body);
        *request.method_mut() = method.parse().unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{method} {content_type}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, expected);
    }
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

#[tokio::test]
async fn respond_answers_request_head() {
    let mut head = get_request_head("/?transport=ndjson", &[]);
    let response = tower_push::respond(&mut head, stream::iter(["event"])).await;
    assert_eq!(body_text(response.into_body()).await, NDJSON_BODY);
    let response = Sse::new()
        .respond(&mut get_request_head("/", &[]), one_event_push())
        .await;
    assert_eq!(body_text(response.into_body()).await, SSE_BODY);
}

#[tokio::test]
async fn source_rejection_becomes_status() {
    let rejecting = source_fn(async |_| {
        tokio::task::yield_now().await;
        let rejection = Rejection::new(StatusCode::SERVICE_UNAVAILABLE)
            .message("full")
            .retry_after(Duration::from_millis(1500))
            .header(http::header::VIA, HeaderValue::from_static("a"));
        Err::<stream::Empty<Event>, _>(rejection)
    });
    let response = tower_push::respond(&mut get_request_head("/", &[]), rejecting).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["via"], "a");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.headers()["vary"], "Accept");
    assert_eq!(body_text(response.into_body()).await, "full");
}

mod carried_push {
    use super::*;

    /// Returns a response that carries a push, with headers that services have added.
    fn response_with_push() -> Response<String> {
        let mut response = Response::from(one_event_push());
        let headers = response.headers_mut();
        headers.insert("set-cookie", HeaderValue::from_static("a=b"));
        headers.insert("vary", HeaderValue::from_static("Origin"));
        headers.insert("content-length", HeaderValue::from_static("7"));
        headers.insert("cache-control", HeaderValue::from_static("max-age=1"));
        headers.insert("etag", HeaderValue::from_static("\"of the 500\""));
        headers.insert("content-encoding", HeaderValue::from_static("gzip"));
        response.extensions_mut().insert(7_u8);
        response
    }

    #[tokio::test]
    async fn carried_push_keeps_headers_and_extensions() {
        let inner = service_fn(async |_: EmptyRequest| Ok::<_, Infallible>(response_with_push()));
        let response = PushLayer::new()
            .layer(inner)
            .oneshot(empty_request("GET", "/", &[]))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(headers["set-cookie"], "a=b");
        assert_eq!(headers["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(headers["cache-control"], "no-cache, no-transform");
        for absent in ["content-length", "content-encoding", "etag"] {
            assert!(!headers.contains_key(absent), "{absent}");
        }
        let vary: Vec<_> = headers.get_all("vary").iter().collect();
        assert_eq!(vary, ["Origin", "Accept"]);
        assert_eq!(response.extensions().get(), Some(&7_u8));
        assert_eq!(body_text(response.into_body()).await, SSE_BODY);
    }

    #[tokio::test]
    async fn headers_with_several_values_are_all_kept() {
        fn rejecting() -> Push {
            Push::new(source_fn(async |_| {
                let rejection = Rejection::new(StatusCode::UNAUTHORIZED)
                    .header(
                        http::header::WWW_AUTHENTICATE,
                        HeaderValue::from_static("Basic"),
                    )
                    .header(
                        http::header::WWW_AUTHENTICATE,
                        HeaderValue::from_static("Bearer"),
                    )
                    .header(http::header::SET_COOKIE, HeaderValue::from_static("b=2"));
                Err::<stream::Empty<Event>, _>(rejection)
            }))
        }
        let inner = service_fn(async |_: EmptyRequest| {
            let mut response = Response::from(rejecting());
            let cookie = HeaderValue::from_static("a=1");
            response.headers_mut().insert("set-cookie", cookie);
            Ok::<_, Infallible>(response)
        });
        let service = PushLayer::new().layer(inner);
        let response = service
            .oneshot(empty_request("GET", "/", &[]))
            .await
            .unwrap();
        let all = |name| response.headers().get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(all("www-authenticate"), ["Basic", "Bearer"]);
        assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
    }

    #[tokio::test]
    async fn cache_policy_is_never_weakened() {
        let rejected = || {
            Push::new(source_fn(async |_| {
                Err::<stream::Empty<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
            }))
        };
        let poll = "/?transport=long-poll&timeout=0";
        for (uri, is_rejected, carried_policy, expected) in [
            ("/", false, "private, no-store", "private, no-store"),
            ("/", false, "Private", "Private"),
            ("/", false, "max-age=60", "no-cache, no-transform"),
            // This policy is as strict as the transport's, with more directives.
            (
                poll,
                false,
                "private, no-cache, max-age=0",
                "private, no-cache, max-age=0",
            ),
            // A batch must be revalidated before each use.
            (poll, false, "private", "private, no-cache"),
            ("/", true, "private", "no-store"),
            ("/", true, "no-store, private", "no-store, private"),
        ] {
            let inner = service_fn(move |_: EmptyRequest| async move {
                let mut response = Response::from(if is_rejected {
                    rejected()
                } else {
                    one_event_push()
                });
                let policy = HeaderValue::from_static(carried_policy);
                response.headers_mut().insert("cache-control", policy);
                Ok::<_, Infallible>(response)
            });
            let service = PushLayer::new().layer(inner);
            let response = service
                .oneshot(empty_request("GET", uri, &[]))
                .await
                .unwrap();
            let policies: Vec<_> = response.headers().get_all("cache-control").iter().collect();
            assert_eq!(policies, [expected], "{uri} {carried_policy}");
        }
    }

    #[tokio::test]
    async fn push_without_layer_is_500_that_names_the_layer() {
        let response = Response::<String>::from(one_event_push());
        assert_eq!(response.status(), 500);
        assert!(
            response.body().contains("tower_push::PushLayer"),
            "{}",
            response.body()
        );
        let response = axum::response::IntoResponse::into_response(one_event_push());
        assert_eq!(response.status(), 500);
        assert!(
            body_text(response.into_body())
                .await
                .contains("tower_push::PushLayer")
        );
    }

    #[tokio::test]
    async fn innermost_layer_serves_push() {
        let inner = service_fn(async |_: EmptyRequest| Ok::<_, Infallible>(response_with_push()));
        let service = PushLayer::new().layer(ChunkedLayer::new().layer(inner));
        let response = service
            .oneshot(empty_request("GET", "/", &[]))
            .await
            .unwrap();
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        assert_eq!(body_text(response.into_body()).await, NDJSON_BODY);
    }

    #[tokio::test]
    async fn axum_handlers_return_pushes_and_rejections() {
        use axum::{Router, routing::get};
        let app = Router::new()
            .route("/push", get(async || one_event_push()))
            .route(
                "/refused",
                get(async || Err::<Push, _>(Rejection::new(StatusCode::FORBIDDEN))),
            )
            .route("/page", get(async || "page"))
            .layer(PushLayer::new());
        let server = TestServer::start(app).await;
        let mut client = HttpConnection::connect(&server, testkit::HttpVersion::Http1).await;
        let mut response = client.get("/push", &[]).await;
        assert_eq!(response.head.status, 200);
        response.expect_bytes(SSE_BODY).await;
        drop(response.read_to_end().await);
        assert_eq!(client.get("/refused", &[]).await.head.status, 403);
        let page = client.get("/page", &[]).await;
        assert_eq!(page.header("content-length"), Some("4"));
        assert_eq!(page.read_to_end().await.0, b"page");
    }

    /// A body with data, trailers, an error, a size hint and an early end of stream: all of it must pass through a layer.
    struct BodyWithTrailers(u8);

    impl Body for BodyWithTrailers {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            self.0 += 1;
            Poll::Ready(match self.0 {
                1 => Some(Ok(Frame::data(Bytes::from_static(b"data")))),
                2 => {
                    let trailers =
                        HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("t"))]);
                    Some(Ok(Frame::trailers(trailers)))
                }
                _ => Some(Err(std::io::Error::other("inner"))),
            })
        }

        fn is_end_stream(&self) -> bool {
            self.0 == 2
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(4)
        }
    }

    #[tokio::test]
    async fn other_responses_pass_through_unchanged() {
        let inner = service_fn(async |_: EmptyRequest| {
            let response = Response::builder()
                .status(418)
                .header("x", "y")
                .extension(7_u8);
            Ok::<_, Infallible>(response.body(BodyWithTrailers(0)).unwrap())
        });
        let response: Response<PushBody<BodyWithTrailers>> = PushLayer::new()
            .layer(inner)
            .oneshot(empty_request("GET", "/", &[]))
            .await
            .unwrap();
        assert_eq!(response.status(), 418);
        assert_eq!(response.headers().len(), 1);
        assert_eq!(response.extensions().get(), Some(&7_u8));
        let mut body = response.into_body();
        assert_eq!(body.size_hint().exact(), Some(4));
        assert!(!body.is_end_stream());
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            "data"
        );
        let trailers = body
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_trailers()
            .unwrap();
        assert_eq!(trailers["etag"], "t");
        assert!(body.is_end_stream());
        assert_eq!(
            body.frame().await.unwrap().unwrap_err().to_string(),
            "inner"
        );
    }

    #[tokio::test]
    async fn layer_forwards_errors_and_readiness() {
        #[derive(Debug)]
        struct FailingService;
        impl Service<EmptyRequest> for FailingService {
            type Response = Push;
            type Error = &'static str;
            type Future = std::future::Ready<Result<Push, &'static str>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
                Poll::Ready(Err("not ready"))
            }
            fn call(&mut self, _: EmptyRequest) -> Self::Future {
                std::future::ready(Err("called"))
            }
        }
        let mut service = SseLayer::new().layer(FailingService);
        assert_eq!(service.ready().await.unwrap_err(), "not ready");
        assert_eq!(
            service
                .call(empty_request("GET", "/", &[]))
                .await
                .unwrap_err(),
            "called"
        );
    }

    #[tokio::test]
    async fn upgrades_pass_through_layer() {
        let inner = service_fn(async |request: Request<hyper::body::Incoming>| {
            tokio::spawn(async move {
                let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                let mut message = [0; 4];
                io.read_exact(&mut message).await.unwrap();
                io.write_all(&message).await.unwrap();
            });
            let response = Response::builder()
                .status(101)
                .header("connection", "upgrade");
            let response = response
                .header("upgrade", "echo")
                .body(Full::<Bytes>::default());
            Ok::<_, Infallible>(response.unwrap())
        });
        let server = TestServer::start(PushLayer::new().layer(inner)).await;
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        let (mut socket, _) = testkit::send_raw_http1(&server, request, "\r\n\r\n").await;
        socket.write_all(b"ping").await.unwrap();
        let mut message = [0; 4];
        socket.read_exact(&mut message).await.unwrap();
        assert_eq!(&message, b"ping");
    }
}

#[tokio::test]
async fn rejection_without_body_has_none() {
    for status in [204, 205, 304] {
        let rejecting = source_fn(async move |_| {
            let status = StatusCode::from_u16(status).unwrap();
            Err::<stream::Empty<Event>, _>(Rejection::from(status))
        });
        let response = tower_push::respond(&mut get_request_head("/", &[]), rejecting).await;
        assert_eq!(response.status(), status);
        assert!(!response.headers().contains_key("content-type"));
        assert_eq!(response.body().size_hint().exact(), Some(0));
    }
}

#[tokio::test]
async fn invalid_id_of_source_is_500() {
    let failing = source_fn(async |_| {
        let event = Event::text("x").with_id("no id")?;
        Ok(stream::iter([event]))
    });
    let response = tower_push::respond(&mut get_request_head("/", &[]), failing).await;
    assert_eq!(response.status(), 500);
    assert_eq!(
        body_text(response.into_body()).await,
        "Internal Server Error"
    );
}

/// `Push::new(push)` is `push` itself, so the first gap is sent only once.
#[tokio::test]
async fn push_of_push_is_not_wrapped_again() {
    let mut head = get_request_head("/", &[("last-event-id", "not an id")]);
    let response = tower_push::respond(&mut head, Push::new(one_event_push())).await;
    let body = body_text(response.into_body()).await;
    assert_eq!(body.matches("event: gap").count(), 1);
}

#[tokio::test]
async fn body_is_send_sync_fused_and_skips_empty_frames() {
    fn assert_send_and_sync<T: Send + Sync + 'static>(_: &T) {}
    let live = LiveCounter::default();
    let mut head = get_request_head("/", &[]);
    let mut body = tower_push::respond(&mut head, live.wrap(stream::iter(["event"])))
        .await
        .into_body();
    assert_send_and_sync(&body);
    while body.frame().await.is_some() {}
    assert_eq!(
        live.get(),
        0,
        "the source must be dropped at its end, not with the body"
    );
    for _ in 0..3 {
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());
    }

    let frames = [Bytes::new(), Bytes::from_static(b"a"), Bytes::new()];
    let frames = frames.map(|bytes| Ok(Frame::data(bytes)));
    let body = PushBody::new(StreamBody::new(stream::iter(frames)));
    let (frames, _) = testkit::body_frames(body).await;
    assert_eq!(frames, ["a"]);
    assert_eq!(PushBody::empty().size_hint().exact(), Some(0));
    assert_eq!(PushBody::full("four").size_hint().exact(), Some(4));
}
