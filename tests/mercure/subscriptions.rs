//! "Subscription", "Reconnection" and "Active Subscriptions": what subscribers get.

use reqwest::Client;
use serde_json::{Value, json};

use super::{BOOK, EventStream, MercureServer, challenge, claims, sign, token};

/// "Subscription", "Matcher Types": the public updates of the topics that a matcher selects.
#[tokio::test]
async fn matchers_select_updates() {
    const TOPICS: [&str; 6] = [
        BOOK,
        "https://example.com/books/1/2",
        "a b",
        "/local/7",
        " x ",
        "A B",
    ];
    let server = MercureServer::start();
    let number = ("matchURLPattern", "https://*.com/books/(\\d+)");
    type Query<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Query<'_>, &[&str]); 6] = [
        (&[("match", BOOK)], &[BOOK]),
        (&[("matchExact", "a b")], &["a b"]),
        (&[("match", "*")], &TOPICS),
        (
            &[("matchURLPattern", "https://example.com/books/:id")],
            &[BOOK],
        ),
        (&[("matchURLPattern", "/local/:id")], &["/local/7"]),
        (&[("match", " x "), number], &[BOOK, " x "]),
    ];
    let mut streams = Vec::new();
    for (query, expected) in cases {
        let mut query = query.to_vec();
        query.push(("match", "last"));
        streams.push((server.subscribe(&query, None).await, expected));
    }
    for topic in TOPICS {
        server.publish(&[("topic", topic), ("data", topic)]).await;
    }
    server.publish(&[("topic", "last"), ("data", "end")]).await;
    for (mut stream, expected) in streams {
        let text = stream.read_until("data: end").await;
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let data: Vec<_> = data.collect();
        assert_eq!(data, [expected, &["end"]].concat());
    }
}

/// "Subscription": the reserved names of parameters, and the limits of matchers.
#[tokio::test]
async fn bad_subscriptions_are_refused() {
    let server = MercureServer::start();
    let long = "x".repeat(600);
    let many: Vec<_> = (0..65).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(|topic| ("match", topic.as_str())).collect();
    let huge_pattern = "/(a{1000}{1000})";
    let queries: [&[(&str, &str)]; 12] = [
        &[],
        &[("topic", "a")],
        &[("match", "a"), ("matchurlpattern", "b")],
        &[("match", "a"), ("matchRegexp", "b")],
        &[("match", "a"), ("MATCH", "b")],
        &[("match", "a"), ("matching", "b")],
        &[("match", "a\nb")],
        &[("match", &long)],
        &[("matchURLPattern", "https://example.com/(")],
        &[("matchURLPattern", huge_pattern)],
        &[("match", "")],
        &many,
    ];
    for query in queries {
        let response = server.get(query).send().await.unwrap();
        assert_eq!(response.status(), 400, "{query:?}");
        assert_eq!(challenge(&response), "Bearer error=\"invalid_request\"");
    }
    let url = format!("{}?match=%ff", server.url(&[]).trim_end_matches('?'));
    assert_eq!(reqwest::get(url).await.unwrap().status(), 400);
    let request = Client::new().put(server.url(&[]));
    assert_eq!(request.send().await.unwrap().status(), 405);
}

/// "Reconnection, State Reconciliation, and Event Sourcing": what is replayed, and the response header.
#[tokio::test]
async fn client_resumes_after_last_event_id() {
    let server = MercureServer::start();
    let reader = token(&["subscribe"], &["secret"]);
    let mut ids = Vec::new();
    for (topic, data) in [("a", "1"), ("b", "2"), ("a", "3")] {
        ids.push(server.publish(&[("topic", topic), ("data", data)]).await);
    }
    let form = [("topic", "secret"), ("private", "on"), ("data", "4")];
    ids.push(server.publish(&form).await);
    ids.push(server.publish(&[("topic", "a"), ("data", "5")]).await);
    let query = [("match", "a"), ("match", "secret")];
    let cases = [
        (ids[0].as_str(), None, ids[0].as_str(), "35"),
        // An event of another topic is a valid cursor.
        (&ids[1], None, &ids[1], "35"),
        ("earliest", None, "earliest", "135"),
        ("urn:x:unknown", None, "earliest", "135"),
        ("two words", None, "earliest", "135"),
        // The id of a private update is not confirmed to clients that may not read the update.
        (&ids[3], None, "earliest", "5"),
        (&ids[3], Some(reader.as_str()), &ids[3], "5"),
        (&ids[2], Some(&reader), &ids[2], "45"),
    ];
    for (cursor, token, expected_id, expected) in cases {
        for is_header in [true, false] {
            let mut query = query.to_vec();
            let request = match is_header {
                true => {
                    // The header takes precedence.
                    query.push(("lastEventID", "x"));
                    server.get(&query).header("last-event-id", cursor)
                }
                false => {
                    query.push(("lastEventID", cursor));
                    server.get(&query)
                }
            };
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            let mut stream = EventStream::open(request).await;
            assert_eq!(stream.last_event_id(), Some(expected_id), "{cursor}");
            let text = stream.read_until("data: 5").await;
            let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
            assert_eq!(data.collect::<String>(), expected, "{cursor}");
            assert_eq!(text.matches("id: ").count(), expected.len(), "{text}");
        }
    }
    let stream = server.subscribe(&query, None).await;
    assert_eq!(stream.last_event_id(), None);
    // An empty id is that of a client that has no event yet.
    let empty = [("match", "a"), ("lastEventID", "")];
    let mut stream = server.subscribe(&empty, None).await;
    assert_eq!(stream.last_event_id(), Some("earliest"));
    server.publish(&[("topic", "a"), ("data", "6")]).await;
    let text = stream.read_until("data: 6").await;
    assert_eq!(text.matches("data: ").count(), 1, "{text}");
}

