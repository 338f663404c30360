//! The members of a hub on a stream of their own.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use async_nats::HeaderMap;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tower_push::{
    event::Topic,
    source::hub::{HubEvent, MemberSnapshot, PresenceAnswer, PresenceRequest},
};
use tower_push_proto::{fingerprint::Fingerprint, random};

use crate::{
    api_response::StreamInfo,
    error::Error,
    jetstream_publisher::JetStreamPublisher,
    member_ledger::{
        LedgerPart, LedgerRequest, ListChange, ListChangeKind, MemberLedger, RequestOutcome,
    },
    stream_api::StreamApi,
    stream_cursor::StreamCursor,
    stream_message::{EVENT_TOKEN, StreamMessage},
};

/// The log of the requests by which nodes change the members of a hub: the stream `EVENTS_MEMBERS` beside the hub's stream `EVENTS`.
///
/// Each node applies all requests of the log to a ledger of its own. A node appends a request only behind the last request that it has applied
/// (`Nats-Expected-Last-Subject-Sequence`). So the requests have one order, each is in the log wholly or not at all, and each node knows the results
/// of its request: those of its own ledger.
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
/// A ledger begins with the first entry of the stream or with a snapshot. A snapshot is several messages with parts of a ledger, and then an entry
/// that makes them valid. Entries before a snapshot are removed when a later snapshot is complete. A node that does not find the entry that it has
/// read last reads the log from its beginning.
///
/// If the stream is lost, a node that knows the members writes a snapshot of them to a new stream. The events of their joins are published again, because
/// a node that has started meanwhile does not know these members.
pub(crate) struct MemberLog {
    /// The requests to the hub's stream.
    hub_api: Arc<StreamApi>,
    /// The requests to the stream of the members.
    api: StreamApi,
    publisher: JetStreamPublisher,
    replica: Mutex<Replica>,
}

/// An entry of the log, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum LogEntry {
    Request(LedgerRequest),
    /// The events of the entry before this one are published.
    Announced,
    /// The ledger at this place of the log.
    Snapshot {
        id: String,
        parts: usize,
        /// Whether the log was lost before. Then no event tells of these members yet.
        is_restored: bool,
    },
}

/// A part of a snapshot, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct SnapshotPart {
    /// The snapshot.
    id: String,
    part: LedgerPart,
}

/// What this node has read of the log.
#[derive(Debug, Default)]
struct Replica {
    ledger: MemberLedger,
    /// The fingerprint of the stream. `None` before the first request.
    stream: Option<Fingerprint>,
    /// The sequence number and the fingerprint of the last message that was read.
    position: Option<(u64, Fingerprint)>,
    /// The sequence number and the fingerprint of the last message with the subject of the entries.
    last_entry: Option<(u64, Fingerprint)>,
    unannounced: Option<UnannouncedChanges>,
    /// The snapshots that are not valid yet, by their ids.
    pending_snapshots: BTreeMap<String, PendingSnapshot>,
    /// The sequence number at which the last snapshot begins.
    snapshot_start: Option<u64>,
    /// Also counts from the last snapshot that this node has failed to write.
    entries_since_snapshot: usize,
}

/// A snapshot whose parts were read, but not yet the entry that makes it valid.
#[derive(Debug)]
struct PendingSnapshot {
    /// The sequence number of the first part.
    start: u64,
    part_count: usize,
    /// The parts, if the log begins with them. A node that has read earlier entries does not need them.
    parts: Vec<LedgerPart>,
}

/// The changes of the last entry, as long as this node does not know that their events are published.
#[derive(Debug)]
struct UnannouncedChanges {
    /// The sequence number and the fingerprint of the entry.
    entry: (u64, Fingerprint),
    changes: Vec<ListChange>,
    /// The number of changes, from the first, whose events this node has published. A request that is cancelled keeps this number.
    published: usize,
}

/// The suffix of the name of the members' stream.
const STREAM_SUFFIX: &str = "_MEMBERS";

/// The subject of the log without its last part, the name of the hub's stream.
const SUBJECT_PREFIX: &str = "$MEMBERS";

/// The last part of the subject of a snapshot's parts.
const PART: &str = "part";

/// The maximum number of messages, and of bytes without headers, of one read.
const READ_MESSAGES: usize = 256;
const READ_BYTES: usize = 4 << 20;

/// The length of a snapshot's part in bytes.
const PART_BYTES: usize = 128 << 10;

