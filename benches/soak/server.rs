//! The server: every transport under one guard, with short deadlines, so that misbehaving clients are disconnected soon.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    hint::black_box,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http::{Request, StatusCode, request::Parts};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Builder,
    task::JoinHandle,
    time::interval,
};
use tokio_stream::wrappers::IntervalStream;
use tower::{Layer, service_fn};
use tower_push::{
    Channel, Drain, Event, Guard, Hub, KeepAlive, Push, Resumable, WriteTimeout,
    format::{JsonSeq, Multipart, Ndjson, Raw},
    guard::{Admission, CloseReason, DrainPlan, Observer, RefusalReason, StreamInfo},
    layer::TransportLayer,
    server::Server,
    source::{Rejection, Subscription, source_fn},
    transport::{Chunked, LongPoll, Negotiate, Sse, WebSocket},
};

use crate::{ALLOCATOR, BoxError, DRAINED_STREAMS, SETTLE_TIMEOUT, UNREAD_STREAMS};

/// The deadline for clients that read nothing, send half a message, or do not close.
pub(crate) const CLIENT_DEADLINE: Duration = Duration::from_secs(1);

/// The deadline for clients that do not answer a ping. It is longer, because well-behaved clients may be busy.
const PONG_DEADLINE: Duration = Duration::from_secs(3);

const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
const PARK_TIMEOUT: Duration = Duration::from_secs(1);

/// The time between two events of the channel.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(5);

/// The number of events in the channel's log. It is a multiple of 64, after which the sizes of payloads repeat.
const LOG_EVENTS: u64 = 1024;

/// The topics of the hub, to which the events of the channel are published in turn.
const TOPICS: [&str; 2] = ["feed/0", "feed/1"];

/// The number of admission keys. A request has its key as `key=` in the query; the requests of persistent readers have none.
pub(crate) const KEY_COUNT: usize = 8;
/// The largest number of open streams for each key.
pub(crate) const STREAMS_PER_KEY: usize = 5;

/// Returns the payload of an event: its number, and for some events padding, which is compressed or fills a buffer.
pub(crate) fn event_payload(number: u64) -> String {
    let padding_len = match number {
        n if n % 64 == 0 => 4000,
        n if n % 4 == 0 => 200,
        _ => 0,
    };
    format!("{number:08}{}", " ".repeat(padding_len))
}

/// What the server reports about itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ServerState {
    /// The resources that must be as at the start when all clients have disconnected.
    pub(crate) open: OpenResources,
    pub(crate) counts: StreamCounts,
    /// The allocated bytes that are not freed.
    pub(crate) bytes: i64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct OpenResources {
    /// The open streams that the guard counts.
    pub(crate) streams: u64,
    /// The sum of the numbers of the open streams, which the observer counts.
    pub(crate) observed: u64,
    pub(crate) drain: usize,
    /// The open connections of tower-push's [`Server`].
    pub(crate) connections: u64,
    pub(crate) subscribers: usize,
    /// The streams of a `Resumable`, active or parked.
    pub(crate) resumable: usize,
    pub(crate) tasks: usize,
    pub(crate) files: usize,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct StreamCounts {
    pub(crate) opened: u64,
    /// The streams that have left hyper.
    pub(crate) detached: u64,
    pub(crate) closed: BTreeMap<String, u64>,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) events: u64,
    pub(crate) parked_too_long: u64,
}

/// The outcome of a drain.
#[derive(Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct DrainResult {
    pub(crate) notified: usize,
    pub(crate) left: usize,
    pub(crate) cut: usize,
}

/// The names of the servers, in the order of their addresses. Both serve the same service.
pub(crate) const SERVERS: [&str; 2] = ["hyper", "tower-push"];

/// The number of worker threads of the server's runtime, and so of its event loops.
pub(crate) const WORKER_THREADS: usize = 2;

/// Runs the server's process. The process prints the addresses of [`SERVERS`], and then answers each line on standard input with a line.
pub(crate) fn serve(leak: usize) -> Result<(), BoxError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    let server = SoakServer::new(leak);
    let listeners = runtime.block_on(async { Ok::<_, io::Error>([listen()?, listen()?]) })?;
    for listener in &listeners {
        println!("{}", listener.local_addr()?);
    }
    runtime.block_on(async { server.clone().accept(listeners) });

    let mut publisher: Option<JoinHandle<()>> = None;
    let mut line = String::new();
    // `lines()` would allocate a buffer, which would count as growth.
    while io::stdin().read_line(&mut line)? > 0 {
        let answer = match line.trim() {
            "publish" => {
                publisher = Some(runtime.spawn(server.clone().publish_regularly()));
                server.published().to_string()
            }
            "pause" => {
                if let Some(publisher) = publisher.take() {
                    publisher.abort();
                    let _ = runtime.block_on(publisher);
                }
                server.published().to_string()
            }
            "fill" => {
                server.fill();
                server.published().to_string()
            }
            "state" => {
                let tasks = runtime.metrics().num_alive_tasks();
                serde_json::to_string(&server.state(tasks)?)?
            }
            "drain" => serde_json::to_string(&runtime.block_on(server.drain_streams()))?,
            other => return Err(format!("no command: {other}").into()),
        };
        println!("{answer}");
        line.clear();
    }
    runtime.shutdown_timeout(SETTLE_TIMEOUT);
    Ok(())
}

