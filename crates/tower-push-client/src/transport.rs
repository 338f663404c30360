use std::fmt;

use http::Uri;

/// A transport that the client asks the server for.
///
/// The client reads a response by its `Content-Type`. A client that asks for one transport and gets another, as from a server that ignores
/// `Accept`, reads the transport that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// A WebSocket, opened by an upgrade of an HTTP/1.1 connection ([RFC 6455](https://www.rfc-editor.org/rfc/rfc6455)).
    #[cfg(feature = "websocket")]
    #[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
    WebSocket,
    /// A WebSocket on a stream of an HTTP/2 connection ([RFC 8441](https://www.rfc-editor.org/rfc/rfc8441)). The HTTP service must use
    /// HTTP/2.
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    WebSocketHttp2,
    /// Server-Sent Events: `text/event-stream`.
    Sse,
    /// NDJSON: `application/x-ndjson`.
    Ndjson,
    /// JSON text sequences: `application/json-seq`.
    JsonSeq,
    /// `multipart/mixed`.
    Multipart,
    /// Long-polling: `application/json`, one response for each batch of events.
    LongPoll,
    /// Long-polling of [Durable Streams](https://github.com/durable-streams/durable-streams), for servers of this protocol. A client without a
    /// cursor reads the oldest message first. Each value of a JSON array is an event, and a batch of another media type is one event. Events
    /// have no ids: a [cursor](crate::ClientItem::Cursor) follows each batch.
    DurableLongPoll,
}

impl Transport {
    /// Returns the name of the transport: the value of the query parameter `transport` by which a tower-push server chooses it.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "websocket")]
            Self::WebSocket => "websocket",
            #[cfg(feature = "http2")]
            Self::WebSocketHttp2 => "websocket-http2",
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
            Self::JsonSeq => "json-seq",
            Self::Multipart => "multipart",
            Self::LongPoll => "long-poll",
            Self::DurableLongPoll => "durable-long-poll",
        }
    }

    /// Returns the `Accept` header of a request for the transport. Returns `None` for a WebSocket.
    pub(crate) fn accept(self) -> Option<&'static str> {
        Some(match self {
            #[cfg(feature = "websocket")]
            Self::WebSocket => return None,
            #[cfg(feature = "http2")]
            Self::WebSocketHttp2 => return None,
            Self::Sse => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
            Self::JsonSeq => "application/json-seq",
            Self::Multipart => "multipart/mixed",
            Self::LongPoll => "application/json",
            Self::DurableLongPoll => "*/*",
        })
    }

    /// Whether each response is one batch of events, after which the next request follows.
    pub(crate) fn is_long_poll(self) -> bool {
        matches!(self, Self::LongPoll | Self::DurableLongPoll)
    }

    /// Whether the transport is a WebSocket.
    pub fn is_websocket(self) -> bool {
        self.accept().is_none()
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is wrong with a URL of the scheme `https` or `wss`, after "the URL" or "that".
pub(crate) const NEEDS_TLS: &str =
    "needs TLS, which the HTTP client of `Client::new` does not have: use `Client::with_service`";

/// Returns the scheme of the requests to `uri`: `ws` means `http`, and `wss` means `https`. Returns `None` if the URL has no scheme, or
/// another one.
pub(crate) fn http_scheme(uri: &Uri) -> Option<&'static str> {
    match uri.scheme_str()? {
        "http" | "ws" => Some("http"),
        "https" | "wss" => Some("https"),
        _ => None,
    }
}

/// Returns `uri` with its [`http_scheme`].
pub(crate) fn with_http_scheme(uri: Uri) -> Uri {
    let Some(scheme) = http_scheme(&uri) else {
        return uri;
    };
    let mut parts = uri.clone().into_parts();
    parts.scheme = scheme.parse().ok();
    Uri::from_parts(parts).unwrap_or(uri)
}

/// Whether a URL has a valid port, or none. [`Uri`] also accepts text such as `host:443(c` and `host:+443`.
pub(crate) fn has_valid_port(uri: &Uri) -> bool {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host_and_port = authority.rsplit('@').next().unwrap_or_default();
    let port = host_and_port.strip_prefix(uri.host().unwrap_or_default());
    match port.map(|port| port.strip_prefix(':').unwrap_or(port)) {
        Some("") => true,
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && uri.port_u16().is_some(),
        None => false,
    }
}
