use std::{collections::VecDeque, time::Duration};

use super::{
    EVENT_OVERHEAD_LEN, IdIndex, ReadBuffer, event_log_limits::EventLogLimits, free_unused_places,
    id_index::INDEXED_ID_LEN, log_entry::LogEntry, newest_trimmed_by_key::NewestTrimmedByKey,
};
use crate::event::{Event, EventRun, Gap, GapReason};

/// A sequence of events. The oldest events are trimmed when the log exceeds its limits.
///
/// The log has neither a lock nor a clock. Times are arguments, measured from a point that the caller chooses.
///
/// Trimmed events are kept until [`take_trimmed`](Self::take_trimmed), so that the caller can drop them outside of its lock:
/// dropping a payload can run its owner's code.
#[derive(Debug)]
pub(crate) struct EventLog {
    limits: EventLogLimits,
    entries: VecDeque<LogEntry>,
    /// The position of the newest event that was ever appended, trimmed or not.
    last_position: u64,
    /// The sum of [`memory_len_of`](Self::memory_len_of) over `entries`.
    memory_len: usize,
    is_closed: bool,
    trimmed: Vec<Event>,
    /// The newest trimmed event of each key, for readers whose next event was trimmed. `None` in a log that does not conflate.
    newest_trimmed: Option<NewestTrimmedByKey>,
    /// The ids of recent events. `None` in a log whose caller derives ids from positions.
    id_index: Option<IdIndex>,
    /// The last position at which the log restarted.
    discontinuity: Option<Discontinuity>,
}

/// A position at which a log has restarted, because events are missing that were never appended to it.
#[derive(Clone, Copy, Debug)]
struct Discontinuity {
    /// The position that stands for the missing events.
    position: u64,
    /// The position of the discontinuity before this one; 0 if there was none.
    previous_position: u64,
    /// The position of the newest discontinuity, this one or an older one, at which the ids before it became invalid
    /// ([`GapReason::Epoch`]); 0 if there was none.
    last_epoch_position: u64,
    reason: GapReason,
    /// The number of missing events, if it is known.
    missed: Option<u64>,
}

/// The error of [`EventLog::append`] if the log's [`IdIndex`] has the event's id already: the event. The log is unchanged. The caller drops
/// the event outside of its lock.
#[derive(Debug)]
pub(crate) struct DuplicateId(pub(crate) Event);

/// The events that a reader has not read, and that the log no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissedEvents {
    /// The position at which the reader goes on.
    pub(crate) up_to: u64,
    /// The number of events, if it is known.
    pub(crate) count: Option<u64>,
    /// The reason for which the log restarted between the reader's position and `up_to`. `None` if the log did not restart, and the
    /// events were trimmed.
    pub(crate) discontinuity: Option<GapReason>,
}

/// The result of [`EventLog::read`]: what follows the reader's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventLogReadOutcome {
    /// The buffer has the next events, and the reader's new position is `up_to`. Events up to `up_to` that are not in the buffer
    /// are conflated: the log holds a newer event of the same key.
    Events { up_to: u64 },
    /// The log has no event after the position yet.
    UpToDate,
    /// The log has no event after the position, and is closed.
    Closed,
    /// The log no longer has the next events. [`EventLog::missed_after`] describes them.
    Missed,
}

impl EventLog {
    /// Creates an empty log. A log that conflates also keeps the newest event of each key among the trimmed ones. The limits apply
    /// to these events separately.
    pub(crate) fn new(limits: EventLogLimits, conflates: bool) -> Self {
        Self {
            limits,
            entries: VecDeque::new(),
            last_position: 0,
            memory_len: 0,
            is_closed: false,
            trimmed: Vec::new(),
            newest_trimmed: conflates.then(NewestTrimmedByKey::default),
            id_index: None,
            discontinuity: None,
        }
    }

