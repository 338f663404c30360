//! The members of a hub on a stream of their own.

use std::{sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_push_proto::{fingerprint::Fingerprint, random};

use crate::{
    api_response::StreamInfo,
    error::Error,
    log_message::{
        LogEntry, MessagePosition, NodeNotice, PlacedEntry, Snapshot, SnapshotPart, SnapshotParts,
        parse,
    },
    log_store::LogStore,
    member_ledger::{
        LedgerPart, LedgerRequest, ListChange, MemberId, MemberLedger, RequestOutcome,
    },
    member_replica::Replica,
    stream_api::StreamApi,
    stream_message::StreamMessage,
};

/// The log of the requests by which nodes change the members of a hub: the stream `EVENTS_MEMBERS` beside the hub's stream `EVENTS`.
///
/// Each node applies all requests of the log to a ledger of its own. A node appends a request only behind the last request that it has applied
/// (`Nats-Expected-Last-Subject-Sequence`, and the fingerprint in the entry). So the requests have one order, each is in the log wholly or not at
/// all, and each node knows the results of its request: those of its own ledger.
///
/// # Invariant: each change has one event
/// A node appends an entry only when the hub's stream has the events of all earlier entries. So only the last entry can have changes that are not
/// announced. The node that has appended the entry publishes their events. If this node dies, the next one that makes a request publishes them
/// first. The idempotency key of an event is made of its entry, so an event that two nodes publish is in the stream once. When the events of an entry
/// are published, an entry says so, so that no node publishes them again after the time for which the stream remembers the keys.
///
/// Other programs can write to the subjects of the log. A message that is no entry changes no members, and says nothing of the events of the entry
/// before it. But the next entry is appended behind this message.
///
/// # Invariant: a ledger has all entries
/// A ledger begins with the first message of the stream, or with the last snapshot and the entry that the snapshot covers. Sequence numbers have no
/// holes, so a node notices each message that was removed after this beginning. It also notices if the message or the entry that it has read last is
/// gone. What was removed is lost: the node appends an entry with which all ledgers begin again with its own ledger ([`LogEntry::Restart`]). Nodes
/// whose requests are lost find that they have no lease, and enter their members again. The members that are still missing when none of them has come
/// back for the time of a lease leave ([`LogEntry::Lost`]). The events of all members' joins are published again, because clients may have got the
/// events of lost entries.
///
/// A node that starts and finds the log incomplete tells the others, so that one of them restarts the log with a ledger that has more.
///
/// If the stream is lost, a node that knows the members restarts the new stream with them.
///
/// # Invariant: the last snapshot is valid
/// A snapshot is some messages with parts of the ledger, and then a message that names the last entry that the ledger has. Entries of other nodes
/// in between do no harm. A snapshot is appended only behind the snapshot before it, so a later one covers later entries. When a
/// snapshot is in the stream, the messages before the entry that the snapshot before it covers are removed.
pub(crate) struct MemberLog<S = StreamApi> {
    store: Arc<S>,
    subjects: LogSubjects,
    limits: LogLimits,
    state: Mutex<LogState>,
}

/// What a lock protects: a node makes one request at a time.
#[derive(Default)]
struct LogState {
    replica: Replica,
    /// The task that writes a snapshot, if there is one. It ends when the log is dropped.
    snapshot_task: JoinSet<()>,
}

/// Publishes the events of changes.
pub(crate) trait ChangePublisher: Sync {
    /// Publishes the event of a change, unless an event with this key was published before.
    fn publish(
        &self,
        change: &ListChange,
        idempotency_key: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// The subjects of the log.
#[derive(Clone, Debug)]
struct LogSubjects {
    entries: String,
    parts: String,
    snapshots: String,
    /// The subject of messages by which a node tells the others that it has found the log incomplete.
    incomplete: String,
}

/// The result of one read of the log.
enum LogReadOutcome {
    /// The messages are applied.
    Applied,
    /// The server that has answered does not have the message yet that was read last.
    Lags,
    /// The stream does not have the message that was read last, so the log must be read anew. `is_lost` says whether messages are lost.
    PositionLost { is_lost: bool },
}

/// The limits of reads and snapshots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogLimits {
    /// The minimum number of entries between two snapshots. A snapshot has at least as many entries before it as the ledger has members.
    pub(crate) min_snapshot_interval: usize,
    /// The length of a snapshot's part in bytes.
    pub(crate) part_bytes: usize,
    /// The maximum number of messages of one read.
    pub(crate) read_messages: usize,
}

/// The suffix of the name of the members' stream.
const STREAM_SUFFIX: &str = "_MEMBERS";

/// The subject of the log without its last part, the name of the hub's stream.
const SUBJECT_PREFIX: &str = "$MEMBERS";

/// The maximum number of bytes without headers of one read.
const READ_BYTES: usize = 4 << 20;

/// The time between two reads of an entry that the server which answers does not have yet.
const REREAD_DELAY: Duration = Duration::from_millis(10);

/// The maximum time before another attempt to append an entry, after another node was faster.
const MAX_CONFLICT_DELAY: u64 = 20;

/// The maximum number of times that one request reads the log anew, or restarts it, because messages are removed meanwhile.
const MAX_RECOVERIES: usize = 3;

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            min_snapshot_interval: 1024,
            part_bytes: 128 << 10,
            read_messages: 256,
        }
    }
}

