//! Three processes behind nginx, which sends each request to the next one. Clients with all transports change their transport at random, while
//! nodes and the broker fail one after the other.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use testkit::{
    ExampleProcess, Nginx, Random, TEST_TIMEOUT, free_port, nginx::replace_once, wait_until,
};
use tokio::time::{sleep, timeout};
use tower_push::GapReason;
use tower_push_client::{Client, ClientItem, Transport};

use crate::{broker::Broker, requests::RequestSender};

/// The configuration that `docs/deploying.md` shows.
const ONE_NODE_CONFIGURATION: &str = include_str!("../nginx/push.conf");

/// What `docs/scaling.md` shows instead of the block `upstream` of that configuration.
const CLUSTER_CONFIGURATION: &str = include_str!("../nginx/cluster.conf");

const NODES: usize = 3;

/// The number of subscribers.
const SUBSCRIBERS: u64 = 300;

/// The number of the last event, which ends each subscriber.
const LAST: u64 = 1_000_000;

/// The time between two publications.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

const TRANSPORTS: [Transport; 6] = [
    Transport::WebSocket,
    Transport::Sse,
    Transport::Ndjson,
    Transport::JsonSeq,
    Transport::Multipart,
    Transport::LongPoll,
];

/// Three nodes, their broker, and nginx in front of the nodes.
struct Cluster {
    broker: Broker,
    nodes: Vec<ExampleProcess>,
    /// The addresses of the nodes.
    addresses: Vec<String>,
    nginx: Nginx,
    sender: RequestSender,
}

impl Cluster {
    async fn start(broker: Broker) -> Self {
        let ports: [u16; NODES] = std::array::from_fn(|_| free_port());
        let addresses = ports.map(|port| format!("127.0.0.1:{port}")).to_vec();
        let start = |address: &String| {
            let node = ExampleProcess::start_at(address, "cluster", &[&broker.url()]);
            node.next_address();
            node
        };
        let nodes = addresses.iter().map(start).collect();
        Self {
            nginx: Nginx::start(|port| nginx_configuration(port, &addresses)).await,
            broker,
            nodes,
            addresses,
            sender: RequestSender::new(),
        }
    }

    /// Returns the address of nginx.
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.nginx.port())
    }

    /// Waits until all nodes can serve.
    async fn wait_until_ready(&self) {
        for address in &self.addresses {
            self.sender.wait_for_readiness(address, 200).await;
        }
    }

    /// Causes a fault.
    async fn cause_fault(&mut self, fault: Fault, random: &mut Random) {
        let index = random.below(NODES as u64) as usize;
        let pause = Duration::from_millis(random.below(700));
        let node = &mut self.nodes[index];
        match fault {
            Fault::NodeKilled => {
                node.kill();
                sleep(pause).await;
                node.start_again();
            }
            Fault::NodeRestarted => restart_gracefully(node).await,
            Fault::NodeStopped => {
                node.pause();
                sleep(pause).await;
                node.resume();
            }
            Fault::BrokerKilled => {
                self.broker.kill();
                sleep(pause).await;
                self.broker.start_again();
            }
            Fault::BrokerStopped => {
                self.broker.pause();
                sleep(pause).await;
                self.broker.resume();
            }
            Fault::AllNodesRestarted => {
                for (node, address) in self.nodes.iter_mut().zip(&self.addresses) {
                    restart_gracefully(node).await;
                    self.sender.wait_for_readiness(address, 200).await;
                }
            }
            Fault::OtherProgram => {
                for _ in 0..20 {
                    self.broker.add_event_of_other_program().await;
                }
            }
            Fault::MasterDemoted => self.broker.demote_master_and_replica(pause).await,
            Fault::ClockSetBack => self.broker.add_event_of_the_future(),
            Fault::TrimmedBeforeNode => {
                node.pause();
                sleep(pause + PUBLISH_INTERVAL * 4).await;
                self.broker.trim_feed().await;
                node.resume();
            }
        }
        self.wait_until_ready().await;
    }

    /// Lets the broker lose some events that it has acknowledged, as by a failover to a replica that lags. `published` is the number that was
    /// published last.
    async fn lose_writes(&mut self, published: &AtomicU64) {
        let copy = self.broker.copy_data().await;
        self.wait_until_ready().await;
        wait_for_publications(published).await;
        self.broker.lose_events_since(&copy);
        self.wait_until_ready().await;
        wait_for_publications(published).await;
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A node is killed with SIGKILL.
    NodeKilled,
    /// A node ends its streams, exits and starts again.
    NodeRestarted,
    /// A node answers nothing for some time.
    NodeStopped,
    BrokerKilled,
    BrokerStopped,
    /// All nodes are restarted, one after the other, as in a deployment.
    AllNodesRestarted,
    /// Another program adds events that have other fields.
    OtherProgram,
    /// A replica becomes the master. The old master answers for some time, as a replica.
    MasterDemoted,
    /// The time in the id of the newest event is in the future.
    ClockSetBack,
    /// While a node is stopped, events are published, and nearly all events are removed.
    TrimmedBeforeNode,
}

