//! A server on a free port of the loopback interface.

use std::{convert::Infallible, env, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tower::Service;
use tower_push::{BoxError, server::Server};

use crate::TEST_TIMEOUT;

/// A running server. The server stops accepting connections when this value is dropped. Open connections stay open.
#[derive(Debug)]
pub struct TestServer {
    /// The address on which the server listens.
    pub address: SocketAddr,
    accept_loop: JoinHandle<()>,
}

impl TestServer {
    /// Serves `service` over HTTP/1.1 and over HTTP/2 with prior knowledge, WebSocket upgrades included.
    ///
    /// hyper-util serves the connections. If the environment variable `TEST_SERVER` is `tower-push`, [`Server::connection`] serves them
    /// instead, so that the same tests can run over both.
    pub async fn start<S, B>(service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if env::var_os("TEST_SERVER").is_some_and(|name| name == "tower-push") {
            return Self::start_on(Server::new(), service).await;
        }
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().enable_connect_protocol();
        Self::start_with(move |socket| {
            let builder = builder.clone();
            let service = TowerToHyperService::new(service.clone());
            async move {
                // A disconnect of the client is an error here, but no failure of the test.
                let _ = builder
                    .serve_connection_with_upgrades(TokioIo::new(socket), service)
                    .await;
            }
        })
        .await
    }

    /// Like [`start`](Self::start), with the connections of `server`.
    pub async fn start_on<S, B>(server: Server, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::start_with(move |socket| {
            let connection = server.connection(socket, service.clone());
            async move {
                // A disconnect of the client is an error here, but no failure of the test.
                let _ = connection.await;
            }
        })
        .await
    }

    /// Passes each accepted connection to `serve_connection`, and runs the returned future in a task of its own.
    pub async fn start_with<F>(serve_connection: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept_loop = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                tokio::spawn(serve_connection(socket));
            }
        });
        Self {
            address,
            accept_loop,
        }
    }

    /// Returns the URL of `path` on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.accept_loop.abort();
    }
}

/// Waits until `server` has no open connection. Panics after [`TEST_TIMEOUT`].
pub async fn wait_for_connections(server: &Server) {
    let waited = timeout(TEST_TIMEOUT, server.wait_for_connections()).await;
    assert!(waited.is_ok(), "{:?}", server.counts());
    assert_eq!(server.counts().open_connections, 0);
}
