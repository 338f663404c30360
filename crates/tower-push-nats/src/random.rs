use std::time::Duration;

/// Returns random bits. If the system has none, returns 0.
pub(crate) fn random_u64() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// Returns a random duration between `min` and `max`.
pub(crate) fn random_duration(min: Duration, max: Duration) -> Duration {
    let fraction = random_u64() as f64 / u64::MAX as f64;
    min + max.saturating_sub(min).mul_f64(fraction)
}

/// The delays between attempts to connect: random between [`MIN_DELAY`](Self::MIN_DELAY) and an upper bound that doubles with each attempt
/// ("full jitter"), so that not all servers connect to a broker at the same time.
#[derive(Debug)]
pub(crate) struct Backoff {
    max_delay: Duration,
}

impl Backoff {
    pub(crate) const MIN_DELAY: Duration = Duration::from_millis(20);
    const FIRST_MAX_DELAY: Duration = Duration::from_millis(200);
    pub(crate) const LAST_MAX_DELAY: Duration = Duration::from_secs(5);

    pub(crate) fn new() -> Self {
        Self {
            max_delay: Self::FIRST_MAX_DELAY,
        }
    }

    /// Returns the delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = random_duration(Self::MIN_DELAY, self.max_delay);
        self.max_delay = (self.max_delay * 2).min(Self::LAST_MAX_DELAY);
        delay
    }

    /// Returns the delay before the attempt with this number. The first attempt has the number 1 and no delay.
    pub(crate) fn delay_of_attempt(attempt: usize) -> Duration {
        let Some(doublings) = attempt.checked_sub(2) else {
            return Duration::ZERO;
        };
        let factor = 1 << doublings.min(16);
        let max_delay = (Self::FIRST_MAX_DELAY * factor).min(Self::LAST_MAX_DELAY);
        random_duration(Self::MIN_DELAY, max_delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_bounded() {
        let mut backoff = Backoff::new();
        for attempt in 0..100 {
            let delay = backoff.next_delay();
            assert!((Backoff::MIN_DELAY..=Backoff::LAST_MAX_DELAY).contains(&delay));
            assert!(attempt > 0 || delay <= Backoff::FIRST_MAX_DELAY);
        }
        assert_eq!(Backoff::delay_of_attempt(0), Duration::ZERO);
        assert_eq!(Backoff::delay_of_attempt(1), Duration::ZERO);
        for attempt in [2, 3, 10, 100, usize::MAX] {
            let delay = Backoff::delay_of_attempt(attempt);
            assert!((Backoff::MIN_DELAY..=Backoff::LAST_MAX_DELAY).contains(&delay));
        }
    }
}
