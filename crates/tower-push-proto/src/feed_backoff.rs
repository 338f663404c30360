//! Delays of the servers that read a feed from a broker.

use std::time::Duration;

use crate::random;

/// The delays between the attempts of a feed's server to connect to its broker: random between 20 ms and an upper bound of 200 ms, which doubles
/// with each attempt up to 5 s. So not all servers connect to a broker at the same time.
#[derive(Debug)]
pub struct FeedBackoff {
    max_delay: Duration,
}

impl Default for FeedBackoff {
    fn default() -> Self {
        Self {
            max_delay: Self::FIRST_MAX_DELAY,
        }
    }
}

impl FeedBackoff {
    const MIN_DELAY: Duration = Duration::from_millis(20);
    const FIRST_MAX_DELAY: Duration = Duration::from_millis(200);
    const LAST_MAX_DELAY: Duration = Duration::from_secs(5);

    /// Returns the delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let delay = random::duration_between(Self::MIN_DELAY, self.max_delay);
        self.max_delay = (self.max_delay * 2).min(Self::LAST_MAX_DELAY);
        delay
    }

    /// Returns the delay before the attempt with this number. The first attempt has the number 1 and no delay.
    pub fn delay_of_attempt(attempt: usize) -> Duration {
        let Some(doublings) = attempt.checked_sub(2) else {
            return Duration::ZERO;
        };
        let factor = 1 << doublings.min(16);
        let max_delay = (Self::FIRST_MAX_DELAY * factor).min(Self::LAST_MAX_DELAY);
        random::duration_between(Self::MIN_DELAY, max_delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_bounded() {
        let range = FeedBackoff::MIN_DELAY..=FeedBackoff::LAST_MAX_DELAY;
        let mut backoff = FeedBackoff::default();
        for attempt in 0..100 {
            let delay = backoff.next_delay();
            assert!(range.contains(&delay));
            assert!(attempt > 0 || delay <= FeedBackoff::FIRST_MAX_DELAY);
        }
        assert_eq!(FeedBackoff::delay_of_attempt(0), Duration::ZERO);
        assert_eq!(FeedBackoff::delay_of_attempt(1), Duration::ZERO);
        for attempt in [2, 3, 10, 100, usize::MAX] {
            assert!(range.contains(&FeedBackoff::delay_of_attempt(attempt)));
        }
    }
}
