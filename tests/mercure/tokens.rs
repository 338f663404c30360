//! "Authorization": tokens, where requests have them, and what they allow.

use std::{path::Path, process::Command};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use testkit::TEST_TIMEOUT;
use tokio::time::timeout;

use super::{
    BOOK, EventStream, HUB, KEY, MercureServer, challenge, claims, details, now, sign, sign_with,
    token,
};

/// "Token Validation", "Authorization Details": tokens that must not be accepted.
#[tokio::test]
async fn bad_tokens_are_refused() {
    let server = MercureServer::start();
    let good = claims(details(&["publish", "subscribe"], &["*"]));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = good.clone();
        change(&mut claims);
        sign(&claims)
    };
    let with_details = |details: Value| sign(&claims(details));
    let key = EncodingKey::from_secret(KEY.as_bytes());
    let topics = json!([{ "match": "*" }]);
    let actions = json!(["publish"]);
    // An extension that a verifier must know (RFC 7515 §4.1.11).
    let mut extended = Header::new(Algorithm::HS256);
    extended.typ = Some("at+jwt".to_owned());
    extended.crit = Some(vec!["x".to_owned()]);
    let with_extension = jsonwebtoken::encode(&extended, &good, &key).unwrap();
    let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.e30.";
    let tokens = [
        sign_with(&good, None, Algorithm::HS256, &key),
        sign_with(&good, Some("JWT"), Algorithm::HS256, &key),
        sign_with(&good, Some("at+jwt"), Algorithm::HS384, &key),
        sign_with(
            &good,
            Some("at+jwt"),
            Algorithm::HS256,
            &EncodingKey::from_secret(b"x"),
        ),
        with_extension,
        unsigned.to_owned(),
        "x".to_owned(),
        "x".repeat(40_000),
        with(&|claims| claims["exp"] = json!(now() - 1)),
        with(&|claims| claims["exp"] = json!("never")),
        with(&|claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
        with(&|claims| claims["nbf"] = json!(now() + 3600)),
        with(&|claims| claims["nbf"] = json!("later")),
        with(&|claims| claims["aud"] = json!("https://other.example.com/.well-known/mercure")),
        with(&|claims| drop(claims.as_object_mut().unwrap().remove("aud"))),
        with_details(json!({})),
        with_details(json!(["mercure"])),
        with_details(json!([{ "type": "mercure", "topics": topics }])),
        with_details(json!([{ "type": "mercure", "actions": [], "topics": topics }])),
        with_details(json!([{ "type": "mercure", "actions": ["read"], "topics": topics }])),
        with_details(json!([{ "type": "mercure", "actions": actions }])),
        with_details(json!([{ "type": "mercure", "actions": actions, "topics": [] }])),
        with_details(json!([{ "type": "mercure", "actions": actions, "topics": ["*"] }])),
        with_details(json!([
            { "type": "mercure", "actions": actions, "topics": topics },
            { "type": "mercure", "actions": actions, "topics": [{ "match": "a", "matchType": "exact" }] },
        ])),
        with_details(
            json!([{ "type": "mercure", "actions": actions, "topics": [{ "match": "/(", "matchType": "URLPattern" }] }]),
        ),
        with_details(
            json!([{ "type": "mercure", "actions": actions, "topics": topics, "payload": 1 }]),
        ),
    ];
    for token in &tokens {
        for request in [
            server.get(&[("match", "a")]),
            server.post(&[("topic", "a")]),
        ] {
            let response = request.bearer_auth(token).send().await.unwrap();
            assert_eq!(response.status(), 401, "{token}");
            assert_eq!(challenge(&response), "Bearer error=\"invalid_token\"");
        }
    }
    // No token at all, where one is needed.
    let response = server.post(&[("topic", "a")]).send().await.unwrap();
    assert_eq!(response.status(), 401);
    let metadata =
        "https://hub.example.com/.well-known/oauth-protected-resource/.well-known/mercure";
    assert_eq!(
        challenge(&response),
        format!("Bearer resource_metadata=\"{metadata}\"")
    );
    // An audience in a list, and details of other types, are valid.
    let several = json!([{ "type": "other" }, good["authorization_details"][0]]);
    for token in [
        with(&|claims| claims["aud"] = json!(["x", HUB])),
        with(&|claims| claims["nbf"] = json!(now() - 1)),
        with_details(several),
    ] {
        let request = server.post(&[("topic", "a")]).bearer_auth(token);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
}

/// "Token Validation": an asymmetric key, whose public half the hub has.
#[tokio::test]
async fn hub_verifies_rs256() {
    let private = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mercure-rsa.pem");
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).arg(&private).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    openssl(&["genrsa", "-out"]);
    let public = openssl(&["rsa", "-pubout", "-in"]);
    let variables = [
        ("MERCURE_PUBLISHER_JWT_KEY", public.as_str()),
        ("MERCURE_PUBLISHER_JWT_ALG", "RS256"),
    ];
    let server = MercureServer::start_with_env(&variables);
    let good = claims(details(&["publish", "subscribe"], &["*"]));
    let key = EncodingKey::from_rsa_pem(&std::fs::read(&private).unwrap()).unwrap();
    let signed = sign_with(&good, Some("at+jwt"), Algorithm::RS256, &key);
    // The public key is no secret of HS256.
    let confused = EncodingKey::from_secret(public.as_bytes());
    let confused = sign_with(&good, Some("at+jwt"), Algorithm::HS256, &confused);
    for (token, status) in [(&signed, 200), (&confused, 401), (&sign(&good), 401)] {
        let request = server.post(&[("topic", "a")]).bearer_auth(token);
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    // Each role has its own key.
    for (token, status) in [(&signed, 401), (&sign(&good), 200)] {
        let request = server.get(&[("match", "a")]).bearer_auth(token);
        assert_eq!(request.send().await.unwrap().status(), status);
    }
}

/// "Presenting the Access Token": header, then query, then cookie; and cookies of foreign pages.
#[tokio::test]
async fn token_places_have_an_order() {
    let server = MercureServer::start();
    let good = token(&["publish"], &["*"]);
    let publish = |query: &[(&str, &str)], headers: &[(&str, &str)]| {
        let mut request = server.post(&[("topic", "a")]);
        let url = server.url(query);
        request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let (client, built) = request.build_split();
        let mut built = built.unwrap();
        *built.url_mut() = url.parse().unwrap();
        async move { client.execute(built).await.unwrap().status().as_u16() }
    };
    let bearer = format!("Bearer {good}");
    let cookie = format!("a=b; mercureAccessToken={good}");
    let origin = ("origin", server.address.as_str());
    let in_query = [("access_token", good.as_str())];
    let bad_query = [("access_token", "x")];
    assert_eq!(
        publish(
            &bad_query,
            &[
                ("authorization", &bearer),
                ("cookie", "mercureAccessToken=x")
            ]
        )
        .await,
        200
    );
    assert_eq!(
        publish(&in_query, &[("authorization", "Bearer x")]).await,
        401
    );
    assert_eq!(
        publish(&in_query, &[("authorization", "Basic eDp5")]).await,
        401
    );
    assert_eq!(
        publish(&in_query, &[("cookie", "mercureAccessToken=x")]).await,
        200
    );
    assert_eq!(
        publish(&bad_query, &[("cookie", &cookie), origin]).await,
        401
    );
    assert_eq!(publish(&[in_query[0], in_query[0]], &[]).await, 400);
    assert_eq!(publish(&[], &[("cookie", &cookie), origin]).await, 200);
    assert_eq!(publish(&[], &[("cookie", &cookie)]).await, 403);
    assert_eq!(
        publish(
            &[],
            &[("cookie", &cookie), ("origin", "https://evil.example")]
        )
        .await,
        403
    );

    let query = [("match", "a"), in_query[0]];
    let stream = EventStream::open(server.get(&query)).await;
    let cache_control = stream.response.headers()["cache-control"].to_str().unwrap();
    assert!(cache_control.contains("private"));
}

/// "Subscribers", "Authorization on Event Replay": who gets private updates, live and from the history.
#[tokio::test]
async fn private_updates_need_a_grant() {
    let server = MercureServer::start();
    let pattern = ("matchURLPattern", "https://example.com/books/:id");
    let end = ("match", "end");
    let both = [pattern, ("match", BOOK), end];
    let grant = token(&["subscribe"], &[BOOK]);
    let other = token(&["subscribe"], &["https://example.com/books/2"]);
    let publisher = token(&["publish"], &["*"]);
    let mut streams = Vec::new();
    for query in [&both[..], &both[..1], &both[1..]] {
        let mut query = query.to_vec();
        query.push(end);
        for (token, is_allowed) in [
            (None, false),
            (Some(&other), false),
            (Some(&publisher), false),
            (Some(&grant), true),
        ] {
            let token = token.map(String::as_str);
            let live = server.subscribe(&query, token).await;
            streams.push((live, query.clone(), token, is_allowed));
        }
    }
    // The presence of the field decides, whatever its value.
    for (private, data) in [("on", "one"), ("false", "two"), ("", "three")] {
        let form = [("topic", BOOK), ("private", private), ("data", data)];
        server.publish(&form).await;
    }
    server.publish(&[("topic", "end"), ("data", "end")]).await;
    for (mut live, query, token, is_allowed) in streams {
        let mut query = query;
        query.push(("lastEventID", "earliest"));
        let mut replay = server.subscribe(&query, token).await;
        for stream in [&mut live, &mut replay] {
            let text = stream.read_until("data: end").await;
            let count = text.matches("data: ").count();
            assert_eq!(count, if is_allowed { 4 } else { 1 }, "{query:?} {text}");
        }
    }
}

/// "Subscribers": a stream ends when its token expires.
#[tokio::test]
async fn stream_ends_with_its_token() {
    let server = MercureServer::start();
    let mut short = claims(details(&["subscribe"], &["*"]));
    short["exp"] = json!(now() + 3);
    let mut stream = server
        .subscribe(&[("match", "a")], Some(&sign(&short)))
        .await;
    let end = async { while stream.response.chunk().await.unwrap().is_some() {} };
    timeout(TEST_TIMEOUT, end).await.expect("the stream ends");
    let request = server.get(&[("match", "a")]).bearer_auth(sign(&short));
    assert_eq!(request.send().await.unwrap().status(), 401);
}