/// Runs `serve_connection` for each accepted connection, in a task of its own.
async fn accept_loop<F>(listener: TcpListener, serve_connection: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        // Small buffers are full soon.
        let _ = SockRef::from(&socket).set_send_buffer_size(32 * 1024);
        let _ = socket.set_nodelay(true);
        tokio::spawn(serve_connection(socket));
    }
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(1024)
}

#[derive(Clone)]
struct SoakServer {
    channel: Channel,
    /// Has the events of the channel, in [`TOPICS`].
    hub: Hub,
    /// A channel without events.
    quiet: Channel,
    /// Wraps the streams of `/resumable`.
    resumable: Resumable,
    /// Parks plain streams between polls.
    parked: Resumable,
    drain: Drain,
    guard: Guard,
    server: Server,
    observed: OpenStreamObserver,
    published: Arc<AtomicU64>,
    /// The number of bytes that each request leaks.
    leak: usize,
}

/// An observer that sums up the numbers of opened and of closed streams.
#[derive(Clone, Default)]
struct OpenStreamObserver(Arc<[AtomicU64; 2]>);

impl Observer for OpenStreamObserver {
    fn on_open(&self, stream: &StreamInfo, _: &Subscription) {
        self.0[0].fetch_add(stream.number, Ordering::Relaxed);
    }

    fn on_close(&self, stream: &StreamInfo, _: CloseReason, _: Duration) {
        self.0[1].fetch_add(stream.number, Ordering::Relaxed);
    }
}

impl OpenStreamObserver {
    /// Returns the sum of the numbers of the open streams. It is 0 if each stream was closed exactly once.
    fn open(&self) -> u64 {
        let [opened, closed] = &*self.0;
        let closed = closed.load(Ordering::Relaxed);
        opened.load(Ordering::Relaxed).wrapping_sub(closed)
    }
}

impl SoakServer {
    fn new(leak: usize) -> Self {
        let resumable = || Resumable::builder().park_timeout(PARK_TIMEOUT).build();
        let drain = Drain::new();
        let key = |head: &Parts| {
            let key = head.uri.query()?.split('&');
            key.filter_map(|pair| pair.strip_prefix("key="))
                .next()
                .map(str::to_owned)
        };
        let admission = Admission::builder()
            .max_streams(DRAINED_STREAMS + UNREAD_STREAMS)
            .max_streams_per(key, STREAMS_PER_KEY)
            .build();
        let observed = OpenStreamObserver::default();
        let guard = Guard::builder()
            .drain(&drain)
            .admission(&admission)
            .observer(observed.clone())
            .build();
        let server = Server::builder()
            .drain(&drain)
            .header_read_timeout(CLIENT_DEADLINE)
            .idle_timeout(PONG_DEADLINE)
            .write_timeout(CLIENT_DEADLINE)
            .http2_ping_interval(PONG_DEADLINE)
            .build();
        Self {
            channel: Channel::builder().max_events(LOG_EVENTS as usize).build(),
            hub: Hub::builder()
                .max_events(LOG_EVENTS as usize / TOPICS.len())
                .build(),
            quiet: Channel::new(),
            resumable: resumable(),
            parked: resumable(),
            drain,
            guard,
            server,
            observed,
            published: Arc::default(),
            leak,
        }
    }

    fn transports(&self) -> Negotiate {
        let keep_alive = || KeepAlive::new().interval(HEARTBEAT_INTERVAL);
        let sockets = WebSocket::new()
            .deflate_threshold(Some(128))
            .keep_alive(keep_alive())
            .pong_timeout(PONG_DEADLINE)
            .message_timeout(CLIENT_DEADLINE)
            .write_timeout(CLIENT_DEADLINE)
            .close_timeout(CLIENT_DEADLINE);
        let polls = LongPoll::new()
            .wait_time(2 * HEARTBEAT_INTERVAL)
            .resumable(self.parked.clone())
            .keep_alive(keep_alive());
        Negotiate::only(Sse::new().keep_alive(keep_alive()))
            .add_transport(Chunked::new(Ndjson::new()).keep_alive(keep_alive()))
            .add_transport(Chunked::new(JsonSeq::new()).keep_alive(keep_alive()))
            .add_transport(Chunked::new(Multipart::mixed()).keep_alive(keep_alive()))
            .add_transport(Chunked::new(Raw::new()).keep_alive(keep_alive()))
            .add_transport(polls)
            .add_transport(sockets)
    }

