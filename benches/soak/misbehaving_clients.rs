//! Clients that misbehave, over plain sockets: each opens a stream, or something like one, and leaves in its way.
//!
//! Where the server is the one to end it, the client waits for that, and its wait is an error if it is for nothing.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use testkit::{
    TEST_TIMEOUT,
    websocket::{SAMPLE_KEY, masked_frame},
};

use crate::{
    seeded_random::Dice,
    server::{KEYS, PATIENCE},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    /// A request with HTTP/1.1.
    Http1,
    /// An upgrade to a WebSocket.
    Socket,
    Http2,
    /// A WebSocket over HTTP/2.
    Http2Socket,
}
use Protocol::{Http1, Http2, Http2Socket, Socket};

/// What is asked for: a name, a protocol, a query, and more lines of the head.
type Asked = (&'static str, Protocol, &'static str, &'static str);

const ASKED: [Asked; 15] = [
    ("SSE", Http1, "transport=sse", ""),
    ("NDJSON", Http1, "transport=ndjson", ""),
    ("JSON-seq", Http1, "transport=json-seq", ""),
    ("multipart", Http1, "transport=multipart", ""),
    ("raw", Http1, "transport=raw", ""),
    ("poll", Http1, "transport=long-poll", ""),
    ("poll by offset", Http1, "live=long-poll&offset=now", ""),
    ("SSE by offset", Http1, "live=sse&offset=-1", ""),
    ("WebSocket", Socket, "", ""),
    (
        "WebSocket, JSON",
        Socket,
        "",
        "sec-websocket-protocol: json.tower-push\r\n",
    ),
    (
        "WebSocket, nchan",
        Socket,
        "",
        "sec-websocket-protocol: ws+meta.nchan\r\n",
    ),
    (
        "WebSocket, deflate",
        Socket,
        "",
        "sec-websocket-extensions: permessage-deflate\r\n",
    ),
    ("SSE, HTTP/2", Http2, "transport=sse", ""),
    ("poll, HTTP/2", Http2, "transport=long-poll", ""),
    ("WebSocket, HTTP/2", Http2Socket, "", ""),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Close,
    HalfClose,
    Reset,
    /// Neither reads nor answers.
    Silence,
    /// Reads a byte now and then.
    Trickle,
    /// Has asked for a flood, and reads no more.
    Stall,
    /// Noise instead of a request.
    Noise,
    /// Noise behind a request.
    Garbage,
    /// Closes in the middle of a request.
    PartOfHead,
    /// Does not wait for the answer.
    Abandon,
    /// The same request some times over, without waiting.
    Pipeline,
    /// A body that is none, or that never comes.
    BadBody,
    /// Cancels its HTTP/2 streams.
    Cancel,
    /// Breaks the WebSocket protocol.
    BadFrame,
    /// Says a lot, and closes as one should.
    Talk,
}

impl Way {
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

    fn fits(self, protocol: Protocol) -> bool {
        match self {
            Self::Pipeline | Self::BadBody => protocol == Http1,
            Self::Cancel => matches!(protocol, Http2 | Http2Socket),
            Self::BadFrame | Self::Talk => protocol == Socket,
            _ => true,
        }
    }
}

/// Some of them end by themselves.
const PATHS: [&str; 11] = [
    "/", "/", "/quiet", "/kept", "/plain", "/flood", "/said", "/ends", "/fails", "/expires",
    "/refuses",
];

/// How many there were, by what they asked for and how they left.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(BTreeMap<(&'static str, &'static str), usize>);

impl Tally {
    pub(crate) fn add(&mut self, kind: (&'static str, &'static str)) {
        *self.0.entry(kind).or_default() += 1;
    }

    pub(crate) fn total(&self) -> usize {
        self.0.values().sum()
    }

    fn of(&self, asked: &str, way: Way) -> usize {
        let count = self
            .0
            .iter()
            .find(|(kind, _)| **kind == (asked, way.name()));
        count.map_or(0, |(_, count)| *count)
    }

    /// A row for each way, a column for each protocol.
    pub(crate) fn print(&self) {
        let columns = [Http1, Socket, Http2, Http2Socket];
        println!(
            "{:16}{:>10}{:>12}{:>10}{:>14}",
            "left by", "HTTP/1.1", "WebSocket", "HTTP/2", "its WebSocket"
        );
        for way in Way::ALL {
            let counts = columns.map(|column| {
                let of_column = ASKED.iter().filter(|(_, protocol, ..)| *protocol == column);
                of_column
                    .map(|(name, ..)| self.of(name, way))
                    .sum::<usize>()
            });
            let [http1, socket, http2, http2_socket] = counts;
            println!(
                "{:16}{http1:>10}{socket:>12}{http2:>10}{http2_socket:>14}",
                way.name()
            );
        }
        for (asked, ..) in ASKED {
            let count: usize = Way::ALL.iter().map(|way| self.of(asked, *way)).sum();
            println!("{asked:24}{count:>8}");
        }
    }
}

/// One of them, from its beginning to its end: what it was.
pub(crate) async fn run(
    address: SocketAddr,
    mut dice: Dice,
) -> Result<(&'static str, &'static str), String> {
    let asked = dice.pick(&ASKED);
    let way = std::iter::repeat_with(|| dice.pick(&Way::ALL))
        .find(|way| way.fits(asked.1))
        .unwrap_or(Way::Close);
    let mut hooligan = Hooligan {
        path: dice.pick(&PATHS),
        key: dice.below(KEYS),
        socket: connect(address, way).await?,
        asked,
        dice,
    };
    let misbehaving = timeout(3 * TEST_TIMEOUT, hooligan.misbehave(way));
    let ended = misbehaving
        .await
        .unwrap_or_else(|_| Err("it takes for ever".to_owned()));
    let (name, path) = (asked.0, hooligan.path);
    ended.map_err(|error| format!("{name} of {path}, {}: {error}", way.name()))?;
    Ok((name, way.name()))
}

async fn connect(address: SocketAddr, way: Way) -> Result<TcpStream, String> {
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        if matches!(way, Way::Stall | Way::Trickle | Way::Silence) {
            socket.set_recv_buffer_size(4096)?;
        }
        socket.connect(address).await
    };
    let connected = timeout(TEST_TIMEOUT, connecting).await;
    let connected = connected.map_err(|error| error.to_string())?;
    connected.map_err(|error| format!("connecting: {error}"))
}

