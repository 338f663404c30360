use std::time::{Duration, SystemTime};

use crate::random;

/// The protocol's cursor, by which a CDN tells one answer from the next: the number of 20 s since
/// 2024-10-09T00:00:00Z, and always more than the client had.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamCursor {
    /// The greatest that the client has.
    last: Option<u64>,
}

const EPOCH: Duration = Duration::from_secs(1_728_432_000);
const INTERVAL: u64 = 20;

/// By how many intervals to go ahead of a client at most: an hour.
const JITTER: u64 = 3600 / INTERVAL;

/// What JavaScript can count without losing any, for thousands of polls to come.
const GREATEST: u64 = 1 << 52;

impl StreamCursor {
    /// What the client says that it has; what is no such number does not count.
    pub(super) fn of(asked: Option<&str>) -> Self {
        let is_number = |text: &&str| text.bytes().all(|b| b.is_ascii_digit());
        let last = asked.filter(is_number).and_then(|text| text.parse().ok());
        Self {
            last: last.filter(|cursor| *cursor <= GREATEST),
        }
    }

    /// The next one. It grows from answer to answer; within one stream it is enough that it does not shrink.
    pub(super) fn next(self) -> u64 {
        self.after(interval(SystemTime::now()), random::bits())
    }

    fn after(self, now: u64, random: u64) -> u64 {
        match self.last {
            Some(last) if last >= now => last + 1 + random % JITTER,
            _ => now,
        }
    }
}

fn interval(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH + EPOCH);
    since.map_or(0, |since| since.as_secs() / INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_intervals() {
        let at = |seconds| interval(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), 0);
        assert_eq!(at(EPOCH.as_secs() + 19), 0);
        assert_eq!(at(EPOCH.as_secs() + 20), 1);
        // 2025-10-09T00:00:00Z.
        assert_eq!(at(1_759_968_000), 365 * 24 * 180);
    }

    #[test]
    fn it_is_more_than_the_client_had() {
        let after = |asked, random| StreamCursor::of(asked).after(1000, random);
        assert_eq!(after(None, 7), 1000);
        assert_eq!(after(Some("999"), 7), 1000);
        assert_eq!(after(Some("1000"), 0), 1001);
        assert_eq!(after(Some("1000"), JITTER - 1), 1000 + JITTER);
        assert_eq!(after(Some("5000"), JITTER), 5001);
    }

    #[test]
    fn what_is_no_cursor_does_not_count() {
        let huge = "9".repeat(10 * 1024);
        for asked in ["", "x", "-1", "+1", "1.5", "18446744073709551616", &huge] {
            assert_eq!(
                StreamCursor::of(Some(asked)).after(1000, 0),
                1000,
                "{asked}"
            );
        }
        let max = u64::MAX.to_string();
        assert_eq!(StreamCursor::of(Some(&max)).after(1000, 0), 1000);
    }
}
