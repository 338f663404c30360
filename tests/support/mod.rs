//! What several test files need.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod event_source;
pub mod example;
pub mod installed;
pub mod records;
pub mod websocket;

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower::Service;
use tower_push::{BoxError, Item, PushBody};

/// Long enough for a busy machine, short enough to fail: it is never waited for in a test that passes.
pub const LONG: Duration = Duration::from_secs(20);

/// The head of a GET request.
pub fn get(uri: &str, headers: &[(&str, &str)]) -> Parts {
    request("GET", uri, headers).into_parts().0
}

pub fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

/// An item in a word or two.
pub fn short(item: Result<Item, BoxError>) -> String {
    match item {
        Ok(Item::Event(event)) => event.payload().as_text().unwrap().to_owned(),
        Ok(Item::Gap(gap)) => format!("{} {:?}", gap.reason.name(), gap.missed),
        Ok(Item::Cursor(_)) => "cursor".to_owned(),
        Ok(Item::Finished) => "finished".to_owned(),
        Err(error) => format!("error: {error}"),
        other => format!("{other:?}"),
    }
}

/// A body that must end cleanly, as text.
pub async fn text<B>(body: B) -> String
where
    B: Body<Data = Bytes>,
    B::Error: fmt::Debug,
{
    let bytes = body.collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a body yields before it ends or fails, and how it ended.
pub async fn frames(mut body: PushBody) -> (Vec<Bytes>, Result<(), BoxError>) {
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frames.push(frame.into_data().unwrap()),
            Err(error) => return (frames, Err(error)),
        }
    }
    (frames, Ok(()))
}

/// A server on a port of its own, for HTTP/1.1 and HTTP/2 with prior knowledge. It ends with this value.
pub struct Server {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    pub async fn new<S, B>(service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http2().enable_connect_protocol();
        Self::accepting(move |socket| {
            let (server, service) = (server.clone(), TowerToHyperService::new(service.clone()));
            async move {
                // A client that leaves is an error to the connection, and none to the test.
                let _ = server
                    .serve_connection_with_upgrades(TokioIo::new(socket), service)
                    .await;
            }
        })
        .await
    }

    /// The same around any way to serve a connection.
    pub async fn accepting<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                tokio::spawn(serve(socket));
            }
        });
        Self { address, accepting }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

pub const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// One connection of hyper's client.
pub enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    pub async fn connect(server: &Server, version: Version) -> Self {
        Self::connect_to(server.address, version).await
    }

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

    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Reading {
        self.send("GET", path, headers).await
    }
}

/// A response whose body is read as it comes.
pub struct Reading {
    pub head: http::response::Parts,
    body: Incoming,
    unread: Vec<u8>,
}

impl Reading {
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

/// How many of something are alive.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// The stream counts from now on until it is dropped.
    pub fn around<S>(&self, stream: S) -> Counted<S> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Counted {
            stream: Box::pin(stream),
            count: self.clone(),
        }
    }

    pub async fn becomes(&self, wanted: usize) {
        let wait = async {
            while self.get() != wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        assert!(waited.is_ok(), "{} instead of {wanted}", self.get());
    }
}

pub struct Counted<S> {
    stream: Pin<Box<S>>,
    count: Count,
}

impl<S: Stream> Stream for Counted<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.count.0.fetch_sub(1, Ordering::SeqCst);
    }
}
