//! The messages in the log of members.

use serde::{Deserialize, Serialize};
use tower_push_proto::fingerprint::Fingerprint;

use crate::{
    member_ledger::{LedgerPart, LedgerRequest, MemberId},
    stream_message::StreamMessage,
};

/// The sequence number and the fingerprint of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessagePosition {
    pub(crate) sequence: u64,
    pub(crate) fingerprint: Fingerprint,
}

/// An entry of the log, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum LogEntry {
    Request(LedgerRequest),
    /// The events of the entry before this one are published.
    Announced,
    /// Entries before this one are lost. From here on, the ledger is the one that the parts give. The events of all members' joins follow, because
    /// nodes may not know of these members.
    Restart {
        parts: SnapshotParts,
    },
    /// These members were in the ledger of a node before entries were lost. Those that the ledger does not have now leave.
    Lost {
        members: Vec<MemberId>,
    },
}

/// An entry and its place, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlacedEntry {
    /// The fingerprint of the entry behind which this one was appended. The stream compares sequence numbers only, and a crash can let another
    /// message have the number of a lost one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(flatten)]
    entry: LogEntry,
}

/// A snapshot of the ledger, as JSON: the message after its parts. A snapshot is valid wherever it is in the log.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    parts: SnapshotParts,
    /// The sequence number of the last entry that the snapshot has.
    covered_sequence: u64,
    /// The fingerprint of this entry.
    covered_fingerprint: String,
}

/// What a node tells the others beside the entries, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum NodeNotice {
    /// The node has found the log incomplete.
    Incomplete,
}

/// Where the parts of a ledger are.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotParts {
    /// Tells the parts from those of others.
    pub(crate) id: String,
    /// The sequence number of the first part.
    pub(crate) start: u64,
    pub(crate) count: usize,
}

/// A part of a ledger, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotPart {
    pub(crate) id: String,
    /// Counts from 0.
    pub(crate) index: usize,
    pub(crate) part: LedgerPart,
}

impl MessagePosition {
    pub(crate) fn of(message: &StreamMessage) -> Self {
        Self {
            sequence: message.sequence,
            fingerprint: message.fingerprint,
        }
    }
}

impl PlacedEntry {
    pub(crate) fn new(entry: LogEntry, after: Option<MessagePosition>) -> Self {
        Self {
            after: after.map(|after| after.fingerprint.as_str().to_owned()),
            entry,
        }
    }

    /// Returns the entry, unless it was appended behind another entry than `last`.
    pub(crate) fn entry_after(self, last: Option<MessagePosition>) -> Option<LogEntry> {
        let is_after = |last: MessagePosition| match &self.after {
            Some(after) => after == last.fingerprint.as_str(),
            None => true,
        };
        last.is_none_or(is_after).then_some(self.entry)
    }
}

impl Snapshot {
    pub(crate) fn new(parts: SnapshotParts, covered: MessagePosition) -> Self {
        Self {
            parts,
            covered_sequence: covered.sequence,
            covered_fingerprint: covered.fingerprint.as_str().to_owned(),
        }
    }

    pub(crate) fn parts(&self) -> &SnapshotParts {
        &self.parts
    }

    /// Returns the last entry that the snapshot has. Returns `None` if another program has written the snapshot.
    pub(crate) fn covered(&self) -> Option<MessagePosition> {
        Some(MessagePosition {
            sequence: self.covered_sequence,
            fingerprint: Fingerprint::parse(&self.covered_fingerprint)?,
        })
    }
}

/// Returns the content of a message. Returns `None` if another program has written it.
pub(crate) fn parse<'a, T: Deserialize<'a>>(message: &'a StreamMessage) -> Option<T> {
    serde_json::from_slice(&message.payload).ok()
}
