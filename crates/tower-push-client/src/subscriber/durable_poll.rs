//! Long polls of [Durable Streams](https://github.com/durable-streams/durable-streams): the cursor is in the query, and the offset after the
//! batch is in a header.

use std::time::Instant;

use http::{
    HeaderMap, HeaderName, StatusCode, Uri, header::CONTENT_TYPE, response::Parts,
    uri::PathAndQuery,
};
use tower_push_proto::{EventId, Gap, GapReason};

use super::{
    ConnectionReader, ResponseAction, Subscriber, SubscriberState,
    connection_failure::ConnectionFailure,
    item_reader::ItemReader,
    response::{check_content_encoding, is_html},
};
use crate::{error::Error, item::ClientItem, transport::Transport};

const STREAM_NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const STREAM_CLOSED: HeaderName = HeaderName::from_static("stream-closed");
const STREAM_CURSOR: HeaderName = HeaderName::from_static("stream-cursor");

/// The parameters of a poll.
const POLL_PARAMETERS: [&str; 3] = ["offset", "live", "cursor"];

/// Returns the URL of the poll after `cursor`, or from the oldest message if there is no cursor. `cache_key` is the value of `Stream-Cursor` in
/// the last response, by which caches tell polls of one offset apart.
pub(super) fn poll_uri(uri: &Uri, cursor: Option<&EventId>, cache_key: Option<&str>) -> Uri {
    let query = uri.query().unwrap_or_default().split('&');
    // The URL may have the parameters of a poll already, after a redirect.
    let others = query.filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        !pair.is_empty() && !POLL_PARAMETERS.contains(&name)
    });
    let mut query: String = others.flat_map(|pair| [pair, "&"]).collect();
    query.push_str("offset=");
    push_percent_encoded(&mut query, cursor.map_or("-1", EventId::as_str));
    query.push_str("&live=long-poll");
    if let Some(key) = cache_key {
        query.push_str("&cursor=");
        push_percent_encoded(&mut query, key);
    }
    let mut parts = uri.clone().into_parts();
    if let Ok(path) = PathAndQuery::try_from(format!("{}?{query}", uri.path())) {
        parts.path_and_query = Some(path);
    }
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// Appends `text` with all characters percent-encoded but the unreserved ones ([RFC 3986 §2.3](https://www.rfc-editor.org/rfc/rfc3986#section-2.3)).
fn push_percent_encoded(output: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                output.push(byte.into());
            }
            _ => output.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// Returns the value of the header `Stream-Cursor`.
fn cache_key(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(STREAM_CURSOR)?.to_str().ok()?;
    Some(value.into())
}

/// Returns the offset in the header `Stream-Next-Offset`.
///
/// # Errors
/// [`Error::is_malformed`] if the header is missing or no [`EventId`]. [`Error::is_unexpected_content_type`] if the response is a page.
fn next_offset(headers: &HeaderMap) -> Result<EventId, Error> {
    let Some(value) = headers.get(STREAM_NEXT_OFFSET) else {
        return Err(match headers.get(CONTENT_TYPE).is_some_and(is_html) {
            true => Error::content_type("the response is not a Durable Stream, but `text/html`"),
            false => Error::malformed("the response has no `Stream-Next-Offset`"),
        });
    };
    let text = value.to_str().map_err(Error::malformed)?;
    EventId::new(text).map_err(Error::malformed)
}

/// Whether the batch is the last one of the stream.
fn is_closed(headers: &HeaderMap) -> bool {
    let value = headers.get(STREAM_CLOSED);
    value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

impl Subscriber {
    /// Handles the response to a long poll of Durable Streams, which was sent at `sent`. Returns `None` if its status is not one of the
    /// protocol.
    pub(super) fn handle_durable_response(
        &mut self,
        head: &Parts,
        sent: Instant,
        now: Instant,
    ) -> Option<ResponseAction> {
        let reader = match head.status {
            StatusCode::OK => check_content_encoding(&head.headers).and_then(|()| {
                ItemReader::for_durable_batch(head.headers.get(CONTENT_TYPE), &self.config)
            }),
            StatusCode::NO_CONTENT => Ok(ItemReader::for_empty_batch()),
            StatusCode::GONE => return self.handle_lost_offset(now),
            _ => return None,
        };
        let batch = reader.and_then(|reader| Ok((reader, next_offset(&head.headers)?)));
        let (reader, next_offset) = match batch {
            Ok(batch) => batch,
            Err(error) => {
                return Some(self.read_error(head.status, ConnectionFailure::stop(error), now));
            }
        };
        self.cache_key = cache_key(&head.headers);
        let transport = Transport::DurableLongPoll;
        let reader = ConnectionReader::Body(reader);
        self.begin_reading(reader, transport, transport, sent, Some(next_offset), now);
        if let SubscriberState::Reading(connection) = &mut self.state {
            connection.is_last_batch = is_closed(&head.headers);
        }
        if head.status == StatusCode::NO_CONTENT {
            self.end = Some(Ok(()));
            return Some(ResponseAction::Drop);
        }
        Some(ResponseAction::ReadBody)
    }

    /// Handles that the stream no longer has the messages after the cursor: continues with its oldest message, after a gap. Returns `None` if
    /// the request had no cursor.
    fn handle_lost_offset(&mut self, now: Instant) -> Option<ResponseAction> {
        let cursor = self.cursor.take()?;
        let gap = Gap::new(GapReason::Expired).requested(cursor);
        self.queued.push_back(Ok(ClientItem::Gap(gap)));
        self.cache_key = None;
        self.state = SubscriberState::Waiting { until: now };
        Some(ResponseAction::Drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_uri_has_the_cursor() {
        let cursor = EventId::new("a&b/1").unwrap();
        for (uri, cursor, cache_key, expected) in [
            (
                "http://host/log",
                None,
                None,
                "/log?offset=-1&live=long-poll",
            ),
            (
                "http://host/log?a=1&offset=0&live=sse&cursor=2&b",
                Some(&cursor),
                Some("17"),
                "/log?a=1&b&offset=a%26b%2F1&live=long-poll&cursor=17",
            ),
        ] {
            let uri = poll_uri(&Uri::from_static(uri), cursor, cache_key);
            assert_eq!(uri.to_string(), format!("http://host{expected}"));
        }
    }
}
