//! The CPU time that a server needs to send every message to many clients: `tower_push::service` on a [`Channel`], against axum's `Sse`
//! on `tokio::sync::broadcast`.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench broadcast
//! ```
//!
//! 1000 clients each hold an event stream over loopback. The servers send them a `single` message 25 times a second, or `eight` in a row
//! 25 times a second, or one `burst` of 1000 in a row. A message carries 128 bytes of text. Both servers are hyper's HTTP/1.1 with its
//! defaults, on a runtime of one thread or of two. Both can buffer the whole burst, and both send a heartbeat every 15 s. Both write the same
//! bytes, which include an id of 25 characters. axum's event is built once and cloned for each client.
//!
//! Two more servers show the lower bounds. `floor` is hyper with a minimal body: publishing increments a number and wakes all clients, and the
//! events are encoded and joined beforehand. `raw` is a loop of blocking writes of these bytes, chunk framing included, with one write to each
//! client for all messages in a row: its cost is the kernel's.
//!
//! Each server and its clients are separate processes, so that the server's CPU time can be told from the clients'. The CPU time is read
//! from Linux's `/proc`. The contestants take turns, so that a disturbance affects all of them. The table shows the server's CPU time, in
//! user and kernel mode together, in microseconds for each delivered message, for the best turn and for the median turn; and the ratios of
//! tower-push and of the floor to axum.

use std::{
    convert::Infallible,
    env,
    error::Error,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use axum::response::{IntoResponse, sse};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt},
    runtime::{Builder, Runtime},
    sync::{Notify, broadcast},
};
use tokio_stream::wrappers::BroadcastStream;
use tower_push::{Channel, Event};

use testkit::current_exe_child::{CurrentExeChild, check_fd_limit};

type BoxError = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [_, SERVER_ROLE, server, threads] => run_server(server.parse()?, threads.parse()?),
        [_, CLIENTS_ROLE, address, clients] => run_clients(address.parse()?, clients.parse()?),
        // `cargo test --benches` runs this file too, with a tiny load.
        _ => compare_servers(arguments.contains(&"--bench")),
    }
}

/// The first argument of a server's process.
const SERVER_ROLE: &str = "server";
/// The first argument of the clients' process.
const CLIENTS_ROLE: &str = "clients";

const SERVERS: [(&str, MakeServer); 4] = [
    ("tower-push", tower_push_server),
    ("axum", axum_server),
    ("floor", floor_server),
    ("raw", raw_server),
];

const RUNTIMES: [(&str, MakeRuntime); 2] = [
    ("one", || Builder::new_current_thread().enable_all().build()),
    ("two", || {
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
    }),
];

type MakeRuntime = fn() -> io::Result<Runtime>;

/// Starts a server. Returns its address, and a function that publishes messages on it.
type MakeServer = fn(&Runtime) -> Result<(SocketAddr, Publish), BoxError>;

/// Publishes this many messages in a row.
type Publish = Arc<dyn Fn(usize) + Send + Sync>;

/// How many messages are sent in a turn, and when.
struct LoadProfile {
    name: &'static str,
    /// The number of rounds. A round ends when every client has all its messages. All rounds of a turn take about a second.
    rounds: usize,
    /// How many times a round publishes.
    times: usize,
    /// How many messages are published in a row each time.
    burst: usize,
    /// The time between two publications.
    pause: Duration,
}

const LOADS: [LoadProfile; 3] = [
    LoadProfile {
        name: "single",
        rounds: 1,
        times: 40,
        burst: 1,
        pause: Duration::from_millis(40),
    },
    LoadProfile {
        name: "eight",
        rounds: 1,
        times: 40,
        burst: 8,
        pause: Duration::from_millis(40),
    },
    LoadProfile {
        name: "burst",
        rounds: 3,
        times: 1,
        burst: 1_000,
        pause: Duration::ZERO,
    },
];

