use sha1_smol::Sha1;
use tower_push_proto::fingerprint::Fingerprint;

/// Computes the fingerprint of bytes.
pub(crate) fn fingerprint_of_bytes(bytes: &[u8]) -> Fingerprint {
    Fingerprint::from_hash(Sha1::from(bytes).digest().bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers of different versions must compute the same fingerprint, so this value never changes.
    #[test]
    fn value_is_stable() {
        assert_eq!(fingerprint_of_bytes(b"21.5").as_str(), "2f5dwy");
    }
}
