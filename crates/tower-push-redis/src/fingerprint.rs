use std::fmt;

use sha1_smol::Sha1;

/// 30 bits of a hash over the fields of an entry, as 6 characters.
///
/// After a failover that lost writes, the new master can give an id to another entry. The two entries have different fingerprints, so a client
/// that has seen the lost entry does not resume after the other one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u8; Fingerprint::LEN]);

/// The alphabet of base 32 (RFC 4648) in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl Fingerprint {
    /// The number of characters.
    pub(crate) const LEN: usize = 6;

    /// Computes the fingerprint of fields and values, in their order.
    pub(crate) fn of_fields(fields: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let mut hash = Sha1::new();
        for bytes in fields.iter().flat_map(|(name, value)| [name, value]) {
            // With the lengths, no two lists of fields have the same input.
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        let [first, second, third, fourth, ..] = hash.digest().bytes();
        Self::from_bits(u32::from_be_bytes([first, second, third, fourth]))
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

    fn of(fields: &[(&str, &str)]) -> Fingerprint {
        let owned =
            |(name, value): &(&str, &str)| (name.as_bytes().into(), value.as_bytes().into());
        Fingerprint::of_fields(&fields.iter().map(owned).collect::<Vec<_>>())
    }

    /// Servers of different versions must compute the same fingerprint, so these values never change.
    #[test]
    fn values_are_stable() {
        assert_eq!(of(&[]).as_str(), "3i42h3");
        assert_eq!(of(&[("data", "21.5")]).as_str(), "6aicyj");
    }

    #[test]
    fn boundaries_of_fields_count() {
        assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
        assert_ne!(of(&[("a", "b"), ("c", "d")]), of(&[("a", "b")]));
        assert_ne!(of(&[("a", "b"), ("c", "d")]), of(&[("c", "d"), ("a", "b")]));
    }

    #[test]
    fn text_is_parsed() {
        let fingerprint = of(&[("data", "x")]);
        assert_eq!(Fingerprint::parse(fingerprint.as_str()), Some(fingerprint));
        for invalid in ["", "abcde", "abcdefg", "ABCDEF", "abcde1", "abcdé"] {
            assert_eq!(Fingerprint::parse(invalid), None, "{invalid}");
        }
    }
}