    /// Starts the accept loops of [`SERVERS`].
    fn accept(self, [hyper_listener, own_listener]: [TcpListener; 2]) {
        let own_server = self.server.clone();
        let layer = TransportLayer::with(self.guard.wrap(self.transports()));
        let service = layer.layer(service_fn(move |request: Request<Incoming>| {
            // `black_box` keeps the compiler from removing the allocation.
            std::mem::forget(black_box(vec![0_u8; self.leak]));
            let push = self.push(request.uri().path());
            async { Ok::<_, Infallible>(push) }
        }));
        let own_service = service.clone();
        tokio::spawn(accept_loop(own_listener, move |socket| {
            let connection = own_server.connection(socket, own_service.clone());
            async move {
                let _ = connection.await;
            }
        }));

        let service = TowerToHyperService::new(service);
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(CLIENT_DEADLINE);
        server
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HEARTBEAT_INTERVAL)
            .keep_alive_timeout(PONG_DEADLINE)
            .enable_connect_protocol();
        tokio::spawn(accept_loop(hyper_listener, move |socket| {
            let io = TokioIo::new(WriteTimeout::new(socket, CLIENT_DEADLINE));
            let (server, service) = (server.clone(), service.clone());
            async move {
                let _ = server.serve_connection_with_upgrades(io, service).await;
            }
        }));
    }

    fn push(&self, path: &str) -> Push {
        match path {
            "/" => Push::new(self.channel.clone()),
            "/topics" => Push::new(self.hub.topics(TOPICS).expect("topics")),
            "/quiet" => Push::new(self.quiet.clone()),
            "/resumable" => Push::new(self.resumable.wrap(number_stream())),
            "/plain" => Push::new(number_stream()),
            "/flood" => Push::new(stream::repeat_with(|| "x".repeat(16 * 1024))),
            "/ends" => Push::new(number_stream().take(3)),
            "/fails" => {
                let failure = stream::iter([Err("on purpose")]);
                Push::new(number_stream().take(3).map(Ok).chain(failure))
            }
            "/expires" => Push::new(source_fn(async |subscription: Subscription| {
                subscription.expire_within(HEARTBEAT_INTERVAL);
                Ok(number_stream())
            })),
            "/echo" => Push::new(source_fn(async |subscription: Subscription| {
                let messages = subscription.client_messages();
                messages.ok_or(Rejection::new(StatusCode::UPGRADE_REQUIRED))
            })),
            _ => Push::new(source_fn(async |_| {
                Err::<stream::Empty<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
            })),
        }
    }

    /// Returns the number of subscribers of the channels and the topics.
    fn subscriber_count(&self) -> usize {
        let of_topic = |topic| self.hub.topic(topic).map_or(0, |it| it.subscriber_count());
        let of_channels = self.channel.subscriber_count() + self.quiet.subscriber_count();
        of_channels + TOPICS.into_iter().map(of_topic).sum::<usize>()
    }

    fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    fn publish(&self) {
        let number = self.published.fetch_add(1, Ordering::SeqCst) + 1;
        let _ = self.channel.publish(event_payload(number));
        let topic = TOPICS[number as usize % TOPICS.len()];
        let _ = self.hub.publish(topic, event_payload(number));
    }

    /// Publishes until the task is aborted.
    async fn publish_regularly(self) {
        let mut pauses = interval(PUBLISH_INTERVAL);
        loop {
            pauses.tick().await;
            self.publish();
        }
    }

    /// Fills the log with events of the same sizes each time.
    fn fill(&self) {
        for _ in 0..LOG_EVENTS {
            self.publish();
        }
        while self.published() % LOG_EVENTS != 0 {
            self.publish();
        }
    }

    fn state(&self, tasks: usize) -> io::Result<ServerState> {
        let stats = ALLOCATOR.stats();
        let counts = self.guard.counts();
        let connections = self.server.counts();
        let resumable = [&self.resumable, &self.parked].map(Resumable::counts);
        let closed =
            CloseReason::ALL.map(|reason| (reason.name().to_owned(), counts.closed(reason)));
        let refused =
            RefusalReason::ALL.map(|reason| (reason.name().to_owned(), counts.refused(reason)));
        Ok(ServerState {
            open: OpenResources {
                streams: counts.open(),
                observed: self.observed.open(),
                drain: self.drain.open_streams(),
                connections: connections.open_connections,
                subscribers: self.subscriber_count(),
                resumable: resumable.iter().map(|it| it.active + it.parked).sum(),
                tasks,
                files: fs::read_dir("/proc/self/fd")?.count(),
            },
            counts: StreamCounts {
                opened: counts.opened,
                detached: connections.detached_streams,
                closed: closed.into(),
                refused: refused.into(),
                events: counts.events,
                parked_too_long: resumable.iter().map(|it| it.parked_too_long).sum(),
            },
            bytes: stats.bytes_allocated as i64 - stats.bytes_deallocated as i64,
        })
    }

    /// Drains the server.
    async fn drain_streams(&self) -> DrainResult {
        let plan = DrainPlan::within(Duration::from_secs(6)).spread(Duration::from_secs(1));
        self.drain.start(plan);
        let drained = self.drain.wait().await;
        DrainResult {
            notified: drained.notified,
            left: drained.left,
            cut: drained.cut,
        }
    }
}

/// Returns a stream of event payloads for one client.
fn number_stream() -> impl Stream<Item = String> + Send + Unpin {
    let mut number = 0;
    IntervalStream::new(interval(2 * PUBLISH_INTERVAL)).map(move |_| {
        number += 1;
        event_payload(number)
    })
}
