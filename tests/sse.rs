//! Server-Sent Events: the bytes of a stream, and what a parser written from the standard makes of them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use proptest::prelude::*;
use testkit::{
    body_frames, body_text,
    event_stream::{EventStreamParser, MessageEvent},
    get_request_head,
};
use tower_push::{
    Event, EventId, Gap, GapReason, Item, KeepAlive, Push, PushBody, PushSource,
    event::{EventType, IntoItem},
    format::Ndjson,
    source::{Rejection, source_fn},
    transport::{
        Chunked, Sse, Transport,
        sse::{HeartbeatForm, TopicForm},
    },
};

/// The bytes before the first event.
const FIRST_BYTES: &str = ":\n";

/// Returns the response body for a source.
async fn stream_body(sse: Sse, source: impl PushSource + Send + 'static) -> PushBody {
    let response = sse
        .respond(&mut get_request_head("/", &[]), Push::new(source))
        .await;
    assert_eq!(response.status(), 200);
    response.into_body()
}

/// Returns the bytes of the events, without the first bytes of the stream.
async fn written_events<I: IntoItem + Send + 'static>(sse: Sse, items: Vec<I>) -> String {
    let bytes = body_text(stream_body(sse, stream::iter(items)).await).await;
    let bytes = bytes.strip_prefix(FIRST_BYTES).expect("a comment");
    bytes.to_owned()
}

fn parse_messages(bytes: &str) -> Vec<MessageEvent> {
    EventStreamParser::parse(bytes.as_bytes()).messages
}

/// Returns an event of the default type without an id.
fn message_with_data(data: &str) -> MessageEvent {
    MessageEvent {
        event_type: "message".to_owned(),
        data: data.to_owned(),
        last_event_id: String::new(),
    }
}

/// Each case is a payload, the bytes on the wire, and the data that a client receives.
#[tokio::test]
async fn every_kind_of_line_break_splits_data() {
    for (payload, bytes, received) in [
        ("a\r\nb", "data: a\ndata: b\n\n", "a\nb"),
        ("a\rb", "data: a\ndata: b\n\n", "a\nb"),
        ("a\nb", "data: a\ndata: b\n\n", "a\nb"),
        (
            "x\rid: evil\r\rdata: pwn",
            "data: x\ndata: id: evil\ndata: \ndata: data: pwn\n\n",
            "x\nid: evil\n\ndata: pwn",
        ),
        ("", "data:\n\n", ""),
        (" lead", "data:  lead\n\n", " lead"),
        ("a\n", "data: a\ndata: \n\n", "a\n"),
        ("\n", "data: \ndata: \n\n", "\n"),
        ("\r\n\r\n", "data: \ndata: \ndata: \n\n", "\n\n"),
        ("\u{feff}bom", "data: \u{feff}bom\n\n", "\u{feff}bom"),
        (":comment", "data: :comment\n\n", ":comment"),
        ("nul\0", "data: nul\0\n\n", "nul\0"),
    ] {
        let written = written_events(Sse::new(), vec![payload]).await;
        assert_eq!(written, bytes, "{payload:?}");
        assert_eq!(
            parse_messages(&written),
            [message_with_data(received)],
            "{payload:?}"
        );
    }
}

#[tokio::test]
async fn payload_cannot_forge_event() {
    for payload in [
        "safe content\r\n\r\nevent: control\r\ndata: {\"injected\":true}\r\n\r\n",
        "start\n\nevent: data\ndata: fake-event\n\nend",
        "start\r\revent: control\rdata: {\"cr_injected\":true}\r\rend",
    ] {
        let written = written_events(Sse::new(), vec![payload]).await;
        let received = payload.replace("\r\n", "\n").replace('\r', "\n");
        assert_eq!(parse_messages(&written), [message_with_data(&received)]);
    }
}

#[tokio::test]
async fn event_fields_share_one_frame_in_order() {
    let event = Event::text("one\ntwo").with_type("price").unwrap();
    let event = event.with_id("k3f9-1042").unwrap();
    let body = stream_body(Sse::new(), stream::iter([event]).chain(stream::pending())).await;
    let mut body = body;
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let bytes = ":\nevent: price\nid: k3f9-1042\ndata: one\ndata: two\n\n";
    assert_eq!(frame, bytes);
    assert_eq!(
        parse_messages(bytes),
        [MessageEvent {
            event_type: "price".to_owned(),
            data: "one\ntwo".to_owned(),
            last_event_id: "k3f9-1042".to_owned(),
        }]
    );
}

