//! UTF-8 that comes in pieces.

use std::str;

/// The end of what has come, where a character is not whole yet: up to three bytes.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: [u8; 4],
    len: u8,
}

/// Whatever follows, this will not be UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl Tail {
    /// Checks the next piece and gives on what has become whole, in up to two parts.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut whole: impl FnMut(&str),
    ) -> Result<(), Invalid> {
        let piece = self.complete(piece, &mut whole)?;
        let (text, open) = piece.split_at(piece.len() - open(piece));
        whole(str::from_utf8(text).map_err(|_| Invalid)?);
        self.keep(open)
    }

    /// Whether what has come ends with a whole character.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes from the piece what this character needs. Something is left of it only if nothing is left here.
    fn complete<'a>(
        &mut self,
        mut piece: &'a [u8],
        whole: &mut impl FnMut(&str),
    ) -> Result<&'a [u8], Invalid> {
        while !self.is_empty() {
            let Some((byte, rest)) = piece.split_first() else {
                break;
            };
            piece = rest;
            self.bytes[usize::from(self.len)] = *byte;
            self.len += 1;
            if let Some(character) = self.character()? {
                whole(character);
                self.len = 0;
            }
        }
        Ok(piece)
    }

    fn keep(&mut self, open: &[u8]) -> Result<(), Invalid> {
        for byte in open {
            self.bytes[usize::from(self.len)] = *byte;
            self.len += 1;
        }
        self.character().map(drop)
    }

    /// `None` as long as it only begins one. Four bytes never do: they are one, or invalid.
    fn character(&self) -> Result<Option<&str>, Invalid> {
        match str::from_utf8(&self.bytes[..usize::from(self.len)]) {
            Ok(character) => Ok(Some(character)),
            Err(error) if error.error_len().is_none() => Ok(None),
            Err(_) => Err(Invalid),
        }
    }
}

/// How many of the last bytes begin a character without ending it, by its first byte.
fn open(piece: &[u8]) -> usize {
    let mut back = piece.iter().rev().zip(1..=3);
    match back.find(|(byte, _)| **byte & 0xc0 != 0x80) {
        Some((first, came)) if came < width(*first) => came,
        _ => 0,
    }
}

/// The length of a character, if it is valid.
fn width(first: u8) -> usize {
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

    /// What was given on, and whether it ends with a whole character.
    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(String, bool), Invalid> {
        let mut tail = Tail::default();
        let mut text = String::new();
        for piece in pieces {
            tail.push(piece, |whole| text.push_str(whole))?;
        }
        Ok((text, tail.is_empty()))
    }

    fn expected(bytes: &[u8]) -> Result<(String, bool), Invalid> {
        match str::from_utf8(bytes) {
            Ok(text) => Ok((text.to_owned(), true)),
            Err(error) if error.error_len().is_some() => Err(Invalid),
            Err(error) => {
                let whole = bytes[..error.valid_up_to()].to_vec();
                Ok((String::from_utf8(whole).unwrap(), false))
            }
        }
    }

    fn all_splits_read_the_same(bytes: &[u8]) {
        for end in 0..=bytes.len() {
            let bytes = &bytes[..end];
            let expected = expected(bytes);
            for first in 0..=end {
                let (one, rest) = bytes.split_at(first);
                assert_eq!(read([one, rest]), expected, "{one:x?} {rest:x?}");
                for second in 0..=rest.len() {
                    let (two, three) = rest.split_at(second);
                    assert_eq!(
                        read([one, two, three]),
                        expected,
                        "{one:x?} {two:x?} {three:x?}"
                    );
                }
            }
            assert_eq!(read(bytes.chunks(1)), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn the_edges_of_unicode_read_the_same_however_they_are_split() {
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
        bytes.into_iter().for_each(all_splits_read_the_same);
    }

    proptest! {
        #[test]
        fn text_reads_the_same_however_it_is_split(text in ".{0,12}", broken in any::<(u8, u8)>()) {
            let mut bytes = text.into_bytes();
            all_splits_read_the_same(&bytes);
            if let Some(length) = u8::try_from(bytes.len()).ok().filter(|length| *length > 0) {
                bytes[usize::from(broken.0 % length)] = broken.1;
                all_splits_read_the_same(&bytes);
            }
        }
    }

    /// `read` of the bytes one by one fails at the byte at which std says so of the bytes up to it.
    #[test]
    fn it_fails_at_the_first_byte_that_cannot_be() {
        let firsts = 0x70..=0xff_u8;
        for bytes in firsts.flat_map(|first| (0..=0xff).map(move |second| [first, second])) {
            for (third, fourth) in [(0x80, 0x80), (0x41, 0x80), (0xbf, 0x41), (0xc3, 0xa9)] {
                let bytes = [bytes[0], bytes[1], third, fourth];
                for end in 0..=bytes.len() {
                    let bytes = &bytes[..end];
                    assert_eq!(read(bytes.chunks(1)), expected(bytes), "{bytes:x?}");
                }
            }
        }
    }
}
