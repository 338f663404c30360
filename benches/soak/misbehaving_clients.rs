//! Clients that misbehave, over plain sockets. Each opens a stream, or sends something like a request, and disconnects in some way.
//!
//! Where the server must disconnect the client, the client waits for that, and reports an error if it waits too long.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use testkit::{
    TEST_TIMEOUT,
    websocket::{handshake_text, masked_frame},
};

use crate::{
    seeded_random::SeededRandom,
    server::{CLIENT_DEADLINE, KEY_COUNT},
};

/// What a client opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    /// An HTTP/1.1 request.
    Http1,
    /// A WebSocket over HTTP/1.1.
    WebSocket,
    /// An HTTP/2 request.
    Http2,
    /// A WebSocket over HTTP/2.
    Http2WebSocket,
}
use Protocol::{Http1, Http2, Http2WebSocket, WebSocket};

/// A kind of request: its name, its protocol, its query, and further lines of the head.
type RequestKind = (&'static str, Protocol, &'static str, &'static str);

const REQUEST_KINDS: [RequestKind; 15] = [
    ("SSE", Http1, "transport=sse", ""),
    ("NDJSON", Http1, "transport=ndjson", ""),
    ("JSON-seq", Http1, "transport=json-seq", ""),
    ("multipart", Http1, "transport=multipart", ""),
    ("raw", Http1, "transport=raw", ""),
    ("poll", Http1, "transport=long-poll", ""),
    ("poll by offset", Http1, "live=long-poll&offset=now", ""),
    ("SSE by offset", Http1, "live=sse&offset=-1", ""),
    ("WebSocket", WebSocket, "", ""),
    (
        "WebSocket, JSON",
        WebSocket,
        "",
        "sec-websocket-protocol: json.tower-push\r\n",
    ),
    (
        "WebSocket, nchan",
        WebSocket,
        "",
        "sec-websocket-protocol: ws+meta.nchan\r\n",
    ),
    (
        "WebSocket, deflate",
        WebSocket,
        "",
        "sec-websocket-extensions: permessage-deflate\r\n",
    ),
    ("SSE, HTTP/2", Http2, "transport=sse", ""),
    ("poll, HTTP/2", Http2, "transport=long-poll", ""),
    ("WebSocket, HTTP/2", Http2WebSocket, "", ""),
];

/// How a client misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behavior {
    /// Closes the connection.
    Close,
    /// Closes its half of the connection.
    HalfClose,
    /// Resets the connection.
    Reset,
    /// Neither reads nor answers pings.
    Silence,
    /// Reads single bytes.
    Trickle,
    /// Requests an endless stream, and stops reading.
    Stall,
    /// Sends random bytes instead of a request.
    Noise,
    /// Sends random bytes after a request.
    Garbage,
    /// Disconnects in the middle of a request.
    PartOfHead,
    /// Disconnects without waiting for the response.
    Abandon,
    /// Sends the same request several times without waiting.
    Pipeline,
    /// Sends an invalid or incomplete request body.
    BadBody,
    /// Cancels its HTTP/2 streams.
    Cancel,
    /// Violates the WebSocket protocol.
    BadFrame,
    /// Sends many messages, and closes properly.
    Talk,
}

impl Behavior {
    const ALL: [Self; 15] = [
        Self::Close,
        Self::HalfClose,
        Self::Reset,
        Self::Silence,
        Self::Trickle,
        Self::Stall,
        Self::Noise,
        Self::Garbage,
        Self::PartOfHead,
        Self::Abandon,
        Self::Pipeline,
        Self::BadBody,
        Self::Cancel,
        Self::BadFrame,
        Self::Talk,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::HalfClose => "half-close",
            Self::Reset => "reset",
            Self::Silence => "silence",
            Self::Trickle => "trickle",
            Self::Stall => "stall",
            Self::Noise => "noise",
            Self::Garbage => "garbage",
            Self::PartOfHead => "part of a head",
            Self::Abandon => "abandoned",
            Self::Pipeline => "pipelined",
            Self::BadBody => "bad body",
            Self::Cancel => "cancelled",
            Self::BadFrame => "bad frame",
            Self::Talk => "talk",
        }
    }

    /// Returns whether a client of `protocol` can behave so.
    fn applies_to(self, protocol: Protocol) -> bool {
        match self {
            Self::Pipeline | Self::BadBody => protocol == Http1,
            Self::Cancel => matches!(protocol, Http2 | Http2WebSocket),
            Self::BadFrame | Self::Talk => protocol == WebSocket,
            _ => true,
        }
    }
}

/// The paths of the requests. Some of their streams end by themselves.
const PATHS: [&str; 11] = [
    "/",
    "/",
    "/quiet",
    "/resumable",
    "/plain",
    "/flood",
    "/echo",
    "/ends",
    "/fails",
    "/expires",
    "/refuses",
];