impl LogSubjects {
    fn new(log_subject: &str) -> Self {
        Self {
            entries: log_subject.to_owned(),
            parts: format!("{log_subject}.part"),
            snapshots: format!("{log_subject}.snapshot"),
            incomplete: format!("{log_subject}.incomplete"),
        }
    }
}

/// Returns the name and the subject of the members' stream, beside the stream of a hub.
pub(crate) fn members_stream(hub_stream: &str) -> (String, String) {
    let name = format!("{hub_stream}{STREAM_SUFFIX}");
    (name, format!("{SUBJECT_PREFIX}.{hub_stream}"))
}

impl<S: LogStore> MemberLog<S> {
    /// Creates a log on the stream `store`, whose entries have the subject `log_subject`.
    pub(crate) fn new(store: S, log_subject: &str, limits: LogLimits) -> Self {
        Self {
            store: Arc::new(store),
            subjects: LogSubjects::new(log_subject),
            limits,
            state: Mutex::default(),
        }
    }

    /// Runs a request of this node. `publisher` publishes the events of changes.
    ///
    /// # Cancellation
    /// If the future is dropped, the request may be in the log or not.
    pub(crate) async fn run(
        &self,
        request: &LedgerRequest,
        publisher: &impl ChangePublisher,
    ) -> Result<RequestOutcome, Error> {
        let state = &mut *self.state.lock().await;
        let replica = &mut state.replica;
        let mut ends_at = Instant::now() + self.store.timeout();
        let sequence = loop {
            let before = replica.last_entry();
            self.prepare_to_append(replica, publisher).await?;
            if replica.ledger().has_lost_lease(request) {
                return Ok(RequestOutcome::lease_lost());
            }
            if replica.last_entry() != before {
                ends_at = Instant::now() + self.store.timeout();
            }
            let entry = LogEntry::Request(request.clone());
            match self.append(entry, replica.last_entry()).await {
                Err(error) if error.is_conflict() && Instant::now() < ends_at => {
                    self.handle_conflict(replica).await?;
                }
                Err(error) if error.is_conflict() => {
                    return Err(Error::unavailable("the log of members lags"));
                }
                appended => break appended?,
            }
        };
        let mut outcome = self.read_outcome(replica, sequence).await?;
        // If another node has appended an entry since, this node has published the events.
        self.announce(replica, publisher).await?;
        if replica.has_members_to_remove(request.node_timeout()) {
            outcome.has_more |= self
                .remove_lost_members(replica, request, publisher)
                .await?;
        }
        self.write_snapshot_if_due(state).await;
        Ok(outcome)
    }

    /// Reads the log, publishes the events of its last entry, and restarts the log if entries are lost.
    async fn prepare_to_append(
        &self,
        replica: &mut Replica,
        publisher: &impl ChangePublisher,
    ) -> Result<(), Error> {
        let mut restarts = 0;
        loop {
            self.catch_up(replica, None).await?;
            if self.announce(replica, publisher).await? {
                // The last entry is now the one that says so.
                continue;
            }
            if !replica.must_restart() {
                return Ok(());
            }
            if restarts == MAX_RECOVERIES {
                return Err(Error::unavailable("the log of members loses its entries"));
            }
            restarts += 1;
            match self
                .append_restart(replica.ledger(), replica.last_entry())
                .await
            {
                // Another node has appended an entry first.
                Err(error) if error.is_conflict() => self.handle_conflict(replica).await?,
                restarted => restarted?,
            }
        }
    }

