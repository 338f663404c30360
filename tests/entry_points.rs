//! The four doors, and what passes through the layer untouched.

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
use testkit::{HttpClient, LiveCounter, TestServer, body_text, empty_request, get_request_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_push::{
    ChunkedLayer, Event, Push, PushBody, PushLayer, SseLayer,
    format::Multipart,
    source::{Rejection, Subscription, source_fn},
    transport::{Chunked, Sse, Transport},
};

type NoRequest = Request<Empty<Bytes>>;

fn push() -> Push {
    Push::new(stream::iter(["event"]))
}

const SSE: &str = ":\ndata: event\n\nevent: end\ndata: {\"finished\":false}\n\n";
const NDJSON: &str = "\n{\"data\":\"event\"}\n{\"end\":{\"finished\":false}}\n";

#[tokio::test]
async fn a_layer_turns_a_returned_push_into_its_transport() {
    let answers_push = || service_fn(async |_: NoRequest| Ok::<_, Infallible>(push()));
    let ndjson = [("accept", "application/x-ndjson")];

    let sse = ServiceBuilder::new()
        .layer(SseLayer::new())
        .service(answers_push());
    let response = sse
        .oneshot(empty_request("GET", "/", &ndjson))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, SSE);

    let chunked = ChunkedLayer::new().layer(answers_push());
    let response = chunked
        .oneshot(empty_request("GET", "/", &[]))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, NDJSON);

    let multipart = ChunkedLayer::with(Chunked::new(Multipart::mixed())).layer(answers_push());
    let response = multipart
        .oneshot(empty_request("GET", "/", &[]))
        .await
        .unwrap();
    assert!(
        body_text(response.into_body())
            .await
            .contains("\r\n\r\nevent\r\n--")
    );

    let any = PushLayer::new().layer(answers_push());
    let response = any
        .oneshot(empty_request("GET", "/", &ndjson))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, NDJSON);
}

#[tokio::test]
async fn a_service_that_answers_with_a_stream_becomes_one_that_answers_with_a_push() {
    let service = ServiceBuilder::new()
        .layer(SseLayer::new())
        .map_response(Push::new)
        .service_fn(async |_: NoRequest| Ok::<_, Infallible>(stream::iter(["event"])));
    let response = service
        .oneshot(empty_request("GET", "/", &[]))
        .await
        .unwrap();
    assert_eq!(body_text(response.into_body()).await, SSE);
}