impl LoadProfile {
    /// Returns a load that publishes fewer times.
    fn with_fewer_publications(self, by: usize) -> Self {
        let times = self.times.div_ceil(by);
        Self { times, ..self }
    }

    /// Returns how many messages each client gets in a turn.
    fn messages(&self) -> usize {
        self.rounds * self.times * self.burst
    }
}

/// The number of messages that a channel can hold, which is more than a burst.
const CHANNEL_CAPACITY: usize = 1_024;

fn compare_servers(is_bench: bool) -> Result<(), BoxError> {
    let (clients, turns, divisor) = if is_bench { (1_000, 6, 1) } else { (10, 1, 20) };
    check_fd_limit(clients)?;

    println!("µs of CPU per message delivered: best, median ({clients} clients)");
    println!(
        "{:7} {:7} {:>13} {:>13} {:>13} {:>13}  {:>13}  {:>13}",
        "load",
        "threads",
        SERVERS[0].0,
        SERVERS[1].0,
        SERVERS[2].0,
        SERVERS[3].0,
        "ratio",
        "floor's"
    );
    for (threads, (name, _)) in RUNTIMES.iter().enumerate() {
        let mut contestants = Vec::new();
        for server in 0..SERVERS.len() {
            contestants.push(Contestant::start(server, threads, clients)?);
        }
        for load in LOADS.map(|load| load.with_fewer_publications(divisor)) {
            let mut times = [const { Vec::new() }; SERVERS.len()];
            for _ in 0..turns {
                for (contestant, times) in contestants.iter_mut().zip(&mut times) {
                    let cpu = contestant.measure_turn(&load)?;
                    times.push(cpu.as_secs_f64() * 1e6 / (load.messages() * clients) as f64);
                }
            }
            print_row(load.name, name, times);
        }
        contestants.into_iter().try_for_each(Contestant::stop)?;
    }
    Ok(())
}

/// The process of a server and the process of its clients.
struct Contestant {
    server: CurrentExeChild,
    clients: CurrentExeChild,
}

impl Contestant {
    fn start(server: usize, threads: usize, clients: usize) -> Result<Self, BoxError> {
        let mut server =
            CurrentExeChild::spawn(&[SERVER_ROLE, &server.to_string(), &threads.to_string()])?;
        let address = server.read_line()?;
        let mut clients = CurrentExeChild::spawn(&[CLIENTS_ROLE, &address, &clients.to_string()])?;
        // This line says that all clients are connected.
        clients.read_line()?;
        Ok(Self { server, clients })
    }

    /// Makes the server send a load, and returns the server's CPU time.
    fn measure_turn(&mut self, load: &LoadProfile) -> Result<Duration, BoxError> {
        let before = self.server.cpu_time()?;
        for _ in 0..load.rounds {
            self.clients
                .write_line(&(load.times * load.burst).to_string())?;
            let pause = load.pause.as_millis();
            self.server
                .write_line(&format!("{} {} {pause}", load.times, load.burst))?;
            // This line says that every client has all messages.
            self.clients.read_line()?;
        }
        Ok(self.server.cpu_time()? - before)
    }

    fn stop(self) -> Result<(), BoxError> {
        self.clients.close()?;
        self.server.close()
    }
}

/// Runs a server's process. The process prints its address, and then publishes what each line on standard input says.
fn run_server(server: usize, threads: usize) -> Result<(), BoxError> {
    let runtime = RUNTIMES[threads].1()?;
    let (address, publish) = SERVERS[server].1(&runtime)?;
    let handle = runtime.handle().clone();
    // A current-thread runtime runs only inside `block_on`.
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    println!("{address}");
    for line in io::stdin().lines() {
        let line = line?;
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let mut number = || numbers.next().ok_or("a number is missing");
        let (times, burst, pause) = (number()??, number()??, number()??);
        let publish = publish.clone();
        handle.spawn(async move {
            let mut pauses = tokio::time::interval(Duration::from_millis(pause.max(1)));
            for _ in 0..times {
                pauses.tick().await;
                publish(burst as usize);
            }
        });
    }
    Ok(())
}