/// The minimum number of entries between two snapshots. A snapshot has at least as many entries before it as the ledger has members.
const MIN_SNAPSHOT_INTERVAL: usize = 1024;

/// The maximum number of events that are published at the same time.
const MAX_PUBLICATIONS: usize = 32;

/// The time between two reads of an entry that the server which answers does not have yet.
const REREAD_DELAY: Duration = Duration::from_millis(10);

/// The maximum time before another attempt to append an entry, after another node was faster.
const MAX_CONFLICT_DELAY: u64 = 20;

/// Returns the name and the subject of the members' stream, beside the stream of a hub.
pub(crate) fn members_stream(hub_stream: &str) -> (String, String) {
    let name = format!("{hub_stream}{STREAM_SUFFIX}");
    (name, format!("{SUBJECT_PREFIX}.{hub_stream}"))
}

impl MemberLog {
    pub(crate) fn new(
        hub_api: Arc<StreamApi>,
        api: StreamApi,
        publisher: JetStreamPublisher,
    ) -> Self {
        Self {
            hub_api,
            api,
            publisher,
            replica: Mutex::default(),
        }
    }

    fn log_subject(&self) -> String {
        // There is a prefix, so there is a subject.
        self.api.subjects.subject_of(None).unwrap_or_default()
    }

    fn part_subject(&self) -> String {
        format!("{}.{PART}", self.log_subject())
    }

    /// Runs a request of this node.
    ///
    /// # Cancellation
    /// If the future is dropped, the request may be in the log or not.
    pub(crate) async fn run(&self, request: &PresenceRequest) -> Result<PresenceAnswer, Error> {
        let replica = &mut *self.replica.lock().await;
        let entry = LedgerRequest::new(request);
        let log_entry = LogEntry::Request(entry.clone());
        let sequence = loop {
            self.catch_up(replica, None).await?;
            if self.announce(replica, request).await? {
                // The last entry is now the one that says so.
                continue;
            }
            if replica.ledger.has_lost_lease(&entry) {
                return Ok(PresenceAnswer::LeaseLost);
            }
            match self.append(&log_entry, replica.last_sequence()).await {
                Err(error) if error.is_conflict() => {
                    let delay = random::bits() % MAX_CONFLICT_DELAY;
                    sleep(Duration::from_millis(delay)).await;
                }
                appended => break appended?,
            }
        };
        let outcome = self.read_outcome(replica, sequence).await?;
        // If another node has appended an entry since, this node has published the events.
        self.announce(replica, request).await?;
        self.write_snapshot_if_due(replica).await;
        Ok(match outcome.is_lease_lost {
            true => PresenceAnswer::LeaseLost,
            false => PresenceAnswer::Applied {
                refused: outcome.refused,
                has_more: outcome.has_more,
            },
        })
    }

