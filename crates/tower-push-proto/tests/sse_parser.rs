//! Tests that the SSE parser follows the standard, reads pieces of any length, and enforces its limits.

use std::time::Duration;

use bytes::{Buf, Bytes};
use proptest::prelude::*;
use tower_push_proto::{
    Error,
    sse::{SseEvent, SseParser},
};

/// The result of parsing a stream: events as (type, data, last event ID), the last event ID, and the reconnection time.
type ParsedStream = (Vec<(String, String, String)>, String, Option<Duration>);

fn read_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> ParsedStream {
    let mut parser = SseParser::new();
    let mut events = Vec::new();
    for mut piece in pieces {
        while let Some(event) = parser.next_event(&mut piece).unwrap() {
            let event_type = event.event_type.unwrap_or_else(|| "message".to_owned());
            events.push((event_type, event.data, parser.last_event_id().to_owned()));
        }
        assert!(!piece.has_remaining());
    }
    (events, parser.last_event_id().to_owned(), parser.retry())
}

fn read(stream: &str) -> ParsedStream {
    read_pieces([stream.as_bytes()])
}

fn data(stream: &str) -> Vec<String> {
    read(stream)
        .0
        .into_iter()
        .map(|(_, data, _)| data)
        .collect()
}

/// Parses a whole stream with a literal implementation of the algorithm in WHATWG HTML §9.2.6.
fn parse_as_specified(stream: &[u8]) -> ParsedStream {
    let text = String::from_utf8_lossy(stream).into_owned();
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut data, mut event_type, mut id) = (String::new(), String::new(), String::new());
    let (mut events, mut last_event_id, mut retry) = (Vec::new(), String::new(), None);
    // The text after the last line feed is an incomplete line.
    let lines: Vec<_> = text.split('\n').collect();
    for line in &lines[..lines.len() - 1] {
        if line.is_empty() {
            last_event_id.clone_from(&id);
            if !data.is_empty() {
                data.pop();
                let is_named = !event_type.is_empty();
                let name = if is_named { &event_type } else { "message" };
                events.push((name.to_owned(), data.clone(), last_event_id.clone()));
            }
            data.clear();
            event_type.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event_type = value.to_owned(),
            "data" => data = format!("{data}{value}\n"),
            "id" if !value.contains('\0') => id = value.to_owned(),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                let millis = value.parse().unwrap_or(u64::MAX);
                retry = Some(Duration::from_millis(millis));
            }
            _ => {}
        }
    }
    (events, last_event_id, retry)
}

#[test]
fn standard_is_followed() {
    assert_eq!(data("\u{feff}data: 1\n\n"), ["1"]);
    assert_eq!(data("\u{feff}\u{feff}data: 1\n\n"), [""; 0]);
    assert_eq!(data("data: 1\n\n\u{feff}data: 2\n\n"), ["1"]);
    assert_eq!(data("data:1\rdata:2\r\n\rdata:3\n\n"), ["1\n2", "3"]);
    assert_eq!(data("data\n\n"), [""]);
    assert_eq!(data("data:\n\n"), [""]);
    assert_eq!(data("data\ndata\n\n"), ["\n"]);
    assert_eq!(data("data: x"), [""; 0]);
    assert_eq!(data("data: x\n"), [""; 0]);
    assert_eq!(data(":\n:\nfoo: bar\n data: x\n\n"), [""; 0]);
    assert_eq!(data("data:  two\n\n"), [" two"]);
    assert_eq!(data("data: a:b: c\n\n"), ["a:b: c"]);

    let ids = |stream: &str| read(stream).1;
    assert_eq!(ids("id: 1\n\nid\ndata: x\n\n"), "");
    assert_eq!(ids("id: 1\n\n"), "1");
    assert_eq!(ids("id: a\0b\ndata: x\n\n"), "");
    assert_eq!(ids("id: 1\ndata: cut"), "");

    let (events, ..) = read("event: x\n\ndata: y\n\nid: 3\nevent: z\ndata:1\n\ndata:2\n\n");
    let event = |event_type: &str, data: &str, id: &str| {
        (event_type.to_owned(), data.to_owned(), id.to_owned())
    };
    let expected = [
        event("message", "y", ""),
        event("z", "1", "3"),
        event("message", "2", "3"),
    ];
    assert_eq!(events, expected);

    for odd in ["1000x", "-1", "1e3", "", "1.5", "+1"] {
        assert_eq!(read(&format!("retry:{odd}\n")).2, None, "{odd}");
    }
    assert_eq!(read("retry: 1005\n").2, Some(Duration::from_millis(1005)));
    let many = "9".repeat(30);
    assert_eq!(
        read(&format!("retry: {many}\n")).2,
        Some(Duration::from_millis(u64::MAX))
    );
}

