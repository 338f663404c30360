//! The client's reader of Durable Streams. From a server that fails in every way, it yields each message once and in order, and it asks for
//! the offset that it has. It reads a batch as `serde_json` does, however the batch is cut.

#![no_main]

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, response::Builder};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use tower_push_client::{Client, ClientItem, Subscriber, Transport, subscriber::ResponseAction};
use tower_push_proto::{Event, EventId, event::Payload};

/// The limit of an event in one response of any bytes. A batch may have four times this length.
const MAX_EVENT_LEN: usize = 64;

/// The limit of an event while a log is followed, whose batches are never too long.
const MAX_FOLLOWED_LEN: usize = 4096;

fuzz_target!(|input: (u8, u8, Vec<&[u8]>, Vec<(u8, u8)>)| {
    let (mode, piece_len, texts, steps) = input;
    let piece_len = usize::from(piece_len).max(1);
    match (mode % 2, &texts[..]) {
        (0, _) => follow(&texts, &steps, piece_len),
        (_, [body, headers @ ..]) => read_one(mode / 2, body, headers, piece_len),
        _ => {}
    }
});

fn subscriber(max_event_len: usize, now: Instant) -> Subscriber {
    let client = Client::new().transports([Transport::DurableLongPoll]);
    let config = client.max_event_len(max_event_len).subscriber_config();
    let url = "http://host/log?a=b&offset=x&live=sse".parse().unwrap();
    Subscriber::new(config, url, None, now)
}

/// A server with a log of messages, which answers polls as the protocol says.
struct Server {
    messages: Vec<String>,
    /// The number of messages that the server has removed.
    removed: usize,
    /// The number of responses, from which the server makes its `Stream-Cursor`.
    responses: usize,
}

impl Server {
    fn offset(position: usize) -> String {
        format!("{position:04}&/%~")
    }

