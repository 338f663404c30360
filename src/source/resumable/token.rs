//! A kept stream's ids: `token-number`, both in base 32 with a fixed width, so that the ids of one stream sort as texts.

use std::{fmt, fs::File, io::Read, sync::LazyLock};

use crate::{
    event::EventId,
    random,
    source::channel::id::{WIDTH, digits, number},
};

/// 13 digits for each 64 bits.
const HALF: usize = 13;

/// What makes a stream's ids its own: 128 random bits. Who knows them may read the stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token([u8; 2 * HALF]);

impl Token {
    pub(super) fn random() -> Self {
        // Either alone will do; one that fails takes nothing from the other.
        let [high, low] = from_system();
        let halves = [random::bits() ^ high, random::bits() ^ low];
        let mut text = [0; 2 * HALF];
        for (half, place) in halves.into_iter().zip(text.chunks_exact_mut(HALF)) {
            place.copy_from_slice(&digits::<HALF>(half));
        }
        Self(text)
    }

    /// The id of the item of this number, and the cursor that resumes after it.
    pub(super) fn id(&self, number: u64) -> EventId {
        let mut text = String::with_capacity(2 * HALF + 1 + WIDTH);
        text.extend(self.0.map(char::from));
        text.push('-');
        text.extend(digits::<WIDTH>(number).map(char::from));
        EventId::known(text)
    }

    /// The token and the number of an id that has their form.
    pub(super) fn read(id: &EventId) -> Option<(Self, u64)> {
        let (token, rest) = id.as_str().as_bytes().split_first_chunk()?;
        number(token)?;
        let digits: &[u8; WIDTH] = rest.strip_prefix(b"-")?.try_into().ok()?;
        Some((Self(*token), number(digits)?))
    }
}

/// It prints nothing that would let the reader of a log file into the stream.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The system's own random numbers, where they are a file to read; it never waits once the system is up.
fn from_system() -> [u64; 2] {
    static FILE: LazyLock<Option<File>> = LazyLock::new(|| {
        let path = cfg!(unix).then_some("/dev/urandom")?;
        File::open(path).ok()
    });
    let mut bits = [[0; 8]; 2];
    if let Some(mut file) = FILE.as_ref() {
        // What could not be read stays zero.
        let _ = file.read_exact(bits.as_flattened_mut());
    }
    bits.map(u64::from_ne_bytes)
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn id(text: &str) -> EventId {
        EventId::new(text).unwrap()
    }

    #[test]
    fn an_id_reads_back_and_sorts_by_its_number() {
        let token = Token::random();
        let numbers = [0, 1, 31, 32, 1 << 40, (1 << 60) - 1];
        let ids = numbers.map(|n| token.id(n));
        assert!(ids.is_sorted());
        for (id, n) in ids.iter().zip(numbers) {
            assert_eq!(id.as_str().len(), 39);
            assert_eq!(Token::read(id), Some((token, n)));
        }
    }

    #[test]
    fn what_has_another_form_is_no_id_of_a_stream() {
        let good = Token::random().id(7).to_string();
        for odd in [
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
            // A token of digits only has no upper case; its number here has none either.
            if odd != good {
                assert_eq!(Token::read(&id(odd)), None, "{odd}");
            }
        }
    }

    #[test]
    fn the_system_has_random_numbers() {
        if cfg!(unix) {
            let drawn: HashSet<_> = (0..100).flat_map(|_| from_system()).collect();
            assert_eq!(drawn.len(), 200);
        }
    }

    /// Each of the 128 bits is set in about half of the tokens: 4096 draws, and six standard deviations.
    #[test]
    fn every_bit_of_a_token_is_drawn() {
        const DRAWS: i32 = 4096;
        let mut set = [0_i32; 128];
        for _ in 0..DRAWS {
            let token = Token::random();
            for (half, text) in token.0.chunks_exact(HALF).enumerate() {
                // The first digit has four bits.
                let bits = text.iter().fold(0_u64, |bits, digit| {
                    let value = b"0123456789abcdefghijklmnopqrstuv"
                        .iter()
                        .position(|d| d == digit);
                    bits << 5 | value.unwrap() as u64
                });
                for bit in 0..64 {
                    set[64 * half + bit] += (bits >> bit & 1) as i32;
                }
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