/// The streams of the tests `eventsource/format-*` and `event-data` of <https://github.com/web-platform-tests/wpt>, and the data that an
/// `EventSource` must have dispatched.
#[test]
fn web_platform_tests_are_passed() {
    let comment = "x".repeat(2048);
    let comments =
        format!("data:1\r:\0\n:\r\ndata:2\n:{comment}\rdata:3\n:data:fail\r:{comment}\ndata:4\n\n");
    let cases: [(&str, &str, &[&str]); 16] = [
        (
            "format-bom",
            "\u{feff}data:1\n\n\u{feff}data:2\n\ndata:3\n\n\n",
            &["1", "3"],
        ),
        (
            "format-bom-2",
            "\u{feff}\u{feff}data:1\n\ndata:2\n\ndata:3\n\n\n",
            &["2", "3"],
        ),
        ("format-comments", &comments, &["1\n2\n3\n4"]),
        (
            "format-data-before-final-empty-line",
            "retry:1000\ndata:test1\n\nid:test\ndata:test2\n",
            &["test1"],
        ),
        (
            "format-field-data",
            "data:\n\ndata\ndata\n\ndata:test\n\n\n",
            &["", "\n", "test"],
        ),
        (
            "format-field-event",
            "event:test\ndata:x\n\ndata:x\n\n\n",
            &["x", "x"],
        ),
        (
            "format-field-event-empty",
            "event: \ndata:data\n\n\n",
            &["data"],
        ),
        (
            "format-field-parsing",
            "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
            &["\0\n 2\n1\n3\n\n4"],
        ),
        (
            "format-field-retry",
            "retry:3000\ndata:opened\n\n\n",
            &["opened"],
        ),
        (
            "format-field-retry-bogus",
            "retry:3000\nretry:1000x\ndata:x\n\n\n",
            &["x"],
        ),
        (
            "format-field-retry-empty",
            "retry\ndata:test\n\n\n",
            &["test"],
        ),
        (
            "format-field-unknown",
            "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n\n",
            &["test\n\ntest"],
        ),
        (
            "format-leading-space",
            "data:\ttest\rdata: \ndata:test\n\n\n",
            &["\ttest\n\ntest"],
        ),
        (
            "format-newlines",
            "data:test\r\ndata\ndata:test\r\n\r\n",
            &["test\n\ntest"],
        ),
        ("format-null-character", "data:\0\n\n\n\n", &["\0"]),
        (
            "event-data",
            "data:msg\ndata: msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\ndata:end\n\n",
            &["msg\nmsg", "", "end"],
        ),
    ];
    for (name, stream, expected) in cases {
        let whole = read(stream);
        let data: Vec<_> = whole.0.iter().map(|(_, data, _)| data).collect();
        assert_eq!(data, expected, "{name}");
        for at in 0..stream.len() {
            let (front, back) = stream.as_bytes().split_at(at);
            assert_eq!(read_pieces([front, back]), whole, "{name}, cut at {at}");
        }
    }

    let types = |stream: &str| -> Vec<_> { read(stream).0.into_iter().map(|e| e.0).collect() };
    assert_eq!(types(cases[5].1), ["test", "message"]);
    assert_eq!(types(cases[6].1), ["message"]);
    let retry = |stream: &str| read(stream).2;
    assert_eq!(retry(cases[8].1), Some(Duration::from_secs(3)));
    assert_eq!(retry(cases[9].1), Some(Duration::from_secs(3)));
    assert_eq!(retry(cases[10].1), None);
    // An id takes effect with the end of its event, and one with a null character does not.
    assert_eq!(read(cases[3].1).1, "");
    let ids = "id: \0hello\ndata: 1\n\nid: he\0llo\ndata: 2\n\nid: hello\ndata: 3\n\ndata: 4\n\nid\ndata: 5\n\n";
    let ids: Vec<_> = read(ids).0.into_iter().map(|event| event.2).collect();
    assert_eq!(ids, ["", "", "hello", "hello", ""]);
    // A parser decodes UTF-8 even if the `Content-Type` names another charset.
    let (events, ..) = read_pieces([&b"data:ok\xe2\x80\xa6\xff\n\n"[..]]);
    assert_eq!(events[0].1, "ok\u{2026}\u{fffd}");
}

#[test]
fn events_have_their_own_id_and_topic() -> Result<(), Error> {
    let mut input = Bytes::from(
        "topic: a\ntopics: a\tb\nid: 1\nevent_id: 0\ndata: x\n\ndata: y\n\nid:\ndata: z\n\n",
    );
    let mut parser = SseParser::new();
    let mut next = || parser.next_event(&mut input).map(Option::unwrap);
    let event = next()?;
    assert_eq!(
        (event.id.as_deref(), event.topic.as_deref()),
        (Some("1"), Some("a"))
    );
    assert_eq!(event.event_id.as_deref(), Some("0"));
    let event = next()?;
    assert_eq!((event.id, event.topic, event.topics), (None, None, None));
    assert_eq!(event.event_id, None);
    let event = next()?;
    assert_eq!(event.id.as_deref(), Some(""));
    Ok(())
}

