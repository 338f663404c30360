use tower_push::EventId;
use tower_push_proto::fingerprint::Fingerprint;

use crate::entry_id::EntryId;

/// A cursor of this crate in parsed form: the parts of an event id.
///
/// | text | meaning |
/// |---|---|
/// | `ms-seq~fingerprint` | the entry with this id and these fields |
/// | `ms-seq` | the end of a stream whose last entry was removed before this process could read the entry |
/// | `0-random` | the beginning of a stream that this crate has created |
/// | `0-0~random` | the beginning of one process's log, if another program has created the stream. Other processes do not know this id |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamCursor {
    pub(crate) id: EntryId,
    pub(crate) fingerprint: Option<Fingerprint>,
}

impl StreamCursor {
    /// Returns the cursor after an entry that was removed from the stream, or the cursor before the first entry.
    pub(crate) fn without_entry(id: EntryId) -> Self {
        // A stream can begin at 0-0 again, so a cursor at the beginning is valid for the log of this process only.
        let fingerprint = (id == EntryId::ZERO).then(Fingerprint::random);
        Self { id, fingerprint }
    }

    pub(crate) fn parse(id: &EventId) -> Option<Self> {
        let (entry, fingerprint) = match id.as_str().split_once('~') {
            Some((entry, fingerprint)) => (entry, Some(Fingerprint::parse(fingerprint)?)),
            None => (id.as_str(), None),
        };
        Some(Self {
            id: entry.parse().ok()?,
            fingerprint,
        })
    }

    pub(crate) fn to_event_id(self) -> EventId {
        let text = match &self.fingerprint {
            Some(fingerprint) => format!("{}~{}", self.id, fingerprint.as_str()),
            None => self.id.to_string(),
        };
        // Digits, `-`, `~` and letters are valid in an id, and the text is at most 48 bytes long.
        EventId::new(text).unwrap_or_else(|_| self.id.ms.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_id_is_parsed() {
        let max = u64::MAX;
        for text in ["1716-0~abc234", "1716-0", &format!("{max}-{max}~aaaaaa")] {
            let id = EventId::new(text).unwrap();
            let cursor = StreamCursor::parse(&id).unwrap();
            assert_eq!(cursor.to_event_id(), id);
        }
        for text in [
            "7",
            "1716-0~",
            "1716-0~abc",
            "1716-0~abc234~",
            "~finished",
            "a-b",
        ] {
            let id = EventId::new(text).unwrap();
            assert_eq!(StreamCursor::parse(&id), None, "{text}");
        }
    }

    #[test]
    fn beginning_is_another_one_each_time() {
        let begin = || StreamCursor::without_entry(EntryId::ZERO).to_event_id();
        assert_ne!(begin(), begin());
        let last = EntryId { ms: 5, seq: 1 };
        assert_eq!(
            StreamCursor::without_entry(last).to_event_id().as_str(),
            "5-1"
        );
    }
}
