//! Optional deadlines, and the upper bound for the lifetime of a stream.

use std::time::Duration;

use tokio::time::Instant;

/// Returns the earlier of two deadlines. `None` is a deadline that never comes.
pub(crate) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Upper bound for the lifetime of a stream: 30 years. Adding this bound to `Instant::now()` does not overflow.
pub(crate) const MAX_STREAM_LIFETIME: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
