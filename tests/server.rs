//! The server of the feature `server`: what it accepts, what its timeouts and limits close, and how it ends.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::pending,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::ConnectInfo,
    routing::{any, get},
};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use testkit::{
    HttpConnection, HttpVersion, TEST_TIMEOUT, wait_for_connections, wait_until,
    websocket::{handshake_text, masked_frame},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, ServerName},
    },
};
use tower::service_fn;
use tower_push::{
    Channel, Drain, Guard, Push, PushLayer, WriteTimeout,
    guard::DrainPlan,
    layer::TransportLayer,
    serve,
    server::{Listener, Serve, Server},
    service,
    transport::Negotiate,
};
use warp::Filter;

const MS_100: Duration = Duration::from_millis(100);

/// A running server.
struct RunningServer {
    address: SocketAddr,
    task: JoinHandle<io::Result<()>>,
}

impl RunningServer {
    /// Binds a listener, and spawns what `run` makes of it.
    async fn spawn<F>(run: impl FnOnce(TcpListener) -> F) -> Self
    where
        F: IntoFuture<Output = io::Result<()>>,
        F::IntoFuture: Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(run(listener).into_future());
        Self { address, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Waits for the end of the server.
    async fn finished(self) -> io::Result<()> {
        timeout(TEST_TIMEOUT, self.task).await.unwrap().unwrap()
    }
}

/// An app with an ordinary page, a stream without events, a stream of one event, and a response that waits until `release` is notified.
fn app(release: &Arc<Notify>) -> Router {
    let release = release.clone();
    Router::new()
        .route("/", get(|| async { "page" }))
        .route("/idle", any(|| async { Push::new(Channel::new()) }))
        .route(
            "/one",
            any(|| async { Push::new(futures_util::stream::iter(["one"])) }),
        )
        .route(
            "/wait",
            get(move || async move {
                release.notified().await;
                "released"
            }),
        )
        .layer(PushLayer::new())
}

fn default_app() -> Router {
    app(&Arc::default())
}

/// Reads until the input ends or `until` has arrived.
async fn read_until(socket: &mut TcpStream, until: &str) -> String {
    let mut read = Vec::new();
    while until.is_empty() || !String::from_utf8_lossy(&read).contains(until) {
        let len = timeout(TEST_TIMEOUT, socket.read_buf(&mut read)).await;
        // A reset is an end too.
        if len.expect("no bytes arrived in time").unwrap_or(0) == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&read).into_owned()
}

async fn read_to_end(socket: &mut TcpStream) -> String {
    read_until(socket, "").await
}

const GET_ROOT: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

async fn get_root(socket: &mut TcpStream) -> String {
    socket.write_all(GET_ROOT).await.unwrap();
    read_until(socket, "page").await
}

async fn get_text(address: SocketAddr, version: HttpVersion, path: &str) -> String {
    let mut client = HttpConnection::connect_to(address, version).await;
    let (text, result) = client.get(path, &[]).await.read_to_end().await;
    result.unwrap();
    String::from_utf8(text).unwrap()
}

// --- what it serves

#[tokio::test]
async fn axum_router_is_served_over_both_versions() {
    let server = RunningServer::spawn(|listener| serve(listener, default_app())).await;
    for version in HttpVersion::ALL {
        assert_eq!(get_text(server.address, version, "/").await, "page");
        let stream = get_text(server.address, version, "/one").await;
        assert!(stream.contains("data: one"), "{version:?}: {stream}");
    }
}

#[tokio::test]
async fn warp_filter_is_served_over_both_versions() {
    let feed = warp::path!("one")
        .map(|| Response::<String>::from(Push::new(futures_util::stream::iter(["one"]))));
    let page = warp::path::end().map(|| "page");
    let layered = tower::ServiceBuilder::new()
        .layer(PushLayer::new())
        .service(warp::service(feed.or(page)));
    let server = RunningServer::spawn(|listener| serve(listener, layered)).await;
    for version in HttpVersion::ALL {
        assert_eq!(get_text(server.address, version, "/").await, "page");
        let stream = get_text(server.address, version, "/one").await;
        assert!(stream.contains("data: one"), "{version:?}: {stream}");
    }
}

#[tokio::test]
async fn tower_services_are_served() {
    let echo = service_fn(|request: Request<Incoming>| async {
        let body = request.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>(Response::new(Full::new(body)))
    });
    let server = RunningServer::spawn(|listener| serve(listener, echo)).await;
    let mut socket = server.connect().await;
    let post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
    socket.write_all(post).await.unwrap();
    let response = read_until(&mut socket, "hello").await;
    assert!(response.ends_with("hello"), "{response}");

    let channel = Channel::new();
    let server = RunningServer::spawn(|listener| serve(listener, service(channel.clone()))).await;
    let mut client = HttpConnection::connect_to(server.address, HttpVersion::Http1).await;
    let mut stream = client.get("/", &[]).await;
    stream.expect_bytes(":\n").await;
    channel.publish("now").unwrap();
    let chunk = stream.next_chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&chunk).contains("data: now"));
}

