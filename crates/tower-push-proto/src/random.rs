//! Random numbers for jitter, multipart boundaries, ping payloads and event ids, without a dependency.
//!
//! A number is the SipHash of a counter, under a key that the operating system draws once per process. An observer of some numbers cannot
//! predict the next one. The numbers are not meant for cryptographic keys.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Returns 64 random bits.
pub fn bits() -> u64 {
    KEY.hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Returns a random number between -1 and 1.
pub fn signed_fraction() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

/// Returns a random number that is at least 0 and less than 1.
pub fn fraction() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Returns a random time between `time * (1 - jitter)` and `time * (1 + jitter)`.
pub fn jittered(time: Duration, jitter: f64) -> Duration {
    let drawn = time.as_secs_f64() * (1.0 + jitter * signed_fraction());
    Duration::try_from_secs_f64(drawn).unwrap_or(time)
}

/// Returns a random time that is at least `min` and less than `max`. Returns `min` if `max` is not greater.
pub fn duration_between(min: Duration, max: Duration) -> Duration {
    min + max.saturating_sub(min).mul_f64(fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_do_not_repeat() {
        let drawn: std::collections::HashSet<u64> = (0..10_000).map(|_| bits()).collect();
        assert_eq!(drawn.len(), 10_000);
    }

    #[test]
    fn fractions_fill_their_range() {
        let drawn: Vec<f64> = (0..10_000).map(|_| signed_fraction()).collect();
        assert!(drawn.iter().all(|u| (-1.0..=1.0).contains(u)));
        assert!(drawn.iter().any(|u| *u < -0.9) && drawn.iter().any(|u| *u > 0.9));
    }
}
