use flate2::Crc;

/// The CRC-32 and the length of bytes, from which [`StreamChecksum`] computes the checksum of a whole stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockChecksum {
    crc: u32,
    /// The number of bytes, modulo 2^32.
    len: u32,
    /// x^(8 × length) modulo the polynomial of the CRC. The product of this operator and the CRC of earlier bytes is their contribution to the
    /// CRC of the earlier bytes and these bytes together.
    shift_operator: u32,
}

impl BlockChecksum {
    /// Computes the checksum of `parts`, one after the other.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut crc = Crc::new();
        let mut len = 0_u64;
        for part in parts {
            crc.update(part);
            len += part.len() as u64;
        }
        Self {
            crc: crc.sum(),
            len: len as u32,
            shift_operator: power_of_x(len * 8),
        }
    }
}

/// The CRC-32 and the length of a stream, as the trailer of gzip contains them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamChecksum {
    crc: u32,
    /// The number of bytes, modulo 2^32.
    len: u32,
}

impl StreamChecksum {
    /// Adds a block to the end of the stream, in constant time.
    pub(super) fn append(&mut self, block: BlockChecksum) {
        self.crc = multiply(block.shift_operator, self.crc) ^ block.crc;
        self.len = self.len.wrapping_add(block.len);
    }

    /// Returns the trailer of gzip (RFC 1952 §2.3.1): the CRC and the length.
    pub(super) fn to_trailer(self) -> [u8; 8] {
        let [crc, len] = [self.crc.to_le_bytes(), self.len.to_le_bytes()];
        let mut trailer = [0; 8];
        trailer[..4].copy_from_slice(&crc);
        trailer[4..].copy_from_slice(&len);
        trailer
    }
}

/// The polynomial of the CRC-32 of gzip (RFC 1952 §8). The highest bit stands for x^0, here and in all polynomials of this module.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// Returns the product of two polynomials, modulo [`POLYNOMIAL`].
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ if b & 1 == 1 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    product
}

/// x^(2^n) modulo [`POLYNOMIAL`], for each n below 32.
const SQUARES: [u32; 32] = {
    let mut squares = [ONE >> 1; 32];
    let mut n = 1;
    while n < squares.len() {
        squares[n] = multiply(squares[n - 1], squares[n - 1]);
        n += 1;
    }
    squares
};

/// Returns x^n modulo [`POLYNOMIAL`].
fn power_of_x(mut n: u64) -> u32 {
    let mut power = ONE;
    let mut square = 0;
    while n > 0 {
        if n & 1 == 1 {
            // x^(2^32) is x, because the order of x is 2^32 - 1.
            power = multiply(SQUARES[square % SQUARES.len()], power);
        }
        n >>= 1;
        square += 1;
    }
    power
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn appended_blocks_have_the_checksum_of_the_whole(blocks in vec(vec(any::<u8>(), 0..300), 0..8)) {
            let mut checksum = StreamChecksum::default();
            for block in &blocks {
                checksum.append(BlockChecksum::of(block.chunks(7)));
            }
            let mut crc = Crc::new();
            crc.update(&blocks.concat());
            prop_assert_eq!(checksum, StreamChecksum { crc: crc.sum(), len: crc.amount() });
        }
    }

    /// flate2 combines checksums with other code.
    #[test]
    fn long_block_is_combined() {
        let (first, long) = (b"first", vec![b'x'; 70_000]);
        let mut checksum = StreamChecksum::default();
        checksum.append(BlockChecksum::of([&first[..]]));
        checksum.append(BlockChecksum::of([&long[..]]));
        let (mut expected, mut second) = (Crc::new(), Crc::new());
        expected.update(first);
        second.update(&long);
        expected.combine(&second);
        assert_eq!(checksum.crc, expected.sum());
        assert_eq!(checksum.to_trailer()[4..], 70_005_u32.to_le_bytes());
    }

    #[test]
    fn power_of_x_is_periodic() {
        assert_eq!(power_of_x(0), ONE);
        assert_eq!(power_of_x(u64::from(u32::MAX)), ONE);
        assert_eq!(power_of_x(1 << 32), power_of_x(1));
    }
}
