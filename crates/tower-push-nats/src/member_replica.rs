use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    ops::Range,
};

use tower_push_proto::fingerprint::Fingerprint;

use crate::{
    log_message::{LogEntry, MessagePosition},
    member_ledger::{ListChange, ListChangeKind, MemberId, MemberLedger, RequestOutcome},
    stream_message::StreamMessage,
};

/// What a node has read of the log of members. `Replica` does no I/O.
///
/// The owner passes each message of the stream to [`pass`](Self::pass), and then, if the message is an entry, to
/// [`apply`](Self::apply).
#[derive(Debug, Default)]
pub(crate) struct Replica {
    ledger: MemberLedger,
    /// The fingerprint of the stream. `None` before the first request, and if the stream has lost the last message that was read.
    stream: Option<Fingerprint>,
    /// The last message that was read.
    position: Option<MessagePosition>,
    /// The sequence number of the next message, if none is lost.
    next_sequence: u64,
    /// The last message with the subject of the entries.
    last_entry: Option<MessagePosition>,
    /// Whether messages are missing since the last restart that was read.
    has_holes: bool,
    /// Whether this node has read messages that the log has lost since. Only a restart that this node does not know yet is after the loss.
    has_lost_messages: bool,
    /// The last restarts that were read.
    known_restarts: VecDeque<MessagePosition>,
    unannounced: Option<UnannouncedChanges>,
    /// The last entry whose events this node has published, or has begun to publish.
    published_entry: Option<MessagePosition>,
    /// Whether this node may have published events of a lost entry after the log has restarted.
    has_late_events: bool,
    /// The members of an earlier ledger that the log has lost. They are in the lists of clients.
    lost_members: BTreeSet<MemberId>,
    /// The time from which on the nodes of lost members have had time to enter them again, in milliseconds since 1970: that of the last entry with
    /// which the log has lost members, or one of them has come back. `None` before the next entry.
    waits_for_lost_since: Option<i64>,
    /// The time of the last entry, in milliseconds since 1970.
    last_entry_at: i64,
    /// The last restart: the sequence numbers of its entry and of its first part.
    last_restart: Option<(u64, u64)>,
    /// The time of the last restart, in milliseconds since 1970.
    last_restart_at: Option<i64>,
    /// Also counts from the last snapshot that was begun.
    entries_since_snapshot: usize,
}

/// The changes of the last entry, as long as this node does not know that their events are published.
#[derive(Debug)]
pub(crate) struct UnannouncedChanges {
    entry: MessagePosition,
    pub(crate) changes: Vec<ListChange>,
    /// The number of changes, from the first, whose events this node has published. A request that is cancelled keeps this number.
    pub(crate) published: usize,
}

/// The maximum number of events that are published at the same time.
const MAX_PUBLICATIONS: usize = 32;

/// The length of `known_restarts`.
const MAX_KNOWN_RESTARTS: usize = 16;

/// The maximum number of lost members of one entry.
const MAX_LOST_MEMBERS: usize = 128;

impl Replica {
    /// Creates a replica that has read nothing. `first_sequence` is the sequence number of the oldest message of the stream, or of the next one.
    pub(crate) fn at_start(stream: Fingerprint, first_sequence: u64) -> Self {
        Self {
            stream: Some(stream),
            next_sequence: first_sequence,
            // The first message of a stream has the number 1.
            has_holes: first_sequence > 1,
            ..Self::default()
        }
    }

    /// Creates a replica that has read up to the entry `covered`, from a snapshot.
    pub(crate) fn at_snapshot(
        stream: Fingerprint,
        covered: MessagePosition,
        ledger: MemberLedger,
    ) -> Self {
        Self {
            ledger,
            stream: Some(stream),
            position: Some(covered),
            next_sequence: covered.sequence + 1,
            last_entry: Some(covered),
            ..Self::default()
        }
    }