#[tokio::test]
async fn json_payload_is_written_verbatim() {
    let event = Event::json(&serde_json::json!({"a": "line\nbreak"})).unwrap();
    assert_eq!(
        written_events(Sse::new(), vec![event]).await,
        "data: {\"a\":\"line\\nbreak\"}\n\n"
    );
}

#[tokio::test]
async fn large_payload_is_one_event() {
    let payload = "x".repeat(1 << 20);
    let written = written_events(Sse::new(), vec![payload.clone()]).await;
    assert_eq!(parse_messages(&written), [message_with_data(&payload)]);
}

#[tokio::test]
async fn binary_payload_is_text_if_utf8_else_gap() {
    let written = written_events(Sse::new(), vec![Bytes::from_static("größe".as_bytes())]).await;
    assert_eq!(parse_messages(&written), [message_with_data("größe")]);

    let items = || stream::iter([b"fine".to_vec(), b"\xff".to_vec(), b"next".to_vec()]);
    let (frames, end) = body_frames(stream_body(Sse::new(), items()).await).await;
    end.unwrap();
    let gap = r#"{"reason":"unsupported","requested":null,"resumed":null,"missed":1}"#;
    let written = format!(":\ndata: fine\n\nevent: gap\ndata: {gap}\n\ndata: next\n\n");
    assert_eq!(String::from_utf8(frames.concat()).unwrap(), written);

    // Without a type for gaps, nothing can say that the event is missing.
    let (frames, end) = body_frames(stream_body(Sse::new().gap_event(None), items()).await).await;
    assert_eq!(frames.concat(), b":\ndata: fine\n\n");
    let error = end.unwrap_err();
    assert!(
        error
            .downcast_ref::<tower_push::Error>()
            .unwrap()
            .is_not_text()
    );
}

