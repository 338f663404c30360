use std::time::{Duration, SystemTime};

use tower_push_proto::decimal;

use crate::random;

/// The protocol's `cursor`: a number in the URL of a poll, which makes a CDN take the poll for a new request.
///
/// The value of the cursor is the number of 20 s intervals since 2024-10-09T00:00:00Z. A new cursor is always greater than the cursor
/// that the client sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheBustingCursor {
    /// The cursor in the request; `None` if the request has no valid cursor.
    client_cursor: Option<u64>,
}

/// The start of the first interval, 2024-10-09T00:00:00Z, as time since the Unix epoch.
const CURSOR_EPOCH: Duration = Duration::from_secs(1_728_432_000);

const INTERVAL_SECS: u64 = 20;

/// Upper bound, in intervals, of the random number by which a new cursor exceeds the client's: one hour.
const MAX_JITTER_INTERVALS: u64 = 3600 / INTERVAL_SECS;

/// The greatest cursor that is accepted from a client. Greater cursors are ignored, because JavaScript numbers are exact only up to 2^53.
const MAX_CLIENT_CURSOR: u64 = 1 << 52;

impl CacheBustingCursor {
    /// Reads the value of the query parameter `cursor`. A value that is not a number, or is too great, is ignored.
    pub(super) fn from_parameter(value: Option<&str>) -> Self {
        let cursor = value.and_then(|text| decimal::parse_saturating(text.as_bytes()));
        Self {
            client_cursor: cursor.filter(|cursor| *cursor <= MAX_CLIENT_CURSOR),
        }
    }

    /// Returns the cursor for the next response, which is greater than the client's cursor.
    ///
    /// A later call may return a smaller number, so a caller that writes an event stream has to keep the greatest number.
    pub(super) fn next_value(self) -> u64 {
        self.next_value_at(interval_number(SystemTime::now()), random::bits())
    }

    fn next_value_at(self, interval: u64, random: u64) -> u64 {
        match self.client_cursor {
            Some(cursor) if cursor >= interval => cursor + 1 + random % MAX_JITTER_INTERVALS,
            _ => interval,
        }
    }
}

/// Returns the number of the interval that contains `time`.
fn interval_number(time: SystemTime) -> u64 {
    let elapsed = time.duration_since(SystemTime::UNIX_EPOCH + CURSOR_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_secs() / INTERVAL_SECS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_counted_from_cursor_epoch() {
        let at = |seconds| interval_number(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), 0);
        assert_eq!(at(CURSOR_EPOCH.as_secs() + 19), 0);
        assert_eq!(at(CURSOR_EPOCH.as_secs() + 20), 1);
        // 2025-10-09T00:00:00Z.
        assert_eq!(at(1_759_968_000), 365 * 24 * 180);
    }

    #[test]
    fn next_value_exceeds_client_cursor() {
        let next =
            |cursor, random| CacheBustingCursor::from_parameter(cursor).next_value_at(1000, random);
        assert_eq!(next(None, 7), 1000);
        assert_eq!(next(Some("999"), 7), 1000);
        assert_eq!(next(Some("1000"), 0), 1001);
        assert_eq!(
            next(Some("1000"), MAX_JITTER_INTERVALS - 1),
            1000 + MAX_JITTER_INTERVALS
        );
        assert_eq!(next(Some("5000"), MAX_JITTER_INTERVALS), 5001);
    }

    #[test]
    fn malformed_client_cursor_is_ignored() {
        let next = |cursor| CacheBustingCursor::from_parameter(Some(cursor)).next_value_at(1000, 0);
        let huge = "9".repeat(10 * 1024);
        for cursor in ["", "x", "-1", "+1", "1.5", "18446744073709551616", &huge] {
            assert_eq!(next(cursor), 1000, "{cursor}");
        }
        assert_eq!(next(&u64::MAX.to_string()), 1000);
    }
}
