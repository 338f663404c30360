//! What it costs a server to send every message to many clients: `tower_push::service` on a [`Channel`], against axum's `Sse` on
//! `tokio::sync::broadcast`.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench broadcast
//! ```
//!
//! 1000 clients hold an event stream each, over loopback. They are sent 25 times a second a `single` message, or `eight` in a row;
//! or else a `burst` of 1000 in a row. A message carries 128 bytes of text. Both servers are hyper's HTTP/1.1 with its defaults,
//! on a runtime of one thread or of two; both have room for the whole burst, and both would send a heartbeat every 15 s. Both
//! write the same bytes, an id of 25 characters among them; axum's event is built once and cloned for each client.
//!
//! Two more show how far down one can get. `floor` is hyper with the least of bodies: what is published is a number, its events
//! are encoded and joined beforehand, whoever waits is one more waker in a list. `raw` is a loop of blocking writes of these bytes,
//! framed too, one write to a client for all that is published in a row: what the kernel takes of it all.
//!
//! Each server and its clients are processes of their own, so that the server's CPU time can be told from the clients'; it is read
//! from Linux's `/proc`. The contestants take turns, so that what disturbs one disturbs all. The table shows the server's
//! microseconds of CPU, in user and kernel mode together, for each message delivered, in the best turn and in the median one;
//! and the ratio to axum's of tower-push and of the floor.

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

use testkit::child_process::{ChildProcess, check_fd_limit};

type BoxError = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [_, SERVER, server, threads] => serve(server.parse()?, threads.parse()?),
        [_, CLIENTS, address, clients] => receive(address.parse()?, clients.parse()?),
        // `cargo test --benches` runs this file too, only to see that it runs.
        _ => compare_all(arguments.contains(&"--bench")),
    }
}

/// What a process is, in its first argument.
const SERVER: &str = "server";
const CLIENTS: &str = "clients";

const SERVERS: [(&str, MakeServer); 4] = [
    ("tower-push", ours),
    ("axum", axum),
    ("floor", floor),
    ("raw", raw),
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

/// Starts a server, and gives its address and what publishes messages on it.
type MakeServer = fn(&Runtime) -> Result<(SocketAddr, Publish), BoxError>;

/// Publishes so many in a row.
type Publish = Arc<dyn Fn(usize) + Send + Sync>;

/// How messages are sent in a turn.
struct Load {
    name: &'static str,
    /// Rounds, each of which ends when all clients have all that was sent in it: what takes about a second.
    rounds: usize,
    /// In a round, how often how many are published in a row.
    times: usize,
    burst: usize,
    pause: Duration,
}

const LOADS: [Load; 3] = [
    Load {
        name: "single",
        rounds: 1,
        times: 40,
        burst: 1,
        pause: Duration::from_millis(40),
    },
    Load {
        name: "eight",
        rounds: 1,
        times: 40,
        burst: 8,
        pause: Duration::from_millis(40),
    },
    Load {
        name: "burst",
        rounds: 3,
        times: 1,
        burst: 1_000,
        pause: Duration::ZERO,
    },
];

impl Load {
    fn shrunk(self, by: usize) -> Self {
        let times = self.times.div_ceil(by);
        Self { times, ..self }
    }

    /// That each client gets in a turn.
    fn messages(&self) -> usize {
        self.rounds * self.times * self.burst
    }
}

/// Messages that a channel has room for: more than a burst.
const CAPACITY: usize = 1_024;

fn compare_all(is_bench: bool) -> Result<(), BoxError> {
    let (clients, turns, shrink) = if is_bench { (1_000, 6, 1) } else { (10, 1, 20) };
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
        for load in LOADS.map(|load| load.shrunk(shrink)) {
            let mut times = [const { Vec::new() }; SERVERS.len()];
            for _ in 0..turns {
                for (contestant, times) in contestants.iter_mut().zip(&mut times) {
                    let cpu = contestant.turn(&load)?;
                    times.push(cpu.as_secs_f64() * 1e6 / (load.messages() * clients) as f64);
                }
            }
            print(load.name, name, times);
        }
        contestants.into_iter().try_for_each(Contestant::stop)?;
    }
    Ok(())
}

/// A server's process and that of its clients.
struct Contestant {
    server: ChildProcess,
    clients: ChildProcess,
}

impl Contestant {
    fn start(server: usize, threads: usize, clients: usize) -> Result<Self, BoxError> {
        let mut server = ChildProcess::spawn_current_program(&[
            SERVER,
            &server.to_string(),
            &threads.to_string(),
        ])?;
        let address = server.read_line()?;
        let mut clients =
            ChildProcess::spawn_current_program(&[CLIENTS, &address, &clients.to_string()])?;
        // They are connected.
        clients.read_line()?;
        Ok(Self { server, clients })
    }

    /// Has the server send a load, and says what it cost it.
    fn turn(&mut self, load: &Load) -> Result<Duration, BoxError> {
        let before = self.server.cpu_time()?;
        for _ in 0..load.rounds {
            self.clients
                .write_line(&(load.times * load.burst).to_string())?;
            let pause = load.pause.as_millis();
            self.server
                .write_line(&format!("{} {} {pause}", load.times, load.burst))?;
            // They have it all.
            self.clients.read_line()?;
        }
        Ok(self.server.cpu_time()? - before)
    }

    fn stop(self) -> Result<(), BoxError> {
        self.clients.close()?;
        self.server.close()
    }
}