    /// Replaces this replica. `new` learns of what the log has lost.
    pub(crate) fn replace(&mut self, mut new: Self) {
        let old = std::mem::take(self);
        let is_lost = match old.stream {
            None => old.has_lost_messages || (old.position.is_some() && new.position.is_none()),
            Some(stream) => new.stream != Some(stream),
        };
        new.has_lost_messages |= is_lost || old.has_holes || old.has_lost_messages;
        new.known_restarts = old.known_restarts;
        new.last_restart_at = old.last_restart_at;
        let is_publisher = old.last_entry.is_some() && old.published_entry == old.last_entry;
        new.has_late_events = old.has_late_events || (is_lost && is_publisher);
        new.lost_members = old.lost_members;
        // If nothing is lost, the members that a snapshot does not have any more have left.
        if new.has_lost_messages || new.has_holes {
            let members = old.ledger.members().map(|(member, _)| member.clone());
            new.lost_members.extend(members);
        }
        new.forget_members_found();
        *self = new;
    }

    fn forget_members_found(&mut self) {
        let ledger = &self.ledger;
        self.lost_members.retain(|member| !ledger.contains(member));
    }

    pub(crate) fn ledger(&self) -> &MemberLedger {
        &self.ledger
    }

    pub(crate) fn stream(&self) -> Option<Fingerprint> {
        self.stream
    }

    /// Forgets the stream, so that the log is read anew. The ledger stays until then. `is_lost` says whether the log has lost messages.
    pub(crate) fn leave_stream(&mut self, is_lost: bool) {
        self.stream = None;
        self.has_lost_messages |= is_lost;
    }

    pub(crate) fn position(&self) -> Option<MessagePosition> {
        self.position
    }

    /// Returns the sequence number from which to read: that of the last message that was read, if there is one.
    pub(crate) fn read_start(&self) -> u64 {
        self.position
            .map_or(self.next_sequence.max(1), |position| position.sequence)
    }

    pub(crate) fn last_entry(&self) -> Option<MessagePosition> {
        self.last_entry
    }

    /// Returns whether the stream has lost the last entry that was read. `last` is the last entry that the stream has now.
    pub(crate) fn has_lost_last_entry(&self, last: Option<&StreamMessage>) -> bool {
        let Some(read) = self.last_entry else {
            return false;
        };
        let last = last.map(MessagePosition::of);
        last.is_none_or(|last| {
            last.sequence < read.sequence || (last.sequence == read.sequence && last != read)
        })
    }