#[test]
fn event_is_returned_at_its_last_byte() {
    for stream in ["data: x\n\n", "data: x\r\r", "data: x\r\n\r"] {
        let mut parser = SseParser::new();
        let (last, before) = stream.as_bytes().split_last().unwrap();
        assert_eq!(parser.next_event(&mut &before[..]).unwrap(), None);
        let event = parser.next_event(&mut &[*last][..]).unwrap();
        assert_eq!(event.unwrap().data, "x", "{stream:?}");
    }
}

#[test]
fn restart_keeps_cursor_and_drops_the_rest() -> Result<(), Error> {
    let mut parser = SseParser::new();
    let mut input = &b"\xef\xbb\xbfid: 7\nretry: 5\n\nevent: lost\ndata: lost\nid: 8\r"[..];
    assert_eq!(parser.next_event(&mut input)?, None);
    parser.restart();
    assert_eq!(parser.last_event_id(), "7");
    assert_eq!(parser.retry(), Some(Duration::from_millis(5)));
    let mut input = &b"\xef\xbb\xbfdata: new\n\n"[..];
    let event = parser.next_event(&mut input)?.unwrap();
    let expected = SseEvent::default();
    assert_eq!(
        (event.event_type, event.id),
        (expected.event_type, expected.id)
    );
    assert_eq!(event.data, "new");
    assert_eq!(parser.last_event_id(), "");
    Ok(())
}

#[test]
fn lines_are_bounded_in_any_pieces() {
    for stream in [
        "data: 123456789\n\n",
        "data: 12345678\n\n",
        ":a long comment is not kept\n\n",
    ] {
        for piece_len in [1, 3, 100] {
            let mut parser = SseParser::new().max_line_len(14);
            let mut read = || -> Result<(), Error> {
                for mut piece in stream.as_bytes().chunks(piece_len) {
                    while parser.next_event(&mut piece)?.is_some() {}
                }
                Ok(())
            };
            let is_too_long = read().is_err_and(|error| error.is_too_long());
            assert_eq!(
                is_too_long,
                stream.contains('9'),
                "{stream:?} by {piece_len}"
            );
            // Every later call fails too.
            let next = parser.next_event(&mut &b"data:\n\n"[..]);
            assert_eq!(next.is_err(), is_too_long);
        }
    }
}

#[test]
fn events_are_bounded() {
    let mut parser = SseParser::new().max_event_len(7);
    let mut input = &b"data: 123\ndata: 456\n\ndata: 123\ndata: 4567\n\n"[..];
    assert_eq!(
        parser.next_event(&mut input).unwrap().unwrap().data,
        "123\n456"
    );
    let error = parser.next_event(&mut input).unwrap_err();
    assert!(error.is_too_long());
    let detail = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(detail, "the data of an event has more than 7 bytes");
}

/// Generates streams of known fields with arbitrary line breaks and errors.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let word = proptest::sample::select(
        &[
            "data", "event", "id", "retry", "topic", "topics", ":", ": ", " ", "\n", "\r", "\r\n",
            "\n\n", "\u{feff}", "7", "x", "é", "\0",
        ][..],
    );
    let bytes = prop_oneof![
        20 => word.prop_map(|word| word.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(bytes, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_stream_reads_as_the_standard_says(stream in stream(), piece_len in 1_usize..20) {
        let expected = parse_as_specified(&stream);
        prop_assert_eq!(&read_pieces([&stream[..]]), &expected);
        prop_assert_eq!(&read_pieces(stream.chunks(1)), &expected);
        prop_assert_eq!(&read_pieces(stream.chunks(piece_len)), &expected);
    }
}

/// The limit of the first line does not count a byte order mark, wherever the input is cut.
#[test]
fn byte_order_mark_does_not_count_toward_limit() {
    let input = "\u{feff}data: 89\n\n";
    for max_line_len in [7, 8] {
        for piece_len in [1, 4, 100] {
            let mut parser = SseParser::new().max_line_len(max_line_len);
            let mut read = Vec::new();
            let mut is_too_long = false;
            for mut piece in input.as_bytes().chunks(piece_len) {
                match parser.next_event(&mut piece) {
                    Ok(event) => read.extend(event),
                    Err(error) => is_too_long |= error.is_too_long(),
                }
            }
            assert_eq!(is_too_long, max_line_len == 7, "{piece_len}");
            assert_eq!(read.len(), usize::from(max_line_len == 8), "{piece_len}");
        }
    }
}

/// A comment has no limit, also after a byte order mark, wherever the input is cut.
#[test]
fn comment_after_byte_order_mark_has_no_limit() {
    let input = format!("\u{feff}:{}\ndata: 8\n\n", "x".repeat(100));
    for piece_len in [1, 2, 3, 4, 5, 1000] {
        let mut parser = SseParser::new().max_line_len(8);
        let mut read = Vec::new();
        for mut piece in input.as_bytes().chunks(piece_len) {
            read.extend(parser.next_event(&mut piece).unwrap());
        }
        assert_eq!(read.len(), 1, "{piece_len}");
        assert_eq!(read[0].data, "8");
    }
}
