//! The long-poll dialect of HTTP's validators: a response has its cursor in `ETag`, and the next request has the cursor in
//! `If-None-Match`.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::batch_builder::{Batch, StreamStatus};
use crate::{
    Error,
    event::EventId,
    source::{LAST_EVENT_ID, Rejection, StartPosition, Subscription},
    transport::{
        PushBody, rejection_response,
        response::{NO_STORE, NOSNIFF, PRIVATE_NO_CACHE, insert_ascii, vary_by_accept},
    },
};

/// Separates the cursor from the format's name in an entity tag. [Escaped](EventId::escaped) cursors do not contain this character.
const TAG_SEPARATOR: char = '+';

/// The message of a 410 response, which is sent because the format has no record for a gap.
const GAP_MESSAGE: &str = "events behind this cursor are gone: ask without one";

/// Sets the start of a subscription to the cursor in `If-None-Match`, if the request has one.
///
/// `Last-Event-ID` has precedence over `If-None-Match`, because a program sets `Last-Event-ID`, and its cache may add `If-None-Match`.
/// `If-None-Match` has precedence over the query, which says only where a loop that polls one URL has begun.
pub(super) fn with_validator_cursor(subscription: Subscription) -> Subscription {
    let headers = &subscription.head().headers;
    let mut last_event_ids = headers.get_all(LAST_EVENT_ID).iter();
    if last_event_ids.any(|value| !value.is_empty()) {
        return subscription;
    }
    match if_none_match_cursor(headers) {
        Some(id) => subscription.with_start(StartPosition::After(id)),
        None => subscription,
    }
}

/// Makes the entity tag of a batch from its escaped cursor and from the format's name. Batches in different formats must have different tags
/// ([RFC 9110 §8.8.3](https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3)).
fn entity_tag(escaped_cursor: &str, format: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let format: String = format.chars().filter(|c| is_allowed(*c)).collect();
    format!("\"{escaped_cursor}{TAG_SEPARATOR}{format}\"")
}

/// Returns the cursor in the entity tags of `If-None-Match`, weak or strong, of any format
/// ([RFC 9110 §13.1.2](https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2)).
///
/// Returns `None` if the header is `*`, if its tags have different cursors, or if a tag has no valid cursor.
fn if_none_match_cursor(headers: &HeaderMap) -> Option<EventId> {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter();
    let mut cursor = None;
    for value in values {
        // Escaped cursors do not contain a comma, so the header can be split at commas.
        for tag in value.to_str().ok()?.split(',') {
            let tag = tag.trim();
            if tag.is_empty() {
                continue;
            }
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            let tag = tag.strip_prefix('"')?.strip_suffix('"')?;
            // Proxies that compress append to the entity tag (Apache and Jetty: `-gzip`).
            let id = tag.split(TAG_SEPARATOR).next()?;
            let id = EventId::from_escaped(id).ok()?;
            if cursor.as_ref().is_some_and(|cursor| *cursor != id) {
                return None;
            }
            cursor = Some(id);
        }
    }
    cursor
}

/// Makes the response to a `HEAD` request, without an `ETag`, which a cache would assign to the batch that it holds.
pub(super) fn head_response(content_type: HeaderValue, is_negotiated: bool) -> Response<PushBody> {
    let mut response = Response::new(PushBody::for_head_request());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    insert_common_headers(headers, is_negotiated);
    response
}

/// Makes the response with a batch. The status is 200 even if the batch is empty, because browsers discard their cached batch and its
/// `ETag` when they get a different status.
pub(super) fn batch_response(
    batch: Batch,
    format: &str,
    content_type: HeaderValue,
    is_negotiated: bool,
) -> Response<PushBody> {
    let cursor = match &batch.status {
        StreamStatus::Failed(error) if !batch.has_content => {
            return failure_response(error.downcast_ref(), is_negotiated);
        }
        StreamStatus::Finished => Some((EventId::FINISHED, EventId::FINISHED.into())),
        _ => batch.cursor.as_ref().map(|id| (id.as_str(), id.escaped())),
    };
    let content_length = HeaderValue::from(batch.body.len());
    let mut response = Response::new(PushBody::full(batch.body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, content_length);
    // A shared cache would give one client's cursor to another client.
    headers.insert(header::CACHE_CONTROL, PRIVATE_NO_CACHE);
    batch.status.insert_retry_after(headers);
    insert_common_headers(headers, is_negotiated);
    if let Some((cursor, escaped_cursor)) = cursor {
        insert_ascii(headers, header::ETAG, &entity_tag(&escaped_cursor, format));
        insert_ascii(headers, LAST_EVENT_ID, cursor);
    }
    response
}

/// Makes the response to a subscription that was refused. The refusal is a 204 if the client knows already that the source has finished.
pub(super) fn refusal_response(rejection: Rejection, is_negotiated: bool) -> Response<PushBody> {
    let mut response = rejection_response(rejection);
    insert_common_headers(response.headers_mut(), is_negotiated);
    response
}

/// Inserts the headers that all responses of this dialect have. `is_negotiated` says whether the `Accept` header chooses the format.
fn insert_common_headers(headers: &mut HeaderMap, is_negotiated: bool) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    // `Vary` names `Cookie` and `Authorization`, because another user of the same browser must not continue with the previous user's
    // cursor.
    let request_headers =
        HeaderValue::from_static("If-None-Match, Last-Event-ID, Cookie, Authorization");
    headers.append(header::VARY, request_headers);
    if is_negotiated {
        vary_by_accept(headers);
    }
}

