use std::{error, fmt};

use redis::{RedisError, ServerError, ServerErrorKind};

/// The error of a connection, a read or a publication.
///
/// ```
/// use tower_push_redis::Error;
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
    source: Option<RedisError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorKind {
    Unavailable,
    Timeout,
    NotMaster,
    Full,
    Unauthorized,
    WrongType,
    TooLarge,
    Unsupported,
    ClockSetBack,
    Other,
}

impl Error {
    fn new(kind: ErrorKind) -> Self {
        Self {
            kind,
            may_have_run: false,
            source: None,
        }
    }

    /// Returns the error of a server that does not answer in time.
    pub(crate) fn timeout() -> Self {
        Self {
            may_have_run: true,
            ..Self::new(ErrorKind::Timeout)
        }
    }

    pub(crate) fn not_master() -> Self {
        Self::new(ErrorKind::NotMaster)
    }

    pub(crate) fn wrong_type() -> Self {
        Self::new(ErrorKind::WrongType)
    }

    pub(crate) fn too_large() -> Self {
        Self::new(ErrorKind::TooLarge)
    }

    pub(crate) fn unavailable() -> Self {
        Self::new(ErrorKind::Unavailable)
    }

    /// Returns the error of a response that a Redis of version 7.0 or later does not give.
    pub(crate) fn unsupported() -> Self {
        Self::new(ErrorKind::Unsupported)
    }

    /// Returns the error of a new entry that may have been removed for its age at once, because the server's clock was set back.
    pub(crate) fn clock_set_back() -> Self {
        Self::new(ErrorKind::ClockSetBack).with_may_have_run(true)
    }

    /// Returns the error with another value of [`may_be_published`](Self::may_be_published).
    pub(crate) fn with_may_have_run(self, may_have_run: bool) -> Self {
        Self {
            may_have_run,
            ..self
        }
    }

    /// Returns the host and the port to which a node of a cluster redirects.
    pub(crate) fn redirection(&self) -> Option<(String, u16)> {
        let (address, _slot) = self.source.as_ref()?.redirect_node()?;
        let (host, port) = address.rsplit_once(':')?;
        Some((host.to_owned(), port.parse().ok()?))
    }

    /// Returns whether a new connection can help: the connection is broken, its server is not available, or the server closes the
    /// connection because a value is above the server's own limit.
    pub(crate) fn needs_new_connection(&self) -> bool {
        let detail = self.source.as_ref().and_then(RedisError::detail);
        self.is_unavailable() || detail.is_some_and(|detail| detail.starts_with("Protocol error"))
    }

    /// Returns whether the server has not answered in time.
    pub(crate) fn is_timeout(&self) -> bool {
        self.kind == ErrorKind::Timeout
    }

    /// Returns whether this is the error of `XINFO STREAM` for a key that does not exist.
    pub(crate) fn is_no_such_key(&self) -> bool {
        let detail = self.source.as_ref().and_then(RedisError::detail);
        detail == Some("no such key")
    }

    /// Returns whether the server cannot be reached, does not answer in time, is a replica, or is starting. A later call can succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NotMaster
        )
    }

    /// Returns whether the server has no memory left, or does not write because its disk fails.
    pub fn is_full(&self) -> bool {
        self.kind == ErrorKind::Full
    }

    /// Returns whether the password is wrong, or the user may not run a command that this crate needs. The [crate docs](crate) list these
    /// commands.
    pub fn is_unauthorized(&self) -> bool {
        self.kind == ErrorKind::Unauthorized
    }

    /// Returns whether a key holds something of another type: that of the stream, or one of those beside it.
    pub fn is_wrong_type(&self) -> bool {
        self.kind == ErrorKind::WrongType
    }

    /// Returns whether the event has more bytes than [`RedisStreamBuilder::max_event_len`](crate::RedisStreamBuilder::max_event_len), or than
    /// the server's own limit, `proto-max-bulk-len`.
    pub fn is_too_large(&self) -> bool {
        self.kind == ErrorKind::TooLarge
    }

    /// Returns whether the server is older than Redis 7.0, or is not a Redis server.
    pub fn is_unsupported(&self) -> bool {
        self.kind == ErrorKind::Unsupported
    }

    /// Returns whether the event may have been published in spite of the error, because the connection broke before the server's answer. A
    /// caller that publishes the event again may publish it twice, unless it uses
    /// [`publish_once`](crate::RedisPublisher::publish_once).
    pub fn may_be_published(&self) -> bool {
        self.may_have_run
    }
}

