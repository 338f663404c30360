//! The clients: plain sockets, which parse only the headers of frames, and count.

use std::{
    cell::Cell,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{io::AsyncBufReadExt, runtime::Builder, sync::Notify, task::LocalSet};

use testkit::websocket::handshake_text;

use crate::BoxError;

/// Opens a WebSocket, and waits for the head of the response, which means that the client is subscribed.
pub(crate) fn connect(
    address: SocketAddr,
    path: &str,
    with_deflate: bool,
) -> Result<TcpStream, BoxError> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let header_lines = match with_deflate {
        true => "host: localhost\r\nsec-websocket-extensions: permessage-deflate\r\n",
        false => "host: localhost\r\n",
    };
    let request = handshake_text(path, header_lines);
    socket.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    if !head.starts_with("http/1.1 101") || head.contains("permessage-deflate") != with_deflate {
        return Err(format!("unexpected response: {head}").into());
    }
    Ok(socket)
}

/// Runs the clients' process. The process prints a line when all clients are connected. Then, for each number on standard input, the process
/// prints the number of payload bytes when every client has received that many more messages.
pub(crate) fn run_clients(
    address: SocketAddr,
    clients: usize,
    with_deflate: bool,
) -> Result<(), BoxError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let received = Rc::new(MessageCounter::default());
    LocalSet::new().block_on(&runtime, async {
        for _ in 0..clients {
            let socket = connect(address, "/follow", with_deflate)?;
            socket.set_nonblocking(true)?;
            let socket = tokio::net::TcpStream::from_std(socket)?;
            tokio::task::spawn_local(read_connection(socket, received.clone()));
        }
        println!("connected");
        let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let bytes = received.wait(line.parse::<usize>()? * clients).await;
            println!("{bytes}");
        }
        Ok(())
    })
}

async fn read_connection(socket: tokio::net::TcpStream, received: Rc<MessageCounter>) {
    let mut frames = FrameReader::default();
    while socket.readable().await.is_ok() {
        match read(&socket, &mut frames, &received) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    eprintln!("a connection was cut off");
    std::process::exit(1);
}

fn read(
    socket: &tokio::net::TcpStream,
    frames: &mut FrameReader,
    received: &MessageCounter,
) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    let read = socket.try_read(&mut buffer)?;
    let outcome = frames.read(&buffer[..read]);
    if outcome.has_close || read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if outcome.has_ping {
        socket.try_write(PONG_FRAME)?;
    }
    received.add(outcome.messages, outcome.bytes);
    Ok(())
}

/// A pong that is masked with zeros.
const PONG_FRAME: &[u8] = &[0x8a, 0x80, 0, 0, 0, 0];

/// Parses the frames of one connection.
#[derive(Default)]
struct FrameReader {
    header: [u8; 10],
    header_len: usize,
    is_in_payload: bool,
    payload_left: usize,
}

/// What a read has found.
#[derive(Default)]
struct ReadOutcome {
    messages: usize,
    bytes: usize,
    has_ping: bool,
    has_close: bool,
}

impl FrameReader {
    fn read(&mut self, mut bytes: &[u8]) -> ReadOutcome {
        let mut outcome = ReadOutcome::default();
        loop {
            if self.is_in_payload {
                let skipped = self.payload_left.min(bytes.len());
                self.payload_left -= skipped;
                bytes = &bytes[skipped..];
                if self.payload_left > 0 {
                    return outcome;
                }
                self.is_in_payload = false;
            }
            let Some((byte, rest)) = bytes.split_first() else {
                return outcome;
            };
            bytes = rest;
            self.header[self.header_len] = *byte;
            self.header_len += 1;
            if let Some(len) = self.payload_len() {
                self.is_in_payload = true;
                self.payload_left = len;
                match self.header[0] & 0xf {
                    8 => outcome.has_close = true,
                    9 => outcome.has_ping = true,
                    _ => {
                        outcome.messages += 1;
                        outcome.bytes += len;
                    }
                }
            }
        }
    }

