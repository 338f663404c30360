//! A client that stops reading is disconnected, which only the connection can do. A slow or idle client stays connected.

use std::{
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    ops::Range,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Response;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use socket2::SockRef;
use testkit::{
    TEST_TIMEOUT, TestServer, empty_request, example_process::ExampleProcess, wait_until,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    net::TcpStream,
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, unbounded_channel},
    },
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tower_push::{
    BoxError, Channel, Error, Event, KeepAlive, PushSource, WriteTimeout, server::Server,
    source::source_fn, transport::Sse,
};

const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns both ends of an in-memory connection that buffers 64 bytes. The clock of these tests is paused: it advances only while
/// everything waits for a timer.
fn connection_with_64_byte_buffer() -> (WriteTimeout<DuplexStream>, DuplexStream) {
    let (server, client) = duplex(64);
    (WriteTimeout::new(server, WRITE_TIMEOUT), client)
}

const STALLED_MESSAGE: &str = "the peer has taken nothing for too long";

fn assert_stalled(error: &io::Error) {
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let inner = error.get_ref().and_then(|error| error.downcast_ref());
    assert!(inner.is_some_and(Error::is_stalled), "{error}");
    assert_eq!(error.to_string(), STALLED_MESSAGE);
}

#[tokio::test(start_paused = true)]
async fn write_without_progress_times_out() {
    let (mut server, _client) = connection_with_64_byte_buffer();
    let start = Instant::now();
    let failed = server.write_all(&[0; 65]).await.unwrap_err();
    assert_stalled(&failed);
    let waited = start.elapsed();
    assert!(waited >= WRITE_TIMEOUT && waited < WRITE_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn every_written_byte_restarts_timeout() {
    let (mut server, mut client) = connection_with_64_byte_buffer();
    let reading = async {
        for _ in 0..100 {
            sleep(WRITE_TIMEOUT - Duration::from_secs(1)).await;
            client.read_u8().await.unwrap();
        }
        // The client reads no more from here on.
        Instant::now()
    };
    let writing = async { (server.write_all(&[0; 165]).await, Instant::now()) };
    let (stopped, (written, failed)) = tokio::join!(reading, writing);
    assert_stalled(&written.unwrap_err());
    assert!(failed - stopped >= WRITE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn idle_connection_stays_open() {
    let (mut server, mut client) = connection_with_64_byte_buffer();
    server.write_all(&[1; 64]).await.unwrap();
    sleep(DAY).await;
    // This write is pending for a moment. Then the client reads it, and the connection is idle again.
    let write = async { server.write_all(&[2; 64]).await };
    let read = async { client.read_exact(&mut [0; 128]).await };
    let (written, read) = tokio::join!(write, read);
    written.unwrap();
    read.unwrap();
    sleep(DAY).await;
    server.write_all(&[3; 64]).await.unwrap();
}

#[test]
fn ready_writes_need_no_timer() {
    // There is no runtime, so a timer would panic.
    let (mut server, mut client) = connection_with_64_byte_buffer();
    let mut cx = Context::from_waker(Waker::noop());
    let written = Pin::new(&mut server).poll_write(&mut cx, b"hello");
    assert!(matches!(written, Poll::Ready(Ok(5))));
    let flushed = Pin::new(&mut server).poll_flush(&mut cx);
    assert!(matches!(flushed, Poll::Ready(Ok(()))));
    let mut read = [0; 8];
    let mut read = ReadBuf::new(&mut read);
    assert!(AsyncRead::poll_read(Pin::new(&mut client), &mut cx, &mut read).is_ready());
    let idle = AsyncRead::poll_read(Pin::new(&mut server), &mut cx, &mut read);
    assert!(idle.is_pending());
}

#[test]
fn wrapper_adds_three_words() {
    let word = size_of::<usize>();
    let larger = size_of::<WriteTimeout<TcpStream>>() - size_of::<TcpStream>();
    assert!(larger <= 3 * word, "{larger} bytes");
}

/// A connection that is never writable. It records which methods were called.
#[derive(Default)]
struct NeverWritable {
    vectored: bool,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl NeverWritable {
    fn record_call<T>(&self, method: &'static str) -> Poll<io::Result<T>> {
        self.calls.lock().unwrap().push(method);
        Poll::Pending
    }
}

impl AsyncWrite for NeverWritable {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.record_call("write")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.record_call("flush")
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.record_call("shutdown")
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.record_call("vectored")
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }
}

/// Calls each write method on a wrapped connection, and asserts that the inner method was called and that the write times out.
macro_rules! assert_each_write_method {
    ($trait:path, $wrap:expr) => {{
        use $trait as Write;
        let (connection, slices) = (
            NeverWritable::default(),
            [IoSlice::new(b"a"), IoSlice::new(b"b")],
        );
        let calls = connection.calls.clone();
        let mut io = pin!(WriteTimeout::new($wrap(connection), WRITE_TIMEOUT));
        let written = poll_fn(|cx| Write::poll_write(io.as_mut(), cx, b"a")).await;
        assert_stalled(&written.unwrap_err());
        let vectored = poll_fn(|cx| Write::poll_write_vectored(io.as_mut(), cx, &slices)).await;
        assert_stalled(&vectored.unwrap_err());
        let flushed = poll_fn(|cx| Write::poll_flush(io.as_mut(), cx)).await;
        assert_stalled(&flushed.unwrap_err());
        let shut_down = poll_fn(|cx| Write::poll_shutdown(io.as_mut(), cx)).await;
        assert_stalled(&shut_down.unwrap_err());
        let mut calls = calls.lock().unwrap().clone();
        calls.dedup();
        assert_eq!(calls, ["write", "vectored", "flush", "shutdown"]);
        for vectored in [false, true] {
            let connection = NeverWritable {
                vectored,
                ..NeverWritable::default()
            };
            let io = WriteTimeout::new($wrap(connection), WRITE_TIMEOUT);
            assert_eq!(Write::is_write_vectored(&io), vectored);
        }
    }};
}

#[tokio::test(start_paused = true)]
async fn every_write_method_is_forwarded_and_timed() {
    assert_each_write_method!(tokio::io::AsyncWrite, |connection| connection);
    assert_each_write_method!(hyper::rt::Write, TokioIo::new);
}

/// The stream is idle for a day, once with heartbeats and once without.
#[tokio::test(start_paused = true)]
async fn idle_client_stays_connected() {
    for (keep_alive, heartbeats) in [
        (KeepAlive::default(), 5000..7000),
        (KeepAlive::disabled(), 0..1),
    ] {
        let channel = Channel::new();
        let service =
            tower_push::service(channel.clone()).transport(Sse::new().keep_alive(keep_alive));
        let (in_hyper, client) = connection_with_64_byte_buffer();
        let hyper_service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            builder
                .serve_connection(TokioIo::new(in_hyper), hyper_service)
                .await
        });
        assert_idle_for_a_day(client, &channel, heartbeats.clone()).await;

        let (detached, client) = duplex(64);
        let server = Server::builder().write_timeout(WRITE_TIMEOUT).build();
        tokio::spawn(server.connection(detached, service));
        assert_idle_for_a_day(client, &channel, heartbeats).await;
        assert_eq!(server.counts().detached_streams, 1);
    }
}

/// Reads a stream for a day, counts the heartbeats, and waits for an event.
async fn assert_idle_for_a_day(
    mut client: DuplexStream,
    channel: &Channel,
    heartbeats: Range<usize>,
) {
    client.write_all(GET_REQUEST.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    assert!(
        timeout(DAY, read_until(&mut client, &mut read, "never"))
            .await
            .is_err()
    );
    // The first bytes of the stream have its cursor behind the comment, so they do not count as a heartbeat.
    let read_so_far = String::from_utf8_lossy(&read);
    let heartbeat_count = read_so_far.matches("\r\n:\n\r\n").count();
    assert!(heartbeats.contains(&heartbeat_count), "{heartbeat_count}");

    channel.publish("hello").unwrap();
    read_until(&mut client, &mut read, "data: hello\n\n").await;
}

async fn read_until(client: &mut DuplexStream, read: &mut Vec<u8>, end: &str) {
    while !String::from_utf8_lossy(read).contains(end) {
        assert_ne!(client.read_buf(read).await.unwrap(), 0);
    }
}

const GET_REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// A channel into which a task publishes more than any buffer holds. Dropping this value stops the task.
struct BusyChannel {
    channel: Channel,
    publishing: AbortHandle,
}

impl BusyChannel {
    fn new() -> Self {
        Self::of(Channel::new())
    }

    fn of(channel: Channel) -> Self {
        let publisher_channel = channel.clone();
        let publishing = tokio::spawn(async move {
            let event = Event::text("x".repeat(64 * 1024));
            loop {
                publisher_channel.publish(event.clone()).unwrap();
                sleep(Duration::from_millis(2)).await;
            }
        });
        Self {
            channel,
            publishing: publishing.abort_handle(),
        }
    }

    /// Waits until the channel has no subscribers.
    async fn wait_until_unsubscribed(&self) {
        let idle = timeout(TEST_TIMEOUT, self.channel.unsubscribed()).await;
        idle.expect("the stalled subscriber should be disconnected");
    }
}

impl Drop for BusyChannel {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

/// A short write timeout. The clients of these tests either read all the time or never again.
const SHORT_WRITE_TIMEOUT: Duration = Duration::from_millis(200);

/// Receives the errors with which connections ended.
type ConnectionErrors = UnboundedReceiver<BoxError>;

/// Starts a server whose connections have a write timeout. `prepare` sets options of each accepted socket.
async fn serve_with_write_timeout<S>(
    source: S,
    write_timeout: Duration,
    prepare: fn(SockRef<'_>),
) -> (TestServer, ConnectionErrors)
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let service = TowerToHyperService::new(tower_push::service(source));
    let (error_sender, connection_errors) = unbounded_channel();
    let server = TestServer::start_with(move |socket| {
        prepare(SockRef::from(&socket));
        let io = TokioIo::new(WriteTimeout::new(socket, write_timeout));
        let (service, error_sender) = (service.clone(), error_sender.clone());
        async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            if let Err(error) = builder.serve_connection(io, service).await {
                let _ = error_sender.send(error);
            }
        }
    });
    (server.await, connection_errors)
}

/// Starts a server of tower-push, whose streams leave hyper and whose connections have a write timeout. `prepare` sets options of each accepted
/// socket.
async fn serve_detached<S>(
    source: S,
    write_timeout: Duration,
    prepare: fn(SockRef<'_>),
) -> (TestServer, Server)
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let settings = Server::builder().write_timeout(write_timeout).build();
    let (connections, service) = (settings.clone(), tower_push::service(source));
    let server = TestServer::start_with(move |socket| {
        prepare(SockRef::from(&socket));
        let connection = connections.connection(socket, service.clone());
        async move {
            let _ = connection.await;
        }
    });
    (server.await, settings)
}

fn leave_socket_as_is(_: SockRef<'_>) {}

/// Returns the I/O error that caused a server's error.
fn find_io_error(error: &BoxError) -> &io::Error {
    let mut error: &dyn std::error::Error = &**error;
    while let Some(source) = error.source() {
        error = source;
        if let Some(error) = error.downcast_ref() {
            return error;
        }
    }
    panic!("{error}");
}

/// Sends an HTTP/1.1 request, reads a little of the response, and returns the socket, which the test does not read any more.
async fn open_and_stop_reading(address: std::net::SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(GET_REQUEST.as_bytes()).await.unwrap();
    socket.read_exact(&mut [0; 15]).await.unwrap();
    socket
}

#[tokio::test]
async fn stalled_http1_client_is_disconnected() {
    let busy = BusyChannel::new();
    let (server, mut connection_errors) = serve_with_write_timeout(
        busy.channel.clone(),
        SHORT_WRITE_TIMEOUT,
        leave_socket_as_is,
    )
    .await;
    let _stalled = open_and_stop_reading(server.address).await;
    busy.channel.subscribed().await;
    busy.wait_until_unsubscribed().await;
    assert_stalled(find_io_error(&connection_errors.recv().await.unwrap()));
}

/// A socket from which nothing is read any more once `paused` is set.
struct PausableSocket {
    socket: TcpStream,
    paused: Arc<AtomicBool>,
}

impl AsyncRead for PausableSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.paused.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PausableSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// An HTTP/2 client. `connect` sets the flow-control window of its streams.
struct Http2Client {
    sender: conn::http2::SendRequest<Empty<Bytes>>,
    paused: Arc<AtomicBool>,
}

impl Http2Client {
    async fn connect(server: &TestServer, window: u32) -> Self {
        let paused = Arc::<AtomicBool>::default();
        let io = TokioIo::new(PausableSocket {
            socket: TcpStream::connect(server.address).await.unwrap(),
            paused: paused.clone(),
        });
        let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(1 << 30)
            .handshake(io)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self { sender, paused }
    }

    async fn get(&mut self) -> Response<Incoming> {
        let request = empty_request("GET", "http://localhost/", &[]);
        self.sender.send_request(request).await.unwrap()
    }

    fn pause_reading(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn stalled_http2_client_is_disconnected() {
    let busy = BusyChannel::new();
    let (server, mut connection_errors) = serve_with_write_timeout(
        busy.channel.clone(),
        SHORT_WRITE_TIMEOUT,
        leave_socket_as_is,
    )
    .await;
    let mut client = Http2Client::connect(&server, 1 << 30).await;
    let _stalled = client.get().await;
    client.pause_reading();
    busy.wait_until_unsubscribed().await;
    // h2 keeps only the kind and the text of a connection's error.
    let error = connection_errors.recv().await.unwrap();
    assert_eq!(find_io_error(&error).kind(), ErrorKind::TimedOut);
    assert_eq!(find_io_error(&error).to_string(), STALLED_MESSAGE);
}

/// A small window keeps the socket writable, so no write ever times out. The server notices that its pings are not answered.
#[tokio::test]
async fn pings_disconnect_stalled_http2_client() {
    let busy = BusyChannel::new();
    let service = TowerToHyperService::new(tower_push::service(busy.channel.clone()));
    let server = TestServer::start_with(move |socket| {
        let io = TokioIo::new(WriteTimeout::new(socket, SHORT_WRITE_TIMEOUT));
        let service = service.clone();
        async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(SHORT_WRITE_TIMEOUT)
                .keep_alive_timeout(SHORT_WRITE_TIMEOUT);
            let _ = builder.serve_connection(io, service).await;
        }
    });
    let own_settings = Server::builder()
        .http2_ping_interval(SHORT_WRITE_TIMEOUT)
        .build();
    let own_service = tower_push::service(busy.channel.clone());
    for server in [
        server.await,
        TestServer::start_on(own_settings, own_service).await,
    ] {
        let mut client = Http2Client::connect(&server, 1 << 16).await;
        let _stalled = client.get().await;
        assert_eq!(busy.channel.subscriber_count(), 1);
        client.pause_reading();
        busy.wait_until_unsubscribed().await;
    }
}

/// A client that reads its socket and answers pings, but leaves the window of one stream closed, is not disconnected.
#[tokio::test]
async fn unread_http2_stream_stays_and_others_continue() {
    let busy = BusyChannel::new();
    let (server, _ends) = serve_with_write_timeout(
        busy.channel.clone(),
        SHORT_WRITE_TIMEOUT,
        leave_socket_as_is,
    )
    .await;
    let mut client = Http2Client::connect(&server, 1 << 16).await;
    let _stalled = client.get().await;
    let mut reading = client.get().await.into_body();
    let start = Instant::now();
    while start.elapsed() < 3 * SHORT_WRITE_TIMEOUT {
        let frame = timeout(TEST_TIMEOUT, reading.frame()).await;
        frame
            .expect("the other stream should continue")
            .unwrap()
            .unwrap();
    }
    assert_eq!(busy.channel.subscriber_count(), 2);
}

/// Sends a request and reads `wanted` bytes of the response, at most 16 KiB every 10 ms (1.6 MB/s). Returns how many bytes were read,
/// which are fewer if the server cuts the response off.
async fn read_slowly(server: &TestServer, wanted: usize) -> usize {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(GET_REQUEST.as_bytes()).await.unwrap();
    let (mut total, mut buffer) = (0, vec![0; 16 * 1024]);
    while total < wanted {
        let Ok(read @ 1..) = socket.read(&mut buffer).await else {
            break;
        };
        total += read;
        sleep(Duration::from_millis(10)).await;
    }
    total
}

/// A source whose stream is always ready, with events of 16 KiB.
fn endless_source() -> impl PushSource + Clone + Send + Sync {
    let event = Event::text("x".repeat(16 * 1024));
    source_fn(async move |_| Ok(stream::repeat(event)))
}

const SECOND: Duration = Duration::from_secs(1);

async fn wait_until_detached(server: &Server) {
    let is_detached = || server.counts().detached_streams == 1;
    wait_until(is_detached, || format!("{:?}", server.counts())).await;
}

/// Like [`read_slowly`], from a server of tower-push. The endless events begin once the stream has left hyper.
async fn read_detached_slowly(
    write_timeout: Duration,
    prepare: fn(SockRef<'_>),
    wanted: usize,
) -> usize {
    let is_detached = Arc::new(Notify::new());
    let start = is_detached.clone();
    let event = Event::text("x".repeat(16 * 1024));
    let source = source_fn(async move |_| {
        let (start, first) = (start.clone(), event.clone());
        let first = stream::once(Box::pin(async move {
            start.notified().await;
            first
        }));
        Ok(first.chain(stream::repeat(event)))
    });
    let (server, settings) = serve_detached(source, write_timeout, prepare).await;
    let start_events = async {
        wait_until_detached(&settings).await;
        is_detached.notify_one();
    };
    let reading = timeout(TEST_TIMEOUT, read_slowly(&server, wanted));
    let (read_len, ()) = tokio::join!(reading, start_events);
    read_len.expect("the server should send more, or cut the stream off")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn slow_reader_stays_with_small_kernel_queue() {
    let limit_queue = |socket: SockRef<'_>| socket.set_tcp_notsent_lowat(16 * 1024).unwrap();
    let (server, mut connection_errors) =
        serve_with_write_timeout(endless_source(), 2 * SECOND, limit_queue).await;
    // Reading this much takes more than twice the timeout of two seconds.
    const WANTED_BYTES: usize = 8 << 20;
    let read_in_hyper = async {
        assert!(read_slowly(&server, WANTED_BYTES).await >= WANTED_BYTES);
        assert!(connection_errors.try_recv().is_err());
    };
    let read_detached = read_detached_slowly(2 * SECOND, limit_queue, WANTED_BYTES);
    let ((), read_len) = tokio::join!(read_in_hyper, read_detached);
    assert!(read_len >= WANTED_BYTES);
}

/// The kernel reports a socket with megabytes of send buffer as writable only when a third of the buffer is free.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn slow_reader_stalls_with_large_kernel_queue() {
    let (server, mut connection_errors) =
        serve_with_write_timeout(endless_source(), SECOND / 4, leave_socket_as_is).await;
    let reading = read_slowly(&server, usize::MAX);
    let error = tokio::select! {
        error = connection_errors.recv() => error.unwrap(),
        _ = reading => panic!("cut off without an error"),
    };
    assert_stalled(find_io_error(&error));
    read_detached_slowly(SECOND / 4, leave_socket_as_is, usize::MAX).await;
}

/// Where a program cannot wrap its connections, Linux can disconnect stalled clients.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn tcp_user_timeout_disconnects_stalled_client() {
    let busy = BusyChannel::new();
    let set_user_timeout = |socket: SockRef<'_>| {
        socket
            .set_tcp_user_timeout(Some(SHORT_WRITE_TIMEOUT))
            .unwrap()
    };
    let (server, mut connection_errors) =
        serve_with_write_timeout(busy.channel.clone(), DAY, set_user_timeout).await;
    let _stalled = open_and_stop_reading(server.address).await;
    busy.channel.subscribed().await;
    busy.wait_until_unsubscribed().await;
    let error = connection_errors.recv().await.unwrap();
    assert_eq!(find_io_error(&error).kind(), ErrorKind::TimedOut);
    assert!(find_io_error(&error).raw_os_error().is_some());

    let channel = Channel::new();
    let (server, settings) = serve_detached(channel.clone(), DAY, set_user_timeout).await;
    let _stalled = open_and_stop_reading(server.address).await;
    wait_until_detached(&settings).await;
    let busy = BusyChannel::of(channel);
    busy.wait_until_unsubscribed().await;
}

#[tokio::test]
async fn stalled_example_disconnects_in_each_framework() {
    let example = ExampleProcess::start("stalled", &["1"]);
    let urls = [(); 3].map(|()| example.next_address());
    for url in urls {
        let address = url.strip_prefix("http://").expect("http://…");
        let _stalled = open_and_stop_reading(address.parse().unwrap()).await;
        example.wait_for_line("1 subscribed");
        example.wait_for_line("nobody is left");
    }
}
