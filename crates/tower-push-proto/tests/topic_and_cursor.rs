//! Tests where each format writes the topics of an event, and a cursor that differs from the event's id. The bytes of an event without them
//! do not change.

use std::sync::Arc;

use tower_push_proto::{
    Encoder, Error, Event, EventId, FrameBuffer, Gap, GapReason, Item, Topic,
    event::ItemOutcome,
    format::{Format, JsonArray, JsonSeq, Multipart, Ndjson, Raw},
    sse::{SseConfig, SseEncoder, TopicForm},
};

fn event() -> Event {
    let event = Event::text("hi").with_id("a1").unwrap();
    event.with_type("greeting").unwrap()
}

fn with_topic() -> Event {
    event().with_topic("chat/\"1\"").unwrap()
}

fn with_topics() -> Event {
    let topics = ["a \"1\"", "é,b", "c"].map(|name| Topic::new(name).unwrap());
    event().with_topics(topics)
}

fn with_cursor(event: Event) -> Item {
    let cursor = EventId::new("b9").unwrap();
    Item::EventWithCursor { event, cursor }
}

fn items() -> [Item; 4] {
    [
        Item::Event(event()),
        Item::Event(with_topic()),
        with_cursor(event()),
        with_cursor(with_topic()),
    ]
}

/// Returns the bytes that an encoder writes for each item, as text.
fn written(encoder: &mut dyn Encoder, items: impl IntoIterator<Item = Item>) -> Vec<String> {
    let write = |item: Item| {
        let mut out = FrameBuffer::default();
        item.write_to(encoder, &mut out).unwrap();
        String::from_utf8(out.into_bytes().to_vec()).unwrap()
    };
    items.into_iter().map(write).collect()
}

fn encoder(format: impl Format) -> Box<dyn Encoder> {
    let media_type = format.media_types()[0];
    format.encoder(media_type).1
}

const ENVELOPES: [&str; 4] = [
    r#"{"id":"a1","event":"greeting","data":"hi"}"#,
    r#"{"id":"a1","topic":"chat/\"1\"","event":"greeting","data":"hi"}"#,
    r#"{"id":"a1","cursor":"b9","event":"greeting","data":"hi"}"#,
    r#"{"id":"a1","cursor":"b9","topic":"chat/\"1\"","event":"greeting","data":"hi"}"#,
];

#[test]
fn json_formats_write_topic_and_cursor_as_members() {
    let lines = written(&mut *encoder(Ndjson::new()), items());
    assert_eq!(lines, ENVELOPES.map(|json| format!("{json}\n")));
    let records = written(&mut *encoder(JsonSeq::new()), items());
    assert_eq!(records, ENVELOPES.map(|json| format!("\u{1e}{json}\n")));
    let elements = written(&mut *encoder(JsonArray::new()), items()).concat();
    assert_eq!(elements, ENVELOPES.join(",\n"));
}

#[test]
fn data_only_formats_leave_out_topic_and_cursor() {
    let bare = written(&mut *encoder(Ndjson::data_only()), items());
    assert_eq!(bare, ["\"hi\"\n"; 4]);
    assert_eq!(written(&mut *encoder(Raw::new()), items()), ["hi\n"; 4]);
}

#[test]
fn multipart_writes_topic_and_cursor_as_headers() {
    for format in [Multipart::mixed(), Multipart::replace()] {
        let parts = written(&mut *encoder(format), items());
        for (part, headers) in parts.iter().zip([
            "Event-ID: a1\r\nEvent-Type: greeting\r\n",
            "Event-ID: a1\r\nEvent-Topic: chat/\"1\"\r\nEvent-Type: greeting\r\n",
            "Event-ID: a1\r\nEvent-Cursor: b9\r\nEvent-Type: greeting\r\n",
            "Event-ID: a1\r\nEvent-Cursor: b9\r\nEvent-Topic: chat/\"1\"\r\nEvent-Type: greeting\r\n",
        ]) {
            let (head, rest) = part.split_once("\r\n\r\nhi\r\n--").unwrap();
            let expected = format!("{headers}Content-Length: 2");
            assert_eq!(
                head,
                format!("Content-Type: text/plain; charset=utf-8\r\n{expected}")
            );
            assert!(rest.ends_with("\r\n"));
        }
    }
}

