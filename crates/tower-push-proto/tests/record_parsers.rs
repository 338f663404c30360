//! Tests that the parsers of all formats read what the encoders write, in pieces of any length, and enforce their limits.

#![cfg(feature = "json")]

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use http::HeaderValue;
use proptest::{collection::vec, option, prelude::*, sample::select};
use tower_push_proto::{
    BatchEncoder, Encoder, Error, Event, EventId, EventType, FrameBuffer, Gap, GapReason, Item,
    StreamEnd, Topic,
    event::{ItemOutcome, Payload},
    format::{
        Format, JsonArray, JsonSeq, JsonSeqParser, Multipart, MultipartParser, Ndjson,
        NdjsonParser, Record,
    },
    sse::{HeartbeatForm, SseConfig, SseEncoder, SseParser},
};

/// An item or a heartbeat, which a test writes to a stream.
#[derive(Clone, Debug)]
enum WriteStep {
    Item(Item),
    Heartbeat,
}

/// A record that a parser has read, in a form that tests can compare.
#[derive(Clone, Debug, PartialEq)]
enum ReadRecord {
    Event {
        id: Option<String>,
        cursor: Option<String>,
        topics: Vec<String>,
        event_type: Option<String>,
        payload: Payload,
    },
    Gap(Gap),
    Cursor(String),
    End(StreamEnd),
}

fn record_of_event(event: &Event, cursor: Option<&EventId>) -> ReadRecord {
    ReadRecord::Event {
        id: event.id().map(ToString::to_string),
        cursor: cursor.map(ToString::to_string),
        topics: event.topics().iter().map(ToString::to_string).collect(),
        event_type: event.event_type().map(ToString::to_string),
        payload: event.payload().clone(),
    }
}

impl From<Record> for ReadRecord {
    fn from(record: Record) -> Self {
        match record {
            Record::Event { event, cursor, .. } => record_of_event(&event, cursor.as_ref()),
            Record::Gap(gap) => Self::Gap(gap),
            Record::Cursor(id) => Self::Cursor(id.to_string()),
            Record::End(end) => Self::End(end),
            other => panic!("{other:?}"),
        }
    }
}

/// Returns the records that a client must read if these steps and this end are written.
fn expected(steps: &[WriteStep], end: StreamEnd) -> Vec<ReadRecord> {
    let items = steps.iter().filter_map(|step| match step {
        WriteStep::Item(Item::Event(event)) => Some(record_of_event(event, None)),
        WriteStep::Item(Item::EventWithCursor { event, cursor }) => {
            Some(record_of_event(event, Some(cursor)))
        }
        WriteStep::Item(Item::Gap(gap)) => Some(ReadRecord::Gap((**gap).clone())),
        WriteStep::Item(Item::Cursor(id)) => Some(ReadRecord::Cursor(id.to_string())),
        WriteStep::Item(other) => panic!("{other:?}"),
        WriteStep::Heartbeat => None,
    });
    items.chain([ReadRecord::End(end)]).collect()
}

/// Returns the records that a client must read from an event stream in base64. A cursor that is the event's id arrives as the id alone. Every payload
/// arrives as bytes. An event without an id arrives with the cursor that the stream wrote before it. An end arrives only if it says more than the end of
/// the body.
fn expected_of_sse(steps: &[WriteStep], end: StreamEnd) -> Vec<ReadRecord> {
    let mut held_cursor: Option<String> = None;
    let mut records = Vec::new();
    for step in steps {
        let [record, ReadRecord::End(_)] = &expected(std::slice::from_ref(step), end)[..] else {
            held_cursor = None;
            continue;
        };
        match record.clone() {
            ReadRecord::Cursor(id) => held_cursor = Some(id),
            ReadRecord::Event {
                id,
                cursor,
                topics,
                event_type,
                payload,
            } => {
                let cursor = match &id {
                    Some(id) => cursor.filter(|cursor| cursor != id),
                    None => cursor.or(held_cursor.take()),
                };
                records.push(ReadRecord::Event {
                    id,
                    cursor,
                    topics,
                    event_type,
                    payload: Payload::Binary(Bytes::copy_from_slice(payload.as_bytes())),
                });
                held_cursor = None;
            }
            record => {
                held_cursor = None;
                records.push(record);
            }
        }
    }
    if end.finished || end.retry.is_some() {
        records.push(ReadRecord::End(end));
    }
    records
}