#[tokio::test]
async fn websockets_are_served_over_both_versions() {
    let server = RunningServer::spawn(|listener| serve(listener, default_app())).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect_to(server.address, version).await;
        let opened = client.open_websocket("/one", &[]).await;
        let mut websocket = opened
            .expect("the handshake is accepted")
            .into_compliant_client();
        let message = timeout(TEST_TIMEOUT, websocket.next()).await.unwrap();
        assert_eq!(message.unwrap().unwrap().as_text(), Some("one"));
    }
}

#[tokio::test]
async fn unix_sockets_are_served() {
    let directory = std::env::temp_dir().join(format!("tower-push-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let task = tokio::spawn(serve(listener, default_app()).into_future());
    let mut socket = UnixStream::connect(&path).await.unwrap();
    socket.write_all(GET_ROOT).await.unwrap();
    let mut response = vec![0; 12];
    socket.read_exact(&mut response).await.unwrap();
    assert_eq!(response, b"HTTP/1.1 200");
    task.abort();
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn http1_0_request_is_answered_and_closed() {
    let server = RunningServer::spawn(|listener| serve(listener, default_app())).await;
    let mut socket = server.connect().await;
    socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let response = read_to_end(&mut socket).await;
    assert!(response.starts_with("HTTP/1.0 200 OK"), "{response}");
    assert!(response.ends_with("page"), "{response}");
}

#[tokio::test]
async fn requests_get_data_of_their_connection() {
    let app = Router::new().route(
        "/",
        get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }),
    );
    let server = RunningServer::spawn(|listener| {
        serve(listener, app).connection_data(
            |io: &WriteTimeout<TcpStream>, peer: &SocketAddr, extensions| {
                assert!(io.get_ref().nodelay().unwrap());
                extensions.insert(ConnectInfo(*peer));
            },
        )
    })
    .await;
    for version in HttpVersion::ALL {
        let peer = get_text(server.address, version, "/").await;
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    }
}

// --- handshakes

/// Reads the line `hello` before the first request.
async fn hello_handshake(
    mut socket: WriteTimeout<TcpStream>,
) -> io::Result<WriteTimeout<TcpStream>> {
    let mut line = [0; 6];
    socket.read_exact(&mut line).await?;
    if line == *b"hello\n" {
        Ok(socket)
    } else {
        Err(ErrorKind::InvalidData.into())
    }
}

#[tokio::test]
async fn stalled_handshake_is_closed_and_delays_nobody() {
    let settings = Server::builder().handshake_timeout(3 * MS_100).build();
    let server = RunningServer::spawn(|listener| {
        settings
            .serve(listener, default_app())
            .handshake(hello_handshake)
    })
    .await;
    let start = Instant::now();
    let mut stalled = server.connect().await;
    let mut failing = server.connect().await;
    failing.write_all(b"HELLO\n").await.unwrap();
    let mut quick = server.connect().await;
    quick.write_all(b"hello\n").await.unwrap();
    assert!(get_root(&mut quick).await.ends_with("page"));
    assert!(
        start.elapsed() < 3 * MS_100,
        "the stalled client delays others"
    );
    assert_eq!(read_to_end(&mut failing).await, "");
    assert_eq!(read_to_end(&mut stalled).await, "");
    assert!(start.elapsed() >= 3 * MS_100);
    assert_eq!(settings.counts().failed_handshakes, 2);
}

/// The first bytes of an HTTP/2 connection: the preface, and an empty SETTINGS frame.
const HTTP2_PREFACE_AND_SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Creates the two sides of TLS for `localhost`. The client trusts the certificate of the server.
fn tls_acceptor_and_connector() -> (TlsAcceptor, TlsConnector) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (
        TlsAcceptor::from(Arc::new(server)),
        TlsConnector::from(Arc::new(client)),
    )
}

