//! Thousands of clients come and go, on every transport and in every way, while events are published. Then nothing is left of them,
//! and nobody who stayed has missed anything.
//!
//! ```sh
//! scripts/soak              # three minutes
//! scripts/soak 5 7          # five seconds, or until there were enough clients; with the dice of seed 7
//! ```
//!
//! - Stayers read the channel over one connection each, one on each transport. Each must get every event once, in order.
//! - Hoppers leave, come back with their cursor and over another transport, and read on: a channel, streams that are kept, streams
//!   that long-polling parks. The same is asked of them; a gap must have been announced, and is counted.
//! - Hooligans do what clients should not (`misbehaving_clients.rs`). What they are owed is to be put out, where that is the server's part.
//!
//! This is done twice: once so that everything has its size, then for the longer part of the time, and memory is compared. When all
//! clients are gone, the guard, its observer, the drain, the channel and the kept streams count none that is open; every stream
//! that was opened was closed, for one cause, and its place is free again; tokio has as many tasks as in the beginning, and the process as many files open;
//! and the allocator no more bytes than `BYTES` and a hundredth more. In the end the server drains, with hundreds of streams
//! open: all are told so, and only those are cut that read nothing.
//!
//! To see that a leak would be found, a second server leaves a hundred bytes behind with each request; that one must fail.
//!
//! The server is a process of its own. Each hooligan's dice are its own, so that the same seed brings the same clients, whatever
//! becomes of them. Nothing is judged by how long it takes; but the whole ends in failure where it takes many times its time.

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
    child_process::{ChildProcess, check_fd_limit},
};
use tokio::{runtime::Builder, task::JoinSet, time::sleep};

use self::{
    feed_readers::{DOORS, Follower, Last, Stayer, hop, shut},
    misbehaving_clients::Tally,
    seeded_random::Dice,
    server::{Drained, KEYS, Open, PER_KEY, State},
};

type BoxError = Box<dyn Error + Send + Sync>;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What a process is, in its first argument.
const SERVER: &str = "server";

/// At once.
const HOOLIGANS: usize = 96;
const HOPPERS: usize = 24;

/// Streams that drain, and some more that read nothing: so many that every place must be free again, in all and of each key.
const DRAINED: usize = 20 * DOORS.len();
const SHUT: usize = KEYS * PER_KEY;

/// By how many bytes two moments may differ at which nothing is open.
const BYTES: i64 = 16 * 1024;

/// What a leak is, at least: of each client so many bytes.
const LEAK: usize = 100;

/// At least, so that such a leak is more than `BYTES` and a hundredth.
const CLIENTS: usize = 400;

/// In which a server has closed what was left, and its streams have been let go.
const SOON: Duration = Duration::from_secs(60);

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
        .map_or_else(any_seed, |seed| Ok(seed.parse()?))?;
    check_fd_limit(HOOLIGANS + DRAINED + SHUT)?;
    println!("soak: seed {seed}");
    watch(Duration::from_secs(8 * seconds + 600));

    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let time = Duration::from_secs(seconds);
    let soak = Soak {
        seed,
        time,
        leak: 0,
    };
    let growth = runtime.block_on(soak.run())?;
    if growth.is_leak() {
        return Err(format!("with seed {seed}, {growth}").into());
    }
    let leaking = Soak {
        seed,
        time: Duration::ZERO,
        leak: LEAK,
    };
    let growth = runtime.block_on(leaking.run())?;
    if !growth.is_leak() {
        return Err(
            format!("a leak of {LEAK} bytes for each request went unnoticed: {growth}").into(),
        );
    }
    println!("soak: passed; where each request leaks {LEAK} bytes, {growth}");
    Ok(())
}

fn any_seed() -> Result<u64, BoxError> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Ends all of it when the time is up.
fn watch(time: Duration) {
    thread::spawn(move || {
        thread::sleep(time);
        eprintln!("soak: it takes for ever");
        exit(1);
    });
}

/// One server's, from its start to its end.
struct Soak {
    seed: u64,
    time: Duration,
    leak: usize,
}

impl Soak {
    async fn run(&self) -> Result<Growth, BoxError> {
        let mut process = ChildProcess::spawn_current_program(&[SERVER, &self.leak.to_string()])?;
        let mut server = Server {
            address: process.read_line()?.parse()?,
            process,
            idle: Open::default(),
        };
        server.idle = server.state()?.open;
        // `/dev/urandom`, which stays open once it was needed.
        server.idle.files += 1;

        self.load(&mut server, 0, self.time / 4).await?;
        let before = server.settled().await?;
        let resident_before = server.process.resident_memory()?;
        let load = self.load(&mut server, 1, self.time * 3 / 4).await?;
        let after = server.settled().await?;
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
            server.drain().await?;
        }
        server.process.close()?;
        Ok(Growth {
            before: before.bytes,
            after: after.bytes,
            clients: load.tally.total(),
        })
    }

    /// Clients of all kinds, for this time and until there were enough of them.
    async fn load(
        &self,
        server: &mut Server,
        phase: u64,
        time: Duration,
    ) -> Result<Load, BoxError> {
        let address = server.address;
        let begun = Instant::now();
        let (last, is_over) = (Last::unknown(), Arc::new(AtomicBool::new(false)));
        let mut load = Load::default();

        let behind = server.ask("rest")?.parse()?;
        let (mut stayers, mut hoppers) = (JoinSet::new(), JoinSet::new());
        for door in &DOORS {
            let stayer = Stayer::open(address, door, behind).await;
            stayers.spawn(stayer.stay(last.clone()));
        }
        for hopper in 0..HOPPERS {
            let dice = Dice::new(self.seed, phase << 32 | 1 << 31 | hopper as u64);
            hoppers.spawn(hop(address, dice, is_over.clone(), last.clone()));
        }
        server.ask("publish")?;

        let mut misbehaving_clients = JoinSet::new();
        let mut came = 0;
        while begun.elapsed() < time || came < CLIENTS {
            while misbehaving_clients.len() < HOOLIGANS {
                came += 1;
                let dice = Dice::new(self.seed, phase << 32 | came as u64);
                misbehaving_clients.spawn(misbehaving_clients::run(address, dice));
            }
            if let Some(ended) = misbehaving_clients.join_next().await {
                load.tally.add(ended??);
            }
        }
        while let Some(ended) = misbehaving_clients.join_next().await {
            load.tally.add(ended??);
        }
        last.set(server.ask("rest")?.parse()?);
        is_over.store(true, Ordering::SeqCst);
        while let Some(stayed) = stayers.join_next().await {
            let follower = stayed?;
            load.stayers.add(&follower, 1);
            load.stayed.insert(follower.door(), follower.events);
        }
        while let Some(hopped) = hoppers.join_next().await {
            let (follower, hops) = hopped?;
            load.hoppers.add(&follower, hops);
        }
        Ok(load)
    }
}

