use std::{error, fmt, sync::Arc};

use async_nats::{
    ConnectError, ConnectErrorKind, PublishError, SubscribeError, client::PublishErrorKind,
};

use crate::api_response::ApiError;

/// The error of a connection, a read or a publication.
///
/// ```
/// use tower_push_nats::Error;
///
/// fn http_status(error: &Error) -> u16 {
///     match error {
///         error if error.is_too_large() => 413,
///         error if error.is_unavailable() || error.is_full() => 503,
///         _ => 500,
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    may_have_run: bool,
    /// The description of the error by the server or by the NATS client.
    detail: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorKind {
    Unavailable,
    /// No server process has answered the request: JetStream is starting, the stream has no leader, or no stream has the subject.
    NoResponders,
    Timeout,
    Full,
    Unauthorized,
    NotFound,
    WrongStream,
    TooLarge,
    InvalidServers,
    MissingTopic,
    /// The message that a publication expects to be the last one of its subject is not the last one.
    Conflict,
    Unsupported,
    Other,
}

impl Error {
    fn new(kind: ErrorKind) -> Self {
        Self {
            kind,
            may_have_run: false,
            detail: None,
        }
    }

    fn with_detail(self, detail: impl Into<Arc<str>>) -> Self {
        Self {
            detail: Some(detail.into()),
            ..self
        }
    }

    /// Returns the error of a server that does not answer in time.
    pub(crate) fn timeout() -> Self {
        Self {
            may_have_run: true,
            ..Self::new(ErrorKind::Timeout)
        }
    }

    /// Returns the error of a request that was not sent.
    pub(crate) fn unavailable(detail: &str) -> Self {
        Self::new(ErrorKind::Unavailable).with_detail(detail)
    }

    /// Returns the error of a connection that broke while it waited for an answer.
    pub(crate) fn disconnected() -> Self {
        Self {
            may_have_run: true,
            ..Self::unavailable("the connection is broken")
        }
    }

    /// Returns the error of a request that no server process answers.
    pub(crate) fn no_responders() -> Self {
        Self::new(ErrorKind::NoResponders).with_detail("no responders")
    }

    /// Returns the error of a subject that the user may not use.
    pub(crate) fn unauthorized(detail: &str) -> Self {
        Self::new(ErrorKind::Unauthorized).with_detail(detail)
    }

    /// Returns the error of a stream that cannot be a feed.
    pub(crate) fn wrong_stream(detail: &str) -> Self {
        Self::new(ErrorKind::WrongStream).with_detail(detail)
    }

    /// Returns the error of an event that has too many topics.
    pub(crate) fn too_large() -> Self {
        Self::new(ErrorKind::TooLarge).with_detail("too many topics")
    }

    pub(crate) fn missing_topic() -> Self {
        Self::new(ErrorKind::MissingTopic)
    }

    pub(crate) fn invalid_servers(detail: impl fmt::Display) -> Self {
        Self::new(ErrorKind::InvalidServers).with_detail(detail.to_string())
    }

    /// Returns the error of an answer that a server of version 2.11 or later does not give.
    pub(crate) fn unsupported(detail: &str) -> Self {
        Self::new(ErrorKind::Unsupported).with_detail(detail)
    }

    /// Returns the error with another value of [`may_be_published`](Self::may_be_published).
    pub(crate) fn with_may_have_run(self, may_have_run: bool) -> Self {
        Self {
            may_have_run,
            ..self
        }
    }

