//! Members of three nodes on a log in memory that loses messages and requests.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::json;
use testkit::{MembersBroker, Random, members, run_members_randomly};
use tokio::{sync::watch, task::AbortHandle, time::sleep};
use tower_push::{
    EventId, GapReason, Hub,
    event::Topic,
    source::{
        hub::{
            HubBackend, HubEvent, MemberSnapshot, PresenceAnswer, PresenceBackend, PresenceOptions,
            PresenceRequest,
        },
        relay::{Page, PageRequest, UpstreamError},
    },
};
use tower_push_proto::fingerprint::Fingerprint;

use crate::{
    api_response::{ApiError, StreamConfig, StreamContents, StreamInfo},
    error::Error,
    log_message::{Snapshot, parse},
    log_store::LogStore,
    member_ledger::{LedgerRequest, ListChange},
    member_log::{ChangePublisher, LogLimits, MemberLog},
    stream_api::DirectRead,
    stream_members::event_of_change,
    stream_message::StreamMessage,
};

const SUBJECT: &str = "$MEMBERS.EVENTS";

/// The shortest node timeout.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

const LIMITS: LogLimits = LogLimits {
    min_snapshot_interval: 16,
    part_bytes: 150,
    read_messages: 7,
};

/// The streams of a hub and of its members. Clones are the same broker.
#[derive(Clone)]
struct MemoryBroker(Arc<Mutex<BrokerState>>);

struct BrokerState {
    random: Random,
    /// The number of the stream of members. A stream that is created anew has another one.
    stream: u64,
    /// Whether the stream of members exists.
    is_created: bool,
    messages: BTreeMap<u64, StreamMessage>,
    /// The highest sequence number that was ever given.
    last_sequence: u64,
    /// The greatest number of messages that the stream has had.
    max_messages: usize,
    /// Of 100 requests, this number fails.
    failures: u64,
    started_at: tokio::time::Instant,
    /// The events of the hub. The id of an event is its number, from 1.
    events: Vec<HubEvent>,
    event_ids: HashMap<String, EventId>,
    event_count: watch::Sender<usize>,
}

