//! Arbitrary extension offers, one per line. A response has the form of RFC 7692 §7.1, and would itself be accepted as an offer.

#![no_main]

use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};
use libfuzzer_sys::fuzz_target;
use tower_push_proto::websocket::deflate::negotiate;

/// The beginning of every response.
const RESPONSE_PREFIX: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

fuzz_target!(|offers: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in offers.split(|byte| *byte == b'\n') {
        if let Ok(line) = HeaderValue::from_bytes(line) {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, line);
        }
    }
    let Some(accepted) = negotiate(&headers) else {
        return;
    };
    let window_bits = accepted.params.server_max_window_bits;
    let offers = String::from_utf8_lossy(offers);
    assert!(offers.contains("permessage-deflate"));
    let rest = accepted
        .response_extension
        .to_str()
        .unwrap()
        .strip_prefix(RESPONSE_PREFIX)
        .unwrap();
    if rest.is_empty() {
        assert_eq!(window_bits, 15);
    } else {
        assert!((8..=15).contains(&window_bits));
        assert_eq!(rest, format!("; server_max_window_bits={window_bits}"));
        // RFC 7692 §7.1.2.1: the response must not have this parameter unless the offer has it.
        assert!(offers.contains("server_max_window_bits"));
    }
    let headers = HeaderMap::from_iter([(
        SEC_WEBSOCKET_EXTENSIONS,
        accepted.response_extension.clone(),
    )]);
    assert_eq!(negotiate(&headers), Some(accepted));
});