/// A server's process: says its address, and then sends what it is told to.
fn serve(server: usize, threads: usize) -> Result<(), BoxError> {
    let runtime = RUNTIMES[threads].1()?;
    let (address, publish) = SERVERS[server].1(&runtime)?;
    let handle = runtime.handle().clone();
    // A runtime of one thread runs while it is blocked on.
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

fn ours(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let channel = Channel::builder().max_events(CAPACITY).build();
    let service = TowerToHyperService::new(tower_push::service(channel.clone()));
    let address = listen(runtime, service)?;
    let publish = move |burst| {
        for _ in 0..burst {
            let _ = channel.publish(Event::text(PAYLOAD));
        }
    };
    Ok((address, Arc::new(publish)))
}

fn axum(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let sender = broadcast::Sender::<sse::Event>::new(CAPACITY);
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
            let _ = sender.send(sse::Event::default().id(ID).data(PAYLOAD));
        }
    };
    Ok((address, Arc::new(publish)))
}

fn floor(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let floor = Arc::new(Floor {
        published: AtomicUsize::new(0),
        events: MESSAGE[4..MESSAGE.len() - 2].repeat(CAPACITY).into(),
        waiting: Mutex::default(),
    });
    let service = service_fn({
        let floor = floor.clone();
        move |_: Request<Incoming>| {
            let seen = floor.published.load(Ordering::SeqCst);
            let floor = floor.clone();
            std::future::ready(Ok::<_, Infallible>(Response::new(FloorBody {
                floor,
                seen,
            })))
        }
    });
    let address = listen(runtime, service)?;
    let publish = move |burst| (0..burst).for_each(|_| floor.publish());
    Ok((address, Arc::new(publish)))
}

struct Floor {
    published: AtomicUsize,
    /// As many as there is room for, without the chunks' frames.
    events: Bytes,
    waiting: Mutex<Vec<Waker>>,
}

impl Floor {
    fn publish(&self) {
        self.published.fetch_add(1, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.waiting.lock().expect("no panic under the lock"));
        waiting.into_iter().for_each(Waker::wake);
    }
}

struct FloorBody {
    floor: Arc<Floor>,
    seen: usize,
}

impl Body for FloorBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let news = |this: &Self| this.floor.published.load(Ordering::SeqCst) - this.seen;
        if news(&self) == 0 {
            let floor = self.floor.clone();
            let mut waiting = floor.waiting.lock().expect("no panic under the lock");
            if news(&self) == 0 {
                waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let news = news(&self);
        self.seen += news;
        let events = &self.floor.events;
        let events = events.slice(..events.len() / CAPACITY * news);
        Poll::Ready(Some(Ok(Frame::data(events))))
    }
}

/// Serves all connections, each as a task.
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

fn raw(_: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let accepted = sockets.clone();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let _ = socket.set_nodelay(true);
            let _ = socket.read(&mut [0; REQUEST.len()]);
            // Before the client knows that it is connected.
            let mut accepted = accepted.lock().expect("no panic under the lock");
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            accepted.push(socket);
        }
    });
    let publish = move |burst| {
        let messages = MESSAGE.repeat(burst);
        let mut sockets = sockets.lock().expect("no panic under the lock");
        for socket in sockets.iter_mut() {
            let _: io::Result<()> = socket.write_all(messages.as_bytes());
        }
    };
    Ok((address, Arc::new(publish)))
}

/// 128 bytes, with one [`MARK`].
const PAYLOAD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde!";

/// It occurs once in each message, and nowhere else.
const MARK: u8 = b'!';

/// As long as a channel's.
const ID: &str = "0123456789ab-0123456789ab";

/// What goes out for a message.
const MESSAGE: &str = "A6\r\nid: 0123456789ab-0123456789ab\n\
    data: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde!\n\n\r\n";

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";

/// The clients' process: says when they are connected, and then, for each line with a number, when each has got so many more.
fn receive(address: SocketAddr, clients: usize) -> Result<(), BoxError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let received = Arc::new(Received::default());
    runtime.block_on(async {
        for _ in 0..clients {
            tokio::spawn(client(connect(address)?, received.clone()));
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

/// Asks, and waits for the head of the answer: so it is subscribed.
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

/// Bytes in one read of a client.
const READ: usize = 64 * 1024;

async fn client(mut socket: tokio::net::TcpStream, received: Arc<Received>) {
    let mut buffer = vec![0; READ];
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        let is_mark = |byte: &&u8| **byte == MARK;
        received.add(buffer[..read].iter().filter(is_mark).count());
    }
    eprintln!("a response was cut");
    std::process::exit(1);
}

/// How many messages came, over all clients.
#[derive(Default)]
struct Received {
    messages: AtomicUsize,
    wanted: AtomicUsize,
    all: Notify,
}

impl Received {
    fn add(&self, messages: usize) {
        let all = messages + self.messages.fetch_add(messages, Ordering::Relaxed);
        if all >= self.wanted.load(Ordering::Relaxed) {
            self.all.notify_one();
        }
    }

    /// All clients share a thread with who waits.
    async fn wait(&self, wanted: usize) {
        self.wanted.store(wanted, Ordering::Relaxed);
        while self.messages.load(Ordering::Relaxed) < wanted {
            self.all.notified().await;
        }
    }
}

fn print(load: &str, threads: &str, times: [Vec<f64>; SERVERS.len()]) {
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