/// What the allocator had given out before the load and after it.
struct Growth {
    before: i64,
    after: i64,
    clients: usize,
}

impl Growth {
    fn is_leak(&self) -> bool {
        self.after - self.before > BYTES + self.before / 100
    }
}

impl fmt::Display for Growth {
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

/// What a load has brought.
#[derive(Default)]
struct Load {
    tally: Tally,
    stayers: Read,
    /// The events of each of them.
    stayed: BTreeMap<&'static str, u64>,
    hoppers: Read,
}

/// What clients have read.
#[derive(Debug, Default)]
struct Read {
    clients: u64,
    visits: u64,
    events: u64,
    gaps: u64,
}

impl Read {
    fn add(&mut self, follower: &Follower, visits: u64) {
        self.clients += 1;
        self.visits += visits;
        self.events += follower.events;
        self.gaps += follower.gaps;
    }
}

impl Load {
    fn print(&self, after: &State) {
        self.tally.print();
        println!("{:24}{:>8}", "misbehaving clients", self.tally.total());
        for (door, events) in &self.stayed {
            println!("stayed on {door:24}{events:>8} events");
        }
        for (name, read) in [("stayers", &self.stayers), ("hoppers", &self.hoppers)] {
            let Read {
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
            "streams {} opened, {} events; parked and let go: {}",
            counts.opened, counts.events, counts.parked_too_long
        );
        println!("closed  {}", in_words(&counts.closed));
        println!("refused {}", in_words(&counts.refused));
    }
}

fn in_words(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<_> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    counts.join(", ")
}

/// The server, from here.
struct Server {
    process: ChildProcess,
    address: SocketAddr,
    /// When nobody has come yet.
    idle: Open,
}

impl Server {
    fn ask(&mut self, command: &str) -> Result<String, BoxError> {
        self.process.write_line(command)?;
        self.process.read_line()
    }

    fn state(&mut self) -> Result<State, BoxError> {
        Ok(serde_json::from_str(&self.ask("state")?)?)
    }

    /// Its state, once all clients are gone from it.
    async fn settled(&mut self) -> Result<State, BoxError> {
        let begun = Instant::now();
        loop {
            let open = self.state()?.open;
            if open == self.idle {
                break;
            }
            if begun.elapsed() > SOON {
                let idle = &self.idle;
                return Err(format!("still there: {open:?}, of {idle:?} in the beginning").into());
            }
            sleep(Duration::from_millis(200)).await;
        }
        // Only now, so that nobody has these events encoded: the log holds the same at all times.
        self.ask("fill")?;
        let state = self.state()?;
        let closed: u64 = state.counts.closed.values().sum();
        if closed != state.counts.opened {
            return Err(format!("{closed} streams were closed: {:?}", state.counts).into());
        }
        Ok(state)
    }

    /// Has it end hundreds of streams.
    async fn drain(&mut self) -> Result<(), BoxError> {
        let behind = self.ask("rest")?.parse()?;
        let mut leaving = JoinSet::new();
        for door in DOORS.iter().cycle().take(DRAINED) {
            let stayer = Stayer::open(self.address, door, behind).await;
            leaving.spawn(stayer.hears_of_the_end());
        }
        let mut stuck = Vec::new();
        for stream in 0..SHUT {
            stuck.push(shut(self.address, stream % KEYS).await);
        }
        let opening = Instant::now();
        while self.state()?.open.streams < (DRAINED + SHUT) as u64 {
            if opening.elapsed() > TEST_TIMEOUT {
                return Err(format!("before the drain: {:?}", self.state()?).into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        let drained: Drained = serde_json::from_str(&self.ask("drain")?)?;
        let wanted = Drained {
            notified: DRAINED,
            left: 0,
            cut: SHUT,
        };
        if drained != wanted {
            return Err(format!("{drained:?}").into());
        }
        while let Some(told) = leaving.join_next().await {
            told?;
        }
        drop(stuck);
        self.settled().await?;
        println!(
            "drained {} streams: all were told, but for {} that read nothing",
            DRAINED + SHUT,
            SHUT
        );
        Ok(())
    }
}
