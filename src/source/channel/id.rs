//! A channel's ids: `epoch-number`, both in base 32 with a fixed width, so that ids of one epoch sort as texts.

use crate::{event::EventId, random};

/// RFC 4648 §7: in the order of ASCII.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// 60 bits.
pub(in crate::source) const WIDTH: usize = 12;

/// The identity of one channel's lifetime: ids of another never match by accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch([u8; WIDTH]);

impl Epoch {
    pub(super) fn random() -> Self {
        Self(digits(random::bits()))
    }

    /// The id of the event of this number, and the cursor that resumes after it.
    pub(super) fn id(self, number: u64) -> EventId {
        let mut text = String::with_capacity(2 * WIDTH + 1);
        text.extend(self.0.map(char::from));
        text.push('-');
        text.extend(digits::<WIDTH>(number).map(char::from));
        EventId::known(text)
    }

    /// The number of an id of this epoch.
    pub(super) fn number(self, id: &EventId) -> Option<u64> {
        let rest = id.as_str().as_bytes().strip_prefix(&self.0)?;
        let digits: &[u8; WIDTH] = rest.strip_prefix(b"-")?.try_into().ok()?;
        number(digits)
    }
}

/// The last digits of a number.
pub(in crate::source) fn digits<const N: usize>(number: u64) -> [u8; N] {
    std::array::from_fn(|place| DIGITS[(number >> (5 * (N - 1 - place)) & 31) as usize])
}

/// The number of these digits, of which the last 64 bits count.
pub(in crate::source) fn number(digits: &[u8]) -> Option<u64> {
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
    fn ids_are_of_one_epoch_only() {
        let (a, b) = (Epoch::random(), Epoch::random());
        assert_ne!(a, b);
        assert_eq!(a.number(&a.id(7)), Some(7));
        assert_eq!(b.number(&a.id(7)), None);
        for odd in ["7", "-7", "~finished"] {
            assert_eq!(a.number(&EventId::new(odd).unwrap()), None);
        }
        let id = a.id(7).to_string();
        for odd in [
            format!("{id}0"),
            id.to_uppercase(),
            id.replace('-', "_"),
            id[1..].to_owned(),
            format!("{}w", &id[..24]),
        ] {
            assert_eq!(a.number(&EventId::new(odd).unwrap()), None);
        }
    }

    proptest! {
        #[test]
        fn they_sort_as_texts(numbers in proptest::collection::vec(0_u64..1 << 60, 2..20)) {
            let epoch = Epoch::random();
            let mut by_number = numbers.clone();
            by_number.sort_unstable();
            let mut by_text: Vec<_> = numbers.iter().map(|n| epoch.id(*n)).collect();
            by_text.sort();
            let back: Vec<_> = by_text.iter().map(|id| epoch.number(id).unwrap()).collect();
            prop_assert_eq!(back, by_number);
        }
    }
}
