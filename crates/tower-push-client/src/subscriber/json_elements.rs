use bytes::{Buf, Bytes};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Deserializer, value::RawValue};

use crate::error::Error;

/// The elements of a JSON array, which are read one at a time: an array of many small elements needs no more memory than its text.
#[derive(Debug)]
pub(super) struct JsonElements {
    /// The text before which all elements were read.
    rest: Bytes,
}

impl JsonElements {
    /// Begins to read an array.
    ///
    /// # Errors
    /// [`Error::is_cut`] if `json` is the beginning of an array.
    /// [`Error::is_malformed`] if `json` is anything else but an array.
    pub(super) fn new(json: Bytes) -> Result<Self, Error> {
        // The elements have no size, so the vector has no memory.
        check_whole::<Vec<IgnoredAny>>(&json)?;
        std::str::from_utf8(&json).map_err(Error::malformed)?;
        Ok(Self { rest: json })
    }

    /// Returns the next element. Returns `None` after the last one.
    pub(super) fn next_element(&mut self) -> Option<Bytes> {
        self.skip_white_space();
        // The bracket before the first element, or the comma before a later one.
        if !matches!(self.rest.first(), Some(b'[' | b',')) {
            self.rest = Bytes::new();
            return None;
        }
        self.rest.advance(1);
        let mut values = Deserializer::from_slice(&self.rest).into_iter::<&RawValue>();
        // No element follows the bracket of an empty array.
        let element = values.next().and_then(Result::ok)?;
        let element = self.rest.slice_ref(element.get().as_bytes());
        let read = values.byte_offset();
        self.rest.advance(read);
        Some(element)
    }

    fn skip_white_space(&mut self) {
        let len = self.rest.len() - self.rest.trim_ascii_start().len();
        self.rest.advance(len);
    }
}

/// Checks that `json` is a whole JSON value of the type `T`.
///
/// # Errors
/// [`Error::is_cut`] if `json` is the beginning of such a value: a response without a length may end too early without an error.
/// [`Error::is_malformed`] if `json` is anything else.
pub(super) fn check_whole<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<(), Error> {
    match serde_json::from_slice::<T>(json) {
        Ok(_) => Ok(()),
        Err(error) if error.is_eof() => Err(Error::cut_by(error)),
        Err(error) => Err(Error::malformed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_one_by_one() {
        for (json, expected) in [
            ("[]", &[][..]),
            (" [ ] ", &[]),
            ("[1,-2.5e3 ,true,null]", &["1", "-2.5e3", "true", "null"]),
            (
                "\n[ \"a,]\\\"\" ,\t[1,[]] , {\"b\": [2]} ]\r\n",
                &["\"a,]\\\"\"", "[1,[]]", "{\"b\": [2]}"],
            ),
        ] {
            let mut elements = JsonElements::new(json.into()).unwrap();
            for element in expected {
                assert_eq!(elements.next_element().unwrap(), element, "{json}");
            }
            assert_eq!(elements.next_element(), None, "{json}");
            assert_eq!(elements.next_element(), None, "{json}");
        }
    }

    #[test]
    fn other_texts_are_no_array() {
        let cases: [&[u8]; 6] = [b"{}", b"1", b"[1,]", b"[\"\xff\"]", b"[1] 2", b"<html>"];
        for json in cases {
            let error = JsonElements::new(Bytes::from_static(json)).unwrap_err();
            assert!(error.is_malformed(), "{}", json.escape_ascii());
        }
        for json in ["", " ", "[", "[1", "[1,", "[\"a"] {
            let error = JsonElements::new(json.into()).unwrap_err();
            assert!(error.is_cut(), "{json}");
        }
    }
}
