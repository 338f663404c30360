//! Fast searches for bytes in slices, without `unsafe`.

/// Returns the index of the first byte for which `matches` holds.
///
/// Unlike `Iterator::position`, this function branches once per block of bytes. The compiler turns each block into vector instructions.
pub fn find_byte(bytes: &[u8], matches: impl Fn(u8) -> bool) -> Option<usize> {
    let mut skipped = len_of_blocks_without_match::<64>(bytes, &matches);
    skipped += len_of_blocks_without_match::<16>(&bytes[skipped..], &matches);
    let offset = bytes[skipped..].iter().position(|byte| matches(*byte))?;
    Some(skipped + offset)
}

/// Returns the length of the leading blocks that contain no match.
fn len_of_blocks_without_match<const BLOCK_LEN: usize>(
    bytes: &[u8],
    matches: impl Fn(u8) -> bool,
) -> usize {
    // The compiler vectorizes a fold over numbers, but not one over booleans.
    let or_match = |any: u8, byte: &u8| any | u8::from(matches(*byte));
    let has_match = |block: &[u8]| block.iter().fold(0, or_match) != 0;
    let blocks = bytes.chunks_exact(BLOCK_LEN);
    blocks.take_while(|block| !has_match(block)).count() * BLOCK_LEN
}

/// Whether `needle` occurs in `bytes`. An empty needle occurs nowhere.
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    find(bytes, needle).is_some()
}

/// Returns the index of the first occurrence of `needle` in `bytes`. An empty needle occurs nowhere.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle.first()?;
    let mut from = 0;
    while let Some(offset) = find_byte(&bytes[from..], |byte| byte == *first) {
        let start = from + offset;
        if bytes[start..].starts_with(needle) {
            return Some(start);
        }
        from = start + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn find_byte_is_position(bytes in proptest::collection::vec(0_u8..40, 0..200)) {
            prop_assert_eq!(super::find_byte(&bytes, |b| b == 7), bytes.iter().position(|b| *b == 7));
        }

        #[test]
        fn find_returns_the_first_match(
            bytes in proptest::collection::vec(0_u8..3, 0..60),
            needle in proptest::collection::vec(0_u8..3, 1..4),
        ) {
            let expected = bytes.windows(needle.len()).position(|window| window == needle);
            prop_assert_eq!(super::find(&bytes, &needle), expected);
            prop_assert_eq!(super::contains(&bytes, &needle), expected.is_some());
        }
    }

    #[test]
    fn empty_needle_is_not_found() {
        assert!(!super::contains(b"abc", b""));
    }
}
