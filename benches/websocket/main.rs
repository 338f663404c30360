//! The memory and CPU time that WebSockets cost a server: `tower_push` against axum (tungstenite), tokio-websockets and fastwebsockets.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench websocket
//! cargo bench -p tower-push-benches --bench websocket -- deflate 1
//! ```
//!
//! The first argument names a table, and the second is the number of threads of the servers' runtimes. The default is all tables and two
//! threads.
//!
//! All contestants run on the same server, hyper's HTTP/1.1 with its defaults, over loopback, with the defaults of their crates. The other
//! crates read a `tokio::sync::broadcast` in the loop that their users write: one `send` for each message, which is built once and cloned for
//! each client. Where a crate can, messages are built from existing bytes. axum's socket is split, as in its example of a chat.
//!
//! - `idle`: resident memory in bytes, for each of 10 000 connections without messages. `bare` is a task that holds the upgraded socket and
//!   reads into 64 bytes.
//! - `broadcast`: CPU time in microseconds for each delivered message. A message goes to 1000 clients 25 times a second, or to 5000 clients 5
//!   times a second, so that two cores are not always busy; or 1000 (100) messages go to 1000 clients in a row. `bare loop` is a thread that
//!   writes the same bytes, encoded beforehand, to one blocking socket after the other, with one write for all messages in a row: its cost is
//!   the kernel's. `floor` is a task for each connection that is woken and writes the same bytes. It does not read and has no timers.
//! - `deflate`: CPU time and bytes on the wire for messages that look like JSON, sent to 1000 clients 25 times a second. tower-push compresses
//!   each message once for all clients. The other crates cannot compress, so `each its own` is written for this benchmark: a compressor of
//!   level 6 for each connection, which refers to earlier messages, so that its messages are shorter.
//! - `single`: one connection at full speed. `send` is a stream of messages from the server, with `send_all` if the crate has it. `take` is a
//!   stream of messages to the server, which counts them. `echo` sends one message after the other in both directions.
//!
//! Each server and its clients are separate processes, so that the server's CPU time can be told from the clients'. The CPU time is read
//! from Linux's `/proc`, user and kernel mode together. The contestants take turns, so that a disturbance affects all of them. Clients count
//! messages and bytes, and a turn fails if something is missing. The tables show the best and the median turn, and the ratios of tower-push
//! to the best of the three other crates and to the bare contestant.

mod clients;
mod server;

use std::{
    env,
    error::Error,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use testkit::current_exe_child::{CurrentExeChild, check_fd_limit};

use self::{
    clients::ConnectionTask,
    server::{BLOCKING_LOOP, FLOOR, HELD_SOCKET, OTHER_CRATES, PER_CONNECTION_DEFLATE, TOWER_PUSH},
};

type BoxError = Box<dyn Error + Send + Sync>;

type CompareTable = fn(&RunOptions) -> Result<(), BoxError>;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [SERVER_ROLE, server, threads] = arguments[..] {
        return server::run_server(server, threads.parse()?);
    }
    if let [CLIENTS_ROLE, address, clients, with_deflate] = arguments[..] {
        return clients::run_clients(address.parse()?, clients.parse()?, with_deflate.parse()?);
    }
    let mut words = arguments.iter().filter(|word| !word.starts_with('-'));
    let table = words.next();
    let run = RunOptions {
        // `cargo test --benches` runs this file too, with a tiny load.
        is_bench: arguments.contains(&"--bench"),
        threads: words.next().map_or(Ok(2), |threads| threads.parse())?,
    };
    let tables: [(&str, CompareTable); 4] = [
        ("idle", compare_idle_memory),
        ("broadcast", compare_broadcast),
        ("deflate", compare_deflate),
        ("single", compare_single_connection),
    ];
    for (name, compare) in tables {
        if table.is_none_or(|table| *table == name) {
            compare(&run)?;
            println!();
        }
    }
    Ok(())
}

/// The first argument of a server's process.
const SERVER_ROLE: &str = "server";
/// The first argument of the clients' process.
const CLIENTS_ROLE: &str = "clients";

struct RunOptions {
    is_bench: bool,
    threads: usize,
}

impl RunOptions {
    /// Returns `full` for a benchmark, and `small` for a test run.
    fn full_or_small<T>(&self, full: T, small: T) -> T {
        if self.is_bench { full } else { small }
    }

    fn server(&self, name: &str) -> Result<(CurrentExeChild, SocketAddr), BoxError> {
        let mut server = CurrentExeChild::spawn(&[SERVER_ROLE, name, &self.threads.to_string()])?;
        let address = server.read_line()?.parse()?;
        Ok((server, address))
    }
}

/// The process of a server and the process of its clients.
struct Contestant {
    server: CurrentExeChild,
    clients: CurrentExeChild,
    connected: usize,
}

impl Contestant {
    fn start(
        run: &RunOptions,
        name: &str,
        clients: usize,
        with_deflate: bool,
    ) -> Result<Self, BoxError> {
        let (server, address) = run.server(name)?;
        Ok(Self {
            server,
            clients: start_clients(address, clients, with_deflate)?,
            connected: clients,
        })
    }

