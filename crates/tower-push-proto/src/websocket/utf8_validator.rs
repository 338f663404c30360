//! Validation of text whose bytes arrive in pieces.

use std::str;

/// An incremental validator of UTF-8. Between two pieces, the validator stores the bytes of an incomplete character: at most three bytes.
#[derive(Debug, Default)]
pub(super) struct Utf8Validator {
    incomplete_char: [u8; 4],
    /// The number of bytes of `incomplete_char` that are in use.
    len: u8,
}

/// The error for bytes that cannot be UTF-8, regardless of the bytes after them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidUtf8;

impl Utf8Validator {
    /// Validates the next piece. Calls `on_text` at most twice, with the text up to the last complete character.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut on_text: impl FnMut(&str),
    ) -> Result<(), InvalidUtf8> {
        let piece = self.complete_char(piece, &mut on_text)?;
        let (text, incomplete) = piece.split_at(piece.len() - incomplete_suffix_len(piece));
        on_text(str::from_utf8(text).map_err(|_| InvalidUtf8)?);
        self.store_incomplete(incomplete)
    }

    /// Whether the bytes of all pieces so far end with a complete character.
    pub(super) fn is_complete(&self) -> bool {
        self.len == 0
    }

    /// Moves bytes from the front of `piece` to the stored character until the character is complete. Returns the rest of `piece`, which is
    /// empty if the character is still incomplete.
    fn complete_char<'a>(
        &mut self,
        mut piece: &'a [u8],
        on_text: &mut impl FnMut(&str),
    ) -> Result<&'a [u8], InvalidUtf8> {
        while !self.is_complete() {
            let Some((byte, rest)) = piece.split_first() else {
                break;
            };
            piece = rest;
            self.incomplete_char[usize::from(self.len)] = *byte;
            self.len += 1;
            if let Some(character) = self.stored_char()? {
                on_text(character);
                self.len = 0;
            }
        }
        Ok(piece)
    }

    fn store_incomplete(&mut self, bytes: &[u8]) -> Result<(), InvalidUtf8> {
        for byte in bytes {
            self.incomplete_char[usize::from(self.len)] = *byte;
            self.len += 1;
        }
        self.stored_char().map(drop)
    }

    /// Returns the stored character, or `None` if the character is incomplete. Four bytes are never incomplete: they are a character or
    /// invalid.
    fn stored_char(&self) -> Result<Option<&str>, InvalidUtf8> {
        match str::from_utf8(&self.incomplete_char[..usize::from(self.len)]) {
            Ok(character) => Ok(Some(character)),
            Err(error) if error.error_len().is_none() => Ok(None),
            Err(_) => Err(InvalidUtf8),
        }
    }
}

/// Returns the length of the incomplete character at the end of `piece`, or 0 if the last character is complete. Only the first byte of the
/// character is examined.
fn incomplete_suffix_len(piece: &[u8]) -> usize {
    let mut last_bytes = piece.iter().rev().zip(1..=3);
    match last_bytes.find(|(byte, _)| **byte & 0xc0 != 0x80) {
        Some((first, len)) if len < char_len(*first) => len,
        _ => 0,
    }
}

/// Returns the length in bytes of a valid character with this first byte.
fn char_len(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the text of the complete characters, and whether the last character is complete.
    fn validate<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(String, bool), InvalidUtf8> {
        let mut validator = Utf8Validator::default();
        let mut text = String::new();
        for piece in pieces {
            validator.push(piece, |part| text.push_str(part))?;
        }
        Ok((text, validator.is_complete()))
    }

    /// Returns what [`validate`] must return, computed by the standard library.
    fn expected(bytes: &[u8]) -> Result<(String, bool), InvalidUtf8> {
        match str::from_utf8(bytes) {
            Ok(text) => Ok((text.to_owned(), true)),
            Err(error) if error.error_len().is_some() => Err(InvalidUtf8),
            Err(error) => {
                let complete = bytes[..error.valid_up_to()].to_vec();
                Ok((String::from_utf8(complete).unwrap(), false))
            }
        }
    }

    fn assert_all_splits_agree(bytes: &[u8]) {
        for end in 0..=bytes.len() {
            let bytes = &bytes[..end];
            let expected = expected(bytes);
            for first in 0..=end {
                let (one, rest) = bytes.split_at(first);
                assert_eq!(validate([one, rest]), expected, "{one:x?} {rest:x?}");
                for second in 0..=rest.len() {
                    let (two, three) = rest.split_at(second);
                    assert_eq!(
                        validate([one, two, three]),
                        expected,
                        "{one:x?} {two:x?} {three:x?}"
                    );
                }
            }
            assert_eq!(validate(bytes.chunks(1)), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn split_edge_cases_validate_as_whole() {
        let bytes: [&[u8]; 24] = [
            "κόσμε".as_bytes(),
            "a\0\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}".as_bytes(),
            "\u{10000}\u{10ffff}\u{d7ff}\u{e000}".as_bytes(),
            b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
            b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80edited",
            b"\xc0\xaf",
            b"\xc1\xbf",
            b"\xe0\x80\xaf",
            b"\xe0\x9f\xbf",
            b"\xf0\x80\x80\xaf",
            b"\xf0\x8f\xbf\xbf",
            b"\xed\xa0\x80",
            b"\xed\xbf\xbf",
            b"\xf4\x90\x80\x80",
            b"\xf5\x80\x80\x80",
            b"\xf8\x88\x80\x80\x80",
            b"\xfc\x84\x80\x80\x80\x80",
            b"\xfe\xff",
            b"\x80\xbf",
            b"\x80\x80\x80\x80\x80",
            b"a\xc3(",
            b"\xe2\x82(",
            b"\xf0\x9f\x92\xc3\xa9",
            b"\xf0\x9f\xf0\x9f\x92\xa9",
        ];
        bytes.into_iter().for_each(assert_all_splits_agree);
    }

    proptest! {
        #[test]
        fn split_text_validates_as_whole(text in ".{0,12}", replacement in any::<(u8, u8)>()) {
            let mut bytes = text.into_bytes();
            assert_all_splits_agree(&bytes);
            if let Some(length) = u8::try_from(bytes.len()).ok().filter(|length| *length > 0) {
                bytes[usize::from(replacement.0 % length)] = replacement.1;
                assert_all_splits_agree(&bytes);
            }
        }
    }

    /// If bytes are pushed one by one, validation fails at the same byte at which the standard library's validation fails.
    #[test]
    fn first_invalid_byte_fails() {
        let firsts = 0x70..=0xff_u8;
        for bytes in firsts.flat_map(|first| (0..=0xff).map(move |second| [first, second])) {
            for (third, fourth) in [(0x80, 0x80), (0x41, 0x80), (0xbf, 0x41), (0xc3, 0xa9)] {
                let bytes = [bytes[0], bytes[1], third, fourth];
                for end in 0..=bytes.len() {
                    let bytes = &bytes[..end];
                    assert_eq!(validate(bytes.chunks(1)), expected(bytes), "{bytes:x?}");
                }
            }
        }
    }
}
