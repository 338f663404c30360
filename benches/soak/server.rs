//! The server: every transport under one guard, with deadlines so short that whoever is to be put out is put out soon.

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
    net::{TcpListener, TcpSocket},
    runtime::Builder,
    task::JoinHandle,
    time::interval,
};
use tokio_stream::wrappers::IntervalStream;
use tower::{Layer, service_fn};
use tower_push::{
    Channel, Drain, Event, Guard, KeepAlive, Push, Resumable, WriteProgress,
    format::{JsonSeq, Multipart, Ndjson, Raw},
    guard::{Admission, CloseReason, DrainPlan, Observer, RefusalReason, StreamInfo},
    layer::TransportLayer,
    source::{Rejection, Subscription, source_fn},
    transport::{Chunked, LongPoll, Negotiate, Sse, WebSocket},
};

use crate::{ALLOCATOR, BoxError, DRAINED, SHUT, SOON};

/// For clients that take nothing, send half a message, or do not close.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// For clients that do not answer a ping: longer, for those that stay may be busy.
const PONG: Duration = Duration::from_secs(3);

const HEARTBEAT: Duration = Duration::from_millis(500);
const PARKED_FOR: Duration = Duration::from_secs(1);

/// Between two events.
const PAUSE: Duration = Duration::from_millis(5);

/// In the channel's log: a number after which payloads repeat their sizes.
const EVENTS: u64 = 1024;

/// How many keys there are, as `key=` in a query, and how many streams of each there may be. Who is to stay has none.
pub(crate) const KEYS: usize = 8;
pub(crate) const PER_KEY: usize = 5;

/// The payload of an event: its number, and from time to time something behind it, to be compressed or to fill a buffer.
pub(crate) fn text(number: u64) -> String {
    let behind = match number {
        n if n % 64 == 0 => 4000,
        n if n % 4 == 0 => 200,
        _ => 0,
    };
    format!("{number:08}{}", " ".repeat(behind))
}

/// What the server says of itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct State {
    /// What has to be as it was, once all clients are gone.
    pub(crate) open: Open,
    pub(crate) counts: Counts,
    /// Live, as the allocator counts them.
    pub(crate) bytes: i64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) streams: u64,
    /// By the observer.
    pub(crate) observed: u64,
    pub(crate) drain: usize,
    pub(crate) subscribers: usize,
    /// Kept streams, parked or read.
    pub(crate) kept: usize,
    pub(crate) tasks: usize,
    pub(crate) files: usize,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    pub(crate) closed: BTreeMap<String, u64>,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) events: u64,
    pub(crate) parked_too_long: u64,
}

/// What became of the streams that were open when the drain began.
#[derive(Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct Drained {
    pub(crate) notified: usize,
    pub(crate) left: usize,
    pub(crate) cut: usize,
}

/// The server's process: says its address, and then answers each line with a line.
pub(crate) fn serve(leak: usize) -> Result<(), BoxError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let soaked = Soaked::new(leak);
    let listener = runtime.block_on(async { listen() })?;
    println!("{}", listener.local_addr()?);
    runtime.spawn(soaked.clone().accept(listener));

    let mut publishing: Option<JoinHandle<()>> = None;
    let mut line = String::new();
    // Read one by one, so that no buffer is counted.
    while io::stdin().read_line(&mut line)? > 0 {
        let answer = match line.trim() {
            "publish" => {
                publishing = Some(runtime.spawn(soaked.clone().publish_on()));
                soaked.published().to_string()
            }
            "rest" => {
                if let Some(publishing) = publishing.take() {
                    publishing.abort();
                    let _ = runtime.block_on(publishing);
                }
                soaked.published().to_string()
            }
            "fill" => {
                soaked.fill();
                soaked.published().to_string()
            }
            "state" => {
                let tasks = runtime.metrics().num_alive_tasks();
                serde_json::to_string(&soaked.state(tasks)?)?
            }
            "drain" => serde_json::to_string(&runtime.block_on(soaked.stop()))?,
            other => return Err(format!("no command: {other}").into()),
        };
        println!("{answer}");
        line.clear();
    }
    runtime.shutdown_timeout(SOON);
    Ok(())
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(1024)
}