    /// Waits after an entry was appended behind another one than the last. Forgets the stream if it has lost the last entry that was read: then a
    /// read of later messages with other subjects does not notice the loss.
    async fn handle_conflict(&self, replica: &mut Replica) -> Result<(), Error> {
        wait_after_conflict().await;
        let last = self.last_entry().await?;
        if replica.has_lost_last_entry(last.as_ref()) {
            replica.leave_stream(true);
        }
        Ok(())
    }

    /// Reads the log up to an entry of this node, and returns its results.
    async fn read_outcome(
        &self,
        replica: &mut Replica,
        sequence: u64,
    ) -> Result<RequestOutcome, Error> {
        let ends_at = Instant::now() + self.store.timeout();
        loop {
            if let Some(outcome) = self.catch_up(replica, Some(sequence)).await? {
                return Ok(outcome);
            }
            if Instant::now() >= ends_at || replica.last_sequence() > sequence {
                return Err(Error::unavailable("the log of members has lost an entry"));
            }
            sleep(REREAD_DELAY).await;
        }
    }

    /// Reads the members of all topics, and how long the log has them without a loss. The time is zero if the log is missing or has no entries: then
    /// nobody has become a member yet, or all is lost. What this node has read of a lost log can be older than the events, and is not returned.
    pub(crate) async fn read_members(&self) -> Result<(Vec<(MemberId, Value)>, Duration), Error> {
        // A request of this node can take longer. Events do not wait for it: then the log is read anew.
        let lock = timeout(self.store.timeout(), self.state.lock());
        let (mut locked, mut unshared) = (lock.await.ok(), Replica::default());
        let replica = match locked.as_deref_mut() {
            Some(state) => &mut state.replica,
            None => &mut unshared,
        };
        let info = match self.read_all(replica).await {
            // The ledger of a lost stream is kept until it is in a new one: see `open`.
            Err(error) if error.is_not_found() => {
                if replica.ledger().len() > 0 {
                    replica.leave_stream(true);
                }
                None
            }
            read => read?,
        };
        let is_incomplete = replica.must_restart();
        if is_incomplete {
            // Nodes that have members restart the log. Without permission, or a server, the list stays incomplete until this node has a member.
            let subject = &self.subjects.incomplete;
            let message = to_json(&NodeNotice::Incomplete);
            let _ = self.store.append(subject, message, None).await;
        }
        let Some(info) = info else {
            return Ok((Vec::new(), Duration::ZERO));
        };
        let age = match is_incomplete || replica.waits_for_lost_members() {
            true => Duration::ZERO,
            false => info.age_since(replica.last_restart_at()),
        };
        let members = replica.ledger().members();
        let members = members.map(|(member, value)| (member.clone(), value.clone()));
        Ok((members.collect(), age))
    }

    /// Reads the whole log. Returns the description of its stream, or `None` if it has no entries.
    async fn read_all(&self, replica: &mut Replica) -> Result<Option<StreamInfo>, Error> {
        let mut info = self.store.describe().await?;
        if replica.stream() != Some(info.fingerprint()) {
            // The ledger of a lost stream is kept until it is in the new one: see `open`.
            if replica.ledger().len() > 0 && self.last_entry().await?.is_none() {
                return Ok(None);
            }
            let new = self.first_replica(&info).await?;
            replica.replace(new);
        }
        let mut ends_at = Instant::now() + self.store.timeout();
        let mut recoveries = 0;
        // The last entry can be removed at any time, so each attempt asks for it.
        loop {
            let last = self.last_entry().await?;
            if replica.has_lost_last_entry(last.as_ref()) {
                if recoveries == MAX_RECOVERIES {
                    return Err(Error::unavailable("the log of members loses its entries"));
                }
                recoveries += 1;
                replica.leave_stream(true);
                if last.is_some() {
                    info = self.store.describe().await?;
                    let new = self.first_replica(&info).await?;
                    replica.replace(new);
                }
            }
            // Without entries, the ledger is kept until it is in the log again: see `open`.
            let Some(last) = last else {
                return Ok(None);
            };
            let before = replica.position();
            self.catch_up(replica, None).await?;
            if replica.last_sequence() >= last.sequence {
                return Ok(Some(info));
            }
            if replica.position() != before {
                ends_at = Instant::now() + self.store.timeout();
            } else if Instant::now() >= ends_at {
                return Err(Error::unavailable("the log of members lags"));
            } else {
                sleep(REREAD_DELAY).await;
            }
        }
    }

