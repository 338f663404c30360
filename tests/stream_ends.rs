//! How a stream that ends for now says when to come back, on every transport.

use std::time::Duration;

use http::StatusCode;
use testkit::{
    HttpVersion, TestServer, body_text, get_request_head,
    websocket::{self, WebSocketConnection},
};
use tower_push::{
    Event, Item, Push, Resumable,
    format::{JsonSeq, Multipart, Ndjson},
    source::{Rejection, Subscription, resumable::EndPolicy, source_fn},
    transport::{Chunked, LongPoll, Sse, Transport},
};

const HINT: Duration = Duration::from_millis(1500);

type Items = tokio_stream::Iter<std::vec::IntoIter<Item>>;

async fn ending(_: Subscription) -> Result<Items, Rejection> {
    let event = Event::text("one").with_id(1)?;
    Ok(tokio_stream::iter(vec![
        Item::Event(event),
        Item::Ended { retry: HINT },
    ]))
}

async fn body(transport: impl Transport) -> String {
    let mut head = get_request_head("/", &[]);
    let response = transport.respond(&mut head, Push::new(source_fn(ending)));
    body_text(response.await.into_body()).await
}

#[tokio::test]
async fn an_end_with_a_hint_says_when_to_come_back() {
    let sse = body(Sse::new()).await;
    let end = "retry: 1500\nevent: end\ndata: {\"finished\":false,\"retry\":1500}\n\n";
    assert!(sse.ends_with(end), "{sse}");
    let record = r#"{"end":{"finished":false,"retry":1500}}"#;
    let ndjson = body(Chunked::new(Ndjson::new())).await;
    assert!(ndjson.ends_with(&format!("{record}\n")), "{ndjson}");
    for transport in [
        Chunked::new(JsonSeq::new()),
        Chunked::new(Multipart::mixed()),
    ] {
        let all = body(transport).await;
        assert!(all.contains(record), "{all}");
    }
    let replaced = body(Chunked::new(Multipart::replace())).await;
    let header = "End: {\"finished\":false,\"retry\":1500}\r\n";
    assert!(replaced.contains(header), "{replaced}");
}

#[tokio::test]
async fn a_websocket_is_told_in_its_close_frame_and_in_band() {
    let server = TestServer::start(tower_push::service(source_fn(ending))).await;
    let in_band = ("sec-websocket-protocol", "json.tower-push");
    for headers in [&[][..], &[in_band]] {
        let mut opened: WebSocketConnection =
            websocket::connect(&server, HttpVersion::Http1, "/", headers).await;
        let event = opened.next_frame().await.unwrap();
        assert!(event.payload.windows(3).any(|part| part == b"one"));
        if !headers.is_empty() {
            let end = opened.next_frame().await.unwrap().payload;
            assert_eq!(end, br#"{"end":{"finished":false,"retry":1500}}"#);
        }
        let reason = r#"{"finished":false,"retry":1500}"#;
        let close = opened.next_frame().await.unwrap().close_code_and_reason();
        assert_eq!(close, Some((1012, reason.to_owned())));
    }
}

#[tokio::test]
async fn a_poll_is_answered_at_once_with_what_there_is() {
    for (uri, status) in [
        ("/", StatusCode::OK),
        ("/?offset=-1&live=long-poll", StatusCode::OK),
    ] {
        let mut head = get_request_head(uri, &[]);
        let response = LongPoll::new()
            .respond(&mut head, Push::new(source_fn(ending)))
            .await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["retry-after"], "2");
        assert!(body_text(response.into_body()).await.contains("one"));
    }
}

/// Nothing but the end.
async fn only_ending(_: Subscription) -> Result<Items, Rejection> {
    Ok(tokio_stream::iter(vec![Item::Ended { retry: HINT }]))
}

#[tokio::test(start_paused = true)]
async fn a_poll_is_answered_at_once_with_nothing_too() {
    for (uri, status) in [
        ("/", StatusCode::OK),
        ("/?offset=now&live=long-poll", StatusCode::NO_CONTENT),
    ] {
        let begun = tokio::time::Instant::now();
        let mut head = get_request_head(uri, &[("last-event-id", "7")]);
        let response = LongPoll::new()
            .respond(&mut head, Push::new(source_fn(only_ending)))
            .await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["retry-after"], "2");
        // Whether it has all there is is not known.
        assert!(!response.headers().contains_key("stream-up-to-date"));
    }
}

#[tokio::test]
async fn an_event_stream_of_durable_streams_has_the_hint_too() {
    let mut head = get_request_head("/?offset=-1&live=sse", &[]);
    let response = LongPoll::new()
        .respond(&mut head, Push::new(source_fn(ending)))
        .await;
    let body = body_text(response.into_body()).await;
    assert!(
        body.contains("one") && body.ends_with("\n\nretry: 1500\n"),
        "{body}"
    );
}

#[tokio::test]
async fn a_stream_that_was_kept_tells_its_hint_and_then_begins_anew() {
    let resumable = Resumable::builder().end_policy(EndPolicy::Finish).build();
    let items = vec![Item::Event(Event::text("one")), Item::Ended { retry: HINT }];
    let source = resumable.wrap(tokio_stream::iter(items));
    let mut head = get_request_head("/", &[]);
    let transport = Chunked::new(Ndjson::new());
    let body = body_text(
        transport
            .respond(&mut head, Push::new(source))
            .await
            .into_body(),
    )
    .await;
    assert!(
        body.ends_with("{\"end\":{\"finished\":false,\"retry\":1500}}\n"),
        "{body}"
    );
}
