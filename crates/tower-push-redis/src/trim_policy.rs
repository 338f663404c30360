use std::time::Duration;

/// The rules by which a publisher removes entries from the stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TrimPolicy {
    pub(crate) max_len: Option<u64>,
    pub(crate) max_age: Option<Duration>,
}

/// How one `XADD` trims: to a number of entries (`MAXLEN`), or to a least id (`MINID`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrimStrategy {
    MaxLen(u64),
    MinMs(u64),
}

/// If both limits are set, one of this many publications trims by age, and the other publications trim by the number of entries, because one
/// `XADD` has either `MAXLEN` or `MINID`.
const AGE_TRIM_INTERVAL: u64 = 16;

impl TrimPolicy {
    /// Returns how the publication with this number trims. `known_ms` is a time that the server's clock has reached, if one is known.
    pub(crate) fn trim_strategy(&self, number: u64, known_ms: Option<u64>) -> Option<TrimStrategy> {
        let is_age_due = self.max_len.is_none() || number.is_multiple_of(AGE_TRIM_INTERVAL);
        let by_age = || {
            let age_ms = u64::try_from(self.max_age?.as_millis()).ok()?;
            Some(TrimStrategy::MinMs(known_ms?.saturating_sub(age_ms)))
        };
        let by_age = is_age_due.then(by_age).flatten();
        by_age.or_else(|| self.max_len.map(TrimStrategy::MaxLen))
    }
}

impl TrimStrategy {
    /// Returns whether an entry with this time in its id is among those that are removed for their age.
    pub(crate) fn removes(self, entry_ms: u64) -> bool {
        matches!(self, Self::MinMs(min_ms) if entry_ms < min_ms)
    }

    /// Returns the arguments of `XADD`.
    pub(crate) fn arguments(self) -> [String; 3] {
        // With `~`, the server removes whole blocks of entries only, which is much faster.
        match self {
            Self::MaxLen(length) => ["MAXLEN".into(), "~".into(), length.to_string()],
            Self::MinMs(ms) => ["MINID".into(), "~".into(), ms.to_string()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_take_turns() {
        let age = Some(Duration::from_secs(1));
        let policy = |max_len, max_age| TrimPolicy { max_len, max_age };
        assert_eq!(policy(None, None).trim_strategy(0, Some(5000)), None);
        assert_eq!(
            policy(Some(7), None).trim_strategy(3, None),
            Some(TrimStrategy::MaxLen(7))
        );
        assert_eq!(
            policy(None, age).trim_strategy(3, Some(5000)),
            Some(TrimStrategy::MinMs(4000))
        );
        assert_eq!(
            policy(None, age).trim_strategy(3, Some(5)),
            Some(TrimStrategy::MinMs(0))
        );
        assert_eq!(
            policy(None, age).trim_strategy(3, None),
            None,
            "no time is known"
        );
        let both = policy(Some(7), age);
        let by_age =
            |number| both.trim_strategy(number, Some(5000)) == Some(TrimStrategy::MinMs(4000));
        let expected = (0..100).filter(|number| number % 16 == 0).count();
        assert_eq!((0..100).filter(|number| by_age(*number)).count(), expected);
        assert_eq!(both.trim_strategy(16, None), Some(TrimStrategy::MaxLen(7)));
    }

    #[test]
    fn age_removes_older_entries() {
        assert!(TrimStrategy::MinMs(4000).removes(3999));
        assert!(!TrimStrategy::MinMs(4000).removes(4000));
        assert!(!TrimStrategy::MaxLen(1).removes(0));
    }
}