    async fn last_entry(&self) -> Result<Option<StreamMessage>, Error> {
        self.store.last_message(&self.subjects.entries).await
    }

    /// Applies the entries that the server has now. Returns the results of the entry `own`, if it is one of them.
    async fn catch_up(
        &self,
        replica: &mut Replica,
        own: Option<u64>,
    ) -> Result<Option<RequestOutcome>, Error> {
        if replica.stream().is_none() {
            self.open(replica).await?;
        }
        let max_messages = self.limits.read_messages;
        let mut own_outcome = None;
        let mut recoveries = 0;
        loop {
            let read = self
                .store
                .read(replica.read_start(), max_messages, READ_BYTES);
            let read = match read.await {
                Ok(read) => read,
                Err(error) if error.is_unavailable() => {
                    let stream = replica.stream();
                    self.open(replica).await?;
                    match replica.stream() == stream {
                        true => return Err(error),
                        false => continue,
                    }
                }
                Err(error) => return Err(error),
            };
            let before = replica.position();
            let applied = self.apply(replica, &read.messages, own, &mut own_outcome);
            match applied.await? {
                LogReadOutcome::Applied => {}
                LogReadOutcome::Lags => return Ok(own_outcome),
                LogReadOutcome::PositionLost { is_lost } => {
                    if recoveries == MAX_RECOVERIES {
                        return Err(Error::unavailable("the log of members loses its entries"));
                    }
                    recoveries += 1;
                    replica.leave_stream(is_lost);
                    self.open(replica).await?;
                    continue;
                }
            }
            if !read.has_more || replica.position() == before {
                return Ok(own_outcome);
            }
        }
    }

    /// Applies the messages of one read.
    async fn apply(
        &self,
        replica: &mut Replica,
        messages: &[StreamMessage],
        own: Option<u64>,
        own_outcome: &mut Option<RequestOutcome>,
    ) -> Result<LogReadOutcome, Error> {
        let new = match replica.position() {
            None => messages,
            Some(position) => match messages.split_first() {
                Some((first, new)) if MessagePosition::of(first) == position => new,
                _ => return self.find_position(replica, position).await,
            },
        };
        for message in new {
            if replica.has_hole_before(message) {
                let info = self.store.describe().await?;
                let is_other = replica.stream() != Some(info.fingerprint());
                if is_other || info.state.first_seq >= message.sequence {
                    return Ok(LogReadOutcome::PositionLost { is_lost: is_other });
                }
            }
            if message.subject != self.subjects.entries {
                replica.pass(message);
                if message.subject == self.subjects.parts && is_first_part(message) {
                    replica.begin_snapshot();
                }
                if message.subject == self.subjects.incomplete {
                    match parse::<NodeNotice>(message) {
                        Some(NodeNotice::Incomplete) => replica.set_incomplete(),
                        None => {}
                    }
                }
                continue;
            }
            let entry = parse::<PlacedEntry>(message);
            let entry = entry.and_then(|entry| entry.entry_after(replica.last_entry()));
            let restarted = match &entry {
                Some(LogEntry::Restart { parts, .. }) => {
                    self.read_parts(parts, message.sequence).await?
                }
                _ => None,
            };
            replica.pass(message);
            let outcome = replica.apply(message, entry, restarted);
            if own == Some(message.sequence) {
                *own_outcome = outcome;
            }
        }
        Ok(LogReadOutcome::Applied)
    }

    /// Finds out why a read has not returned the message that was read last.
    async fn find_position(
        &self,
        replica: &Replica,
        position: MessagePosition,
    ) -> Result<LogReadOutcome, Error> {
        let found = self.store.message_at(position.sequence).await?;
        if found.as_ref().map(MessagePosition::of) == Some(position) {
            return Ok(LogReadOutcome::Lags);
        }
        let info = self.store.describe_or_create().await?;
        let is_other = replica.stream() != Some(info.fingerprint());
        // If the oldest message is a later one, others have removed the message, because there is a snapshot. Otherwise, the message is lost.
        Ok(LogReadOutcome::PositionLost {
            is_lost: is_other || info.state.first_seq <= position.sequence,
        })
    }

