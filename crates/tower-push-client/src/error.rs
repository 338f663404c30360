use std::{error, fmt, io};

use bytes::Bytes;
use http::StatusCode;
#[cfg(feature = "websocket")]
use tower_push_proto::event::CloseFrame;

/// Any error.
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// The reason why a connection has failed, or why a stream has ended for good.
///
/// `Error` is opaque, so that kinds can be added: the `is_…` methods tell them apart.
///
/// A [`ClientItem::Reconnecting`](crate::ClientItem::Reconnecting) contains the error of a connection that the client replaces. The stream
/// itself yields an error as its last item if another request would fail in the same way.
#[derive(Debug)]
pub struct Error(Box<ErrorData>);

#[derive(Debug)]
struct ErrorData {
    kind: ErrorKind,
    detail: String,
    response: Option<ErrorResponse>,
    #[cfg(feature = "websocket")]
    close_frame: Option<CloseFrame>,
    source: Option<BoxError>,
}

/// The response that an [`Error`] reports.
#[derive(Debug)]
struct ErrorResponse {
    status: StatusCode,
    body: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorKind {
    InvalidUrl,
    Prepare,
    Request,
    Status,
    Redirect,
    ContentType,
    Cut,
    Timeout,
    Malformed,
    TooLong,
    Handshake,
    Closed,
    NoEvents,
}

impl Error {
    fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self(Box::new(ErrorData {
            kind,
            detail: detail.into(),
            response: None,
            #[cfg(feature = "websocket")]
            close_frame: None,
            source: None,
        }))
    }

    fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn with_response(mut self, status: StatusCode, body: Bytes) -> Self {
        self.0.response = Some(ErrorResponse { status, body });
        self
    }