#[derive(Clone)]
struct Soaked {
    channel: Channel,
    /// On which nothing is ever published.
    quiet: Channel,
    kept: Resumable,
    parked: Resumable,
    drain: Drain,
    guard: Guard,
    observed: Observed,
    published: Arc<AtomicU64>,
    /// Bytes that each request leaves behind, to see that it is noticed.
    leak: usize,
}

/// What an observer has heard.
#[derive(Clone, Default)]
struct Observed(Arc<[AtomicU64; 2]>);

impl Observer for Observed {
    fn on_open(&self, stream: &StreamInfo, _: &Subscription) {
        self.0[0].fetch_add(stream.number, Ordering::Relaxed);
    }

    fn on_close(&self, stream: &StreamInfo, _: CloseReason, _: Duration) {
        self.0[1].fetch_add(stream.number, Ordering::Relaxed);
    }
}

impl Observed {
    /// The sum of the numbers of those that are open: 0 if each was closed, and once.
    fn open(&self) -> u64 {
        let [opened, closed] = &*self.0;
        let closed = closed.load(Ordering::Relaxed);
        opened.load(Ordering::Relaxed).wrapping_sub(closed)
    }
}

impl Soaked {
    fn new(leak: usize) -> Self {
        let resumable = || Resumable::builder().park_timeout(PARKED_FOR).build();
        let drain = Drain::new();
        let key = |head: &Parts| {
            let key = head.uri.query()?.split('&');
            key.filter_map(|pair| pair.strip_prefix("key="))
                .next()
                .map(str::to_owned)
        };
        let admission = Admission::builder()
            .max_streams(DRAINED + SHUT)
            .max_streams_per(key, PER_KEY)
            .build();
        let observed = Observed::default();
        let guard = Guard::builder()
            .drain(&drain)
            .admission(&admission)
            .observer(observed.clone())
            .build();
        Self {
            channel: Channel::builder().max_events(EVENTS as usize).build(),
            quiet: Channel::new(),
            kept: resumable(),
            parked: resumable(),
            drain,
            guard,
            observed,
            published: Arc::default(),
            leak,
        }
    }

    fn transports(&self) -> Negotiate {
        let beat = || KeepAlive::new().interval(HEARTBEAT);
        let sockets = WebSocket::new()
            .keep_alive(beat())
            .pong_deadline(PONG)
            .message_deadline(PATIENCE)
            .write_deadline(PATIENCE)
            .close_deadline(PATIENCE);
        let polls = LongPoll::new()
            .wait_time(2 * HEARTBEAT)
            .resumable(self.parked.clone())
            .keep_alive(beat());
        Negotiate::only(Sse::new().keep_alive(beat()))
            .add_transport(Chunked::new(Ndjson::new()).keep_alive(beat()))
            .add_transport(Chunked::new(JsonSeq::new()).keep_alive(beat()))
            .add_transport(Chunked::new(Multipart::mixed()).keep_alive(beat()))
            .add_transport(Chunked::new(Raw::new()).keep_alive(beat()))
            .add_transport(polls)
            .add_transport(sockets)
    }

