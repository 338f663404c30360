use tower_push_proto::fingerprint::Fingerprint;

use crate::{entry_id::EntryId, stream_entry::StreamEntry, stream_info::StreamInfo};

/// The position of the reader in a stream: after the last entry that the reader has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReaderPosition {
    /// The id of the last entry. If there was none, the highest id of the stream.
    pub(crate) id: EntryId,
    /// The fingerprint of the last entry. `None` if there was none.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// The number of entries that had been added to the stream when its last entry was the one of this position: the stream's
    /// `entries-added`. The number is too small by the number of entries that were deleted with `XDEL` before the reader could read them.
    pub(crate) entries_added: u64,
}

/// A consistent view of a stream: what `XINFO STREAM` and `XRANGE key ID + COUNT limit` return in one transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamSnapshot {
    /// `None` if the key does not exist.
    pub(crate) info: Option<StreamInfo>,
    /// The entries from the requested id on, which is included.
    pub(crate) entries: Vec<StreamEntry>,
    /// Whether `entries` has all entries up to the end of the stream.
    pub(crate) is_complete: bool,
}

/// Whether entries are missing between a reader's position and the entries after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamContinuity {
    /// No entries are missing.
    Intact,
    /// The stream was trimmed beyond the position. `missed` is the exact number of missing entries, if it is known.
    Trimmed { missed: Option<u64> },
    /// The stream is not the one that was read up to the position, or has lost entries that the reader has read.
    Replaced,
}

impl ReaderPosition {
    /// Returns the position after an entry.
    pub(crate) fn after(entry: &StreamEntry, entries_added: u64) -> Self {
        Self {
            id: entry.id,
            fingerprint: Some(entry.fingerprint()),
            entries_added,
        }
    }

    /// Returns the position at the end of a stream whose last entry was removed, or which has never had one.
    pub(crate) fn at_end_without_entry(info: Option<&StreamInfo>) -> Self {
        Self {
            id: info.map_or(EntryId::ZERO, |info| info.last_generated_id),
            fingerprint: None,
            entries_added: info.map_or(0, |info| info.entries_added),
        }
    }

    /// Returns whether `entry` is the last entry that the reader has read.
    pub(crate) fn is_at_entry(&self, entry: &StreamEntry) -> bool {
        entry.id == self.id && Some(entry.fingerprint()) == self.fingerprint
    }

    /// Compares this position with a snapshot whose entries begin at the position's id.
    ///
    /// `is_connected_since` says whether the connection to the server has not broken since the position was read. If the connection has not
    /// broken, there was no failover.
    pub(crate) fn continuity(
        &self,
        snapshot: &StreamSnapshot,
        is_connected_since: bool,
    ) -> StreamContinuity {
        let Some(info) = &snapshot.info else {
            return match self.id == EntryId::ZERO && self.entries_added == 0 {
                true => StreamContinuity::Intact,
                false => StreamContinuity::Replaced,
            };
        };
        if info.last_generated_id < self.id || info.entries_added < self.entries_added {
            return StreamContinuity::Replaced;
        }
        if let Some(entry) = snapshot.entries.first().filter(|entry| entry.id == self.id) {
            return match self.is_at_entry(entry) {
                true => StreamContinuity::Intact,
                false => StreamContinuity::Replaced,
            };
        }
        if info.last_generated_id == self.id {
            // The last entry was trimmed or deleted, and there is none after it.
            return StreamContinuity::Intact;
        }
        if info.first_id.is_none_or(|first_id| first_id > self.id) {
            self.continuity_before_first(info, is_connected_since)
        } else {
            self.continuity_in_range(info, snapshot)
        }
    }

    /// Returns the continuity of a position before the oldest entry. The removed entries that have a higher id than the position are
    /// missing.
    fn continuity_before_first(
        &self,
        info: &StreamInfo,
        is_connected_since: bool,
    ) -> StreamContinuity {
        let removed = info.entries_added.saturating_sub(info.length);
        let is_removed_last = removed == self.entries_added;
        if is_removed_last && info.max_deleted_id == self.id && self.id != EntryId::ZERO {
            // No other stream has removed an entry with this id.
            return StreamContinuity::Intact;
        }
        let is_other_start = self.id.is_random_start() && info.max_deleted_id < self.id;
        let is_later_removed = is_removed_last && info.max_deleted_id > self.id;
        if is_other_start || is_later_removed {
            return StreamContinuity::Replaced;
        }
        if !is_connected_since {
            // The stream may have been emptied and filled again, so the number of entries that were added proves nothing.
            return StreamContinuity::Trimmed { missed: None };
        }
        match removed.checked_sub(self.entries_added) {
            // Fewer entries were removed than the reader has read, so the stream is not the one that was read up to the position.
            None => StreamContinuity::Replaced,
            Some(0) => StreamContinuity::Intact,
            Some(missed) => StreamContinuity::Trimmed {
                missed: Some(missed),
            },
        }
    }

