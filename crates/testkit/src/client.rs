//! One connection to an HTTP server, over HTTP/1.1 or HTTP/2.

use std::net::SocketAddr;

use bytes::Bytes;
use http::response::Parts;
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{TEST_TIMEOUT, TestServer, empty_request};

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

impl HttpVersion {
    /// Both versions.
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];
}

/// One HTTP connection from a client, which sends requests with hyper.
#[derive(Debug)]
pub enum HttpConnection {
    /// An HTTP/1.1 connection.
    Http1(http1::SendRequest<Empty<Bytes>>),
    /// An HTTP/2 connection.
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl HttpConnection {
    /// Connects to `server`.
    pub async fn connect(server: &TestServer, version: HttpVersion) -> Self {
        Self::connect_to(server.address, version).await
    }

    /// Connects to `address`.
    pub async fn connect_to(address: SocketAddr, version: HttpVersion) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let io = TokioIo::new(socket);
        match version {
            HttpVersion::Http1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self::Http1(sender)
            }
            HttpVersion::Http2 => {
                let handshake = http2::handshake(TokioExecutor::new(), io);
                let (sender, connection) = handshake.await.unwrap();
                // RFC 8441 §3: a client must not request a WebSocket before the server's SETTINGS frame has allowed it.
                while !connection.is_extended_connect_protocol_enabled() {
                    tokio::task::yield_now().await;
                }
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        }
    }

    /// Sends a request without a body, and returns the response when its head has arrived.
    pub async fn send_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> StreamingResponse {
        let uri = format!("http://localhost{path}");
        let request = empty_request(method, &uri, headers);
        let response = match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        };
        let (head, body) = response.unwrap().into_parts();
        StreamingResponse {
            head,
            body,
            unread: Vec::new(),
        }
    }

    /// Sends a GET request, and returns the response when its head has arrived.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> StreamingResponse {
        self.send_request("GET", path, headers).await
    }
}

/// A response whose body is read as it arrives. Every read panics after [`TEST_TIMEOUT`].
#[derive(Debug)]
pub struct StreamingResponse {
    /// The status and the headers.
    pub head: Parts,
    pub(crate) body: Incoming,
    /// The bytes that have arrived, but have not been returned.
    pub(crate) unread: Vec<u8>,
}

impl StreamingResponse {
    /// Returns the value of a header, if it is visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// Returns the next bytes of the body, `None` at its end, or an error if the body was cut off.
    pub async fn next_chunk(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = timeout(TEST_TIMEOUT, self.body.frame());
        let frame = frame.await.expect("no bytes arrived in time")?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    /// Reads exactly as many bytes as `expected` has, and asserts that they are equal. These bytes must arrive without a further action of
    /// the test.
    pub async fn expect_bytes(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        while self.unread.len() < expected.len() {
            let chunk = self.next_chunk().await.expect("the body has ended");
            let bytes = chunk.expect("the body was cut off");
            self.unread.extend_from_slice(&bytes);
        }
        let (read, rest) = self.unread.split_at(expected.len());
        assert_eq!(
            String::from_utf8_lossy(read),
            String::from_utf8_lossy(expected)
        );
        self.unread = rest.to_vec();
    }

    /// Reads the rest of the body and discards it.
    pub async fn discard_rest(mut self) {
        while let Some(Ok(_)) = self.next_chunk().await {}
    }

    /// Reads the rest of the body. Returns the bytes that were read, and the error if the body was cut off.
    pub async fn read_to_end(mut self) -> (Vec<u8>, Result<(), hyper::Error>) {
        while let Some(chunk) = self.next_chunk().await {
            match chunk {
                Ok(bytes) => self.unread.extend_from_slice(&bytes),
                Err(error) => return (self.unread, Err(error)),
            }
        }
        (self.unread, Ok(()))
    }
}

/// Sends the bytes of `request` unchanged, and reads until the response contains `until` or the server closes the connection. Returns the
/// socket and the bytes that were read.
pub async fn send_raw_http1(
    server: &TestServer,
    request: &str,
    until: &str,
) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    while !String::from_utf8_lossy(&response).contains(until) {
        let read = timeout(TEST_TIMEOUT, socket.read_buf(&mut response));
        if read.await.expect("no bytes arrived in time").unwrap() == 0 {
            break;
        }
    }
    (socket, String::from_utf8(response).unwrap())
}
