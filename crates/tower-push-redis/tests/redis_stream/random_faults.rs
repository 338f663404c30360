//! Random faults, one after the other, while events are published and clients move between nodes. No client misses an event in silence, and no
//! client gets an event twice.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use testkit::{PublishedEvents, Random, RedisProgram, RedisServer, RelayClient, wait_until};
use tokio::time::sleep;
use tower_push::Event;
use tower_push_redis::RedisStream;

use crate::nodes::{KEY, node, node_with_short_log};

struct Run {
    seed: u64,
    nodes: Vec<RedisStream>,
    published: Mutex<PublishedEvents>,
    is_paused: AtomicBool,
    is_over: AtomicBool,
}

/// The number of the last event, which ends each client.
const LAST: u64 = 1_000_000;

impl Run {
    /// Publishes numbers until the run is over.
    async fn publish(self: Arc<Self>) {
        let mut number = 1;
        while !self.is_over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(1)).await;
            if self.is_paused.load(Ordering::Relaxed) {
                continue;
            }
            let node = &self.nodes[number as usize % self.nodes.len()];
            let result = node.publish(&Event::text(number.to_string())).await;
            if result.is_ok() {
                self.published.lock().unwrap().acknowledged.insert(number);
            }
            number += 1;
        }
    }

    /// Follows the feed, and moves between the nodes.
    async fn follow(self: Arc<Self>, index: u64, mut client: RelayClient) -> u64 {
        let mut random = Random::new(self.seed * 1000 + index);
        let (mut last, mut gaps) = (0, 0);
        loop {
            let item = client.next().await;
            if let Ok(number) = item.parse::<u64>() {
                if last > 0 {
                    assert!(last < number, "seed {}: {number} after {last}", self.seed);
                    // The publisher adds a number only when it has the answer, which can come after the event.
                    sleep(Duration::from_millis(1)).await;
                    let missing = self.published.lock().unwrap().missing_between(last, number);
                    assert_eq!(missing, None, "seed {}: {last} then {number}", self.seed);
                }
                if number == LAST {
                    return gaps;
                }
                last = number;
            } else if item.starts_with("Ok(Ended") || item.starts_with("error") {
                // A page could not be read, or the client has fallen out of the log.
                sleep(Duration::from_millis(100)).await;
                client.move_to(self.nodes[random.below(self.nodes.len() as u64) as usize].relay());
            } else if item != "cursor" {
                let reason = item.split(' ').next().unwrap_or_default();
                assert!(["epoch", "expired"].contains(&reason), "{item}");
                (last, gaps) = (0, gaps + 1);
            }
            if random.below(30) == 0 {
                if random.below(3) == 0 {
                    sleep(Duration::from_millis(random.below(300))).await;
                }
                let node = random.below(self.nodes.len() as u64);
                client.move_to(self.nodes[node as usize].relay());
            }
        }
    }

    /// Causes one fault.
    async fn fault(&self, server: &mut RedisServer, random: &mut Random) -> &'static str {
        match random.below(7) {
            0 => {
                server.kill();
                sleep(Duration::from_millis(random.below(300))).await;
                server.start_again();
                "kill"
            }
            1 => {
                self.lose_writes(server, random).await;
                "failover"
            }
            2 => {
                server.command(&["DEL", KEY]);
                "DEL"
            }
            3 => {
                server.command(&["FLUSHALL"]);
                "FLUSHALL"
            }
            4 => {
                let left = random.below(20).to_string();
                server.command(&["XTRIM", KEY, "MAXLEN", "=", &left]);
                "XTRIM"
            }
            5 => {
                self.delete_entry(server, random);
                "XDEL"
            }
            _ => {
                server.pause();
                sleep(Duration::from_millis(random.below(700))).await;
                server.resume();
                "SIGSTOP"
            }
        }
    }

    /// Promotes a copy of the server that lacks the newest events.
    async fn lose_writes(&self, server: &mut RedisServer, random: &mut Random) {
        let copy = server.start_replica();
        let is_replicating = || {
            let info = copy.command(&["INFO", "replication"]);
            info.contains("master_link_status:up")
        };
        wait_until(is_replicating, || "no replication").await;
        copy.command(&["REPLICAOF", "NO", "ONE"]);
        sleep(Duration::from_millis(random.below(300))).await;
        // No publication is in progress when the events that the copy lacks are determined.
        self.is_paused.store(true, Ordering::Relaxed);
        sleep(Duration::from_millis(300)).await;
        let numbers = |server: &RedisServer| -> BTreeSet<u64> {
            let entries = server.command(&["XRANGE", KEY, "-", "+"]);
            let lines: Vec<_> = entries.lines().collect();
            let values = lines.windows(2).filter(|lines| lines[0] == "data");
            values.map(|lines| lines[1].parse().unwrap()).collect()
        };
        let lost: Vec<_> = numbers(server)
            .difference(&numbers(&copy))
            .copied()
            .collect();
        self.published.lock().unwrap().lost.extend(lost);
        server.kill();
        server.start_again_with_data_of(&copy);
        self.is_paused.store(false, Ordering::Relaxed);
    }

    fn delete_entry(&self, server: &RedisServer, random: &mut Random) {
        let entries = server.command(&["XREVRANGE", KEY, "+", "-", "COUNT", "20"]);
        let lines: Vec<_> = entries.lines().collect();
        if lines.len() >= 3 {
            let entry = random.below(lines.len() as u64 / 3) as usize;
            let number = lines[entry * 3 + 2].parse().unwrap();
            self.published.lock().unwrap().lost.insert(number);
            server.command(&["XDEL", KEY, lines[entry * 3]]);
        }
    }
}

async fn run_random_faults(seed: u64, program: RedisProgram) {
    // The server writes each event to its disk, and a restart after SIGKILL loses nothing.
    let mut options = vec!["--appendonly", "yes", "--appendfsync", "always"];
    // A replica gets the data at once.
    options.extend(["--repl-diskless-sync-delay", "0"]);
    let mut server = RedisServer::start(program, &options);
    let mut nodes = Vec::new();
    for log_events in [10, 100, 1000] {
        nodes.push(node_with_short_log(&server, log_events).await);
    }
    let run = Arc::new(Run {
        seed,
        nodes,
        published: Mutex::default(),
        is_paused: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
    });
    let mut clients = Vec::new();
    for index in 0..12 {
        let client = RelayClient::connect(run.nodes[index as usize % 3].relay()).await;
        clients.push(tokio::spawn(run.clone().follow(index, client)));
    }
    let publisher = tokio::spawn(run.clone().publish());
    let mut random = Random::new(seed);
    let mut faults = Vec::new();
    for _ in 0..12 {
        sleep(Duration::from_millis(random.below(400))).await;
        faults.push(run.fault(&mut server, &mut random).await);
    }
    run.is_over.store(true, Ordering::Relaxed);
    publisher.await.unwrap();
    // A client that was away during the last fault can be behind.
    let last = Event::text(LAST.to_string());
    let node = node(&server).await;
    node.publish(&last).await.unwrap();
    let mut gaps = Vec::new();
    for client in clients {
        gaps.push(client.await.unwrap());
    }
    println!("seed {seed}: {faults:?}, gaps {gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_faults_lose_nothing_in_silence() {
    for seed in 1..=3 {
        run_random_faults(seed, RedisProgram::Redis).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_faults_lose_nothing_in_silence() {
    for seed in 11..=12 {
        run_random_faults(seed, RedisProgram::Valkey).await;
    }
}