/// The faults of every broker after which no event is lost.
const LOSSLESS_FAULTS: [Fault; 7] = [
    Fault::OtherProgram,
    Fault::NodeKilled,
    Fault::NodeRestarted,
    Fault::NodeStopped,
    Fault::BrokerKilled,
    Fault::BrokerStopped,
    Fault::AllNodesRestarted,
];

/// Further faults of Redis after which no event is lost.
const LOSSLESS_FAULTS_OF_REDIS: [Fault; 2] = [Fault::MasterDemoted, Fault::ClockSetBack];

/// The number of times that the faults happen: once, or as often as the environment variable `CLUSTER_FAULT_ROUNDS` says, as in
/// `scripts/test-long`.
fn fault_rounds() -> usize {
    let rounds = std::env::var("CLUSTER_FAULT_ROUNDS").ok();
    rounds.map_or(1, |rounds| {
        rounds.parse().expect("CLUSTER_FAULT_ROUNDS is a number")
    })
}

/// What the test has lost of the feed so far, so that clients may miss it.
#[derive(Default)]
struct FeedLosses {
    /// Whether the broker has lost events that it had acknowledged. From then on, a client can get a gap (`epoch`), after which numbers may be
    /// repeated or missing.
    are_writes_lost: AtomicBool,
    /// Whether events were removed. From then on, a client can get a gap (`expired`), after which some numbers are missing.
    are_events_removed: AtomicBool,
    /// Whether the feed was deleted.
    is_feed_deleted: AtomicBool,
    /// The numbers that came one after the other without a gap, since the broker has lost events.
    steps: Mutex<BTreeSet<(u64, u64)>>,
}

impl FeedLosses {
    /// Checks the steps. `lost` are the numbers that the broker has lost. A client that has got one of these must get a gap before a number that
    /// the broker has. A client that has got none of them never learns of them. It misses no other number.
    fn check_steps(&self, lost: &BTreeSet<u64>) {
        for (last, number) in &*self.steps.lock().unwrap() {
            assert!(
                lost.contains(number) || !lost.contains(last),
                "{last} then {number}, of which {lost:?} are lost"
            );
            let mut missed = last + 1..*number;
            let is_lost = |number| lost.contains(&number);
            assert!(missed.all(is_lost), "{last} then {number} without {lost:?}");
        }
    }
}

/// Ends a node as Ctrl-C does, and starts it again.
async fn restart_gracefully(node: &mut ExampleProcess) {
    node.interrupt();
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !node.has_ended() {
        assert!(Instant::now() < deadline, "the node does not stop");
        sleep(Duration::from_millis(10)).await;
    }
    node.start_again();
}

/// Waits until five more numbers are published.
async fn wait_for_publications(published: &AtomicU64) {
    let goal = published.load(Ordering::Relaxed) + 5;
    let is_reached = || published.load(Ordering::Relaxed) >= goal;
    wait_until(is_reached, || "nothing is published").await;
}

/// Kills a node, and starts it again when all subscribers have got events from the others meanwhile.
async fn kill_node_until_others_serve(
    cluster: &mut Cluster,
    published: &AtomicU64,
    last_numbers: &[Arc<AtomicU64>],
) {
    wait_for_publications(published).await;
    cluster.nodes[0].kill();
    wait_for_publications(published).await;
    let newest = published.load(Ordering::Relaxed);
    let is_behind = |last: &&Arc<AtomicU64>| last.load(Ordering::Relaxed) < newest;
    let behind = || last_numbers.iter().filter(is_behind).count();
    wait_until(
        || behind() == 0,
        || format!("{} wait for the node", behind()),
    )
    .await;
    cluster.nodes[0].start_again();
    cluster.wait_until_ready().await;
}

