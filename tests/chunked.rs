//! Chunked streaming: the bytes of each format.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Response};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::{body_frames, body_text, get_request_head, records::find_bytes};
use tower_push::{
    Event, EventId, Gap, GapReason, Item, Json, KeepAlive, Push, PushBody, PushSource,
    event::IntoItem,
    format::{Format, JsonSeq, Multipart, Ndjson, Raw},
    transport::{Chunked, Sse, Transport},
};

async fn respond(
    format: impl Format,
    source: impl PushSource + Send + 'static,
) -> Response<PushBody> {
    let keep_alive = KeepAlive::new()
        .interval(Duration::from_secs(15))
        .jitter(0.0);
    let chunked = Chunked::new(format).keep_alive(keep_alive);
    chunked
        .respond(&mut get_request_head("/", &[]), Push::new(source))
        .await
}

/// Returns the whole response body for these items.
async fn written_body(format: impl Format, items: Vec<Item>) -> String {
    body_text(respond(format, stream::iter(items)).await.into_body()).await
}

/// Returns one item of each kind that a source can yield.
fn one_item_of_each_kind() -> Vec<Item> {
    let id = |id: &str| EventId::new(id).unwrap();
    let item = |event: Event| event.into_item().unwrap();
    vec![
        Item::Cursor(id("a-0")),
        item(
            Event::json(&json!({"eur": 21.5}))
                .unwrap()
                .with_type("price")
                .unwrap()
                .with_id("a-1")
                .unwrap(),
        ),
        item(Event::text("two\nlines \"quoted\"\r\u{1e}\u{2028}")),
        item(Event::binary(&b"\x00\xff"[..])),
        item(Event::text("")),
        Item::from(Gap::new(GapReason::Lagged).resumed(id("a-9")).missed(6)),
    ]
}

/// Returns an event, the end, and an event that must not be sent.
fn event_then_finished() -> Vec<Item> {
    let event = Event::text("last").into_item().unwrap();
    vec![event.clone(), Item::Finished, event]
}

mod ndjson {
    use super::*;

    #[tokio::test]
    async fn each_line_is_one_json_text() {
        let body = written_body(Ndjson::new(), one_item_of_each_kind()).await;
        assert_eq!(
            body,
            concat!(
                " ",
                "{\"id\":\"a-0\"}\n",
                "{\"id\":\"a-1\",\"event\":\"price\",\"data\":{\"eur\":21.5}}\n",
                "{\"data\":\"two\\nlines \\\"quoted\\\"\\r\\u001e\\u2028\"}\n",
                "{\"data_base64\":\"AP8=\"}\n",
                "{\"data\":\"\"}\n",
                "{\"id\":\"a-9\",\"gap\":{\"reason\":\"lagged\",\"requested\":null,\"resumed\":\"a-9\",\"missed\":6}}\n",
                "{\"end\":{\"finished\":false}}\n",
            )
        );
        for text in body.lines() {
            serde_json::from_str::<Value>(text).unwrap();
        }
    }

    #[tokio::test]
    async fn finished_stream_has_finished_end_record() {
        let body = written_body(Ndjson::new(), event_then_finished()).await;
        assert_eq!(
            body,
            " {\"data\":\"last\"}\n{\"id\":\"~finished\",\"end\":{\"finished\":true}}\n"
        );
    }

    #[tokio::test]
    async fn pretty_json_is_put_on_one_line() {
        let pretty = Event::json_text("{\n  \"a\": 1\r\n}").unwrap();
        let body = written_body(Ndjson::new(), vec![pretty.into_item().unwrap()]).await;
        assert!(
            body.starts_with(" {\"data\":{   \"a\": 1  }}\n"),
            "{body:?}"
        );
    }

    #[tokio::test]
    async fn response_has_requested_media_type() {
        for (accept, content_type) in [
            ("*/*", "application/x-ndjson"),
            ("application/jsonl", "application/jsonl"),
            ("application/json-lines", "application/json-lines"),
            ("application/ndjson, text/html", "application/ndjson"),
            ("text/html", "application/x-ndjson"),
        ] {
            let push = Push::new(stream::iter(["a"]));
            let mut head = get_request_head("/", &[("accept", accept)]);
            let response = Chunked::default().respond(&mut head, push).await;
            assert_eq!(response.headers()["content-type"], content_type);
        }
    }

