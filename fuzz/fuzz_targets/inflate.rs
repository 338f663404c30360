//! Arbitrary compressed messages. They never inflate beyond the limit, the limit does not change the result, and another inflater agrees. A
//! compressed message inflates to the original.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags},
};
use tower_push_proto::websocket::deflate::{InflateError, compress, inflate};

/// Larger than any payload of this target.
const MAX_PAYLOAD_LEN: usize = 1 << 20;

fuzz_target!(|input: (u16, &[u8])| {
    let (limit, bytes) = (usize::from(input.0), input.1);
    let inflated = inflate(bytes, limit);
    if let Ok(payload) = &inflated {
        assert!(payload.len() <= limit && payload.capacity() <= limit + 1);
    }
    match inflate(bytes, MAX_PAYLOAD_LEN) {
        Ok(payload) => {
            let fits = payload.len() <= limit;
            assert_eq!(
                inflated,
                if fits {
                    Ok(payload.clone())
                } else {
                    Err(InflateError::TooBig)
                }
            );
            assert_eq!(inflate_with_miniz(bytes), Some(payload));
        }
        Err(InflateError::TooBig) => assert_eq!(inflated, Err(InflateError::TooBig)),
        Err(_) => assert!(inflated.is_err()),
    }

    let mut compressed = BytesMut::new();
    compress(bytes, &mut compressed);
    assert!(compressed.len() <= bytes.len() + bytes.len() / 1000 + 32);
    assert_eq!(inflate(&compressed, bytes.len()).as_deref(), Ok(bytes));
    if !bytes.is_empty() {
        assert_eq!(
            inflate(&compressed, bytes.len() - 1),
            Err(InflateError::TooBig)
        );
    }
});

/// Inflates a message by RFC 7692 §7.2.2 and §7.2.3.4. miniz_oxide accepts some data that is not valid DEFLATE.
fn inflate_with_miniz(message: &[u8]) -> Option<Vec<u8>> {
    const END: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];
    let input = [message, &END].concat();
    let (mut offset, mut payload) = (0, Vec::new());
    let mut out = vec![0; MAX_PAYLOAD_LEN];
    while offset != message.len() || offset == 0 {
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let mut inflater = DecompressorOxide::new();
        let (status, taken, written) =
            decompress(&mut inflater, &input[offset..], &mut out, 0, flags);
        if status != TINFLStatus::Done {
            return None;
        }
        payload.extend_from_slice(&out[..written]);
        offset += taken;
        if offset == input.len() {
            break;
        }
    }
    Some(payload)
}
