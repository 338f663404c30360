//! Clients of revision 7: topic selectors, alternate topics, and tokens with the claim `mercure`. The text is that of `draft-dunglas-mercure-07`.

use std::{process::Stdio, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use testkit::{TEST_TIMEOUT, programs};
use tokio::time::timeout;

use super::{BOOK, EventStream, KEY, MercureServer, now, sign_with, token};

const TEMPLATE: &str = "https://example.com/books/{id}";

fn start() -> MercureServer {
    MercureServer::start_with_env(&[("MERCURE_COMPATIBILITY", "7")])
}

/// Signs a token as clients of revision 7 make them.
fn old_token(mercure: Value) -> String {
    sign_old(&json!({ "mercure": mercure }))
}

fn sign_old(claims: &Value) -> String {
    let key = EncodingKey::from_secret(KEY.as_bytes());
    sign_with(claims, Some("JWT"), Algorithm::HS256, &key)
}

impl MercureServer {
    async fn post_status(&self, form: &[(&str, &str)], token: &str) -> u16 {
        let response = self.post(form).bearer_auth(token).send().await.unwrap();
        response.status().as_u16()
    }
}

/// What clients of revision 7 send is refused unless the hub is configured for it.
#[tokio::test]
async fn revision_7_is_off_by_default() {
    let server = MercureServer::start();
    let publisher = old_token(json!({ "publish": ["*"] }));
    assert_eq!(
        server.post_status(&[("topic", BOOK)], &publisher).await,
        401
    );
    let response = server.get(&[("topic", BOOK)]).send().await.unwrap();
    assert_eq!(response.status(), 400);
    let two = [("topic", BOOK), ("topic", "a")];
    let publisher = token(&["publish"], &["*"]);
    assert_eq!(server.post_status(&two, &publisher).await, 400);
}

/// "Topic Selectors", "Subscription", "Publication".
#[tokio::test]
async fn selectors_and_alternate_topics_select_updates() {
    let server = start();
    let publisher = old_token(json!({ "publish": ["*"] }));
    let publish = async |topics: &[&str], data: &str| {
        let topics = topics.iter().map(|topic| ("topic", *topic));
        let form: Vec<_> = topics.chain([("data", data)]).collect();
        assert_eq!(server.post_status(&form, &publisher).await, 200);
    };
    let open = async |selectors: &[&str]| {
        let query = selectors.iter().map(|selector| ("topic", *selector));
        let query: Vec<_> = query.collect();
        server.subscribe(&query, None).await
    };
    let mut streams = [
        (open(&[BOOK]).await, vec!["1", "3"]),
        (open(&[TEMPLATE]).await, vec!["1", "2", "3"]),
        (open(&["*"]).await, vec!["1", "2", "3", "4", "5", "6"]),
        (
            open(&["https://example.com{/path*}"]).await,
            vec!["1", "2", "3", "4"],
        ),
        (
            open(&["https://example.com/{+path}{?page}"]).await,
            vec!["1", "2", "3", "4", "5"],
        ),
        (open(&["urn:a", TEMPLATE]).await, vec!["1", "2", "3", "6"]),
    ];
    publish(&[BOOK], "1").await;
    publish(&["https://example.com/books/2"], "2").await;
    publish(&["https://example.com/books/3", BOOK], "3").await;
    publish(&["https://example.com/books/1/pages"], "4").await;
    publish(&["https://example.com/books?page=2"], "5").await;
    publish(&["urn:a", "urn:b"], "6").await;
    publish(&["urn:a", BOOK, "https://example.com/books?page=2"], "end").await;
    for (stream, expected) in &mut streams {
        let text = stream.read_until("data: end").await;
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let data: Vec<_> = data.collect();
        let (last, data) = data.split_last().unwrap();
        assert_eq!((*last, data), ("end", &expected[..]));
    }
    // Templates of revision 7 are no matchers of revision 8, and bad ones are refused.
    for selector in [
        "https://example.com/{",
        "{}",
        "{a b}",
        "}{a}",
        &"{a}".repeat(400),
    ] {
        let response = server.get(&[("topic", selector)]).send().await.unwrap();
        assert_eq!(response.status(), 400, "{selector:.40}");
    }
}

/// "Authorization": the claim `mercure` of publishers and subscribers.
#[tokio::test]
async fn claim_mercure_allows_topics() {
    let server = start();
    let publisher = old_token(json!({ "publish": [TEMPLATE, "urn:a"] }));
    for (topics, status) in [
        (vec![BOOK], 200),
        (vec![BOOK, "urn:a"], 200),
        (vec![BOOK, "urn:b"], 403),
        (vec!["https://example.com/books/1/pages"], 403),
    ] {
        let form: Vec<_> = topics.iter().map(|topic| ("topic", *topic)).collect();
        assert_eq!(
            server.post_status(&form, &publisher).await,
            status,
            "{topics:?}"
        );
    }
    for (claims, status) in [
        (
            json!({ "mercure": { "publish": ["*"] }, "exp": now() + 60 }),
            200,
        ),
        (
            json!({ "mercure": { "publish": ["*"] }, "exp": now() - 60 }),
            401,
        ),
        (json!({ "mercure": { "publish": ["{"] } }), 401),
        (json!({ "mercure": { "publish": "*" } }), 401),
        (json!({ "mercure": { "publish": null } }), 403),
        (json!({ "mercure": { "publish": [] } }), 403),
        (json!({ "mercure": { "subscribe": ["*"] } }), 403),
        (json!({}), 401),
    ] {
        let response = server
            .post_status(&[("topic", BOOK)], &sign_old(&claims))
            .await;
        assert_eq!(response, status, "{claims}");
    }
    let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.e30.";
    assert_eq!(server.post_status(&[("topic", BOOK)], unsigned).await, 401);

    let subscriber = old_token(json!({ "subscribe": [TEMPLATE] }));
    let mut stream = server.subscribe(&[("topic", "*")], Some(&subscriber)).await;
    let cookie = format!("mercureAuthorization={subscriber}");
    let request = server.get(&[("topic", "*")]).header("cookie", cookie);
    let mut with_cookie = EventStream::open(request).await;
    let mut without = server.subscribe(&[("topic", "*")], None).await;
    let publisher = old_token(json!({ "publish": ["*"] }));
    for (topic, data, private) in [(BOOK, "1", "on"), ("urn:a", "2", "on"), (BOOK, "end", "")] {
        let mut form = vec![("topic", topic), ("data", data)];
        form.extend((private == "on").then_some(("private", "on")));
        assert_eq!(server.post_status(&form, &publisher).await, 200);
    }
    for (stream, private_data) in [
        (&mut stream, true),
        (&mut with_cookie, true),
        (&mut without, false),
    ] {
        let text = stream.read_until("data: end").await;
        assert_eq!(text.contains("data: 1\n"), private_data);
        assert!(!text.contains("data: 2\n"));
    }
}

/// A browser's `EventSource`, as npm has it, with a template and a private update.
#[tokio::test]
async fn event_source_reads_private_update_of_template() {
    let server = start();
    let subscriber = old_token(json!({ "subscribe": ["*"], "payload": { "user": 7 } }));
    let url = server.url(&[("topic", TEMPLATE), ("authorization", &subscriber)]);
    let mut script = programs::node_script("eventsource.mjs", "eventsource");
    let script = script.args([&url, "", "message"]).stdout(Stdio::piped());
    let mut client = script.spawn().unwrap();
    let lines = std::io::BufReader::new(client.stdout.take().unwrap());
    let api = "/.well-known/mercure/subscriptions";
    let is_subscribed = async {
        let subscriptions = async || {
            let response = server.get_path(api, Some(&subscriber)).await;
            response.text().await.unwrap()
        };
        while !subscriptions().await.contains(r#""payload":{"user":7}"#) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, is_subscribed).await.unwrap();
    let publisher = old_token(json!({ "publish": ["*"] }));
    let form = [
        ("topic", BOOK),
        ("private", "on"),
        ("id", "urn:x:1"),
        ("data", "hello"),
    ];
    assert_eq!(server.post_status(&form, &publisher).await, 200);
    let read = tokio::task::spawn_blocking(|| {
        let mut lines = std::io::BufRead::lines(lines).map_while(Result::ok);
        lines.next()
    });
    let line = timeout(TEST_TIMEOUT, read).await.unwrap().unwrap().unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        event,
        json!({ "type": "message", "data": "hello", "id": "urn:x:1" })
    );
}