fn tower_push_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let channel = Channel::builder().max_events(CHANNEL_CAPACITY).build();
    let service = TowerToHyperService::new(tower_push::service(channel.clone()));
    let address = listen(runtime, service)?;
    let publish = move |burst| {
        for _ in 0..burst {
            let _ = channel.publish(Event::text(PAYLOAD));
        }
    };
    Ok((address, Arc::new(publish)))
}

fn axum_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let sender = broadcast::Sender::<sse::Event>::new(CHANNEL_CAPACITY);
    let service = service_fn({
        let sender = sender.clone();
        move |_: Request<Incoming>| {
            let events = BroadcastStream::new(sender.subscribe());
            let keep_alive = sse::KeepAlive::new().interval(Duration::from_secs(15));
            let response = sse::Sse::new(events).keep_alive(keep_alive).into_response();
            std::future::ready(Ok::<_, Infallible>(response))
        }
    });
    let address = listen(runtime, service)?;
    let publish = move |burst| {
        for _ in 0..burst {
            let _ = sender.send(sse::Event::default().id(SAMPLE_ID).data(PAYLOAD));
        }
    };
    Ok((address, Arc::new(publish)))
}

fn floor_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let floor = Arc::new(FloorFeed {
        published: AtomicUsize::new(0),
        events: CHUNKED_MESSAGE[4..CHUNKED_MESSAGE.len() - 2]
            .repeat(CHANNEL_CAPACITY)
            .into(),
        waiting: Mutex::default(),
    });
    let service = service_fn({
        let floor = floor.clone();
        move |_: Request<Incoming>| {
            let seen = floor.published.load(Ordering::SeqCst);
            let floor = floor.clone();
            std::future::ready(Ok::<_, Infallible>(Response::new(FloorFeedBody {
                floor,
                seen,
            })))
        }
    });
    let address = listen(runtime, service)?;
    let publish = move |burst| (0..burst).for_each(|_| floor.publish());
    Ok((address, Arc::new(publish)))
}

/// The state that all bodies of the `floor` server share.
struct FloorFeed {
    /// The number of messages so far.
    published: AtomicUsize,
    /// The encoded events of a full channel, without chunk framing.
    events: Bytes,
    waiting: Mutex<Vec<Waker>>,
}

impl FloorFeed {
    fn publish(&self) {
        self.published.fetch_add(1, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.waiting.lock().expect("not poisoned"));
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A body that sends a slice of the encoded events.
struct FloorFeedBody {
    floor: Arc<FloorFeed>,
    /// The number of messages that this body has sent.
    seen: usize,
}

impl Body for FloorFeedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let unread = |this: &Self| this.floor.published.load(Ordering::SeqCst) - this.seen;
        if unread(&self) == 0 {
            let floor = self.floor.clone();
            let mut waiting = floor.waiting.lock().expect("not poisoned");
            if unread(&self) == 0 {
                waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let unread = unread(&self);
        self.seen += unread;
        let events = &self.floor.events;
        let events = events.slice(..events.len() / CHANNEL_CAPACITY * unread);
        Poll::Ready(Some(Ok(Frame::data(events))))
    }
}

/// Serves each connection in a task of its own.
fn listen<S, B>(runtime: &Runtime, service: S) -> Result<SocketAddr, BoxError>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<B>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(socket), service.clone());
            tokio::spawn(connection);
        }
    });
    Ok(address)
}

