//! The dialect of HTTP's validators: the cursor goes out as `ETag`, and comes back as `If-None-Match`.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::gather::{Gathered, Rest};
use crate::{
    error::Error,
    event::EventId,
    source::{LAST_EVENT_ID, Rejection, StartPosition, Subscription},
    transport::{
        PushBody, rejection_response,
        response::{NO_STORE, NOSNIFF, insert_ascii, vary_by_accept},
    },
};

/// A private cache may keep it, for it is the client's memory, but must ask before each use; a shared one would give one
/// client's cursor to another.
const CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");
/// Where the client asks to begin: `Last-Event-ID`, which a program sets, before `If-None-Match`, which a cache may add to it;
/// and that before the query, which in a loop over one URL is where the loop began.
pub(super) fn starting(subscription: Subscription) -> Subscription {
    let headers = &subscription.head().headers;
    let mut by_header = headers.get_all(LAST_EVENT_ID).iter();
    if by_header.any(|value| !value.is_empty()) {
        return subscription;
    }
    match cursor(headers) {
        Some(id) => subscription.with_start(StartPosition::After(id)),
        None => subscription,
    }
}

/// The entity tag of a batch: where it leaves the client, and the format, for tags of different representations must differ
/// ([RFC 9110 §8.8.3](https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3)).
fn tag(cursor: &str, format: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let format: String = format.chars().filter(|c| is_plain(*c)).collect();
    format!("\"{cursor}{FORMAT}{format}\"")
}

/// What no cursor holds, and a tag may.
const FORMAT: char = '+';

/// The cursor of the one entity tag of `If-None-Match`, weak or strong, of any format
/// ([RFC 9110 §13.1.2](https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2)). `*`, tags of several cursors, and what holds no
/// cursor are none.
fn cursor(headers: &HeaderMap) -> Option<EventId> {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter();
    let mut cursor = None;
    // No cursor has a comma in it.
    for value in values {
        for tag in value.to_str().ok()?.split(',') {
            let tag = tag.trim();
            if tag.is_empty() {
                continue;
            }
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            let tag = tag.strip_prefix('"')?.strip_suffix('"')?;
            // Behind the format is what proxies that compress add (Apache, Jetty: `-gzip`).
            let id = tag.split(FORMAT).next()?;
            let id = EventId::new(id).ok()?;
            if cursor.as_ref().is_some_and(|cursor| *cursor != id) {
                return None;
            }
            cursor = Some(id);
        }
    }
    cursor
}

/// The headers alone, and no validator: a cache would take it for that of the last batch.
pub(super) fn head(content_type: HeaderValue, is_negotiated: bool) -> Response<PushBody> {
    let mut response = Response::new(PushBody::head());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    common(headers, is_negotiated);
    response
}

/// The batch; an empty one too, because browsers keep what is behind a 200 and forget all they have with any other status,
/// 204 among them.
pub(super) fn answer(
    gathered: Gathered,
    format: &str,
    content_type: HeaderValue,
    is_negotiated: bool,
) -> Response<PushBody> {
    let Gathered {
        body,
        has_content,
        cursor,
        rest,
        ..
    } = gathered;
    let cursor = match &rest {
        Rest::Failed(error) if !has_content => {
            return failed(error.downcast_ref(), is_negotiated);
        }
        Rest::Finished => Some(EventId::FINISHED),
        _ => cursor.as_ref().map(EventId::as_str),
    };
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(PushBody::full(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CACHE_CONTROL, CACHE);
    rest.tell(headers);
    common(headers, is_negotiated);
    if let Some(cursor) = cursor {
        insert_ascii(headers, header::ETAG, &tag(cursor, format));
        insert_ascii(headers, LAST_EVENT_ID, cursor);
    }
    response
}

/// The answer to a client whose subscription was refused, or who is told once more that the source has finished.
pub(super) fn refused(rejection: Rejection, is_negotiated: bool) -> Response<PushBody> {
    let mut response = rejection_response(rejection);
    common(response.headers_mut(), is_negotiated);
    response
}

fn common(headers: &mut HeaderMap, is_negotiated: bool) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    // The last two: who signs in next on the same browser must not go on with the cursor of who was before.
    let asked = HeaderValue::from_static("If-None-Match, Last-Event-ID, Cookie, Authorization");
    headers.append(header::VARY, asked);
    if is_negotiated {
        vary_by_accept(headers);
    }
}

/// 500, without a word of the error; or 410 where the format cannot tell of a gap.
fn failed(error: Option<&Error>, is_negotiated: bool) -> Response<PushBody> {
    let rejection = if error.is_some_and(Error::is_gap_unsupported) {
        Rejection::new(StatusCode::GONE).message(GONE)
    } else {
        Rejection::new(StatusCode::INTERNAL_SERVER_ERROR)
    };
    refused(rejection, is_negotiated)
}

const GONE: &str = "events behind this cursor are gone: ask without one";

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(headers: &[(http::HeaderName, &[u8])], uri: &str) -> Option<String> {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        let subscription = starting(Subscription::new(&head, "long-poll"));
        subscription.cursor().map(|id| id.to_string())
    }

    fn by_tag(tags: &[&[u8]]) -> Option<String> {
        let headers: Vec<_> = tags.iter().map(|t| (header::IF_NONE_MATCH, *t)).collect();
        parsed(&headers, "/")
    }

    #[test]
    fn a_cursor_comes_back_as_an_entity_tag() {
        assert_eq!(by_tag(&[]), None);
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
            assert_eq!(by_tag(&[tag]).as_deref(), Some("a-1"), "{tag:?}");
        }
        assert_eq!(by_tag(&[b"\"a-gzip+json\""]).as_deref(), Some("a-gzip"));
        assert_eq!(by_tag(&[b"\"a\"", b"\"a\""]).as_deref(), Some("a"));
    }

    #[test]
    fn a_tag_is_one_whatever_a_format_is_called() {
        assert_eq!(tag("a-1", "json-seq"), "\"a-1+json-seq\"");
        assert_eq!(tag("a-1", "\"é, "), "\"a-1+\"");
    }

    #[test]
    fn what_is_no_single_tag_is_no_cursor() {
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
            b"\"a\", \"b\"",
            b"\"a,b\"",
            b"\"+json\"",
            b"\"a+json\", \"b+json\"",
            b"\"\xc3\xa9\"",
            b"\xff",
            long.as_bytes(),
        ] {
            assert_eq!(by_tag(&[tag]), None, "{tag:?}");
        }
        assert_eq!(by_tag(&[b"\"a\"", b"\"b\""]), None);
        assert_eq!(by_tag(&[b"\"a\"", b"*"]), None);
    }

    #[test]
    fn what_a_program_says_goes_before_what_a_cache_adds() {
        let tag = (header::IF_NONE_MATCH, &b"\"tag\""[..]);
        let id = |id: &'static [u8]| (LAST_EVENT_ID, id);
        let asked = |headers: &[_], uri| parsed(headers, uri);
        assert_eq!(asked(&[tag.clone(), id(b"id")], "/").unwrap(), "id");
        assert_eq!(asked(&[tag.clone(), id(b"")], "/").unwrap(), "tag");
        assert_eq!(asked(&[tag, id(b"a b")], "/"), None);
        let tag = (header::IF_NONE_MATCH, &b"\"tag\""[..]);
        assert_eq!(asked(&[tag], "/?last_event_id=q").unwrap(), "tag");
        let junk = (header::IF_NONE_MATCH, &b"*"[..]);
        assert_eq!(asked(&[junk], "/?last_event_id=q").unwrap(), "q");
    }
}
