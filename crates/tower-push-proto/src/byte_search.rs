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

/// Whether `needle` occurs in `bytes`. An empty needle occurs nowhere.
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    find(bytes, needle).is_some()
}

/// Returns where `needle` occurs first in `bytes`. An empty needle occurs nowhere.
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
        fn it_is_position(bytes in proptest::collection::vec(0_u8..40, 0..200)) {
            prop_assert_eq!(super::find_byte(&bytes, |b| b == 7), bytes.iter().position(|b| *b == 7));
        }

        #[test]
        fn a_needle_is_found_where_it_stands(
            bytes in proptest::collection::vec(0_u8..3, 0..60),
            needle in proptest::collection::vec(0_u8..3, 1..4),
        ) {
            let expected = bytes.windows(needle.len()).position(|window| window == needle);
            prop_assert_eq!(super::find(&bytes, &needle), expected);
            prop_assert_eq!(super::contains(&bytes, &needle), expected.is_some());
        }
    }

    #[test]
    fn nothing_is_held_nowhere() {
        assert!(!super::contains(b"abc", b""));
    }
}