    /// Returns this empty log with an index of its events' ids. With an index, each event that is appended must have an id.
    pub(crate) fn with_id_index(self, id_index: Option<IdIndex>) -> Self {
        Self { id_index, ..self }
    }

    /// Returns the position that the next appended event gets.
    pub(crate) fn next_position(&self) -> u64 {
        self.last_position + 1
    }

    /// Appends an event. `key` is required in a log that conflates.
    pub(crate) fn append(
        &mut self,
        event: Event,
        key: Option<Box<str>>,
        now: Duration,
    ) -> Result<(), DuplicateId> {
        if let (Some(index), Some(id)) = (&mut self.id_index, event.id()) {
            if index.contains(id) {
                return Err(DuplicateId(event));
            }
            index.push(id.clone());
        }
        let position = self.next_position();
        if let (Some(newest_trimmed), Some(key)) = (&mut self.newest_trimmed, &key) {
            self.trimmed
                .extend(newest_trimmed.replace_newest(key, position));
        }
        let entry = LogEntry::new(event, key, now);
        let memory_len = self.memory_len_of(&entry);
        self.make_room_for(memory_len);
        self.last_position = position;
        self.memory_len += memory_len;
        self.entries.push_back(entry);
        free_unused_places(&mut self.entries);
        self.trim_expired(now);
        Ok(())
    }

    /// Trims all events, and restarts the log after events that were never appended. The gap's `reason` and `missed` describe
    /// these events, and its `resumed` is the id of the last of them. Each reader learns of the missing events at its next read.
    pub(crate) fn restart_after_gap(&mut self, gap: &Gap) {
        let position = self.next_position();
        let previous = self.discontinuity;
        self.discontinuity = Some(Discontinuity {
            position,
            previous_position: previous.map_or(0, |previous| previous.position),
            last_epoch_position: match gap.reason {
                GapReason::Epoch => position,
                _ => previous.map_or(0, |previous| previous.last_epoch_position),
            },
            reason: gap.reason,
            missed: gap.missed,
        });
        self.last_position = position;
        self.memory_len = 0;
        self.trimmed
            .extend(self.entries.drain(..).map(|entry| entry.event));
        if let Some(newest_trimmed) = &mut self.newest_trimmed {
            let empty = NewestTrimmedByKey::starting_after(position);
            let dropped = std::mem::replace(newest_trimmed, empty);
            self.trimmed.extend(dropped.into_events());
        }
        if let Some(index) = &mut self.id_index {
            index.restart(position, gap.resumed.clone());
        }
    }

    /// Returns the position that stands for the missing events of the last gap; 0 if there was no gap.
    pub(crate) fn last_gap_position(&self) -> u64 {
        self.discontinuity.map_or(0, |last| last.position)
    }

    /// Trims the oldest events until an entry of `memory_len` bytes fits in. The caller appends the event after this call, so that
    /// the log never exceeds its limit.
    fn make_room_for(&mut self, memory_len: usize) {
        while self.entries.len() >= self.limits.max_events.max(1)
            || (self.memory_len + memory_len > self.limits.max_bytes && !self.entries.is_empty())
        {
            self.trim_oldest();
        }
    }

    /// Trims the events that are too old.
    pub(crate) fn trim_expired(&mut self, now: Duration) {
        let limits = self.limits;
        let is_expired =
            |entry: Option<&LogEntry>| entry.is_some_and(|entry| limits.is_expired(entry, now));
        while is_expired(self.entries.front()) {
            self.trim_oldest();
        }
        if let Some(newest_trimmed) = &mut self.newest_trimmed {
            while is_expired(newest_trimmed.oldest()) {
                self.trimmed.extend(newest_trimmed.drop_oldest());
            }
        }
    }

    /// Returns whether [`trim_expired`](Self::trim_expired) would trim an event.
    pub(crate) fn has_expired_events(&self, now: Duration) -> bool {
        let newest_trimmed = self
            .newest_trimmed
            .as_ref()
            .and_then(NewestTrimmedByKey::oldest);
        let mut oldest = newest_trimmed.into_iter().chain(self.entries.front());
        oldest.any(|entry| self.limits.is_expired(entry, now))
    }

