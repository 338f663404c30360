//! Streams without additions: what the `data_only` forms of the transports leave out, and the settings that change it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use testkit::{body_frames, body_text, event_stream::EventStreamParser, get_request_head};
use tower_push::{
    BoxError, Channel, Event, EventId, Gap, GapReason, Item, KeepAlive, Push, PushBody, PushSource,
    event::EventType,
    format::{JsonArray, JsonSeq, Multipart, Ndjson},
    source::{StartPosition, source_fn},
    transport::{Chunked, LongPoll, Sse, Transport, sse::HeartbeatForm},
};

/// The number of characters of a boundary: 128 bits in hexadecimal.
const BOUNDARY_LEN: usize = 32;

/// Returns the body of the response to a client that resumes from the cursor `a-1`.
async fn resumed_body(
    transport: impl Transport,
    source: impl PushSource + Send + 'static,
) -> PushBody {
    let mut head = get_request_head("/", &[("last-event-id", "a-1")]);
    let response = transport.respond(&mut head, Push::new(source)).await;
    assert_eq!(response.status(), 200);
    response.into_body()
}

/// Returns a source of these items, which accepts every cursor.
fn source_of(items: Vec<Item>) -> impl PushSource + Send + 'static {
    source_fn(async |_| Ok(stream::iter(items)))
}

/// Returns a source of these items that stays open after the last item.
fn open_source_of(items: Vec<Item>) -> impl PushSource + Send + 'static {
    source_fn(async |_| Ok(stream::iter(items).chain(stream::pending())))
}

/// Returns the whole body for these items.
async fn written_body(transport: impl Transport, items: Vec<Item>) -> String {
    body_text(resumed_body(transport, source_of(items)).await).await
}

fn id(text: &str) -> EventId {
    EventId::new(text).unwrap()
}

fn event_type(name: &str) -> EventType {
    EventType::new(name).unwrap()
}

/// Returns an event with an id, a type and a topic.
fn event_with_all_fields() -> Event {
    let event = Event::text("one").with_id("a-2").unwrap();
    let event = event.with_type("next").unwrap();
    event.with_topic("news").unwrap()
}

/// Returns an event, a cursor, an event whose cursor is not its id, and a cursor.
fn events_and_cursors() -> Vec<Item> {
    vec![
        Item::Event(event_with_all_fields()),
        Item::Cursor(id("a-3")),
        Item::EventWithCursor {
            event: Event::text("two").with_id("a-4").unwrap(),
            cursor: id("a-5"),
        },
        Item::Cursor(id("a-6")),
    ]
}

/// Returns one item of each way in which a stream ends without a failure.
fn ends() -> [Item; 3] {
    let retry = Duration::from_millis(1500);
    [Item::Ended { retry }, Item::Expired, Item::Finished]
}

fn gap() -> Item {
    Item::from(Gap::new(GapReason::Lagged).resumed(id("a-9")))
}

/// Asserts that a gap cuts the stream after these bytes.
async fn assert_gap_cuts(transport: impl Transport, bytes_before: &str) {
    let (frames, end) = body_frames(resumed_body(transport, source_of(vec![gap()])).await).await;
    assert_eq!(String::from_utf8(frames.concat()).unwrap(), bytes_before);
    let error: BoxError = end.unwrap_err();
    let error = error.downcast_ref::<tower_push::Error>().unwrap();
    assert!(error.is_gap_unsupported());
}

/// Sends a heartbeat after every second without another write.
fn each_second() -> KeepAlive {
    let second = Duration::from_secs(1);
    KeepAlive::new().interval(second).jitter(0.0)
}

async fn next_frame(body: &mut PushBody) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

/// Returns the first frames of the body.
async fn first_frames<const N: usize>(mut body: PushBody) -> [String; N] {
    let mut frames = [const { String::new() }; N];
    for frame in &mut frames {
        *frame = String::from_utf8(next_frame(&mut body).await.to_vec()).unwrap();
    }
    frames
}

mod sse {
    use super::*;

    const EVENTS: &str = "event: next\ndata: one\n\ndata: two\n\n";