    /// Checks a poll after `position` messages.
    fn check(&self, request: &Request<()>, position: usize) {
        let query = request.uri().query().unwrap();
        let mut pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let cursor = (self.responses > 0).then(|| ("cursor".to_owned(), self.cache_key()));
        let is_cursor = |pair: &(String, String)| pair.0 == "cursor";
        let sent_cursor = pairs.iter().position(is_cursor).map(|index| pairs.remove(index));
        // A client without a cursor begins anew after a gap.
        assert!(sent_cursor.is_none() || sent_cursor == cursor);
        let offset = match position {
            0 => "-1".to_owned(),
            position => Self::offset(position),
        };
        let expected = [("a", "b"), ("offset", &offset), ("live", "long-poll")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    fn cache_key(&self) -> String {
        format!("{} +", self.responses)
    }
}

/// Follows a log whose messages are made of `texts`, while each of `steps` says how the server answers one poll.
fn follow(texts: &[&[u8]], steps: &[(u8, u8)], piece_len: usize) {
    let mut server = Server {
        messages: texts.iter().map(|text| message(text)).collect(),
        removed: 0,
        responses: 0,
    };
    let mut now = Instant::now();
    let mut subscriber = subscriber(MAX_FOLLOWED_LEN, now);
    // What the client has to yield, and the number of messages before its cursor.
    let (mut expected, mut read, mut position) = (Vec::new(), Vec::new(), 0);
    for (kind, value) in steps {
        // Later than any delay.
        now += Duration::from_secs(3 * 3600);
        let Some(request) = subscriber.poll_request(now) else {
            assert!(subscriber.is_terminated());
            break;
        };
        server.check(&request, position);
        let end = (position.max(server.removed) + usize::from(*value % 8)).min(server.messages.len());
        match kind % 8 {
            // A batch, whole or cut.
            0..=3 if position >= server.removed || position == 0 => {
                let begin = position.max(server.removed);
                let batch = format!("[{}]", server.messages[begin..end].join(","));
                let is_cut = kind % 8 == 3;
                let is_closed = kind % 8 == 2 && end == server.messages.len();
                let len = match is_cut {
                    true => batch.len() * usize::from(*value) / 256,
                    false => batch.len(),
                };
                server.responses += 1;
                // A batch without messages has no position of its own.
                let offset = Server::offset(end);
                let head = Response::builder()
                    .header("content-type", "application/json")
                    .header("stream-next-offset", &offset)
                    .header("stream-closed", is_closed.to_string())
                    .header("stream-cursor", server.cache_key());
                respond(&mut subscriber, head, &batch.as_bytes()[..len], piece_len, is_cut, now);
                if !is_cut {
                    expected.extend_from_slice(&server.messages[begin..end]);
                    position = end;
                }
                take_items(&mut subscriber, now, &mut read);
                assert_eq!(read, expected);
                if is_closed {
                    assert!(subscriber.is_terminated());
                    return;
                }
                if !is_cut {
                    assert_eq!(subscriber.cursor().unwrap().as_str(), offset);
                }
                if position == 0 && !is_cut {
                    // The cursor of the empty log is not the one of a client without a cursor.
                    return;
                }
            }
            // Nothing new.
            4 if position > 0 && position >= server.removed => {
                server.responses += 1;
                let head = Response::builder()
                    .status(StatusCode::NO_CONTENT)
                    .header("stream-next-offset", Server::offset(position))
                    .header("stream-cursor", server.cache_key());
                respond(&mut subscriber, head, b"", piece_len, false, now);
                take_items(&mut subscriber, now, &mut read);
            }
            // The messages after the client's offset are removed.
            5 if position > 0 => {
                server.removed = end;
                respond(&mut subscriber, Response::builder().status(410), b"", piece_len, false, now);
                expected.push(format!("gap after {}", Server::offset(position)));
                take_items(&mut subscriber, now, &mut read);
                assert_eq!(read, expected);
                assert_eq!(subscriber.cursor(), None);
                position = 0;
            }
            6 => {
                let head = Response::builder().status(307).header("location", "?a=b&cursor=7");
                respond(&mut subscriber, head, b"", piece_len, false, now);
                // The query of the redirect replaces that of the URL.
                let request = subscriber.poll_request(now).unwrap();
                server.check(&request, position);
                subscriber.handle_request_error("cut".into(), now);
                take_items(&mut subscriber, now, &mut read);
            }
            _ => {
                respond(&mut subscriber, Response::builder().status(503), b"busy", piece_len, false, now);
                take_items(&mut subscriber, now, &mut read);
            }
        }
        assert_eq!(read, expected);
    }
}

/// Returns a JSON value as the payload of an event has it.
fn message(text: &[u8]) -> String {
    let len = text.len().min(16);
    let json = match text.first() {
        Some(0..=63) => text.len().to_string(),
        Some(64..=90) => format!("[ {}, {{\"a\": [] }}]", text.len()),
        _ => serde_json::to_string(&String::from_utf8_lossy(&text[..len])).unwrap(),
    };
    let event = Event::json_text(json).unwrap();
    event.payload().as_text().unwrap().to_owned()
}

fn respond(
    subscriber: &mut Subscriber,
    head: Builder,
    body: &[u8],
    piece_len: usize,
    is_cut: bool,
    now: Instant,
) {
    let head = head.body(()).unwrap().into_parts().0;
    if subscriber.handle_response(&head, now) == ResponseAction::ReadBody {
        for piece in body.chunks(piece_len) {
            subscriber.handle_input(Bytes::copy_from_slice(piece), now);
            assert!(subscriber.poll_item(|| now).is_none_or(|item| is_about_connection(&item)));
        }
        let end = match is_cut {
            true => Err("cut".into()),
            false => Ok(()),
        };
        subscriber.handle_end(end, now);
    }
}

fn is_about_connection(item: &Result<ClientItem, tower_push_client::Error>) -> bool {
    matches!(item, Ok(ClientItem::Connected { .. } | ClientItem::Reconnecting { .. }))
}

/// Appends the payloads of the events and the requested cursors of the gaps.
fn take_items(subscriber: &mut Subscriber, now: Instant, read: &mut Vec<String>) {
    while let Some(item) = subscriber.poll_item(|| now) {
        match item.unwrap() {
            ClientItem::Event { event, .. } => read.push(event.payload().as_text().unwrap().to_owned()),
            ClientItem::Gap(gap) => read.push(format!("gap after {}", gap.requested.unwrap())),
            _ => {}
        }
    }
}

/// Reads one response of any bytes.
fn read_one(kind: u8, body: &[u8], headers: &[&[u8]], piece_len: usize) {
    let now = Instant::now();
    let mut subscriber = subscriber(MAX_EVENT_LEN, now);
    subscriber.poll_request(now).unwrap();
    let content_type = ["application/json", "text/plain", "image/png"][usize::from(kind) % 3];
    let mut head = Response::builder().header("content-type", content_type);
    let value = |index: usize| HeaderValue::from_bytes(headers.get(index)?).ok();
    let next_offset = value(0);
    for (name, value) in [
        ("stream-next-offset", &next_offset),
        ("stream-closed", &value(1)),
        ("stream-cursor", &value(2)),
        ("content-encoding", &value(3)),
    ] {
        if let Some(value) = value {
            head = head.header(name, value);
        }
    }
    let head = head.body(()).unwrap().into_parts().0;
    let offset = next_offset.and_then(|value| EventId::new(value.to_str().ok()?).ok());
    let is_compressed = value(3).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let expected = match offset.is_some() && !is_compressed {
        true => expected_payloads(content_type, body),
        false => None,
    };
    let mut payloads = Vec::new();
    let mut error = None;
    assert_eq!(subscriber.handle_response(&head, now), ResponseAction::ReadBody);
    let pieces = body.chunks(piece_len).map(Some).chain([None]);
    for piece in pieces {
        match piece {
            Some(piece) => subscriber.handle_input(Bytes::copy_from_slice(piece), now),
            None => subscriber.handle_end(Ok(()), now),
        }
        while let Some(item) = subscriber.poll_item(|| now) {
            match item {
                Ok(item) => payloads.extend(item.event().map(|event| event.payload().clone())),
                Err(failure) => error = Some(failure),
            }
        }
    }
    match expected {
        Some(expected) => {
            assert_eq!(payloads, expected);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(subscriber.cursor().cloned(), offset.filter(|id| !id.is_finished()));
        }
        None => {
            // A batch of payloads is checked as a whole before its first payload is returned.
            assert!(payloads.is_empty());
            match error {
                Some(error) => assert!(
                    error.is_malformed() || error.is_too_long() || error.is_unexpected_content_type()
                ),
                // The beginning of a batch: the client polls again.
                None => assert!(content_type == "application/json" && !subscriber.is_terminated()),
            }
        }
    }
}

/// Returns the payloads of a batch. Returns `None` if the client has to refuse the batch.
fn expected_payloads(content_type: &str, body: &[u8]) -> Option<Vec<Payload>> {
    if body.len() > 4 * MAX_EVENT_LEN {
        return None;
    }
    match content_type {
        "application/json" => {
            let values: Vec<&RawValue> = serde_json::from_slice(body).ok()?;
            let events = values.iter().map(|value| Event::json_text(value.get()));
            let events: Vec<_> = events.collect::<Result<_, _>>().ok()?;
            Some(events.iter().map(|event| event.payload().clone()).collect())
        }
        _ if body.is_empty() => Some(Vec::new()),
        "text/plain" => Some(vec![Payload::Text(String::from_utf8(body.to_vec()).ok()?)]),
        _ => Some(vec![Payload::Binary(Bytes::copy_from_slice(body))]),
    }
}
