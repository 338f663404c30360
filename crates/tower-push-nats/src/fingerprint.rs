use std::fmt;

use sha1_smol::Sha1;

/// 30 bits, as 6 characters: of a hash, or random ones.
///
/// Servers give the same sequence number to another message if a stream is created anew, or if a server loses messages that it has not
/// written to its disk. The fingerprints of the stream and of the message tell such messages apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u8; Fingerprint::LEN]);

/// The alphabet of base 32 (RFC 4648) in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl Fingerprint {
    /// The number of characters.
    pub(crate) const LEN: usize = 6;

    /// Computes the fingerprint of bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let [first, second, third, fourth, ..] = Sha1::from(bytes).digest().bytes();
        Self::from_bits(u32::from_be_bytes([first, second, third, fourth]))
    }

    pub(crate) fn random() -> Self {
        Self::from_bits(crate::random::random_u64() as u32)
    }

    /// Makes a fingerprint of the upper 30 bits.
    pub(crate) fn from_bits(bits: u32) -> Self {
        let mut shift = u32::BITS;
        Self([(); Self::LEN].map(|()| {
            shift -= 5;
            ALPHABET[(bits >> shift) as usize & 31]
        }))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let characters: [u8; Self::LEN] = text.as_bytes().try_into().ok()?;
        let is_valid = characters.iter().all(|byte| ALPHABET.contains(byte));
        is_valid.then_some(Self(characters))
    }

    pub(crate) fn as_str(&self) -> &str {
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

    /// Servers of different versions must compute the same fingerprint, so this value never changes.
    #[test]
    fn value_is_stable() {
        assert_eq!(Fingerprint::of_bytes(b"21.5").as_str(), "2f5dwy");
    }

    #[test]
    fn text_is_parsed() {
        let fingerprint = Fingerprint::of_bytes(b"x");
        assert_eq!(Fingerprint::parse(fingerprint.as_str()), Some(fingerprint));
        for invalid in ["", "abcde", "abcdefg", "ABCDEF", "abcde1", "abcdé"] {
            assert_eq!(Fingerprint::parse(invalid), None, "{invalid}");
        }
    }
}