/// Makes the response for a failed stream: 410 if the format has no record for a gap, and otherwise 500, which does not disclose the error.
fn failure_response(error: Option<&Error>, is_negotiated: bool) -> Response<PushBody> {
    let rejection = if error.is_some_and(Error::is_gap_unsupported) {
        Rejection::new(StatusCode::GONE).message(GAP_MESSAGE)
    } else {
        Rejection::new(StatusCode::INTERNAL_SERVER_ERROR)
    };
    refusal_response(rejection, is_negotiated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor_of_request(headers: &[(http::HeaderName, &[u8])], uri: &str) -> Option<String> {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        let subscription = with_validator_cursor(Subscription::new(&head, "long-poll"));
        subscription.cursor().map(|id| id.to_string())
    }

    fn cursor_of_tags(tags: &[&[u8]]) -> Option<String> {
        let headers: Vec<_> = tags.iter().map(|t| (header::IF_NONE_MATCH, *t)).collect();
        cursor_of_request(&headers, "/")
    }

    #[test]
    fn cursor_is_read_from_entity_tag() {
        assert_eq!(cursor_of_tags(&[]), None);
        for tag in [
            b"\"a-1\"" as &[u8],
            b"W/\"a-1\"",
            b" \"a-1\" ",
            b"\"a-1\", W/\"a-1\"",
            b"\"a-1\",",
            b"\"a-1+json\"",
            b"\"a-1+json\", W/\"a-1+ndjson\"",
            b"\"a-1+json-gzip\"",
            b"\"a-1+json--gzip\"",
        ] {
            assert_eq!(cursor_of_tags(&[tag]).as_deref(), Some("a-1"), "{tag:?}");
        }
        assert_eq!(
            cursor_of_tags(&[b"\"a-gzip+json\""]).as_deref(),
            Some("a-gzip")
        );
        assert_eq!(cursor_of_tags(&[b"\"a\"", b"\"a\""]).as_deref(), Some("a"));
    }

    #[test]
    fn entity_tag_omits_invalid_characters() {
        assert_eq!(entity_tag("a-1", "json-seq"), "\"a-1+json-seq\"");
        assert_eq!(entity_tag("a-1", "\"é, "), "\"a-1+\"");
    }

    proptest::proptest! {
        #[test]
        fn cursor_survives_its_entity_tag(id in "[!-~]{1,200}", format in "[a-z-]{0,12}") {
            let id = EventId::new(id).unwrap();
            let tag = entity_tag(&id.escaped(), &format);
            proptest::prop_assert_eq!(tag.matches(['"', ',', '+']).count(), 3);
            for sent in [tag.clone(), format!("W/{tag}"), format!("{tag}, {tag}")] {
                let cursor = cursor_of_tags(&[sent.as_bytes()]);
                proptest::prop_assert_eq!(cursor.as_deref(), Some(id.as_str()), "{}", sent);
            }
        }
    }

    #[test]
    fn cursor_in_entity_tag_is_escaped() {
        let tag = entity_tag(&EventId::new("a+b,c:d").unwrap().escaped(), "json");
        assert_eq!(tag, "\"a!2Bb!2Cc!3Ad+json\"");
        assert_eq!(
            cursor_of_tags(&[tag.as_bytes()]).as_deref(),
            Some("a+b,c:d")
        );
    }

    #[test]
    fn ambiguous_or_malformed_tags_are_ignored() {
        let long = format!("\"{}\"", "x".repeat(10 * 1024));
        for tag in [
            b"" as &[u8],
            b"*",
            b"a-1",
            b"\"",
            b"\"\"",
            b"\"a",
            b"w/\"a\"",
            b"\"a b\"",
            b"\"a:b\"",
            b"\"a!3\"",
            b"\"a\", \"b\"",
            b"\"a,b\"",
            b"\"+json\"",
            b"\"a+json\", \"b+json\"",
            b"\"\xc3\xa9\"",
            b"\xff",
            long.as_bytes(),
        ] {
            assert_eq!(cursor_of_tags(&[tag]), None, "{tag:?}");
        }
        assert_eq!(cursor_of_tags(&[b"\"a\"", b"\"b\""]), None);
        assert_eq!(cursor_of_tags(&[b"\"a\"", b"*"]), None);
    }

    #[test]
    fn last_event_id_goes_before_entity_tag() {
        let tag = (header::IF_NONE_MATCH, &b"\"tag\""[..]);
        let id = |id: &'static [u8]| (LAST_EVENT_ID, id);
        assert_eq!(
            cursor_of_request(&[tag.clone(), id(b"id")], "/").unwrap(),
            "id"
        );
        assert_eq!(
            cursor_of_request(&[tag.clone(), id(b"")], "/").unwrap(),
            "tag"
        );
        assert_eq!(cursor_of_request(&[tag, id(b"a b")], "/"), None);
        let tag = (header::IF_NONE_MATCH, &b"\"tag\""[..]);
        assert_eq!(
            cursor_of_request(&[tag], "/?last_event_id=q").unwrap(),
            "tag"
        );
        let junk = (header::IF_NONE_MATCH, &b"*"[..]);
        assert_eq!(
            cursor_of_request(&[junk], "/?last_event_id=q").unwrap(),
            "q"
        );
    }
}
