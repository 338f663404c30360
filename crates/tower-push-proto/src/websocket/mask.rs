//! The mask of a client's frames: [RFC 6455 §5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.3).
//!
//! A mask combines each payload byte with a byte of the four-byte mask key, by exclusive or. Masking and unmasking are the same operation.
//! Each function begins with the first byte of the key. For input that continues a payload, pass the key [rotated](rotate_key) by the
//! number of bytes before it.

/// The number of bytes that one iteration masks. The compiler turns a block of this length into a few vector instructions without a loop.
const BLOCK_LEN: usize = 32;

/// The input length from which `xor_to_vec` zeroes a vector and writes the result into it: 4 KiB. For a shorter input, copying the input
/// and masking the copy costs less.
const MIN_ZEROED_LEN: usize = 4 * 1024;

/// Masks or unmasks `bytes`.
pub(super) fn xor_in_place(bytes: &mut [u8], mask_key: [u8; 4]) {
    let key = repeat_key(mask_key);
    let mut blocks = bytes.chunks_exact_mut(BLOCK_LEN);
    for block in &mut blocks {
        xor_block(block, &key);
    }
    xor_block(blocks.into_remainder(), &key);
}

/// Masks or unmasks `input` into `output`, which has the same length.
pub(super) fn xor_into(input: &[u8], mask_key: [u8; 4], output: &mut [u8]) {
    let key = repeat_key(mask_key);
    let mut input = input.chunks_exact(BLOCK_LEN);
    let mut output = output.chunks_exact_mut(BLOCK_LEN);
    for (input, output) in (&mut input).zip(&mut output) {
        xor_block_into(input, &key, output);
    }
    xor_block_into(input.remainder(), &key, output.into_remainder());
}

/// Masks or unmasks `input` into a new vector without spare capacity.
#[inline]
pub(super) fn xor_to_vec(input: &[u8], mask_key: [u8; 4]) -> Vec<u8> {
    if input.len() < MIN_ZEROED_LEN {
        let mut output = input.to_vec();
        xor_in_place(&mut output, mask_key);
        return output;
    }
    let mut output = vec![0; input.len()];
    xor_into(input, mask_key, &mut output);
    output
}

/// Masks or unmasks `input`, and appends it to `output`.
pub(super) fn xor_append(input: &[u8], mask_key: [u8; 4], output: &mut Vec<u8>) {
    let start = output.len();
    output.extend_from_slice(input);
    xor_in_place(&mut output[start..], mask_key);
}

/// Rotates the key by `len` bytes. The result masks the payload that follows the first `len` bytes.
#[inline]
pub(super) fn rotate_key(mut mask_key: [u8; 4], len: usize) -> [u8; 4] {
    mask_key.rotate_left(len % 4);
    mask_key
}

fn repeat_key(mask_key: [u8; 4]) -> [u8; BLOCK_LEN] {
    std::array::from_fn(|index| mask_key[index % mask_key.len()])
}

fn xor_block(block: &mut [u8], key: &[u8; BLOCK_LEN]) {
    for (byte, key) in block.iter_mut().zip(key) {
        *byte ^= key;
    }
}

fn xor_block_into(input: &[u8], key: &[u8; BLOCK_LEN], output: &mut [u8]) {
    for ((output, input), key) in output.iter_mut().zip(input).zip(key) {
        *output = input ^ key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn xor_bytewise(bytes: &[u8], mask_key: [u8; 4]) -> Vec<u8> {
        let bytes = bytes.iter().enumerate();
        bytes
            .map(|(index, byte)| byte ^ mask_key[index % 4])
            .collect()
    }

    #[test]
    fn xor_agrees_at_every_offset_and_length() {
        let masked: Vec<u8> = (0..200).map(|byte: u8| byte.wrapping_mul(7)).collect();
        let plain = xor_bytewise(&masked, MASK_KEY);
        for start in 0..masked.len() {
            for end in start..masked.len() {
                let mut bytes = masked[start..end].to_vec();
                xor_in_place(&mut bytes, rotate_key(MASK_KEY, start));
                assert_eq!(bytes, plain[start..end], "{start}..{end}");
                let mut copied = vec![0; end - start];
                xor_into(
                    &masked[start..end],
                    rotate_key(MASK_KEY, start),
                    &mut copied,
                );
                assert_eq!(copied, plain[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn xor_to_vec_agrees_around_its_threshold() {
        let masked: Vec<u8> = (0..3 * MIN_ZEROED_LEN).map(|n| (n * 7) as u8).collect();
        for len in [
            MIN_ZEROED_LEN - 1,
            MIN_ZEROED_LEN,
            MIN_ZEROED_LEN + 1,
            MIN_ZEROED_LEN + BLOCK_LEN,
            3 * MIN_ZEROED_LEN,
        ] {
            let masked = &masked[..len];
            let expected = xor_bytewise(masked, MASK_KEY);
            assert_eq!(xor_to_vec(masked, MASK_KEY), expected, "{len}");
        }
    }
}
