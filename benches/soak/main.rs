//! A soak test: thousands of clients connect and disconnect, on every transport and in every way, while events are published. Afterwards
//! the server must have nothing left of them, and no well-behaved client may have missed an event.
//!
//! ```sh
//! scripts/soak              # three minutes
//! scripts/soak 5 7          # five seconds, or longer until there were enough clients; with seed 7
//! ```
//!
//! - Persistent readers (`feed_readers.rs`) read the channel, or two topics of a hub with the same events, over one connection each: one reader for
//!   each of the two, each transport and each server. Each must get every event once, in order.
//! - Switching readers (`feed_readers.rs`) disconnect, resume with their cursor over another transport, and read on. They read the channel,
//!   streams of a `Resumable`, and streams that long-polling parks. Each must get every event once, in order, except those that a gap
//!   announces.
//! - Misbehaving clients (`misbehaving_clients.rs`) violate the protocols. The server must disconnect them where that is its duty.
//!
//! The load runs twice. The first run fills buffers and pools, the second one takes most of the time, and the memory after both is compared. If the
//! memory has grown too much, the load runs a third time: a leak grows in each run, and a table that has become larger does not.
//! When all clients have disconnected, the guard, its observer, the drain, the channel and the resumable streams must count no open stream.
//! Every stream that was opened must be closed for one reason, and its admission must be released. The number of tokio's tasks and of open
//! files must be as before. The allocated memory may have grown by `ALLOWED_GROWTH_BYTES` and one percent. In the end the server drains
//! hundreds of open streams: every client must be notified, except those that read nothing, which are cut.
//!
//! The test also checks itself: a second server leaks a hundred bytes for each request, and must fail.
//!
//! The server is a process of its own, with two listeners for one service: one is served by hyper-util, the other one by tower-push's `Server`, whose
//! streams leave hyper. The other clients choose one of the two at random, for each connection. Each misbehaving client has its own random generator,
//! so the same seed creates the same clients. The result does not depend on speed, but a run that takes many times the given time fails.

mod feed_readers;
mod misbehaving_clients;
mod seeded_random;
mod server;

use std::{
    alloc::System,
    collections::BTreeMap,
    env,
    error::Error,
    fmt,
    net::SocketAddr,
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testkit::{
    TEST_TIMEOUT,
    current_exe_child::{CurrentExeChild, check_fd_limit},
};
use tokio::{runtime::Builder, task::JoinSet, time::sleep};

use self::{
    feed_readers::{
        FeedReader, LastEvent, PERSISTENT_PATHS, PersistentReader, TRANSPORT_VARIANTS,
        open_unread_stream, run_switching_reader,
    },
    misbehaving_clients::ClientTally,
    seeded_random::SeededRandom,
    server::{
        DrainResult, KEY_COUNT, OpenResources, SERVERS, STREAMS_PER_KEY, ServerState,
        WORKER_THREADS,
    },
};

type BoxError = Box<dyn Error + Send + Sync>;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The first argument of the server's process.
const SERVER: &str = "server";

/// The number of misbehaving clients at one time.
const MISBEHAVING_CLIENTS: usize = 96;
/// The number of switching readers at one time.
const SWITCHING_READERS: usize = 24;

/// The number of streams that are open when the drain starts. Together with `UNREAD_STREAMS` it uses up the admission, in total and for each key, so
/// the drain fails if an earlier stream has not released its admission.
const DRAINED_STREAMS: usize = 20 * TRANSPORT_VARIANTS.len();
/// The number of further streams whose clients read nothing.
const UNREAD_STREAMS: usize = KEY_COUNT * STREAMS_PER_KEY;

/// By how many bytes the memory without open streams may grow, besides one percent.
const ALLOWED_GROWTH_BYTES: i64 = 16 * 1024;

/// The smallest leak that the test must detect, in bytes for each client.
const LEAK_BYTES_PER_REQUEST: usize = 100;

/// The smallest number of clients of a run. With fewer, such a leak would be within the allowed growth.
const MIN_CLIENTS: usize = 400;

/// The time within which the server must have released all streams after the last client has disconnected.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [SERVER, leak] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return server::serve(leak.parse()?);
    }
    let mut numbers = arguments.iter().filter(|word| !word.starts_with('-'));
    // `cargo test --benches` runs this file too, only to see that it runs.
    let is_bench = arguments.iter().any(|word| word == "--bench");
    let seconds = match numbers.next() {
        Some(seconds) => seconds.parse()?,
        None if is_bench => 180,
        None => 0,
    };
    let seed = numbers
        .next()
        .map_or_else(seed_from_clock, |seed| Ok(seed.parse()?))?;
    check_fd_limit(MISBEHAVING_CLIENTS + DRAINED_STREAMS + UNREAD_STREAMS)?;
    println!("soak: seed {seed}");
    exit_after(Duration::from_secs(12 * seconds + 600));

    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let time = Duration::from_secs(seconds);
    let soak = SoakRun {
        seed,
        time,
        leak: 0,
    };
    let growth = runtime.block_on(soak.run())?;
    if growth.is_leak() {
        return Err(format!("with seed {seed}, {growth}").into());
    }
    let leaking = SoakRun {
        seed,
        time: Duration::ZERO,
        leak: LEAK_BYTES_PER_REQUEST,
    };
    let growth = runtime.block_on(leaking.run())?;
    if !growth.is_leak() {
        return Err(format!(
            "a leak of {LEAK_BYTES_PER_REQUEST} bytes for each request went unnoticed: {growth}"
        )
        .into());
    }
    println!("soak: passed; where each request leaks {LEAK_BYTES_PER_REQUEST} bytes, {growth}");
    Ok(())
}

