//! A WebSocket client over HTTP/1.1 (RFC 6455) and HTTP/2 (RFC 8441).
//!
//! A test can send an opening handshake with any headers. After the handshake, the test uses the client of `tokio-websockets`, or sends raw
//! bytes and frames.

use bytes::Bytes;
use http::{Method, Request, StatusCode, response};
use http_body_util::Empty;
use hyper::{
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_websockets::{ClientBuilder, Limits, WebSocketStream};

use crate::{HttpConnection, HttpVersion, StreamingResponse, TEST_TIMEOUT, TestServer};

/// The `Sec-WebSocket-Key` of the example in RFC 6455 §1.3.
pub const SAMPLE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The `Sec-WebSocket-Accept` that answers [`SAMPLE_KEY`].
pub const SAMPLE_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The headers of a handshake over HTTP/1.1 besides `Host`.
const UPGRADE_HEADERS: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-key", SAMPLE_KEY),
    ("sec-websocket-version", "13"),
];

/// The default headers of a handshake besides [`UPGRADE_HEADERS`].
const OTHER_DEFAULT_HEADERS: [(&str, &str); 2] =
    [("host", "localhost"), (":protocol", "websocket")];

/// Returns the header lines of a handshake over HTTP/1.1 besides `Host`: `Connection`, `Upgrade`, the key and the version, without line
/// breaks.
pub fn handshake_header_lines() -> [String; 4] {
    UPGRADE_HEADERS.map(|(name, value)| format!("{name}: {value}"))
}

/// Returns the text of a handshake over HTTP/1.1. `header_lines` are `Host` and others, each with its line break.
pub fn handshake_text(target: &str, header_lines: &str) -> String {
    let lines = handshake_header_lines().join("\r\n");
    format!("GET {target} HTTP/1.1\r\n{header_lines}{lines}\r\n\r\n")
}

/// Opens a WebSocket on a new connection. Panics if the server refuses the handshake.
pub async fn connect(
    server: &TestServer,
    version: HttpVersion,
    path: &str,
    headers: &[(&str, &str)],
) -> WebSocketConnection {
    let mut client = HttpConnection::connect(server, version).await;
    let opened = client.open_websocket(path, headers).await;
    opened.unwrap_or_else(|refusal| panic!("{version:?}: {}", refusal.head.status))
}

impl HttpConnection {
    /// Opens a WebSocket. An HTTP/2 connection can carry several WebSockets. A header in `headers` replaces the default header of its name,
    /// and an empty value removes it. `host` is the `:authority` of HTTP/2.
    ///
    /// # Errors
    /// The server's response, if the server refuses the handshake.
    pub async fn open_websocket(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<WebSocketConnection, StreamingResponse> {
        let (response, success_status) = match self {
            Self::Http1(sender) => {
                let response = sender.send_request(upgrade_request(path, headers)).await;
                (response, StatusCode::SWITCHING_PROTOCOLS)
            }
            Self::Http2(sender) => {
                let response = sender
                    .send_request(extended_connect_request(path, headers))
                    .await;
                (response, StatusCode::OK)
            }
        };
        let (mut head, body) = response.unwrap().into_parts();
        if head.status != success_status {
            let unread = Vec::new();
            return Err(StreamingResponse { head, body, unread });
        }
        let upgrade = head.extensions.remove::<OnUpgrade>().unwrap();
        let io = TokioIo::new(upgrade.await.unwrap());
        Ok(WebSocketConnection { head, io })
    }
}

/// Returns the handshake of RFC 6455 §4.1.
fn upgrade_request(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let request = Request::builder().uri(path);
    let headers = with_default_headers(headers).filter(|(name, _)| *name != ":protocol");
    headers
        .fold(request, |request, (name, value)| {
            request.header(name, value)
        })
        .body(Empty::new())
        .unwrap()
}

/// Returns the handshake of RFC 8441 §5, which has no `Host`, `Connection`, `Upgrade` and `Sec-WebSocket-Key`.
fn extended_connect_request(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(Method::CONNECT);
    let mut authority = "";
    for (name, value) in with_default_headers(headers) {
        request = match name {
            "host" => {
                authority = value;
                request
            }
            "connection" | "upgrade" | "sec-websocket-key" => request,
            ":protocol" => request.extension(Protocol::from(value)),
            name => request.header(name, value),
        };
    }
    let uri = format!("http://{authority}{path}");
    request.uri(uri).body(Empty::new()).unwrap()
}

/// Returns `headers` and the default headers that they do not replace. Omits empty headers.
fn with_default_headers<'a>(
    headers: &'a [(&'a str, &'a str)],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let is_replaced = |name| headers.iter().any(|(other, _)| *other == name);
    let defaults = UPGRADE_HEADERS.iter().chain(&OTHER_DEFAULT_HEADERS);
    let defaults = defaults.filter(move |(name, _)| !is_replaced(*name));
    let all = defaults.chain(headers).copied();
    all.filter(|(_, value)| !value.is_empty())
}