impl MemoryBroker {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(BrokerState {
            random: Random::new(seed),
            stream: 0,
            is_created: false,
            messages: BTreeMap::new(),
            last_sequence: 0,
            max_messages: 0,
            failures: 0,
            started_at: tokio::time::Instant::now(),
            events: Vec::new(),
            event_ids: HashMap::new(),
            event_count: watch::Sender::new(0),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, BrokerState> {
        self.0.lock().unwrap()
    }

    /// Runs an operation after some time. The operation fails before, or its answer is lost.
    async fn request<T>(
        &self,
        run: impl FnOnce(&mut BrokerState) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let delay = self.lock().random.below(4);
        sleep(Duration::from_millis(delay)).await;
        let (fails_before, fails_after) = {
            let mut state = self.lock();
            let failures = state.failures;
            let mut fails = || state.random.below(200) < failures;
            (fails(), fails())
        };
        if fails_before {
            return Err(Error::unavailable("the broker is away"));
        }
        let result = run(&mut self.lock());
        match fails_after {
            true => Err(Error::timeout()),
            false => result,
        }
    }
}

impl BrokerState {
    fn check_stream(&self) -> Result<(), Error> {
        match self.is_created {
            true => Ok(()),
            false => Err(Error::unavailable("no server has the stream")),
        }
    }

    fn info(&self) -> StreamInfo {
        let oldest = self.messages.keys().next();
        StreamInfo {
            config: StreamConfig::default(),
            created: self.stream.to_string(),
            state: StreamContents {
                messages: self.messages.len() as u64,
                bytes: 0,
                first_seq: oldest.copied().unwrap_or(self.last_sequence + 1),
                last_seq: self.last_sequence,
            },
            ts: String::new(),
        }
    }

    fn last_message(&self, subject: &str) -> Option<&StreamMessage> {
        let mut messages = self.messages.values().rev();
        messages.find(|message| message.subject == subject)
    }

    fn append(&mut self, subject: &str, payload: Vec<u8>) -> u64 {
        self.last_sequence += 1;
        let mut message = StreamMessage::with_payload(self.last_sequence, payload);
        message.subject = subject.to_owned();
        message.fingerprint = Fingerprint::random();
        message.time = self.started_at.elapsed().as_nanos() as i64;
        self.messages.insert(self.last_sequence, message);
        self.max_messages = self.max_messages.max(self.messages.len());
        self.last_sequence
    }

    fn delete_stream(&mut self) {
        self.stream += 1;
        self.is_created = false;
        self.messages.clear();
        self.last_sequence = 0;
    }

    /// Removes messages, as an operator or a fault does.
    fn lose_messages(&mut self) {
        let (first, last) = (self.info().state.first_seq, self.last_sequence);
        let span = (last + 1).saturating_sub(first).max(1);
        match self.random.below(7) {
            0 => drop(self.messages.pop_last()),
            1 => _ = self.messages.remove(&(first + self.random.below(span))),
            2 => self.messages.clear(),
            3 => self.messages = self.messages.split_off(&(first + self.random.below(span))),
            // A crash loses the newest messages, and other messages get their numbers.
            4 => {
                self.last_sequence = last - self.random.below(span.min(20));
                self.messages.split_off(&(self.last_sequence + 1));
            }
            5 => {
                let subject =
                    ["", ".part", ".snapshot", ".incomplete"][self.random.below(4) as usize];
                self.append(
                    &format!("{SUBJECT}{subject}"),
                    b"not of this crate".to_vec(),
                );
            }
            _ => self.delete_stream(),
        }
    }
}

impl LogStore for MemoryBroker {
    async fn describe(&self) -> Result<StreamInfo, Error> {
        let describe = |state: &mut BrokerState| match state.is_created {
            true => Ok(state.info()),
            false => Err(api_error(ApiError::STREAM_NOT_FOUND)),
        };
        self.request(describe).await
    }

    async fn describe_or_create(&self) -> Result<StreamInfo, Error> {
        let describe = |state: &mut BrokerState| {
            state.is_created = true;
            Ok(state.info())
        };
        self.request(describe).await
    }

    async fn read(
        &self,
        from: u64,
        max_messages: usize,
        _max_bytes: usize,
    ) -> Result<DirectRead, Error> {
        let read = |state: &mut BrokerState| {
            state.check_stream()?;
            // The server that answers may lag.
            let lag = match state.random.below(10) {
                0 => state.random.below(5),
                _ => 0,
            };
            let end = (state.last_sequence + 1).saturating_sub(lag).max(from);
            // The answer may be a part of the messages.
            let max_messages = match state.random.below(10) {
                0 => max_messages.min(2),
                _ => max_messages,
            };
            let mut messages = state.messages.range(from..end);
            let read = messages.by_ref().take(max_messages);
            Ok(DirectRead {
                messages: read.map(|(_, message)| message.clone()).collect(),
                has_more: messages.next().is_some(),
            })
        };
        self.request(read).await
    }

    async fn message_at(&self, sequence: u64) -> Result<Option<StreamMessage>, Error> {
        let read = |state: &mut BrokerState| Ok(state.messages.get(&sequence).cloned());
        self.request(read).await
    }

    async fn first_message_from(
        &self,
        from: u64,
        subject: &str,
    ) -> Result<Option<StreamMessage>, Error> {
        let read = |state: &mut BrokerState| {
            let mut messages = state.messages.range(from..);
            let found = messages.find(|(_, message)| message.subject == subject);
            Ok(found.map(|(_, message)| message.clone()))
        };
        self.request(read).await
    }

    async fn last_message(&self, subject: &str) -> Result<Option<StreamMessage>, Error> {
        let read = |state: &mut BrokerState| Ok(state.last_message(subject).cloned());
        self.request(read).await
    }

    async fn append(
        &self,
        subject: &str,
        payload: Vec<u8>,
        after: Option<u64>,
    ) -> Result<u64, Error> {
        let append = |state: &mut BrokerState| {
            state.check_stream()?;
            let last = state
                .last_message(subject)
                .map_or(0, |message| message.sequence);
            if after.is_some_and(|after| after != last) {
                return Err(api_error(ApiError::STREAM_WRONG_LAST_SEQUENCE));
            }
            Ok(state.append(subject, payload))
        };
        self.request(append).await
    }

    async fn remove_before(&self, sequence: u64) -> Result<(), Error> {
        let remove = |state: &mut BrokerState| {
            state.messages = state.messages.split_off(&sequence);
            Ok(())
        };
        self.request(remove).await
    }

    fn max_message_len(&self) -> usize {
        1 << 20
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(100)
    }
}

fn api_error(err_code: u32) -> Error {
    let error = json!({ "err_code": err_code });
    Error::from(serde_json::from_value::<ApiError>(error).unwrap())
}

/// The backend of a node's hub.
struct MemoryBackend {
    broker: MemoryBroker,
    log: Arc<MemberLog<MemoryBroker>>,
}

/// Publishes the events of a request.
struct EventPublisher<'a> {
    broker: &'a MemoryBroker,
    request: &'a PresenceRequest,
}

impl ChangePublisher for EventPublisher<'_> {
    async fn publish(&self, change: &ListChange, idempotency_key: &str) -> Result<(), Error> {
        let event = event_of_change(self.request, change).unwrap();
        let publish = |state: &mut BrokerState| {
            if !state.event_ids.contains_key(idempotency_key) {
                let id = EventId::from(state.events.len() as u64 + 1);
                state.events.push(event.with_event_id(id.clone()));
                state.event_ids.insert(idempotency_key.to_owned(), id);
                state.event_count.send_replace(state.events.len());
            }
            Ok(())
        };
        self.broker.request(publish).await
    }
}