    /// Returns the sequence number of the last entry, or 0.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_entry.map_or(0, |entry| entry.sequence)
    }

    /// Notes that a node has found the log incomplete.
    pub(crate) fn set_incomplete(&mut self) {
        self.has_holes = true;
    }

    /// Returns whether this node must restart the log before it appends an entry. The node has read the whole log.
    pub(crate) fn must_restart(&mut self) -> bool {
        // Only a restart after these events repeats the events of all members.
        self.has_holes |= std::mem::take(&mut self.has_late_events);
        self.has_holes || self.has_lost_messages
    }

    /// Returns whether the log has lost members that may come back.
    pub(crate) fn waits_for_lost_members(&self) -> bool {
        !self.lost_members.is_empty()
    }

    /// Returns the time of the last restart, in milliseconds since 1970.
    pub(crate) fn last_restart_at(&self) -> Option<i64> {
        self.last_restart_at
    }

    /// Returns the changes of the last entry, whose events this node publishes now.
    pub(crate) fn begin_announcement(&mut self) -> Option<&mut UnannouncedChanges> {
        let unannounced = self.unannounced.as_mut()?;
        self.published_entry = Some(unannounced.entry);
        Some(unannounced)
    }

    /// Forgets which events this node has published: the log has restarted after them.
    pub(crate) fn forget_published(&mut self) {
        self.published_entry = None;
    }

    pub(crate) fn set_announced(&mut self) {
        self.unannounced = None;
    }

    /// Returns whether there may be a snapshot of the ledger now, and at least `interval` entries since the last one.
    pub(crate) fn is_snapshot_due(&self, interval: usize) -> bool {
        let is_complete = !self.has_holes && !self.has_lost_messages;
        self.entries_since_snapshot >= interval && is_complete && self.unannounced.is_none()
    }

    pub(crate) fn begin_snapshot(&mut self) {
        self.entries_since_snapshot = 0;
    }

    /// Returns the first sequence number that a node needs which begins with a snapshot up to the entry `covered`.
    pub(crate) fn first_needed_after(&self, covered: u64) -> u64 {
        match self.last_restart {
            Some((entry, parts_start)) if entry > covered => parts_start.min(covered),
            _ => covered,
        }
    }

    /// Returns the first of the members that leave because the log has lost them, as many as one entry has.
    pub(crate) fn first_lost_members(&self) -> Vec<MemberId> {
        let members = self.lost_members.iter().take(MAX_LOST_MEMBERS);
        members.cloned().collect()
    }

    /// Returns whether lost members leave now, because none of them has come back for `node_timeout`, in milliseconds.
    pub(crate) fn has_members_to_remove(&self, node_timeout: i64) -> bool {
        let is_over = |since: i64| self.last_entry_at.saturating_sub(since) >= node_timeout;
        !self.lost_members.is_empty() && self.waits_for_lost_since.is_some_and(is_over)
    }

    /// Returns whether messages are missing before a message.
    pub(crate) fn has_hole_before(&self, message: &StreamMessage) -> bool {
        message.sequence > self.next_sequence.max(1)
    }

    /// Goes on to a message.
    pub(crate) fn pass(&mut self, message: &StreamMessage) {
        self.has_holes |= self.has_hole_before(message);
        self.position = Some(MessagePosition::of(message));
        self.next_sequence = message.sequence + 1;
    }

    /// Applies a message with the subject of the entries. `entry` is its content, unless another program has written it or it is behind another
    /// entry, and `restarted` is the ledger of a restart. Returns the results of a request.
    pub(crate) fn apply(
        &mut self,
        message: &StreamMessage,
        entry: Option<LogEntry>,
        restarted: Option<MemberLedger>,
    ) -> Option<RequestOutcome> {
        let position = MessagePosition::of(message);
        self.last_entry = Some(position);
        self.entries_since_snapshot += 1;
        let entry = entry?;
        let now = message.time / 1_000_000;
        self.last_entry_at = now;
        self.waits_for_lost_since = self.waits_for_lost_since.map(|since| since.min(now));
        // This entry was appended when the events of the entry before it were published.
        self.unannounced = None;
        let outcome = match entry {
            LogEntry::Request(request) => {
                // While the broker was away, no node could enter its members again.
                if self.ledger.was_away(&request, now) {
                    self.waits_for_lost_since = None;
                }
                Some(self.ledger.apply(&request, now))
            }
            LogEntry::Announced => None,
            LogEntry::Restart { parts } => {
                self.has_holes = restarted.is_none();
                if !self.known_restarts.contains(&position) {
                    self.has_lost_messages = false;
                    self.known_restarts.truncate(MAX_KNOWN_RESTARTS - 1);
                    self.known_restarts.push_front(position);
                }
                let ledger = restarted.unwrap_or_default();
                let old = std::mem::replace(&mut self.ledger, ledger);
                let old_members = old.members().map(|(member, _)| member.clone());
                self.lost_members.extend(old_members);
                self.forget_members_found();
                self.waits_for_lost_since = None;
                self.last_restart = Some((position.sequence, parts.start));
                self.last_restart_at = Some(now);
                let joins = self.ledger.members().map(|(member, value)| ListChange {
                    member: member.clone(),
                    kind: ListChangeKind::Join(value.clone()),
                });
                Some(RequestOutcome::of_changes(joins.collect()))
            }
            LogEntry::Lost { members } => {
                self.lost_members.retain(|lost| !members.contains(lost));
                let is_lost = |member: &MemberId| !self.ledger.contains(member);
                let leaves = members
                    .into_iter()
                    .filter(is_lost)
                    .map(|member| ListChange {
                        member,
                        kind: ListChangeKind::Leave,
                    });
                Some(RequestOutcome::of_changes(leaves.collect()))
            }
        };
        for change in outcome.iter().flat_map(|outcome| &outcome.changes) {
            if self.lost_members.remove(&change.member) {
                self.waits_for_lost_since = None;
            }
        }
        self.waits_for_lost_since.get_or_insert(now);
        let outcome = outcome?;
        if !outcome.changes.is_empty() {
            self.unannounced = Some(UnannouncedChanges {
                entry: position,
                changes: outcome.changes.clone(),
                published: 0,
            });
        }
        Some(outcome)
    }
}