/// A client that resumes after the event does not get it again, in every form of topics.
#[tokio::test]
async fn gap_in_place_of_binary_payload_moves_cursor() {
    let binary = || Event::binary(vec![0xff]).with_id("a-2").unwrap();
    let next = || Event::text("next").with_id("a-3").unwrap();
    for topic_form in [TopicForm::Field, TopicForm::EventType, TopicForm::Omitted] {
        let sse = Sse::new().topic_form(topic_form);
        let events = [binary(), next()].map(|event| event.with_topic("t").unwrap());
        let messages = parse_messages(&written_events(sse, events.into()).await);
        let [gap, event] = &messages[..] else {
            panic!("{messages:?}");
        };
        assert_eq!((&*gap.event_type, &*gap.last_event_id), ("gap", "a-2"));
        assert!(gap.data.contains(r#""reason":"unsupported""#), "{gap:?}");
        assert_eq!((&*event.data, &*event.last_event_id), ("next", "a-3"));
    }
    // An envelope has the bytes in base64.
    let envelopes = Sse::new().topic_form(TopicForm::Envelope);
    let messages = parse_messages(&written_events(envelopes, vec![binary()]).await);
    assert!(messages[0].data.contains(r#""data_base64":"/w==""#));
}

#[tokio::test]
async fn base64_covers_all_data_but_control_events() {
    let gap = Gap::new(GapReason::Lagged);
    let items: Vec<Item> = vec![
        Event::binary(&b"\xff\x00"[..]).into_item().unwrap(),
        Event::text("text").with_id(7).unwrap().into_item().unwrap(),
        Event::text("").into_item().unwrap(),
        Item::from(gap.clone()),
    ];
    let response = Sse::new()
        .base64()
        .respond(
            &mut get_request_head("/", &[]),
            Push::new(stream::iter(items)),
        )
        .await;
    assert_eq!(response.headers()["stream-sse-data-encoding"], "base64");
    let expected = format!(
        ":\ndata: /wA=\n\nid: 7\ndata: dGV4dA==\n\ndata: \n\nevent: gap\ndata: {}\n\n",
        gap.to_json()
    );
    assert_eq!(body_text(response.into_body()).await, expected);

    let response = Sse::new()
        .respond(
            &mut get_request_head("/", &[]),
            Push::new(stream::iter([""])),
        )
        .await;
    assert!(!response.headers().contains_key("stream-sse-data-encoding"));
}

#[tokio::test]
async fn stream_tells_ended_finished_and_failed_apart() {
    let ended = body_text(stream_body(Sse::new(), stream::iter(["a"])).await).await;
    assert_eq!(ended, ":\ndata: a\n\n");

    let items = stream::iter([
        Event::text("a").into_item(),
        Ok(Item::Finished),
        Event::text("b").into_item(),
    ]);
    let finished = body_text(stream_body(Sse::new(), items).await).await;
    assert_eq!(
        finished,
        ":\ndata: a\n\nevent: finished\nid: ~finished\ndata: {\"finished\":true}\n\n"
    );
    assert_eq!(
        EventStreamParser::parse(finished.as_bytes()).last_event_id,
        EventId::FINISHED
    );

    let items = stream::iter([Ok("a"), Err("out of ticks"), Ok("b")]);
    let (frames, end) = body_frames(stream_body(Sse::new(), items).await).await;
    assert_eq!(frames.concat(), b":\ndata: a\n\n");
    assert_eq!(end.unwrap_err().to_string(), "out of ticks");
}

#[tokio::test]
async fn control_event_names_are_configurable() {
    let sse = Sse::new()
        .gap_event(EventType::new("hole").unwrap())
        .end_event(EventType::new("pause").unwrap())
        .finished_event(EventType::new("fin").unwrap());
    let gap = || Item::from(Gap::new(GapReason::Expired));
    let retry = Duration::ZERO;
    let mut written = String::new();
    for end in [Item::Ended { retry }, Item::Finished] {
        let body = stream_body(sse.clone(), stream::iter([gap(), end])).await;
        written += &body_text(body).await;
    }
    let types: Vec<_> = parse_messages(&written)
        .into_iter()
        .map(|m| m.event_type)
        .collect();
    assert_eq!(types, ["hole", "pause", "hole", "fin"]);
}

#[tokio::test]
async fn finished_cursor_gets_204() {
    let panicking_source = source_fn(|_| async {
        Ok(stream::once(async { panic!("must not be polled") as Event }).boxed())
    });
    for (uri, headers) in [
        ("/", [("last-event-id", EventId::FINISHED)].as_slice()),
        ("/?last_event_id=~finished", &[]),
        ("/?lastEventId=%7Efinished", &[]),
    ] {
        let response = Sse::new()
            .respond(
                &mut get_request_head(uri, headers),
                Push::new(panicking_source),
            )
            .await;
        assert_eq!(response.status(), 204);
        assert!(!response.headers().contains_key("content-type"));
        assert_eq!(body_text(response.into_body()).await, "");
    }
    let rejecting_source =
        source_fn(|_| async { Err::<stream::Empty<Event>, _>(Rejection::finished()) });
    let response = Sse::new()
        .respond(&mut get_request_head("/", &[]), Push::new(rejecting_source))
        .await;
    assert_eq!(response.status(), 204);
}

#[tokio::test]
async fn gaps_and_cursors_move_client_cursor() {
    let id = |id: &str| EventId::new(id).unwrap();
    let gap = Gap::new(GapReason::Expired)
        .requested(id("a-1"))
        .resumed(id("a-7"))
        .missed(6);
    let items = vec![Item::Cursor(id("a-0")), Item::from(gap)];
    let written = written_events(Sse::new(), items).await;
    assert_eq!(
        written,
        "event: gap\nid: a-7\ndata: {\"reason\":\"expired\",\"requested\":\"a-1\",\"resumed\":\"a-7\",\"missed\":6}\n\n"
    );
    let parser = EventStreamParser::parse(written.as_bytes());
    assert_eq!(parser.last_event_id, "a-7");
    assert_eq!(
        parser.messages.len(),
        1,
        "a cursor alone dispatches no event"
    );
}

/// The first event without an id repeats the client's cursor. Otherwise, by the standard, this event would clear it.
#[tokio::test]
async fn client_keeps_cursor_across_reconnect() {
    let source = source_fn(async |_| Ok(stream::iter(["no id"])));
    let mut head = get_request_head("/", &[("last-event-id", "a-1")]);
    let response = Sse::new().respond(&mut head, Push::new(source)).await;
    let written = body_text(response.into_body()).await;
    assert!(
        written == ":\nid: a-1\nevent_id:\ndata: no id\n\n",
        "{written:?}"
    );
    assert_eq!(
        EventStreamParser::parse(written.as_bytes()).last_event_id,
        "a-1"
    );
}

#[tokio::test]
async fn plain_stream_starts_with_gap_on_resume() {
    for (headers, requested) in [
        (vec![("last-event-id", "a-1")], "\"a-1\""),
        (vec![("last-event-id", "not an id")], "null"),
        (vec![("last-event-id", "a"), ("last-event-id", "b")], "null"),
    ] {
        let push = Push::new(stream::iter(["now"]));
        let response = Sse::new()
            .respond(&mut get_request_head("/", &headers), push)
            .await;
        assert_eq!(
            response.status(),
            200,
            "an EventSource gives up on any other status"
        );
        let received = parse_messages(&body_text(response.into_body()).await);
        assert_eq!(received[0].event_type, "gap");
        let json = format!(
            "{{\"reason\":\"epoch\",\"requested\":{requested},\"resumed\":null,\"missed\":null}}"
        );
        assert_eq!(received[0].data, json);
        assert_eq!(received[1].data, "now");
    }
}

#[tokio::test]
async fn retry_is_written_in_whole_milliseconds() {
    let sse = Sse::new().retry(Duration::from_micros(1_005_900));
    let written = body_text(stream_body(sse, stream::iter(["a"])).await).await;
    assert!(
        written.starts_with("retry: 1005\n:\ndata: a\n\n"),
        "{written:?}"
    );
    assert_eq!(
        EventStreamParser::parse(written.as_bytes()).reconnection_time,
        Some(1005)
    );
}

#[tokio::test]
async fn ready_events_share_bounded_frames() {
    let events = || (0..10_000).map(|n| Event::text(format!("{n:064}")));
    let kept: Vec<_> = events().collect();
    let (owned, _) = body_frames(stream_body(Sse::new(), stream::iter(events())).await).await;
    let (shared, _) = body_frames(stream_body(Sse::new(), stream::iter(kept.clone())).await).await;
    assert_eq!(owned.concat(), shared.concat());
    for frames in [owned, shared] {
        assert!(frames.len() < 10_000 / 100, "{} frames", frames.len());
        assert!(
            frames
                .iter()
                .all(|frame| !frame.is_empty() && frame.len() < 20 * 1024)
        );
    }
}

#[tokio::test]
async fn one_encoding_is_shared_by_all_subscribers() {
    let event = Event::text("shared");
    let mut pointers = Vec::new();
    for _ in 0..3 {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let items = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut body = stream_body(Sse::new(), items).await;
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            FIRST_BYTES
        );
        sender.send(event.clone()).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, "data: shared\n\n");
        pointers.push(frame.as_ptr());
    }
    assert!(pointers.iter().all(|p| *p == pointers[0]));
}

mod heartbeats {
    use tokio::time::{Instant, advance};

    use super::*;

    fn keep_alive_every(seconds: u64) -> KeepAlive {
        KeepAlive::new()
            .interval(Duration::from_secs(seconds))
            .jitter(0.0)
    }

    async fn next_frame(body: &mut PushBody) -> Bytes {
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn events_delay_next_heartbeat() {
        let (events, received) = tokio::sync::mpsc::channel(8);
        let items = tokio_stream::wrappers::ReceiverStream::new(received);
        let mut body = stream_body(Sse::new().keep_alive(keep_alive_every(15)), items).await;
        assert_eq!(next_frame(&mut body).await, FIRST_BYTES);

        let start = Instant::now();
        assert_eq!(next_frame(&mut body).await, ":\n");
        assert_eq!(start.elapsed().as_secs(), 15);
        assert_eq!(next_frame(&mut body).await, ":\n");
        assert_eq!(start.elapsed().as_secs(), 30);

        let sender = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(14)).await;
            events.send("tick").await.unwrap();
            events
        });
        assert_eq!(next_frame(&mut body).await, "data: tick\n\n");
        assert_eq!(start.elapsed().as_secs(), 44);
        assert_eq!(next_frame(&mut body).await, ":\n");
        assert_eq!(start.elapsed().as_secs(), 59);

        drop(sender.await.unwrap());
        assert!(body.frame().await.is_none());
        advance(Duration::from_secs(60)).await;
        assert!(body.frame().await.is_none(), "no heartbeat after the end");
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeat_may_be_a_visible_event() {
        let sse = Sse::new()
            .keep_alive(keep_alive_every(5))
            .heartbeat(HeartbeatForm::Event {
                event_type: EventType::new("ping").unwrap(),
                data: "{}".to_owned(),
            });
        let mut body = stream_body(sse, stream::pending::<Event>()).await;
        assert_eq!(next_frame(&mut body).await, FIRST_BYTES);
        assert_eq!(next_frame(&mut body).await, "event: ping\ndata: {}\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn disabled_keep_alive_sends_nothing() {
        let mut body = stream_body(
            Sse::new().keep_alive(KeepAlive::disabled()),
            stream::pending::<Event>(),
        )
        .await;
        assert_eq!(next_frame(&mut body).await, FIRST_BYTES);
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, body.frame()).await.is_err());
    }
}

