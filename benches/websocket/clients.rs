//! The clients: plain sockets, that look at the headers of frames and count.

use std::{
    cell::Cell,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{io::AsyncBufReadExt, runtime::Builder, sync::Notify, task::LocalSet};

use crate::BoxError;

/// All send the nonce of RFC 6455 §1.3.
pub(crate) const NONCE: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Asks for a WebSocket, and waits for the head of the answer: so it is subscribed.
pub(crate) fn connect(
    address: SocketAddr,
    path: &str,
    deflates: bool,
) -> Result<TcpStream, BoxError> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let extensions = match deflates {
        true => "sec-websocket-extensions: permessage-deflate\r\n",
        false => "",
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {NONCE}\r\n{extensions}\r\n"
    );
    socket.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    if !head.starts_with("http/1.1 101") || head.contains("permessage-deflate") != deflates {
        return Err(format!("not what was asked for: {head}").into());
    }
    Ok(socket)
}

/// The clients' process: says when they are connected, and then, for each line with a number, when each has got so many more
/// messages, and how many bytes of payload these were.
pub(crate) fn receive(address: SocketAddr, clients: usize, deflates: bool) -> Result<(), BoxError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let received = Rc::new(Received::default());
    LocalSet::new().block_on(&runtime, async {
        for _ in 0..clients {
            let socket = connect(address, "/follow", deflates)?;
            socket.set_nonblocking(true)?;
            let socket = tokio::net::TcpStream::from_std(socket)?;
            tokio::task::spawn_local(client(socket, received.clone()));
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

async fn client(socket: tokio::net::TcpStream, received: Rc<Received>) {
    let mut frames = Frames::default();
    while socket.readable().await.is_ok() {
        match read(&socket, &mut frames, &received) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    eprintln!("a connection was cut");
    std::process::exit(1);
}

fn read(
    socket: &tokio::net::TcpStream,
    frames: &mut Frames,
    received: &Received,
) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    let read = socket.try_read(&mut buffer)?;
    let came = frames.read(&buffer[..read]);
    if came.is_over || read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if came.is_pinged {
        socket.try_write(PONG)?;
    }
    received.add(came.messages, came.bytes);
    Ok(())
}

/// Masked with zeros.
const PONG: &[u8] = &[0x8a, 0x80, 0, 0, 0, 0];

/// Where one connection is in what it reads.
#[derive(Default)]
struct Frames {
    header: [u8; 10],
    header_len: usize,
    is_in_payload: bool,
    payload_left: usize,
}

#[derive(Default)]
struct Came {
    messages: usize,
    bytes: usize,
    is_pinged: bool,
    is_over: bool,
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8]) -> Came {
        let mut came = Came::default();
        loop {
            if self.is_in_payload {
                let skipped = self.payload_left.min(bytes.len());
                self.payload_left -= skipped;
                bytes = &bytes[skipped..];
                if self.payload_left > 0 {
                    return came;
                }
                self.is_in_payload = false;
            }
            let Some((byte, rest)) = bytes.split_first() else {
                return came;
            };
            bytes = rest;
            self.header[self.header_len] = *byte;
            self.header_len += 1;
            if let Some(len) = self.payload_len() {
                self.is_in_payload = true;
                self.payload_left = len;
                match self.header[0] & 0xf {
                    8 => came.is_over = true,
                    9 => came.is_pinged = true,
                    _ => {
                        came.messages += 1;
                        came.bytes += len;
                    }
                }
            }
        }
    }

    /// Once the header is whole.
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

/// What came, over all clients, since it was last waited for.
#[derive(Default)]
struct Received {
    messages: Cell<usize>,
    bytes: Cell<usize>,
    wanted: Cell<usize>,
    all: Notify,
}

impl Received {
    fn add(&self, messages: usize, bytes: usize) {
        self.messages.set(self.messages.get() + messages);
        self.bytes.set(self.bytes.get() + bytes);
        if self.messages.get() >= self.wanted.get() {
            self.all.notify_one();
        }
    }

    async fn wait(&self, wanted: usize) -> usize {
        self.wanted.set(wanted);
        while self.messages.get() < wanted {
            self.all.notified().await;
        }
        assert_eq!(self.messages.take(), wanted, "a message came twice");
        self.bytes.take()
    }
}

/// What one connection does, and with messages of what size.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    /// As in the request's path.
    pub(crate) work: &'static str,
    pub(crate) size: usize,
    pub(crate) count: usize,
}

impl Task {
    /// Does it, and says how long that took.
    pub(crate) fn run(&self, address: SocketAddr) -> Result<Duration, BoxError> {
        let Self {
            work, size, count, ..
        } = self;
        let path = format!("/{work}?size={size}&count={count}");
        let mut socket = connect(address, &path, false)?;
        let begun = Instant::now();
        match self.work {
            "send" => swallow(&mut socket, count * (header_len(*size) + size))?,
            "echo" => {
                let frame = masked(*size);
                for _ in 0..*count {
                    socket.write_all(&frame)?;
                    swallow(&mut socket, header_len(*size) + size)?;
                }
            }
            _ => {
                let frame = masked(*size);
                let at_once = (256 * 1024 / frame.len()).max(1);
                let frames = frame.repeat(at_once);
                let mut left = *count;
                while left > 0 {
                    let next = left.min(at_once);
                    socket.write_all(&frames[..next * frame.len()])?;
                    left -= next;
                }
                swallow(&mut socket, 2 + super::server::TAKEN.len())?;
            }
        }
        Ok(begun.elapsed())
    }
}

/// Reads so many bytes and no more.
fn swallow(socket: &mut TcpStream, mut bytes: usize) -> io::Result<()> {
    let mut buffer = [0; 256 * 1024];
    while bytes > 0 {
        match socket.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read if read > bytes => return Err(io::Error::other("more came than was sent")),
            read => bytes -= read,
        }
    }
    Ok(())
}

pub(crate) fn header_len(payload: usize) -> usize {
    match payload {
        0..126 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// A text message as a client sends it.
fn masked(size: usize) -> Vec<u8> {
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