fn raw_server(_: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let accepted = sockets.clone();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let _ = socket.set_nodelay(true);
            let _ = socket.read(&mut [0; REQUEST.len()]);
            // The lock is taken before the client gets its response, so the socket is in the list when the client counts as connected.
            let mut accepted = accepted.lock().expect("not poisoned");
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            accepted.push(socket);
        }
    });
    let publish = move |burst| {
        let messages = CHUNKED_MESSAGE.repeat(burst);
        let mut sockets = sockets.lock().expect("not poisoned");
        for socket in sockets.iter_mut() {
            let _: io::Result<()> = socket.write_all(messages.as_bytes());
        }
    };
    Ok((address, Arc::new(publish)))
}

/// A payload of 128 bytes, which contains [`MESSAGE_MARK`] once.
const PAYLOAD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde!";

/// A byte that occurs exactly once in each message. Clients count it.
const MESSAGE_MARK: u8 = b'!';

/// An id with the length of a channel's ids.
const SAMPLE_ID: &str = "0123456789ab-0123456789ab";

/// The bytes of a message on the wire, chunk framing included.
const CHUNKED_MESSAGE: &str = "A6\r\nid: 0123456789ab-0123456789ab\n\
    data: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde!\n\n\r\n";

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";

/// Runs the clients' process. The process prints a line when all clients are connected. Then, for each number on standard input, the process
/// prints a line when every client has received that many more messages.
fn run_clients(address: SocketAddr, clients: usize) -> Result<(), BoxError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let received = Arc::new(MessageCounter::default());
    runtime.block_on(async {
        for _ in 0..clients {
            tokio::spawn(count_messages(connect(address)?, received.clone()));
        }
        println!("connected");
        let mut wanted = 0;
        let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            wanted += line.parse::<usize>()? * clients;
            received.wait(wanted).await;
            println!("all");
        }
        Ok(())
    })
}

/// Sends a request, and waits for the head of the response, which means that the client is subscribed.
fn connect(address: SocketAddr) -> Result<tokio::net::TcpStream, BoxError> {
    let mut socket = TcpStream::connect(address)?;
    socket.write_all(REQUEST)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend(byte);
    }
    socket.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(socket)?)
}

/// The buffer size of a client's read, in bytes.
const READ_BUFFER_LEN: usize = 64 * 1024;

async fn count_messages(mut socket: tokio::net::TcpStream, received: Arc<MessageCounter>) {
    let mut buffer = vec![0; READ_BUFFER_LEN];
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        let is_mark = |byte: &&u8| **byte == MESSAGE_MARK;
        received.add(buffer[..read].iter().filter(is_mark).count());
    }
    eprintln!("a response was cut off");
    std::process::exit(1);
}

/// Counts the messages of all clients.
#[derive(Default)]
struct MessageCounter {
    messages: AtomicUsize,
    wanted: AtomicUsize,
    all_received: Notify,
}

impl MessageCounter {
    fn add(&self, messages: usize) {
        let all = messages + self.messages.fetch_add(messages, Ordering::Relaxed);
        if all >= self.wanted.load(Ordering::Relaxed) {
            self.all_received.notify_one();
        }
    }

    /// Waits until all clients together have received `wanted` messages. All clients run on the thread that waits.
    async fn wait(&self, wanted: usize) {
        self.wanted.store(wanted, Ordering::Relaxed);
        while self.messages.load(Ordering::Relaxed) < wanted {
            self.all_received.notified().await;
        }
    }
}

fn print_row(load: &str, threads: &str, times: [Vec<f64>; SERVERS.len()]) {
    let times = times.map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        (times[0], times[times.len() / 2])
    });
    let [ours, axum, floor, raw] = times;
    let pair = |(best, median): (f64, f64)| format!("{best:.2}, {median:.2}");
    let to_axum =
        |(best, median): (f64, f64)| format!("{:>6.2}x {:>5.2}x", best / axum.0, median / axum.1);
    println!(
        "{load:7} {threads:7} {:>13} {:>13} {:>13} {:>13}  {}  {}",
        pair(ours),
        pair(axum),
        pair(floor),
        pair(raw),
        to_axum(ours),
        to_axum(floor),
    );
}
