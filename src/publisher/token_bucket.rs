use std::time::Duration;

/// A limit on the rate of publications: a bucket of tokens that fills at a constant rate, up to the tokens of one second.
///
/// The bucket has no clock. Times are arguments, measured from the creation of the bucket.
#[derive(Debug)]
pub(super) struct TokenBucket {
    per_second: u32,
    /// The time at which the bucket is full again. The bucket is full if this time has passed.
    full_at: Duration,
}

/// The error of [`TokenBucket::take`]: when there will be enough tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooFewTokens {
    /// There are enough tokens after this time.
    RetryAfter(Duration),
    /// Never, because the bucket is too small.
    Never,
}

impl TokenBucket {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            full_at: Duration::ZERO,
        }
    }

    /// Takes `count` tokens, or none if there are too few.
    pub(super) fn take(&mut self, count: usize, now: Duration) -> Result<(), TooFewTokens> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count > self.per_second {
            return Err(TooFewTokens::Never);
        }
        if count == 0 {
            return Ok(());
        }
        // The bucket fills within one second, so `count` tokens return after `count / per_second` seconds.
        let full_at = self.full_at.max(now) + Duration::from_secs(1) * count / self.per_second;
        let wait = full_at.saturating_sub(now + Duration::from_secs(1));
        if !wait.is_zero() {
            return Err(TooFewTokens::RetryAfter(wait));
        }
        self.full_at = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bucket_refills_at_its_rate() {
        let mut bucket = TokenBucket::new(10);
        assert_eq!(bucket.take(10, Duration::ZERO), Ok(()));
        let refused = bucket.take(1, Duration::ZERO);
        assert_eq!(refused, Err(TooFewTokens::RetryAfter(SECOND / 10)));
        assert_eq!(bucket.take(1, SECOND / 10), Ok(()));
        assert!(bucket.take(1, SECOND / 10).is_err());
        assert_eq!(bucket.take(10, 5 * SECOND), Ok(()));
        assert!(bucket.take(1, 5 * SECOND).is_err());
    }

    #[test]
    fn batch_larger_than_bucket_is_refused() {
        let mut bucket = TokenBucket::new(10);
        assert_eq!(bucket.take(11, SECOND), Err(TooFewTokens::Never));
        assert_eq!(bucket.take(0, SECOND), Ok(()));
        assert_eq!(
            TokenBucket::new(0).take(1, SECOND),
            Err(TooFewTokens::Never)
        );
        assert_eq!(bucket.take(usize::MAX, SECOND), Err(TooFewTokens::Never));
    }
}