fn seed_from_clock() -> Result<u64, BoxError> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Exits the process with a failure after `time`.
fn exit_after(time: Duration) {
    thread::spawn(move || {
        thread::sleep(time);
        eprintln!("soak: timeout");
        exit(1);
    });
}

/// A run against one server.
struct SoakRun {
    seed: u64,
    time: Duration,
    leak: usize,
}

impl SoakRun {
    async fn run(&self) -> Result<MemoryGrowth, BoxError> {
        let mut process = CurrentExeChild::spawn(&[SERVER, &self.leak.to_string()])?;
        let mut addresses = Vec::new();
        for _ in SERVERS {
            addresses.push(process.read_line()?.parse()?);
        }
        let mut server = ServerProcess {
            addresses,
            process,
            idle: OpenResources::default(),
        };
        server.idle = server.state()?.open;
        // The first streams that leave hyper create the event loops of the server, which stay.
        server.idle.tasks += WORKER_THREADS;
        self.run_load(&mut server, 0, self.time / 4).await?;
        let mut growth = self.measure_growth(&mut server, 1).await?;
        if growth.is_leak() {
            println!("soak: the load runs again, because {growth}");
            growth = self.measure_growth(&mut server, 2).await?;
        }
        if self.leak == 0 {
            server.drain().await?;
        }
        server.process.close()?;
        Ok(growth)
    }

    /// Runs the load, and compares the memory before and after it.
    async fn measure_growth(
        &self,
        server: &mut ServerProcess,
        phase: u64,
    ) -> Result<MemoryGrowth, BoxError> {
        let before = server.wait_until_settled().await?;
        let resident_before = server.process.resident_memory()?;
        let load = self.run_load(server, phase, self.time * 3 / 4).await?;
        let after = server.wait_until_settled().await?;
        let resident_after = server.process.resident_memory()?;
        if self.leak == 0 {
            load.print(&after);
            println!("{:24}{:>10} {:>10}", "memory", "before", "after");
            println!(
                "{:24}{:>10} {:>10}",
                "allocated, bytes", before.bytes, after.bytes
            );
            println!(
                "{:24}{:>10} {:>10}",
                "resident, KiB",
                resident_before / 1024,
                resident_after / 1024
            );
        }
        Ok(MemoryGrowth {
            before: before.bytes,
            after: after.bytes,
            clients: load.tally.total(),
        })
    }