/// A connection whose opening handshake has succeeded.
#[derive(Debug)]
pub struct WebSocketConnection<I = TokioIo<Upgraded>> {
    /// The response to the handshake.
    pub head: response::Parts,
    /// The connection after the handshake, for reading and writing frames.
    pub io: I,
}

impl WebSocketConnection {
    /// Returns a header of the response, if it is visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// Converts the connection into a client that follows RFC 6455. The client answers pings and close frames by itself, and accepts
    /// messages of any length.
    pub fn into_compliant_client(self) -> WebSocketStream<TokioIo<Upgraded>> {
        let builder = ClientBuilder::new().limits(Limits::unlimited());
        builder.take_over(self.io)
    }

    /// Sends `bytes` unchanged, without a frame header.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Sends one masked frame. `first_byte` holds FIN, RSV and the opcode.
    pub async fn send_frame(&mut self, first_byte: u8, payload: &[u8]) {
        self.send_bytes(&masked_frame(first_byte, payload)).await;
    }
}

impl<I: AsyncRead + Unpin> WebSocketConnection<I> {
    /// Returns the next frame from the server, or `None` if the connection has ended or was reset. Panics after [`TEST_TIMEOUT`].
    pub async fn next_frame(&mut self) -> Option<RawFrame> {
        let frame = timeout(TEST_TIMEOUT, self.read_frame());
        frame.await.expect("no frame arrived in time")
    }

    async fn read_frame(&mut self) -> Option<RawFrame> {
        let first_byte = self.io.read_u8().await.ok()?;
        let length = self.io.read_u8().await.unwrap();
        assert_eq!(length & 0x80, 0, "a server must not mask");
        let length = match length {
            126 => u64::from(self.io.read_u16().await.unwrap()),
            127 => self.io.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.io.read_exact(&mut payload).await.unwrap();
        Some(RawFrame {
            first_byte,
            payload,
        })
    }

    /// Skips frames up to the close frame, and then reads to the end of the connection. Returns the code and the reason, or `None` if the
    /// connection ends without a close frame.
    pub async fn read_close(&mut self) -> Option<(u16, String)> {
        let mut close = None;
        while let Some(frame) = self.next_frame().await {
            assert_eq!(close, None, "a frame after the close: {frame:?}");
            close = frame.close_code_and_reason();
        }
        close
    }
}

/// A frame from the server, which need not be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// The first byte: FIN, RSV and opcode.
    pub first_byte: u8,
    /// The payload, still compressed if the server has compressed it.
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// Returns the code and the reason of a close frame. The code of a close frame without a code is [`NO_STATUS_CODE`].
    pub fn close_code_and_reason(&self) -> Option<(u16, String)> {
        if self.first_byte != 0x88 {
            return None;
        }
        let Some((code, reason)) = self.payload.split_first_chunk() else {
            return Some((NO_STATUS_CODE, String::new()));
        };
        let reason = String::from_utf8(reason.to_vec()).unwrap();
        Some((u16::from_be_bytes(*code), reason))
    }
}

/// The number that stands for the code of a close frame without a code (RFC 6455 §7.1.5).
pub const NO_STATUS_CODE: u16 = 1005;

/// Returns the bytes of a masked frame, as a client sends it. `first_byte` holds FIN, RSV and the opcode.
pub fn masked_frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first_byte];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_frame_is_that_of_rfc_6455() {
        let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(masked_frame(0x81, b"Hello"), hello);
        assert_eq!(masked_frame(0x82, &[0; 126])[..4], [0x82, 0xfe, 0, 126]);
        assert_eq!(
            masked_frame(0x82, &[0; 65535])[..4],
            [0x82, 0xfe, 0xff, 0xff]
        );
        let long = masked_frame(0x82, &[0; 65536]);
        assert_eq!(long[..10], [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