    /// Takes the events that were trimmed since the last call.
    pub(crate) fn take_trimmed(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.trimmed)
    }

    fn trim_oldest(&mut self) {
        let position = self.position_before_oldest() + 1;
        let Some(entry) = self.entries.pop_front() else {
            return;
        };
        self.memory_len -= self.memory_len_of(&entry);
        match &mut self.newest_trimmed {
            Some(newest_trimmed) => {
                let rejected = newest_trimmed.keep_if_newest(position, entry).err();
                self.trimmed.extend(rejected);
                while newest_trimmed.exceeds(self.limits) {
                    self.trimmed.extend(newest_trimmed.drop_oldest());
                }
            }
            None => self.trimmed.push(entry.event),
        }
        let before_oldest = self.position_before_oldest();
        if let Some(index) = &mut self.id_index {
            index.forget_excess_trimmed(before_oldest);
        }
    }

    /// Returns the position from which a reader gets all events in the log.
    pub(crate) fn position_before_oldest(&self) -> u64 {
        self.last_position - self.entries.len() as u64
    }

    /// Returns the position from which a reader gets the newest event of each key, and then all events in the log. In a log that
    /// does not conflate, the snapshot is empty, and this position is [`position_before_oldest`](Self::position_before_oldest).
    pub(crate) fn position_before_snapshot(&self) -> u64 {
        let newest_trimmed = self.newest_trimmed.as_ref();
        newest_trimmed.map_or(
            self.position_before_oldest(),
            NewestTrimmedByKey::last_dropped_position,
        )
    }

    /// Returns the position of the newest event, trimmed or not; 0 if there was none.
    pub(crate) fn last_position(&self) -> u64 {
        self.last_position
    }

    /// Returns the index of the events' ids, if the log has one.
    pub(crate) fn id_index(&self) -> Option<&IdIndex> {
        self.id_index.as_ref()
    }

    /// Returns the number of events in the log.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the bytes of memory that the events in the log take, as [`EventLogLimits::max_bytes`] counts them.
    pub(crate) fn memory_len(&self) -> usize {
        self.memory_len
    }

    /// Returns the bytes of memory that an entry takes, with its id in the index.
    fn memory_len_of(&self, entry: &LogEntry) -> usize {
        let indexed_id_len = self.id_index.as_ref().map_or(0, |_| INDEXED_ID_LEN);
        entry.memory_len() + indexed_id_len
    }

    /// Closes the log. The caller must not append events after this.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Clones the events after `position` and up to `end_position` into the buffer: at least one event, and then as many as `max_bytes` and the
    /// buffer allow. The log may also have events after `end_position`.
    pub(crate) fn read(
        &self,
        position: u64,
        end_position: u64,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> EventLogReadOutcome {
        let before_oldest = self.position_before_oldest();
        let end_position = self.last_position.min(end_position);
        if position >= end_position {
            return if self.is_closed {
                EventLogReadOutcome::Closed
            } else {
                EventLogReadOutcome::UpToDate
            };
        }
        if position < before_oldest {
            return self.read_trimmed(position, max_bytes, buffer);
        }
        let range = (position - before_oldest) as usize..(end_position - before_oldest) as usize;
        let entries = self.entries.range(range);
        let entries = (position + 1..).zip(entries);
        let up_to = fill_buffer(buffer, max_bytes, entries).unwrap_or(position);
        EventLogReadOutcome::Events { up_to }
    }

    /// Whether the log has at least `count` events after `position` and up to `end_position`, among them the event that directly follows
    /// `position`.
    #[inline]
    pub(super) fn has_events_after(&self, position: u64, end_position: u64, count: u64) -> bool {
        let end_position = self.last_position.min(end_position);
        end_position.saturating_sub(position) >= count && position >= self.position_before_oldest()
    }

    /// Makes the run of the events after `position` and up to `end_position`, and returns the run and its length in bytes. The caller has
    /// checked that the log has the event that directly follows `position`.
    ///
    /// A run ends at a multiple of [`RUN_BLOCK_LEN`], so that readers from different positions get the same runs from there on. The history
    /// of a run begins behind such a position.
    pub(super) fn run_and_byte_len_after(
        &self,
        position: u64,
        end_position: u64,
    ) -> (EventRun, usize) {
        let before_oldest = self.position_before_oldest();
        let before_block = position / RUN_BLOCK_LEN * RUN_BLOCK_LEN;
        let first = position.saturating_sub(before_oldest) as usize;
        let block_start = before_block.saturating_sub(before_oldest) as usize;
        let end_position = end_position.clamp(position + 1, before_block + RUN_BLOCK_LEN);
        let max_len = (end_position - position) as usize;

        let history = self.entries.range(block_start.min(first)..first);
        let (history_len, _) = count_and_bytes_within(history.rev(), first, MAX_HISTORY_BYTES);
        let (len, byte_len) =
            count_and_bytes_within(self.entries.range(first..), max_len, MAX_RUN_BYTES);
        let len = len.max(1).min(self.entries.len() - first);
        let events = |range| (self.entries.range(range)).map(|entry| entry.event.clone());
        let history = events(first - history_len..first);
        let run = EventRun::new(position + 1, history, events(first..first + len));
        (run, byte_len)
    }

    /// Reads like [`read`](Self::read), from a position before the oldest event in the log.
    fn read_trimmed(
        &self,
        position: u64,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> EventLogReadOutcome {
        let before_oldest = self.position_before_oldest();
        let Some(newest_trimmed) = &self.newest_trimmed else {
            return EventLogReadOutcome::Missed;
        };
        if position < newest_trimmed.last_dropped_position() {
            return EventLogReadOutcome::Missed;
        }
        let up_to = fill_buffer(buffer, max_bytes, newest_trimmed.entries_after(position));
        EventLogReadOutcome::Events {
            // If no trimmed event is kept after the position, the log holds a newer event of each trimmed event's key.
            up_to: up_to.unwrap_or(before_oldest),
        }
    }

    /// Describes the events after `position` that the log no longer has. [`read`](Self::read) has returned
    /// [`Missed`](EventLogReadOutcome::Missed) for this position.
    pub(crate) fn missed_after(&self, position: u64) -> MissedEvents {
        let up_to = self.position_before_snapshot();
        let Some(discontinuity) = self.discontinuity.filter(|at| position < at.position) else {
            return MissedEvents {
                up_to,
                count: Some(up_to.saturating_sub(position)),
                discontinuity: None,
            };
        };
        let reason = match position < discontinuity.last_epoch_position {
            true => GapReason::Epoch,
            false => discontinuity.reason,
        };
        // One position stands for all events of the discontinuity.
        let trimmed = up_to.saturating_sub(position + 1);
        let is_counted = position >= discontinuity.previous_position;
        MissedEvents {
            up_to,
            count: (discontinuity.missed)
                .filter(|_| is_counted)
                .map(|missed| missed.saturating_add(trimmed)),
            discontinuity: Some(reason),
        }
    }
}

/// Clones the event of the first entry into `buffer`, and then further events while `max_bytes` and the buffer have room for them.
/// Returns the position of the last event that was cloned.
fn fill_buffer<'a>(
    buffer: &mut ReadBuffer,
    max_bytes: usize,
    entries: impl Iterator<Item = (u64, &'a LogEntry)>,
) -> Option<u64> {
    let mut remaining = max_bytes;
    let mut last = None;
    for (position, entry) in entries {
        let byte_len = entry.event_byte_len + EVENT_OVERHEAD_LEN;
        if buffer.is_full() || (byte_len > remaining && last.is_some()) {
            break;
        }
        remaining = remaining.saturating_sub(byte_len);
        buffer.push(entry.event.clone());
        last = Some(position);
    }
    last
}

/// Returns the number and the bytes of the first entries that have at most `max_bytes` together. Counts at most `max_len` entries.
fn count_and_bytes_within<'a>(
    entries: impl Iterator<Item = &'a LogEntry>,
    max_len: usize,
    max_bytes: usize,
) -> (usize, usize) {
    let (mut len, mut byte_len) = (0, 0);
    for entry in entries.take(max_len) {
        if byte_len + entry.event_byte_len > max_bytes {
            break;
        }
        len += 1;
        byte_len += entry.event_byte_len;
    }
    (len, byte_len)
}