/// Returns the configuration that the documents show, without TLS and with the addresses and the path of the test.
fn nginx_configuration(port: u16, addresses: &[String]) -> String {
    let upstream = ONE_NODE_CONFIGURATION
        .split_once("upstream push {")
        .and_then(|(_, rest)| rest.split_once("}\n"))
        .map(|(upstream, _)| format!("upstream push {{{upstream}}}\n"))
        .expect("a block `upstream`");
    let listen = format!("listen 127.0.0.1:{port};");
    let replacements = [
        (upstream.as_str(), CLUSTER_CONFIGURATION),
        ("listen 443 ssl http2;", listen.as_str()),
        ("ssl_certificate /etc/ssl/push.example.pem;", ""),
        ("ssl_certificate_key /etc/ssl/push.example.key;", ""),
        ("location /events", "location /feed"),
        ("10.0.0.1:3000", addresses[0].as_str()),
        ("10.0.0.2:3000", addresses[1].as_str()),
        ("10.0.0.3:3000", addresses[2].as_str()),
    ];
    let replacements = replacements.into_iter();
    replacements.fold(ONE_NODE_CONFIGURATION.to_owned(), |text, (from, to)| {
        replace_once(&text, from, to)
    })
}

/// A client that follows the feed by one subscription after the other, each over a transport that is drawn at random.
struct HoppingSubscriber {
    client: Client,
    url: String,
    random: Random,
    /// The number of the last event, for the test. 0 before the first event.
    last: Arc<AtomicU64>,
    losses: Arc<FeedLosses>,
    /// The reason of the gap that the client has got since the last number.
    gap_reason: Option<GapReason>,
    /// The number of gaps since the feed was deleted.
    gaps: u64,
}

impl HoppingSubscriber {
    /// Reads to the last event. Returns the number of gaps.
    async fn run(mut self) -> u64 {
        let mut cursor = None;
        loop {
            let transport = TRANSPORTS[self.random.below(TRANSPORTS.len() as u64) as usize];
            let client = self.client.clone().transports([transport]).cursor(cursor);
            let mut items = client.subscribe(&self.url).unwrap();
            // The ticks of the nodes count, too.
            for _ in 0..1 + self.random.below(60) {
                let item = timeout(3 * TEST_TIMEOUT, items.next()).await;
                let item = item.expect("no item in time").expect("an item");
                self.handle_item(item.unwrap(), transport);
                if self.last.load(Ordering::Relaxed) == LAST {
                    return self.gaps;
                }
            }
            cursor = items.cursor().cloned();
        }
    }

    /// Checks that the numbers have no hole and come once, and counts the gaps.
    fn handle_item(&mut self, item: ClientItem, transport: Transport) {
        match item {
            ClientItem::Gap(gap) => {
                let losses = &self.losses;
                if losses.is_feed_deleted.load(Ordering::Relaxed) {
                    self.gaps += 1;
                    self.last.store(0, Ordering::Relaxed);
                    return;
                }
                let is_expected = match gap.reason {
                    GapReason::Expired => losses.are_events_removed.load(Ordering::Relaxed),
                    GapReason::Epoch => losses.are_writes_lost.load(Ordering::Relaxed),
                    _ => false,
                };
                if is_expected {
                    // Of two gaps, that with the reason `epoch` says more.
                    let is_epoch = self.gap_reason == Some(GapReason::Epoch);
                    self.gap_reason = self.gap_reason.filter(|_| is_epoch).or(Some(gap.reason));
                    return;
                }
                // Before the first publication, the stream does not exist in Redis, and the cursor of one node means nothing to another.
                let last = self.last.load(Ordering::Relaxed);
                assert_eq!(last, 0, "{gap:?} over {transport}");
            }
            ClientItem::Finished => panic!("the feed has finished over {transport}"),
            item => {
                let text = item.event().and_then(|event| event.payload().as_text());
                // The nodes also publish texts.
                let Some(number) = text.and_then(|text| text.parse::<u64>().ok()) else {
                    return;
                };
                let last = self.last.swap(number, Ordering::Relaxed);
                let is_later = number > last;
                let are_writes_lost = self.losses.are_writes_lost.load(Ordering::Relaxed);
                let is_expected = match self.gap_reason.take() {
                    _ if last == 0 || number == LAST => true,
                    Some(GapReason::Epoch) => true,
                    Some(_) => is_later,
                    None if are_writes_lost => {
                        self.losses.steps.lock().unwrap().insert((last, number));
                        is_later
                    }
                    None => number == last + 1,
                };
                assert!(is_expected, "{last} then {number} over {transport}");
            }
        }
    }
}

