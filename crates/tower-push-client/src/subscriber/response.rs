//! How a subscriber handles the head of a response.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION},
    response::Parts,
    uri::PathAndQuery,
};
use tower_push_proto::{EventId, header_list::media_type};

#[cfg(feature = "websocket")]
use super::ClientSession;
use super::{
    ConnectionReader, EventConnection, ResponseAction, Subscriber, SubscriberState, batch_cursor,
    connection_failure::{ConnectionFailure, reaction_to_status},
    item_reader::ItemReader,
    retry_after::retry_after,
};
use crate::{
    error::{BoxError, Error},
    feed_url::FeedUrl,
    item::ClientItem,
    transport::{NEEDS_TLS, Transport, has_valid_port, http_scheme, with_http_scheme},
};

/// A response that is no feed, while its body is read.
#[derive(Debug)]
pub(super) struct NonFeedResponse {
    status: StatusCode,
    failure: ConnectionFailure,
    body: BytesMut,
    deadline: Instant,
}

/// The most bytes of a body that an error keeps: 64 KiB.
const MAX_ERROR_BODY_LEN: usize = 64 * 1024;

/// The longest time for which the body of an error is read: 5 s.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

impl NonFeedResponse {
    /// Appends bytes of the body. Returns whether the body has the maximum length, so that further bytes are not needed.
    pub(super) fn append_body(&mut self, input: &[u8]) -> bool {
        let len = input.len().min(MAX_ERROR_BODY_LEN - self.body.len());
        self.body.extend_from_slice(&input[..len]);
        self.body.len() == MAX_ERROR_BODY_LEN
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Subscriber {
    /// Handles that the request failed without a response.
    pub fn handle_request_error(&mut self, error: BoxError, now: Instant) {
        if matches!(self.state, SubscriberState::Requesting { .. }) {
            self.fail(ConnectionFailure::retry(Error::request(error)), now);
        }
    }

    /// Handles that the request was prepared, if this takes time: the time for the response begins now, and not at
    /// [`poll_request`](Self::poll_request).
    pub fn handle_prepared(&mut self, now: Instant) {
        if let SubscriberState::Requesting { sent, .. } = &mut self.state {
            *sent = now;
        }
    }

    /// Handles that the request could not be prepared: no token is available, for example. Such an error says nothing about the transport.
    pub fn handle_prepare_error(&mut self, error: BoxError, now: Instant) {
        if matches!(self.state, SubscriberState::Requesting { .. }) {
            self.fail(ConnectionFailure::retry(Error::prepare(error)), now);
        }
    }

    /// Handles the head of the response to the last request, and returns what the caller has to do with the response.
    pub fn handle_response(&mut self, head: &Parts, now: Instant) -> ResponseAction {
        let SubscriberState::Requesting {
            transport,
            sent,
            accept,
        } = &mut self.state
        else {
            return ResponseAction::Drop;
        };
        let (transport, sent, accept) = (*transport, *sent, accept.take());
        self.retry_hint = retry_after(&head.headers);
        if let Some(result) = self.handle_upgrade(head, transport, accept.as_ref(), now) {
            return result;
        }
        if transport == Transport::DurableLongPoll {
            if let Some(action) = self.handle_durable_response(head, sent, now) {
                return action;
            }
        }
        match head.status {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT => {
                self.terminate();
                self.queued.push_back(Ok(ClientItem::Finished));
                return ResponseAction::Drop;
            }
            status if status.is_redirection() && head.headers.contains_key(LOCATION) => {
                self.follow_redirect(&head.headers, now);
                return ResponseAction::Drop;
            }
            status => {
                let failure = ConnectionFailure {
                    error: Some(Error::status(status)),
                    reaction: reaction_to_status(status),
                };
                return self.read_error(status, failure, now);
            }
        }
        match self.new_reader(&head.headers) {
            Ok((reader, actual)) => {
                // A long poll may have a body in any format.
                let announced = match transport {
                    Transport::LongPoll if actual != Transport::Sse => transport,
                    _ => actual,
                };
                let requested = match announced {
                    Transport::LongPoll => Transport::LongPoll,
                    _ if transport == Transport::LongPoll => announced,
                    _ => transport,
                };
                // The time of a long poll runs from its request.
                let since = if requested == Transport::LongPoll {
                    sent
                } else {
                    now
                };
                let cursor = batch_cursor(&head.headers);
                let reader = ConnectionReader::Body(reader);
                self.begin_reading(reader, requested, announced, since, cursor, now);
                ResponseAction::ReadBody
            }
            Err(error) => self.read_error(head.status, ConnectionFailure::stop(error), now),
        }
    }

    fn new_reader(&self, headers: &HeaderMap) -> Result<(ItemReader, Transport), Error> {
        check_content_encoding(headers)?;
        ItemReader::new(headers.get(CONTENT_TYPE), &self.config)
    }

    pub(super) fn begin_reading(
        &mut self,
        reader: ConnectionReader,
        requested: Transport,
        announced: Transport,
        since: Instant,
        batch_cursor: Option<EventId>,
        now: Instant,
    ) {
        // A server may open a WebSocket before it refuses the client with a close code.
        self.has_repeated_401 &= requested.is_websocket();
        self.watchdog.on_connected(now);
        let polled_cursor = match requested.is_long_poll() {
            true => self.cursor.clone(),
            false => None,
        };
        self.state = SubscriberState::Reading(EventConnection {
            reader,
            requested,
            since,
            has_input: false,
            has_item_of_input: true,
            has_items: false,
            is_finished: false,
            polled_cursor,
            has_cursors: false,
            batch_cursor,
            is_last_batch: false,
        });
        if self.announced != Some(announced) {
            self.announced = Some(announced);
            let item = ClientItem::Connected {
                transport: announced,
            };
            self.queued.push_back(Ok(item));
        }
    }

    /// Handles the response to a request for a WebSocket, if the server has agreed. Returns `None` for any other response.
    #[cfg(feature = "websocket")]
    fn handle_upgrade(
        &mut self,
        head: &Parts,
        transport: Transport,
        accept: Option<&HeaderValue>,
        now: Instant,
    ) -> Option<ResponseAction> {
        let is_agreed = match accept {
            Some(_) => head.status == StatusCode::SWITCHING_PROTOCOLS,
            None => transport.is_websocket() && head.status == StatusCode::OK,
        };
        if !is_agreed {
            return None;
        }
        let content_type = head.headers.get(CONTENT_TYPE);
        if accept.is_none() && content_type.is_some_and(is_html) {
            let error = Error::content_type("the response is not a WebSocket, but `text/html`");
            self.fail(ConnectionFailure::stop(error), now);
            return Some(ResponseAction::Drop);
        }
        match ClientSession::from_handshake(&head.headers, accept, &self.config) {
            Ok(websocket) => {
                let reader = ConnectionReader::WebSocket(Box::new(websocket));
                self.begin_reading(reader, transport, transport, now, None, now);
                Some(ResponseAction::Upgrade)
            }
            Err(error) => {
                self.fail(ConnectionFailure::stop(error), now);
                Some(ResponseAction::Drop)
            }
        }
    }

    #[cfg(not(feature = "websocket"))]
    fn handle_upgrade(
        &mut self,
        _: &Parts,
        _: Transport,
        _: Option<&HeaderValue>,
        _: Instant,
    ) -> Option<ResponseAction> {
        None
    }

    /// Reads the body of a response that is no feed before the failure is reported.
    pub(super) fn read_error(
        &mut self,
        status: StatusCode,
        failure: ConnectionFailure,
        now: Instant,
    ) -> ResponseAction {
        self.state = SubscriberState::ReadingError(Box::new(NonFeedResponse {
            status,
            failure,
            body: BytesMut::new(),
            deadline: now + ERROR_BODY_TIMEOUT,
        }));
        ResponseAction::ReadBody
    }

    /// Reports a response that is no feed, with as much of its body as was read.
    pub(super) fn report_error_response(&mut self, now: Instant) {
        let state = std::mem::replace(&mut self.state, SubscriberState::Terminated);
        let SubscriberState::ReadingError(pending) = state else {
            self.state = state;
            return;
        };
        let NonFeedResponse {
            status,
            failure,
            body,
            ..
        } = *pending;
        let ConnectionFailure { error, reaction } = failure;
        let error = error.map(|error| error.with_response(status, Bytes::from(body)));
        self.fail(ConnectionFailure { error, reaction }, now);
    }

    /// Follows a redirect within the same host. Each reconnect begins with the URL of the feed again.
    fn follow_redirect(&mut self, headers: &HeaderMap, now: Instant) {
        let FeedUrl(from) = self.redirected_url.as_ref().unwrap_or(&self.url);
        let location = headers.get(LOCATION);
        let target = location.and_then(|value| resolve_reference(from, value.to_str().ok()?));
        let location = location.map(HeaderValue::as_bytes).unwrap_or_default();
        // The URL of a service in the same process may have no scheme.
        let may_follow = |target: &Uri| {
            let is_of_http = http_scheme(target).is_some() || target.scheme() == from.scheme();
            is_of_http && has_valid_port(target)
        };
        let error = match target.filter(may_follow) {
            None => {
                let location = without_user_and_query(location).escape_ascii();
                let detail =
                    format!("the server redirects to `{location}`, which is no URL of HTTP");
                Error::redirect(detail)
            }
            Some(target) if !is_same_host(from, &target) || is_downgrade_to_http(from, &target) => {
                let target = FeedUrl(target);
                Error::redirect(format!("the server redirects to another origin: {target}"))
            }
            Some(target) if http_scheme(&target) == Some("https") && !self.config.has_tls => {
                Error::redirect(format!("the server redirects to a URL that {NEEDS_TLS}"))
            }
            Some(_) if self.redirects >= self.config.max_redirects => {
                let max = self.config.max_redirects;
                Error::redirect(format!("the server redirects more than {max} times"))
            }
            Some(target) => {
                self.redirected_url = Some(FeedUrl(with_http_scheme(target)));
                self.redirects += 1;
                self.state = SubscriberState::Waiting { until: now };
                return;
            }
        };
        self.fail(ConnectionFailure::stop(error), now);
    }
}

/// Checks that the body of a response is not compressed.
///
/// # Errors
/// [`Error::is_unexpected_content_type`] if it is.
pub(super) fn check_content_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let encoding = headers.get(CONTENT_ENCODING);
    if encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let detail = "the response is compressed although the request did not allow it";
        return Err(Error::content_type(detail));
    }
    Ok(())
}