    /// Returns the payload's length if the header is complete.
    fn payload_len(&mut self) -> Option<usize> {
        let header = &self.header[..self.header_len];
        let long = match header.get(1)? & 127 {
            126 => header.get(2..4)?,
            127 => header.get(2..10)?,
            short => {
                self.header_len = 0;
                return Some(short.into());
            }
        };
        let len = long
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte));
        self.header_len = 0;
        Some(len)
    }
}

/// Counts the messages and bytes of all clients since the last wait.
#[derive(Default)]
struct MessageCounter {
    messages: Cell<usize>,
    bytes: Cell<usize>,
    wanted: Cell<usize>,
    all_received: Notify,
}

impl MessageCounter {
    fn add(&self, messages: usize, bytes: usize) {
        self.messages.set(self.messages.get() + messages);
        self.bytes.set(self.bytes.get() + bytes);
        if self.messages.get() >= self.wanted.get() {
            self.all_received.notify_one();
        }
    }

    async fn wait(&self, wanted: usize) -> usize {
        self.wanted.set(wanted);
        while self.messages.get() < wanted {
            self.all_received.notified().await;
        }
        assert_eq!(self.messages.take(), wanted, "more messages than expected");
        self.bytes.take()
    }
}

/// What one connection does, and the size and number of its messages.
#[derive(Clone, Copy)]
pub(crate) struct ConnectionTask {
    /// The path of the request: `send`, `take` or `echo`.
    pub(crate) task: &'static str,
    pub(crate) size: usize,
    pub(crate) count: usize,
}

impl ConnectionTask {
    /// Runs the task, and returns its time.
    pub(crate) fn run(&self, address: SocketAddr) -> Result<Duration, BoxError> {
        let Self {
            task, size, count, ..
        } = self;
        let path = format!("/{task}?size={size}&count={count}");
        let mut socket = connect(address, &path, false)?;
        let start = Instant::now();
        match self.task {
            "send" => read_exactly(&mut socket, count * (header_len(*size) + size))?,
            "echo" => {
                let frame = masked_text_frame(*size);
                for _ in 0..*count {
                    socket.write_all(&frame)?;
                    read_exactly(&mut socket, header_len(*size) + size)?;
                }
            }
            _ => {
                let frame = masked_text_frame(*size);
                let frames_per_write = (256 * 1024 / frame.len()).max(1);
                let frames = frame.repeat(frames_per_write);
                let mut left = *count;
                while left > 0 {
                    let next = left.min(frames_per_write);
                    socket.write_all(&frames[..next * frame.len()])?;
                    left -= next;
                }
                read_exactly(&mut socket, 2 + super::server::TAKEN_MESSAGE.len())?;
            }
        }
        Ok(start.elapsed())
    }
}

/// Reads exactly this many bytes. Returns an error if more arrive.
fn read_exactly(socket: &mut TcpStream, mut bytes: usize) -> io::Result<()> {
    let mut buffer = [0; 256 * 1024];
    while bytes > 0 {
        match socket.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read if read > bytes => {
                return Err(io::Error::other("more bytes arrived than were sent"));
            }
            read => bytes -= read,
        }
    }
    Ok(())
}

/// Returns the length of a frame's header, without a mask.
pub(crate) fn header_len(payload: usize) -> usize {
    match payload {
        0..126 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// Returns the frame of a text message, as a client sends it.
fn masked_text_frame(size: usize) -> Vec<u8> {
    let mut frame = vec![0x81];
    match header_len(size) {
        2 => frame.push(0x80 | size as u8),
        4 => {
            frame.push(0x80 | 126);
            frame.extend((size as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((size as u64).to_be_bytes());
        }
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    frame.extend(mask);
    let text = b"0123456789abcdef".iter().cycle().take(size);
    frame.extend(
        text.zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}