    /// Returns the continuity of a position between two entries. The continuity is intact only if the entry of the position was deleted with
    /// `XDEL`. If the entry was not deleted, a failover has lost it.
    fn continuity_in_range(
        &self,
        info: &StreamInfo,
        snapshot: &StreamSnapshot,
    ) -> StreamContinuity {
        let added_since = info.entries_added - self.entries_added;
        let is_deleted = info.max_deleted_id >= self.id;
        let has_all = snapshot.is_complete && snapshot.entries.len() as u64 == added_since;
        match is_deleted && has_all {
            true => StreamContinuity::Intact,
            false => StreamContinuity::Replaced,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 6;

    /// A stream with the rules of Redis, whose entries are numbers.
    #[derive(Clone, Default)]
    struct ModelStream {
        info: Option<StreamInfo>,
        entries: Vec<StreamEntry>,
    }

    fn entry(ms: u64, text: u64) -> StreamEntry {
        entry_at(EntryId { ms, seq: 0 }, text)
    }

    fn entry_at(id: EntryId, text: u64) -> StreamEntry {
        let fields = vec![(b"data".to_vec(), text.to_string().into_bytes())];
        StreamEntry::new(id, fields)
    }

    impl ModelStream {
        fn add(&mut self, ms_step: u64, text: u64) {
            let info = self.info.get_or_insert_default();
            let entry = entry(info.last_generated_id.ms + ms_step, text);
            info.last_generated_id = entry.id;
            info.entries_added += 1;
            self.entries.push(entry);
            self.update();
        }

        fn trim(&mut self, length: usize) {
            let removed = self.entries.len().saturating_sub(length);
            self.entries.drain(..removed);
            self.update();
        }

        fn delete(&mut self, index: usize) {
            if index < self.entries.len() {
                let removed = self.entries.remove(index);
                let info = self.info.get_or_insert_default();
                info.max_deleted_id = info.max_deleted_id.max(removed.id);
            }
            self.update();
        }

        fn update(&mut self) {
            if let Some(info) = &mut self.info {
                info.length = self.entries.len() as u64;
                info.first_id = self.entries.first().map(|entry| entry.id);
            }
        }

        fn snapshot(&self, from: EntryId) -> StreamSnapshot {
            let mut entries: Vec<_> = self.entries.clone();
            entries.retain(|entry| entry.id >= from);
            let is_complete = entries.len() <= LIMIT;
            entries.truncate(LIMIT);
            StreamSnapshot {
                info: self.info,
                entries,
                is_complete,
            }
        }

        fn end(&self) -> ReaderPosition {
            match (self.entries.last(), &self.info) {
                (Some(last), Some(info)) => ReaderPosition::after(last, info.entries_added),
                (_, info) => ReaderPosition::at_end_without_entry(info.as_ref()),
            }
        }
    }

    fn stream(count: u64) -> ModelStream {
        let mut stream = ModelStream::default();
        (1..=count).for_each(|number| stream.add(1, number));
        stream
    }

    fn check(
        stream: &ModelStream,
        position: ReaderPosition,
        is_connected: bool,
    ) -> StreamContinuity {
        position.continuity(&stream.snapshot(position.id), is_connected)
    }

    #[test]
    fn faults_are_told_apart() {
        let before = stream(5);
        let position = before.end();
        assert_eq!(check(&before, position, false), StreamContinuity::Intact);

        let mut trimmed = before.clone();
        (6..=9).for_each(|number| trimmed.add(1, number));
        assert_eq!(check(&trimmed, position, true), StreamContinuity::Intact);
        trimmed.trim(4);
        assert_eq!(check(&trimmed, position, true), StreamContinuity::Intact);
        assert_eq!(
            check(&trimmed, position, false),
            StreamContinuity::Trimmed { missed: None }
        );
        trimmed.trim(1);
        assert_eq!(
            check(&trimmed, position, true),
            StreamContinuity::Trimmed { missed: Some(3) }
        );

        // The newest entry is deleted, and another one follows.
        let mut deleted = before.clone();
        deleted.delete(4);
        assert_eq!(check(&deleted, position, false), StreamContinuity::Intact);
        deleted.add(1, 6);
        assert_eq!(check(&deleted, position, false), StreamContinuity::Intact);

        // A failover loses 4 and 5. The new master adds others, with lower, equal and higher ids.
        let promoted = stream(3);
        assert_eq!(
            check(&promoted, position, false),
            StreamContinuity::Replaced
        );
        for steps in [&[1, 1][..], &[2], &[2, 1], &[3], &[1, 2, 1]] {
            let mut promoted = promoted.clone();
            for step in steps {
                promoted.add(*step, 100);
                assert_eq!(
                    check(&promoted, position, false),
                    StreamContinuity::Replaced
                );
            }
        }
        assert_eq!(
            check(&ModelStream::default(), position, true),
            StreamContinuity::Replaced
        );
        let nothing = ModelStream::default().end();
        assert_eq!(
            check(&ModelStream::default(), nothing, false),
            StreamContinuity::Intact
        );
        assert_eq!(check(&stream(2), nothing, true), StreamContinuity::Intact);
        assert_eq!(
            check(&stream(2), nothing, false),
            StreamContinuity::Trimmed { missed: None }
        );
    }

    /// A stream that this crate has created, at whose beginning the position is.
    #[test]
    fn created_stream_is_told_from_others() {
        let created = |start: u64| {
            let mut stream = ModelStream::default();
            let start = entry_at(EntryId { ms: 0, seq: start }, 0);
            let info = stream.info.get_or_insert_default();
            (info.last_generated_id, info.entries_added) = (start.id, 1);
            stream.entries.push(start);
            stream.delete(0);
            stream
        };
        let mut stream = created(7);
        let position = stream.end();
        assert_eq!(check(&stream, position, false), StreamContinuity::Intact);
        (1..=3).for_each(|number| stream.add(1, number));
        assert_eq!(check(&stream, position, false), StreamContinuity::Intact);
        stream.trim(1);
        assert_eq!(
            check(&stream, position, true),
            StreamContinuity::Trimmed { missed: Some(2) }
        );
        assert_eq!(
            check(&stream, position, false),
            StreamContinuity::Trimmed { missed: None }
        );
        // Another process has deleted the stream and created it anew.
        for start in [6, 8] {
            let mut other = created(start);
            assert_eq!(check(&other, position, true), StreamContinuity::Replaced);
            other.add(1, 1);
            assert_eq!(check(&other, position, true), StreamContinuity::Replaced);
        }
        let mut other = self::stream(3);
        other.trim(2);
        assert_eq!(check(&other, position, false), StreamContinuity::Replaced);
    }

    #[derive(Clone, Debug)]
    enum Change {
        Add { ms_step: u64 },
        Trim { length: usize },
        DeleteRead { index: usize },
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => (1..3_u64).prop_map(|ms_step| Change::Add { ms_step }),
            1 => (0..5_usize).prop_map(|length| Change::Trim { length }),
            1 => (0..8_usize).prop_map(|index| Change::DeleteRead { index }),
        ]
    }

    proptest! {
        /// Without a failover: the number of missing entries is exact, and nothing is missing if the reader says so.
        #[test]
        fn missing_entries_are_counted(
            count in 0..8_u64, changes in prop::collection::vec(change(), 0..12),
        ) {
            let mut stream = stream(count);
            let position = stream.end();
            for (change, text) in changes.into_iter().zip(100..) {
                match change {
                    Change::Add { ms_step } => stream.add(ms_step, text),
                    Change::Trim { length } => stream.trim(length),
                    Change::DeleteRead { index } => {
                        let is_read = |entry: &StreamEntry| entry.id <= position.id;
                        if stream.entries.get(index).is_some_and(is_read) {
                            stream.delete(index);
                        }
                    }
                }
            }
            let added = stream.info.map_or(0, |info| info.entries_added) - position.entries_added;
            let left = stream.entries.iter().filter(|entry| entry.id > position.id).count() as u64;
            match check(&stream, position, true) {
                StreamContinuity::Intact => prop_assert_eq!(left, added),
                StreamContinuity::Trimmed { missed } => prop_assert_eq!(missed, Some(added - left)),
                // A deleted entry with many entries after it.
                StreamContinuity::Replaced => {
                    prop_assert!(stream.entries.iter().all(|entry| entry.id != position.id));
                    prop_assert!(left > LIMIT as u64 || left < added);
                }
            }
        }

        /// With a failover that loses the last entries: never intact, unless the position was trimmed away.
        #[test]
        fn lost_entries_are_noticed(
            count in 1..8_u64, lost in 1..8_u64, steps in prop::collection::vec(1..4_u64, 0..10),
        ) {
            let position = stream(count).end();
            let mut promoted = stream(count.saturating_sub(lost));
            for (step, text) in steps.into_iter().zip(100..) {
                promoted.add(step, text);
            }
            prop_assert_ne!(check(&promoted, position, false), StreamContinuity::Intact);
        }
    }
}