/// Publishes numbers from 1 until the publisher is stopped. `published` is the last number. Returns this number.
async fn publish_until_stopped(
    sender: RequestSender,
    address: String,
    published: Arc<AtomicU64>,
    is_stopped: Arc<AtomicBool>,
) -> u64 {
    let mut number = 0;
    while !is_stopped.load(Ordering::Relaxed) {
        number += 1;
        sender.publish(&address, number).await;
        published.store(number, Ordering::Relaxed);
        sleep(PUBLISH_INTERVAL).await;
    }
    number
}

async fn clients_miss_nothing_in_silence(broker: Broker) {
    let mut cluster = Cluster::start(broker).await;
    cluster.wait_until_ready().await;
    let client = Client::new().retry_delay(Duration::from_millis(20), Duration::from_millis(500));
    let mut subscribers = Vec::new();
    let mut last_numbers = Vec::new();
    let losses = Arc::new(FeedLosses::default());
    for seed in 0..SUBSCRIBERS {
        let last = Arc::new(AtomicU64::new(0));
        last_numbers.push(last.clone());
        let subscriber = HoppingSubscriber {
            client: client.clone(),
            url: format!("http://{}/feed", cluster.address()),
            random: Random::new(seed),
            last,
            losses: losses.clone(),
            gap_reason: None,
            gaps: 0,
        };
        subscribers.push(tokio::spawn(subscriber.run()));
    }
    let is_stopped = Arc::new(AtomicBool::new(false));
    let published = Arc::new(AtomicU64::new(0));
    let publisher = tokio::spawn(publish_until_stopped(
        cluster.sender.clone(),
        cluster.address(),
        published.clone(),
        is_stopped.clone(),
    ));
    kill_node_until_others_serve(&mut cluster, &published, &last_numbers).await;
    let mut random = Random::new(1);
    let faults_of_broker = match cluster.broker {
        Broker::Redis(..) => &LOSSLESS_FAULTS_OF_REDIS[..],
        Broker::Nats(_) => &[],
    };
    for _ in 0..fault_rounds() {
        for fault in LOSSLESS_FAULTS.iter().chain(faults_of_broker) {
            sleep(Duration::from_millis(random.below(500))).await;
            cluster.cause_fault(*fault, &mut random).await;
        }
    }
    losses.are_writes_lost.store(true, Ordering::Relaxed);
    for _ in 0..fault_rounds() {
        cluster.lose_writes(&published).await;
    }
    let left = cluster.broker.numbers().await;
    let newest = left.last().copied().unwrap_or(0);
    let lost: BTreeSet<u64> = (1..newest)
        .filter(|number| !left.contains(number))
        .collect();
    assert!(!lost.is_empty());
    losses.are_events_removed.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        cluster
            .cause_fault(Fault::TrimmedBeforeNode, &mut random)
            .await;
    }
    is_stopped.store(true, Ordering::Relaxed);
    let newest = publisher.await.unwrap();

    // Each subscriber has the newest event.
    let deadline = Instant::now() + 3 * TEST_TIMEOUT;
    let is_behind = |last: &Arc<AtomicU64>| last.load(Ordering::Relaxed) != newest;
    while last_numbers.iter().any(is_behind) {
        assert!(
            !subscribers
                .iter()
                .any(|subscriber| subscriber.is_finished())
        );
        assert!(Instant::now() < deadline, "a subscriber is behind");
        sleep(Duration::from_millis(20)).await;
    }

    losses.check_steps(&lost);

    // Each subscriber is told that the feed was deleted.
    losses.is_feed_deleted.store(true, Ordering::Relaxed);
    cluster.broker.delete_feed().await;
    let sender = &cluster.sender;
    sender.publish(&cluster.address(), LAST).await;
    for subscriber in subscribers {
        let ended = timeout(3 * TEST_TIMEOUT, subscriber).await;
        assert!(ended.expect("the last event").unwrap() >= 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_redis_miss_nothing_in_silence() {
    clients_miss_nothing_in_silence(Broker::start_redis().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_nats_miss_nothing_in_silence() {
    clients_miss_nothing_in_silence(Broker::start_nats()).await;
}

#[test]
fn documented_configuration_is_tested() {
    let document = include_str!("../../docs/scaling.md");
    let shown = format!("```nginx\n{CLUSTER_CONFIGURATION}```\n");
    assert!(
        document.contains(&shown),
        "docs/scaling.md shows another cluster.conf"
    );
}
