//! HTTP clients: one connection of hyper's, or bytes over a socket.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{LONG, Server, request};

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Both versions.
pub const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// One connection of hyper's client.
#[derive(Debug)]
pub enum Client {
    /// An HTTP/1.1 connection.
    Http1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    /// An HTTP/2 connection.
    Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    /// Connects to `server`.
    pub async fn connect(server: &Server, version: Version) -> Self {
        Self::connect_to(server.address, version).await
    }

    /// Connects to `address`.
    pub async fn connect_to(address: SocketAddr, version: Version) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let io = TokioIo::new(socket);
        match version {
            Version::Http1 => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self::Http1(sender)
            }
            Version::Http2 => {
                let (sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                        .await
                        .unwrap();
                // RFC 8441 §3: no WebSocket is asked for before the server has said that it may be.
                while !connection.is_extended_connect_protocol_enabled() {
                    tokio::task::yield_now().await;
                }
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        }
    }

    /// Sends a request without a body, and returns the response once its head has arrived.
    pub async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reading {
        let uri = format!("http://localhost{path}");
        let request = request(method, &uri, headers);
        let response = match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        };
        let (head, body) = response.unwrap().into_parts();
        Reading {
            head,
            body,
            unread: Vec::new(),
        }
    }

    /// Sends a GET request.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Reading {
        self.send("GET", path, headers).await
    }
}

/// A response whose body is read as it comes.
#[derive(Debug)]
pub struct Reading {
    /// The status and the headers.
    pub head: http::response::Parts,
    pub(crate) body: Incoming,
    pub(crate) unread: Vec<u8>,
}

impl Reading {
    /// Returns the value of a header, if it is visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// What comes next: bytes, the end, or the news that the response was cut.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = tokio::time::timeout(LONG, self.body.frame());
        let frame = frame.await.expect("something should have come")?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    /// Reads until there is this much, no more: what must arrive before anything else happens.
    pub async fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let expected = bytes.as_ref();
        while self.unread.len() < expected.len() {
            let bytes = self.next().await.expect("more to come").expect("not cut");
            self.unread.extend_from_slice(&bytes);
        }
        let (read, rest) = self.unread.split_at(expected.len());
        assert_eq!(
            String::from_utf8_lossy(read),
            String::from_utf8_lossy(expected)
        );
        self.unread = rest.to_vec();
    }

    /// Reads to the end, and keeps nothing.
    pub async fn drain(mut self) {
        while let Some(Ok(_)) = self.next().await {}
    }

    /// Reads to the end.
    pub async fn rest(mut self) -> (Vec<u8>, Result<(), hyper::Error>) {
        while let Some(bytes) = self.next().await {
            match bytes {
                Ok(bytes) => self.unread.extend_from_slice(&bytes),
                Err(error) => return (self.unread, Err(error)),
            }
        }
        (self.unread, Ok(()))
    }
}

/// Sends bytes as they are, and reads until the server closes or the given bytes were seen.
pub async fn raw_http1(server: &Server, request: &str, until: &str) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(until) {
        let more = tokio::time::timeout(LONG, socket.read_buf(&mut read));
        if more.await.expect("something should have come").unwrap() == 0 {
            break;
        }
    }
    (socket, String::from_utf8(read).unwrap())
}
