//! The four ways to turn a push into a response, and the responses that a layer passes through unchanged.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::TokioIo;
use testkit::{
    HttpConnection, LiveCounter, TestServer, body_text, empty_request, get_request_head,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_push::{
    ChunkedLayer, Event, Push, PushBody, PushLayer, SseLayer,
    format::Multipart,
    source::{Rejection, Subscription, source_fn},
    transport::{Chunked, Sse, Transport},
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

/// What applications share among tasks and keep in their state.
#[test]
fn public_types_are_send_and_sync() {
    use tower_push::{
        Channel, Drain, Error, Event, Gap, Guard, Hub, Item, PushLayer, Relay, WriteTimeout,
        event::EventRun,
        guard::{Admission, DrainPlan, GuardCounts},
        server::{Server, ServerCounts},
        source::{
            ClientMessages, Rejection, StartPosition, Subscription,
            hub::{HubSource, HubTopic, HubWriter},
            relay::RelayWriter,
            resumable::Resumable,
        },
        transport::{Chunked, LongPoll, Negotiate, Sse, WebSocket},
    };
    fn assert_send_and_sync<T: Send + Sync + Unpin + 'static>() {}
    assert_send_and_sync::<(Channel, Hub, Relay, Resumable, HubSource, HubTopic)>();
    assert_send_and_sync::<(RelayWriter, HubWriter, ClientMessages)>();
    assert_send_and_sync::<(Event, EventRun, Gap, Item, Error, Rejection)>();
    assert_send_and_sync::<(Subscription, StartPosition)>();
    assert_send_and_sync::<(Guard, Admission, Drain, DrainPlan, GuardCounts)>();
    assert_send_and_sync::<(Server, ServerCounts, WriteTimeout<tokio::net::TcpStream>)>();
    assert_send_and_sync::<(Sse, Chunked, LongPoll, WebSocket, Negotiate, PushLayer)>();
    // A source, like a stream, belongs to one task at a time.
    fn assert_send<T: Send + 'static>() {}
    assert_send::<Push>();
}