fn encode_stream(encoder: &mut dyn Encoder, steps: &[WriteStep], end: StreamEnd) -> Bytes {
    let mut out = FrameBuffer::default();
    encoder.open(&mut out);
    for step in steps {
        match step {
            WriteStep::Item(item) => {
                let outcome = item.clone().write_to(encoder, &mut out).unwrap();
                assert_eq!(outcome, ItemOutcome::Written);
            }
            WriteStep::Heartbeat => encoder.heartbeat(&mut out),
        }
    }
    encoder.end(end, &mut out);
    out.into_bytes()
}

fn encode_batch(
    encoder: &mut dyn BatchEncoder,
    steps: &[WriteStep],
    end: Option<StreamEnd>,
) -> Bytes {
    let mut out = FrameBuffer::default();
    encoder.begin_batch(&mut out);
    for step in steps {
        if let WriteStep::Item(item) = step {
            item.clone().write_to(encoder, &mut out).unwrap();
        }
    }
    encoder.end_batch(end, &mut out);
    out.into_bytes()
}

fn pieces(bytes: &Bytes, piece_len: usize) -> impl Iterator<Item = Bytes> {
    let starts = (0..bytes.len()).step_by(piece_len);
    starts.map(move |start| bytes.slice(start..bytes.len().min(start + piece_len)))
}

/// Splits `bytes` into pieces, and returns everything that `next` reads from them. Asserts that each piece is read completely.
fn read_all<T>(
    bytes: &Bytes,
    piece_len: usize,
    mut next: impl FnMut(&mut Bytes) -> Result<Option<T>, Error>,
) -> Result<Vec<T>, Error> {
    let mut read = Vec::new();
    for mut piece in pieces(bytes, piece_len) {
        while let Some(record) = next(&mut piece)? {
            read.push(record);
        }
        assert!(!piece.has_remaining());
    }
    Ok(read)
}

fn from_json(records: Vec<Bytes>) -> Vec<ReadRecord> {
    let records = records.iter().map(|json| Record::from_json(json).unwrap());
    records.flatten().map(ReadRecord::from).collect()
}

fn payload() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<String>().prop_map(Event::text),
        "[ -~\r\n]{0,40}".prop_map(Event::text),
        vec(any::<u8>(), 0..40).prop_map(Event::binary),
        "[\\[\\]{}\",\\\\ a-z\n\r]{0,20}".prop_map(|text| {
            Event::json(&serde_json::json!({ "text": text, "list": [1, null, 2.5] })).unwrap()
        }),
        select(&["null", "1", "-2.5", "true", "[]", "{}"][..])
            .prop_map(|json| Event::json_text(json).unwrap()),
    ]
}

fn id() -> impl Strategy<Value = EventId> {
    let any_id = prop_oneof!["[A-Za-z0-9._~-]{1,20}", "[!-~]{1,200}", "[\"\\\\:,+%]{1,4}"];
    any_id.prop_map(|id| id.parse().unwrap())
}

fn line() -> impl Strategy<Value = String> {
    "[a-zé\"\\\\:;=,{}/-]{1,12}( [a-z]{1,4})?"
}

fn event() -> impl Strategy<Value = Event> {
    (
        payload(),
        option::of(id()),
        vec(line().prop_map(|topic| Topic::new(topic).unwrap()), 0..4),
        option::of(line()),
    )
        .prop_map(|(mut event, id, topics, event_type)| {
            if let Some(id) = id {
                event = event.with_id(id).unwrap();
            }
            event = event.with_topics(topics);
            if let Some(event_type) = event_type {
                event = event.with_type(event_type).unwrap();
            }
            event
        })
}

