//! Base64 as it goes into events ([RFC 4648 §4](https://www.rfc-editor.org/rfc/rfc4648#section-4), with padding).

use bytes::{BufMut, BytesMut};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends the bytes in base64, with padding.
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
    fn the_vectors_of_rfc_4648() {
        let vectors = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (length, expected) in vectors.into_iter().enumerate() {
            assert_eq!(encoded(&b"foobar"[..length]), expected);
        }
    }

    proptest! {
        #[test]
        fn it_is_what_the_base64_crate_writes(bytes: Vec<u8>) {
            prop_assert_eq!(encoded(&bytes), STANDARD.encode(&bytes));
        }
    }
}