    /// Returns whether the server cannot be reached, does not answer in time, is starting, or has no leader for the stream. A later call can
    /// succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unavailable | ErrorKind::NoResponders | ErrorKind::Timeout
        )
    }

    /// Returns whether no server process has answered the request.
    pub(crate) fn is_no_responders(&self) -> bool {
        self.kind == ErrorKind::NoResponders
    }

    /// Returns whether the stream or the server accepts no more messages: the stream has reached its limits and discards new messages, or the
    /// server has no space left.
    pub fn is_full(&self) -> bool {
        self.kind == ErrorKind::Full
    }

    /// Returns whether the server refuses the user, or the user may not use a subject that this crate needs. The [crate docs](crate) list these
    /// subjects.
    pub fn is_unauthorized(&self) -> bool {
        self.kind == ErrorKind::Unauthorized
    }

    /// Returns whether there is no stream with this name, and this crate may not
    /// [create](crate::JetStreamBuilder::create_stream) one.
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    /// Returns whether the stream cannot be a feed: it has other subjects, does not allow direct reads, is not retained by limits, or another
    /// stream has one of its subjects. Returns `true`, too, if the stream does not have the subject of an event.
    pub fn is_wrong_stream(&self) -> bool {
        self.kind == ErrorKind::WrongStream
    }

    /// Returns whether the event has more bytes than the server or the stream allows.
    pub fn is_too_large(&self) -> bool {
        self.kind == ErrorKind::TooLarge
    }

    /// Returns whether the text of the servers' addresses is invalid.
    pub fn is_invalid_servers(&self) -> bool {
        self.kind == ErrorKind::InvalidServers
    }

    /// Returns whether the event has no topic, although there is no [subject prefix](crate::JetStreamBuilder::subject_prefix) under which it could
    /// be published without one.
    pub fn is_missing_topic(&self) -> bool {
        self.kind == ErrorKind::MissingTopic
    }

    /// Returns whether another process has added a message before a message that was to follow the last one.
    pub(crate) fn is_conflict(&self) -> bool {
        self.kind == ErrorKind::Conflict
    }

    /// Returns whether the server is older than NATS 2.11, or has no JetStream.
    pub fn is_unsupported(&self) -> bool {
        self.kind == ErrorKind::Unsupported
    }

    /// Returns whether the event may have been published in spite of the error, because the connection broke before the server's answer. The NATS
    /// client may also send the event after it has reconnected, behind later events. A caller that publishes the event again may publish it
    /// twice, unless it uses [`publish_once`](crate::JetStreamPublisher::publish_once).
    pub fn may_be_published(&self) -> bool {
        self.may_have_run
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        let kind = match error.err_code {
            ApiError::STREAM_NOT_FOUND => ErrorKind::NotFound,
            // The server names the limit of the stream in the text only.
            ApiError::STREAM_STORE_FAILED if error.description.contains("maximum") => {
                ErrorKind::Full
            }
            ApiError::INSUFFICIENT_RESOURCES
            | ApiError::MEMORY_RESOURCES_EXCEEDED
            | ApiError::STORAGE_RESOURCES_EXCEEDED
            | ApiError::ACCOUNT_RESOURCES_EXCEEDED
            | ApiError::MAXIMUM_STREAMS
            | ApiError::MAXIMUM_CONSUMERS => ErrorKind::Full,
            ApiError::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ApiError::STREAM_HEADER_EXCEEDS_MAXIMUM => {
                ErrorKind::TooLarge
            }
            ApiError::STREAM_WRONG_LAST_SEQUENCE
            | ApiError::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => ErrorKind::Conflict,
            ApiError::JETSTREAM_NOT_ENABLED | ApiError::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                ErrorKind::Unsupported
            }
            ApiError::STREAM_NOT_MATCH
            | ApiError::STREAM_SEALED
            | ApiError::STREAM_SUBJECT_OVERLAP
            | ApiError::STREAM_NAME_EXIST => ErrorKind::WrongStream,
            _ if error.code == 503 => ErrorKind::Unavailable,
            _ => ErrorKind::Other,
        };
        Self::new(kind).with_detail(error.description)
    }
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        let kind = match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                ErrorKind::Unauthorized
            }
            ConnectErrorKind::ServerParse => ErrorKind::InvalidServers,
            ConnectErrorKind::TimedOut => ErrorKind::Timeout,
            ConnectErrorKind::Tls => ErrorKind::Other,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind).with_detail(error.to_string())
    }
}

impl From<SubscribeError> for Error {
    fn from(error: SubscribeError) -> Self {
        Self::unavailable(&error.to_string())
    }
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        let kind = match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
            PublishErrorKind::InvalidSubject => ErrorKind::Other,
            PublishErrorKind::Send => ErrorKind::Unavailable,
        };
        Self::new(kind).with_detail(error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ErrorKind::Unavailable | ErrorKind::NoResponders => "the NATS server is not available",
            ErrorKind::Timeout => "the NATS server does not answer in time",
            ErrorKind::Full => "the stream accepts no more messages",
            ErrorKind::Unauthorized => "the NATS server refuses the user or the subject",
            ErrorKind::NotFound => "the stream does not exist",
            ErrorKind::WrongStream => "the stream cannot be a feed",
            ErrorKind::TooLarge => "the event is too large",
            ErrorKind::InvalidServers => "the addresses of the servers are invalid",
            ErrorKind::MissingTopic => "the event has no topic, and so no subject",
            ErrorKind::Conflict => "another process has added a message meanwhile",
            ErrorKind::Unsupported => "the server is not NATS 2.11 or later with JetStream",
            ErrorKind::Other => "the NATS server has failed",
        })?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl error::Error for Error {}