fn gap() -> impl Strategy<Value = Gap> {
    let reason = select(&[GapReason::Expired, GapReason::Lagged, GapReason::Epoch][..]);
    let topic = option::of(line().prop_map(|topic| Topic::new(topic).unwrap()));
    (
        reason,
        option::of(id()),
        option::of(id()),
        option::of(any::<u64>()),
        topic,
    )
        .prop_map(|(reason, requested, resumed, missed, topic)| {
            let mut gap = Gap::new(reason);
            gap.requested = requested;
            gap.resumed = resumed;
            gap.missed = missed;
            gap.topic = topic;
            gap
        })
}

fn steps() -> impl Strategy<Value = Vec<WriteStep>> {
    let step = prop_oneof![
        4 => event().prop_map(|event| WriteStep::Item(Item::Event(event))),
        1 => (event(), id()).prop_map(|(event, cursor)| {
            WriteStep::Item(Item::EventWithCursor { event, cursor })
        }),
        1 => gap().prop_map(|gap| WriteStep::Item(Item::from(gap))),
        1 => id().prop_map(|id| WriteStep::Item(Item::Cursor(id))),
        1 => Just(WriteStep::Heartbeat),
    ];
    vec(step, 0..8)
}

fn end() -> impl Strategy<Value = StreamEnd> {
    prop_oneof![
        Just(StreamEnd::FINISHED),
        Just(StreamEnd::reconnect(None)),
        (0_u64..100_000)
            .prop_map(|millis| StreamEnd::reconnect(Some(Duration::from_millis(millis)))),
    ]
}

/// Returns the records in the order in which `multipart/x-mixed-replace` sends them. Gaps and cursors are headers of the next event: first
/// the gaps, then only the last cursor.
fn order_in_mixed_replace(records: Vec<ReadRecord>) -> Vec<ReadRecord> {
    let (mut sent, mut gaps, mut cursor) = (Vec::new(), Vec::new(), None);
    for record in records {
        match record {
            ReadRecord::Gap(_) => gaps.push(record),
            ReadRecord::Cursor(_) => cursor = Some(record),
            ReadRecord::Event { .. } | ReadRecord::End(_) => {
                if record == ReadRecord::End(StreamEnd::FINISHED) {
                    // The end moves the cursor to `~finished`, and replaces an earlier cursor.
                    cursor = None;
                }
                sent.append(&mut gaps);
                sent.extend(cursor.take());
                sent.push(record);
            }
        }
    }
    sent
}

fn multipart_parser(content_type: &HeaderValue) -> MultipartParser {
    MultipartParser::from_content_type(content_type).unwrap()
}

