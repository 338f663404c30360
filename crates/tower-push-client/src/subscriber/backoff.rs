use std::time::Duration;

use tower_push_proto::random;

/// The delays between the attempts of a client to connect: full jitter, with the server's hint as a floor.
///
/// Without a hint, the delay is drawn between 0 and an upper bound, which doubles with each failed attempt up to
/// [`max_delay`](Self::max_delay). With a hint, the delay is drawn between the hint and its double, or a later bound if the attempts have
/// failed often. So clients that get the same hint do not all return at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    base_delay: Duration,
    max_delay: Duration,
    /// The number of attempts that failed one after another.
    attempts: u32,
}

/// The longest hint of a server that a client follows, 1 h: a longer one is reduced to this time.
pub(crate) const MAX_HINT: Duration = Duration::from_secs(60 * 60);

/// The number of doublings after which the bound no longer grows.
const MAX_DOUBLINGS: u32 = 16;

impl Backoff {
    pub(crate) fn new(base_delay: Duration, max_delay: Duration) -> Self {
        Self {
            base_delay,
            max_delay,
            attempts: 0,
        }
    }

    /// Begins anew, because a connection has worked.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Draws the delay before the next attempt.
    pub(crate) fn next_delay(&mut self, hint: Option<Duration>) -> Duration {
        let doublings = self.attempts.min(MAX_DOUBLINGS);
        self.attempts = self.attempts.saturating_add(1);
        let bound = self
            .base_delay
            .saturating_mul(1 << doublings)
            .min(self.max_delay);
        let floor = hint.unwrap_or_default().min(MAX_HINT);
        floor + floor.max(bound).mul_f64(random::fraction())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bound_doubles_up_to_the_maximum() {
        let mut backoff = Backoff::new(SECOND, 10 * SECOND);
        for bound in [1, 2, 4, 8, 10, 10] {
            assert!(backoff.next_delay(None) <= bound * SECOND);
        }
        backoff.attempts = u32::MAX;
        assert!(backoff.next_delay(None) <= 10 * SECOND);
        backoff.reset();
        assert!(backoff.next_delay(None) <= SECOND);
    }

    #[test]
    fn hint_is_a_floor_and_spreads_clients() {
        let mut tenths = [0; 10];
        for _ in 0..1000 {
            let delay = Backoff::new(SECOND, 30 * SECOND).next_delay(Some(10 * SECOND));
            assert!((10 * SECOND..=20 * SECOND).contains(&delay));
            tenths[(delay.as_millis() as usize - 10_000) / 1001] += 1;
        }
        assert!(tenths.iter().all(|clients| *clients > 50), "{tenths:?}");
    }

    #[test]
    fn hint_is_bounded() {
        let mut backoff = Backoff::new(SECOND, SECOND);
        assert!(backoff.next_delay(Some(Duration::MAX)) <= 2 * MAX_HINT);
    }
}