/// The positions of a log are divided into blocks of this many positions. No run and no history of a run crosses the border of a block. Within
/// a block, compressed streams share their window.
const RUN_BLOCK_LEN: u64 = 64;

/// The maximum sum of the bytes of the events in a run: 16 KiB, as many bytes as a full frame has. A single larger event is a run.
const MAX_RUN_BYTES: usize = 16 * 1024;

/// The maximum sum of the bytes of the events in the history of a run: 32 KiB, the window of DEFLATE.
const MAX_HISTORY_BYTES: usize = 32 * 1024;

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const UNLIMITED: EventLogLimits = EventLogLimits {
        max_events: usize::MAX,
        max_bytes: usize::MAX,
        max_age: None,
    };

    fn log(limits: EventLogLimits) -> EventLog {
        EventLog::new(limits, false)
    }

    fn append(log: &mut EventLog, text: &str) {
        log.append(Event::text(text), None, Duration::ZERO).unwrap();
    }

    fn assert_trimmed(log: &EventLog, position: u64, up_to: u64) {
        assert_eq!(
            read(log, position, 1000),
            (vec![], EventLogReadOutcome::Missed)
        );
        let trimmed = MissedEvents {
            up_to,
            count: Some(up_to - position),
            discontinuity: None,
        };
        assert_eq!(log.missed_after(position), trimmed);
    }

    fn read(log: &EventLog, position: u64, max_bytes: usize) -> (Vec<String>, EventLogReadOutcome) {
        let mut buffer = ReadBuffer::default();
        let result = log.read(position, u64::MAX, max_bytes, &mut buffer);
        let texts =
            std::iter::from_fn(|| buffer.pop()).map(|e| e.payload().as_text().unwrap().to_owned());
        (texts.collect(), result)
    }

    #[test]
    fn reader_gets_events_after_its_position() {
        let mut log = log(UNLIMITED);
        assert_eq!(read(&log, 0, 100), (vec![], EventLogReadOutcome::UpToDate));
        for text in ["a", "b", "c"] {
            append(&mut log, text);
        }
        assert_eq!(
            read(&log, 0, 2000).1,
            EventLogReadOutcome::Events { up_to: 3 }
        );
        assert_eq!(
            read(&log, 2, 100),
            (
                vec!["c".to_owned()],
                EventLogReadOutcome::Events { up_to: 3 }
            )
        );
        assert_eq!(read(&log, 3, 100), (vec![], EventLogReadOutcome::UpToDate));
        assert_eq!(
            read(&log, 0, 0),
            (
                vec!["a".to_owned()],
                EventLogReadOutcome::Events { up_to: 1 }
            ),
            "at least one event"
        );
        log.close();
        assert_eq!(
            read(&log, 2, 100).1,
            EventLogReadOutcome::Events { up_to: 3 }
        );
        assert_eq!(read(&log, 3, 100).1, EventLogReadOutcome::Closed);
    }

    fn run_texts(events: &[Event]) -> Vec<&str> {
        let texts = events.iter().map(|event| event.payload().as_text());
        texts.map(Option::unwrap).collect()
    }

    #[test]
    fn run_ends_at_block_border() {
        let mut log = log(EventLogLimits {
            max_events: 100,
            ..UNLIMITED
        });
        for number in 1..=150 {
            append(&mut log, &number.to_string());
        }
        let run = |position| log.run_and_byte_len_after(position, u64::MAX).0;
        let last = |position| run(position).last_position();
        assert_eq!(
            (last(50), last(63), last(64), last(149)),
            (64, 64, 128, 150)
        );
        assert_eq!(run_texts(run(62).events()), ["63", "64"]);
        // 50 is trimmed, 64 is in another block.
        assert_eq!(run_texts(run(52).history()), ["51", "52"]);
        assert_eq!(run_texts(run(66).history()), ["65", "66"]);
        assert!(run(64).history().is_empty());
        assert_eq!(log.run_and_byte_len_after(98, u64::MAX).1, 2 + 29 * 3);
        let has_events = |position, count| log.has_events_after(position, u64::MAX, count);
        assert!(has_events(50, 100) && has_events(149, 1));
        assert!(!has_events(49, 1) && !has_events(149, 2) && !has_events(200, 1));
    }

    #[test]
    fn run_and_history_have_few_bytes() {
        let mut log = log(UNLIMITED);
        let kib = "x".repeat(1024);
        for _ in 0..40 {
            append(&mut log, &kib);
        }
        append(&mut log, &"y".repeat(100_000));
        assert_eq!(log.run_and_byte_len_after(0, u64::MAX).0.events().len(), 16);
        assert_eq!(
            log.run_and_byte_len_after(36, u64::MAX).0.history().len(),
            32
        );
        assert_eq!(log.run_and_byte_len_after(39, u64::MAX).0.events().len(), 1);
        assert_eq!(log.run_and_byte_len_after(40, u64::MAX).0.events().len(), 1);
    }

    #[test]
    fn limits_hold_and_newest_event_stays() {
        let mut few = log(EventLogLimits {
            max_events: 2,
            ..UNLIMITED
        });
        let mut small = log(EventLogLimits {
            max_bytes: 2 * (EVENT_OVERHEAD_LEN + 2) + 1,
            ..UNLIMITED
        });
        for text in ["aa", "bb", "cc"] {
            append(&mut few, text);
            append(&mut small, text);
        }
        for log in [&mut few, &mut small] {
            assert_eq!(
                (log.len(), log.memory_len(), log.position_before_oldest()),
                (2, 2 * (EVENT_OVERHEAD_LEN + 2), 1)
            );
            assert_trimmed(log, 0, 1);
            assert_eq!(read(log, 1, 1000).0, ["bb", "cc"]);
        }
        append(&mut small, &"larger than the limit".repeat(40));
        assert_eq!((small.len(), small.position_before_oldest()), (1, 3));

        let minute = Duration::from_secs(60);
        let mut young = log(EventLogLimits {
            max_age: Some(minute),
            ..UNLIMITED
        });
        append(&mut young, "a");
        young.trim_expired(minute);
        assert_eq!(young.len(), 1);
        young
            .append(Event::text("b"), None, minute + Duration::from_nanos(1))
            .unwrap();
        assert_eq!(read(&young, 1, 100).0, ["b"]);
        young.trim_expired(Duration::MAX);
        assert_eq!(
            (young.len(), young.memory_len(), young.last_position()),
            (0, 0, 2)
        );
        assert_trimmed(&young, 0, 2);
        assert_eq!(read(&young, 2, 100).1, EventLogReadOutcome::UpToDate);
    }

    #[test]
    fn max_age_can_be_any_duration() {
        let mut log = log(EventLogLimits {
            max_age: Some(Duration::MAX),
            ..UNLIMITED
        });
        log.append(Event::text("a"), None, Duration::MAX).unwrap();
        log.trim_expired(Duration::MAX);
        assert_eq!(log.len(), 1);
    }

    #[test]
    fn newest_trimmed_events_expire_too() {
        let minute = Duration::from_secs(60);
        let limits = EventLogLimits {
            max_events: 1,
            max_age: Some(minute),
            ..UNLIMITED
        };
        let mut log = EventLog::new(limits, true);
        for key in ["a", "b"] {
            log.append(Event::text(key), Some(key.into()), Duration::ZERO)
                .unwrap();
        }
        assert_eq!(read(&log, 0, 1000).0, ["a"]);
        log.trim_expired(2 * minute);
        assert_trimmed(&log, 0, 2);
        assert_eq!(log.take_trimmed().len(), 2);
    }

    proptest! {
        /// Compares the log with a list of all events that were appended.
        #[test]
        fn reads_return_appended_events(
            sizes in proptest::collection::vec(0_usize..30, 1..60),
            max_events in 1_usize..20,
            max_bytes in 1_usize..5000,
            position in 0_u64..70,
            max_read_bytes in 0_usize..3000,
        ) {
            let mut log = log(EventLogLimits { max_events, max_bytes, max_age: None });
            let texts: Vec<_> = sizes.iter().enumerate().map(|(n, size)| format!("{n}{}", "x".repeat(*size))).collect();
            for text in &texts {
                append(&mut log, text);
                prop_assert!(log.len() <= max_events);
                prop_assert!(log.memory_len() <= max_bytes || log.len() == 1);
            }
            let (events, result) = read(&log, position, max_read_bytes);
            match result {
                EventLogReadOutcome::Events { up_to } => {
                    prop_assert!(up_to > position);
                    prop_assert_eq!(&events[..], &texts[position as usize..up_to as usize]);
                }
                EventLogReadOutcome::Missed => {
                    prop_assert!(position < log.position_before_oldest());
                    assert_trimmed(&log, position, log.position_before_oldest());
                }
                EventLogReadOutcome::UpToDate => prop_assert!(position >= texts.len() as u64),
                EventLogReadOutcome::Closed => prop_assert!(false),
            }
        }

        /// A reader that reads now and then has the newest event of each key in the end, and never gets an older one after a newer
        /// one.
        #[test]
        fn slow_reader_gets_newest_event_of_each_key(
            keys in proptest::collection::vec(0_u8..6, 1..80),
            max_events in 6_usize..20,
            pauses in proptest::collection::vec(1_usize..30, 1..20),
        ) {
            let mut log = EventLog::new(EventLogLimits { max_events, ..UNLIMITED }, true);
            let mut received = HashMap::new();
            let mut position = 0;
            let mut pauses = pauses.into_iter().cycle();
            let mut next_read = pauses.next().unwrap();
            let mut newest = HashMap::new();
            for (n, key) in keys.iter().enumerate() {
                let key = key.to_string();
                newest.insert(key.clone(), n);
                log.append(Event::text(format!("{key}={n}")), Some(key.into()), Duration::ZERO).unwrap();
                let is_last = n + 1 == keys.len();
                if n < next_read && !is_last {
                    continue;
                }
                next_read = n + pauses.next().unwrap();
                loop {
                    let (texts, result) = read(&log, position, 10);
                    for text in texts {
                        let (key, n) = text.split_once('=').unwrap();
                        let n: usize = n.parse().unwrap();
                        prop_assert!(received.insert(key.to_owned(), n).is_none_or(|before| before < n));
                    }
                    match result {
                        EventLogReadOutcome::Events { up_to } => position = up_to,
                        other => {
                            prop_assert_eq!(other, EventLogReadOutcome::UpToDate);
                            break;
                        }
                    }
                }
            }
            prop_assert_eq!(received, newest);
        }
    }

    #[test]
    fn keys_beyond_limits_are_trimmed() {
        let mut log = EventLog::new(
            EventLogLimits {
                max_events: 2,
                ..UNLIMITED
            },
            true,
        );
        for key in 1..=6 {
            log.append(
                Event::text(key.to_string()),
                Some(key.to_string().into()),
                Duration::ZERO,
            )
            .unwrap();
        }
        // 5 and 6 are in the log, 3 and 4 are the newest trimmed events, 1 and 2 are dropped.
        assert_trimmed(&log, 0, 2);
        assert_eq!(read(&log, 2, 1000).0, ["3", "4"]);
        assert_eq!(read(&log, 4, 1000).0, ["5", "6"]);
    }

    fn numbered(number: u64) -> Event {
        Event::text(number.to_string()).with_event_id(number.into())
    }

    fn indexed_log(limits: EventLogLimits) -> EventLog {
        log(limits).with_id_index(Some(IdIndex::new(None, 2)))
    }

    #[test]
    fn duplicate_id_leaves_log_unchanged() {
        let mut log = indexed_log(UNLIMITED);
        log.append(numbered(7), None, Duration::ZERO).unwrap();
        let again = log.append(numbered(7), None, Duration::ZERO);
        assert!(again.is_err());
        assert_eq!((log.len(), log.last_position()), (1, 1));
    }

    #[test]
    fn restarted_log_tells_readers() {
        let mut log = indexed_log(EventLogLimits {
            max_events: 2,
            ..UNLIMITED
        });
        for number in 1..=3 {
            log.append(numbered(number), None, Duration::ZERO).unwrap();
        }
        log.restart_after_gap(&Gap::new(GapReason::Epoch).missed(10).resumed(13.into()));
        assert_eq!(
            (log.len(), log.memory_len(), log.last_position()),
            (0, 0, 4)
        );
        assert_eq!(log.take_trimmed().len(), 3);
        let missed = |log: &EventLog, position| {
            assert_eq!(read(log, position, 1000).1, EventLogReadOutcome::Missed);
            let missed = log.missed_after(position);
            (missed.up_to, missed.count)
        };
        // The reader at 1 has not read 2 and 3.
        assert_eq!(missed(&log, 1), (4, Some(12)));
        assert_eq!(missed(&log, 3), (4, Some(10)));
        assert_eq!(read(&log, 4, 1000).1, EventLogReadOutcome::UpToDate);
        let index = log.id_index().unwrap();
        assert_eq!(index.position_of(&13.into()), Some(4));
        assert_eq!(index.position_of(&3.into()), None);

        for number in 14..=16 {
            log.append(numbered(number), None, Duration::ZERO).unwrap();
        }
        assert_eq!(missed(&log, 3), (5, Some(11)), "14 is trimmed");
        assert_trimmed(&log, 4, 5);
        log.restart_after_gap(&Gap::new(GapReason::Epoch).missed(1));
        assert_eq!(missed(&log, 3), (8, None), "two discontinuities");
        assert_eq!(missed(&log, 4), (8, Some(4)));
        log.restart_after_gap(&Gap::new(GapReason::Expired));
        assert_eq!(missed(&log, 8), (9, None));
        let reason = |position| log.missed_after(position).discontinuity;
        assert_eq!(reason(8), Some(GapReason::Expired));
        assert_eq!(reason(7), Some(GapReason::Epoch), "the older gap is graver");
    }

    #[test]
    fn conflating_log_keeps_no_event_from_before() {
        let limits = EventLogLimits {
            max_events: 1,
            ..UNLIMITED
        };
        let mut log = EventLog::new(limits, true);
        for key in ["a", "b"] {
            log.append(Event::text(key), Some(key.into()), Duration::ZERO)
                .unwrap();
        }
        log.restart_after_gap(&Gap::new(GapReason::Epoch));
        assert_eq!(log.take_trimmed().len(), 2);
        assert_eq!(log.position_before_snapshot(), 3);
        log.append(Event::text("b2"), Some("b".into()), Duration::ZERO)
            .unwrap();
        assert_eq!(read(&log, 3, 1000).0, ["b2"]);
        assert_eq!(read(&log, 0, 1000).1, EventLogReadOutcome::Missed);
        assert_eq!(log.missed_after(0).up_to, 3);
    }
}