    async fn accept(self, listener: TcpListener) {
        let layer = TransportLayer::with(self.guard.wrap(self.transports()));
        let service = layer.layer(service_fn(move |request: Request<Incoming>| {
            // An allocation that nobody looks at may be left out.
            std::mem::forget(black_box(vec![0_u8; self.leak]));
            let push = self.push(request.uri().path());
            async { Ok::<_, Infallible>(push) }
        }));
        let service = TowerToHyperService::new(service);
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE);
        server
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HEARTBEAT)
            .keep_alive_timeout(PONG)
            .enable_connect_protocol();
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                continue;
            };
            // A little, so that buffers are soon full.
            let _ = SockRef::from(&socket).set_send_buffer_size(32 * 1024);
            let _ = socket.set_nodelay(true);
            let io = TokioIo::new(WriteProgress::new(socket, PATIENCE));
            let (server, service) = (server.clone(), service.clone());
            tokio::spawn(async move {
                let _ = server.serve_connection_with_upgrades(io, service).await;
            });
        }
    }

    fn push(&self, path: &str) -> Push {
        match path {
            "/" => Push::new(self.channel.clone()),
            "/quiet" => Push::new(self.quiet.clone()),
            "/kept" => Push::new(self.kept.wrap(numbers())),
            "/plain" => Push::new(numbers()),
            "/flood" => Push::new(stream::repeat_with(|| "x".repeat(16 * 1024))),
            "/ends" => Push::new(numbers().take(3)),
            "/fails" => {
                let failure = stream::iter([Err("on purpose")]);
                Push::new(numbers().take(3).map(Ok).chain(failure))
            }
            "/expires" => Push::new(source_fn(async |subscription: Subscription| {
                subscription.expire_within(HEARTBEAT);
                Ok(numbers())
            })),
            "/said" => Push::new(source_fn(async |subscription: Subscription| {
                let said = subscription.client_messages();
                said.ok_or(Rejection::new(StatusCode::UPGRADE_REQUIRED))
            })),
            _ => Push::new(source_fn(async |_| {
                Err::<stream::Empty<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
            })),
        }
    }

    fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    fn publish(&self) {
        let number = self.published.fetch_add(1, Ordering::SeqCst) + 1;
        let _ = self.channel.publish(text(number));
    }

    async fn publish_on(self) {
        let mut pauses = interval(PAUSE);
        loop {
            pauses.tick().await;
            self.publish();
        }
    }

    /// So that the log holds the same at all times when nobody reads it.
    fn fill(&self) {
        for _ in 0..EVENTS {
            self.publish();
        }
        while self.published() % EVENTS != 0 {
            self.publish();
        }
    }

    fn state(&self, tasks: usize) -> io::Result<State> {
        let stats = ALLOCATOR.stats();
        let counts = self.guard.counts();
        let kept = [&self.kept, &self.parked].map(Resumable::counts);
        let closed =
            CloseReason::ALL.map(|reason| (reason.name().to_owned(), counts.closed(reason)));
        let refused = RefusalReason::ALL.map(|why| (why.name().to_owned(), counts.refused(why)));
        Ok(State {
            open: Open {
                streams: counts.open(),
                observed: self.observed.open(),
                drain: self.drain.open_streams(),
                subscribers: self.channel.subscriber_count() + self.quiet.subscriber_count(),
                kept: kept.iter().map(|it| it.active + it.parked).sum(),
                tasks,
                files: fs::read_dir("/proc/self/fd")?.count(),
            },
            counts: Counts {
                opened: counts.opened,
                closed: closed.into(),
                refused: refused.into(),
                events: counts.events,
                parked_too_long: kept.iter().map(|it| it.parked_too_long).sum(),
            },
            bytes: stats.bytes_allocated as i64 - stats.bytes_deallocated as i64,
        })
    }

    async fn stop(&self) -> Drained {
        let plan = DrainPlan::within(Duration::from_secs(6)).spread(Duration::from_secs(1));
        self.drain.start(plan);
        let drained = self.drain.wait().await;
        Drained {
            notified: drained.notified,
            left: drained.left,
            cut: drained.cut,
        }
    }
}

/// A stream that is made for one client.
fn numbers() -> impl Stream<Item = String> + Send + Unpin {
    let mut number = 0;
    IntervalStream::new(interval(2 * PAUSE)).map(move |_| {
        number += 1;
        text(number)
    })
}
