//! What a WebSocket costs a server: `tower_push` against axum's (tungstenite), tokio-websockets and fastwebsockets.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench websocket
//! cargo bench -p tower-push-benches --bench websocket -- deflate 1
//! ```
//!
//! The first argument names a table, the second the threads of the servers' runtimes: all tables, and two.
//!
//! Everyone is served by the same server, hyper's HTTP/1.1 with its defaults, over loopback, and has the defaults of its crate.
//! The others follow a `tokio::sync::broadcast` in the loop that their users write: a `send` for each message, which is built
//! once and cloned for each client; and messages are built from bytes that are there already, where a crate can. axum's socket is
//! split, as in its example of a chat.
//!
//! - `idle`: bytes of resident memory for each of 10 000 connections that nothing is sent on. `bare` is a task that holds the
//!   upgraded socket and reads into 64 bytes.
//! - `broadcast`: microseconds of CPU for each message delivered to 1000 or 5000 clients, as fast as 25 or 5 times a second (so that
//!   two cores are not busy all the time); or else 1000 (100) messages in a row. `bare loop` is a thread that writes the same
//!   bytes, encoded beforehand, to one blocking socket after the other, all that is published in a row in one write: what the
//!   kernel takes of it all. `floor` is a task for each connection that is woken, takes the same bytes, and writes them: it neither
//!   reads nor keeps time.
//! - `deflate`: the same for messages that look like JSON, 25 times a second to 1000 clients, and what goes over the wire.
//!   tower-push compresses each message once, on its own. None of the others can compress: `each its own` is made by
//!   hand, a compressor of level 6 for each connection that remembers what it sent, so that its messages are shorter.
//! - `single`: one connection, whose client does what it can. `send`: from the server, a stream of messages, `send_all` where there
//!   is one; `take`: to the server, which counts them; `echo`: to and fro, one after the other.
//!
//! Each server and its clients are processes of their own, so that the server's CPU time can be told from the clients'; it is read
//! from Linux's `/proc`, user and kernel mode together. The contestants take turns, so that what disturbs one disturbs all.
//! Clients count the messages and their bytes, and a turn fails if something is missing. The tables show the best turn and the
//! median one; and the ratio of tower-push to the best of the three others, and to the bare one.

mod clients;
mod server;

use std::{
    env,
    error::Error,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use testkit::child_process::{ChildProcess, check_fd_limit};

use self::{
    clients::Task,
    server::{EACH_ITS_OWN, FLOOR, HELD, LOOP, OTHERS, OURS},
};

type BoxError = Box<dyn Error + Send + Sync>;

type Table = fn(&Run) -> Result<(), BoxError>;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [SERVER, server, threads] = arguments[..] {
        return server::serve(server, threads.parse()?);
    }
    if let [CLIENTS, address, clients, deflates] = arguments[..] {
        return clients::receive(address.parse()?, clients.parse()?, deflates.parse()?);
    }
    let mut words = arguments.iter().filter(|word| !word.starts_with('-'));
    let table = words.next();
    let run = Run {
        // `cargo test --benches` runs this file too, only to see that it runs.
        is_bench: arguments.contains(&"--bench"),
        threads: words.next().map_or(Ok(2), |threads| threads.parse())?,
    };
    let tables: [(&str, Table); 4] = [
        ("idle", idle),
        ("broadcast", broadcast),
        ("deflate", deflate),
        ("single", single),
    ];
    for (name, compare) in tables {
        if table.is_none_or(|table| *table == name) {
            compare(&run)?;
            println!();
        }
    }
    Ok(())
}

/// What a process is, in its first argument.
const SERVER: &str = "server";
const CLIENTS: &str = "clients";

struct Run {
    is_bench: bool,
    threads: usize,
}

impl Run {
    fn or_less<T>(&self, full: T, less: T) -> T {
        if self.is_bench { full } else { less }
    }

    fn server(&self, name: &str) -> Result<(ChildProcess, SocketAddr), BoxError> {
        let mut server =
            ChildProcess::spawn_current_program(&[SERVER, name, &self.threads.to_string()])?;
        let address = server.read_line()?.parse()?;
        Ok((server, address))
    }
}