    /// Runs clients of all kinds for `time`, and longer until there were [`MIN_CLIENTS`] misbehaving ones.
    async fn run_load(
        &self,
        server: &mut ServerProcess,
        phase: u64,
        time: Duration,
    ) -> Result<LoadReport, BoxError> {
        let addresses: Arc<[_]> = server.addresses.clone().into();
        let start = Instant::now();
        let (last, is_over) = (LastEvent::unknown(), Arc::new(AtomicBool::new(false)));
        let mut load = LoadReport::default();

        let last_published = server.command("pause")?.parse()?;
        let (mut persistent_readers, mut switching_readers) = (JoinSet::new(), JoinSet::new());
        for (address, server_name) in addresses.iter().zip(SERVERS) {
            for path in PERSISTENT_PATHS {
                for variant in &TRANSPORT_VARIANTS {
                    let opening = PersistentReader::open(*address, path, variant, last_published);
                    let reading = opening.await.read_to_last(last.clone());
                    persistent_readers.spawn(async move { ((server_name, path), reading.await) });
                }
            }
        }
        for reader in 0..SWITCHING_READERS {
            let random = SeededRandom::new(self.seed, phase << 32 | 1 << 31 | reader as u64);
            switching_readers.spawn(run_switching_reader(
                addresses.clone(),
                random,
                is_over.clone(),
                last.clone(),
            ));
        }
        server.command("publish")?;

        let mut misbehaving_clients = JoinSet::new();
        let mut client_number = 0;
        while start.elapsed() < time || client_number < MIN_CLIENTS {
            while misbehaving_clients.len() < MISBEHAVING_CLIENTS {
                client_number += 1;
                let mut random = SeededRandom::new(self.seed, phase << 32 | client_number as u64);
                let address = random.choose(&addresses);
                misbehaving_clients.spawn(misbehaving_clients::run_client(address, random));
            }
            if let Some(ended) = misbehaving_clients.join_next().await {
                load.tally.add(ended??);
            }
        }
        while let Some(ended) = misbehaving_clients.join_next().await {
            load.tally.add(ended??);
        }
        last.set(server.command("pause")?.parse()?);
        is_over.store(true, Ordering::SeqCst);
        while let Some(finished) = persistent_readers.join_next().await {
            let ((server_name, path), reader) = finished?;
            load.persistent.add(&reader, 1);
            load.events_by_variant
                .insert([server_name, path, reader.variant()], reader.events);
        }
        while let Some(finished) = switching_readers.join_next().await {
            let (reader, visits) = finished?;
            load.switching.add(&reader, visits);
        }
        Ok(load)
    }
}

/// The allocated bytes before and after a load, and the number of its clients.
struct MemoryGrowth {
    before: i64,
    after: i64,
    clients: usize,
}

impl MemoryGrowth {
    fn is_leak(&self) -> bool {
        self.after - self.before > ALLOWED_GROWTH_BYTES + self.before / 100
    }
}

impl fmt::Display for MemoryGrowth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            before,
            after,
            clients,
        } = self;
        write!(
            f,
            "memory has grown from {before} to {after} bytes, over {clients} clients"
        )
    }
}