    /// Reads the log up to an entry of this node, and returns the results of its request.
    async fn read_outcome(
        &self,
        replica: &mut Replica,
        sequence: u64,
    ) -> Result<RequestOutcome, Error> {
        let ends_at = Instant::now() + self.api.connection.timeout();
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

    /// Reads the members of all topics. There are none if there is no log, if the user may not read it, or if its stream is not one of members.
    pub(crate) async fn read_members(&self) -> Result<MemberSnapshot, Error> {
        let hub_stream = self.hub_api.info().await?;
        // A request of this node can take longer. Events do not wait for it: then the log is read anew.
        let lock = timeout(self.api.connection.timeout(), self.replica.lock());
        let (mut locked, mut unshared) = (lock.await.ok(), Replica::default());
        let replica = locked.as_deref_mut().unwrap_or(&mut unshared);
        let last_id = StreamCursor {
            sequence: hub_stream.state.last_seq,
            stream: hub_stream.fingerprint(),
            message: None,
        };
        let mut snapshot = MemberSnapshot::new(last_id.to_event_id());
        // The log is read after the last id: an entry is older than its events.
        match self.read_all(replica).await {
            Err(error)
                if error.is_not_found() || error.is_unauthorized() || error.is_wrong_stream() =>
            {
                return Ok(snapshot);
            }
            read => read?,
        }
        for (member, value) in replica.ledger.members() {
            if let Ok(topic) = Topic::new(member.topic.as_str()) {
                snapshot.insert(topic, member.key.as_str(), value.clone());
            }
        }
        Ok(snapshot)
    }

    /// Reads the whole log, if its stream exists.
    async fn read_all(&self, replica: &mut Replica) -> Result<(), Error> {
        let info = self.api.checked_info().await?;
        if replica.stream != Some(info.fingerprint()) {
            // The ledger of a lost stream is kept until it is in the new one: see `open`.
            if replica.ledger.len() > 0 && !self.has_entries(&info).await? {
                return Ok(());
            }
            *replica = Replica::of_stream(info.fingerprint());
        }
        if info.state.messages > 0 {
            self.read_up_to(replica, info.state.last_seq).await?;
        }
        Ok(())
    }

    async fn read_up_to(&self, replica: &mut Replica, sequence: u64) -> Result<(), Error> {
        let mut ends_at = Instant::now() + self.api.connection.timeout();
        while replica.position.is_none_or(|(read, _)| read < sequence) {
            let before = replica.position;
            self.catch_up(replica, None).await?;
            if replica.position != before {
                ends_at = Instant::now() + self.api.connection.timeout();
            } else if Instant::now() >= ends_at {
                return Err(Error::unavailable("the log of members lags"));
            } else {
                sleep(REREAD_DELAY).await;
            }
        }
        Ok(())
    }

    /// Applies the entries that the server has now. Returns the results of the request in the entry `own`, if it is one of them.
    async fn catch_up(
        &self,
        replica: &mut Replica,
        own: Option<u64>,
    ) -> Result<Option<RequestOutcome>, Error> {
        if replica.stream.is_none() {
            self.open(replica).await?;
        }
        let mut own_outcome = None;
        loop {
            let from = replica.position.map_or(1, |(sequence, _)| sequence);
            let read = self.api.read_direct(from, None, READ_MESSAGES, READ_BYTES);
            let messages = match read.await {
                Ok(messages) => messages,
                Err(error) if error.is_unavailable() => {
                    let stream = replica.stream;
                    self.open(replica).await?;
                    match replica.stream == stream {
                        true => return Err(error),
                        false => continue,
                    }
                }
                Err(error) => return Err(error),
            };
            let mut new = messages.as_slice();
            if let Some(position) = replica.position {
                let first = new.first().map(|first| (first.sequence, first.fingerprint));
                if first != Some(position) {
                    // Others have removed the entry, because there is a snapshot, or the stream is another one.
                    replica.stream = None;
                    replica.position = None;
                    self.open(replica).await?;
                    continue;
                }
                new = &new[1..];
            }
            for message in new {
                let outcome = self.apply(replica, message);
                if own == Some(message.sequence) {
                    own_outcome = outcome;
                }
            }
            let bytes: usize = messages.iter().map(StreamMessage::byte_len).sum();
            let has_room = bytes + self.api.connection.max_message_len() < READ_BYTES;
            // A read that its limits have ended does not say that there are no more entries.
            if new.is_empty() || (messages.len() < READ_MESSAGES && has_room) {
                return Ok(own_outcome);
            }
        }
    }

    /// Creates the stream if it is missing, and begins to read from its start if it is not the one that was read. A node that knows the members of a
    /// stream that is lost writes them to the new stream.
    async fn open(&self, replica: &mut Replica) -> Result<(), Error> {
        let info = self.api.info_or_create().await?;
        if replica.stream == Some(info.fingerprint()) {
            return Ok(());
        }
        if replica.ledger.len() > 0 && !self.has_entries(&info).await? {
            match self.write_snapshot(&replica.ledger, 0, true).await {
                // Another node has written the members first.
                Err(error) if error.is_conflict() => {}
                written => written?,
            }
        }
        // Not earlier: if the snapshot is not written, the next attempt needs the ledger.
        *replica = Replica::of_stream(info.fingerprint());
        Ok(())
    }

    /// Returns whether the stream has an entry. Parts of a snapshot that was not completed are none.
    async fn has_entries(&self, info: &StreamInfo) -> Result<bool, Error> {
        if info.state.messages == 0 {
            return Ok(false);
        }
        let subject = self.log_subject();
        let first = self.api.read_direct(1, Some(&subject), 1, READ_BYTES);
        Ok(!first.await?.is_empty())
    }

    fn apply(&self, replica: &mut Replica, message: &StreamMessage) -> Option<RequestOutcome> {
        let subject = message.subject.as_str();
        replica.position = Some((message.sequence, message.fingerprint));
        if subject == self.log_subject() {
            return replica.apply_entry(message);
        }
        if subject == self.part_subject() {
            replica.apply_part(message);
        }
        None
    }

    /// Publishes the events of the last entry, unless they are known to be published. Returns whether it has published them.
    ///
    /// # Cancellation
    /// The next call continues with the events that are not known to be published.
    async fn announce(
        &self,
        replica: &mut Replica,
        request: &PresenceRequest,
    ) -> Result<bool, Error> {
        let Some(unannounced) = &mut replica.unannounced else {
            return Ok(false);
        };
        while unannounced.published < unannounced.changes.len() {
            let wave = unannounced.next_wave();
            let events = wave.clone().filter_map(|index| {
                let event = event_of_change(request, &unannounced.changes[index])?;
                Some((event, unannounced.idempotency_key(index)))
            });
            let publications = events.map(async |(event, key)| {
                let published = self.publisher.publish_to_topics(&event, Some(&key));
                published.await
            });
            try_join_all(publications).await?;
            unannounced.published = wave.end;
        }
        replica.unannounced = None;
        // If another node has appended an entry since, it has published the events, too.
        let after = replica.last_sequence();
        let _ = self.append(&LogEntry::Announced, after).await;
        Ok(true)
    }

    /// Appends an entry behind the entry `after`. Returns its sequence number.
    ///
    /// # Errors
    /// [`Error::is_conflict`] if `after` is not the last entry.
    async fn append(&self, entry: &LogEntry, after: u64) -> Result<u64, Error> {
        self.publish(self.log_subject(), entry, Some(after)).await
    }

    async fn publish(
        &self,
        subject: String,
        content: &impl Serialize,
        after: Option<u64>,
    ) -> Result<u64, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(EVENT_TOKEN, Fingerprint::random().as_str());
        if let Some(after) = after {
            let after = after.to_string();
            headers.insert("Nats-Expected-Last-Subject-Sequence", after.as_str());
        }
        let content = serde_json::to_vec(content).unwrap_or_default();
        let published = self.api.publish(subject, headers, content.into()).await?;
        Ok(published.seq)
    }

