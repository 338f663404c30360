//! "Discovery", and clients of other projects.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use reqwest::{Client, Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use testkit::{TEST_TIMEOUT, programs};
use tokio::time::timeout;

use super::{BOOK, EventStream, HUB, MercureServer, token};

/// "Discovery", and requests of pages of other origins.
#[tokio::test]
async fn hub_is_discovered() {
    let server = MercureServer::start();
    let link = format!("<{HUB}>; rel=\"mercure\"");
    let home = server.get_path("/", None).await;
    assert_eq!(home.headers()["link"], link);
    let metadata = "/.well-known/oauth-protected-resource/.well-known/mercure";
    let metadata = server.get_path(metadata, None).await.text().await.unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(
        metadata,
        json!({
            "resource": HUB, "bearer_methods_supported": ["header", "query"],
            "mercure_cookie": true, "mercure_version": 8,
        })
    );
    let request = server.get(&[("match", "a"), ("lastEventID", "earliest")]);
    let stream = EventStream::open(request.header("origin", ORIGIN)).await;
    let headers = stream.response.headers();
    assert_eq!(headers["access-control-allow-origin"], "*");
    let exposed = headers["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("last-event-id"));
    assert_eq!(headers["link"], link);
    let allowed = preflight(&server).await;
    assert_eq!(allowed["access-control-allow-origin"], "*");
}

/// Pages of the configured origins send cookies, and the cursor in a header, as clients do that use `fetch`.
#[tokio::test]
async fn page_of_configured_origin_sends_cookies_and_cursor() {
    let variables = [("MERCURE_ORIGINS", ORIGIN)];
    let server = MercureServer::start_with_env(&variables);
    let allowed = preflight(&server).await;
    assert_eq!(allowed["access-control-allow-origin"], ORIGIN);
    assert_eq!(allowed["access-control-allow-credentials"], "true");
    let token = token(&["publish"], &["*"]);
    let cookie = format!("mercureAccessToken={token}");
    for (origin, status) in [(ORIGIN, 200), ("https://evil.example", 403)] {
        let request = server.post(&[("topic", "a")]).header("cookie", &cookie);
        let response = request.header("origin", origin).send().await.unwrap();
        assert_eq!(response.status(), status, "{origin}");
    }
}

const ORIGIN: &str = "https://app.example.com";

/// Asks whether a page of [`ORIGIN`] may send the headers of Mercure's clients. Returns the headers of the answer.
async fn preflight(server: &MercureServer) -> HeaderMap {
    let preflight = Client::new()
        .request(Method::OPTIONS, server.url(&[]))
        .header("origin", ORIGIN)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,last-event-id",
        );
    let response = preflight.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers().clone();
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    for name in ["authorization", "content-type", "last-event-id"] {
        assert!(allowed.contains(name), "{allowed}");
    }
    headers
}

/// A browser's `EventSource`, as npm has it, and curl.
#[tokio::test]
async fn event_source_reads_what_curl_publishes() {
    let server = MercureServer::start();
    let url = server.url(&[("matchURLPattern", "https://example.com/books/:id")]);
    let mut script = programs::node_script("eventsource.mjs", "eventsource");
    let script = script
        .args([&url, "", "message", "review"])
        .stdout(Stdio::piped());
    let mut client = script.spawn().unwrap();
    let lines = std::io::BufReader::new(client.stdout.take().unwrap());
    let watcher = token(&["subscribe"], &["*"]);
    let api = "/.well-known/mercure/subscriptions";
    let is_subscribed = async {
        while !server
            .get_path(api, Some(&watcher))
            .await
            .text()
            .await
            .unwrap()
            .contains("books")
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, is_subscribed).await.unwrap();
    let publish = |arguments: &[&str]| {
        let authorization = format!("Authorization: Bearer {}", token(&["publish"], &["*"]));
        let mut curl = Command::new("curl");
        curl.args(["-sf", "-H", &authorization, "-d"])
            .arg(format!("topic={BOOK}"));
        let output = curl.args(arguments).arg(server.url(&[])).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let first = publish(&["--data-urlencode", "data=two\nlines"]);
    let second = publish(&["-d", "data=good&type=review&id=urn:x:2"]);
    let read = tokio::task::spawn_blocking(|| {
        let lines = std::io::BufRead::lines(lines).map_while(Result::ok);
        let events = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
        events.take(2).collect::<Vec<_>>()
    });
    let events = timeout(TEST_TIMEOUT, read).await.unwrap().unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(
        events,
        [
            json!({ "type": "message", "data": "two\nlines", "id": first }),
            json!({ "type": "review", "data": "good", "id": second }),
        ]
    );
    assert_eq!(second, "urn:x:2");
}