/// The number of clients by kind of request and by behavior.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientTally(BTreeMap<(&'static str, &'static str), usize>);

impl ClientTally {
    pub(crate) fn add(&mut self, kind: (&'static str, &'static str)) {
        *self.0.entry(kind).or_default() += 1;
    }

    pub(crate) fn total(&self) -> usize {
        self.0.values().sum()
    }

    fn of(&self, request_kind: &str, behavior: Behavior) -> usize {
        let count = self
            .0
            .iter()
            .find(|(kind, _)| **kind == (request_kind, behavior.name()));
        count.map_or(0, |(_, count)| *count)
    }

    /// Prints a row for each behavior and a column for each protocol.
    pub(crate) fn print(&self) {
        let columns = [Http1, WebSocket, Http2, Http2WebSocket];
        println!(
            "{:16}{:>10}{:>12}{:>10}{:>14}",
            "behavior", "HTTP/1.1", "WebSocket", "HTTP/2", "HTTP/2 WS"
        );
        for behavior in Behavior::ALL {
            let counts = columns.map(|column| {
                let of_column = REQUEST_KINDS
                    .iter()
                    .filter(|(_, protocol, ..)| *protocol == column);
                of_column
                    .map(|(name, ..)| self.of(name, behavior))
                    .sum::<usize>()
            });
            let [http1, socket, http2, http2_socket] = counts;
            println!(
                "{:16}{http1:>10}{socket:>12}{http2:>10}{http2_socket:>14}",
                behavior.name()
            );
        }
        for (request_kind, ..) in REQUEST_KINDS {
            let count: usize = Behavior::ALL
                .iter()
                .map(|behavior| self.of(request_kind, *behavior))
                .sum();
            println!("{request_kind:24}{count:>8}");
        }
    }
}

/// Runs a random client. Returns its kind of request and its behavior.
pub(crate) async fn run_client(
    address: SocketAddr,
    mut random: SeededRandom,
) -> Result<(&'static str, &'static str), String> {
    let request_kind = random.choose(&REQUEST_KINDS);
    let behavior = std::iter::repeat_with(|| random.choose(&Behavior::ALL))
        .find(|behavior| behavior.applies_to(request_kind.1))
        .unwrap_or(Behavior::Close);
    let mut client = MisbehavingClient {
        path: random.choose(&PATHS),
        key: random.below(KEY_COUNT),
        socket: connect(address, behavior).await?,
        request_kind,
        random,
    };
    let misbehaving = timeout(3 * TEST_TIMEOUT, client.misbehave(behavior));
    let ended = misbehaving
        .await
        .unwrap_or_else(|_| Err("timeout".to_owned()));
    let (name, path) = (request_kind.0, client.path);
    ended.map_err(|error| format!("{name} of {path}, {}: {error}", behavior.name()))?;
    Ok((name, behavior.name()))
}

async fn connect(address: SocketAddr, behavior: Behavior) -> Result<TcpStream, String> {
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        if matches!(
            behavior,
            Behavior::Stall | Behavior::Trickle | Behavior::Silence
        ) {
            socket.set_recv_buffer_size(4096)?;
        }
        socket.connect(address).await
    };
    let connected = timeout(TEST_TIMEOUT, connecting).await;
    let connected = connected.map_err(|error| error.to_string())?;
    connected.map_err(|error| format!("connecting: {error}"))
}

struct MisbehavingClient {
    socket: TcpStream,
    request_kind: RequestKind,
    path: &'static str,
    key: usize,
    random: SeededRandom,
}