/// Generates events whose payloads contain line breaks and fragments of fields.
fn arbitrary_event() -> impl Strategy<Value = Event> {
    let fragment = prop_oneof![
        Just("\n".to_owned()),
        Just("\r".to_owned()),
        Just("\r\n".to_owned()),
        Just(":".to_owned()),
        Just(" ".to_owned()),
        Just("data: ".to_owned()),
        Just("\u{feff}".to_owned()),
        any::<String>(),
        "[a-z]{0,40}",
    ];
    let payload = proptest::collection::vec(fragment, 0..8).prop_map(|parts| parts.concat());
    let id = proptest::option::of("[!-~]{1,200}");
    let event_type = proptest::option::of("[a-zäöü:{}]{1,20}");
    (payload, id, event_type).prop_map(|(payload, id, event_type)| {
        let mut event = Event::text(payload);
        if let Some(id) = id {
            event = event.with_id(id).unwrap();
        }
        if let Some(event_type) = event_type {
            event = event.with_type(event_type).unwrap();
        }
        event
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Every event parses back to its fields, wherever the network splits the bytes.
    #[test]
    fn every_event_parses_back(events in proptest::collection::vec(arbitrary_event(), 1..5)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut id = String::new();
        let expected: Vec<_> = events.iter().map(|event| {
            if let Some(own) = event.id() {
                id = own.to_string();
            }
            let data = event.payload().as_text().unwrap();
            MessageEvent {
                event_type: event.event_type().map_or("message", |t| t.as_str()).to_owned(),
                data: data.replace("\r\n", "\n").replace('\r', "\n"),
                last_event_id: id.clone(),
            }
        }).collect();
        let bytes = runtime.block_on(written_events(Sse::new(), events));
        let bytes = format!("{FIRST_BYTES}{bytes}").into_bytes();
        for split in 0..=bytes.len() {
            let mut parser = EventStreamParser::parse(&bytes[..split]);
            parser.feed(&bytes[split..]);
            prop_assert_eq!(&parser.messages, &expected, "split at {}", split);
        }
    }
}

#[tokio::test]
async fn event_carries_reconnection_time() {
    let retry = Duration::from_millis(1500);
    let event = || Event::text("x").with_topic("t").unwrap().with_retry(retry);
    let with_id = |id: u64| event().with_id(id).unwrap();
    let items = || [Item::Event(with_id(1)), Item::Event(event())];
    for (sse, expected) in [
        (
            Sse::new(),
            ":\nretry: 1500\ntopic: t\nid: 1\ndata: x\n\nretry: 1500\ntopic: t\ndata: x\n\n",
        ),
        (
            Sse::new().topic_form(TopicForm::Omitted),
            ":\nretry: 1500\nid: 1\ndata: x\n\nretry: 1500\ndata: x\n\n",
        ),
        (
            Sse::new().topic_form(TopicForm::EventType),
            ":\nretry: 1500\nevent: t\nid: 1\ndata: x\n\nretry: 1500\nevent: t\ndata: x\n\n",
        ),
        (
            Sse::data_only(),
            "\nretry: 1500\ndata: x\n\nretry: 1500\ndata: x\n\n",
        ),
    ] {
        let body = stream_body(sse, stream::iter(items())).await;
        assert_eq!(body_text(body).await, expected);
    }
    // Other formats have no place for the time.
    let push = Push::new(stream::iter([event()]));
    let mut head = get_request_head("/", &[]);
    let ndjson = Chunked::new(Ndjson::new());
    let body = ndjson.respond(&mut head, push).await.into_body();
    let text = body_text(body).await;
    assert!(
        text.contains("\"data\":\"x\"") && !text.contains("retry"),
        "{text}"
    );
}