proptest! {
    #[test]
    fn json_formats_read_back(steps in steps(), end in end(), piece_len in 1_usize..60) {
        let expected = expected(&steps, end);
        let lines = encode_stream(&mut Ndjson::new(), &steps, end);
        let mut parser = NdjsonParser::new();
        let read = read_all(&lines, piece_len, |input| parser.next_record(input)).unwrap();
        prop_assert_eq!(&from_json(read), &expected);
        prop_assert_eq!(parser.finish(), None);

        let texts = encode_stream(&mut JsonSeq::new(), &steps, end);
        let mut parser = JsonSeqParser::new();
        let read = read_all(&texts, piece_len, |input| parser.next_record(input)).unwrap();
        prop_assert_eq!(&from_json(read), &expected);
        prop_assert!(!parser.is_within_record());

        let mut encoder = JsonArray::new().batch_encoder("application/json").1;
        let is_finished = end.finished;
        let array = encode_batch(&mut *encoder, &steps, is_finished.then_some(end));
        let read = Record::from_json_array(&array).unwrap();
        let read: Vec<_> = read.into_iter().map(ReadRecord::from).collect();
        let ends = usize::from(!is_finished);
        prop_assert_eq!(&read[..], &expected[..expected.len() - ends]);
    }

    #[test]
    fn multipart_reads_back(steps in steps(), end in end(), piece_len in 1_usize..60) {
        for (format, media_type) in [
            (Multipart::mixed(), "multipart/mixed"),
            (Multipart::replace(), "multipart/x-mixed-replace"),
        ] {
            let mut expected = expected(&steps, end);
            if media_type.contains("replace") {
                expected = order_in_mixed_replace(expected);
            }
            let (content_type, mut encoder) = format.encoder(media_type);
            let body = encode_stream(&mut *encoder, &steps, end);
            let mut parser = multipart_parser(&content_type);
            let parts = read_all(&body, piece_len, |input| parser.next_part(input)).unwrap();
            prop_assert!(parser.is_finished());
            let read = parts.iter().flat_map(|part| Record::from_part(part).unwrap());
            let read: Vec<_> = read.map(ReadRecord::from).collect();
            prop_assert_eq!(&read, &expected);

            // The body without its `Content-Length` lines has the same contents.
            let text: Vec<_> = body.split(|byte| *byte == b'\n').collect();
            let unsized_lines = text.iter().filter(|line| !line.starts_with(b"Content-Length: "));
            let unsized_body = unsized_lines.copied().collect::<Vec<_>>().join(&b'\n');
            let mut parser = multipart_parser(&content_type);
            let body = Bytes::from(unsized_body);
            let unsized_parts = read_all(&body, piece_len, |input| parser.next_part(input)).unwrap();
            let contents = |parts: &[tower_push_proto::format::MultipartPart]| -> Vec<Bytes> {
                parts.iter().map(|part| part.content.clone()).collect()
            };
            let has_length_line = |bytes: &Bytes| bytes.windows(16).any(|w| w == b"Content-Length: ");
            if !contents(&parts).iter().any(has_length_line) {
                prop_assert_eq!(contents(&unsized_parts), contents(&parts));
            }
        }
    }

    #[test]
    fn sse_reads_back(steps in steps(), end in end(), piece_len in 1_usize..60) {
        // The generated events never have one of these types.
        let [gap, end_name, finished] = ["GAP", "END", "FIN"].map(|name| name.parse::<EventType>().unwrap());
        let config = SseConfig::new().base64().gap_event(gap).end_event(end_name).finished_event(finished);
        let config = config.heartbeat(HeartbeatForm::Event {
            event_type: "BEAT".parse().unwrap(),
            data: "{}".to_owned(),
        });
        let stream = encode_stream(&mut SseEncoder::new(Arc::new(config.clone()), None), &steps, end);
        let mut parser = SseParser::new();
        let events = read_all(&stream, piece_len, |input| parser.next_event(input));
        let mut read = Vec::new();
        for event in events.unwrap() {
            read.extend(Record::from_sse(event, &config).unwrap().map(ReadRecord::from));
        }
        prop_assert_eq!(read, expected_of_sse(&steps, end));
        let mut moved = steps.iter().filter_map(|step| match step {
            WriteStep::Item(item) => item.cursor().map(ToString::to_string),
            WriteStep::Heartbeat => None,
        });
        let last = if end.finished { Some(EventId::FINISHED.to_owned()) } else { moved.next_back() };
        prop_assert_eq!(parser.last_event_id(), last.unwrap_or_default());
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, piece_len in 1_usize..20) {
        let bytes = Bytes::from(bytes);
        let mut ndjson = NdjsonParser::new();
        let _ = read_all(&bytes, piece_len, |input| ndjson.next_record(input));
        let mut json_seq = JsonSeqParser::new();
        let _ = read_all(&bytes, piece_len, |input| json_seq.next_record(input));
        let mut multipart = MultipartParser::new("b");
        let _ = read_all(&bytes, piece_len, |input| multipart.next_part(input));
        let _ = Record::from_json(&bytes);
        let _ = Record::from_json_array(&bytes);
        let _ = (Gap::from_json(&bytes), StreamEnd::from_json(&bytes));
    }

    #[test]
    fn multipart_reads_the_same_in_any_pieces(
        words in vec(select(&[
            "\r\n--b", "--b", "--", "\r\n", "\r", "\n", " ", "x", "a: 1\r\n", "\r\n\r\n",
            "Content-Length: 1\r\n", "Content-Length: 5\r\n", "\r\n--b\r\n", "\r\n--b--",
        ][..]), 0..30),
        piece_len in 1_usize..9,
    ) {
        let body = Bytes::from(words.concat());
        let read = |piece_len| {
            let mut parser = MultipartParser::new("b").max_part_len(20).max_headers_len(20);
            let (mut parts, mut failed) = (Vec::new(), false);
            for mut piece in pieces(&body, piece_len) {
                loop {
                    match parser.next_part(&mut piece) {
                        Ok(Some(part)) => parts.push((part.headers, part.content)),
                        Ok(None) => break,
                        Err(_) => {
                            failed = true;
                            break;
                        }
                    }
                }
            }
            (parts, failed)
        };
        let whole = read(body.len().max(1));
        let (parts, failed) = read(piece_len);
        prop_assert_eq!(&parts, &whole.0);
        prop_assert_eq!(failed, whole.1);
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn ndjson_lines_end_in_two_ways() -> Result<(), Error> {
    let input = Bytes::from("1\r\n\n \r\n2\n3");
    let mut parser = NdjsonParser::new();
    assert_eq!(
        read_all(&input, 100, |input| parser.next_record(input))?,
        ["1", "2"]
    );
    assert_eq!(parser.finish().unwrap(), "3");
    Ok(())
}

/// An idle stream sends a space from time to time. The spaces count toward no limit, and the line after them is not copied.
#[test]
fn ndjson_spaces_before_line_are_not_kept() -> Result<(), Error> {
    let mut parser = NdjsonParser::new().max_record_len(8);
    for _ in 0..100 {
        assert_eq!(parser.next_record(&mut Bytes::from("  "))?, None);
    }
    let input = Bytes::from(" {\"a\": 1}\n");
    let record = parser.next_record(&mut input.clone())?.unwrap();
    assert_eq!(record, "{\"a\": 1}");
    assert_eq!(record.as_ptr(), input[1..].as_ptr());
    Ok(())
}

#[test]
fn whole_records_are_not_copied() -> Result<(), Error> {
    let input = Bytes::from("\n{\"a\":1}\n");
    let record = NdjsonParser::new()
        .next_record(&mut input.clone())?
        .unwrap();
    assert_eq!(record.as_ptr(), input[1..].as_ptr());
    let input = Bytes::from("\x1e{\"a\":1}\n");
    let record = JsonSeqParser::new()
        .next_record(&mut input.clone())?
        .unwrap();
    assert_eq!(record.as_ptr(), input[1..].as_ptr());
    Ok(())
}

#[test]
fn records_are_bounded_in_any_pieces() {
    let bodies = [
        ("12345678\n", 8, false),
        ("123456789\n", 8, true),
        ("\x1e12345678\n", 8, false),
        ("\x1e123456789\n", 8, true),
    ];
    for (body, max_len, is_too_long) in bodies {
        for piece_len in [1, 4, 100] {
            let bytes = Bytes::from(body);
            let result = if body.starts_with('\x1e') {
                let mut parser = JsonSeqParser::new().max_record_len(max_len);
                let read = read_all(&bytes, piece_len, |input| parser.next_record(input));
                let again = parser.next_record(&mut Bytes::from("\x1e1\n"));
                assert_eq!(again.is_err(), is_too_long);
                read
            } else {
                let mut parser = NdjsonParser::new().max_record_len(max_len);
                let read = read_all(&bytes, piece_len, |input| parser.next_record(input));
                let again = parser.next_record(&mut Bytes::from("1\n"));
                assert_eq!(again.is_err(), is_too_long);
                read
            };
            match result {
                Ok(records) => assert_eq!(
                    (records, is_too_long),
                    (vec![Bytes::from("12345678")], false)
                ),
                Err(error) => assert!(is_too_long && error.is_too_long()),
            }
        }
    }
}

#[test]
fn limit_that_is_lowered_within_a_record_holds() {
    let mut ndjson = NdjsonParser::new();
    assert!(
        ndjson
            .next_record(&mut Bytes::from("abcdef"))
            .unwrap()
            .is_none()
    );
    ndjson = ndjson.max_record_len(3);
    let error = ndjson.next_record(&mut Bytes::from("g\n")).unwrap_err();
    assert!(error.is_too_long());
    let mut json_seq = JsonSeqParser::new();
    assert!(
        json_seq
            .next_record(&mut Bytes::from("\x1eabcdef"))
            .unwrap()
            .is_none()
    );
    json_seq = json_seq.max_record_len(3);
    let error = json_seq.next_record(&mut Bytes::from("g\n")).unwrap_err();
    assert!(error.is_too_long());
}

/// RFC 7464 §2.4: an object, an array or a string is complete without white space after it.
#[test]
fn json_seq_object_may_end_with_the_next_separator() -> Result<(), Error> {
    let body = Bytes::from("\x1e{\"a\":1}\x1e[2] \x1e\"3\"\x1e4\x1etrue\x1e5\n");
    for piece_len in [1, 3, 100] {
        let mut parser = JsonSeqParser::new();
        let mut read = Vec::new();
        for mut piece in pieces(&body, piece_len) {
            loop {
                match parser.next_record(&mut piece) {
                    Ok(Some(record)) => read.push(text(record.trim_ascii()).to_owned()),
                    Ok(None) => break,
                    Err(error) => {
                        assert!(error.is_malformed());
                        read.push("cut off".to_owned());
                    }
                }
            }
        }
        assert_eq!(
            read,
            ["{\"a\":1}", "[2]", "\"3\"", "cut off", "cut off", "5"],
            "{piece_len}"
        );
    }
    Ok(())
}

#[test]
fn json_seq_reads_the_same_in_any_pieces() {
    let bodies = [
        "\x1econtent-longer-than-9\x1e1\n",
        "\x1e123456789\x1e1\n",
        "\x1e\"12345678\"\x1e1\n",
        "\x1e{}  \x1e\x1e[] ,\x1e2\n",
    ];
    for body in bodies {
        let read = |piece_len| {
            let mut parser = JsonSeqParser::new().max_record_len(9);
            let mut read = Vec::new();
            for mut piece in pieces(&Bytes::from(body), piece_len) {
                loop {
                    match parser.next_record(&mut piece) {
                        Ok(Some(record)) => read.push(text(&record).to_owned()),
                        Ok(None) => break,
                        Err(error) if error.is_too_long() => {
                            read.push("too long".to_owned());
                            return read;
                        }
                        Err(_) => read.push("malformed".to_owned()),
                    }
                }
            }
            read
        };
        let whole = read(100);
        for piece_len in 1..10 {
            assert_eq!(read(piece_len), whole, "{body:?} in pieces of {piece_len}");
        }
    }
}

#[test]
fn json_seq_reports_a_cut_text() -> Result<(), Error> {
    let mut parser = JsonSeqParser::new();
    let mut input = Bytes::from("\x1e{\"a\":\"\\\"}\n\"\n}\n\x1e[1\n,\x1e\"x\n\"\n 5 \x1e7\n");
    assert_eq!(
        parser.next_record(&mut input)?.unwrap(),
        "{\"a\":\"\\\"}\n\"\n}"
    );
    assert!(parser.next_record(&mut input).unwrap_err().is_malformed());
    assert_eq!(parser.next_record(&mut input)?.unwrap(), "\"x\n\"");
    assert!(parser.next_record(&mut input).unwrap_err().is_malformed());
    assert_eq!(parser.next_record(&mut input)?.unwrap(), "7");
    assert!(!parser.is_within_record());
    assert_eq!(parser.next_record(&mut Bytes::from("\x1e\x1e{"))?, None);
    assert!(parser.is_within_record());
    Ok(())
}

#[test]
fn multipart_follows_rfc_2046() -> Result<(), Error> {
    // The example of RFC 2046 §5.1.1: a preamble, a part without headers, padding after a delimiter, an epilogue.
    let body = "This is the preamble.\r\n--simple boundary\r\n\r\nimplicitly typed\r\n--simple boundary \t\r\n\
        Content-type: text/plain; charset=us-ascii\r\n\r\nexplicitly typed\r\n\r\n--simple boundary-not\r\n\
        \r\n--simple boundary--\r\nThis is the epilogue.\r\n--simple boundary\r\n\r\nno part\r\n";
    let content_type = HeaderValue::from_static("multipart/mixed; Boundary=\"simple boundary\"");
    for piece_len in [1, 7, 1000] {
        let mut parser = multipart_parser(&content_type);
        let parts = read_all(&Bytes::from(body), piece_len, |input| {
            parser.next_part(input)
        })?;
        let contents: Vec<_> = parts.iter().map(|part| text(&part.content)).collect();
        let second = "explicitly typed\r\n\r\n--simple boundary-not\r\n";
        assert_eq!(contents, ["implicitly typed", second]);
        assert_eq!(parts[0].media_type(), None);
        assert_eq!(parts[1].media_type(), Some("text/plain"));
        assert!(parser.is_finished());
    }
    Ok(())
}

/// RFC 2046 §5.1.1: the line break before a delimiter belongs to the delimiter, also directly after the headers.
#[test]
fn multipart_parts_may_be_empty() -> Result<(), Error> {
    let with_header = "--b\r\nX: y\r\n\r\n--b\r\n\r\n\r\n--b--";
    let without_header = "--b\r\n\r\n--b\r\n\r\nq\r\n--b--";
    for (body, expected) in [(with_header, ["", ""]), (without_header, ["", "q"])] {
        for piece_len in [1, 3, 100] {
            let mut parser = MultipartParser::new("b");
            let parts = read_all(&Bytes::from(body), piece_len, |input| {
                parser.next_part(input)
            })?;
            let contents: Vec<_> = parts.iter().map(|part| text(&part.content)).collect();
            assert_eq!(contents, expected, "{body:?} in pieces of {piece_len}");
            assert!(parser.is_finished());
        }
    }
    Ok(())
}

#[test]
fn multipart_boundary_needs_both_quotes() {
    for content_type in [
        "multipart/mixed; boundary=\"",
        "multipart/mixed; boundary=\"a",
    ] {
        let error = MultipartParser::from_content_type(&HeaderValue::from_static(content_type));
        assert!(error.unwrap_err().is_malformed(), "{content_type}");
    }
}

#[test]
fn multipart_part_of_known_length_is_returned_early() -> Result<(), Error> {
    let mut parser = MultipartParser::new("b");
    let mut input = &b"--b\r\nContent-Length: 8\r\n\r\n\r\n--b--\r"[..];
    let part = parser.next_part(&mut input)?.unwrap();
    assert_eq!(part.content, "\r\n--b--\r");
    assert!(!parser.is_finished());
    assert!(parser.next_part(&mut &b"\r\n--"[..])?.is_none());
    assert!(parser.next_part(&mut &b"b--"[..])?.is_none());
    assert!(parser.is_finished());
    Ok(())
}

#[test]
fn broken_multipart_fails_for_good() {
    let long = "x".repeat(30);
    let bodies = [
        ("--b\r\nContent-Length: 1\r\n\r\nxyz\r\n--b", false),
        ("--b\r\nContent-Length: -1\r\n\r\n", false),
        ("--b\r\nContent-Length: 21\r\n\r\n", true),
        (
            "--b\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            true,
        ),
        ("--b\r\nno colon\r\n\r\n", false),
        ("--b\r\na b: c\r\n\r\n", false),
        (&format!("--b\r\na: {long}\r\n\r\n"), true),
        (&format!("--b\r\n\r\n{long}\r\n--b--"), true),
    ];
    for (body, is_too_long) in bodies {
        for piece_len in [1, 5, 1000] {
            let mut parser = MultipartParser::new("b").max_part_len(20);
            parser = parser.max_headers_len(if body.contains("99999") { 99 } else { 25 });
            let read = read_all(
                &Bytes::copy_from_slice(body.as_bytes()),
                piece_len,
                |input| parser.next_part(input),
            );
            let error = read.unwrap_err();
            assert_eq!(error.is_too_long(), is_too_long, "{body:?}");
            assert_eq!(error.is_malformed(), !is_too_long, "{body:?}");
            let again = parser.next_part(&mut &b"\r\n--b\r\n\r\n\r\n--b--"[..]);
            assert!(again.unwrap_err().is_malformed());
        }
    }
    for content_type in [
        "multipart/mixed",
        "multipart/mixed; boundary=",
        "multipart/mixed; boundary=\"\"",
        "multipart/mixed; x=\"; boundary=b\"",
    ] {
        let content_type = HeaderValue::from_static(content_type);
        let error = MultipartParser::from_content_type(&content_type).unwrap_err();
        assert!(error.is_malformed());
    }
}

#[test]
fn record_with_invalid_member_is_an_error() {
    let error = |json: &str| Record::from_json(json.as_bytes()).unwrap_err();
    for json in [
        "",
        "1",
        "[]",
        "{",
        "{\"id\":7}",
        "{\"gap\":1}",
        "{\"end\":{\"finished\":1}}",
    ] {
        assert!(error(json).is_json(), "{json}");
    }
    assert!(error(r#"{"id":"a b"}"#).is_invalid_id());
    assert!(error(r#"{"cursor":"a b","data":1}"#).is_invalid_id());
    assert!(error(r#"{"topic":"","data":1}"#).is_invalid_topic());
    assert!(error(r#"{"topic":"a","topics":["a",""],"data":1}"#).is_invalid_topic());
    assert!(error(r#"{"topics":["a",1],"data":1}"#).is_json());
    assert!(error(r#"{"event":" ","data":1}"#).is_invalid_type());
    assert!(error(r#"{"data_base64":"*"}"#).is_malformed());
    for ignored in [
        "{}",
        r#"{"heartbeat":true}"#,
        r#"{"new":{"data":1}}"#,
        r#"{"id":null}"#,
    ] {
        assert!(
            Record::from_json(ignored.as_bytes()).unwrap().is_none(),
            "{ignored}"
        );
    }
}

#[test]
fn record_becomes_an_item() {
    let item = |json: &str| {
        Record::from_json(json.as_bytes())
            .unwrap()
            .unwrap()
            .into_item()
    };
    assert!(matches!(item(r#"{"data":1}"#), Some(Item::Event(_))));
    let with_cursor = item(r#"{"data":1,"cursor":"9"}"#).unwrap();
    assert!(matches!(&with_cursor, Item::EventWithCursor { .. }));
    assert_eq!(with_cursor.cursor(), Some(&EventId::from(9)));
    assert!(matches!(item(r#"{"id":"9"}"#), Some(Item::Cursor(_))));
    assert!(
        matches!(item(r#"{"gap":{"reason":"unheard of"}}"#), Some(Item::Gap(gap)) if gap.reason == GapReason::Epoch)
    );
    assert!(matches!(
        item(r#"{"end":{"finished":true}}"#),
        Some(Item::Finished)
    ));
    assert!(item(r#"{"end":{"finished":false}}"#).is_none());
    let retry = item(r#"{"end":{"finished":false,"retry":1500}}"#);
    assert!(matches!(retry, Some(Item::Ended { retry }) if retry == Duration::from_millis(1500)));
}
