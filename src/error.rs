//! What can be wrong with a value that is about to be pushed, and with who it is pushed to.

use std::{error, fmt};

/// Any error, as a source's stream may end with.
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// A value that cannot be pushed, or a subscriber or peer that it cannot be pushed to.
///
/// It is opaque, so that kinds can be added; ask it with its `is_…` methods.
///
/// ```
/// let error = tower_push::EventId::new("two\nlines").unwrap_err();
/// assert!(error.is_invalid_id());
/// ```
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    source: Option<BoxError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    InvalidId,
    InvalidType,
    #[cfg(feature = "json")]
    Json,
    NotText,
    DelimiterInPayload,
    GapUnsupported,
    Closed,
    Lagged,
    InvalidOrigin,
    Stalled,
}

impl Error {
    /// Whether a text cannot be an [`EventId`](crate::EventId).
    pub fn is_invalid_id(&self) -> bool {
        self.kind == Kind::InvalidId
    }

    /// Whether a text cannot be an [`EventType`](crate::EventType).
    pub fn is_invalid_type(&self) -> bool {
        self.kind == Kind::InvalidType
    }

    /// Whether a value could not be written as JSON, or a text is not JSON.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn is_json(&self) -> bool {
        self.kind == Kind::Json
    }

    /// Whether a binary payload met a transport that carries UTF-8 only.
    pub fn is_not_text(&self) -> bool {
        self.kind == Kind::NotText
    }

    /// Whether a payload holds the separator or boundary that would end it.
    pub fn is_delimiter_in_payload(&self) -> bool {
        self.kind == Kind::DelimiterInPayload
    }

    /// Whether a gap met a format that cannot announce one.
    pub fn is_gap_unsupported(&self) -> bool {
        self.kind == Kind::GapUnsupported
    }

    /// Whether an event came too late: the channel is closed.
    pub fn is_closed(&self) -> bool {
        self.kind == Kind::Closed
    }

    /// Whether a subscriber was cut off because it was too slow.
    pub fn is_lagged(&self) -> bool {
        self.kind == Kind::Lagged
    }

    /// Whether a text is no [origin](crate::OriginPolicy::allow_origin).
    pub fn is_invalid_origin(&self) -> bool {
        self.kind == Kind::InvalidOrigin
    }

    /// Whether a connection's peer took nothing of what was written for too long: what
    /// [`WriteProgress`](crate::WriteProgress) fails with.
    pub fn is_stalled(&self) -> bool {
        self.kind == Kind::Stalled
    }

    #[cfg(feature = "json")]
    pub(crate) fn json(source: serde_json::Error) -> Self {
        Self {
            kind: Kind::Json,
            source: Some(source.into()),
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self { kind, source: None }
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
            Kind::InvalidId => "an event id is 1 to 128 bytes of [A-Za-z0-9._~-]",
            Kind::InvalidType => "an event type is 1 to 128 bytes without control characters, and without white space at its ends",
            #[cfg(feature = "json")]
            Kind::Json => "not JSON",
            Kind::NotText => "a binary payload on a transport that carries text only",
            Kind::DelimiterInPayload => "the payload holds the delimiter that would end it",
            Kind::GapUnsupported => "events were missed, and this format cannot say so",
            Kind::Closed => "the channel is closed",
            Kind::Lagged => "the subscriber was too slow",
            Kind::InvalidOrigin => "an origin is a scheme, a host and perhaps a port: https://app.example.com",
            Kind::Stalled => "the peer has taken nothing for too long",
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
