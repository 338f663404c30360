//! Random numbers without a dependency: SipHash of a counter, under a key that the operating system drew once per process.
//!
//! Good for jitter, and for boundaries that nobody who has seen others can foretell; not for keys.

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

/// 64 random bits.
pub fn bits() -> u64 {
    KEY.hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A number from -1 to 1.
pub fn signed_fraction() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

/// A number from 0 to 1, the latter excluded.
pub fn fraction() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A time from within this part of itself, more or less.
pub fn jittered(time: Duration, part: f64) -> Duration {
    let drawn = time.as_secs_f64() * (1.0 + part * signed_fraction());
    Duration::try_from_secs_f64(drawn).unwrap_or(time)
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
    fn units_fill_their_range() {
        let drawn: Vec<f64> = (0..10_000).map(|_| signed_fraction()).collect();
        assert!(drawn.iter().all(|u| (-1.0..=1.0).contains(u)));
        assert!(drawn.iter().any(|u| *u < -0.9) && drawn.iter().any(|u| *u > 0.9));
    }
}
