//! Ids that consist of a prefix and a number.

use crate::event::EventId;

/// RFC 4648 §7 (base32hex) in lower case: the digits are in the order of ASCII.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Digits of the number in an id: 60 bits.
const NUMBER_LEN: usize = 12;

/// The part that the ids of one log have in common: `N` digits in base 32.
///
/// An id is `prefix-number`. The number has a fixed width, so that ids with the same prefix sort as texts in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct IdPrefix<const N: usize>([u8; N]);

impl<const N: usize> IdPrefix<N> {
    pub(super) fn new(digits: [u8; N]) -> Self {
        debug_assert!(decode(&digits).is_some());
        Self(digits)
    }

    /// Returns the id with this prefix and number.
    pub(super) fn id(&self, number: u64) -> EventId {
        let mut text = String::with_capacity(N + 1 + NUMBER_LEN);
        text.extend(self.0.map(char::from));
        text.push('-');
        text.extend(encode::<NUMBER_LEN>(number).map(char::from));
        EventId::known(text)
    }

    /// Splits an id into its prefix and number. Returns `None` if it has another form.
    pub(super) fn split(id: &EventId) -> Option<(Self, u64)> {
        let (prefix, rest) = id.as_str().as_bytes().split_first_chunk()?;
        decode(prefix)?;
        let digits: &[u8; NUMBER_LEN] = rest.strip_prefix(b"-")?.try_into().ok()?;
        Some((Self(*prefix), decode(digits)?))
    }
}

/// Returns the last `N` digits of a number in base 32.
pub(super) fn encode<const N: usize>(number: u64) -> [u8; N] {
    std::array::from_fn(|index| DIGITS[(number >> (5 * (N - 1 - index)) & 31) as usize])
}

/// Returns the number that the digits are in base 32, modulo 2⁶⁴. Returns `None` if one of them is no digit.
pub(super) fn decode(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let value = DIGITS.iter().position(|d| d == digit)?;
        Some(number << 5 | value as u64)
    })
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digits_are_base32hex() {
        assert_eq!(encode::<2>(0), *b"00");
        assert_eq!(encode::<3>(32 * 10 + 31), *b"0av");
        assert_eq!(encode::<1>(32 + 5), *b"5");
        assert_eq!(decode(b"0av"), Some(32 * 10 + 31));
        assert_eq!(decode(b"0aw"), None);
        assert_eq!(decode(b"0AV"), None);
    }

    proptest! {
        #[test]
        fn ids_sort_by_number(numbers in proptest::collection::vec(0_u64..1 << 60, 2..20)) {
            let prefix = IdPrefix::new(encode::<12>(7));
            let mut by_number = numbers.clone();
            by_number.sort_unstable();
            let mut by_text: Vec<_> = numbers.iter().map(|n| prefix.id(*n)).collect();
            by_text.sort();
            let split: Vec<_> = by_text.iter().map(|id| IdPrefix::split(id).unwrap()).collect();
            prop_assert!(split.iter().all(|(read, _)| *read == prefix));
            let back: Vec<_> = split.iter().map(|(_, number)| *number).collect();
            prop_assert_eq!(back, by_number);
        }
    }
}