/// Whether a response is a page, by its `Content-Type`.
pub(super) fn is_html(content_type: &HeaderValue) -> bool {
    media_type(content_type).is_some_and(|name| name.eq_ignore_ascii_case("text/html"))
}

/// Whether the URLs have the same host and port. A URL without a port has the default port of its scheme.
fn is_same_host(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        let default = match http_scheme(uri) {
            Some("https") => 443,
            _ => 80,
        };
        uri.port_u16().unwrap_or(default)
    };
    let is_same_port = port(a) == port(b) || a.port().is_none() && b.port().is_none();
    let hosts = (a.host().unwrap_or_default(), b.host().unwrap_or_default());
    is_same_port && hosts.0.eq_ignore_ascii_case(hosts.1)
}

/// Whether a redirect leads from `https` to `http`.
fn is_downgrade_to_http(from: &Uri, target: &Uri) -> bool {
    from.scheme_str() == Some("https") && http_scheme(target) != Some("https")
}

/// Returns the part of a text that is no URL of HTTP without what may be a user, a password or a query.
fn without_user_and_query(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| b"?#".contains(byte));
    let text = &text[..end.unwrap_or(text.len())];
    let user_end = text.iter().rposition(|byte| *byte == b'@');
    &text[user_end.map_or(0, |end| end + 1)..]
}

