use sha1_smol::Sha1;
use tower_push_proto::fingerprint::Fingerprint;

/// Computes the fingerprint of an entry's fields and values, in their order.
pub(crate) fn fingerprint_of_fields(fields: &[(Vec<u8>, Vec<u8>)]) -> Fingerprint {
    let mut hash = Sha1::new();
    for bytes in fields.iter().flat_map(|(name, value)| [name, value]) {
        // The lengths are part of the hash's input, so that no two lists of fields have the same input.
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Fingerprint::from_hash(hash.digest().bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, &str)]) -> Fingerprint {
        let owned =
            |(name, value): &(&str, &str)| (name.as_bytes().into(), value.as_bytes().into());
        fingerprint_of_fields(&fields.iter().map(owned).collect::<Vec<_>>())
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
}