#[tokio::test]
async fn stalled_tls_handshakes_are_closed_and_delay_nobody() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let (acceptor, connector) = tls_acceptor_and_connector();
    let settings = Server::builder().handshake_timeout(TIMEOUT).build();
    let server = RunningServer::spawn(|listener| {
        settings
            .serve(listener, default_app())
            .handshake(move |socket| acceptor.accept(socket))
    })
    .await;
    let connect_tls = async || {
        let name = ServerName::try_from("localhost").unwrap();
        connector.connect(name, server.connect().await).await
    };
    // What a client sends before it stalls: nothing, half a record header, and a record that says that 512 bytes follow.
    let start = Instant::now();
    let mut stalled = Vec::new();
    for sent in [
        &b""[..],
        b"\x16\x03",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ] {
        let mut socket = server.connect().await;
        socket.write_all(sent).await.unwrap();
        stalled.push(socket);
    }
    let mut plain = server.connect().await;
    plain.write_all(GET_ROOT).await.unwrap();
    let mut closed = server.connect().await;
    closed.write_all(b"\x16").await.unwrap();
    drop(closed);
    let mut secure = connect_tls().await.unwrap();
    secure.write_all(GET_ROOT).await.unwrap();
    let mut response = [0; 12];
    secure.read_exact(&mut response).await.unwrap();
    assert_eq!(response, *b"HTTP/1.1 200");
    // Nothing but an alert answers a request without TLS.
    assert!(!read_to_end(&mut plain).await.contains("HTTP/"));
    assert!(start.elapsed() < TIMEOUT, "a stalled client delays others");
    for mut socket in stalled {
        assert_eq!(read_to_end(&mut socket).await, "");
    }
    assert!(start.elapsed() >= TIMEOUT);
    let failed = || settings.counts().failed_handshakes == 5;
    wait_until(failed, || format!("{:?}", settings.counts())).await;
    assert_eq!(settings.counts().open_connections, 1);
    drop(secure);
    wait_for_connections(&settings).await;
}

// --- timeouts

