use super::{EventId, checked_text::MAX_TEXT_LEN};

/// The digits of base32hex ([RFC 4648 §7](https://www.rfc-editor.org/rfc/rfc4648#section-7)), in lower case. The digits are in the order
/// of ASCII, so that encoded numbers sort like numbers.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// The number of base-32 digits of an id's number, which has 60 bits.
const NUMBER_LEN: usize = 12;

/// The part that all ids of one log share: `N` digits in base 32.
///
/// A log that numbers its events puts a prefix before each number, and draws a new random prefix at each start. An id of another log, or of
/// the same log before a restart, has a different prefix. The log can therefore recognize its own ids.
///
/// An id is `prefix-number`. The number has a fixed width, so that ids with the same prefix sort as texts in the order of their
/// numbers.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::event::IdPrefix;
///
/// let prefix = IdPrefix::<4>::from_bits(0x12345);
/// let id = prefix.id(42);
/// assert_eq!(id.as_str(), "28q5-00000000001a");
/// assert_eq!(IdPrefix::split(&id), Some((prefix, 42)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdPrefix<const N: usize>([u8; N]);

impl<const N: usize> IdPrefix<N> {
    /// The length of an id in bytes: the prefix, a hyphen and the number.
    const ID_LEN: usize = {
        assert!(
            N + 1 + NUMBER_LEN <= MAX_TEXT_LEN,
            "longer than an id may be"
        );
        N + 1 + NUMBER_LEN
    };

    /// Makes the prefix whose digits are the low `5 * N` bits of `bits`.
    pub fn from_bits(bits: u128) -> Self {
        Self(std::array::from_fn(|index| {
            base32_digit(bits.checked_shr(5 * (N - 1 - index) as u32).unwrap_or(0) as u64)
        }))
    }

    /// Returns the id with this prefix and number. Only the low 60 bits of `number` are used.
    pub fn id(&self, number: u64) -> EventId {
        let mut text = [0; MAX_TEXT_LEN];
        let text = &mut text[..Self::ID_LEN];
        text[..N].copy_from_slice(&self.0);
        text[N] = b'-';
        for (index, place) in text[N + 1..].iter_mut().enumerate() {
            *place = base32_digit(number >> (5 * (NUMBER_LEN - 1 - index)));
        }
        EventId::from_ascii(text)
    }

    /// Splits an id into its prefix and number. Returns `None` if the id has a different form.
    pub fn split(id: &EventId) -> Option<(Self, u64)> {
        let (prefix, rest) = id.as_str().as_bytes().split_first_chunk()?;
        let digits: &[u8; NUMBER_LEN] = rest.strip_prefix(b"-")?.try_into().ok()?;
        let is_prefix = prefix.iter().all(|digit| DIGITS.contains(digit));
        Some((Self(*prefix), decode_base32(digits)?)).filter(|_| is_prefix)
    }
}

fn base32_digit(bits: u64) -> u8 {
    DIGITS[(bits & 31) as usize]
}

/// Decodes a number in base 32. Returns `None` if a byte is not a digit.
fn decode_base32(digits: &[u8; NUMBER_LEN]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let value = DIGITS.iter().position(|d| d == digit)?;
        Some(number << 5 | value as u64)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digits_are_base32hex() {
        let text = |id: EventId| id.to_string();
        assert_eq!(text(IdPrefix::<2>::from_bits(0).id(5)), "00-000000000005");
        let bits = 32 * 10 + 31;
        assert_eq!(
            text(IdPrefix::<3>::from_bits(bits).id(32)),
            "0av-000000000010"
        );
        assert_eq!(
            text(IdPrefix::<1>::from_bits(32 + 5).id(0)),
            "5-000000000000"
        );
        assert_eq!(
            IdPrefix::<30>::from_bits(u128::MAX).0,
            *b"00007vvvvvvvvvvvvvvvvvvvvvvvvv"
        );
        for malformed in [
            "0aw-000000000010",
            "0AV-000000000010",
            "0av_000000000010",
            "0av-00000000001w",
        ] {
            let id = EventId::new(malformed).unwrap();
            assert_eq!(IdPrefix::<3>::split(&id), None, "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn ids_sort_by_number(numbers in proptest::collection::vec(0_u64..1 << 60, 2..20)) {
            let prefix = IdPrefix::<12>::from_bits(7);
            let mut by_number = numbers.clone();
            by_number.sort_unstable();
            let mut by_text: Vec<_> = numbers.iter().map(|n| prefix.id(*n)).collect();
            by_text.sort();
            let split: Vec<_> = by_text.iter().map(|id| IdPrefix::split(id).unwrap()).collect();
            prop_assert!(split.iter().all(|(read, _)| *read == prefix));
            let back: Vec<_> = split.iter().map(|(_, number)| *number).collect();
            prop_assert_eq!(back, by_number);
        }

        #[test]
        fn ids_are_valid(bits: u128, number: u64) {
            let id = IdPrefix::<26>::from_bits(bits).id(number);
            prop_assert_eq!(EventId::new(id.as_str()).unwrap(), id);
        }
    }
}