impl UnannouncedChanges {
    /// Returns the indexes of the changes whose events are published next, at the same time. The events of one member are published one after the
    /// other.
    pub(crate) fn next_wave(&self) -> Range<usize> {
        let mut members = HashSet::new();
        let rest = self.changes[self.published..].iter().take(MAX_PUBLICATIONS);
        let count = rest
            .take_while(|change| members.insert(&change.member))
            .count();
        self.published..self.published + count
    }

    /// Returns the idempotency key of the event of a change, which is the same on all nodes.
    pub(crate) fn idempotency_key(&self, index: usize) -> String {
        let MessagePosition {
            sequence,
            fingerprint,
        } = self.entry;
        format!("members:{sequence}-{}:{index}", fingerprint.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::member_ledger::LedgerPart;

    const NODE_TIMEOUT: i64 = 1000;

    fn member(key: &str) -> MemberId {
        MemberId {
            topic: "room".to_owned(),
            key: key.to_owned(),
        }
    }

    /// Returns a replica that has read a snapshot with these members.
    fn snapshot_with(sequence: u64, keys: &[&str]) -> Replica {
        let members = keys
            .iter()
            .map(|key| json!({ "topic": "room", "key": key, "value": 1, "nodes": ["a"] }));
        let part = json!({ "nodes": {}, "members": members.collect::<Vec<_>>() });
        let part: LedgerPart = serde_json::from_value(part).unwrap();
        let covered = MessagePosition {
            sequence,
            fingerprint: Fingerprint::from_bits(sequence as u32),
        };
        let ledger = MemberLedger::from_parts([part]);
        Replica::at_snapshot(Fingerprint::from_bits(0), covered, ledger)
    }

    /// Applies an entry that changes nothing, at a time in milliseconds.
    fn apply_at(replica: &mut Replica, time: i64) {
        let sequence = replica.last_sequence() + 1;
        let mut message = StreamMessage::with_payload(sequence, Vec::new());
        message.time = time * 1_000_000;
        replica.pass(&message);
        replica.apply(&message, Some(LogEntry::Announced), None);
    }

    /// A node sleeps, and finds its position removed because there is a later snapshot.
    #[test]
    fn members_missing_in_snapshot_are_lost_only_with_messages() {
        for is_lost in [false, true] {
            let mut replica = snapshot_with(10, &["ada", "bob"]);
            replica.leave_stream(is_lost);
            replica.replace(snapshot_with(20, &["ada"]));
            let expected = if is_lost {
                vec![member("bob")]
            } else {
                Vec::new()
            };
            assert_eq!(replica.first_lost_members(), expected);
        }
    }

    #[test]
    fn lost_members_have_time_to_come_back() {
        let mut replica = snapshot_with(10, &["ada", "bob"]);
        replica.leave_stream(true);
        replica.replace(snapshot_with(20, &[]));
        apply_at(&mut replica, 5000);
        assert!(!replica.has_members_to_remove(NODE_TIMEOUT));
        apply_at(&mut replica, 5900);
        assert!(!replica.has_members_to_remove(NODE_TIMEOUT));
        // The clock of the server goes back.
        apply_at(&mut replica, 4000);
        assert!(!replica.has_members_to_remove(NODE_TIMEOUT));
        apply_at(&mut replica, 5000);
        assert!(replica.has_members_to_remove(NODE_TIMEOUT));
    }

    #[test]
    fn wave_has_each_member_once() {
        let changes = ["a", "b", "a", "c"].map(|key| ListChange {
            member: member(key),
            kind: ListChangeKind::Leave,
        });
        let entry = MessagePosition {
            sequence: 7,
            fingerprint: Fingerprint::from_bits(0),
        };
        let mut unannounced = UnannouncedChanges {
            entry,
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
