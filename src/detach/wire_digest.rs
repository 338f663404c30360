/// The length and a hash of bytes on the wire. Two digests are equal if their bytes are the same; pieces of any size may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireDigest {
    len: u64,
    /// FNV-1a with 64 bits.
    hash: u64,
}

impl WireDigest {
    const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0100_0000_01b3;

    pub(super) fn new() -> Self {
        Self {
            len: 0,
            hash: Self::FNV_OFFSET_BASIS,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(Self::FNV_PRIME);
        }
    }

    /// Adds `payload` as one chunk of the chunked transfer coding (RFC 9112 §7.1).
    pub(super) fn add_chunk(&mut self, payload: &[u8]) {
        let mut buffer = [0; MAX_SIZE_LINE_LEN];
        self.add(write_chunk_size(payload.len(), &mut buffer));
        self.add(payload);
        self.add(b"\r\n");
    }
}

/// The length of the longest size line of a chunk: 16 digits and CRLF.
pub(crate) const MAX_SIZE_LINE_LEN: usize = 18;

/// Writes the size line of a chunk of `len` bytes to the front of `buffer`, as hyper does: hexadecimal, in upper case. Returns the bytes of
/// the line.
pub(crate) fn write_chunk_size(len: usize, buffer: &mut [u8; MAX_SIZE_LINE_LEN]) -> &[u8] {
    let significant_bits = usize::BITS - len.leading_zeros();
    let digits = significant_bits.div_ceil(4).max(1) as usize;
    for (position, digit) in buffer[..digits].iter_mut().enumerate() {
        let shift = 4 * (digits - 1 - position);
        *digit = b"0123456789ABCDEF"[(len >> shift) & 0xf];
    }
    buffer[digits..digits + 2].copy_from_slice(b"\r\n");
    &buffer[..digits + 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_does_not_depend_on_pieces() {
        let payload = [b'a'; 26];
        let mut chunk = WireDigest::new();
        chunk.add_chunk(&payload);
        let bytes = [b"1A\r\n", &payload[..], b"\r\n"].concat();
        for split_at in 0..bytes.len() {
            let mut pieces = WireDigest::new();
            pieces.add(&bytes[..split_at]);
            pieces.add(&bytes[split_at..]);
            assert_eq!(pieces, chunk);
        }
        let mut changed = WireDigest::new();
        changed.add(&bytes.to_ascii_uppercase());
        assert_ne!(changed, chunk);
    }

    #[test]
    fn longest_chunk_size_fits() {
        let mut buffer = [0; MAX_SIZE_LINE_LEN];
        assert_eq!(
            write_chunk_size(usize::MAX, &mut buffer),
            b"FFFFFFFFFFFFFFFF\r\n"
        );
        for len in [0, 1, 9, 10, 15, 16, 255, 256, 0x1234, 0xABCDEF] {
            let expected = format!("{len:X}\r\n");
            assert_eq!(write_chunk_size(len, &mut buffer), expected.as_bytes());
        }
    }
}