    #[tokio::test]
    async fn only_data_and_types_are_written() {
        let body = written_body(Sse::data_only(), events_and_cursors()).await;
        assert_eq!(body, format!("\n{EVENTS}"));
        for end in ends() {
            let items = [events_and_cursors(), vec![end]].concat();
            assert_eq!(written_body(Sse::data_only(), items).await, body);
        }
        let base64 = written_body(Sse::data_only().base64(), events_and_cursors()).await;
        assert_eq!(base64, "\nevent: next\ndata: b25l\n\ndata: dHdv\n\n");
    }

    #[tokio::test]
    async fn gap_cuts_stream_unless_it_has_a_type() {
        assert_gap_cuts(Sse::data_only(), "\n").await;
        assert_gap_cuts(Sse::new().gap_event(None), ":\n").await;
        let sse = Sse::data_only().gap_event(event_type("gap"));
        let body = written_body(sse, vec![gap()]).await;
        let data = r#"{"reason":"lagged","requested":null,"resumed":null,"missed":null}"#;
        assert_eq!(body, format!("\nevent: gap\ndata: {data}\n\n"));
    }

    #[tokio::test]
    async fn each_end_can_be_announced_or_not() {
        let [ended, expired, finished] = ends();
        let sse = Sse::data_only()
            .end_event(event_type("pause"))
            .finished_event(event_type("done"));
        for (end, written) in [
            (
                &ended,
                "\nretry: 1500\nevent: pause\ndata: {\"finished\":false,\"retry\":1500}\n\n",
            ),
            (&expired, "\n"),
            (&finished, "\nevent: done\ndata: {\"finished\":true}\n\n"),
        ] {
            let items = vec![end.clone()];
            assert_eq!(written_body(sse.clone(), items.clone()).await, written);
            let silent = Sse::new().end_event(None).finished_event(None);
            assert_eq!(written_body(silent, items).await, ":\n");
        }
        for (are_sent, id) in [(true, "id: ~finished\n"), (false, "")] {
            let written = written_body(Sse::new().ids(are_sent), vec![finished.clone()]).await;
            let expected = format!(":\nevent: finished\n{id}data: {{\"finished\":true}}\n\n");
            assert_eq!(written, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn opening_and_heartbeat_have_any_form() {
        let ping = || HeartbeatForm::Event {
            event_type: event_type("ping"),
            data: "{}".to_owned(),
        };
        let (comment, blank, event) = (":\n", "\n", "event: ping\ndata: {}\n\n");
        for (sse, frames) in [
            (Sse::new(), [comment; 3]),
            (Sse::data_only(), [blank; 3]),
            (Sse::new().opening(ping()), [event, comment, comment]),
            (
                Sse::data_only().heartbeat(HeartbeatForm::Comment),
                [blank, comment, comment],
            ),
            (
                Sse::new().opening(HeartbeatForm::Omitted).heartbeat(ping()),
                [event; 3],
            ),
        ] {
            let body = sse.keep_alive(each_second());
            let push = Push::new(stream::pending::<Event>());
            let response = body.respond(&mut get_request_head("/", &[]), push).await;
            assert_eq!(first_frames(response.into_body()).await, frames);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn omitted_heartbeats_are_not_sent() {
        let omitted = HeartbeatForm::Omitted;
        let sse = Sse::new().opening(omitted.clone()).heartbeat(omitted);
        let mut body = resumed_body(sse, open_source_of(Vec::new())).await;
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, body.frame()).await.is_err());
    }
}

mod sse_cursors {
    use super::*;

    fn event(text: &'static str) -> Item {
        Item::Event(Event::text(text))
    }

    #[tokio::test]
    async fn ready_event_carries_cursor() {
        let cursor = |text: &str| Item::Cursor(id(text));
        for (items, written) in [
            // The first event or gap carries the cursor that the client has sent.
            (vec![event("x")], ":\nid: a-1\nevent_id:\ndata: x\n\n"),
            (
                vec![gap()],
                ":\nevent: gap\nid: a-9\ndata: {\"reason\":\"lagged\",\"requested\":null,\"resumed\":\"a-9\",\"missed\":null}\n\n",
            ),
            // An event carries the last cursor that the source has yielded before it.
            (
                vec![cursor("b"), cursor("c"), event("x")],
                ":\nid: c\nevent_id:\ndata: x\n\n",
            ),
            (
                vec![cursor("b"), event("x"), event("y")],
                ":\nid: b\nevent_id:\ndata: x\n\ndata: y\n\n",
            ),
            (
                vec![event("x"), cursor("b"), cursor("c")],
                ":\nid: a-1\nevent_id:\ndata: x\n\nid: c\n\n",
            ),
            // The event's own id takes precedence over these cursors.
            (
                vec![cursor("b"), Item::Event(event_with_all_fields())],
                ":\nevent: next\ntopic: news\nid: a-2\ndata: one\n\n",
            ),
            (
                vec![
                    cursor("b"),
                    Item::EventWithCursor {
                        event: Event::text("x"),
                        cursor: id("c"),
                    },
                ],
                ":\nid: c\nevent_id:\ndata: x\n\n",
            ),
            (
                vec![cursor("b"), Item::Finished],
                ":\nevent: finished\nid: ~finished\ndata: {\"finished\":true}\n\n",
            ),
        ] {
            assert_eq!(written_body(Sse::new(), items).await, written);
        }
    }

    /// A client that disconnects before the first event must be able to resume after the cursor.
    #[tokio::test]
    async fn cursor_is_written_alone_if_no_event_is_ready() {
        let source = open_source_of(vec![Item::Cursor(id("b"))]);
        let frames = first_frames(resumed_body(Sse::new(), source).await).await;
        assert_eq!(frames, [":\nid: b\n\n"]);
    }

    #[tokio::test]
    async fn failing_stream_has_written_its_cursor() {
        let failing = source_fn(async |_| {
            let cursor = Ok(Item::Cursor(id("b")));
            Ok(stream::iter([cursor, Err("failed")]))
        });
        let (frames, end) = body_frames(resumed_body(Sse::new(), failing).await).await;
        assert_eq!(frames.concat(), b":\nid: b\n\n");
        assert!(end.is_err());
    }

    /// A source that is always ready and yields no event must not keep its cursors back.
    #[tokio::test]
    async fn endless_cursors_are_written_now_and_then() {
        let cursors = stream::iter(0_u64..).map(|n| Item::Cursor(EventId::from(n)));
        let source = source_fn(async |_| Ok(cursors));
        let frames = first_frames(resumed_body(Sse::new(), source).await).await;
        assert_eq!(frames, [":\nid: 1023\n\n", "id: 2047\n\n"]);
    }

    /// By the standard, a blank line makes a client forget its cursor, unless the connection has had an `id` before.
    #[tokio::test(start_paused = true)]
    async fn every_block_keeps_client_cursor() {
        let blank = HeartbeatForm::BlankLine;
        let ping = HeartbeatForm::Event {
            event_type: event_type("ping"),
            data: "{}".to_owned(),
        };
        for (sse, frames) in [
            (Sse::new().opening(blank.clone()), ["id: a-1\n\n", ":\n"]),
            (Sse::new().heartbeat(blank), [":\n", "id: a-1\n\n"]),
            (
                Sse::new().heartbeat(ping),
                [":\n", "event: ping\nid: a-1\ndata: {}\n\n"],
            ),
        ] {
            let source = open_source_of(Vec::new());
            let body = resumed_body(sse.keep_alive(each_second()), source).await;
            assert_eq!(first_frames(body).await, frames);
            let parser = EventStreamParser::parse(frames.concat().as_bytes());
            assert_eq!(parser.last_event_id, "a-1");
        }
    }
}

mod formats {
    use super::*;

    #[tokio::test]
    async fn only_payloads_are_written() {
        for (format, written) in [
            (Chunked::new(Ndjson::data_only()), "\"one\"\n\"two\"\n"),
            (
                Chunked::new(JsonSeq::data_only()),
                "\u{1e}\u{1e}\"one\"\n\u{1e}\"two\"\n",
            ),
            (
                Chunked::new(JsonArray::data_only()),
                "[\"one\",\n\"two\"]\n",
            ),
        ] {
            assert_eq!(
                written_body(format.clone(), events_and_cursors()).await,
                written
            );
            for end in ends() {
                let items = [events_and_cursors(), vec![end]].concat();
                assert_eq!(written_body(format.clone(), items).await, written);
            }
        }
    }

    #[tokio::test]
    async fn gap_cuts_stream() {
        assert_gap_cuts(Chunked::new(Ndjson::data_only()), "").await;
        assert_gap_cuts(Chunked::new(JsonSeq::data_only()), "\u{1e}").await;
        assert_gap_cuts(Chunked::new(JsonArray::data_only()), "[").await;
        let multipart = Chunked::new(Multipart::data_only());
        let body = resumed_body(multipart, source_of(vec![gap()])).await;
        let (frames, end) = body_frames(body).await;
        assert_eq!(frames.concat().len(), "--".len() + BOUNDARY_LEN);
        assert!(end.is_err());
    }

    /// JSON allows white space before a text, so a strict reader of lines takes these heartbeats for a part of the next line.
    #[tokio::test(start_paused = true)]
    async fn ndjson_heartbeats_are_spaces_before_next_line() {
        let later = source_fn(async |_| {
            let delay = tokio::time::sleep(Duration::from_millis(2500));
            let event = stream::once(async {
                delay.await;
                Event::json_text("{\"a\":1}")
            });
            Ok(stream::iter([Event::json_text("[]")]).chain(event))
        });
        let ndjson = Chunked::new(Ndjson::data_only()).keep_alive(each_second());
        let body = body_text(resumed_body(ndjson, later).await).await;
        assert_eq!(body, "[]\n  {\"a\":1}\n");
    }

    /// A long-poll client resumes from the headers of the response, so its payloads need no envelopes.
    #[tokio::test]
    async fn long_poll_resumes_without_envelopes() {
        let channel = Channel::builder().build();
        let long_poll = LongPoll::new().add_format(JsonArray::data_only());
        let service = |head: http::request::Parts| {
            let mut head = head;
            let push = Push::new(channel.with_start(StartPosition::Oldest));
            long_poll.respond(&mut head, push)
        };
        channel.publish("one").unwrap();
        let first = service(get_request_head("/", &[])).await;
        let etag = first.headers()["etag"].to_str().unwrap().to_owned();
        assert_eq!(body_text(first.into_body()).await, "[\"one\"]\n");
        channel.publish("two").unwrap();
        let second = service(get_request_head("/", &[("if-none-match", &etag)])).await;
        assert_eq!(body_text(second.into_body()).await, "[\"two\"]\n");
    }
}

mod multipart {
    use super::*;

    /// Returns the body with `B` in place of the boundary.
    async fn written(items: Vec<Item>) -> String {
        let body = written_body(Chunked::new(Multipart::data_only()), items).await;
        let boundary = &body[2..2 + BOUNDARY_LEN];
        body.replace(boundary, "B")
    }

    const EVENTS: &str = concat!(
        "--B\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\r\none",
        "\r\n--B\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\r\ntwo",
        "\r\n--B--\r\n",
    );

    #[tokio::test]
    async fn parts_are_payloads() {
        assert_eq!(written(events_and_cursors()).await, EVENTS);
        for end in ends() {
            let items = [events_and_cursors(), vec![end]].concat();
            assert_eq!(written(items).await, EVENTS);
        }
        assert_eq!(written(Vec::new()).await, "--B--\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeat_is_empty_json_object() {
        let multipart = Chunked::new(Multipart::data_only()).keep_alive(each_second());
        let source = open_source_of(vec![Item::Event(Event::json_text("{}").unwrap())]);
        let [first, second, third] = first_frames(resumed_body(multipart, source).await).await;
        let boundary = &first[..2 + BOUNDARY_LEN];
        let part = "\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}\r\n";
        // The delimiter after a part is sent with the part.
        assert_eq!(first, format!("{boundary}{part}{boundary}"));
        assert_eq!([&second, &third], [&format!("{part}{boundary}"); 2]);
    }

    #[tokio::test]
    async fn batch_has_the_same_parts() {
        let long_poll = LongPoll::new().add_format(Multipart::data_only());
        let mut head = get_request_head("/", &[("accept", "multipart/mixed")]);
        let push = Push::new(source_of(events_and_cursors()));
        let response = long_poll.respond(&mut head, push).await;
        let body = body_text(response.into_body()).await;
        assert_eq!(body.replace(&body[2..2 + BOUNDARY_LEN], "B"), EVENTS);
    }
}