#[tokio::test]
async fn http2_client_without_pongs_is_disconnected() {
    let settings = Server::builder().http2_ping_interval(MS_100).build();
    let server = RunningServer::spawn(|listener| settings.serve(listener, default_app())).await;
    let mut silent = server.connect().await;
    silent.write_all(HTTP2_PREFACE_AND_SETTINGS).await.unwrap();
    let mut pongs = HttpConnection::connect_to(server.address, HttpVersion::Http2).await;
    let mut stream = pongs.get("/idle", &[]).await;
    stream.expect_bytes(":\n").await;
    read_to_end(&mut silent).await;
    // The other client answers.
    sleep(5 * MS_100).await;
    assert_eq!(settings.counts().open_connections, 1);
    drop((stream, pongs));
    wait_for_connections(&settings).await;
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let settings = Server::builder().header_read_timeout(3 * MS_100).build();
    let server = RunningServer::spawn(|listener| settings.serve(listener, default_app())).await;
    let silent = server.connect().await;
    let mut trickling = server.connect().await;
    trickling.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut second_head = server.connect().await;
    get_root(&mut second_head).await;
    second_head
        .write_all(b"GET / HTTP/1.1\r\nho")
        .await
        .unwrap();
    let mut half_preface = server.connect().await;
    half_preface.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let start = Instant::now();
    let (mut trickling_read, mut trickling_write) = trickling.into_split();
    // One byte every 20 ms does not extend the time.
    let trickle = tokio::spawn(async move {
        while trickling_write.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let mut rest = Vec::new();
    let _ = trickling_read.read_to_end(&mut rest).await;
    for mut socket in [silent, second_head, half_preface] {
        assert_eq!(read_to_end(&mut socket).await, "");
    }
    assert!(start.elapsed() < 20 * MS_100);
    trickle.abort();
    assert_eq!(settings.counts().timed_out_heads, 4);
    wait_for_connections(&settings).await;
}

#[tokio::test]
async fn idle_connections_are_closed_and_streams_stay() {
    let settings = Server::builder()
        .idle_timeout(3 * MS_100)
        .header_read_timeout(MS_100)
        .build();
    let server = RunningServer::spawn(|listener| settings.serve(listener, default_app())).await;
    let mut http1 = server.connect().await;
    get_root(&mut http1).await;
    let mut http2 = HttpConnection::connect_to(server.address, HttpVersion::Http2).await;
    http2.get("/", &[]).await.discard_rest().await;
    let mut stream1 = HttpConnection::connect_to(server.address, HttpVersion::Http1).await;
    let mut stream1 = stream1.get("/idle", &[]).await;
    let mut client2 = HttpConnection::connect_to(server.address, HttpVersion::Http2).await;
    let mut stream2 = client2.get("/idle", &[]).await;
    let mut websocket = HttpConnection::connect_to(server.address, HttpVersion::Http1).await;
    let websocket = websocket.open_websocket("/idle", &[]).await;
    assert_eq!(settings.counts().open_connections, 5);
    let start = Instant::now();
    assert_eq!(read_to_end(&mut http1).await, "");
    assert!(start.elapsed() >= 2 * MS_100);
    let closed = || settings.counts().open_connections == 3;
    wait_until(closed, || "idle connections are closed").await;
    sleep(5 * MS_100).await;
    assert_eq!(settings.counts().open_connections, 3);
    stream1.expect_bytes(":\n").await;
    stream2.expect_bytes(":\n").await;
    drop((stream1, stream2, client2, websocket));
    wait_for_connections(&settings).await;
    assert_eq!(settings.counts().timed_out_heads, 0);
}

#[tokio::test]
async fn client_that_reads_nothing_is_disconnected() {
    let settings = Server::builder().write_timeout(5 * MS_100).build();
    let flood = || async {
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        axum::body::Body::from_stream(futures_util::stream::repeat_with(move || {
            Ok::<_, Infallible>(chunk.clone())
        }))
    };
    let app = Router::new().route("/", get(flood));
    let server = RunningServer::spawn(|listener| settings.serve(listener, app)).await;
    let mut socket = server.connect().await;
    socket.write_all(GET_ROOT).await.unwrap();
    wait_until(|| settings.counts().open_connections == 1, || "connected").await;
    wait_for_connections(&settings).await;
    drop(socket);
}

#[tokio::test]
async fn absurd_heads_are_refused() {
    let server = RunningServer::spawn(|listener| serve(listener, default_app())).await;
    let mut socket = server.connect().await;
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n", "a".repeat(100_000));
    let _ = socket.write_all(head.as_bytes()).await;
    let response = read_to_end(&mut socket).await;
    assert!(response.starts_with("HTTP/1.1 431"), "{response}");

    let mut socket = server.connect().await;
    socket
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        .await
        .unwrap();
    let response = read_to_end(&mut socket).await;
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
}

#[tokio::test]
async fn absurd_http2_heads_are_refused() {
    let settings = Server::new();
    let server = RunningServer::spawn(|listener| settings.serve(listener, default_app())).await;
    let value = "a".repeat(2000);
    let mut other = HttpConnection::connect_to(server.address, HttpVersion::Http2).await;
    let mut client = HttpConnection::connect_to(server.address, HttpVersion::Http2).await;
    // Together 20 KB. The connection stays usable.
    let refused = client.get("/", &[("x", &*value); 10]).await;
    assert_eq!(refused.head.status, 431);
    refused.discard_rest().await;
    assert_eq!(client.get("/", &[]).await.head.status, 200);
    assert_eq!(other.get("/", &[]).await.head.status, 200);
    drop((client, other));
    wait_for_connections(&settings).await;
}

// --- limits

#[tokio::test]
async fn connections_over_limit_wait() {
    let settings = Server::builder().max_connections(2).build();
    let server = RunningServer::spawn(|listener| settings.serve(listener, default_app())).await;
    let mut first = server.connect().await;
    get_root(&mut first).await;
    let mut websocket = server.connect().await;
    let handshake = handshake_text("/idle", "host: x\r\n");
    websocket.write_all(handshake.as_bytes()).await.unwrap();
    read_until(&mut websocket, "\r\n\r\n").await;
    let mut third = server.connect().await;
    third.write_all(GET_ROOT).await.unwrap();
    assert!(timeout(2 * MS_100, third.read_u8()).await.is_err());
    // An upgraded socket counts until it is closed.
    websocket
        .write_all(&masked_frame(0x88, b"\x03\xe8"))
        .await
        .unwrap();
    read_to_end(&mut websocket).await;
    drop(websocket);
    assert!(read_until(&mut third, "page").await.ends_with("page"));
    let counts = settings.counts();
    assert_eq!((counts.open_connections, counts.opened_connections), (2, 3));
}

#[tokio::test]
async fn connection_over_limit_is_refused_without_accept_loop() {
    let server = Server::builder().max_connections(1).build();
    let (client, io) = duplex(1024);
    let served = tokio::spawn(server.connection(io, default_app()));
    let (_, refused) = duplex(1024);
    let error = server.connection(refused, default_app()).await.unwrap_err();
    assert_eq!(error.to_string(), "the server has too many connections");
    assert_eq!(server.counts().refused_connections, 1);
    drop(client);
    let _ = served.await;
    let (_client, accepted) = duplex(1024);
    drop(server.connection(accepted, default_app()));
    assert_eq!(server.counts().refused_connections, 1);
    wait_for_connections(&server).await;
}

#[tokio::test]
async fn crowd_is_served_within_limit() {
    const CROWD: usize = 400;
    let settings = Server::builder().max_connections(20).build();
    let app = Router::new().route(
        "/",
        get({
            let settings = settings.clone();
            async move || {
                assert!(settings.counts().open_connections <= 20);
                "page"
            }
        }),
    );
    let server = RunningServer::spawn(|listener| settings.serve(listener, app)).await;
    let address = server.address;
    let clients = (0..CROWD).map(|_| async move {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        socket.write_all(request).await.unwrap();
        read_to_end(&mut socket).await
    });
    for response in futures_util::future::join_all(clients).await {
        assert!(response.ends_with("page"), "{response}");
    }
    assert_eq!(settings.counts().opened_connections, CROWD as u64);
}

/// A listener whose results are prepared.
struct ScriptedListener(Arc<Mutex<VecDeque<io::Result<DuplexStream>>>>);

impl Listener for ScriptedListener {
    type Socket = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> io::Result<(DuplexStream, ())> {
        let next = self.0.lock().unwrap().pop_front();
        match next {
            Some(result) => result.map(|socket| (socket, ())),
            None => pending().await,
        }
    }
}

fn serve_scripted<const N: usize>(
    settings: &Server,
    results: [io::Result<DuplexStream>; N],
) -> Serve<ScriptedListener, Router> {
    let results = Arc::new(Mutex::new(VecDeque::from(results)));
    settings.serve(ScriptedListener(results), default_app())
}

#[tokio::test(start_paused = true)]
async fn accept_loop_backs_off_after_errors() {
    // EMFILE, "too many open files", has no `ErrorKind` of its own.
    let too_many_files = || Err(io::Error::from_raw_os_error(24));
    let (mut client, socket) = duplex(1024);
    let settings = Server::new();
    let results = [
        Err(ErrorKind::ConnectionAborted.into()),
        too_many_files(),
        too_many_files(),
        too_many_files(),
        Ok(socket),
    ];
    let start = Instant::now();
    let task = tokio::spawn(serve_scripted(&settings, results).into_future());
    client.write_all(GET_ROOT).await.unwrap();
    let mut response = vec![0; 12];
    client.read_exact(&mut response).await.unwrap();
    assert_eq!(response, b"HTTP/1.1 200");
    // 5, 10 and 20 ms.
    let waited = start.elapsed();
    assert!((35..60).contains(&waited.as_millis()), "{waited:?}");
    assert_eq!(settings.counts().accept_errors, 4);
    task.abort();
}

#[tokio::test]
async fn listener_that_cannot_accept_ends_server() {
    let settings = Server::new();
    let results = [Err(ErrorKind::InvalidInput.into())];
    let error = serve_scripted(&settings, results).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

// --- the end

#[tokio::test]
async fn drain_ends_streams_and_finishes_requests() {
    let drain = Drain::new();
    let release = Arc::new(Notify::new());
    let guard = Guard::builder().drain(&drain).build();
    let app = app(&release).route(
        "/guarded",
        any(|| async { Push::new(Channel::new()) })
            .layer(TransportLayer::with(guard.wrap(Negotiate::new()))),
    );
    let settings = Server::builder().drain(&drain).build();
    let server = RunningServer::spawn(|listener| settings.serve(listener, app)).await;
    let address = server.address;
    let mut idle = server.connect().await;
    get_root(&mut idle).await;
    let mut new = server.connect().await;
    let mut requests = Vec::new();
    let mut streams = Vec::new();
    let mut clients = Vec::new();
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect_to(address, version).await;
        streams.push(client.get("/guarded", &[]).await);
        clients.push(client);
        requests.push(tokio::spawn(get_text(address, version, "/wait")));
    }
    wait_until(|| settings.counts().open_connections == 6, || "opened").await;
    sleep(MS_100).await;
    drain.start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
    assert_eq!(read_to_end(&mut idle).await, "");
    assert_eq!(read_to_end(&mut new).await, "");
    for stream in streams {
        let (bytes, result) = stream.read_to_end().await;
        result.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("event: end"), "{text}");
    }
    drop(clients);
    assert!(TcpStream::connect(address).await.is_err(), "still listens");
    assert!(!server.task.is_finished());
    release.notify_waiters();
    for request in requests {
        assert_eq!(request.await.unwrap(), "released");
    }
    server.finished().await.unwrap();
    let counts = settings.counts();
    assert_eq!((counts.open_connections, counts.cut_connections), (0, 0));
}

#[tokio::test]
async fn server_ends_at_deadline_of_drain() {
    let drain = Drain::new();
    let settings = Server::new();
    // The stream has no guard, so nothing ends it before the deadline.
    let server =
        RunningServer::spawn(|listener| settings.serve(listener, default_app()).drain(&drain))
            .await;
    let mut client = HttpConnection::connect_to(server.address, HttpVersion::Http1).await;
    let stream = client.get("/idle", &[]).await;
    let start = Instant::now();
    drain.start(DrainPlan::within(5 * MS_100));
    server.finished().await.unwrap();
    let waited = start.elapsed();
    assert!(waited >= 5 * MS_100 && waited < 20 * MS_100, "{waited:?}");
    // The rest of the stream is cut, not ended.
    assert!(stream.read_to_end().await.1.is_err());
    wait_for_connections(&settings).await;
}

/// Nothing but the server ends the streams, which have no guard: over either version of HTTP, in hyper and outside of it.
#[tokio::test]
async fn unguarded_streams_are_closed_at_deadline_of_drain() {
    let drain = Drain::new();
    let settings = Server::builder().drain(&drain).build();
    // The server's own event loops drive the readers of the channel; the other source has a task of its own.
    let app = Router::new()
        .route("/channel", any(|| async { Push::new(Channel::new()) }))
        .route(
            "/own",
            any(|| async { Push::new(stream::pending::<&str>()) }),
        )
        .layer(PushLayer::new());
    let server = RunningServer::spawn(|listener| settings.serve(listener, app)).await;
    let mut streams = Vec::new();
    let mut websockets = Vec::new();
    let mut clients = Vec::new();
    for (version, path) in [
        (HttpVersion::Http1, "/channel"),
        (HttpVersion::Http1, "/own"),
        (HttpVersion::Http2, "/channel"),
    ] {
        let mut client = HttpConnection::connect_to(server.address, version).await;
        streams.push(client.get(path, &[]).await);
        clients.push(client);
        let mut client = HttpConnection::connect_to(server.address, version).await;
        websockets.push(client.open_websocket(path, &[]).await.unwrap());
        clients.push(client);
    }
    wait_until(|| settings.counts().open_connections == 6, || "opened").await;
    drain.start(DrainPlan::within(5 * MS_100));
    server.finished().await.unwrap();
    for stream in streams {
        assert!(stream.read_to_end().await.1.is_err(), "cut, not ended");
    }
    for mut websocket in websockets {
        assert!(websocket.next_frame().await.is_none(), "cut, not ended");
    }
    // The counts are final when the server has ended.
    let counts = settings.counts();
    assert_eq!((counts.open_connections, counts.cut_connections), (0, 6));
}

/// At the deadline of the drain, the server waits for clients that have got the ends of their streams and do not close their connections.
#[tokio::test]
async fn ended_streams_are_not_cut() {
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let settings = Server::builder().drain(&drain).build();
    let app = Router::new()
        .route("/channel", any(|| async { Push::new(Channel::new()) }))
        .layer(PushLayer::new().guard(&guard));
    let server = RunningServer::spawn(|listener| settings.serve(listener, app)).await;
    let stream = "GET /channel HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    let websocket = handshake_text("/channel", "");
    let mut clients = Vec::new();
    for request in [stream, &websocket] {
        let mut client = server.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        clients.push(client);
    }
    wait_until(|| guard.counts().open() == 2, || "opened").await;
    drain.start(DrainPlan::within(5 * MS_100).spread(Duration::ZERO));
    server.finished().await.unwrap();
    let counts = settings.counts();
    assert_eq!((counts.open_connections, counts.cut_connections), (0, 0));
    let end = read_to_end(&mut clients[0]).await;
    assert!(end.ends_with("0\r\n\r\n"), "{end}");
}

#[tokio::test]
async fn drain_ends_stalled_handshakes() {
    let drain = Drain::new();
    let server = RunningServer::spawn(|listener| {
        serve(listener, default_app())
            .handshake(hello_handshake)
            .drain(&drain)
    })
    .await;
    let mut stalled = server.connect().await;
    sleep(MS_100).await;
    drain.start(DrainPlan::within(TEST_TIMEOUT));
    assert_eq!(read_to_end(&mut stalled).await, "");
    server.finished().await.unwrap();
}