struct Hooligan {
    socket: TcpStream,
    asked: Asked,
    path: &'static str,
    key: usize,
    dice: Dice,
}

impl Hooligan {
    async fn misbehave(&mut self, way: Way) -> Result<(), String> {
        if way == Way::Stall {
            self.path = "/flood";
        }
        let request = self.request();
        match way {
            Way::Close => {
                self.ask(&request).await;
            }
            Way::Reset => {
                self.ask(&request).await;
                self.reset();
            }
            Way::HalfClose => {
                self.ask(&request).await;
                let _ = self.socket.shutdown().await;
                self.is_put_out().await?;
            }
            Way::Silence => {
                self.write(&request).await;
                self.pause(600).await;
                // Nobody minds a stream that has nothing to read.
                if self.dice.below(4) == 0 && self.asked.1 != Http1 {
                    self.is_put_out().await?;
                }
            }
            Way::Trickle => {
                self.write(&request).await;
                for _ in 0..self.dice.below(30) {
                    let _ = timeout(Duration::from_millis(50), self.socket.read_u8()).await;
                    self.pause(20).await;
                }
            }
            Way::Stall => {
                self.ask(&request).await;
                self.is_put_out_where_it_stalls().await?;
            }
            Way::Noise => {
                let noise = self.dice.noise(600);
                self.write(&noise).await;
                self.leave().await;
            }
            Way::Garbage => {
                self.ask(&request).await;
                for _ in 0..self.dice.below(4) {
                    let noise = self.dice.noise(2000);
                    self.write(&noise).await;
                    self.read_some().await;
                }
                self.leave().await;
            }
            Way::PartOfHead => {
                let part = self.dice.below(request.len());
                self.write(&request[..part]).await;
                self.leave().await;
            }
            Way::Abandon => {
                self.write(&request).await;
                self.leave().await;
            }
            Way::Pipeline => {
                let times = 2 + self.dice.below(4);
                self.write(&request.repeat(times)).await;
                self.read_some().await;
                self.leave().await;
            }
            Way::BadBody => self.bad_body().await,
            Way::Cancel => self.cancel(&request).await,
            Way::BadFrame => {
                self.ask(&request).await;
                self.bad_frame().await;
                self.is_put_out().await?;
            }
            Way::Talk => {
                self.ask(&request).await;
                self.talk().await?;
            }
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) {
        // Who does not read may not be read either.
        let _ = timeout(Duration::from_secs(1), self.socket.write_all(bytes)).await;
    }

    async fn ask(&mut self, request: &[u8]) {
        self.write(request).await;
        self.read_some().await;
    }

    /// What comes, in some pieces, if anything does.
    async fn read_some(&mut self) {
        let mut piece = [0; 2048];
        for _ in 0..1 + self.dice.below(4) {
            let read = timeout(Duration::from_millis(200), self.socket.read(&mut piece)).await;
            if !matches!(read, Ok(Ok(1..))) {
                break;
            }
        }
    }

    async fn pause(&mut self, most: usize) {
        sleep(Duration::from_millis(self.dice.below(most) as u64)).await;
    }

    fn reset(&self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// Now or soon, in one of three ways.
    async fn leave(&mut self) {
        self.pause(200).await;
        match self.dice.below(3) {
            0 => self.reset(),
            1 => drop(self.socket.shutdown().await),
            _ => {}
        }
    }

    /// The same for one that does not read. What is in the kernel's buffers has to be read before the end is seen; if it was not
    /// the end, then some more is, and on a busy machine it stalls once more.
    async fn is_put_out_where_it_stalls(&mut self) -> Result<(), String> {
        let mut piece = vec![0; 16 * 1024];
        for _ in 0..5 {
            sleep(3 * PATIENCE).await;
            let mut left = 1024 * 1024;
            while left > 0 {
                let read = timeout(TEST_TIMEOUT, self.socket.read(&mut piece)).await;
                match read.map_err(|_| "neither an end nor anything to read")? {
                    Ok(read @ 1..) => left -= read.min(left),
                    _ => return Ok(()),
                }
            }
        }
        Err("the server should have put it out".to_owned())
    }

    /// Reads until the server ends it.
    async fn is_put_out(&mut self) -> Result<(), String> {
        let reading = async {
            let mut piece = vec![0; 16 * 1024];
            while matches!(self.socket.read(&mut piece).await, Ok(1..)) {}
        };
        let ended = timeout(TEST_TIMEOUT, reading).await;
        ended.map_err(|_| "the server should have put it out".to_owned())
    }

    /// A request body that breaks off, is no chunk, or is longer than it said.
    async fn bad_body(&mut self) {
        let request = String::from_utf8(self.request()).unwrap_or_default();
        let request = request.replacen("GET", "POST", 1);
        let head = request.trim_end();
        let body = self.dice.pick(&[
            "transfer-encoding: chunked\r\n\r\nzz\r\nno chunk\r\n",
            "transfer-encoding: chunked\r\n\r\n5\r\nhello",
            "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
            "content-length: 100\r\n\r\nless",
            "content-length: 3\r\n\r\nmore than that",
            "content-length: -1\r\n\r\n",
            "expect: 100-continue\r\ncontent-length: 10\r\n\r\n",
        ]);
        self.ask(format!("{head}\r\n{body}").as_bytes()).await;
        self.leave().await;
    }

    /// Opens some more streams on its connection, and cancels most of them.
    async fn cancel(&mut self, request: &[u8]) {
        self.ask(request).await;
        let streams = 1 + self.dice.below(10) as u32;
        for stream in (1..=streams).map(|n| 2 * n + 1) {
            let headers = self.headers(stream);
            self.write(&headers).await;
        }
        self.read_some().await;
        for stream in (0..=streams).map(|n| 2 * n + 1) {
            if self.dice.below(4) > 0 {
                let code = [0, 0, 0, self.dice.pick(&[0, 8, 11])];
                self.write(&frame(3, 0, stream, &code)).await;
            }
        }
        self.read_some().await;
        self.leave().await;
    }

    async fn bad_frame(&mut self) {
        let frames: [Vec<u8>; 9] = [
            // Not masked; reserved bits; opcodes that are none.
            vec![0x81, 5, b'h', b'e', b'l', b'l', b'o'],
            masked_frame(0xf1, b"hello"),
            masked_frame(0x83, b"hello"),
            // A continuation of nothing; a ping in fragments; one that is too long.
            masked_frame(0x80, b"hello"),
            masked_frame(0x09, b"hello"),
            masked_frame(0x89, &[0; 126]),
            // Not UTF-8; a close code that is none; larger than allowed.
            masked_frame(0x81, &[0xff, 0xfe]),
            masked_frame(0x88, &[0, 1]),
            [&[0x82, 0xff][..], &[0x80, 0, 0, 0, 0, 0, 0, 0], &[0; 4]].concat(),
        ];
        let bad = &frames[self.dice.below(frames.len())];
        self.write(bad).await;
        // And a message that is never whole, which nobody listens to any more.
        self.write(&masked_frame(0x01, b"and so on")[..8]).await;
    }

    /// Messages, pings and fragments, and in the end a close.
    async fn talk(&mut self) -> Result<(), String> {
        for _ in 0..self.dice.below(20) {
            let length = self.dice.pick(&[0, 5, 200, 5000]);
            let payload = vec![b'x'; length];
            let frame = match self.dice.below(4) {
                0 => masked_frame(0x89, &payload[..length.min(125)]),
                1 => [masked_frame(0x01, &payload), masked_frame(0x80, &payload)].concat(),
                _ => masked_frame(0x81, &payload),
            };
            self.write(&frame).await;
            if self.dice.below(3) == 0 {
                self.read_some().await;
            }
        }
        match self.dice.below(3) {
            // A message that breaks off: it has its deadline.
            0 => self.write(&masked_frame(0x01, b"once")).await,
            1 => {
                self.write(&masked_frame(0x88, &1000_u16.to_be_bytes()))
                    .await
            }
            _ => {
                self.write(&masked_frame(0x88, b"")).await;
                self.leave().await;
                return Ok(());
            }
        }
        self.is_put_out().await
    }

    /// The target of a request.
    fn target(&self) -> String {
        let (_, _, query, _) = self.asked;
        format!("{}?{query}&key={}", self.path, self.key)
    }

    fn request(&self) -> Vec<u8> {
        let (_, protocol, _, lines) = self.asked;
        let target = self.target();
        match protocol {
            Http1 => format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes(),
            Socket => format!(
                "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: {SAMPLE_KEY}\r\n{lines}\r\n"
            )
            .into_bytes(),
            Http2 | Http2Socket => {
                let settings = frame(4, 0, 0, &[]);
                [PREFACE, &settings, &self.headers(1)].concat()
            }
        }
    }

    /// A request as an HTTP/2 frame, its fields by number in HPACK's table or as they are.
    fn headers(&self, stream: u32) -> Vec<u8> {
        let target = self.target();
        // :scheme http, :path, :authority
        let mut block = vec![0x86];
        field(&mut block, &[0x04], &target);
        field(&mut block, &[0x01], "localhost");
        let is_socket = self.asked.1 == Http2Socket;
        if is_socket {
            // :method, and two with names of their own
            field(&mut block, &[0x02], "CONNECT");
            field(&mut block, b"\0\x09:protocol", "websocket");
            field(&mut block, b"\0\x15sec-websocket-version", "13");
        } else {
            block.push(0x82);
        }
        // END_HEADERS, and END_STREAM where nothing follows.
        frame(1, if is_socket { 4 } else { 5 }, stream, &block)
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn field(block: &mut Vec<u8>, name: &[u8], value: &str) {
    block.extend(name);
    // Short enough for seven bits.
    block.push(value.len() as u8);
    block.extend(value.as_bytes());
}