    /// Makes the server send a load. Returns the CPU time in microseconds and the payload bytes, both for each delivered message.
    fn measure_turn(&mut self, load: &LoadProfile) -> Result<(f64, f64), BoxError> {
        let LoadProfile {
            times, burst, size, ..
        } = load;
        let before = self.server.cpu_time()?;
        let mut bytes = 0;
        for _ in 0..*times {
            let start = Instant::now();
            self.clients.write_line(&burst.to_string())?;
            self.server.write_line(&format!("{burst} {size}"))?;
            // Waits until every client has all messages, so that the next messages are not written together with them.
            bytes += self.clients.read_line()?.parse::<usize>()?;
            thread::sleep(load.pause.saturating_sub(start.elapsed()));
        }
        let cpu = self.server.cpu_time()? - before;
        let delivered = (times * burst * self.connected) as f64;
        Ok((
            cpu.as_secs_f64() * 1e6 / delivered,
            bytes as f64 / delivered,
        ))
    }

    fn stop(self) -> Result<(), BoxError> {
        self.clients.close()?;
        self.server.close()
    }
}

/// Starts a process of clients, and waits until they are connected.
fn start_clients(
    address: SocketAddr,
    clients: usize,
    with_deflate: bool,
) -> Result<CurrentExeChild, BoxError> {
    let (address, clients) = (address.to_string(), clients.to_string());
    let mut process =
        CurrentExeChild::spawn(&[CLIENTS_ROLE, &address, &clients, &with_deflate.to_string()])?;
    process.read_line()?;
    Ok(process)
}

fn compare_idle_memory(run: &RunOptions) -> Result<(), BoxError> {
    let connections = run.full_or_small(10_000, 20);
    check_fd_limit(connections + 1)?;
    let names = [
        TOWER_PUSH,
        OTHER_CRATES[0],
        OTHER_CRATES[1],
        OTHER_CRATES[2],
        HELD_SOCKET,
    ];
    print_head(
        &format!("bytes of memory per idle connection ({connections})"),
        &names,
    );
    let mut bytes = names.map(|_| Vec::new());
    for _ in 0..run.full_or_small(3, 1) {
        for (name, bytes) in names.iter().zip(&mut bytes) {
            let (server, address) = run.server(name)?;
            let first = start_clients(address, 1, false)?;
            let before = stable_memory(&server)?;
            let clients = start_clients(address, connections, false)?;
            let taken = stable_memory(&server)?.saturating_sub(before);
            bytes.push(taken as f64 / connections as f64);
            for process in [first, clients, server] {
                process.close()?;
            }
        }
    }
    print_row("", &bytes, 0, Some(4));
    Ok(())
}