    /// Creates the stream if it is missing, and begins to read it anew if it is not the one that was read. A node that knows the members of a
    /// stream that is lost writes them to the new stream.
    async fn open(&self, replica: &mut Replica) -> Result<(), Error> {
        let info = self.store.describe_or_create().await?;
        if replica.stream() == Some(info.fingerprint()) {
            return Ok(());
        }
        if replica.ledger().len() > 0 && self.last_entry().await?.is_none() {
            match self.append_restart(replica.ledger(), None).await {
                // Another node has written the members first.
                Err(error) if error.is_conflict() => {}
                written => {
                    written?;
                    replica.forget_published();
                }
            }
        }
        // Not earlier: if the members are not written, the next attempt needs the ledger.
        let new = self.first_replica(&info).await?;
        replica.replace(new);
        Ok(())
    }

    /// Returns the replica with which a node begins to read the log: that of the last snapshot, or an empty one.
    async fn first_replica(&self, info: &StreamInfo) -> Result<Replica, Error> {
        let stream = info.fingerprint();
        let first_sequence = info.state.first_seq.max(1);
        let start = Replica::at_start(stream, first_sequence);
        let Some(message) = self.store.last_message(&self.subjects.snapshots).await? else {
            return Ok(start);
        };
        let Some(snapshot) = parse::<Snapshot>(&message) else {
            return Ok(start);
        };
        let Some(covered) = snapshot.covered() else {
            return Ok(start);
        };
        let found = self.store.message_at(covered.sequence).await?;
        if found.as_ref().map(MessagePosition::of) != Some(covered) {
            return Ok(start);
        }
        let ledger = self.read_parts(snapshot.parts(), message.sequence).await?;
        Ok(match ledger {
            Some(ledger) => Replica::at_snapshot(stream, covered, ledger),
            None => start,
        })
    }

    /// Reads a ledger. Returns `None` if the stream does not have all of its parts before the message `end`.
    async fn read_parts(
        &self,
        parts: &SnapshotParts,
        end: u64,
    ) -> Result<Option<MemberLedger>, Error> {
        let mut found = Vec::new();
        let mut from = parts.start;
        while found.len() < parts.count {
            let next = self.store.first_message_from(from, &self.subjects.parts);
            let Some(message) = next.await?.filter(|message| message.sequence < end) else {
                return Ok(None);
            };
            from = message.sequence + 1;
            match parse::<SnapshotPart>(&message) {
                Some(part) if part.id == parts.id && part.index == found.len() => {
                    found.push(part.part);
                }
                // Others write snapshots, too.
                _ => {}
            }
        }
        Ok(Some(MemberLedger::from_parts(found)))
    }

    /// Publishes the events of the last entry, unless they are known to be published. Returns whether it has published them.
    ///
    /// # Cancellation
    /// The next call continues with the events that are not known to be published.
    async fn announce(
        &self,
        replica: &mut Replica,
        publisher: &impl ChangePublisher,
    ) -> Result<bool, Error> {
        let Some(unannounced) = replica.begin_announcement() else {
            return Ok(false);
        };
        while unannounced.published < unannounced.changes.len() {
            let wave = unannounced.next_wave();
            let publications = wave.clone().map(|index| {
                let key = unannounced.idempotency_key(index);
                let change = &unannounced.changes[index];
                async move { publisher.publish(change, &key).await }
            });
            try_join_all(publications).await?;
            unannounced.published = wave.end;
        }
        replica.set_announced();
        // If another node has appended an entry since, it has published the events, too.
        let after = replica.last_entry();
        let _ = self.append(LogEntry::Announced, after).await;
        Ok(true)
    }

    /// Appends an entry behind the entry `after`. Returns its sequence number.
    ///
    /// # Errors
    /// [`Error::is_conflict`] if `after` is not the last entry.
    async fn append(&self, entry: LogEntry, after: Option<MessagePosition>) -> Result<u64, Error> {
        let entry = to_json(&PlacedEntry::new(entry, after));
        let after = after.map_or(0, |after| after.sequence);
        let appended = self
            .store
            .append(&self.subjects.entries, entry, Some(after));
        appended.await
    }

    /// Lets all ledgers begin again with the ledger of this node.
    async fn append_restart(
        &self,
        ledger: &MemberLedger,
        after: Option<MessagePosition>,
    ) -> Result<(), Error> {
        let parts = ledger.to_parts(self.max_part_bytes());
        let parts = append_parts(&*self.store, &self.subjects, parts).await?;
        let entry = LogEntry::Restart { parts };
        self.append(entry, after).await.map(drop)
    }

