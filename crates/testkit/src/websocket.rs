//! A WebSocket client over HTTP/1.1 (RFC 6455) and HTTP/2 (RFC 8441): an opening handshake with any headers, and behind it
//! either the client of `tokio-websockets` or bytes and frames as the test wants them.

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

use crate::{Client, LONG, Reading, Server, Version};

/// The `Sec-WebSocket-Key` of RFC 6455 §1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The `Sec-WebSocket-Accept` that answers [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What is sent unless a test says otherwise.
const HEADERS: [(&str, &str); 6] = [
    ("host", "localhost"),
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-key", KEY),
    ("sec-websocket-version", "13"),
    (":protocol", "websocket"),
];

/// Opens a WebSocket on a connection of its own.
pub async fn connect(
    server: &Server,
    version: Version,
    path: &str,
    headers: &[(&str, &str)],
) -> Opened {
    let mut client = Client::connect(server, version).await;
    let opened = client.websocket(path, headers).await;
    opened.unwrap_or_else(|refused| panic!("{version:?}: {}", refused.head.status))
}

impl Client {
    /// Opens a WebSocket; on HTTP/2, beside others on this connection. A header here replaces the one that is sent by default,
    /// with nothing if it is empty. `host` is the `:authority` of HTTP/2.
    pub async fn websocket(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Opened, Reading> {
        let (response, opens) = match self {
            Self::Http1(sender) => {
                let response = sender.send_request(upgrade(path, headers)).await;
                (response, StatusCode::SWITCHING_PROTOCOLS)
            }
            Self::Http2(sender) => {
                let response = sender.send_request(extended_connect(path, headers)).await;
                (response, StatusCode::OK)
            }
        };
        let (mut head, body) = response.unwrap().into_parts();
        if head.status != opens {
            let unread = Vec::new();
            return Err(Reading { head, body, unread });
        }
        let upgrade = head.extensions.remove::<OnUpgrade>().unwrap();
        let io = TokioIo::new(upgrade.await.unwrap());
        Ok(Opened { head, io })
    }
}

fn upgrade(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let request = Request::builder().uri(path);
    let headers = with_defaults(headers).filter(|(name, _)| *name != ":protocol");
    headers
        .fold(request, |request, (name, value)| {
            request.header(name, value)
        })
        .body(Empty::new())
        .unwrap()
}

/// Without what RFC 8441 §5 does away with: `Host`, `Connection`, `Upgrade`, and the key.
fn extended_connect(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(Method::CONNECT);
    let mut authority = "";
    for (name, value) in with_defaults(headers) {
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

fn with_defaults<'a>(
    headers: &'a [(&'a str, &'a str)],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let is_replaced = |name| headers.iter().any(|(other, _)| *other == name);
    let defaults = HEADERS.iter().filter(move |(name, _)| !is_replaced(*name));
    let all = defaults.chain(headers).copied();
    all.filter(|(_, value)| !value.is_empty())
}

/// A connection whose opening handshake has succeeded.
#[derive(Debug)]
pub struct Opened<I = TokioIo<Upgraded>> {
    /// The response to the handshake.
    pub head: response::Parts,
    /// The connection behind the handshake.
    pub io: I,
}

impl Opened {
    /// Returns a header of the response, if it is visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// A client that does everything right: it answers pings and a close by itself, and takes messages of any length.
    pub fn well_behaved(self) -> WebSocketStream<TokioIo<Upgraded>> {
        let builder = ClientBuilder::new().limits(Limits::unlimited());
        builder.take_over(self.io)
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Sends one masked frame; `first` is its first byte: FIN, RSV and opcode.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&masked(first, payload)).await;
    }
}

impl<I: AsyncRead + Unpin> Opened<I> {
    /// The next frame from the server, or `None` where its bytes are over; a connection that was reset counts as that, too.
    pub async fn frame(&mut self) -> Option<Frame> {
        let frame = timeout(LONG, self.read_frame());
        frame.await.expect("a frame should have come")
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        let first = self.io.read_u8().await.ok()?;
        let length = self.io.read_u8().await.unwrap();
        assert_eq!(length & 0x80, 0, "a server does not mask");
        let length = match length {
            126 => u64::from(self.io.read_u16().await.unwrap()),
            127 => self.io.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.io.read_exact(&mut payload).await.unwrap();
        Some(Frame { first, payload })
    }

    /// Reads the close frame and then the end, past whatever comes before them.
    pub async fn closed(&mut self) -> Option<(u16, String)> {
        let mut close = None;
        while let Some(frame) = self.frame().await {
            assert_eq!(close, None, "nothing follows a close: {frame:?}");
            close = frame.close();
        }
        close
    }
}

/// A frame as it was, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first byte: FIN, RSV and opcode.
    pub first: u8,
    /// The payload, as it was on the wire.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Its code and reason, if it closes; [`NO_CODE`] where it has none.
    pub fn close(&self) -> Option<(u16, String)> {
        if self.first != 0x88 {
            return None;
        }
        let Some((code, reason)) = self.payload.split_first_chunk() else {
            return Some((NO_CODE, String::new()));
        };
        let reason = String::from_utf8(reason.to_vec()).unwrap();
        Some((u16::from_be_bytes(*code), reason))
    }
}

/// RFC 6455 §7.1.5.
pub const NO_CODE: u16 = 1005;

/// A frame as a client sends it.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
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
    fn a_masked_frame_is_that_of_the_standard() {
        let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(masked(0x81, b"Hello"), hello);
        assert_eq!(masked(0x82, &[0; 126])[..4], [0x82, 0xfe, 0, 126]);
        assert_eq!(masked(0x82, &[0; 65535])[..4], [0x82, 0xfe, 0xff, 0xff]);
        let long = masked(0x82, &[0; 65536]);
        assert_eq!(long[..10], [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
