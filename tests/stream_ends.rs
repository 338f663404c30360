//! A stream that ends tells the client when to reconnect, on every transport.

use std::time::Duration;

use http::StatusCode;
use testkit::{
    HttpVersion, TestServer, body_text, get_request_head,
    websocket::{self, WebSocketConnection},
};
use tower_push::{
    Event, Item, Push, Resumable,
    format::{JsonSeq, Multipart, Ndjson},
    source::{Rejection, Subscription, resumable::RestartPolicy, source_fn},
    transport::{Chunked, LongPoll, Sse, Transport},
};

const RETRY_DELAY: Duration = Duration::from_millis(1500);

/// A stream of a few items.
type ItemIter = tokio_stream::Iter<std::vec::IntoIter<Item>>;

/// A source whose stream yields one event, and then ends with a time to reconnect.
async fn event_then_end(_: Subscription) -> Result<ItemIter, Rejection> {
    let event = Event::text("one").with_id(1)?;
    Ok(tokio_stream::iter(vec![
        Item::Event(event),
        Item::Ended { retry: RETRY_DELAY },
    ]))
}

/// Returns the whole response body of a transport for `event_then_end`.
async fn response_text(transport: impl Transport) -> String {
    let mut head = get_request_head("/", &[]);
    let response = transport.respond(&mut head, Push::new(source_fn(event_then_end)));
    body_text(response.await.into_body()).await
}

#[tokio::test]
async fn end_carries_retry_delay() {
    let sse = response_text(Sse::new()).await;
    let end = "retry: 1500\nevent: end\ndata: {\"finished\":false,\"retry\":1500}\n\n";
    assert!(sse.ends_with(end), "{sse}");
    let record = r#"{"end":{"finished":false,"retry":1500}}"#;
    let ndjson = response_text(Chunked::new(Ndjson::new())).await;
    assert!(ndjson.ends_with(&format!("{record}\n")), "{ndjson}");
    for transport in [
        Chunked::new(JsonSeq::new()),
        Chunked::new(Multipart::mixed()),
    ] {
        let all = response_text(transport).await;
        assert!(all.contains(record), "{all}");
    }
    let replaced = response_text(Chunked::new(Multipart::replace())).await;
    let header = "End: {\"finished\":false,\"retry\":1500}\r\n";
    assert!(replaced.contains(header), "{replaced}");
}

#[tokio::test]
async fn websocket_end_carries_retry_delay() {
    let server = TestServer::start(tower_push::service(source_fn(event_then_end))).await;
    let in_band = ("sec-websocket-protocol", "json.tower-push");
    for headers in [&[][..], &[in_band]] {
        let mut socket: WebSocketConnection =
            websocket::connect(&server, HttpVersion::Http1, "/", headers).await;
        let event = socket.next_frame().await.unwrap();
        assert!(event.payload.windows(3).any(|part| part == b"one"));
        if !headers.is_empty() {
            let end = socket.next_frame().await.unwrap().payload;
            assert_eq!(end, br#"{"end":{"finished":false,"retry":1500}}"#);
        }
        let reason = r#"{"finished":false,"retry":1500}"#;
        let close = socket.next_frame().await.unwrap().close_code_and_reason();
        assert_eq!(close, Some((1012, reason.to_owned())));
    }
}

#[tokio::test]
async fn poll_returns_at_once_with_events_at_end() {
    for (uri, status) in [
        ("/", StatusCode::OK),
        ("/?offset=-1&live=long-poll", StatusCode::OK),
    ] {
        let mut head = get_request_head(uri, &[]);
        let response = LongPoll::new()
            .respond(&mut head, Push::new(source_fn(event_then_end)))
            .await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["retry-after"], "2");
        assert!(body_text(response.into_body()).await.contains("one"));
    }
}

/// A source whose stream ends with a time to reconnect and yields no event.
async fn end_only(_: Subscription) -> Result<ItemIter, Rejection> {
    Ok(tokio_stream::iter(vec![Item::Ended { retry: RETRY_DELAY }]))
}

#[tokio::test(start_paused = true)]
async fn poll_returns_at_once_without_events_at_end() {
    for (uri, status) in [
        ("/", StatusCode::OK),
        ("/?offset=now&live=long-poll", StatusCode::NO_CONTENT),
    ] {
        let start = tokio::time::Instant::now();
        let mut head = get_request_head(uri, &[("last-event-id", "7")]);
        let response = LongPoll::new()
            .respond(&mut head, Push::new(source_fn(end_only)))
            .await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["retry-after"], "2");
        // The server does not know whether the client has all events.
        assert!(!response.headers().contains_key("stream-up-to-date"));
    }
}

#[tokio::test]
async fn durable_sse_end_carries_retry_delay() {
    let mut head = get_request_head("/?offset=-1&live=sse", &[]);
    let response = LongPoll::new()
        .respond(&mut head, Push::new(source_fn(event_then_end)))
        .await;
    let text = body_text(response.into_body()).await;
    assert!(
        text.contains("one") && text.ends_with("\n\nretry: 1500\n"),
        "{text}"
    );
}

#[tokio::test]
async fn resumable_end_carries_retry_delay() {
    let resumable = Resumable::builder()
        .restart_policy(RestartPolicy::Never)
        .build();
    let items = vec![
        Item::Event(Event::text("one")),
        Item::Ended { retry: RETRY_DELAY },
    ];
    let source = resumable.wrap(tokio_stream::iter(items));
    let mut head = get_request_head("/", &[]);
    let transport = Chunked::new(Ndjson::new());
    let text = body_text(
        transport
            .respond(&mut head, Push::new(source))
            .await
            .into_body(),
    )
    .await;
    assert!(
        text.ends_with("{\"end\":{\"finished\":false,\"retry\":1500}}\n"),
        "{text}"
    );
}
