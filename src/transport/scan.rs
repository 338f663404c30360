/// The first byte that is `wanted`.
///
/// Like `position`, but looks at a whole block without a branch, so that the compiler makes vector instructions of it.
pub(super) fn find(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    const BLOCK: usize = 32;
    let mut blocks = bytes.chunks_exact(BLOCK);
    let clean = blocks
        .position(|block| block.iter().fold(false, |any, b| any | wanted(*b)))
        .map_or(bytes.len() - bytes.len() % BLOCK, |block| block * BLOCK);
    let at = bytes[clean..].iter().position(|b| wanted(*b))?;
    Some(clean + at)
}

/// Whether a needle stands anywhere in the bytes. An empty one never does.
pub(super) fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else {
        return false;
    };
    let mut rest = bytes;
    while let Some(at) = find(rest, |b| b == *first) {
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
            prop_assert_eq!(super::find(&bytes, |b| b == 7), bytes.iter().position(|b| *b == 7));
        }

        #[test]
        fn a_needle_is_found_where_it_stands(
            bytes in proptest::collection::vec(0_u8..3, 0..60),
            needle in proptest::collection::vec(0_u8..3, 1..4),
        ) {
            let expected = bytes.windows(needle.len()).any(|window| window == needle);
            prop_assert_eq!(super::holds(&bytes, &needle), expected);
        }
    }

    #[test]
    fn nothing_is_held_nowhere() {
        assert!(!super::holds(b"abc", b""));
    }
}