#[test]
fn sse_writes_the_cursor_as_the_id() {
    for (config, data) in [
        (SseConfig::new(), "hi"),
        (SseConfig::new().base64(), "aGk="),
    ] {
        let mut encoder = SseEncoder::new(Arc::new(config), None);
        let events = written(&mut encoder, items());
        let expected = [
            "event: greeting\nid: a1\n",
            "event: greeting\ntopic: chat/\"1\"\nid: a1\n",
            "event: greeting\nid: b9\nevent_id: a1\n",
            "event: greeting\ntopic: chat/\"1\"\nid: b9\nevent_id: a1\n",
        ];
        assert_eq!(
            events,
            expected.map(|head| format!("{head}data: {data}\n\n"))
        );
    }
    let mut text = SseEncoder::new(Arc::default(), None);
    let item = with_cursor(Event::binary(&b"\xff"[..]).with_topic("chat").unwrap());
    let mut out = FrameBuffer::default();
    let outcome = item.write_to(&mut text, &mut out).unwrap();
    let gap = Gap::new(GapReason::Unsupported)
        .missed(1)
        .resumed("b9".parse().unwrap())
        .topic(Topic::new("chat").unwrap());
    let event = format!("event: gap\nid: b9\ndata: {}\n\n", gap.to_json());
    assert_eq!(out.into_bytes(), event);
    assert_eq!(outcome, ItemOutcome::GapWritten(Box::new(gap)));
}