    /// Writes a snapshot if there are many entries since the last one. If this fails, for example because another node has appended an entry
    /// meanwhile, the next attempt is after as many entries again.
    async fn write_snapshot_if_due(&self, replica: &mut Replica) {
        let interval = MIN_SNAPSHOT_INTERVAL.max(replica.ledger.len());
        // A random part of the interval keeps the nodes from all writing a snapshot at the same time.
        let interval = interval + (random::bits() % (interval as u64 / 2)) as usize;
        if replica.entries_since_snapshot < interval {
            return;
        }
        if self.catch_up(replica, None).await.is_err() || replica.unannounced.is_some() {
            return;
        }
        let after = replica.last_sequence();
        // Set before the attempt, which may be cancelled.
        replica.entries_since_snapshot = 0;
        let written = self.write_snapshot(&replica.ledger, after, false).await;
        // Nodes that lag read the log from the earlier snapshot on.
        if let (Ok(()), Some(start)) = (written, replica.snapshot_start) {
            let _ = self.api.purge_before(start).await;
        }
    }

    /// Writes a snapshot of the ledger after the entry `after`.
    async fn write_snapshot(
        &self,
        ledger: &MemberLedger,
        after: u64,
        is_restored: bool,
    ) -> Result<(), Error> {
        let id = Fingerprint::random().as_str().to_owned();
        let max_bytes = PART_BYTES.min(self.api.connection.max_message_len() / 2);
        let parts = ledger.to_parts(max_bytes);
        let count = parts.len();
        for part in parts {
            let id = id.clone();
            let part = SnapshotPart { id, part };
            self.publish(self.part_subject(), &part, None).await?;
        }
        let entry = LogEntry::Snapshot {
            id,
            parts: count,
            is_restored,
        };
        self.append(&entry, after).await.map(drop)
    }
}

impl Replica {
    fn of_stream(stream: Fingerprint) -> Self {
        Self {
            stream: Some(stream),
            ..Self::default()
        }
    }

    /// Returns the sequence number of the last entry, or 0.
    fn last_sequence(&self) -> u64 {
        self.last_entry.map_or(0, |(sequence, _)| sequence)
    }

    fn apply_part(&mut self, message: &StreamMessage) {
        let Some(part) = parse::<SnapshotPart>(message) else {
            return;
        };
        let snapshot = self.pending_snapshots.entry(part.id);
        let snapshot = snapshot.or_insert_with(|| PendingSnapshot {
            start: message.sequence,
            part_count: 0,
            parts: Vec::new(),
        });
        snapshot.part_count += 1;
        if self.last_entry.is_none() {
            snapshot.parts.push(part.part);
        }
    }

