//! A client over a pipe in memory, which records what a server sends, and when.

use std::convert::Infallible;

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, timeout_at},
};
use tower::Service;
use tower_push::{EventId, PushBody, server::Server};

use crate::TEST_TIMEOUT;

/// The header lines of a request for an event stream.
pub const SSE: &str = "accept: text/event-stream\r\n";

/// The header lines of a request for a WebSocket.
pub const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A client of one HTTP/1.1 request over a pipe. If the clock of the test is paused, the times at which bytes arrive are exact.
#[derive(Debug)]
pub struct PipeClient {
    pipe: DuplexStream,
    /// What the server has sent. Bytes that are not ASCII are read as Latin-1, so that the frames of a WebSocket are readable.
    pub response: String,
}

impl PipeClient {
    /// Connects to `server`, and sends a request with these header lines and this cursor.
    pub async fn request<S>(
        server: &Server,
        service: S,
        cursor: Option<&EventId>,
        headers: &str,
    ) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<PushBody>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
    {
        let (mut pipe, served) = duplex(1 << 20);
        tokio::spawn(server.connection(served, service));
        let cursor = cursor.map(|id| format!("last-event-id: {id}\r\n"));
        let cursor = cursor.unwrap_or_default();
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\n{cursor}{headers}\r\n");
        pipe.write_all(request.as_bytes()).await.unwrap();
        let response = String::new();
        Self { pipe, response }
    }

    /// Reads until the response contains `text`. Returns the time of arrival.
    pub async fn expect(&mut self, text: &str) -> Instant {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !self.response.contains(text) {
            let mut buffer = [0; 64 * 1024];
            let read = timeout_at(deadline, self.pipe.read(&mut buffer)).await;
            let len = read.unwrap_or_else(|_| panic!("no {text}: {}", self.response));
            let len = len.unwrap();
            assert_ne!(len, 0, "no {text}: {}", self.response);
            self.append(&buffer[..len]);
        }
        Instant::now()
    }

    /// Reads what has arrived.
    pub fn read_ready(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(Ok(len @ 1..)) = self.pipe.read(&mut buffer).now_or_never() {
            self.append(&buffer[..len]);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let text = bytes.iter().map(|byte| char::from(*byte));
        self.response.extend(text);
    }
}