    proptest! {
        #[test]
        fn every_payload_parses_back(text: String, number: i64, bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let value = json!({ "text": text, "number": number });
            let items = vec![
                text.clone().into_item().unwrap(),
                Json(value.clone()).into_item().unwrap(),
                bytes.clone().into_item().unwrap(),
            ];
            let body = runtime.block_on(written_body(Ndjson::new(), items));
            let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            prop_assert_eq!(&lines[0]["data"], &Value::String(text));
            prop_assert_eq!(&lines[1]["data"], &value);
            let base64 = lines[2]["data_base64"].as_str().unwrap();
            prop_assert_eq!(base64::Engine::decode(&base64::prelude::BASE64_STANDARD, base64).unwrap(), bytes);
            prop_assert_eq!(lines.len(), 4);
        }
    }
}

mod json_seq {
    use super::*;

    #[tokio::test]
    async fn each_record_is_framed_by_separator_and_line_feed() {
        let body = written_body(JsonSeq::new(), one_item_of_each_kind()).await;
        let (first, records) = body.split_at(1);
        assert_eq!(first, "\u{1e}", "the first byte is sent at once");
        let ndjson = written_body(Ndjson::new(), one_item_of_each_kind()).await;
        let expected: String = ndjson
            .trim_start()
            .lines()
            .map(|line| format!("\u{1e}{line}\n"))
            .collect();
        assert_eq!(records, expected);
    }

    /// RFC 7464 §2.1: the bytes between separators are one text. No bytes are no text, and a text without its line feed was cut off.
    #[tokio::test]
    async fn rfc_7464_parser_detects_cut_records() {
        let parse = |bytes: &str| -> Vec<Result<Value, ()>> {
            let records = bytes.split('\u{1e}').filter(|record| !record.is_empty());
            records
                .map(|record| record.strip_suffix('\n').ok_or(()))
                .map(|text| serde_json::from_str(text?).map_err(drop))
                .collect()
        };
        let body = written_body(JsonSeq::new(), one_item_of_each_kind()).await;
        assert!(parse(&body).iter().all(Result::is_ok));
        assert_eq!(parse(&body).len(), 7);
        for len in 1..body.len() {
            let Some((cut, _)) = body.split_at_checked(len) else {
                continue;
            };
            let whole = cut.ends_with(['\n', '\u{1e}']);
            assert_eq!(parse(cut).iter().all(Result::is_ok), whole, "{cut:?}");
        }
    }
}

mod raw {
    use super::*;

    fn texts(texts: &[&'static str]) -> Vec<Item> {
        texts.iter().map(|text| text.into_item().unwrap()).collect()
    }

    #[tokio::test]
    async fn payloads_are_written_verbatim() {
        let lines = texts(&["one", "", "{\"two\":2}"]);
        assert_eq!(
            written_body(Raw::new(), lines).await,
            "\none\n{\"two\":2}\n"
        );
        let tokens = texts(&["Hel", "lo,\n", "world"]);
        assert_eq!(
            written_body(Raw::new().separator(""), tokens).await,
            "Hello,\nworld"
        );
        let blocks = Raw::new()
            .separator("\r\n\r\n")
            .media_type("application/x-blocks");
        let response = respond(blocks, stream::iter(["a\n", "b"])).await;
        assert_eq!(response.headers()["content-type"], "application/x-blocks");
        assert_eq!(
            body_text(response.into_body()).await,
            "\r\n\r\na\n\r\n\r\nb\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn payload_with_separator_cuts_stream() {
        let body = respond(Raw::new(), stream::iter(["fine", "two\nlines"]))
            .await
            .into_body();
        let (frames, end) = body_frames(body).await;
        assert_eq!(frames.concat(), b"\nfine\n");
        let error = end.unwrap_err();
        assert!(
            error
                .downcast_ref::<tower_push::Error>()
                .unwrap()
                .is_delimiter_in_payload()
        );
    }

    #[tokio::test]
    async fn gap_cuts_stream_unless_it_has_a_record() {
        let items = || stream::iter([Gap::new(GapReason::Lagged)]);
        let (frames, end) = body_frames(respond(Raw::new(), items()).await.into_body()).await;
        assert_eq!(frames.concat(), b"\n");
        let error = end.unwrap_err();
        assert!(
            error
                .downcast_ref::<tower_push::Error>()
                .unwrap()
                .is_gap_unsupported()
        );
        let body = respond(Raw::new().gap("# gap"), items()).await.into_body();
        assert_eq!(body_text(body).await, "\n# gap\n");
    }

    #[tokio::test(start_paused = true)]
    async fn empty_separator_disables_heartbeats() {
        let mut body = respond(Raw::new().separator(""), stream::pending::<Event>())
            .await
            .into_body();
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, body.frame()).await.is_err());
    }
}

