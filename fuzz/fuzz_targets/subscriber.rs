//! The client's state machine: no response, input or time makes it panic, and a body is read the same however it is cut.

#![no_main]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Response;
use libfuzzer_sys::fuzz_target;
use tower_push_client::{
    ClientItem, Subscriber,
    subscriber::{ResponseAction, SubscriberConfig},
};

const CONTENT_TYPES: [&str; 6] = [
    "text/event-stream",
    "application/x-ndjson",
    "application/json-seq",
    "multipart/mixed; boundary=b",
    "application/json",
    "text/html",
];

const STATUSES: [u16; 8] = [200, 200, 200, 204, 307, 401, 426, 503];

fuzz_target!(|input: (u8, u8, Vec<(u8, &[u8])>)| {
    let (status, piece_len, responses) = input;
    let piece_len = usize::from(piece_len).max(1);
    let whole = read(status, usize::MAX, &responses);
    assert_eq!(read(status, piece_len, &responses), whole);
});

/// Passes the responses to a subscriber, each body in pieces of `piece_len` bytes. Returns a text for each item that does not depend on
/// random delays.
fn read(status: u8, piece_len: usize, responses: &[(u8, &[u8])]) -> Vec<String> {
    let start = Instant::now();
    let mut now = start;
    let url = http::Uri::from_static("http://host/feed");
    let mut subscriber = Subscriber::new(Arc::new(SubscriberConfig::new()), url, None, now);
    let mut items = Vec::new();
    for (kind, body) in responses {
        if subscriber.is_terminated() {
            break;
        }
        // Later than any delay.
        now += Duration::from_secs(3 * 3600);
        subscriber.handle_timeout(now);
        take_items(&mut subscriber, now, &mut items);
        if subscriber.poll_request(now).is_none() {
            continue;
        }
        let status = STATUSES[usize::from(status.wrapping_add(*kind)) % STATUSES.len()];
        let content_type = CONTENT_TYPES[usize::from(*kind) % CONTENT_TYPES.len()];
        let response = Response::builder().status(status).header("content-type", content_type);
        let response = response.header("location", "/moved").header("retry-after", "3");
        let head = response.body(()).unwrap().into_parts().0;
        if subscriber.handle_response(&head, now) == ResponseAction::ReadBody {
            for piece in body.chunks(piece_len) {
                subscriber.handle_input(Bytes::copy_from_slice(piece), now);
                take_items(&mut subscriber, now, &mut items);
            }
            let end = match kind % 2 {
                0 => Ok(()),
                _ => Err("cut".into()),
            };
            subscriber.handle_end(end, now);
        }
        take_items(&mut subscriber, now, &mut items);
    }
    items
}

fn take_items(subscriber: &mut Subscriber, now: Instant, items: &mut Vec<String>) {
    while let Some(item) = subscriber.poll_item(|| now) {
        let text = match item {
            // A cursor that arrives in one piece with the event after it moves together with the event, or before it.
            Ok(ClientItem::Cursor(_)) => continue,
            Ok(ClientItem::Reconnecting { error, .. }) => format!("reconnecting {error:?}"),
            item => format!("{item:?}"),
        };
        items.push(text);
    }
    if let Some(cursor) = subscriber.cursor() {
        assert!((1..=200).contains(&cursor.as_str().len()));
    }
}