    /// Removes some of the members that the log has lost, and that have not come back, from the lists of clients. Returns whether there are more.
    async fn remove_lost_members(
        &self,
        replica: &mut Replica,
        request: &LedgerRequest,
        publisher: &impl ChangePublisher,
    ) -> Result<bool, Error> {
        self.prepare_to_append(replica, publisher).await?;
        if !replica.has_members_to_remove(request.node_timeout()) {
            return Ok(false);
        }
        let members = replica.first_lost_members();
        let entry = LogEntry::Lost { members };
        match self.append(entry, replica.last_entry()).await {
            Err(error) if error.is_conflict() => return Ok(true),
            appended => self.read_outcome(replica, appended?).await?,
        };
        self.announce(replica, publisher).await?;
        Ok(replica.has_members_to_remove(request.node_timeout()))
    }

    fn max_part_bytes(&self) -> usize {
        self.limits.part_bytes.min(self.store.max_message_len() / 2)
    }

    /// Begins to write a snapshot if there are many entries since the last one. If this fails, the next attempt is after as many entries again.
    async fn write_snapshot_if_due(&self, state: &mut LogState) {
        let LogState {
            replica,
            snapshot_task,
        } = state;
        let interval = self
            .limits
            .min_snapshot_interval
            .max(replica.ledger().len());
        // A random part of the interval keeps the nodes from all writing a snapshot at the same time.
        let interval = interval + (random::bits() % (interval as u64 / 2).max(1)) as usize;
        while snapshot_task.try_join_next().is_some() {}
        if !replica.is_snapshot_due(interval) || !snapshot_task.is_empty() {
            return;
        }
        let (Some(covered), Some(position)) = (replica.last_entry(), replica.position()) else {
            return;
        };
        let previous = match self.store.last_message(&self.subjects.snapshots).await {
            // A snapshot that this node has not read yet.
            Ok(Some(previous)) if previous.sequence > position.sequence => return,
            Ok(previous) => previous,
            Err(_) => return,
        };
        let after = previous.as_ref().map_or(0, |message| message.sequence);
        let previous = previous.and_then(|message| parse::<Snapshot>(&message)?.covered());
        // Nodes that lag read the log from the earlier snapshot on.
        let keep_from = previous.map(|covered| replica.first_needed_after(covered.sequence));
        replica.begin_snapshot();
        let parts = replica.ledger().to_parts(self.max_part_bytes());
        let (store, subjects) = (self.store.clone(), self.subjects.clone());
        snapshot_task.spawn(async move {
            let written = append_snapshot(&*store, &subjects, parts, covered, after).await;
            if let (Ok(()), Some(keep_from)) = (written, keep_from) {
                let _ = store.remove_before(keep_from).await;
            }
        });
    }
}

/// Writes a snapshot of the entries up to `covered` behind the snapshot `after`.
async fn append_snapshot(
    store: &impl LogStore,
    subjects: &LogSubjects,
    parts: Vec<LedgerPart>,
    covered: MessagePosition,
    after: u64,
) -> Result<(), Error> {
    let parts = append_parts(store, subjects, parts).await?;
    let snapshot = to_json(&Snapshot::new(parts, covered));
    let appended = store.append(&subjects.snapshots, snapshot, Some(after));
    appended.await.map(drop)
}

async fn append_parts(
    store: &impl LogStore,
    subjects: &LogSubjects,
    parts: Vec<LedgerPart>,
) -> Result<SnapshotParts, Error> {
    let id = Fingerprint::random().as_str().to_owned();
    let (count, mut start) = (parts.len(), None);
    for (index, part) in parts.into_iter().enumerate() {
        let id = id.clone();
        let part = to_json(&SnapshotPart { id, index, part });
        let sequence = store.append(&subjects.parts, part, None).await?;
        start.get_or_insert(sequence);
    }
    Ok(SnapshotParts {
        id,
        start: start.unwrap_or_default(),
        count,
    })
}

fn is_first_part(message: &StreamMessage) -> bool {
    parse::<SnapshotPart>(message).is_some_and(|part| part.index == 0)
}

fn to_json(content: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(content).unwrap_or_default()
}

async fn wait_after_conflict() {
    let delay = random::bits() % MAX_CONFLICT_DELAY;
    sleep(Duration::from_millis(delay)).await;
}