/// What Redis and Valkey say if the user may not run a command of a script, or the command that ends a transaction. The errors have no code of their
/// own.
const REFUSALS: [&str; 3] = [
    "NOPERM",
    "ACL failure in script",
    "The user executing the script can't",
];

/// Returns the kind of the error that a script has failed with, or for which a transaction was not run.
fn kind_of_inner_error(error: &RedisError) -> Option<ErrorKind> {
    let text_says = |texts: &[&str]| {
        let detail = error.detail().unwrap_or_default();
        texts.iter().any(|text| detail.contains(text))
    };
    if text_says(&REFUSALS) {
        return Some(ErrorKind::Unauthorized);
    }
    if text_says(&["invalid bulk length"]) {
        return Some(ErrorKind::TooLarge);
    }
    if error.kind() != redis::ErrorKind::Server(ServerErrorKind::ExecAbort) {
        return None;
    }
    let errors = error.clone().into_server_errors()?;
    let is_refused = |error: &ServerError| error.kind() == Some(ServerErrorKind::NoPerm);
    let is_refused = errors.iter().any(|(_, error)| is_refused(error));
    is_refused.then_some(ErrorKind::Unauthorized)
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        use redis::ErrorKind as Redis;
        let code = error.code().unwrap_or_default();
        let inner_kind = kind_of_inner_error(&error);
        let kind = inner_kind.unwrap_or_else(|| match (error.kind(), code) {
            (Redis::Io, _) if error.is_timeout() => ErrorKind::Timeout,
            (Redis::Io, _) => ErrorKind::Unavailable,
            (Redis::AuthenticationFailed | Redis::Server(ServerErrorKind::NoPerm), _)
            | (_, "NOAUTH" | "WRONGPASS") => ErrorKind::Unauthorized,
            (
                Redis::Server(
                    ServerErrorKind::BusyLoading
                    | ServerErrorKind::ClusterDown
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::TryAgain
                    | ServerErrorKind::Moved
                    | ServerErrorKind::Ask,
                ),
                _,
            )
            | (_, "UNBLOCKED" | "NOREPLICAS" | "BUSY") => ErrorKind::Unavailable,
            (Redis::Server(ServerErrorKind::ReadOnly), _) => ErrorKind::NotMaster,
            (_, "OOM" | "MISCONF") => ErrorKind::Full,
            (_, "WRONGTYPE") => ErrorKind::WrongType,
            (Redis::Parse | Redis::UnexpectedReturnType, _) => ErrorKind::Unsupported,
            _ => ErrorKind::Other,
        });
        Self {
            kind,
            may_have_run: error.kind() == Redis::Io,
            source: Some(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ErrorKind::Unavailable => "the Redis server is not available",
            ErrorKind::Timeout => "the Redis server does not answer in time",
            ErrorKind::NotMaster => "the Redis server is a replica",
            ErrorKind::Full => "the Redis server accepts no more data",
            ErrorKind::Unauthorized => "the Redis server refuses the user or the command",
            ErrorKind::WrongType => "a Redis key holds something of another type",
            ErrorKind::TooLarge => "the event is too large",
            ErrorKind::Unsupported => "the server is not Redis 7.0 or later",
            ErrorKind::ClockSetBack => {
                "the clock of the Redis server was set back, and the event may have been removed"
            }
            ErrorKind::Other => "the Redis server has failed",
        })?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
