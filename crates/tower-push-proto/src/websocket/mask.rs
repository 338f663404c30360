//! Taking off the mask that every frame of a client wears: RFC 6455 §5.3.

/// What is unmasked at once: few vectors, so that the compiler makes straight code of it.
const BLOCK: usize = 32;

/// The mask begins with the first byte.
pub(super) fn in_place(bytes: &mut [u8], mask: [u8; 4]) {
    let key = repeated(mask);
    let mut blocks = bytes.chunks_exact_mut(BLOCK);
    for block in &mut blocks {
        xor(block, &key);
    }
    xor(blocks.into_remainder(), &key);
}

/// Both have the same length.
pub(super) fn copy(masked: &[u8], mask: [u8; 4], to: &mut [u8]) {
    let key = repeated(mask);
    let mut from = masked.chunks_exact(BLOCK);
    let mut to = to.chunks_exact_mut(BLOCK);
    for (from, to) in (&mut from).zip(&mut to) {
        xor_into(from, &key, to);
    }
    xor_into(from.remainder(), &key, to.into_remainder());
}

/// From here on to clear memory and write it once costs less than to write it twice.
const LARGE: usize = 4 * 1024;

/// Without allocating more than there is.
#[inline]
pub(super) fn to_vec(masked: &[u8], mask: [u8; 4]) -> Vec<u8> {
    if masked.len() < LARGE {
        let mut bytes = masked.to_vec();
        in_place(&mut bytes, mask);
        return bytes;
    }
    let mut bytes = vec![0; masked.len()];
    copy(masked, mask, &mut bytes);
    bytes
}

pub(super) fn append(masked: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(masked);
    in_place(&mut out[from..], mask);
}

/// The mask as it goes on behind this many bytes.
pub(super) fn rotated(mut mask: [u8; 4], by: usize) -> [u8; 4] {
    mask.rotate_left(by % 4);
    mask
}

fn repeated(mask: [u8; 4]) -> [u8; BLOCK] {
    std::array::from_fn(|at| mask[at % mask.len()])
}

fn xor_into(from: &[u8], key: &[u8; BLOCK], to: &mut [u8]) {
    for ((to, byte), key) in to.iter_mut().zip(from).zip(key) {
        *to = byte ^ key;
    }
}

fn xor(bytes: &mut [u8], key: &[u8; BLOCK]) {
    for (byte, key) in bytes.iter_mut().zip(key) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn naive(bytes: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let bytes = bytes.iter().enumerate();
        bytes.map(|(at, byte)| byte ^ mask[at % 4]).collect()
    }

    #[test]
    fn every_length_at_every_offset_reads_the_same() {
        let masked: Vec<u8> = (0..200).map(|byte: u8| byte.wrapping_mul(7)).collect();
        let plain = naive(&masked, MASK);
        for from in 0..masked.len() {
            for to in from..masked.len() {
                let mut bytes = masked[from..to].to_vec();
                in_place(&mut bytes, rotated(MASK, from));
                assert_eq!(bytes, plain[from..to], "{from}..{to}");
                let mut copied = vec![0; to - from];
                copy(&masked[from..to], rotated(MASK, from), &mut copied);
                assert_eq!(copied, plain[from..to], "{from}..{to}");
            }
        }
    }

    #[test]
    fn a_long_one_reads_as_a_short_one_does() {
        let masked: Vec<u8> = (0..3 * LARGE).map(|at| (at * 7) as u8).collect();
        for len in [LARGE - 1, LARGE, LARGE + 1, LARGE + BLOCK, 3 * LARGE] {
            let masked = &masked[..len];
            assert_eq!(to_vec(masked, MASK), naive(masked, MASK), "{len}");
        }
    }
}