#[tokio::test]
async fn a_leaf_service_serves_one_source() {
    let source = source_fn(async |subscription: Subscription| {
        let asked = subscription.cursor().map(ToString::to_string);
        let text = format!("{} after {asked:?}", subscription.transport());
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
        ("OPTIONS", vec![], 204, ""),
        ("DELETE", vec![], 405, "Method Not Allowed"),
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
        let allow = matches!(status, 204 | 405).then_some("GET, HEAD, POST, OPTIONS");
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
async fn a_handler_that_holds_the_request_answers_it() {
    let mut head = get_request_head("/?transport=ndjson", &[]);
    let response = tower_push::respond(&mut head, stream::iter(["event"])).await;
    assert_eq!(body_text(response.into_body()).await, NDJSON);
    let response = Sse::new()
        .respond(&mut get_request_head("/", &[]), push())
        .await;
    assert_eq!(body_text(response.into_body()).await, SSE);
}

#[tokio::test]
async fn a_source_may_refuse_before_any_byte_is_sent() {
    let refusing = source_fn(async |_| {
        tokio::task::yield_now().await;
        let rejection = Rejection::new(StatusCode::SERVICE_UNAVAILABLE)
            .message("full")
            .retry_after(Duration::from_millis(1500))
            .header(http::header::VIA, HeaderValue::from_static("a"));
        Err::<stream::Empty<Event>, _>(rejection)
    });
    let response = tower_push::respond(&mut get_request_head("/", &[]), refusing).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["via"], "a");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.headers()["vary"], "Accept");
    assert_eq!(body_text(response.into_body()).await, "full");
}

mod existing {
    use super::*;

    fn carrier() -> Response<String> {
        let mut response = Response::from(push());
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
    async fn a_carried_push_keeps_what_services_in_between_have_set() {
        let inner = service_fn(async |_: NoRequest| Ok::<_, Infallible>(carrier()));
        let response = PushLayer::new()
            .layer(inner)
            .oneshot(empty_request("GET", "/", &[]))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(headers["set-cookie"], "a=b");
        assert_eq!(headers["content-type"], "text/event-stream");
        assert_eq!(headers["cache-control"], "no-cache, no-transform");
        for absent in ["content-length", "content-encoding", "etag"] {
            assert!(!headers.contains_key(absent), "{absent}");
        }
        let vary: Vec<_> = headers.get_all("vary").iter().collect();
        assert_eq!(vary, ["Origin", "Accept"]);
        assert_eq!(response.extensions().get(), Some(&7_u8));
        assert_eq!(body_text(response.into_body()).await, SSE);
    }

    #[tokio::test]
    async fn headers_with_several_values_keep_them_all() {
        fn refusing() -> Push {
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
        let inner = service_fn(async |_: NoRequest| {
            let mut response = Response::from(refusing());
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
    async fn a_cache_policy_is_never_weakened() {
        let refused = || {
            Push::new(source_fn(async |_| {
                Err::<stream::Empty<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
            }))
        };
        let poll = "/?transport=long-poll&timeout=0";
        for (uri, is_refused, carriers, expected) in [
            ("/", false, "private, no-store", "private, no-store"),
            ("/", false, "Private", "Private"),
            ("/", false, "max-age=60", "no-cache, no-transform"),
            // As strict, and more of it.
            (
                poll,
                false,
                "private, no-cache, max-age=0",
                "private, no-cache, max-age=0",
            ),
            // A batch must be asked for before each use.
            (poll, false, "private", "private, no-cache"),
            ("/", true, "private", "no-store"),
            ("/", true, "no-store, private", "no-store, private"),
        ] {
            let inner = service_fn(move |_: NoRequest| async move {
                let mut response = Response::from(if is_refused { refused() } else { push() });
                let policy = HeaderValue::from_static(carriers);
                response.headers_mut().insert("cache-control", policy);
                Ok::<_, Infallible>(response)
            });
            let service = PushLayer::new().layer(inner);
            let response = service
                .oneshot(empty_request("GET", uri, &[]))
                .await
                .unwrap();
            let policies: Vec<_> = response.headers().get_all("cache-control").iter().collect();
            assert_eq!(policies, [expected], "{uri} {carriers}");
        }
    }

    #[tokio::test]
    async fn without_a_layer_it_is_an_error_that_names_the_layer() {
        let response = Response::<String>::from(push());
        assert_eq!(response.status(), 500);
        assert!(
            response.body().contains("tower_push::PushLayer"),
            "{}",
            response.body()
        );
        let response = axum::response::IntoResponse::into_response(push());
        assert_eq!(response.status(), 500);
        assert!(
            body_text(response.into_body())
                .await
                .contains("tower_push::PushLayer")
        );
    }

    #[tokio::test]
    async fn a_push_is_served_once_and_by_the_innermost_layer() {
        let inner = service_fn(async |_: NoRequest| Ok::<_, Infallible>(carrier()));
        let service = PushLayer::new().layer(ChunkedLayer::new().layer(inner));
        let response = service
            .oneshot(empty_request("GET", "/", &[]))
            .await
            .unwrap();
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        assert_eq!(body_text(response.into_body()).await, NDJSON);
    }

    #[tokio::test]
    async fn an_axum_router_may_answer_with_pushes_and_rejections() {
        use axum::{Router, routing::get};
        let app = Router::new()
            .route("/push", get(async || push()))
            .route(
                "/refused",
                get(async || Err::<Push, _>(Rejection::new(StatusCode::FORBIDDEN))),
            )
            .route("/page", get(async || "page"))
            .layer(PushLayer::new());
        let server = TestServer::start(app).await;
        let mut client = HttpClient::connect(&server, testkit::HttpVersion::Http1).await;
        let mut response = client.get("/push", &[]).await;
        assert_eq!(response.head.status, 200);
        response.expect_bytes(SSE).await;
        drop(response.read_to_end().await);
        assert_eq!(client.get("/refused", &[]).await.head.status, 403);
        let page = client.get("/page", &[]).await;
        assert_eq!(page.header("content-length"), Some("4"));
        assert_eq!(page.read_to_end().await.0, b"page");
    }

    /// A body with everything that a layer could lose.
    struct Trailing(u8);

    impl Body for Trailing {
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
    async fn other_responses_pass_through_untouched() {
        let inner = service_fn(async |_: NoRequest| {
            let response = Response::builder()
                .status(418)
                .header("x", "y")
                .extension(7_u8);
            Ok::<_, Infallible>(response.body(Trailing(0)).unwrap())
        });
        let response: Response<PushBody<Trailing>> = PushLayer::new()
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
    async fn errors_and_readiness_are_the_services_own() {
        #[derive(Debug)]
        struct Refusing;
        impl Service<NoRequest> for Refusing {
            type Response = Push;
            type Error = &'static str;
            type Future = std::future::Ready<Result<Push, &'static str>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
                Poll::Ready(Err("not ready"))
            }
            fn call(&mut self, _: NoRequest) -> Self::Future {
                std::future::ready(Err("called"))
            }
        }
        let mut service = SseLayer::new().layer(Refusing);
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
    async fn upgrades_pass_through() {
        let inner = service_fn(async |request: Request<hyper::body::Incoming>| {
            tokio::spawn(async move {
                let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                let mut word = [0; 4];
                io.read_exact(&mut word).await.unwrap();
                io.write_all(&word).await.unwrap();
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
        let asking = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        let (mut socket, _) = testkit::send_raw_http1(&server, asking, "\r\n\r\n").await;
        socket.write_all(b"ping").await.unwrap();
        let mut word = [0; 4];
        socket.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ping");
    }
}

#[tokio::test]
async fn a_status_without_a_body_has_none() {
    for status in [204, 205, 304] {
        let refusing = source_fn(async move |_| {
            let status = StatusCode::from_u16(status).unwrap();
            Err::<stream::Empty<Event>, _>(Rejection::from(status))
        });
        let response = tower_push::respond(&mut get_request_head("/", &[]), refusing).await;
        assert_eq!(response.status(), status);
        assert!(!response.headers().contains_key("content-type"));
        assert_eq!(response.body().size_hint().exact(), Some(0));
    }
}

#[tokio::test]
async fn what_a_source_built_wrongly_is_the_servers_fault() {
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

/// A push of a push is that push: what is said first is not said twice.
#[tokio::test]
async fn a_push_is_not_wrapped_again() {
    let mut head = get_request_head("/", &[("last-event-id", "not an id")]);
    let response = tower_push::respond(&mut head, Push::new(push())).await;
    let body = body_text(response.into_body()).await;
    assert_eq!(body.matches("event: gap").count(), 1);
}

#[tokio::test]
async fn a_body_is_send_and_sync_and_fused_and_never_yields_an_empty_frame() {
    fn is_send_and_sync<T: Send + Sync + 'static>(_: &T) {}
    let count = LiveCounter::default();
    let mut head = get_request_head("/", &[]);
    let mut body = tower_push::respond(&mut head, count.wrap(stream::iter(["event"])))
        .await
        .into_body();
    is_send_and_sync(&body);
    while body.frame().await.is_some() {}
    assert_eq!(
        count.get(),
        0,
        "the source is dropped at its end, not with the body"
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