/// Resolves the `Location` of a redirect ([RFC 3986 §5.2](https://www.rfc-editor.org/rfc/rfc3986#section-5.2)). Dot segments are left for the
/// server.
fn resolve_reference(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.trim().split('#').next().unwrap_or_default();
    let base_path = base.path();
    let directory = base_path.rfind('/').map_or("/", |end| &base_path[..=end]);
    let path = match reference {
        "" => return Some(base.clone()),
        _ if reference.starts_with("//") => {
            return format!("{}:{reference}", base.scheme_str()?).parse().ok();
        }
        _ if reference.starts_with('/') => reference.to_owned(),
        _ if reference.starts_with('?') => format!("{base_path}{reference}"),
        _ if has_scheme(reference) => {
            let uri: Option<Uri> = reference.parse().ok();
            return uri.filter(|uri| uri.scheme().is_some());
        }
        _ => format!("{directory}{reference}"),
    };
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// Whether a reference begins with a scheme ([RFC 3986 §3.1](https://www.rfc-editor.org/rfc/rfc3986#section-3.1)), and so is no relative one.
fn has_scheme(reference: &str) -> bool {
    let Some((scheme, _)) = reference.split_once(':') else {
        return false;
    };
    let is_in_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(is_in_scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved() {
        let base = Uri::from_static("http://host:80/a/b?q=1");
        for (reference, expected) in [
            ("/c?d", "http://host:80/c?d"),
            ("c", "http://host:80/a/c"),
            ("?d", "http://host:80/a/b?d"),
            ("//other/c#f", "http://other/c"),
            ("https://other/", "https://other/"),
            ("", "http://host:80/a/b?q=1"),
            ("1:2", "http://host:80/a/1:2"),
        ] {
            let resolved = resolve_reference(&base, reference).unwrap();
            assert_eq!(resolved.to_string(), expected, "{reference}");
        }
        for reference in ["a b", "javascript:alert(1)", "http:", "http://"] {
            assert!(resolve_reference(&base, reference).is_none(), "{reference}");
        }
    }

    #[test]
    fn default_port_is_the_same_host() {
        for (a, b, expected) in [
            ("http://host/", "http://HOST:80/", true),
            ("https://host:443/", "wss://host/", true),
            ("http://host/", "https://host/", true),
            ("http://host:80/", "https://host/", false),
            ("http://host/", "http://host:8080/", false),
            ("http://host/", "http://other/", false),
        ] {
            let is_same = is_same_host(&Uri::from_static(a), &Uri::from_static(b));
            assert_eq!(is_same, expected, "{a} {b}");
        }
    }
}
