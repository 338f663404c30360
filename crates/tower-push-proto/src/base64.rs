//! Base64 with padding ([RFC 4648 §4](https://www.rfc-editor.org/rfc/rfc4648#section-4)).

use bytes::{BufMut, BytesMut};

/// The digits of base64, in the order of their values.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends `bytes` to `out` in base64, with padding.
pub fn encode(bytes: &[u8], out: &mut BytesMut) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    let digit = |bits: u32| ALPHABET[(bits & 63) as usize];
    let mut triples = bytes.chunks_exact(3);
    for triple in &mut triples {
        let bits = u32::from_be_bytes([0, triple[0], triple[1], triple[2]]);
        out.put_slice(&[18, 12, 6, 0].map(|shift| digit(bits >> shift)));
    }
    match *triples.remainder() {
        [a] => {
            let bits = u32::from(a) << 16;
            out.put_slice(&[digit(bits >> 18), digit(bits >> 12), b'=', b'=']);
        }
        [a, b] => {
            let bits = u32::from(a) << 16 | u32::from(b) << 8;
            out.put_slice(&[digit(bits >> 18), digit(bits >> 12), digit(bits >> 6), b'=']);
        }
        _ => {}
    }
}

/// Decodes base64. Returns `None` if `text` is not base64 with padding, or if unused bits of its last digit are not zero.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if text.len() % 4 != 0 || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text[..text.len() - padding].chunks(4) {
        let bits = group
            .iter()
            .try_fold(0, |bits: u32, digit| Some(bits << 6 | digit_value(*digit)?))?;
        // The last group may have fewer than four digits. The missing digits count as zeros.
        let missing = 4 - group.len();
        let [_, group_bytes @ ..] = (bits << (6 * missing)).to_be_bytes();
        let (kept, dropped) = group_bytes.split_at(3 - missing);
        if dropped.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(kept);
    }
    Some(bytes)
}

fn digit_value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    use super::*;

    fn encoded(bytes: &[u8]) -> String {
        let mut out = BytesMut::new();
        encode(bytes, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn rfc_4648_vectors_are_written() {
        let vectors = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (length, expected) in vectors.into_iter().enumerate() {
            assert_eq!(encoded(&b"foobar"[..length]), expected);
        }
    }

    proptest! {
        #[test]
        fn base64_crate_writes_the_same(bytes: Vec<u8>) {
            prop_assert_eq!(encoded(&bytes), STANDARD.encode(&bytes));
            prop_assert_eq!(decode(encoded(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn base64_crate_reads_the_same(text in "[A-Za-z0-9+/=-]{0,4}([A-Za-z0-9+/]{4}){0,2}[A-Za-z0-9+/=-]{0,2}=?=?") {
            prop_assert_eq!(decode(text.as_bytes()), STANDARD.decode(&text).ok());
        }
    }
}
