//! The error type of this crate, of tower-push, and of other sources and transports.

use std::{error, fmt};

/// Any error. A source's stream may end with a `BoxError`.
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// A value that cannot be pushed, a peer to which nothing more can be pushed, or bytes from a peer that cannot be read.
///
/// `Error` is opaque, so that kinds of errors can be added. A method `is_…` recognizes each kind, and a constructor creates it, also for
/// sources and transports of other crates: `Error::lagged()` creates an error for which [`is_lagged`](Self::is_lagged) is true.
///
/// ```
/// # use tower_push_proto as tower_push;
/// let error = tower_push::EventId::new("two\nlines").unwrap_err();
/// assert!(error.is_invalid_id());
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    source: Option<BoxError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorKind {
    InvalidId,
    InvalidType,
    InvalidTopic,
    NoTopic,
    #[cfg(feature = "json")]
    Json,
    NotText,
    DelimiterInPayload,
    GapUnsupported,
    Closed,
    Lagged,
    Full,
    PatternsDisabled,
    WaitRequired,
    PublisherIdUnsupported,
    PublishFailed,
    InvalidOrigin,
    Stalled,
    TooLong,
    Malformed,
}

/// Defines a constructor and an `is_…` predicate for each [`ErrorKind`].
macro_rules! kinds {
    ($($kind:ident: #[$new_doc:meta] $new:ident, #[$is_doc:meta] $is:ident;)*) => {
        impl Error {
            $(
                #[$new_doc]
                #[cold]
                pub fn $new() -> Self {
                    Self { kind: ErrorKind::$kind, source: None }
                }

                #[$is_doc]
                pub fn $is(&self) -> bool {
                    self.kind == ErrorKind::$kind
                }
            )*
        }
    };
}

kinds! {
    InvalidId:
        /// Makes the error for a text that cannot be an [`EventId`](crate::EventId).
        invalid_id,
        /// Whether a text cannot be an [`EventId`](crate::EventId).
        is_invalid_id;
    InvalidType:
        /// Makes the error for a text that cannot be an [`EventType`](crate::EventType).
        invalid_type,
        /// Whether a text cannot be an [`EventType`](crate::EventType).
        is_invalid_type;
    InvalidTopic:
        /// Makes the error for a text that cannot be a [`Topic`](crate::event::Topic).
        invalid_topic,
        /// Whether a text cannot be a [`Topic`](crate::event::Topic).
        is_invalid_topic;
    NoTopic:
        /// Makes the error for a publication to no topic.
        no_topic,
        /// Whether an event was published to an empty set of topics.
        is_no_topic;
    NotText:
        /// Makes the error for a binary payload on a transport that carries UTF-8 only.
        not_text,
        /// Whether a payload is binary, but its transport carries UTF-8 only.
        is_not_text;
    DelimiterInPayload:
        /// Makes the error for a payload that contains the separator or boundary of its format.
        delimiter_in_payload,
        /// Whether a payload contains the separator or boundary of its format, which a client would take for the payload's end.
        is_delimiter_in_payload;
    GapUnsupported:
        /// Makes the error for a gap in a format that cannot announce one.
        gap_unsupported,
        /// Whether a stream has a gap, but its format cannot announce gaps.
        is_gap_unsupported;
    Closed:
        /// Makes the error for an event that is published after the channel was closed.
        closed,
        /// Whether an event was published after the channel was closed.
        is_closed;
    Lagged:
        /// Makes the error that ends the stream of a subscriber that was too slow. On a WebSocket, this error closes the connection with 3008.
        lagged,
        /// Whether a subscriber was disconnected because it was too slow.
        is_lagged;
    Full:
        /// Makes the error for a hub that has no room for another topic or pattern.
        full,
        /// Whether a hub has no room for another topic or pattern.
        is_full;
    PatternsDisabled:
        /// Makes the error for a subscription to a pattern in a hub that allows no patterns.
        patterns_disabled,
        /// Whether a subscription to a pattern failed because the hub allows no patterns: see `HubBuilder::max_patterns`.
        is_patterns_disabled;
    WaitRequired:
        /// Makes the error for a publication that does not wait, to a hub whose broker must be waited for.
        wait_required,
        /// Whether a publication must wait, because its hub has a broker: `Hub::publish_and_wait`.
        is_wait_required;
    PublisherIdUnsupported:
        /// Makes the error for a publication with an id of its publisher, to a hub whose broker gives the ids.
        publisher_id_unsupported,
        /// Whether a publication has an id of its publisher (`PublishOptions::id`), but the broker of its hub gives the ids.
        is_publisher_id_unsupported;
    InvalidOrigin:
        /// Makes the error for a text that is not an origin.
        invalid_origin,
        /// Whether a text is not an origin, in `OriginPolicy::allow_origin`.
        is_invalid_origin;
    Stalled:
        /// Makes the error for a connection whose peer accepted none of the written bytes for too long.
        stalled,
        /// Whether a connection's peer accepted none of the written bytes for too long. `WriteTimeout` fails with this error.
        is_stalled;
}

impl Error {
    /// Makes the error for a line, a record, a part or a batch that is longer than a parser's limit, or for an event that is larger than its broker allows.
    /// `detail` says which of them, and becomes the [`source`](error::Error::source) of the error.
    #[cold]
    pub fn too_long(detail: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::TooLong,
            source: Some(detail.into()),
        }
    }

    /// Whether a line, a record, a part or a batch is longer than a parser's limit, or an event is larger than its broker allows.
    pub fn is_too_long(&self) -> bool {
        self.kind == ErrorKind::TooLong
    }

    /// Makes the error for an event that a broker has not accepted, or may not have accepted. `detail` says why, and becomes the
    /// [`source`](error::Error::source) of the error.
    #[cold]
    pub fn publish_failed(detail: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::PublishFailed,
            source: Some(detail.into()),
        }
    }

    /// Whether a broker has not accepted an event, or may not have accepted it.
    pub fn is_publish_failed(&self) -> bool {
        self.kind == ErrorKind::PublishFailed
    }

    /// Makes the error for bytes that a parser cannot read. `detail` says why, and becomes the [`source`](error::Error::source)
    /// of the error.
    #[cold]
    pub fn malformed(detail: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::Malformed,
            source: Some(detail.into()),
        }
    }

    /// Whether a parser met bytes that it cannot read.
    pub fn is_malformed(&self) -> bool {
        self.kind == ErrorKind::Malformed
    }
}

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
impl Error {
    /// Makes the error for a value that cannot be written as JSON, or for a text that is not JSON.
    pub fn json(source: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::Json,
            source: Some(source.into()),
        }
    }

    /// Whether a value could not be written as JSON, or a text is not JSON.
    pub fn is_json(&self) -> bool {
        self.kind == ErrorKind::Json
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ErrorKind::InvalidId => "an event id is 1 to 200 visible ASCII characters",
            ErrorKind::InvalidType => {
                "an event type is 1 to 128 bytes without control characters, and without white space at its ends"
            }
            ErrorKind::InvalidTopic => {
                "a topic is 1 to 1024 bytes without control characters, and without white space at its ends"
            }
            ErrorKind::NoTopic => "the event was published to no topic",
            #[cfg(feature = "json")]
            ErrorKind::Json => "not JSON",
            ErrorKind::NotText => "a binary payload on a transport that carries text only",
            ErrorKind::DelimiterInPayload => "the payload holds the delimiter that would end it",
            ErrorKind::GapUnsupported => "events were missed, and this format cannot say so",
            ErrorKind::Closed => "the channel is closed",
            ErrorKind::Lagged => "the subscriber was too slow",
            ErrorKind::Full => "the hub has no room for another topic or pattern",
            ErrorKind::PatternsDisabled => {
                "the hub allows no patterns: set HubBuilder::max_patterns"
            }
            ErrorKind::WaitRequired => "a publication to a hub with a broker must wait",
            ErrorKind::PublisherIdUnsupported => {
                "the broker of the hub gives the ids: publish without PublishOptions::id"
            }
            ErrorKind::PublishFailed => "the broker has not accepted the event",
            ErrorKind::InvalidOrigin => {
                "an origin is a scheme, a host and perhaps a port: https://app.example.com"
            }
            ErrorKind::Stalled => "the peer has taken nothing for too long",
            ErrorKind::TooLong => "what was received is longer than the limit",
            ErrorKind::Malformed => "what was received cannot be read",
        })
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|e| e as &(dyn error::Error + 'static))
    }
}