mod multipart {
    use super::*;

    fn boundary(response: &Response<PushBody>) -> String {
        let content_type = response.headers()["content-type"].to_str().unwrap();
        content_type.split_once("; boundary=").unwrap().1.to_owned()
    }

    /// Parses a body by RFC 2046, and returns the headers and contents of its parts. Asserts that the body has its closing delimiter.
    fn parts(body: &[u8], boundary: &str) -> Vec<(String, Vec<u8>)> {
        let delimiter = format!("\r\n--{boundary}");
        // The first delimiter may have no line break before it.
        let body = [b"\r\n", body].concat();
        let mut pieces = Vec::new();
        let mut rest = &body[..];
        while let Some(end) = find_bytes(rest, delimiter.as_bytes()) {
            pieces.push(&rest[..end]);
            rest = &rest[end + delimiter.len()..];
        }
        assert_eq!(rest, b"--\r\n", "the closing delimiter");
        assert_eq!(pieces[0], b"", "no preamble");
        pieces[1..]
            .iter()
            .map(|piece| {
                let piece = piece.strip_prefix(b"\r\n").unwrap();
                let end = find_bytes(piece, b"\r\n\r\n").unwrap();
                (
                    String::from_utf8(piece[..end].to_vec()).unwrap(),
                    piece[end + 4..].to_vec(),
                )
            })
            .collect()
    }

    #[tokio::test]
    async fn each_item_is_one_part() {
        let response = respond(Multipart::mixed(), stream::iter(one_item_of_each_kind())).await;
        let boundary = boundary(&response);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let parts = parts(&body, &boundary);
        let control = "Content-Type: application/vnd.tower-push+json\r\nContent-Length";
        let expected: [(&str, &[u8]); 7] = [
            (control, b"{\"id\":\"a-0\"}"),
            ("Content-Type: application/json\r\nEvent-ID: a-1\r\nEvent-Type: price\r\nContent-Length", b"{\"eur\":21.5}"),
            ("Content-Type: text/plain; charset=utf-8\r\nContent-Length", "two\nlines \"quoted\"\r\u{1e}\u{2028}".as_bytes()),
            ("Content-Type: application/octet-stream\r\nContent-Length", b"\x00\xff"),
            ("Content-Type: text/plain; charset=utf-8\r\nContent-Length", b""),
            (control, b"{\"id\":\"a-9\",\"gap\":{\"reason\":\"lagged\",\"requested\":null,\"resumed\":\"a-9\",\"missed\":6}}"),
            (control, b"{\"end\":{\"finished\":false}}"),
        ];
        assert_eq!(parts.len(), expected.len());
        for ((headers, content), (start, body)) in parts.iter().zip(expected) {
            assert_eq!(*headers, format!("{start}: {}", body.len()));
            assert_eq!(content, body);
        }
    }

