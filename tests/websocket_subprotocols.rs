//! Subprotocols: the agreed one in the subscription, and which of the offered ones the transport or the source selects.

use futures_util::stream;
use http::StatusCode;
use testkit::{HttpConnection, HttpVersion, TestServer, websocket::connect};
use tower_push::{
    Event,
    source::{Rejection, Subscription, source_fn},
    transport::{WebSocket, websocket::MessageFormat},
};

const HEADER: &str = "sec-websocket-protocol";

/// Serves a source that sends the agreed subprotocol as text.
async fn serve_subprotocol(transport: WebSocket) -> TestServer {
    let source = source_fn(async |subscription: Subscription| {
        let agreed = subscription.subprotocol().unwrap_or("none").to_owned();
        Ok(stream::iter([Event::text(agreed)]))
    });
    TestServer::start(tower_push::service(source).transport(transport)).await
}

/// Opens a WebSocket with these offers. Returns the agreed subprotocol of the response, and the first message.
async fn open(server: &TestServer, version: HttpVersion, offers: &str) -> (Option<String>, String) {
    let mut socket = connect(server, version, "/", &[(HEADER, offers)]).await;
    let message = socket.next_frame().await.unwrap().payload;
    let agreed = socket.header(HEADER).map(str::to_owned);
    (agreed, String::from_utf8(message).unwrap())
}

#[tokio::test]
async fn agreed_subprotocol_is_in_the_subscription() {
    let transport = WebSocket::new().subprotocol("v2", MessageFormat::Plain);
    let server = serve_subprotocol(transport).await;
    for version in HttpVersion::ALL {
        for (offers, agreed, message) in [
            ("", None, "none"),
            ("unknown", None, "none"),
            ("unknown, v2, json.tower-push", Some("v2"), "v2"),
            (
                "json.tower-push, v2",
                Some("json.tower-push"),
                r#"{"data":"json.tower-push"}"#,
            ),
        ] {
            let expected = (agreed.map(str::to_owned), message.to_owned());
            assert_eq!(open(&server, version, offers).await, expected, "{offers}");
        }
    }
}

#[tokio::test]
async fn required_subprotocols_replace_the_default_ones() {
    let required = [("v1", MessageFormat::Json), ("v2", MessageFormat::Plain)];
    let server = serve_subprotocol(WebSocket::new().require_subprotocols(required)).await;
    for version in HttpVersion::ALL {
        let opened = open(&server, version, "v3, v2, v1").await;
        assert_eq!(opened, (Some("v2".to_owned()), "v2".to_owned()));
        for offers in ["", "v3", "json.tower-push", "V1"] {
            let mut client = HttpConnection::connect(&server, version).await;
            let refused = client.open_websocket("/", &[(HEADER, offers)]).await;
            let refused = refused.expect_err("refused");
            assert_eq!(refused.head.status, 400, "{offers}");
            let message = String::from_utf8(refused.read_to_end().await.0).unwrap();
            assert!(message.ends_with("name one of: v1, v2"), "{message}");
        }
    }
}

#[tokio::test]
async fn source_selects_among_offered_subprotocols() {
    let source = source_fn(async |subscription: Subscription| {
        let token = {
            let mut offered = subscription.offered_subprotocols();
            let bearer = offered.find(|name| *name == "bearer");
            bearer.and_then(|_| offered.next()).map(str::to_owned)
        };
        let Some(token) = token.filter(|token| token.starts_with("valid")) else {
            return Err(Rejection::new(StatusCode::UNAUTHORIZED));
        };
        assert!(!subscription.select_subprotocol("not-offered"));
        assert!(
            subscription.select_subprotocol("ws+meta.nchan")
                || subscription.select_subprotocol("bearer")
        );
        Ok(stream::iter([Event::text(token)]))
    });
    let server = TestServer::start(tower_push::service(source).transport(WebSocket::new())).await;
    for version in HttpVersion::ALL {
        let opened = open(&server, version, "bearer, valid.a_b-c").await;
        assert_eq!(
            opened,
            (Some("bearer".to_owned()), "valid.a_b-c".to_owned())
        );
        // The format is that of the selected subprotocol, although the client prefers another one.
        let offers = "json.tower-push, ws+meta.nchan, bearer, valid";
        let (agreed, message) = open(&server, version, offers).await;
        assert_eq!(agreed.as_deref(), Some("ws+meta.nchan"));
        assert!(message.ends_with("\n\nvalid"), "{message}");
        let mut client = HttpConnection::connect(&server, version).await;
        let offers = [(HEADER, "bearer, wrong")];
        let refused = client.open_websocket("/", &offers).await;
        assert_eq!(refused.expect_err("refused").head.status, 401);
    }
}
