//! The arithmetic of the opening handshake: [RFC 6455 §4](https://www.rfc-editor.org/rfc/rfc6455#section-4).

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};
use sha1_smol::Sha1;

use crate::{base64, header_list};

/// What every key is answered with a hash of (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Returns the `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`, or `None` if the key is not 16 bytes in base64.
pub fn accept_key(key: &[u8]) -> Option<HeaderValue> {
    let digits = key.strip_suffix(b"==").filter(|rest| rest.len() == 22)?;
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || b"+/".contains(b);
    if !digits.iter().all(is_digit) {
        return None;
    }
    let mut hash = Sha1::from(key);
    hash.update(GUID);
    let mut accept = BytesMut::new();
    base64::encode(&hash.digest().bytes(), &mut accept);
    HeaderValue::from_maybe_shared(accept.freeze()).ok()
}

/// A `Sec-WebSocket-Protocol` header that does not list tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSubprotocolList;

/// Chooses the client's first subprotocol that is among `protocols`, and returns its index there and its name.
///
/// # Errors
/// If the header lists anything but tokens.
pub fn choose_subprotocol<P: AsRef<str>>(
    headers: &HeaderMap,
    protocols: &[P],
) -> Result<Option<(usize, HeaderValue)>, InvalidSubprotocolList> {
    let mut chosen = None;
    for name in header_list::elements(headers, SEC_WEBSOCKET_PROTOCOL) {
        if !header_list::is_token(name) {
            return Err(InvalidSubprotocolList);
        }
        let place = || protocols.iter().position(|p| p.as_ref().as_bytes() == name);
        chosen = chosen.or_else(|| Some((place()?, HeaderValue::from_bytes(name).ok()?)));
    }
    Ok(chosen)
}