    #[tokio::test]
    async fn part_is_sent_with_its_closing_boundary() {
        let items = stream::iter(["now"]).chain(stream::pending());
        let response = respond(Multipart::mixed(), items).await;
        let boundary = boundary(&response);
        let mut body = response.into_body();
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let expected = format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\r\nnow\r\n--{boundary}\r\n"
        );
        assert_eq!(frame, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeat_is_part_or_header_of_next_part() {
        for (format, expected) in [
            (
                Multipart::mixed(),
                "Content-Type: application/vnd.tower-push+json\r\nContent-Length: 18\r\n\r\n{\"heartbeat\":true}\r\n--B\r\n",
            ),
            (Multipart::replace(), "Heartbeat: 1"),
        ] {
            let response = respond(format, stream::pending::<Event>()).await;
            let boundary = boundary(&response);
            let mut body = response.into_body();
            let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(next().await, format!("--{boundary}\r\n"));
            assert_eq!(
                next().await,
                expected.replace("--B", &format!("--{boundary}"))
            );
        }
    }

    /// Heartbeats share one header line, because parsers limit the number of header lines.
    #[tokio::test(start_paused = true)]
    async fn day_of_heartbeats_is_one_header_line() {
        let (events, received) = tokio::sync::mpsc::channel(1);
        let items = tokio_stream::wrappers::ReceiverStream::new(received);
        let response = respond(Multipart::replace(), items).await;
        let boundary = boundary(&response);
        let mut body = response.into_body();
        let mut read = Vec::new();
        for _ in 0..5760 {
            read.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        events.send("at last").await.unwrap();
        drop(events);
        read.extend(body.collect().await.unwrap().to_bytes());
        let parts = parts(&read, &boundary);
        let lines: Vec<_> = parts[0].0.split("\r\n").collect();
        assert_eq!(lines[0], format!("Heartbeat: {}", "1".repeat(5759)));
        assert_eq!(
            lines[1..],
            [
                "Content-Type: text/plain; charset=utf-8",
                "Content-Length: 7"
            ]
        );
        assert_eq!(parts[0].1, b"at last");
    }

    #[tokio::test]
    async fn replacing_parts_hold_events_only() {
        let jpeg_parts = Multipart::replace().binary_type(HeaderValue::from_static("image/jpeg"));
        let id = EventId::new("a-1").unwrap();
        let items = vec![
            Item::Cursor(id),
            Event::binary(&b"\xff\xd8one"[..]).into_item().unwrap(),
            Item::from(Gap::new(GapReason::Lagged)),
            Event::binary(&b"\xff\xd8two"[..]).into_item().unwrap(),
        ];
        let response = respond(jpeg_parts, stream::iter(items)).await;
        let boundary = boundary(&response);
        assert!(
            response.headers()["content-type"]
                .to_str()
                .unwrap()
                .starts_with("multipart/x-mixed-replace; ")
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let parts = parts(&body, &boundary);
        assert_eq!(
            parts,
            [
                ("Cursor: a-1\r\nContent-Type: image/jpeg\r\nContent-Length: 5".to_owned(), b"\xff\xd8one".to_vec()),
                (
                    "Gap: {\"reason\":\"lagged\",\"requested\":null,\"resumed\":null,\"missed\":null}\r\nContent-Type: image/jpeg\r\nContent-Length: 5"
                        .to_owned(),
                    b"\xff\xd8two".to_vec()
                ),
                ("End: {\"finished\":false}".to_owned(), Vec::new()),
            ]
        );
    }

    #[tokio::test]
    async fn finished_stream_moves_cursor_in_both_subtypes() {
        for (format, expected) in [
            (
                Multipart::mixed(),
                "{\"id\":\"~finished\",\"end\":{\"finished\":true}}",
            ),
            (
                Multipart::replace(),
                "Cursor: ~finished\r\nEnd: {\"finished\":true}\r\n\r\n",
            ),
        ] {
            let body = written_body(format, event_then_finished()).await;
            assert!(body.contains(expected), "{body}");
            assert!(body.ends_with("--\r\n"));
        }
    }

    #[tokio::test]
    async fn boundary_is_random_and_cannot_be_forged() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            let response = respond(Multipart::mixed(), stream::iter(["a"])).await;
            let boundary = boundary(&response);
            assert_eq!(boundary.len(), 32);
            assert!(boundary.bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(seen.insert(boundary));
        }

        let (events, received) = tokio::sync::mpsc::channel(2);
        let items = tokio_stream::wrappers::ReceiverStream::new(received);
        let response = respond(Multipart::mixed(), items).await;
        let boundary = boundary(&response);
        events
            .send(format!("innocent\r\n--{boundary}\r\n\r\nforged"))
            .await
            .unwrap();
        drop(events);
        let body = body_text(response.into_body()).await;
        let parts: Vec<_> = body.split(&format!("--{boundary}")).collect();
        let ["", gap, end, "--\r\n"] = parts[..] else {
            panic!("{body}");
        };
        assert!(gap.contains(r#""gap":{"reason":"unsupported""#), "{body}");
        assert!(end.contains(r#""end":"#), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn default_heartbeat_interval_is_15_s_with_jitter() {
    let sse: &dyn Transport = &Sse::new();
    for transport in [sse, &Chunked::default()] {
        let push = Push::new(stream::pending::<Event>());
        let mut body = transport
            .respond(&mut get_request_head("/", &[]), push)
            .await
            .into_body();
        body.frame().await.unwrap().unwrap();
        let start = tokio::time::Instant::now();
        body.frame().await.unwrap().unwrap();
        let waited = start.elapsed().as_secs_f64();
        assert!((13.5..=16.6).contains(&waited), "{waited} s");
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_ignored_by_json_parsers() {
    async fn first_heartbeats(format: impl Format) -> [Bytes; 2] {
        let mut body = respond(format, stream::pending::<Event>())
            .await
            .into_body();
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
        [next().await, next().await]
    }
    assert_eq!(first_heartbeats(Ndjson::new()).await, [" ", " "]);
    assert_eq!(first_heartbeats(JsonSeq::new()).await, ["\u{1e}", "\u{1e}"]);
    assert_eq!(first_heartbeats(Raw::new()).await, ["\n", "\n"]);
}

/// In every format, the body reads at most four large events ahead of what it has sent.
#[tokio::test]
async fn large_events_are_not_read_ahead() {
    const EVENT_LEN: usize = 8 * 1024;
    async fn assert_bounded_read_ahead(format: impl Format) {
        let event = Event::text("x".repeat(EVENT_LEN));
        let taken_bytes = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = taken_bytes.clone();
        let items = stream::repeat_with(move || {
            counted.fetch_add(EVENT_LEN, std::sync::atomic::Ordering::Relaxed);
            event.clone()
        });
        let mut body = respond(format, items).await.into_body();
        let mut sent_bytes = 0;
        for _ in 0..2000 {
            sent_bytes += body
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .len();
        }
        let taken_bytes = taken_bytes.load(std::sync::atomic::Ordering::Relaxed);
        assert!(
            taken_bytes <= sent_bytes + 4 * EVENT_LEN,
            "{taken_bytes} taken, {sent_bytes} given"
        );
    }
    assert_bounded_read_ahead(Ndjson::new()).await;
    assert_bounded_read_ahead(Multipart::mixed()).await;
    assert_bounded_read_ahead(Multipart::replace()).await;
    assert_bounded_read_ahead(Raw::new()).await;
}

#[tokio::test]
async fn failing_source_cuts_every_format() {
    async fn body_before_cut(format: impl Format) -> String {
        let items = stream::iter([Ok("a"), Err("broken")]);
        let (frames, end) = body_frames(respond(format, items).await.into_body()).await;
        assert_eq!(end.unwrap_err().to_string(), "broken");
        String::from_utf8(frames.concat()).unwrap()
    }
    assert_eq!(body_before_cut(Ndjson::new()).await, " {\"data\":\"a\"}\n");
    assert_eq!(
        body_before_cut(JsonSeq::new()).await,
        "\u{1e}\u{1e}{\"data\":\"a\"}\n"
    );
    assert_eq!(body_before_cut(Raw::new()).await, "\na\n");
    assert!(!body_before_cut(Multipart::mixed()).await.contains("--\r\n"));
    assert!(
        !body_before_cut(Multipart::replace())
            .await
            .contains("--\r\n")
    );
}