impl MisbehavingClient {
    async fn misbehave(&mut self, behavior: Behavior) -> Result<(), String> {
        if behavior == Behavior::Stall {
            self.path = "/flood";
        }
        let request = self.request();
        match behavior {
            Behavior::Close => {
                self.send_request(&request).await;
            }
            Behavior::Reset => {
                self.send_request(&request).await;
                self.reset();
            }
            Behavior::HalfClose => {
                self.send_request(&request).await;
                let _ = self.socket.shutdown().await;
                self.wait_for_disconnect().await?;
            }
            Behavior::Silence => {
                self.write(&request).await;
                self.pause(600).await;
                // The server may keep an HTTP/1.1 stream without events open, so the client does not wait for its end.
                if self.random.below(4) == 0 && self.request_kind.1 != Http1 {
                    self.wait_for_disconnect().await?;
                }
            }
            Behavior::Trickle => {
                self.write(&request).await;
                for _ in 0..self.random.below(30) {
                    let _ = timeout(Duration::from_millis(50), self.socket.read_u8()).await;
                    self.pause(20).await;
                }
            }
            Behavior::Stall => {
                self.send_request(&request).await;
                self.wait_for_disconnect_while_stalled().await?;
            }
            Behavior::Noise => {
                let noise = self.random.random_bytes(600);
                self.write(&noise).await;
                self.disconnect().await;
            }
            Behavior::Garbage => {
                self.send_request(&request).await;
                for _ in 0..self.random.below(4) {
                    let noise = self.random.random_bytes(2000);
                    self.write(&noise).await;
                    self.read_some().await;
                }
                self.disconnect().await;
            }
            Behavior::PartOfHead => {
                let part = self.random.below(request.len());
                self.write(&request[..part]).await;
                self.disconnect().await;
            }
            Behavior::Abandon => {
                self.write(&request).await;
                self.disconnect().await;
            }
            Behavior::Pipeline => {
                let times = 2 + self.random.below(4);
                self.write(&request.repeat(times)).await;
                self.read_some().await;
                self.disconnect().await;
            }
            Behavior::BadBody => self.send_bad_body().await,
            Behavior::Cancel => self.cancel_streams(&request).await,
            Behavior::BadFrame => {
                self.send_request(&request).await;
                self.send_bad_frame().await;
                self.wait_for_disconnect().await?;
            }
            Behavior::Talk => {
                self.send_request(&request).await;
                self.send_messages().await?;
            }
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) {
        // The write may block, because the server may stop reading from a client that does not read.
        let _ = timeout(Duration::from_secs(1), self.socket.write_all(bytes)).await;
    }

    /// Sends a request and reads a part of the response.
    async fn send_request(&mut self, request: &[u8]) {
        self.write(request).await;
        self.read_some().await;
    }

    /// Reads a few chunks, if any arrive.
    async fn read_some(&mut self) {
        let mut piece = [0; 2048];
        for _ in 0..1 + self.random.below(4) {
            let read = timeout(Duration::from_millis(200), self.socket.read(&mut piece)).await;
            if !matches!(read, Ok(Ok(1..))) {
                break;
            }
        }
    }

    /// Sleeps for a random time below `max_ms` milliseconds.
    async fn pause(&mut self, max_ms: usize) {
        sleep(Duration::from_millis(self.random.below(max_ms) as u64)).await;
    }

    fn reset(&self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// Disconnects after a short time: with a reset, with a half-close, or with a close.
    async fn disconnect(&mut self) {
        self.pause(200).await;
        match self.random.below(3) {
            0 => self.reset(),
            1 => drop(self.socket.shutdown().await),
            _ => {}
        }
    }

    /// Waits until the server disconnects this client, which does not read meanwhile. The client sees the end only after it has read the
    /// kernel's buffers. If it reads more than that, the server was late, and the client stalls again.
    async fn wait_for_disconnect_while_stalled(&mut self) -> Result<(), String> {
        let mut piece = vec![0; 16 * 1024];
        for _ in 0..5 {
            sleep(3 * CLIENT_DEADLINE).await;
            let mut left = 1024 * 1024;
            while left > 0 {
                let read = timeout(TEST_TIMEOUT, self.socket.read(&mut piece)).await;
                match read.map_err(|_| "neither an end nor any bytes")? {
                    Ok(read @ 1..) => left -= read.min(left),
                    _ => return Ok(()),
                }
            }
        }
        Err("the server should have disconnected the client".to_owned())
    }

    /// Reads until the server closes the connection.
    async fn wait_for_disconnect(&mut self) -> Result<(), String> {
        let reading = async {
            let mut piece = vec![0; 16 * 1024];
            while matches!(self.socket.read(&mut piece).await, Ok(1..)) {}
        };
        let ended = timeout(TEST_TIMEOUT, reading).await;
        ended.map_err(|_| "the server should have disconnected the client".to_owned())
    }

    /// Sends a request body that is incomplete, has an invalid chunk, or is longer than announced.
    async fn send_bad_body(&mut self) {
        let request = String::from_utf8(self.request()).unwrap_or_default();
        let request = request.replacen("GET", "POST", 1);
        let head = request.trim_end();
        let body = self.random.choose(&[
            "transfer-encoding: chunked\r\n\r\nzz\r\nno chunk\r\n",
            "transfer-encoding: chunked\r\n\r\n5\r\nhello",
            "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
            "content-length: 100\r\n\r\nless",
            "content-length: 3\r\n\r\nmore than that",
            "content-length: -1\r\n\r\n",
            "expect: 100-continue\r\ncontent-length: 10\r\n\r\n",
        ]);
        self.send_request(format!("{head}\r\n{body}").as_bytes())
            .await;
        self.disconnect().await;
    }

    /// Opens more HTTP/2 streams on the connection, and cancels most of them.
    async fn cancel_streams(&mut self, request: &[u8]) {
        self.send_request(request).await;
        let streams = 1 + self.random.below(10) as u32;
        for stream in (1..=streams).map(|n| 2 * n + 1) {
            let headers = self.headers_frame(stream);
            self.write(&headers).await;
        }
        self.read_some().await;
        for stream in (0..=streams).map(|n| 2 * n + 1) {
            if self.random.below(4) > 0 {
                let code = [0, 0, 0, self.random.choose(&[0, 8, 11])];
                self.write(&http2_frame(3, 0, stream, &code)).await;
            }
        }
        self.read_some().await;
        self.disconnect().await;
    }

    /// Sends an invalid frame, and then the beginning of a message.
    async fn send_bad_frame(&mut self) {
        let frames: [Vec<u8>; 9] = [
            // A frame without a mask, one with reserved bits, and one with an undefined opcode.
            vec![0x81, 5, b'h', b'e', b'l', b'l', b'o'],
            masked_frame(0xf1, b"hello"),
            masked_frame(0x83, b"hello"),
            // A continuation without a message, a fragmented ping, and a ping that is too long.
            masked_frame(0x80, b"hello"),
            masked_frame(0x09, b"hello"),
            masked_frame(0x89, &[0; 126]),
            // A text that is not UTF-8, an invalid close code, and a message that is too large.
            masked_frame(0x81, &[0xff, 0xfe]),
            masked_frame(0x88, &[0, 1]),
            [&[0x82, 0xff][..], &[0x80, 0, 0, 0, 0, 0, 0, 0], &[0; 4]].concat(),
        ];
        let bad = &frames[self.random.below(frames.len())];
        self.write(bad).await;
        // The server has stopped reading, so this incomplete message must not matter.
        self.write(&masked_frame(0x01, b"and so on")[..8]).await;
    }

    /// Sends messages, pings and fragments, and then a close or an incomplete message.
    async fn send_messages(&mut self) -> Result<(), String> {
        for _ in 0..self.random.below(20) {
            let length = self.random.choose(&[0, 5, 200, 5000]);
            let payload = vec![b'x'; length];
            let frame = match self.random.below(4) {
                0 => masked_frame(0x89, &payload[..length.min(125)]),
                1 => [masked_frame(0x01, &payload), masked_frame(0x80, &payload)].concat(),
                _ => masked_frame(0x81, &payload),
            };
            self.write(&frame).await;
            if self.random.below(3) == 0 {
                self.read_some().await;
            }
        }
        match self.random.below(3) {
            // This message stays incomplete, and the server closes at its deadline.
            0 => self.write(&masked_frame(0x01, b"once")).await,
            1 => {
                self.write(&masked_frame(0x88, &1000_u16.to_be_bytes()))
                    .await
            }
            _ => {
                self.write(&masked_frame(0x88, b"")).await;
                self.disconnect().await;
                return Ok(());
            }
        }
        self.wait_for_disconnect().await
    }

    /// Returns the target of the request.
    fn target(&self) -> String {
        let (_, _, query, _) = self.request_kind;
        format!("{}?{query}&key={}", self.path, self.key)
    }

    /// Returns the bytes of the request.
    fn request(&self) -> Vec<u8> {
        let (_, protocol, _, lines) = self.request_kind;
        let target = self.target();
        match protocol {
            Http1 => format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes(),
            WebSocket => {
                handshake_text(&target, &format!("host: localhost\r\n{lines}")).into_bytes()
            }
            Http2 | Http2WebSocket => {
                let settings = http2_frame(4, 0, 0, &[]);
                [HTTP2_PREFACE, &settings, &self.headers_frame(1)].concat()
            }
        }
    }

    /// Returns an HTTP/2 HEADERS frame with the request. Its fields are indices of HPACK's static table or literals.
    fn headers_frame(&self, stream: u32) -> Vec<u8> {
        let target = self.target();
        // The indices stand for `:scheme: http`, `:path` and `:authority`.
        let mut block = vec![0x86];
        push_hpack_field(&mut block, &[0x04], &target);
        push_hpack_field(&mut block, &[0x01], "localhost");
        let is_websocket = self.request_kind.1 == Http2WebSocket;
        if is_websocket {
            // The index stands for `:method`. The names of the other two fields are literals.
            push_hpack_field(&mut block, &[0x02], "CONNECT");
            push_hpack_field(&mut block, b"\0\x09:protocol", "websocket");
            push_hpack_field(&mut block, b"\0\x15sec-websocket-version", "13");
        } else {
            block.push(0x82);
        }
        // The flags are END_HEADERS, and END_STREAM if no data follows.
        http2_frame(1, if is_websocket { 4 } else { 5 }, stream, &block)
    }
}

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns the bytes of an HTTP/2 frame.
fn http2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Appends a literal HPACK field. `name` is an encoded name or index.
fn push_hpack_field(block: &mut Vec<u8>, name: &[u8], value: &str) {
    block.extend(name);
    // The value must be shorter than 127 bytes, so that its length fits into seven bits.
    block.push(value.len() as u8);
    block.extend(value.as_bytes());
}
