use std::fmt;

use crate::event::{EventId, IdPrefix};

/// The number of base-32 digits that hold 128 bits.
const TOKEN_LEN: usize = 26;

/// The secret that the ids of one stream begin with: 128 random bits. A request that sends an id with this token may read the
/// stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StreamToken(IdPrefix<TOKEN_LEN>);

impl StreamToken {
    /// Draws a token from the operating system's generator.
    ///
    /// # Panics
    /// If the operating system has no random bits. A token that can be guessed would give others access to the stream. `HashMap`
    /// also panics if the operating system has no random bits.
    pub(super) fn random() -> Self {
        let mut bits = [0; 16];
        match getrandom::fill(&mut bits) {
            Ok(()) => Self(IdPrefix::from_bits(u128::from_ne_bytes(bits))),
            Err(error) => panic!("the operating system has no random bits: {error}"),
        }
    }

    /// Returns the id of the item at this position, which is the cursor that resumes after it.
    pub(super) fn item_id(&self, position: u64) -> EventId {
        self.0.id(position)
    }

    /// Splits an id into its token and position. Returns `None` if the id has a different form.
    pub(super) fn split(id: &EventId) -> Option<(Self, u64)> {
        IdPrefix::split(id).map(|(prefix, position)| (Self(prefix), position))
    }
}

/// Prints none of the token's bits, so that a log file gives no access to the stream.
impl fmt::Debug for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamToken")
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    fn id(text: &str) -> EventId {
        EventId::new(text).unwrap()
    }

    #[test]
    fn ids_split_and_sort_by_position() {
        let token = StreamToken::random();
        let positions = [0, 1, 31, 32, 1 << 40, (1 << 60) - 1];
        let ids = positions.map(|n| token.item_id(n));
        assert!(ids.is_sorted());
        for (id, n) in ids.iter().zip(positions) {
            assert_eq!(id.as_str().len(), 39);
            assert_eq!(StreamToken::split(id), Some((token, n)));
        }
    }

    #[test]
    fn ids_of_other_forms_have_no_token() {
        let good = StreamToken::random().item_id(7).to_string();
        for malformed in [
            "7",
            "~finished",
            &good[1..],
            &good[..38],
            &format!("{good}0"),
            &good.replace('-', "_"),
            &good.to_uppercase(),
            &format!("w{}", &good[1..]),
            &format!("{}w", &good[..38]),
        ] {
            // A token of decimal digits alone is the same in upper case, and so is the position 7.
            if malformed != good {
                assert_eq!(StreamToken::split(&id(malformed)), None, "{malformed}");
            }
        }
    }

    /// Each of the 128 bits is set in about half of 4096 tokens: within six standard deviations.
    #[test]
    fn every_token_bit_is_random() {
        const DRAWS: i32 = 4096;
        let mut set = [0_i32; 128];
        for _ in 0..DRAWS {
            let id = StreamToken::random().item_id(0);
            let digits = id.as_str()[..TOKEN_LEN].chars();
            let bits = digits.fold(0, |bits: u128, digit| {
                bits << 5 | u128::from(digit.to_digit(32).unwrap())
            });
            for (bit, count) in set.iter_mut().enumerate() {
                *count += (bits >> bit & 1) as i32;
            }
        }
        for (bit, count) in set.into_iter().enumerate() {
            assert!(
                (count - DRAWS / 2).abs() < 6 * 32,
                "bit {bit}: {count} of {DRAWS}"
            );
        }
    }
}
