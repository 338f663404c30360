use std::time::Duration;

/// Returns random bits. If the system has none, returns 0: only the spread of the delays is lost.
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
    const MIN_DELAY: Duration = Duration::from_millis(20);
    const FIRST_MAX_DELAY: Duration = Duration::from_millis(200);
    const LAST_MAX_DELAY: Duration = Duration::from_secs(5);

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
    }
}