/// The results of a load.
#[derive(Default)]
struct LoadReport {
    tally: ClientTally,
    persistent: ReadTotals,
    /// The number of events that each persistent reader has read, by its server, its path and its transport.
    events_by_variant: BTreeMap<[&'static str; 3], u64>,
    switching: ReadTotals,
}

/// What the readers of one kind have read.
#[derive(Debug, Default)]
struct ReadTotals {
    clients: u64,
    visits: u64,
    events: u64,
    gaps: u64,
}

impl ReadTotals {
    fn add(&mut self, reader: &FeedReader, visits: u64) {
        self.clients += 1;
        self.visits += visits;
        self.events += reader.events;
        self.gaps += reader.gaps;
    }
}

impl LoadReport {
    fn print(&self, after: &ServerState) {
        self.tally.print();
        println!("{:24}{:>8}", "misbehaving clients", self.tally.total());
        for ([server_name, path, variant], events) in &self.events_by_variant {
            println!("read from {server_name:12}{path:8}{variant:24}{events:>8} events");
        }
        for (name, read) in [
            ("persistent readers", &self.persistent),
            ("switching readers", &self.switching),
        ] {
            let ReadTotals {
                clients,
                visits,
                events,
                gaps,
            } = read;
            println!(
                "{name:24}{clients:>8}, {visits} visits, {events} events, each once and in order, {gaps} gaps"
            );
        }
        let counts = &after.counts;
        println!(
            "streams {} opened, {} left hyper, {} events; expired while parked: {}",
            counts.opened, counts.detached, counts.events, counts.parked_too_long
        );
        println!("closed  {}", format_counts(&counts.closed));
        println!("refused {}", format_counts(&counts.refused));
    }
}

fn format_counts(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<_> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    counts.join(", ")
}

/// The process of the server.
struct ServerProcess {
    process: CurrentExeChild,
    /// The addresses of [`SERVERS`].
    addresses: Vec<SocketAddr>,
    /// The resources that are open without clients.
    idle: OpenResources,
}

impl ServerProcess {
    /// Sends a command to the server, and returns its answer.
    fn command(&mut self, command: &str) -> Result<String, BoxError> {
        self.process.write_line(command)?;
        self.process.read_line()
    }

    fn state(&mut self) -> Result<ServerState, BoxError> {
        Ok(serde_json::from_str(&self.command("state")?)?)
    }

    /// Waits until the server has released everything of its clients, and returns its state.
    async fn wait_until_settled(&mut self) -> Result<ServerState, BoxError> {
        let start = Instant::now();
        loop {
            let open = self.state()?.open;
            if open == self.idle {
                break;
            }
            if start.elapsed() > SETTLE_TIMEOUT {
                let idle = &self.idle;
                return Err(format!("still open: {open:?}, and at the start: {idle:?}").into());
            }
            sleep(Duration::from_millis(200)).await;
        }
        // Without clients these events are not encoded, so the log always takes the same memory.
        self.command("fill")?;
        let state = self.state()?;
        let closed: u64 = state.counts.closed.values().sum();
        if closed != state.counts.opened {
            return Err(format!("{closed} streams were closed: {:?}", state.counts).into());
        }
        Ok(state)
    }

    /// Opens hundreds of streams, drains the server, and checks the outcome.
    async fn drain(&mut self) -> Result<(), BoxError> {
        let last_published = self.command("pause")?.parse()?;
        let mut readers = JoinSet::new();
        for round in 0..DRAINED_STREAMS / TRANSPORT_VARIANTS.len() {
            let address = self.addresses[round % SERVERS.len()];
            let path = PERSISTENT_PATHS[round / SERVERS.len() % PERSISTENT_PATHS.len()];
            for variant in &TRANSPORT_VARIANTS {
                let reader = PersistentReader::open(address, path, variant, last_published).await;
                readers.spawn(reader.expect_drain_end());
            }
        }
        let mut unread_streams = Vec::new();
        for stream in 0..UNREAD_STREAMS {
            let address = self.addresses[stream % SERVERS.len()];
            unread_streams.push(open_unread_stream(address, stream % KEY_COUNT).await);
        }
        let start = Instant::now();
        while self.state()?.open.streams < (DRAINED_STREAMS + UNREAD_STREAMS) as u64 {
            if start.elapsed() > TEST_TIMEOUT {
                return Err(format!("before the drain: {:?}", self.state()?).into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        let drained: DrainResult = serde_json::from_str(&self.command("drain")?)?;
        let wanted = DrainResult {
            notified: DRAINED_STREAMS,
            left: 0,
            cut: UNREAD_STREAMS,
        };
        if drained != wanted {
            return Err(format!("{drained:?}").into());
        }
        while let Some(ended) = readers.join_next().await {
            ended?;
        }
        drop(unread_streams);
        self.wait_until_settled().await?;
        println!(
            "drained {} streams: all clients were notified, except {} that read nothing",
            DRAINED_STREAMS + UNREAD_STREAMS,
            UNREAD_STREAMS
        );
        Ok(())
    }
}