/// A server's process and that of its clients.
struct Contestant {
    server: ChildProcess,
    clients: ChildProcess,
    connected: usize,
}

impl Contestant {
    fn start(run: &Run, name: &str, clients: usize, deflates: bool) -> Result<Self, BoxError> {
        let (server, address) = run.server(name)?;
        Ok(Self {
            server,
            clients: connect(address, clients, deflates)?,
            connected: clients,
        })
    }

    /// Has the server send a load, and says how many microseconds of CPU, and how many bytes of payload, a message took.
    fn turn(&mut self, load: &Load) -> Result<(f64, f64), BoxError> {
        let Load {
            times, burst, size, ..
        } = load;
        let before = self.server.cpu_time()?;
        let mut bytes = 0;
        for _ in 0..*times {
            let begun = Instant::now();
            self.clients.write_line(&burst.to_string())?;
            self.server.write_line(&format!("{burst} {size}"))?;
            // They have it all, so that the next is not written together with it.
            bytes += self.clients.read_line()?.parse::<usize>()?;
            thread::sleep(load.pause.saturating_sub(begun.elapsed()));
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

/// Clients that are connected.
fn connect(address: SocketAddr, clients: usize, deflates: bool) -> Result<ChildProcess, BoxError> {
    let (address, clients) = (address.to_string(), clients.to_string());
    let mut process =
        ChildProcess::spawn_current_program(&[CLIENTS, &address, &clients, &deflates.to_string()])?;
    process.read_line()?;
    Ok(process)
}

fn idle(run: &Run) -> Result<(), BoxError> {
    let connections = run.or_less(10_000, 20);
    check_fd_limit(connections + 1)?;
    let names = [OURS, OTHERS[0], OTHERS[1], OTHERS[2], HELD];
    head(
        &format!("bytes of memory per idle connection ({connections})"),
        &names,
    );
    let mut bytes = names.map(|_| Vec::new());
    for _ in 0..run.or_less(3, 1) {
        for (name, bytes) in names.iter().zip(&mut bytes) {
            let (server, address) = run.server(name)?;
            let first = connect(address, 1, false)?;
            let before = settled(&server)?;
            let clients = connect(address, connections, false)?;
            let taken = settled(&server)?.saturating_sub(before);
            bytes.push(taken as f64 / connections as f64);
            for process in [first, clients, server] {
                process.close()?;
            }
        }
    }
    row("", &bytes, 0, Some(4));
    Ok(())
}

/// A process's memory, once it is the same for a while.
fn settled(process: &ChildProcess) -> Result<usize, BoxError> {
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

/// How messages are sent in a turn, which takes about a second.
struct Load {
    name: &'static str,
    /// How often how many are published in a row.
    times: usize,
    burst: usize,
    pause: Duration,
    size: usize,
}

fn steady(clients: usize, size: usize) -> Load {
    let fifths = clients.div_ceil(1_000) as u64;
    Load {
        name: "steady",
        times: (40 / fifths) as usize,
        burst: 1,
        pause: Duration::from_millis(40 * fifths),
        size,
    }
}

fn burst(burst: usize, size: usize) -> Load {
    Load {
        name: "burst",
        times: 1,
        burst,
        pause: Duration::ZERO,
        size,
    }
}

fn broadcast(run: &Run) -> Result<(), BoxError> {
    let names = [OURS, OTHERS[0], OTHERS[1], OTHERS[2], LOOP, FLOOR];
    let threads = run.threads;
    head(
        &format!("µs of CPU per message delivered ({threads} threads)"),
        &names,
    );
    for clients in run.or_less(&[1_000, 5_000][..], &[10]) {
        check_fd_limit(*clients)?;
        let mut contestants = Vec::new();
        for name in names {
            contestants.push(Contestant::start(run, name, *clients, false)?);
        }
        let mut loads = vec![steady(*clients, 128), steady(*clients, 4_096)];
        // A burst to many takes those who do not write it in one go minutes.
        if *clients <= 1_000 {
            loads.extend([burst(1_000, 128), burst(100, 4_096)]);
        }
        for load in loads {
            let turns = run.or_less(if load.burst == 1 { 7 } else { 3 }, 1);
            let mut times = names.map(|_| Vec::new());
            for _ in 0..turns {
                for (contestant, times) in contestants.iter_mut().zip(&mut times) {
                    let (time, bytes) = contestant.turn(&load)?;
                    assert_eq!(bytes, load.size as f64, "what came is not what was sent");
                    times.push(time);
                }
            }
            let name = format!("{clients} clients, {} of {} B", load.name, load.size);
            row(&name, &times, 2, Some(4));
        }
        contestants.into_iter().try_for_each(Contestant::stop)?;
    }
    Ok(())
}

fn deflate(run: &Run) -> Result<(), BoxError> {
    let clients = run.or_less(1_000, 10);
    check_fd_limit(clients)?;
    let names = [OURS, EACH_ITS_OWN];
    let threads = run.threads;
    head(
        &format!("µs of CPU per compressed message ({threads} threads)"),
        &names,
    );
    let mut contestants = Vec::new();
    for name in names {
        contestants.push(Contestant::start(run, name, clients, true)?);
    }
    for size in [128, 1_024] {
        let load = steady(clients, size);
        let mut times = names.map(|_| Vec::new());
        let mut sizes = names.map(|_| Vec::new());
        for _ in 0..run.or_less(7, 1) {
            for (at, contestant) in contestants.iter_mut().enumerate() {
                let (time, bytes) = contestant.turn(&load)?;
                times[at].push(time);
                sizes[at].push(bytes);
            }
        }
        row(&format!("{clients} clients, {size} B"), &times, 2, None);
        row("    bytes", &sizes, 0, None);
    }
    contestants.into_iter().try_for_each(Contestant::stop)
}

fn single(run: &Run) -> Result<(), BoxError> {
    let names = [OURS, OTHERS[0], OTHERS[1], OTHERS[2]];
    let mut servers = Vec::new();
    for name in names {
        servers.push(run.server(name)?);
    }
    let threads = run.threads;
    head(
        &format!("µs per message, one connection ({threads} threads)"),
        &names,
    );
    for (work, counts) in [
        ("send", [1_000_000, 300_000, 10_000]),
        ("take", [500_000, 200_000, 10_000]),
        ("echo", [10_000, 10_000, 3_000]),
    ] {
        for (size, count) in [64, 1_024, 64 * 1_024].into_iter().zip(counts) {
            let count = run.or_less(count, 10);
            let task = Task { work, size, count };
            let mut times = names.map(|_| Vec::new());
            let mut cpus = names.map(|_| Vec::new());
            for _ in 0..run.or_less(5, 1) {
                for (at, (server, address)) in servers.iter().enumerate() {
                    let before = server.cpu_time()?;
                    let took = task.run(*address)?;
                    let cpu = server.cpu_time()? - before;
                    times[at].push(took.as_secs_f64() * 1e6 / count as f64);
                    cpus[at].push(cpu.as_secs_f64() * 1e6 / count as f64);
                }
            }
            row(&format!("{work} {size} B, of time"), &times, 2, None);
            row("    of the server's CPU", &cpus, 2, None);
        }
    }
    for (server, _) in servers {
        server.close()?;
    }
    Ok(())
}

fn head(title: &str, names: &[&str]) {
    print!("{title}: best, median\n{:28}", "");
    for name in names {
        print!(" {name:>16}");
    }
    println!("  ratio to best of others, to bare");
}

/// Ours is the first; the others end before the bare one, if there is any.
fn row(name: &str, values: &[Vec<f64>], digits: usize, bare: Option<usize>) {
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
    let least = |of: fn(&(f64, f64)) -> f64| others.iter().map(of).fold(f64::INFINITY, f64::min);
    let ratio = |to: (f64, f64)| print!("  {:.2}x {:.2}x", values[0].0 / to.0, values[0].1 / to.1);
    ratio((least(|pair| pair.0), least(|pair| pair.1)));
    if let Some(bare) = bare {
        ratio(values[bare]);
    }
    println!();
}
