//! Publishing over HTTP, with curl and reqwest as clients.

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::Router;
use http::{HeaderValue, StatusCode, header, request::Parts};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use testkit::{TestServer, send_raw_http1};
use tower_push::{
    Hub,
    event::Topic,
    publisher::Publisher,
    source::{Rejection, hub::PublishOptions},
};

/// A server whose `/topics` publishes to `hub`.
struct PublishServer {
    server: TestServer,
    hub: Hub,
}

impl PublishServer {
    async fn start(hub: &Hub, publisher: Publisher) -> Self {
        let app = Router::new().nest_service("/topics", publisher);
        Self {
            server: TestServer::start(app).await,
            hub: hub.clone(),
        }
    }

    /// Starts a server at which everybody may publish.
    async fn open() -> Self {
        let hub = Hub::new();
        Self::start(&hub, hub.publisher().without_authorization()).await
    }

    fn post(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> RequestBuilder {
        let request = Client::new().post(self.server.url(path));
        let request = request.header(header::CONTENT_TYPE, content_type);
        request.body(body.into())
    }

    /// Posts JSON that names its topics.
    async fn post_json(&self, json: &Value) -> Response {
        let request = self.post("/topics", "application/json", json.to_string());
        request.send().await.unwrap()
    }

    /// Returns the payloads, types and ids in a topic's log.
    fn events(&self, topic: &str) -> Vec<(String, Option<String>, String)> {
        let events = self.hub.topic(topic).unwrap().history(None, 1000).events;
        let describe = |event: &tower_push::Event| {
            let payload = String::from_utf8_lossy(event.payload().as_bytes()).into_owned();
            let event_type = event.event_type().map(|name| name.to_string());
            (payload, event_type, event.id().unwrap().to_string())
        };
        events.iter().map(describe).collect()
    }

    /// Returns the payloads in a topic's log.
    fn payloads(&self, topic: &str) -> Vec<String> {
        let events = self.events(topic).into_iter();
        events.map(|(payload, _, _)| payload).collect()
    }
}

/// Asserts that the response is a problem report, and returns its detail.
async fn problem(response: Response, status: u16) -> String {
    assert_eq!(response.status(), status);
    let headers = response.headers();
    assert_eq!(headers["content-type"], "application/problem+json");
    assert_eq!(headers["cache-control"], "no-store");
    let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(problem["status"], status);
    assert!(problem["title"].is_string());
    problem["detail"].as_str().unwrap_or_default().to_owned()
}

async fn json_body(response: Response) -> Value {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn curl_publishes_to_topic_in_path() {
    let server = PublishServer::open().await;
    let url = server.server.url("/topics/orders/4%202+?event=sh%69pped");
    let curl = move || {
        let curl = Command::new("curl")
            .args(["-sS", "-d", "on its way", &url])
            .output();
        String::from_utf8(curl.unwrap().stdout).unwrap()
    };
    let response = tokio::task::spawn_blocking(curl).await.unwrap();
    let response: Value = serde_json::from_str(&response).unwrap();
    let events = server.events("orders/4 2+");
    let id = response["id"].as_str().unwrap();
    assert_eq!(
        events,
        [("on its way".into(), Some("shipped".into()), id.into())]
    );
}

#[tokio::test]
async fn content_type_chooses_the_payload() {
    let server = PublishServer::open().await;
    let publish = async |content_type: &str, body: &[u8]| {
        let response = server
            .post("/topics/t", content_type, body)
            .send()
            .await
            .unwrap();
        json_body(response).await;
        let events = server.hub.topic("t").unwrap().history(None, 1000).events;
        format!("{:?}", events.last().unwrap().payload())
    };
    assert_eq!(
        publish("text/plain; charset=utf-8", b"\xc3\xa9").await,
        "Text(\"é\")"
    );
    assert_eq!(
        publish("application/json", b"[1, 2]").await,
        "Json(\"[1, 2]\")"
    );
    assert_eq!(
        publish("text/plain;format=flowed;CHARSET=\"UTF-8\"", b"x").await,
        "Text(\"x\")"
    );
    assert_eq!(publish("application/ld+json", b"{}").await, "Json(\"{}\")");
    assert_eq!(publish("image/png", b"\xff").await, "Binary(b\"\\xff\")");

    let invalid = [("text/plain", b"\xff" as &[u8]), ("application/json", b"{")];
    for (content_type, body) in invalid {
        let response = server
            .post("/topics/t", content_type, body)
            .send()
            .await
            .unwrap();
        problem(response, 400).await;
    }
    assert_eq!(server.payloads("t").len(), 5);
}

#[tokio::test]
async fn json_names_topics() {
    let server = PublishServer::open().await;
    let one = json!({"topic": ["a", "b"], "event": "goal", "data": {"home": 2}});
    let response = json_body(server.post_json(&one).await).await;
    let id = response["id"].as_str().unwrap().to_owned();
    let expected = [(r#"{"home":2}"#.to_owned(), Some("goal".to_owned()), id)];
    assert_eq!(server.events("a"), expected);
    assert_eq!(server.events("b"), expected);

    let batch = json!([{"topic": "c", "data": "1"}, {"topic": "c", "data": "2"}]);
    let response = json_body(server.post_json(&batch).await).await;
    let ids: Vec<_> = response
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["id"])
        .collect();
    let events = server.events("c");
    assert_eq!(events.len(), 2);
    for ((payload, _, id), (expected, expected_id)) in events.iter().zip(["1", "2"].iter().zip(ids))
    {
        assert_eq!((&**payload, json!(id)), (*expected, expected_id.clone()));
    }
    assert_eq!(
        json_body(server.post_json(&json!([])).await).await,
        json!([])
    );
}

#[tokio::test]
async fn form_gets_the_id_as_text() {
    let server = PublishServer::open().await;
    let form = "topic=https%3A%2F%2Fexample.com%2Fbooks%2F1&topic=books&data=a+b%0Ac&type=update";
    let request = server.post("/topics", "application/x-www-form-urlencoded", form);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; charset=utf-8"
    );
    let id = response.text().await.unwrap();
    let expected = [("a b\nc".to_owned(), Some("update".to_owned()), id)];
    assert_eq!(server.events("https://example.com/books/1"), expected);
    assert_eq!(server.events("books"), expected);
}

#[tokio::test]
async fn refused_topic_refuses_the_batch() {
    let hub = Hub::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let publisher = hub
        .publisher()
        .authorize(move |head: Arc<Parts>, topic: Topic| {
            counter.fetch_add(1, Ordering::Relaxed);
            async move {
                let unauthorized = || {
                    Rejection::new(StatusCode::UNAUTHORIZED)
                        .message("log in first")
                        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
                };
                match head.headers.contains_key(header::AUTHORIZATION) && topic.as_str() != "secret"
                {
                    true => Ok(()),
                    false => Err(unauthorized()),
                }
            }
        });
    let server = PublishServer::start(&hub, publisher).await;
    let batch = json!([
        {"topic": "open", "data": 1},
        {"topic": ["open", "secret"], "data": 2},
        {"topic": "open", "data": 3},
    ]);
    let request = server.post("/topics", "application/json", batch.to_string());
    let response = request.header("authorization", "x").send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    assert_eq!(problem(response, 401).await, "log in first");
    assert!(server.payloads("open").is_empty());
    assert_eq!(hub.counts().published, 0);
    // Each topic is asked for once.
    assert_eq!(asked.load(Ordering::Relaxed), 2);

    // A request that cannot be read is refused before anybody is asked.
    let mut batch = batch.as_array().unwrap().clone();
    batch.push(json!({"topic": "open"}));
    let response = server.post_json(&Value::Array(batch)).await;
    assert!(
        problem(response, 400)
            .await
            .contains("a publication has no data")
    );
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn page_of_another_origin_cannot_publish() {
    let server = PublishServer::open().await;
    let form = "application/x-www-form-urlencoded";
    for (header, value) in [
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let request = server.post("/topics", form, "topic=t&data=x");
        let response = request.header(header, value).send().await.unwrap();
        assert_eq!(
            problem(response, 403).await,
            "pages of this origin may not publish"
        );
    }
    assert_eq!(server.hub.counts().published, 0);
    let own = server.server.url("");
    let request = server
        .post("/topics", form, "topic=t&data=x")
        .header("origin", own);
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(server.payloads("t"), ["x"]);
}

#[tokio::test]
async fn idempotency_key_publishes_once() {
    let server = PublishServer::open().await;
    let post = async |path: &str, key: &'static str, body: &str| {
        let content_type = match path {
            "/topics" => "application/json",
            _ => "text/plain",
        };
        let request = server.post(path, content_type, body);
        let response = request.header("idempotency-key", key).send().await.unwrap();
        json_body(response).await
    };
    let first = post("/topics/t", r#""key-1""#, "x").await;
    assert_eq!(post("/topics/t", "key-1", "x").await, first);
    assert_ne!(post("/topics/u", "key-1", "x").await, first);
    assert_eq!(server.payloads("t"), ["x"]);

    let batch = r#"[{"topic":"b","data":1},{"topic":"b","data":2},{"topic":"b","data":3,"idempotency_key":"own"}]"#;
    let first = post("/topics", "key-2", batch).await;
    assert_eq!(post("/topics", "key-2", batch).await, first);
    assert_eq!(server.payloads("b"), ["1", "2", "3"]);
    // The publication with a key of its own is known, whatever the key of the request.
    let again = post(
        "/topics",
        "key-3",
        r#"{"topic":"b","data":3,"idempotency_key":"own"}"#,
    )
    .await;
    assert_eq!(again, first[2]);
    assert_eq!(server.payloads("b"), ["1", "2", "3"]);
}

#[tokio::test]
async fn sender_does_not_get_its_own_events() {
    let hub = Hub::new();
    let options = |head: &Parts| match head.headers.get("x-tab") {
        Some(tab) => PublishOptions::new().except(tab.to_str().unwrap()),
        None => PublishOptions::new(),
    };
    let publisher = hub.publisher().options(options).without_authorization();
    let server = PublishServer::start(&hub, publisher).await;
    let source = hub.topic("t").unwrap().source().sender("tab-1");
    let mut own = source
        .subscribe_from(tower_push::source::StartPosition::Now)
        .unwrap();
    let request = server.post("/topics/t", "text/plain", "mine");
    request.header("x-tab", "tab-1").send().await.unwrap();
    server
        .post("/topics/t", "text/plain", "theirs")
        .send()
        .await
        .unwrap();
    let described = testkit::read_ready_items(&mut own);
    assert_eq!(described, ["cursor", "theirs"]);
}

#[tokio::test]
async fn limits_are_kept() {
    let hub = Hub::new();
    let publisher = hub
        .publisher()
        .max_body_len(200)
        .max_publications(2)
        .max_topics(2);
    let server = PublishServer::start(&hub, publisher.without_authorization()).await;
    let raw = async |len: usize| {
        let request = server.post("/topics/t", "text/plain", vec![b'x'; len]);
        request.send().await.unwrap()
    };
    json_body(raw(200).await).await;
    problem(raw(201).await, 413).await;

    let publication = json!({"topic": "t", "data": 1});
    let batch = json!([publication, publication, publication]);
    let detail = problem(server.post_json(&batch).await, 413).await;
    assert_eq!(detail, "a batch has at most 2 publications");
    let topics = json!({"topic": ["a", "a", "b"], "data": 1});
    let detail = problem(server.post_json(&topics).await, 413).await;
    assert_eq!(detail, "a publication has at most 2 topics");
    let form = server.post(
        "/topics",
        "application/x-www-form-urlencoded",
        "topic=a&topic=b&topic=c",
    );
    problem(form.send().await.unwrap(), 413).await;
    assert_eq!(hub.counts().published, 1);
}

/// A body that announces its length is refused before the client sends the body.
#[tokio::test]
async fn announced_length_is_limited() {
    let server = PublishServer::open().await;
    let request = "POST /topics/t HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9999999999\r\n\r\n";
    let (_, response) = send_raw_http1(&server.server, request, "\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    assert_eq!(server.hub.counts().published, 0);
}

/// A batch of a million publications is refused for its length, or, if longer bodies are accepted, for its number.
#[tokio::test]
async fn batch_of_a_million_is_refused() {
    let hub = Hub::new();
    let batch = format!("[{}1]", r#"{"topic":"t","data":1},"#.repeat(1_000_000));
    for (max_body_len, detail) in [
        (1 << 20, ""),
        (64 << 20, "a batch has at most 1000 publications"),
    ] {
        let publisher = hub.publisher().max_body_len(max_body_len);
        let server = PublishServer::start(&hub, publisher.without_authorization()).await;
        let request = server.post("/topics", "application/json", batch.clone());
        assert_eq!(problem(request.send().await.unwrap(), 413).await, detail);
    }
    assert_eq!(hub.counts().published, 0);
}

/// JSON with many levels would end the streams of clients whose parsers have a limit.
#[tokio::test]
async fn depth_of_json_is_limited() {
    let server = PublishServer::open().await;
    let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (depth, status) in [(120, 200), (121, 400), (500_000, 400)] {
        let json = nested(depth);
        let raw = server.post("/topics/t", "application/json", json.clone());
        assert_eq!(raw.send().await.unwrap().status(), status, "{depth}");
        let json = format!(r#"{{"topic":"t","data":{json}}}"#);
        let named = server.post("/topics", "application/json", json);
        assert_eq!(named.send().await.unwrap().status(), status, "{depth}");
    }
    // The body is a text, whatever it means.
    let text = server.post("/topics/t", "text/plain", nested(1000));
    assert_eq!(text.send().await.unwrap().status(), 200);
    assert_eq!(server.hub.counts().published, 3);
}

#[tokio::test]
async fn rate_is_limited() {
    let hub = Hub::new();
    let publisher = hub.publisher().max_rate(3).without_authorization();
    let server = PublishServer::start(&hub, publisher).await;
    let publication = json!({"topic": "t", "data": 1});
    let batch = |len| Value::Array(vec![publication.clone(); len]);
    let response = server.post_json(&batch(4)).await;
    assert!(!response.headers().contains_key("retry-after"));
    assert!(
        problem(response, 429)
            .await
            .contains("more publications than the rate allows")
    );
    json_body(server.post_json(&batch(3)).await).await;
    let response = server.post_json(&batch(3)).await;
    assert_eq!(response.headers()["retry-after"], "1");
    problem(response, 429).await;
    assert_eq!(hub.counts().published, 3);
}

#[tokio::test]
async fn bad_requests_get_problem_reports() {
    let server = PublishServer::open().await;
    let long = format!("/topics/{}", "x".repeat(10 * 1024));
    for (path, content_type, body, status) in [
        ("/topics/a%0Ab", "text/plain", "x", 400),
        ("/topics/%20", "text/plain", "x", 400),
        ("/topics/%00", "text/plain", "x", 400),
        // Not UTF-8: a byte of Latin-1, an overlong slash, and half of a surrogate pair.
        ("/topics/%ff", "text/plain", "x", 400),
        ("/topics/a%c0%afb", "text/plain", "x", 400),
        ("/topics/%ed%a0%80", "text/plain", "x", 400),
        ("/topics/t?event=%ff", "text/plain", "x", 400),
        ("/topics/t", "text/plain; charset=utf-16", "x", 415),
        (
            "/topics",
            "application/x-www-form-urlencoded; charset=\"ISO-8859-1\"",
            "topic=t&data=x",
            415,
        ),
        (
            "/topics",
            "application/x-www-form-urlencoded",
            "topic=%ff&data=x",
            400,
        ),
        (
            "/topics",
            "application/x-www-form-urlencoded",
            "topic=t&data=%e9",
            400,
        ),
        (&*long, "text/plain", "x", 400),
        ("/topics/t?event=%00", "text/plain", "x", 400),
        ("/topics", "text/plain", "x", 415),
        ("/topics", "application/json", "", 400),
        (
            "/topics",
            "application/json",
            r#"{"topic":"","data":1}"#,
            400,
        ),
        (
            "/topics",
            "application/json",
            r#"{"topic":"t","data":1}{}"#,
            400,
        ),
        (
            "/topics",
            "application/x-www-form-urlencoded",
            "data=x",
            400,
        ),
        (
            "/topics",
            "application/x-www-form-urlencoded",
            "topic=&data=x",
            400,
        ),
        (
            "/topics",
            "application/x-www-form-urlencoded",
            "topic=t&data=x&type=%0A",
            400,
        ),
        // Types of the hub's own events, such as `hub.join`.
        ("/topics/t?event=hub.join", "application/json", "{}", 400),
        (
            "/topics",
            "application/json",
            r#"[{"topic":"t","data":1},{"topic":"t","event":"hub.members","data":{}}]"#,
            400,
        ),
        (
            "/topics",
            "application/x-www-form-urlencoded",
            "topic=t&data=x&type=hub.leave",
            400,
        ),
    ] {
        let response = server.post(path, content_type, body).send().await.unwrap();
        assert_eq!(response.status(), status, "{path} {content_type} {body}");
        let detail = problem(response, status).await;
        assert!(!detail.is_empty(), "{path} {content_type} {body}");
    }
    for key in ["", r#""""#, "é", &"k".repeat(257)] {
        let request = server.post("/topics/t", "text/plain", "x");
        let key = HeaderValue::from_bytes(key.as_bytes()).unwrap();
        let response = request.header("idempotency-key", key).send().await.unwrap();
        problem(response, 400).await;
    }
    assert_eq!(server.hub.counts().published, 0);
    assert_eq!(server.hub.counts().topics, 0);
}

#[tokio::test]
async fn other_methods_are_refused() {
    let server = PublishServer::open().await;
    let url = server.server.url("/topics/t");
    let response = Client::new().get(&url).send().await.unwrap();
    assert_eq!(response.headers()["allow"], "POST, OPTIONS");
    problem(response, 405).await;
    let options = Client::new()
        .request(http::Method::OPTIONS, &url)
        .send()
        .await
        .unwrap();
    assert_eq!(
        (options.status().as_u16(), &options.headers()["allow"]),
        (204, &HeaderValue::from_static("POST, OPTIONS"))
    );
    let unsupported = server
        .post("/topics/", "text/csv", "x")
        .send()
        .await
        .unwrap();
    assert_eq!(
        unsupported.headers()["accept-post"],
        "application/json, application/x-www-form-urlencoded"
    );
    problem(unsupported, 415).await;
}

#[tokio::test(start_paused = true)]
async fn slow_body_is_refused_in_time() {
    use http_body_util::{BodyExt, StreamBody};
    use tower::ServiceExt;

    let hub = Hub::new();
    let publisher = hub.publisher().without_authorization();
    let polled = Arc::new(Mutex::new(0));
    let count = polled.clone();
    let endless = futures_util::stream::poll_fn(move |_| {
        *count.lock().unwrap() += 1;
        std::task::Poll::<Option<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>>::Pending
    });
    let request = http::Request::post("/t")
        .body(StreamBody::new(endless))
        .unwrap();
    let response = publisher.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 408);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"title":"Request Timeout","status":408}"#);
    assert!(*polled.lock().unwrap() > 0);
    assert_eq!(hub.counts().published, 0);
}