impl HubBackend for MemoryBackend {
    async fn publish(
        &self,
        _event: HubEvent,
        _key: Option<Box<str>>,
    ) -> Result<EventId, tower_push::Error> {
        unreachable!("the test publishes no events")
    }

    async fn read_page(&self, request: PageRequest) -> Result<Page<HubEvent>, UpstreamError> {
        let state = self.broker.lock();
        let read: usize = request.after().as_str().parse().unwrap();
        if read > state.events.len() {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        }
        let scanned = state.events[read..].iter().take(request.max_events());
        let last = EventId::from((read + scanned.len()) as u64);
        let requested = scanned.filter(|event| event.is_requested(&request));
        Ok(Page::new(requested.cloned().collect()).scanned_to(last))
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let number = |id: &EventId| id.as_str().parse::<u64>().unwrap();
        Some(number(a).cmp(&number(b)))
    }
}

impl PresenceBackend for MemoryBackend {
    async fn update_members(
        &self,
        request: PresenceRequest,
    ) -> Result<PresenceAnswer, tower_push::Error> {
        let publisher = EventPublisher {
            broker: &self.broker,
            request: &request,
        };
        let request = LedgerRequest::new(&request);
        match self.log.run(&request, &publisher).await {
            Ok(outcome) => Ok(outcome.into_answer()),
            Err(error) => Err(tower_push::Error::publish_failed(error)),
        }
    }
}

/// A hub, and the task that fills it. Dropping this value ends both.
struct MemoryNode {
    hub: Hub,
    log: Arc<MemberLog<MemoryBroker>>,
    reader: AbortHandle,
}

impl Drop for MemoryNode {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl MembersBroker for MemoryBroker {
    type Node = MemoryNode;

    async fn start_node(&self) -> MemoryNode {
        let log = Arc::new(MemberLog::new(self.clone(), SUBJECT, LIMITS));
        let mut event_count = self.lock().event_count.subscribe();
        let ((members, age), mut read) = loop {
            let read = *event_count.borrow_and_update();
            match log.read_members().await {
                Ok(listed) => break (listed, read),
                // The next attempt may find a server.
                Err(error) => assert!(error.is_unavailable(), "{error}"),
            }
        };
        let snapshot = MemberSnapshot::new(EventId::from(read as u64));
        let mut snapshot = snapshot.storage_age(age);
        for (member, value) in members {
            snapshot.insert(Topic::new(member.topic).unwrap(), member.key, value);
        }
        let options = PresenceOptions::new()
            .grace(Duration::from_millis(100))
            .node_timeout(NODE_TIMEOUT);
        let backend = MemoryBackend {
            broker: self.clone(),
            log: log.clone(),
        };
        let hub = Hub::builder().presence(options);
        let (mut writer, hub) = hub.build_with_presence(backend, EventId::from(read as u64));
        writer.set_members(snapshot);
        let broker = self.clone();
        let reader = tokio::spawn(async move {
            loop {
                let event = broker.lock().events.get(read).cloned();
                match event {
                    Some(event) => {
                        writer.push(event).unwrap();
                        read += 1;
                    }
                    None => drop(event_count.changed().await),
                }
            }
        });
        MemoryNode {
            hub,
            log,
            reader: reader.abort_handle(),
        }
    }

    fn hub(node: &MemoryNode) -> &Hub {
        &node.hub
    }

    fn can_lose_changes(&self) -> bool {
        true
    }