    pub(crate) fn invalid_url(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidUrl, detail)
    }

    pub(crate) fn prepare(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorKind::Prepare, "the request could not be prepared").with_source(source)
    }

    pub(crate) fn request(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorKind::Request, "the request failed").with_source(source)
    }

    pub(crate) fn status(status: StatusCode) -> Self {
        Self::new(ErrorKind::Status, format!("the server answered {status}"))
    }

    pub(crate) fn redirect(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Redirect, detail)
    }

    pub(crate) fn content_type(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::ContentType, detail)
    }

    pub(crate) fn cut(detail: &str) -> Self {
        Self::new(ErrorKind::Cut, detail)
    }

    pub(crate) fn cut_by(source: impl Into<BoxError>) -> Self {
        Self::cut("the stream was cut").with_source(source)
    }

    pub(crate) fn timeout(detail: &str) -> Self {
        Self::new(ErrorKind::Timeout, detail)
    }

    pub(crate) fn malformed(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorKind::Malformed, "the server sent what cannot be read").with_source(source)
    }

    pub(crate) fn too_long(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorKind::TooLong, "the server sent more than the limit").with_source(source)
    }

    /// Converts the error of a parser.
    pub(crate) fn from_parser(error: tower_push_proto::Error) -> Self {
        match error.is_too_long() {
            true => Self::too_long(error),
            false => Self::malformed(error),
        }
    }

    pub(crate) fn no_new_events() -> Self {
        Self::new(
            ErrorKind::NoEvents,
            "the server answers polls at once, without new events",
        )
    }

    #[cfg(feature = "websocket")]
    pub(crate) fn handshake(detail: &str) -> Self {
        Self::new(ErrorKind::Handshake, detail)
    }

    #[cfg(feature = "websocket")]
    pub(crate) fn closed(frame: CloseFrame) -> Self {
        let code = frame.code().map_or(1005, |code| code.get());
        let detail = format!("the server closed the WebSocket with {code}");
        let mut error = Self::new(ErrorKind::Closed, detail);
        error.0.close_frame = Some(frame);
        error
    }

    /// Whether the URL of the feed is not a valid URL with one of the schemes `http`, `https`, `ws` and `wss`, or needs TLS, which
    /// `Client::new` does not have.
    pub fn is_invalid_url(&self) -> bool {
        self.0.kind == ErrorKind::InvalidUrl
    }

    /// Whether the function of [`Client::prepare_request`](crate::Client::prepare_request) has failed, or has taken too long.
    pub fn is_prepare(&self) -> bool {
        self.0.kind == ErrorKind::Prepare
    }

    /// Whether the request failed without a response: the server cannot be reached, for example.
    pub fn is_request(&self) -> bool {
        self.0.kind == ErrorKind::Request
    }

    /// Whether no connection to the server could be opened: the server refuses connections or does not answer, its name or its network is
    /// unknown, or the TLS handshake fails. Such an error is also [`is_request`](Self::is_request).
    ///
    /// The client knows the errors of hyper-util's client and of reqwest, and `std::io::Error` among the [sources](std::error::Error::source).
    pub fn is_connect(&self) -> bool {
        let mut source = error::Error::source(self).filter(|_| self.is_request());
        while let Some(error) = source {
            if is_connect_error(error) {
                return true;
            }
            source = error.source();
        }
        false
    }

    /// Whether the server has answered with a status other than those of a feed. [`status_code`](Self::status_code) and [`body`](Self::body) return
    /// the response.
    pub fn is_status(&self) -> bool {
        self.0.kind == ErrorKind::Status
    }

    /// Whether the server redirects too often, or to a place to which the client does not follow.
    pub fn is_redirect(&self) -> bool {
        self.0.kind == ErrorKind::Redirect
    }

    /// Whether the response is not a feed, by its `Content-Type` or its `Content-Encoding`: a page for logging in, for example.
    pub fn is_unexpected_content_type(&self) -> bool {
        self.0.kind == ErrorKind::ContentType
    }

    /// Whether a response or a WebSocket ended before it was complete, as when the network fails.
    pub fn is_cut(&self) -> bool {
        self.0.kind == ErrorKind::Cut
    }

    /// Whether the server was silent for too long.
    pub fn is_timeout(&self) -> bool {
        self.0.kind == ErrorKind::Timeout
    }

    /// Whether the server has sent bytes that break the format or the protocol of the transport.
    pub fn is_malformed(&self) -> bool {
        self.0.kind == ErrorKind::Malformed
    }

    /// Whether the server has sent an event that is longer than [`Client::max_event_len`](crate::Client::max_event_len).
    pub fn is_too_long(&self) -> bool {
        self.0.kind == ErrorKind::TooLong
    }

    /// Whether the server's part of the opening handshake of a WebSocket is invalid.
    pub fn is_handshake(&self) -> bool {
        self.0.kind == ErrorKind::Handshake
    }

    /// Whether the server has closed a WebSocket with a close frame. `close_frame` returns the frame.
    pub fn is_closed(&self) -> bool {
        self.0.kind == ErrorKind::Closed
    }

    /// Whether the server answers long polls at once, without events or with those that the client has. The client then polls with growing
    /// delays.
    pub fn is_poll_without_events(&self) -> bool {
        self.0.kind == ErrorKind::NoEvents
    }

    /// Returns the status of the response that caused the error. Returns `None` if no response caused it.
    pub fn status_code(&self) -> Option<StatusCode> {
        Some(self.0.response.as_ref()?.status)
    }

    /// Returns the first 64 KiB of the body of the response that caused the error. Returns `None` if no response caused the error.
    pub fn body(&self) -> Option<&Bytes> {
        Some(&self.0.response.as_ref()?.body)
    }

    /// Returns the close frame with which the server has closed the WebSocket. Returns `None` if no close frame caused the error.
    #[cfg(feature = "websocket")]
    #[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
    pub fn close_frame(&self) -> Option<&CloseFrame> {
        self.0.close_frame.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)?;
        if let Some(response) = &self.0.response {
            let text = on_one_line(&String::from_utf8_lossy(&response.body));
            if !text.is_empty() {
                write!(f, ": {text}")?;
            }
        }
        #[cfg(feature = "websocket")]
        if let Some(frame) = self
            .0
            .close_frame
            .as_ref()
            .filter(|f| !f.reason().is_empty())
        {
            write!(f, ": {}", on_one_line(frame.reason()))?;
        }
        Ok(())
    }
}

/// Whether an error, without its sources, says that no connection could be opened.
fn is_connect_error(error: &(dyn error::Error + 'static)) -> bool {
    #[cfg(feature = "hyper-client")]
    if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
        return error.is_connect();
    }
    #[cfg(feature = "reqwest")]
    if let Some(error) = error.downcast_ref::<reqwest::Error>() {
        return error.is_connect();
    }
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable
        )
    })
}

/// The number of characters of a response's body that the text of an error shows.
const MAX_SHOWN_BODY_CHARS: usize = 200;

/// Returns the beginning of a server's text without line breaks and other control characters, so that it changes nothing but its place in a
/// log or on a terminal.
fn on_one_line(text: &str) -> String {
    let is_separator = |c: char| c.is_whitespace() || c.is_control();
    let words = text.split(is_separator).filter(|word| !word.is_empty());
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if let Some((len, _)) = line.char_indices().nth(MAX_SHOWN_BODY_CHARS) {
            line.truncate(len);
            break;
        }
    }
    line
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|error| error as &(dyn error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_server_is_on_one_line() {
        let body = "<html>\r\n  <b>No\x1b[2J</b>\n";
        let error = Error::status(StatusCode::FORBIDDEN);
        let error = error.with_response(StatusCode::FORBIDDEN, body.into());
        let expected = "the server answered 403 Forbidden: <html> <b>No [2J</b>";
        assert_eq!(error.to_string(), expected);
        assert_eq!(on_one_line(&"é".repeat(300)), "é".repeat(200));
        assert_eq!(on_one_line(" \n"), "");
    }
}
