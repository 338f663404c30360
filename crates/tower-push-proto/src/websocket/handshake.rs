//! The computations of the opening handshake: [RFC 6455 §4](https://www.rfc-editor.org/rfc/rfc6455#section-4).

use std::{error, fmt};

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};
use sha1_smol::Sha1;

use crate::{base64, header_list};

/// The constant that is appended to each key before hashing (RFC 6455 §1.3).
const ACCEPT_KEY_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Returns the `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`, or `None` if the key is not 16 bytes in base64.
///
/// ```
/// use tower_push_proto::websocket::handshake::accept_key;
///
/// let accept = accept_key(b"dGhlIHNhbXBsZSBub25jZQ==").unwrap();
/// assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// assert!(accept_key(b"too short").is_none());
/// ```
pub fn accept_key(key: &[u8]) -> Option<HeaderValue> {
    let digits = key
        .strip_suffix(b"==")
        .filter(|digits| digits.len() == 22)?;
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || b"+/".contains(b);
    if !digits.iter().all(is_digit) {
        return None;
    }
    let mut hash = Sha1::from(key);
    hash.update(ACCEPT_KEY_GUID);
    let mut accept = BytesMut::new();
    base64::encode(&hash.digest().bytes(), &mut accept);
    HeaderValue::from_maybe_shared(accept.freeze()).ok()
}

/// The error for a `Sec-WebSocket-Protocol` header that is not a list of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSubprotocolHeader;

impl fmt::Display for InvalidSubprotocolHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`Sec-WebSocket-Protocol` is not a list of tokens")
    }
}

impl error::Error for InvalidSubprotocolHeader {}

/// A subprotocol that the client offers and the server supports. Created by [`choose_subprotocol`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenSubprotocol {
    /// The index of the subprotocol in the server's list.
    pub index: usize,
    /// The name of the subprotocol: the value of `Sec-WebSocket-Protocol` in the response.
    pub name: HeaderValue,
}

/// Chooses the first subprotocol in the client's list that is among `supported`. Returns `None` if the server supports none of the list.
/// Names are compared byte for byte.
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use tower_push_proto::websocket::handshake::choose_subprotocol;
///
/// let mut headers = HeaderMap::new();
/// headers.insert("sec-websocket-protocol", HeaderValue::from_static("chat, json"));
/// let chosen = choose_subprotocol(&headers, &["text", "json"])?.unwrap();
/// assert_eq!((chosen.index, chosen.name), (1, HeaderValue::from_static("json")));
/// # Ok::<(), tower_push_proto::websocket::handshake::InvalidSubprotocolHeader>(())
/// ```
///
/// # Errors
/// [`InvalidSubprotocolHeader`] if the header has an element that is not a token.
pub fn choose_subprotocol<P: AsRef<str>>(
    headers: &HeaderMap,
    supported: &[P],
) -> Result<Option<ChosenSubprotocol>, InvalidSubprotocolHeader> {
    let mut chosen = None;
    for name in header_list::list_elements(headers, SEC_WEBSOCKET_PROTOCOL) {
        if !header_list::is_token(name) {
            return Err(InvalidSubprotocolHeader);
        }
        let index = || supported.iter().position(|p| p.as_ref().as_bytes() == name);
        chosen = chosen.or_else(|| {
            Some(ChosenSubprotocol {
                index: index()?,
                name: HeaderValue::from_bytes(name).ok()?,
            })
        });
    }
    Ok(chosen)
}
