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

use serde_json::{Value, json};
use testkit::{NatsServer, PublishedEvents, Random, RelayClient, wait_until};
use tokio::time::sleep;
use tower_push::Event;
use tower_push_nats::JetStream;

use crate::nodes::{Operator, STREAM, node, node_with_short_log};

struct Run {
    seed: u64,
    nodes: Vec<JetStream>,
    published: Mutex<PublishedEvents>,
    is_paused: AtomicBool,
    is_over: AtomicBool,
}

/// The number of the last event, which ends each client.
const LAST: u64 = 1_000_000;

/// The time after which no publication is in progress any more.
const PAUSE_TIME: Duration = Duration::from_millis(500);

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

    /// Follows the feed, and moves between the nodes. Returns the number of gaps.
    async fn follow(self: Arc<Self>, index: u64, mut client: RelayClient) -> u64 {
        let mut random = Random::new(self.seed * 1000 + index);
        let (mut last, mut gaps) = (0, 0);
        let mut seen = BTreeSet::new();
        loop {
            let item = client.next().await;
            if let Ok(number) = item.parse::<u64>() {
                assert!(seen.insert(number), "seed {}: {number} twice", self.seed);
                // The publisher adds a number only when it has the answer, which can come after the event.
                sleep(Duration::from_millis(1)).await;
                if number < last {
                    // A publication that has failed can arrive later, when the node is connected again.
                    let is_acknowledged = self
                        .published
                        .lock()
                        .unwrap()
                        .acknowledged
                        .contains(&number);
                    assert!(
                        !is_acknowledged,
                        "seed {}: {number} after {last}",
                        self.seed
                    );
                    continue;
                }
                if last > 0 {
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
                client.move_to(self.random_node(&mut random).relay());
            } else if item != "cursor" {
                let reason = item.split(' ').next().unwrap_or_default();
                match reason {
                    // The client gets the events that are left, which it has not got before.
                    "expired" => {}
                    // The client can get events again: a client whose cursor is lost gets the whole log, and a node that has not noticed a
                    // loss yet still sends the lost events.
                    "epoch" => seen.clear(),
                    _ => panic!("seed {}: {item}", self.seed),
                }
                (last, gaps) = (0, gaps + 1);
            }
            if random.below(30) == 0 {
                if random.below(3) == 0 {
                    sleep(Duration::from_millis(random.below(300))).await;
                }
                client.move_to(self.random_node(&mut random).relay());
            }
        }
    }

    fn random_node(&self, random: &mut Random) -> &JetStream {
        &self.nodes[random.below(self.nodes.len() as u64) as usize]
    }

    /// Causes one fault.
    async fn fault(&self, server: &mut NatsServer, random: &mut Random) -> &'static str {
        match random.below(7) {
            0 => {
                server.kill();
                sleep(Duration::from_millis(random.below(300))).await;
                server.start_again();
                "kill"
            }
            1 => {
                self.lose_writes(server, random).await;
                "lost writes"
            }
            2 => {
                server.pause();
                sleep(Duration::from_millis(random.below(700))).await;
                server.resume();
                "SIGSTOP"
            }
            number => {
                let operator = Operator::connect(server).await;
                // The stream may be missing after the last fault.
                match remove_something(&operator, number, random).await {
                    Ok(fault) => fault,
                    Err(_) => "missing stream",
                }
            }
        }
    }

    /// Lets the server lose the newest messages, as if the machine had crashed.
    async fn lose_writes(&self, server: &mut NatsServer, random: &mut Random) {
        self.pause_publisher().await;
        server.kill();
        server.save_data();
        let kept = self.published.lock().unwrap().acknowledged.clone();
        server.start_again();
        self.is_paused.store(false, Ordering::Relaxed);
        sleep(Duration::from_millis(random.below(1000))).await;
        self.pause_publisher().await;
        {
            let published = &mut *self.published.lock().unwrap();
            let lost = published.acknowledged.difference(&kept);
            published.lost.extend(lost);
        }
        server.kill();
        let before = self.reconnects();
        server.restore_data();
        server.start_again();
        self.is_paused.store(false, Ordering::Relaxed);
        self.wait_until_loss_is_noticed(&before).await;
    }

    /// Returns how often each node has reconnected.
    fn reconnects(&self) -> Vec<u64> {
        let reconnects = |node: &JetStream| node.reader_status().reconnects;
        self.nodes.iter().map(reconnects).collect()
    }

    /// Waits until all nodes have reconnected, and all clients have returned. If the messages that have got the sequence numbers of lost messages
    /// are removed before this, the loss cannot be noticed.
    async fn wait_until_loss_is_noticed(&self, reconnects_before: &[u64]) {
        let have_reconnected = || {
            let now = self.reconnects();
            let mut pairs = now.iter().zip(reconnects_before);
            pairs.all(|(now, before)| now > before)
        };
        wait_until(have_reconnected, || "a node does not reconnect").await;
        sleep(PAUSE_TIME).await;
    }

    /// Waits until no publication is in progress.
    async fn pause_publisher(&self) {
        self.is_paused.store(true, Ordering::Relaxed);
        sleep(PAUSE_TIME).await;
    }
}

/// Removes the stream, messages or consumers.
async fn remove_something(
    operator: &Operator,
    number: u64,
    random: &mut Random,
) -> Result<&'static str, Value> {
    let name = |request: &str| format!("{request}.{STREAM}");
    match number {
        3 => {
            let request = json!({});
            operator
                .try_request(&name("STREAM.DELETE"), request)
                .await?;
            Ok("deleted stream")
        }
        4 => {
            let request = json!({ "keep": random.below(20) });
            operator.try_request(&name("STREAM.PURGE"), request).await?;
            Ok("purge")
        }
        5 => {
            let info = operator
                .try_request(&name("STREAM.INFO"), json!({}))
                .await?;
            let newest = info["state"]["last_seq"].as_u64().unwrap();
            let request = json!({ "seq": newest.saturating_sub(random.below(20)) });
            operator
                .try_request(&name("STREAM.MSG.DELETE"), request)
                .await?;
            Ok("deleted message")
        }
        _ => {
            operator.delete_consumers().await?;
            Ok("deleted consumers")
        }
    }
}

async fn run_random_faults(seed: u64) {
    let mut server = NatsServer::start("");
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
    for _ in 0..10 {
        sleep(Duration::from_millis(random.below(400))).await;
        faults.push(run.fault(&mut server, &mut random).await);
    }
    run.is_over.store(true, Ordering::Relaxed);
    publisher.await.unwrap();
    // A client that was away during the last fault can be behind.
    let last = Event::text(LAST.to_string());
    node(&server).await.publish(&last).await.unwrap();
    let mut gaps = Vec::new();
    for client in clients {
        gaps.push(client.await.unwrap());
    }
    println!("seed {seed}: {faults:?}, gaps {gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_lose_nothing_in_silence() {
    for seed in 1..=4 {
        run_random_faults(seed).await;
    }
}