    fn apply_entry(&mut self, message: &StreamMessage) -> Option<RequestOutcome> {
        let is_first = self.last_entry.is_none();
        let position = (message.sequence, message.fingerprint);
        self.last_entry = Some(position);
        self.entries_since_snapshot += 1;
        let entry = parse::<LogEntry>(message);
        if !matches!(entry, Some(LogEntry::Snapshot { .. })) {
            let pending = self.pending_snapshots.values_mut();
            pending.for_each(|snapshot| snapshot.parts = Vec::new());
        }
        let entry = entry?;
        // This entry was appended when the events of the entry before it were published.
        self.unannounced = None;
        match entry {
            LogEntry::Request(request) => {
                let outcome = self.ledger.apply(&request, message.time / 1_000_000);
                self.set_unannounced(position, outcome.changes.clone());
                Some(outcome)
            }
            LogEntry::Announced => None,
            LogEntry::Snapshot {
                id,
                parts,
                is_restored,
            } => {
                // The other snapshots have failed.
                let found = std::mem::take(&mut self.pending_snapshots).remove(&id);
                if let Some(found) = found.filter(|found| found.part_count == parts) {
                    if is_first {
                        self.ledger = MemberLedger::from_parts(found.parts);
                    }
                    self.snapshot_start = Some(found.start);
                }
                self.entries_since_snapshot = 0;
                if is_restored {
                    let members = self.ledger.members();
                    let joins = members.map(|(member, value)| ListChange {
                        member: member.clone(),
                        kind: ListChangeKind::Join(value.clone()),
                    });
                    self.set_unannounced(position, joins.collect());
                }
                None
            }
        }
    }

    fn set_unannounced(&mut self, entry: (u64, Fingerprint), changes: Vec<ListChange>) {
        if !changes.is_empty() {
            self.unannounced = Some(UnannouncedChanges {
                entry,
                changes,
                published: 0,
            });
        }
    }
}

impl UnannouncedChanges {
    /// Returns the indexes of the changes whose events are published next, at the same time. The events of one member are published one after the
    /// other.
    fn next_wave(&self) -> Range<usize> {
        let mut members = HashSet::new();
        let rest = self.changes[self.published..].iter().take(MAX_PUBLICATIONS);
        let count = rest
            .take_while(|change| members.insert(&change.member))
            .count();
        self.published..self.published + count
    }

    /// Returns the idempotency key of the event of a change, which is the same on all nodes.
    fn idempotency_key(&self, index: usize) -> String {
        let (sequence, token) = &self.entry;
        format!("members:{sequence}-{}:{index}", token.as_str())
    }
}

/// Returns the event of a change. Returns `None` if another program has written the change.
fn event_of_change(request: &PresenceRequest, change: &ListChange) -> Option<HubEvent> {
    let topic = Topic::new(change.member.topic.as_str()).ok()?;
    let key = change.member.key.as_str().into();
    Some(match &change.kind {
        ListChangeKind::Join(value) => request.join_event(&topic, &key, Arc::new(value.clone())),
        ListChangeKind::Update(value) => {
            request.update_event(&topic, &key, Arc::new(value.clone()))
        }
        ListChangeKind::Leave => request.leave_event(&topic, &key),
    })
}

/// Returns the content of a message. Returns `None` if another program has written it.
fn parse<'a, T: Deserialize<'a>>(message: &'a StreamMessage) -> Option<T> {
    serde_json::from_slice(&message.payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member_ledger::MemberId;

    #[test]
    fn wave_has_each_member_once() {
        let changes = ["a", "b", "a", "c"].map(|key| ListChange {
            member: MemberId {
                topic: "room".to_owned(),
                key: key.to_owned(),
            },
            kind: ListChangeKind::Leave,
        });
        let mut unannounced = UnannouncedChanges {
            entry: (7, Fingerprint::from_bits(0)),
            changes: changes.to_vec(),
            published: 0,
        };
        let first = unannounced.next_wave();
        assert_eq!(first, 0..2);
        unannounced.published = first.end;
        assert_eq!(unannounced.next_wave(), 2..4);
        unannounced.changes = vec![unannounced.changes[0].clone(); 2];
        unannounced.published = 1;
        assert_eq!(unannounced.next_wave(), 1..2);
        assert!(unannounced.idempotency_key(1).ends_with(":1"));
    }
}
