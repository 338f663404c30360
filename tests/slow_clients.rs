//! Whoever stops reading is put out, by the one who still can: the connection. Whoever is slow, or idle, stays.

use std::{
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use socket2::SockRef;
use testkit::{TEST_TIMEOUT, TestServer, empty_request, example_process::ExampleProcess};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tower_push::{
    BoxError, Channel, Error, Event, KeepAlive, PushSource, WriteProgress, source::source_fn,
    transport::Sse,
};

const PATIENCE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Both ends of a connection in memory that holds 64 bytes. The clock of these tests stands still but for what waits for it.
fn connection() -> (WriteProgress<DuplexStream>, DuplexStream) {
    let (server, client) = duplex(64);
    (WriteProgress::new(server, PATIENCE), client)
}

const STALLED: &str = "the peer has taken nothing for too long";

fn assert_stalled(error: &io::Error) {
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let inner = error.get_ref().and_then(|error| error.downcast_ref());
    assert!(inner.is_some_and(Error::is_stalled), "{error}");
    assert_eq!(error.to_string(), STALLED);
}

#[tokio::test(start_paused = true)]
async fn a_write_without_progress_fails_when_its_time_is_up() {
    let (mut server, _client) = connection();
    let start = Instant::now();
    let failed = server.write_all(&[0; 65]).await.unwrap_err();
    assert_stalled(&failed);
    let waited = start.elapsed();
    assert!(waited >= PATIENCE && waited < PATIENCE + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn every_byte_puts_the_end_off() {
    let (mut server, mut client) = connection();
    let reading = async {
        for _ in 0..100 {
            sleep(PATIENCE - Duration::from_secs(1)).await;
            client.read_u8().await.unwrap();
        }
        // And then no more.
        Instant::now()
    };
    let writing = async { (server.write_all(&[0; 165]).await, Instant::now()) };
    let (stopped, (written, failed)) = tokio::join!(reading, writing);
    assert_stalled(&written.unwrap_err());
    assert!(failed - stopped >= PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_stays() {
    let (mut server, mut client) = connection();
    server.write_all(&[1; 64]).await.unwrap();
    sleep(DAY).await;
    // Pending for a moment, then taken, then idle again.
    let write = async { server.write_all(&[2; 64]).await };
    let read = async { client.read_exact(&mut [0; 128]).await };
    let (written, read) = tokio::join!(write, read);
    written.unwrap();
    read.unwrap();
    sleep(DAY).await;
    server.write_all(&[3; 64]).await.unwrap();
}

#[test]
fn nothing_pending_takes_no_timer() {
    // Without a runtime a timer would panic.
    let (mut server, mut client) = connection();
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
fn an_idle_connection_is_three_words_larger() {
    let word = size_of::<usize>();
    let larger = size_of::<WriteProgress<TcpStream>>() - size_of::<TcpStream>();
    assert!(larger <= 3 * word, "{larger} bytes");
}

/// Takes nothing at all, and notes how it was asked.
#[derive(Default)]
struct Shut {
    vectored: bool,
    asked: Arc<Mutex<Vec<&'static str>>>,
}

impl Shut {
    fn ask<T>(&self, how: &'static str) -> Poll<io::Result<T>> {
        self.asked.lock().unwrap().push(how);
        Poll::Pending
    }
}

impl AsyncWrite for Shut {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.ask("write")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ask("flush")
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ask("shutdown")
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.ask("vectored")
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }
}

/// Tries each way to write, and is told how the connection below was asked.
macro_rules! each_way {
    ($trait:path, $wrap:expr) => {{
        use $trait as Write;
        let (shut, slices) = (Shut::default(), [IoSlice::new(b"a"), IoSlice::new(b"b")]);
        let asked = shut.asked.clone();
        let mut io = pin!(WriteProgress::new($wrap(shut), PATIENCE));
        let written = poll_fn(|cx| Write::poll_write(io.as_mut(), cx, b"a")).await;
        assert_stalled(&written.unwrap_err());
        let vectored = poll_fn(|cx| Write::poll_write_vectored(io.as_mut(), cx, &slices)).await;
        assert_stalled(&vectored.unwrap_err());
        let flushed = poll_fn(|cx| Write::poll_flush(io.as_mut(), cx)).await;
        assert_stalled(&flushed.unwrap_err());
        let shut_down = poll_fn(|cx| Write::poll_shutdown(io.as_mut(), cx)).await;
        assert_stalled(&shut_down.unwrap_err());
        let mut asked = asked.lock().unwrap().clone();
        asked.dedup();
        assert_eq!(asked, ["write", "vectored", "flush", "shutdown"]);
        for vectored in [false, true] {
            let shut = Shut {
                vectored,
                ..Shut::default()
            };
            let io = WriteProgress::new($wrap(shut), PATIENCE);
            assert_eq!(Write::is_write_vectored(&io), vectored);
        }
    }};
}

#[tokio::test(start_paused = true)]
async fn every_way_to_write_is_watched_and_passed_on_as_it_is() {
    each_way!(tokio::io::AsyncWrite, |shut| shut);
    each_way!(hyper::rt::Write, TokioIo::new);
}

/// A stream that is idle for a day, with heartbeats and without.
#[tokio::test(start_paused = true)]
async fn an_idle_client_stays() {
    for (keep_alive, heartbeats) in [
        (KeepAlive::default(), 5000..7000),
        (KeepAlive::disabled(), 0..1),
    ] {
        let channel = Channel::new();
        let service =
            tower_push::service(channel.clone()).transport(Sse::new().keep_alive(keep_alive));
        let (server, mut client) = connection();
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(service);
            builder
                .serve_connection(TokioIo::new(server), service)
                .await
        });
        client.write_all(ASKING.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        assert!(
            timeout(DAY, read_until(&mut client, &mut read, "never"))
                .await
                .is_err()
        );
        // The first byte of the stream comes with its cursor, so that it is not one of these.
        let read_so_far = String::from_utf8_lossy(&read);
        let beats = read_so_far.matches("\r\n:\n\r\n").count();
        assert!(heartbeats.contains(&beats), "{beats}");

        channel.publish("hello").unwrap();
        read_until(&mut client, &mut read, "data: hello\n\n").await;
    }
}

async fn read_until(client: &mut DuplexStream, read: &mut Vec<u8>, end: &str) {
    while !String::from_utf8_lossy(read).contains(end) {
        assert_ne!(client.read_buf(read).await.unwrap(), 0);
    }
}

const ASKING: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// A channel into which somebody publishes more than any buffer holds, until it is dropped.
struct Flood {
    channel: Channel,
    publishing: AbortHandle,
}

impl Flood {
    fn new() -> Self {
        let channel = Channel::new();
        let flooded = channel.clone();
        let publishing = tokio::spawn(async move {
            let event = Event::text("x".repeat(64 * 1024));
            loop {
                flooded.publish(event.clone()).unwrap();
                sleep(Duration::from_millis(2)).await;
            }
        });
        Self {
            channel,
            publishing: publishing.abort_handle(),
        }
    }

    async fn loses_its_subscribers(&self) {
        let idle = timeout(TEST_TIMEOUT, self.channel.unsubscribed()).await;
        idle.expect("the stalled subscriber is put out");
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

/// Short, since everyone in these tests either reads all the time or never again.
const SHORT: Duration = Duration::from_millis(200);

/// The errors that connections ended with.
type Ends = UnboundedReceiver<BoxError>;

/// A server that gives its connections this long.
async fn watched<S>(source: S, patience: Duration, prepare: fn(SockRef<'_>)) -> (TestServer, Ends)
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let service = TowerToHyperService::new(tower_push::service(source));
    let (ended, ends) = unbounded_channel();
    let server = TestServer::start_with(move |socket| {
        prepare(SockRef::from(&socket));
        let io = TokioIo::new(WriteProgress::new(socket, patience));
        let (service, ended) = (service.clone(), ended.clone());
        async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            if let Err(error) = builder.serve_connection(io, service).await {
                let _ = ended.send(error);
            }
        }
    });
    (server.await, ends)
}

fn as_it_is(_: SockRef<'_>) {}

/// The reason at the bottom of a server's error.
fn io_error(error: &BoxError) -> &io::Error {
    let mut error: &dyn std::error::Error = &**error;
    while let Some(source) = error.source() {
        error = source;
        if let Some(error) = error.downcast_ref() {
            return error;
        }
    }
    panic!("{error}");
}

/// An HTTP/1.1 client that asks, reads a little, and then no more.
async fn stop_reading(address: std::net::SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(ASKING.as_bytes()).await.unwrap();
    socket.read_exact(&mut [0; 15]).await.unwrap();
    socket
}

#[tokio::test]
async fn an_http1_client_that_stops_reading_is_put_out() {
    let flood = Flood::new();
    let (server, mut ends) = watched(flood.channel.clone(), SHORT, as_it_is).await;
    let _stalled = stop_reading(server.address).await;
    flood.channel.subscribed().await;
    flood.loses_its_subscribers().await;
    assert_stalled(io_error(&ends.recv().await.unwrap()));
}

/// A socket that is not read any more once it was told so.
struct Gate {
    socket: TcpStream,
    shut: Arc<AtomicBool>,
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.shut.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gate {
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

/// An HTTP/2 client whose streams have windows of this size.
struct Http2 {
    sender: conn::http2::SendRequest<Empty<Bytes>>,
    shut: Arc<AtomicBool>,
}

impl Http2 {
    async fn connect(server: &TestServer, window: u32) -> Self {
        let shut = Arc::<AtomicBool>::default();
        let io = TokioIo::new(Gate {
            socket: TcpStream::connect(server.address).await.unwrap(),
            shut: shut.clone(),
        });
        let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(1 << 30)
            .handshake(io)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self { sender, shut }
    }

    async fn ask(&mut self) -> Response<Incoming> {
        let request = empty_request("GET", "http://localhost/", &[]);
        self.sender.send_request(request).await.unwrap()
    }

    fn stop_reading(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_http2_client_that_stops_reading_is_put_out() {
    let flood = Flood::new();
    let (server, mut ends) = watched(flood.channel.clone(), SHORT, as_it_is).await;
    let mut client = Http2::connect(&server, 1 << 30).await;
    let _stalled = client.ask().await;
    client.stop_reading();
    flood.loses_its_subscribers().await;
    // Of an error of its connection h2 keeps the kind and the text.
    let error = ends.recv().await.unwrap();
    assert_eq!(io_error(&error).kind(), ErrorKind::TimedOut);
    assert_eq!(io_error(&error).to_string(), STALLED);
}

/// Behind a small window nothing is ever pending at the socket: the server's pings are not answered.
#[tokio::test]
async fn an_http2_client_that_stops_reading_behind_a_small_window_is_put_out_by_pings() {
    let flood = Flood::new();
    let service = TowerToHyperService::new(tower_push::service(flood.channel.clone()));
    let server = TestServer::start_with(move |socket| {
        let io = TokioIo::new(WriteProgress::new(socket, SHORT));
        let service = service.clone();
        async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(SHORT)
                .keep_alive_timeout(SHORT);
            let _ = builder.serve_connection(io, service).await;
        }
    });
    let server = server.await;
    let mut client = Http2::connect(&server, 1 << 16).await;
    let _stalled = client.ask().await;
    client.stop_reading();
    flood.loses_its_subscribers().await;
}

/// What nothing puts out, as yet: who reads its socket, answers pings, and leaves a stream's window shut.
#[tokio::test]
async fn an_http2_stream_that_is_not_read_stays_and_its_neighbours_flow() {
    let flood = Flood::new();
    let (server, _ends) = watched(flood.channel.clone(), SHORT, as_it_is).await;
    let mut client = Http2::connect(&server, 1 << 16).await;
    let _stalled = client.ask().await;
    let mut reading = client.ask().await.into_body();
    let start = Instant::now();
    while start.elapsed() < 3 * SHORT {
        let frame = timeout(TEST_TIMEOUT, reading.frame()).await;
        frame.expect("its own window is open").unwrap().unwrap();
    }
    assert_eq!(flood.channel.subscriber_count(), 2);
}

/// Asks, and reads this many bytes, 16 KiB every 10 ms at the most: 1.6 MB/s. Less, if it is cut off.
async fn read_slowly(server: &TestServer, wanted: usize) -> usize {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(ASKING.as_bytes()).await.unwrap();
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

/// Always ready, for ever, with events of 16 KiB.
fn plenty() -> impl PushSource + Clone + Send + Sync {
    let event = Event::text("x".repeat(16 * 1024));
    source_fn(async move |_| Ok(stream::repeat(event)))
}

const SECOND: Duration = Duration::from_secs(1);

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_slow_reader_stays_where_the_kernel_queues_little() {
    let queue_little = |socket: SockRef<'_>| socket.set_tcp_notsent_lowat(16 * 1024).unwrap();
    let (server, mut ends) = watched(plenty(), 2 * SECOND, queue_little).await;
    // For more than the two seconds, twice.
    const WANTED: usize = 8 << 20;
    assert!(read_slowly(&server, WANTED).await >= WANTED);
    assert!(ends.try_recv().is_err());
}

/// The kernel asks for more only when a third of its megabytes is free.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_slow_reader_counts_as_stalled_where_the_kernel_queues_megabytes() {
    let (server, mut ends) = watched(plenty(), SECOND / 4, as_it_is).await;
    let reading = read_slowly(&server, usize::MAX);
    let error = tokio::select! {
        error = ends.recv() => error.unwrap(),
        _ = reading => panic!("cut off without an error"),
    };
    assert_stalled(io_error(&error));
}

/// Linux can do it alone, where there is no other way to get at the connection.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_stops_reading_is_put_out_by_the_kernel_if_it_is_told_to() {
    let flood = Flood::new();
    let give_up = |socket: SockRef<'_>| socket.set_tcp_user_timeout(Some(SHORT)).unwrap();
    let (server, mut ends) = watched(flood.channel.clone(), DAY, give_up).await;
    let _stalled = stop_reading(server.address).await;
    flood.channel.subscribed().await;
    flood.loses_its_subscribers().await;
    let error = ends.recv().await.unwrap();
    assert_eq!(io_error(&error).kind(), ErrorKind::TimedOut);
    assert!(io_error(&error).raw_os_error().is_some());
}

#[tokio::test]
async fn the_example_puts_stalled_clients_out_in_each_framework() {
    let example = ExampleProcess::start("stalled", &["1"]);
    let urls = [(); 3].map(|()| example.next_address());
    for url in urls {
        let address = url.strip_prefix("http://").expect("http://…");
        let _stalled = stop_reading(address.parse().unwrap()).await;
        example.wait_for_line("1 subscribed");
        example.wait_for_line("nobody is left");
    }
}