/// "Subscription Events", "Subscription API", "Payloads".
#[tokio::test]
async fn subscriptions_are_events_and_documents() {
    let server = MercureServer::start();
    let api = "/.well-known/mercure/subscriptions";
    let watcher = token(&["subscribe"], &["*"]);
    let empty = server.get_path(api, Some(&watcher)).await;
    assert_eq!(empty.headers()["content-type"], "application/ld+json");
    let empty: Value = serde_json::from_str(&empty.text().await.unwrap()).unwrap();
    assert_eq!(empty["lastEventID"], "earliest");
    assert_eq!(empty["subscriptions"], json!([]));
    let query = [(
        "matchURLPattern",
        "/.well-known/mercure/subscriptions/:type/:match/:subscriber",
    )];
    let mut events = server.subscribe(&query, Some(&watcher)).await;
    let mut anonymous = server.subscribe(&[query[0], ("match", "last")], None).await;

    let pattern = "https://example.com/books/:id";
    let mut subscriber = claims(json!([
        { "type": "mercure", "actions": ["subscribe"], "topics": [{ "match": pattern, "matchType": "URLPattern" }], "payload": { "a": 1 } },
        { "type": "mercure", "actions": ["subscribe"], "topics": [{ "match": "*" }], "payload": { "b": 2 } },
    ]));
    subscriber["sub"] = json!("urn:user:ada/1");
    let subscriber = sign(&subscriber);
    let query = [("matchURLPattern", pattern), ("match", "plain")];
    let first = server.subscribe(&query, Some(&subscriber)).await;
    let second = server.subscribe(&query[..1], Some(&subscriber)).await;

    let path = |kind: &str, text: &str| format!("{api}/{kind}/{text}/urn%3Auser%3Aada%2F1");
    let pattern_path = path("URLPattern", "https%3A%2F%2Fexample.com%2Fbooks%2F%3Aid");
    let document = |id: &str, kind: &str, text: &str, payload: Value, active: bool| {
        json!({
            "id": id, "type": "Subscription", "matchType": kind, "match": text,
            "subscriber": "urn:user:ada/1", "active": active, "payload": payload,
        })
    };
    let of_pattern = |active| {
        document(
            &pattern_path,
            "URLPattern",
            pattern,
            json!({ "a": 1 }),
            active,
        )
    };
    let of_plain = |active| {
        document(
            &path("Exact", "plain"),
            "Exact",
            "plain",
            json!({ "b": 2 }),
            active,
        )
    };
    let read_events = |text: String| {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut documents: Vec<Value> = data
            .map(|data| serde_json::from_str(data).unwrap())
            .collect();
        for document in &mut documents {
            let context = document.as_object_mut().unwrap().remove("@context");
            assert_eq!(context, Some(json!("https://mercure.rocks/")));
        }
        documents
    };
    let mut created = Vec::new();
    while !created
        .iter()
        .any(|document: &Value| document["match"] == "plain")
    {
        created.extend(read_events(events.read_until("data: ").await));
    }
    // The watcher's own subscription, and the anonymous one's, come first or are left out.
    created.retain(|document| document["subscriber"] == "urn:user:ada/1");
    assert_eq!(created, [of_pattern(true), of_plain(true)]);

    let get = async |path: &str| {
        let response = server.get_path(path, Some(&watcher)).await;
        assert_eq!(response.status(), 200, "{path}");
        let tag = response.headers()["etag"].clone();
        let mut document: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let fields = document.as_object_mut().unwrap();
        assert_eq!(
            fields.remove("@context"),
            Some(json!("https://mercure.rocks/"))
        );
        let last = fields.remove("lastEventID").unwrap();
        assert_eq!(tag.to_str().unwrap(), last.to_string());
        document
    };
    assert_eq!(get(&pattern_path).await, of_pattern(true));
    let collection = pattern_path.rsplit_once('/').unwrap().0;
    assert_eq!(
        get(collection).await,
        json!({ "id": collection, "type": "Subscriptions", "subscriptions": [of_pattern(true)] })
    );
    // Two subscriptions of the subscriber, one of the watcher, two of the anonymous client.
    let all = get(api).await["subscriptions"].as_array().unwrap().len();
    assert_eq!(all, 5);

    // A subscription ends with its last stream.
    drop(first);
    let mut ended = Vec::new();
    while ended.is_empty() {
        ended = read_events(events.read_until("data: ").await);
    }
    assert_eq!(ended, [of_plain(false)]);
    drop(second);
    let ended = read_events(events.read_until("data: ").await);
    assert_eq!(ended, [of_pattern(false)]);
    assert_eq!(
        server
            .get_path(&pattern_path, Some(&watcher))
            .await
            .status(),
        404
    );

    // The events are private, and the API needs a grant of its path.
    let last = [("topic", "last"), ("data", "end")];
    server.publish(&last).await;
    let text = anonymous.read_until("data: end").await;
    assert_eq!(text.matches("data: ").count(), 1, "{text}");
    assert_eq!(server.get_path(api, None).await.status(), 401);
    let own = token(&["subscribe"], &[&pattern_path]);
    assert_eq!(server.get_path(api, Some(&own)).await.status(), 403);
    assert_eq!(
        server.get_path(&pattern_path, Some(&own)).await.status(),
        404
    );
    let publisher = token(&["publish"], &["*"]);
    assert_eq!(server.get_path(api, Some(&publisher)).await.status(), 403);
}