#[test]
fn gaps_name_their_topic() -> Result<(), Error> {
    let gap = Gap::new(GapReason::Lagged)
        .missed(2)
        .resumed("b9".try_into()?);
    let json = r#"{"reason":"lagged","requested":null,"resumed":"b9","missed":2"#;
    let topic = Topic::new("chat/\"1\"")?;
    for (gap, rest) in [
        (gap.clone(), ""),
        (gap.topic(topic), r#","topic":"chat/\"1\"""#),
    ] {
        let line = written(&mut Ndjson::new(), [Item::from(gap.clone())]);
        assert_eq!(
            line,
            [format!("{{\"id\":\"b9\",\"gap\":{json}{rest}}}}}\n")]
        );
        let event = written(
            &mut SseEncoder::new(Arc::default(), None),
            [Item::from(gap)],
        );
        assert_eq!(
            event,
            [format!("event: gap\nid: b9\ndata: {json}{rest}}}\n\n")]
        );
    }
    Ok(())
}

#[cfg(feature = "websocket")]
#[test]
fn websocket_messages_have_topic_and_cursor() {
    use tower_push_proto::websocket::{
        DecoderConfig, DecoderEvent, FrameDecoder, FrameEncoder, Message, MessageFormat, Role,
    };

    let messages = |format, items: &[Item]| -> Vec<String> {
        let (mut encoder, mut out) = (FrameEncoder::new(format), FrameBuffer::default());
        for item in items {
            item.clone().write_to(&mut encoder, &mut out).unwrap();
        }
        let mut decoder = FrameDecoder::new(DecoderConfig::new(Role::Client));
        let frames = out.into_bytes();
        let mut input = &frames[..];
        let mut next = || decoder.decode(&mut input, true, &mut |_| {}).unwrap();
        std::iter::from_fn(|| match next()? {
            DecoderEvent::Message(Message::Text(text)) => Some(text),
            other => panic!("{other:?}"),
        })
        .collect()
    };
    assert_eq!(messages(MessageFormat::Json, &items()), ENVELOPES);
    assert_eq!(messages(MessageFormat::Plain, &items()), ["hi"; 4]);
    let lines = |topic: &str| {
        format!("id: a1\n{topic}event: greeting\ncontent-type: text/plain; charset=utf-8\n\nhi")
    };
    let (plain, with_topic) = (lines(""), lines("topic: chat/\"1\"\n"));
    let cursor = "content-type: application/vnd.tower-push+json\n\n{\"id\":\"b9\"}";
    let expected = [&plain, &with_topic, &plain, cursor, &with_topic, cursor];
    assert_eq!(messages(MessageFormat::Nchan, &items()), expected);
    let items = [Item::Event(with_topics())];
    let topics = "topic: a \"1\"\ntopics: a \"1\"\té,b\tc\n";
    assert_eq!(messages(MessageFormat::Nchan, &items), [lines(topics)]);
}

/// Asserts the bytes of an event with several topics, and of such an event with a cursor, in one format.
fn assert_written_with_topics(encoder: &mut dyn Encoder, expected: [&str; 2]) {
    let items = [Item::Event(with_topics()), with_cursor(with_topics())];
    assert_eq!(written(encoder, items), expected);
}

#[test]
fn several_topics_are_named_after_the_first() {
    let after_cursor =
        r#""topic":"a \"1\"","topics":["a \"1\"","é,b","c"],"event":"greeting","data":"hi"}"#;
    let json = [
        format!(r#"{{"id":"a1",{after_cursor}"#),
        format!(r#"{{"id":"a1","cursor":"b9",{after_cursor}"#),
    ];
    let lines = json.clone().map(|json| format!("{json}\n"));
    assert_written_with_topics(&mut Ndjson::new(), lines.each_ref().map(String::as_str));

    let sse = |id: &str| {
        format!("event: greeting\ntopic: a \"1\"\ntopics: a \"1\"\té,b\tc\nid: {id}\ndata: hi\n\n")
    };
    let (own, cursor) = (sse("a1"), sse("b9\nevent_id: a1"));
    let mut encoder = SseEncoder::new(Arc::default(), None);
    assert_written_with_topics(&mut encoder, [&own, &cursor]);

    let envelope = |id: &str| format!("id: {id}\ndata: {}\n\n", json[0]);
    let (own, cursor) = (envelope("a1"), envelope("b9"));
    let config = SseConfig::new().topic_form(TopicForm::Envelope);
    let mut encoder = SseEncoder::new(Arc::new(config), None);
    assert_written_with_topics(&mut encoder, [&own, &cursor]);

    let config = SseConfig::new().topic_form(TopicForm::EventType);
    let mut encoder = SseEncoder::new(Arc::new(config), None);
    let event = |id: &str| format!("event: a \"1\"\nid: {id}\ndata: hi\n\n");
    assert_written_with_topics(&mut encoder, [&event("a1"), &event("b9")]);

    let parts = written(
        &mut *self::encoder(Multipart::mixed()),
        [Item::Event(with_topics())],
    );
    let headers =
        "Event-Topic: a \"1\"\r\nEvent-Topics: a \"1\"\té,b\tc\r\nEvent-Type: greeting\r\n";
    assert!(parts[0].contains(headers), "{}", parts[0]);
}

#[cfg(feature = "json")]
#[test]
fn several_topics_are_read_back() {
    use tower_push_proto::format::Record;

    for (json, topics) in [
        (
            r#"{"topic":"a","topics":["a","b"],"data":1}"#,
            &["a", "b"][..],
        ),
        (r#"{"topic":"a","topics":["b","b"],"data":1}"#, &["a", "b"]),
        (r#"{"topics":["b","a"],"data":1}"#, &["b", "a"]),
        (r#"{"topic":"a","topics":[],"data":1}"#, &["a"]),
        (r#"{"topic":"a","topics":null,"data":1}"#, &["a"]),
        (r#"{"data":1}"#, &[]),
    ] {
        let record = Record::from_json(json.as_bytes()).unwrap();
        let Some(Record::Event { event, .. }) = record else {
            panic!("{record:?}");
        };
        let names: Vec<_> = event.topics().iter().map(Topic::as_str).collect();
        assert_eq!(names, topics, "{json}");
    }
}

/// On SSE, the field `id` is the cursor, so an event whose id is another one has its id in a field of its own.
#[test]
fn sse_names_id_that_is_not_cursor() {
    let write = |config: SseConfig, event: Event| {
        let mut out = FrameBuffer::default();
        let mut encoder = SseEncoder::new(Arc::new(config), None);
        encoder
            .event_with_cursor(&event, &7.into(), &mut out)
            .unwrap();
        out.into_bytes()
    };
    let event = || Event::text("x").with_topic("a").unwrap();
    for (id, fields) in [
        (Some(3), "id: 7\nevent_id: 3\n"),
        (Some(7), "id: 7\n"),
        (None, "id: 7\nevent_id:\n"),
    ] {
        let event = match id {
            Some(id) => event().with_id(id).unwrap(),
            None => event(),
        };
        let written = write(SseConfig::new(), event);
        assert_eq!(written, format!("topic: a\n{fields}data: x\n\n"));
    }
    // Strict readers know no other fields than those of the standard.
    let with_id = event().with_id(3).unwrap();
    let written = write(SseConfig::data_only(), with_id.clone());
    assert_eq!(written, "data: x\n\n");
    let omitted = SseConfig::new().topic_form(TopicForm::Omitted);
    assert_eq!(write(omitted, with_id), "id: 7\ndata: x\n\n");
}

/// Clients that get one event with another cursor for each share the bytes of its payload.
#[test]
fn sse_payload_is_shared_by_all_cursors() {
    for config in [SseConfig::new(), SseConfig::new().base64()] {
        let config = Arc::new(config);
        let event = Event::binary("x".repeat(100_000));
        let payload_frame = |cursor: u64| {
            let mut out = FrameBuffer::default();
            let mut encoder = SseEncoder::new(config.clone(), None);
            encoder
                .event_with_cursor(&event.clone(), &cursor.into(), &mut out)
                .unwrap();
            let head = out.take_frame().unwrap();
            assert_eq!(head, format!("id: {cursor}\nevent_id:\n"));
            out.take_frame().unwrap()
        };
        let frames = [1, 2].map(payload_frame);
        assert!(frames[0].starts_with(b"data: "));
        assert_eq!(frames[0].as_ptr(), frames[1].as_ptr());
    }
}

/// Returns what a new stream of `format` writes for `event` with `cursor`, as frames.
fn frames_with_cursor(format: &dyn Format, event: &Event, cursor: &str) -> Vec<bytes::Bytes> {
    let mut encoder = format.encoder(format.media_types()[0]).1;
    let mut out = FrameBuffer::default();
    let cursor = EventId::new(cursor).unwrap();
    let event = event.clone();
    let item = Item::EventWithCursor { event, cursor };
    item.write_to(&mut *encoder, &mut out).unwrap();
    std::iter::from_fn(|| out.take_frame()).collect()
}

#[test]
fn large_payload_is_shared_among_cursors() {
    let formats: [&dyn Format; 5] = [
        &Ndjson::new(),
        &JsonSeq::new(),
        &JsonArray::new(),
        &Multipart::mixed(),
        &Multipart::replace(),
    ];
    for format in formats {
        for (len, is_shared) in [(4095, false), (4096, true), (100_000, true)] {
            let event = with_topic_and_text("é\"\n".repeat(len / 4) + &"x".repeat(len % 4));
            assert_eq!(event.payload().as_bytes().len(), len);
            let [one, other] =
                ["c1", "c2"].map(|cursor| frames_with_cursor(format, &event, cursor));
            let pointers = |frames: &[bytes::Bytes]| -> Vec<_> {
                let is_large = |frame: &&bytes::Bytes| frame.len() >= len;
                frames.iter().filter(is_large).map(|f| f.as_ptr()).collect()
            };
            assert_eq!(pointers(&one).len(), 1, "{}", format.name());
            let are_same = pointers(&one) == pointers(&other);
            assert_eq!(are_same, is_shared, "{} of {len}", format.name());
        }
    }
}

#[test]
fn shared_payload_has_the_same_bytes() {
    for format in [
        &Ndjson::new() as &dyn Format,
        &JsonSeq::new(),
        &JsonArray::new(),
    ] {
        for len in [0, 4000, 4096, 20_000] {
            let text = "\"é\n".repeat(len / 4);
            let written = frames_with_cursor(format, &with_topic_and_text(text.clone()), "c1");
            let text = serde_json::to_string(&text).unwrap();
            let json = r#"{"id":"a1","cursor":"c1","topic":"t","event":"greeting","data":"#;
            let (before, after) = match format.name() {
                "json-seq" => ("\u{1e}", "\n"),
                "ndjson" => ("", "\n"),
                _ => ("", ""),
            };
            let expected = format!("{before}{json}{text}}}{after}");
            assert!(written.concat() == expected.as_bytes(), "{}", format.name());
        }
    }
}

fn with_topic_and_text(text: String) -> Event {
    let event = Event::text(text).with_id("a1").unwrap();
    let event = event.with_type("greeting").unwrap();
    event.with_topic("t").unwrap()
}
