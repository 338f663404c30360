//! Fingerprints, which tell apart two events to which a broker has given the same number.

use std::fmt;

use crate::random;

/// A fingerprint of 30 bits, as 6 characters. The bits come from a hash, or are random.
///
/// A broker can give the number of an event to another event: after a failover that lost writes, or when a stream is created anew. The two events
/// have different fingerprints, so a client that has seen the lost event does not resume after the other one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Fingerprint::LEN]);

/// The alphabet of base 32 (RFC 4648) in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl Fingerprint {
    /// The number of characters.
    pub const LEN: usize = 6;

    /// Makes a fingerprint of a SHA-1 hash.
    pub fn from_hash(hash: [u8; 20]) -> Self {
        let [first, second, third, fourth, ..] = hash;
        Self::from_bits(u32::from_be_bytes([first, second, third, fourth]))
    }

    /// Makes a random fingerprint.
    pub fn random() -> Self {
        Self::from_bits(random::bits() as u32)
    }

    /// Makes a fingerprint of the upper 30 bits.
    pub fn from_bits(bits: u32) -> Self {
        let mut shift = u32::BITS;
        Self([(); Self::LEN].map(|()| {
            shift -= 5;
            ALPHABET[(bits >> shift) as usize & 31]
        }))
    }

    /// Reads the text of a fingerprint.
    pub fn parse(text: &str) -> Option<Self> {
        let characters: [u8; Self::LEN] = text.as_bytes().try_into().ok()?;
        let is_valid = characters.iter().all(|byte| ALPHABET.contains(byte));
        is_valid.then_some(Self(characters))
    }

    /// Returns the text of the fingerprint.
    pub fn as_str(&self) -> &str {
        // All characters are of the alphabet.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_parsed() {
        let fingerprint = Fingerprint::from_hash([0x5a; 20]);
        assert_eq!(Fingerprint::parse(fingerprint.as_str()), Some(fingerprint));
        for invalid in ["", "abcde", "abcdefg", "ABCDEF", "abcde1", "abcdé"] {
            assert_eq!(Fingerprint::parse(invalid), None, "{invalid}");
        }
    }
}
