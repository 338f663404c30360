//! "Publication": the form, the bytes of an update, and what is refused.

use reqwest::Client;

use super::{BOOK, MercureServer, challenge, token};

/// "Publication": every field of the form, and the bytes of the event.
#[tokio::test]
async fn update_has_fields_of_its_form() {
    let server = MercureServer::start();
    let mut stream = server.subscribe(&[("match", BOOK)], None).await;
    let own_id = "https://example.com/ids/1?x=\"y\"";
    let id = server
        .publish(&[
            ("topic", BOOK),
            ("data", "two\nlines"),
            ("id", own_id),
            ("type", "new book"),
            ("retry", "1500"),
        ])
        .await;
    assert_eq!(id, own_id);
    assert_eq!(
        stream.read_until("lines").await,
        format!("retry: 1500\nevent: new book\nid: {id}\ndata: two\ndata: lines\n\n")
    );
    // Without data, and without an id: the hub makes an IRI.
    let id = server.publish(&[("topic", BOOK)]).await;
    assert!(id.starts_with("urn:uuid:"));
    assert_eq!(stream.read_until(&id).await, format!("id: {id}\ndata:\n\n"));
    // Ids that mean something else, or that no header can carry, are replaced.
    for replaced in ["earliest", "~finished", "two words"] {
        let id = server.publish(&[("topic", BOOK), ("id", replaced)]).await;
        assert!(id.starts_with("urn:uuid:"), "{id}");
    }
}

/// "Publication", "Error Responses": what a hub must refuse.
#[tokio::test]
async fn bad_publications_are_refused() {
    let server = MercureServer::start();
    let all = token(&["publish"], &["*"]);
    let long = "x".repeat(2000);
    let forms: [(u16, &[(&str, &str)]); 13] = [
        (400, &[("data", "x")]),
        (400, &[("topic", "a"), ("topic", "b")]),
        (400, &[("topic", "a\nb")]),
        (400, &[("topic", "a\u{85}b")]),
        (400, &[("topic", "a"), ("id", "#1")]),
        (400, &[("topic", "a"), ("id", "a\nb")]),
        (400, &[("topic", "a"), ("type", "a\nb")]),
        (400, &[("topic", "a"), ("retry", "1s")]),
        (413, &[("topic", &long)]),
        (403, &[("topic", "/.well-known/mercure")]),
        (
            403,
            &[(
                "topic",
                "https://x.example/a/../.well-known/mercure/subscriptions/x",
            )],
        ),
        (403, &[("topic", "subscriptions/../mercure/x")]),
        (403, &[("topic", "/.well-known/%6Dercure/x")]),
    ];
    for (status, form) in forms {
        let response = server.post(form).bearer_auth(&all).send().await.unwrap();
        assert_eq!(response.status(), status, "{form:?}");
        match status {
            400 => assert_eq!(challenge(&response), "Bearer error=\"invalid_request\""),
            403 => assert_eq!(challenge(&response), "Bearer error=\"insufficient_scope\""),
            _ => {}
        }
    }
    let huge = "x".repeat(2 << 20);
    let request = server.post(&[("topic", "a"), ("data", &huge)]);
    let response = request.bearer_auth(&all).send().await.unwrap();
    assert_eq!(response.status(), 413);
    for body in ["topic=%ff", "topic=a&data=%c3%28"] {
        let request = server.post(&[]).body(body).bearer_auth(&all);
        assert_eq!(request.send().await.unwrap().status(), 400, "{body}");
    }
    let request = Client::new().post(server.url(&[])).bearer_auth(&all);
    let request = request.header("content-type", "application/json");
    assert_eq!(request.body("{}").send().await.unwrap().status(), 400);

    let one = token(&["publish"], &[BOOK]);
    let request = server.post(&[("topic", BOOK)]).bearer_auth(&one);
    assert_eq!(request.send().await.unwrap().status(), 200);
    let reader = token(&["subscribe"], &["*"]);
    for (token, topic) in [(&one, "https://example.com/books/2"), (&reader, BOOK)] {
        let request = server.post(&[("topic", topic)]).bearer_auth(token);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 403);
        assert_eq!(challenge(&response), "Bearer error=\"insufficient_scope\"");
    }
}