/// Waits until the memory of a process no longer changes, and returns it.
fn stable_memory(process: &CurrentExeChild) -> Result<usize, BoxError> {
    let mut last = process.resident_memory()?;
    loop {
        thread::sleep(Duration::from_millis(500));
        let now = process.resident_memory()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

/// How many messages are sent in a turn, and when. A turn takes about a second.
struct LoadProfile {
    name: &'static str,
    /// How many times the turn publishes.
    times: usize,
    /// How many messages are published in a row each time.
    burst: usize,
    /// The time between two publications.
    pause: Duration,
    /// The size of a message, in bytes.
    size: usize,
}

/// Returns a load of one message at a time.
fn steady_load(clients: usize, size: usize) -> LoadProfile {
    let fifths = clients.div_ceil(1_000) as u64;
    LoadProfile {
        name: "steady",
        times: (40 / fifths) as usize,
        burst: 1,
        pause: Duration::from_millis(40 * fifths),
        size,
    }
}

/// Returns a load of many messages in a row.
fn burst_load(burst: usize, size: usize) -> LoadProfile {
    LoadProfile {
        name: "burst",
        times: 1,
        burst,
        pause: Duration::ZERO,
        size,
    }
}

fn compare_broadcast(run: &RunOptions) -> Result<(), BoxError> {
    let names = [
        TOWER_PUSH,
        OTHER_CRATES[0],
        OTHER_CRATES[1],
        OTHER_CRATES[2],
        BLOCKING_LOOP,
        FLOOR,
    ];
    let threads = run.threads;
    print_head(
        &format!("µs of CPU per message delivered ({threads} threads)"),
        &names,
    );
    for clients in run.full_or_small(&[1_000, 5_000][..], &[10]) {
        check_fd_limit(*clients)?;
        let mut contestants = Vec::new();
        for name in names {
            contestants.push(Contestant::start(run, name, *clients, false)?);
        }
        let mut loads = vec![steady_load(*clients, 128), steady_load(*clients, 4_096)];
        // A burst to more clients would take minutes for contestants that write each message separately.
        if *clients <= 1_000 {
            loads.extend([burst_load(1_000, 128), burst_load(100, 4_096)]);
        }
        for load in loads {
            let turns = run.full_or_small(if load.burst == 1 { 7 } else { 3 }, 1);
            let mut times = names.map(|_| Vec::new());
            for _ in 0..turns {
                for (contestant, times) in contestants.iter_mut().zip(&mut times) {
                    let (time, bytes) = contestant.measure_turn(&load)?;
                    assert_eq!(
                        bytes, load.size as f64,
                        "the received bytes differ from the sent ones"
                    );
                    times.push(time);
                }
            }
            let name = format!("{clients} clients, {} of {} B", load.name, load.size);
            print_row(&name, &times, 2, Some(4));
        }
        contestants.into_iter().try_for_each(Contestant::stop)?;
    }
    Ok(())
}

fn compare_deflate(run: &RunOptions) -> Result<(), BoxError> {
    let clients = run.full_or_small(1_000, 10);
    check_fd_limit(clients)?;
    let names = [TOWER_PUSH, PER_CONNECTION_DEFLATE];
    let threads = run.threads;
    print_head(
        &format!("µs of CPU per compressed message ({threads} threads)"),
        &names,
    );
    let mut contestants = Vec::new();
    for name in names {
        contestants.push(Contestant::start(run, name, clients, true)?);
    }
    for size in [128, 1_024] {
        let load = steady_load(clients, size);
        let mut times = names.map(|_| Vec::new());
        let mut sizes = names.map(|_| Vec::new());
        for _ in 0..run.full_or_small(7, 1) {
            for (i, contestant) in contestants.iter_mut().enumerate() {
                let (time, bytes) = contestant.measure_turn(&load)?;
                times[i].push(time);
                sizes[i].push(bytes);
            }
        }
        print_row(&format!("{clients} clients, {size} B"), &times, 2, None);
        print_row("    bytes", &sizes, 0, None);
    }
    contestants.into_iter().try_for_each(Contestant::stop)
}

fn compare_single_connection(run: &RunOptions) -> Result<(), BoxError> {
    let names = [
        TOWER_PUSH,
        OTHER_CRATES[0],
        OTHER_CRATES[1],
        OTHER_CRATES[2],
    ];
    let mut servers = Vec::new();
    for name in names {
        servers.push(run.server(name)?);
    }
    let threads = run.threads;
    print_head(
        &format!("µs per message, one connection ({threads} threads)"),
        &names,
    );
    for (task, counts) in [
        ("send", [1_000_000, 300_000, 10_000]),
        ("take", [500_000, 200_000, 10_000]),
        ("echo", [10_000, 10_000, 3_000]),
    ] {
        for (size, count) in [64, 1_024, 64 * 1_024].into_iter().zip(counts) {
            let count = run.full_or_small(count, 10);
            let task = ConnectionTask { task, size, count };
            let mut times = names.map(|_| Vec::new());
            let mut cpus = names.map(|_| Vec::new());
            for _ in 0..run.full_or_small(5, 1) {
                for (i, (server, address)) in servers.iter().enumerate() {
                    let before = server.cpu_time()?;
                    let elapsed = task.run(*address)?;
                    let cpu = server.cpu_time()? - before;
                    times[i].push(elapsed.as_secs_f64() * 1e6 / count as f64);
                    cpus[i].push(cpu.as_secs_f64() * 1e6 / count as f64);
                }
            }
            print_row(&format!("{} {size} B, of time", task.task), &times, 2, None);
            print_row("    of the server's CPU", &cpus, 2, None);
        }
    }
    for (server, _) in servers {
        server.close()?;
    }
    Ok(())
}

fn print_head(title: &str, names: &[&str]) {
    print!("{title}: best, median\n{:28}", "");
    for name in names {
        print!(" {name:>16}");
    }
    println!("  ratio to best of others, to bare");
}

/// Prints the values of each contestant and the ratios. The first contestant is tower-push. `bare` is the index of the bare contestant, and the
/// other crates are between the two.
fn print_row(name: &str, values: &[Vec<f64>], digits: usize, bare: Option<usize>) {
    let values: Vec<(f64, f64)> = values
        .iter()
        .map(|values| {
            let mut values = values.clone();
            values.sort_unstable_by(f64::total_cmp);
            (values[0], values[values.len() / 2])
        })
        .collect();
    print!("{name:28}");
    for (best, median) in &values {
        let pair = format!("{best:.digits$}, {median:.digits$}");
        print!(" {pair:>16}");
    }
    let others = &values[1..bare.unwrap_or(values.len())];
    let best_of = |of: fn(&(f64, f64)) -> f64| others.iter().map(of).fold(f64::INFINITY, f64::min);
    let ratio = |to: (f64, f64)| print!("  {:.2}x {:.2}x", values[0].0 / to.0, values[0].1 / to.1);
    ratio((best_of(|pair| pair.0), best_of(|pair| pair.1)));
    if let Some(bare) = bare {
        ratio(values[bare]);
    }
    println!();
}
