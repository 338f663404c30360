//! What a flush window costs in latency and saves in CPU time: a channel with 1 000 publications per second, and 1 000 event streams over
//! loopback sockets.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench flush_window
//! ```
//!
//! The server is a process of its own, so that its CPU time is measured without the clients. Each message has 128 bytes and begins with the time of its
//! publication. The table shows, for each length of the window, the share of one core that the server takes, its CPU time for each
//! delivered message, and the time from the publication of a message until a client has read it.

use std::{
    env,
    error::Error,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use testkit::current_exe_child::{CurrentExeChild, check_fd_limit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::{MissedTickBehavior, interval, sleep},
};
use tower_push::{Channel, serve, service};

type BoxError = Box<dyn Error + Send + Sync>;

/// The first argument of the server's process. The second one is the window in milliseconds.
const SERVER: &str = "server";

const WINDOWS: [u64; 4] = [0, 5, 20, 100];

/// The time between two publications.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(1);

/// The length of a message.
const MESSAGE_LEN: usize = 128;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [_, SERVER, window] = arguments[..] {
        let window = Duration::from_millis(window.parse()?);
        return Ok(Runtime::new()?.block_on(run_server(window))?);
    }
    // `cargo test --benches` runs this file too, with a tiny load.
    let (clients, time) = match arguments.contains(&"--bench") {
        true => (1000, Duration::from_secs(10)),
        false => (10, Duration::from_millis(200)),
    };
    check_fd_limit(clients)?;
    println!("window   CPU      CPU/message   p50        p99");
    for window in WINDOWS {
        let runtime = Runtime::new()?;
        let measured = runtime.block_on(measure(window, clients, time))?;
        println!("{window:3} ms   {measured}");
    }
    Ok(())
}

/// Serves the channel, and publishes to it, until the process is killed or its standard input ends.
async fn run_server(window: Duration) -> std::io::Result<()> {
    let channel = Channel::builder().flush_window(window).build();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    tokio::spawn(publish_forever(channel.clone()));
    tokio::select! {
        served = serve(listener, service(channel)) => served,
        read = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())) => {
            read?.map(drop)
        }
    }
}

async fn publish_forever(channel: Channel) {
    let mut ticks = interval(PUBLISH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let message = format!("{:<MESSAGE_LEN$}", unix_nanos());
        if channel.publish(message).is_err() {
            return;
        }
    }
}

fn unix_nanos() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |time| time.as_nanos() as u64)
}

/// What the clients have read since the measurement began.
#[derive(Default)]
struct ClientTotals {
    messages: AtomicU64,
    /// The latencies of the messages of some clients, in nanoseconds.
    latencies: Mutex<Vec<u64>>,
}

async fn measure(window: u64, clients: usize, time: Duration) -> Result<String, BoxError> {
    let mut server = CurrentExeChild::spawn(&[SERVER, &window.to_string()])?;
    let address: SocketAddr = server.read_line()?.trim().parse()?;
    let totals = Arc::new(ClientTotals::default());
    for number in 0..clients {
        let socket = TcpStream::connect(address).await?;
        let records_latency = number % 10 == 0;
        tokio::spawn(read_stream(socket, totals.clone(), records_latency));
    }
    sleep(time / 5).await;
    totals.messages.store(0, Ordering::Relaxed);
    latencies(&totals).clear();
    let cpu_before = server.cpu_time()?;
    sleep(time).await;
    let cpu = server.cpu_time()? - cpu_before;
    let messages = totals.messages.load(Ordering::Relaxed).max(1);
    let mut latencies = std::mem::take(&mut *latencies(&totals));
    latencies.sort_unstable();
    let percentile = |percent: usize| {
        let index = latencies.len() * percent / 100;
        Duration::from_nanos(latencies.get(index).copied().unwrap_or(0))
    };
    let share = 100.0 * cpu.as_secs_f64() / time.as_secs_f64();
    let per_message = cpu.as_secs_f64() * 1e6 / messages as f64;
    let (p50, p99) = (percentile(50), percentile(99));
    server.close()?;
    Ok(format!(
        "{share:4.0} %   {per_message:8.2} µs   {p50:7.1?}   {p99:7.1?}"
    ))
}

fn latencies(totals: &ClientTotals) -> std::sync::MutexGuard<'_, Vec<u64>> {
    totals
        .latencies
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Reads an event stream until it ends.
async fn read_stream(
    mut socket: TcpStream,
    totals: Arc<ClientTotals>,
    records_latency: bool,
) -> std::io::Result<()> {
    let request = b"GET / HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
    socket.write_all(request).await?;
    let mut unparsed = Vec::new();
    while socket.read_buf(&mut unparsed).await? > 0 {
        let now = unix_nanos();
        let mut read_latencies = Vec::new();
        let mut parsed_len = 0;
        while let Some(line_len) = unparsed[parsed_len..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = &unparsed[parsed_len..parsed_len + line_len];
            parsed_len += line_len + 1;
            let time = line.strip_prefix(b"data: ").map(String::from_utf8_lossy);
            if let Some(Ok(time)) = time.map(|time| time.trim().parse::<u64>()) {
                read_latencies.push(now.saturating_sub(time));
            }
        }
        unparsed.drain(..parsed_len);
        let count = read_latencies.len() as u64;
        totals.messages.fetch_add(count, Ordering::Relaxed);
        if records_latency {
            latencies(&totals).append(&mut read_latencies);
        }
    }
    Ok(())
}