    async fn fail(&mut self, random: &mut Random) {
        match random.below(3) {
            0 => {
                self.lock().failures = 5 + random.below(100);
                sleep(Duration::from_millis(random.below(2000))).await;
                self.lock().failures = 0;
            }
            _ => {
                // A change that one node alone knows is lost if this node dies, too. So each node reads the log before and after.
                sleep(NODE_TIMEOUT).await;
                self.lock().lose_messages();
                sleep(NODE_TIMEOUT).await;
            }
        }
    }

    async fn published(&self) -> Vec<String> {
        let state = self.lock();
        let events = state.events.iter().map(|event| {
            let event = event.event();
            let data: serde_json::Value =
                serde_json::from_slice(event.payload().as_bytes()).unwrap();
            let event_type = event.event_type().unwrap();
            format!("{event_type} {}", data["member"].as_str().unwrap())
        });
        events.collect()
    }
}

/// Runs seeds on a paused clock.
fn run_seeds(seeds: std::ops::Range<u64>, has_faults: bool) {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap()..seed.parse::<u64>().unwrap() + 1,
        Err(_) => seeds,
    };
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let broker = MemoryBroker::new(seed);
            run_members_randomly(broker.clone(), seed, has_faults).await;
            let state = broker.lock();
            // Two intervals with their random parts, an entry after each change, and the parts of snapshots. A failure makes snapshots fail.
            let limit = if has_faults { 400 } else { 150 };
            assert!(state.max_messages < limit, "{}", state.max_messages);
        });
    }
}

#[test]
fn random_members_on_log_in_memory_are_listed() {
    run_seeds(0..25, false);
}

#[test]
fn random_members_survive_losses_of_log() {
    run_seeds(100..150, true);
}

/// Returns the number of restarts in the log.
fn restarts(broker: &MemoryBroker) -> usize {
    let is_restart = |message: &&StreamMessage| {
        String::from_utf8_lossy(&message.payload).contains("\"restart\"")
    };
    broker.lock().messages.values().filter(is_restart).count()
}

/// Starts a node with a member, and waits until the log has it.
async fn node_with_member(broker: &MemoryBroker, key: &str) -> (MemoryNode, impl Drop) {
    let node = broker.start_node().await;
    let connection = testkit::enter(&node.hub, key, 1);
    testkit::expect_members(std::slice::from_ref(&node.hub), &[key]).await;
    (node, connection)
}

