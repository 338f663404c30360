//! Looking for bytes, as fast as it goes without `unsafe`.

/// The first byte that is `wanted`.
///
/// Like `position`, but looks at a whole block without a branch, so that the compiler makes vector instructions of it.
pub fn find_byte(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut clean = clean_blocks::<64>(bytes, &wanted);
    clean += clean_blocks::<16>(&bytes[clean..], &wanted);
    let at = bytes[clean..].iter().position(|b| wanted(*b))?;
    Some(clean + at)
}

/// The length of the leading blocks in which nothing is wanted.
fn clean_blocks<const BLOCK: usize>(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    // Numbers, not booleans: those are not joined in vectors.
    let any = |block: &[u8]| block.iter().fold(0, |any, b| any | u8::from(wanted(*b))) != 0;
    let blocks = bytes.chunks_exact(BLOCK);
    blocks.take_while(|block| !any(block)).count() * BLOCK
}

/// Whether a needle stands anywhere in the bytes. An empty one never does.
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else {
        return false;
    };
    let mut rest = bytes;
    while let Some(at) = find_byte(rest, |b| b == *first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_position(bytes in proptest::collection::vec(0_u8..40, 0..200)) {
            prop_assert_eq!(super::find_byte(&bytes, |b| b == 7), bytes.iter().position(|b| *b == 7));
        }

        #[test]
        fn a_needle_is_found_where_it_stands(
            bytes in proptest::collection::vec(0_u8..3, 0..60),
            needle in proptest::collection::vec(0_u8..3, 1..4),
        ) {
            let expected = bytes.windows(needle.len()).any(|window| window == needle);
            prop_assert_eq!(super::contains(&bytes, &needle), expected);
        }
    }

    #[test]
    fn nothing_is_held_nowhere() {
        assert!(!super::contains(b"abc", b""));
    }
}