/// Other nodes append entries while a snapshot is written.
#[tokio::test(start_paused = true)]
async fn snapshot_is_valid_among_entries_of_others() {
    let broker = MemoryBroker::new(1);
    let (node, _connection) = node_with_member(&broker, "ada").await;
    let (other, _other_connection) = (broker.start_node().await, ());
    let mut number = 0;
    let is_among_entries = |state: &BrokerState| {
        let message = state.last_message(&format!("{SUBJECT}.snapshot"))?;
        let covered = parse::<Snapshot>(message)?.covered()?;
        let mut between = state.messages.range(covered.sequence + 1..message.sequence);
        Some(between.any(|(_, message)| message.subject == SUBJECT))
    };
    while is_among_entries(&broker.lock()) != Some(true) {
        number += 1;
        assert!(number < 1000, "no snapshot");
        for node in [&node, &other] {
            let room = node.hub.presence("room").unwrap();
            let _ = room.update("ada", number).unwrap();
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(broker.lock().messages.len() < 150);
    let late = broker.start_node().await;
    assert!(members(&late.hub).contains_key("ada"));
}

/// A node that starts waits for no message that was removed.
#[tokio::test(start_paused = true)]
async fn newest_message_may_be_removed() {
    let broker = MemoryBroker::new(1);
    let (_node, _connection) = node_with_member(&broker, "ada").await;
    broker
        .append(SUBJECT, b"last".to_vec(), None)
        .await
        .unwrap();
    broker.lock().messages.pop_last();
    let log = MemberLog::new(broker.clone(), SUBJECT, LIMITS);
    let before = tokio::time::Instant::now();
    let (listed, _) = log.read_members().await.unwrap();
    assert_eq!(listed[0].0.key, "ada");
    assert!(before.elapsed() < LogStore::timeout(&broker));
}

/// A node restarts the log behind a hole, and members whose entries are lost come back or leave.
#[tokio::test(start_paused = true)]
async fn hole_restarts_log() {
    let broker = MemoryBroker::new(1);
    let (node, _connection) = node_with_member(&broker, "ada").await;
    let dead = broker.start_node().await;
    let dead_connection = testkit::enter(&dead.hub, "dan", 1);
    testkit::expect_members(std::slice::from_ref(&node.hub), &["ada", "dan"]).await;
    sleep(NODE_TIMEOUT / 2).await;
    drop((dead, dead_connection));
    // The entry of the dead node.
    let has_dan = |(_, message): &(&u64, &StreamMessage)| {
        String::from_utf8_lossy(&message.payload).contains("\"dan\"")
    };
    let lost = *broker.lock().messages.iter().find(has_dan).unwrap().0;
    broker.lock().messages.remove(&lost);
    let late = broker.start_node().await;
    let _eve = testkit::enter(&late.hub, "eve", 1);
    let hubs = [node.hub.clone(), late.hub.clone()];
    testkit::expect_members(&hubs, &["ada", "eve"]).await;
    assert_eq!(restarts(&broker), 1);
    let last = broker
        .published()
        .await
        .into_iter()
        .rfind(|event| event.ends_with("dan"));
    assert_eq!(last.unwrap(), "hub.leave dan");
}

/// Entries are removed, but not the later messages with other subjects, of which a node has read the last.
#[tokio::test(start_paused = true)]
async fn lost_last_entry_is_noticed() {
    for loses_all in [true, false] {
        for reads_first in [true, false] {
            let broker = MemoryBroker::new(1);
            drop(node_with_member(&broker, "ada").await);
            // What an older snapshot leaves.
            let part = format!("{SUBJECT}.part");
            broker.append(&part, Vec::new(), None).await.unwrap();
            let node = broker.start_node().await;
            broker.lock().messages.retain(|_, message| {
                let is_entry = message.subject == SUBJECT;
                !is_entry || (!loses_all && message.sequence == 1)
            });
            if reads_first {
                let (listed, age) = node.log.read_members().await.unwrap();
                let keys: Vec<_> = listed.iter().map(|(member, _)| &*member.key).collect();
                let expected: &[_] = if loses_all { &[] } else { &["ada"] };
                assert_eq!((&*keys, age), (expected, Duration::ZERO));
            }
            let before = tokio::time::Instant::now();
            let _bob = testkit::enter(&node.hub, "bob", 1);
            let hubs = std::slice::from_ref(&node.hub);
            testkit::expect_members(hubs, &["ada", "bob"]).await;
            assert!(before.elapsed() < NODE_TIMEOUT);
            testkit::expect_members(hubs, &["bob"]).await;
        }
    }
}

/// The log is purged. A node that starts writes its first member before the other nodes notice.
#[tokio::test(start_paused = true)]
async fn members_of_live_nodes_stay_when_log_is_lost() {
    for seed in 0..10 {
        let broker = MemoryBroker::new(seed);
        let (first, _ada) = node_with_member(&broker, "ada").await;
        let (second, dead) = (broker.start_node().await, broker.start_node().await);
        let (_bob, dan) = (
            testkit::enter(&second.hub, "bob", 1),
            testkit::enter(&dead.hub, "dan", 1),
        );
        testkit::expect_members(std::slice::from_ref(&first.hub), &["ada", "bob", "dan"]).await;
        // Until each node has read the entries of the others.
        sleep(NODE_TIMEOUT + Duration::from_millis(40 * seed)).await;
        drop((dead, dan));
        broker.lock().messages.clear();
        let late = broker.start_node().await;
        let _eve = testkit::enter(&late.hub, "eve", 1);
        let hubs = [&first, &second, &late].map(|node| node.hub.clone());
        testkit::expect_members(&hubs, &["ada", "bob", "eve"]).await;
        sleep(NODE_TIMEOUT * 3).await;
        testkit::expect_members(&hubs, &["ada", "bob", "eve"]).await;
        let mut events = broker.published().await;
        events.retain(|event| event.starts_with("hub.leave"));
        assert_eq!(events, ["hub.leave dan"]);
    }
}

/// Another program writes to the subject of the notices.
#[tokio::test(start_paused = true)]
async fn strange_notice_does_not_restart_log() {
    let broker = MemoryBroker::new(1);
    let (_node, _connection) = node_with_member(&broker, "ada").await;
    let subject = format!("{SUBJECT}.incomplete");
    for payload in ["", "{}", "stray"] {
        broker.append(&subject, payload.into(), None).await.unwrap();
    }
    sleep(NODE_TIMEOUT * 2).await;
    assert_eq!(restarts(&broker), 0);
    assert_eq!(broker.published().await, ["hub.join ada"]);
}
