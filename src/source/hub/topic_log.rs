use std::{
    collections::{VecDeque, vec_deque},
    iter::Peekable,
    sync::Arc,
    time::Duration,
};

use crate::{
    event::Event,
    source::log::{EVENT_OVERHEAD_LEN, EventLogLimits, event_byte_len, free_unused_places},
};

/// The events of one topic. The oldest events are trimmed when the log exceeds its limits.
///
/// The events have positions in the order of the whole hub, so the positions in one log ascend and are not consecutive. The log also
/// numbers its events: the ordinal of an event is the number of events that the log has got up to this event. A reader remembers the
/// ordinals that it has passed, so that a read finds its first event without a search, and a gap has the exact number of missing events.
///
/// The log has neither a lock nor a clock.
#[derive(Debug)]
pub(super) struct TopicLog {
    entries: VecDeque<TopicLogEntry>,
    /// The sum of [`TopicLogEntry::byte_len`] over `entries`.
    byte_len: usize,
    /// The ordinal of the newest event that was ever appended, dropped or not.
    last_ordinal: u64,
    /// The position of the first event that was ever appended; `u64::MAX` if there was none.
    first_position: u64,
    /// The position of the newest event of the topic that the log does not have any more; 0 if there is none.
    last_dropped_position: u64,
    /// The ordinal of the newest event before the last gap of the hub's feed; 0 if there was no gap.
    gap_ordinal: u64,
    /// The position up to which the number of events is not known, because an earlier log of the topic had them.
    uncounted_position: u64,
    /// Events without history, which only connected readers get. Boxed, because most topics have none.
    ephemeral: Option<Box<EphemeralEvents>>,
}

/// The latest events without history of one topic. A reader that has not read such an event before it is dropped misses it without a gap.
#[derive(Debug, Default)]
struct EphemeralEvents {
    entries: VecDeque<TopicLogEntry>,
    byte_len: usize,
    last_ordinal: u64,
}

impl EphemeralEvents {
    /// See [`TopicLog::memory_len`].
    fn memory_len(&self) -> usize {
        self.byte_len + self.entries.len() * EVENT_OVERHEAD_LEN
    }

    /// Returns the ordinal of the newest event that was dropped; 0 if there is none.
    fn last_dropped_ordinal(&self) -> u64 {
        self.last_ordinal - self.entries.len() as u64
    }

    fn trim_oldest(&mut self) -> Option<Event> {
        let entry = self.entries.pop_front()?;
        self.byte_len -= entry.byte_len;
        Some(entry.event)
    }

    /// Returns the events after `ordinal` that were not dropped, oldest first.
    fn entries_after(&self, ordinal: u64) -> vec_deque::Iter<'_, TopicLogEntry> {
        let index = ordinal.saturating_sub(self.last_dropped_ordinal());
        self.entries.range(index as usize..)
    }
}

/// One event in a [`TopicLog`].
#[derive(Debug)]
pub(super) struct TopicLogEntry {
    pub(super) position: u64,
    pub(super) event: Event,
    /// The sender whose own subscribers do not get the event.
    except: Option<Arc<str>>,
    appended_at: Duration,
    /// The event's [`event_byte_len`].
    pub(super) byte_len: usize,
}

/// The ordinals of the last events of a [`TopicLog`] that a reader has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReaderOrdinals {
    /// The ordinal of the last event with history that the reader has passed.
    pub(super) retained: u64,
    /// The ordinal of the last event without history that the reader has passed.
    pub(super) ephemeral: u64,
}

/// Events of one topic that a reader has not read and that the log no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MissedTopicEvents {
    /// The position of the last missing event. An upper bound of this position for the topics that match a pattern.
    pub(super) last_position: u64,
    /// The number of missing events, if it is known.
    pub(super) count: Option<u64>,
}

/// The end of the history of a topic when a reader has joined the topic and a pattern that matches it. The reader gets later events of the
/// topic from the log of the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HistoryEnd {
    /// The ordinals of the last events that the reader gets from the log of the topic.
    pub(super) ordinals: ReaderOrdinals,
    /// The position of the last event with history up to there; 0 if the topic has had none.
    pub(super) last_retained_position: u64,
}

impl HistoryEnd {
    /// Returns whether the history ends before the last event that a reader at `ordinals` has passed: an event without history if `is_ephemeral`.
    pub(super) fn is_before(self, ordinals: ReaderOrdinals, is_ephemeral: bool) -> bool {
        match is_ephemeral {
            true => self.ordinals.ephemeral < ordinals.ephemeral,
            false => self.ordinals.retained < ordinals.retained,
        }
    }
}

/// The position at which a subscriber begins in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopicStart {
    /// After the newest event.
    Now,
    /// At the oldest event in the log.
    Oldest,
    /// Before the last events in the log.
    Last(usize),
    /// After all events up to this position.
    AfterPosition(u64),
}

impl TopicStart {
    /// Returns the position of the cursor of a reader that resumes.
    pub(super) fn resume_position(self) -> Option<u64> {
        match self {
            Self::AfterPosition(position) => Some(position),
            Self::Now | Self::Oldest | Self::Last(_) => None,
        }
    }
}

/// The result of [`TopicLog::resolve_start`].
pub(super) struct ResolvedTopicStart {
    /// The ordinals of the last events that the reader does not get.
    pub(super) ordinals: ReaderOrdinals,
    pub(super) missed: Option<MissedTopicEvents>,
}

/// The number and the bytes of the events without history that a log keeps for readers that are about to read them.
pub(super) const EPHEMERAL_LIMITS: EventLogLimits = EventLogLimits {
    max_events: 256,
    max_bytes: 256 * 1024,
    max_age: None,
};

impl TopicLogEntry {
    pub(super) fn new(
        position: u64,
        event: Event,
        except: Option<Arc<str>>,
        appended_at: Duration,
    ) -> Self {
        Self {
            position,
            byte_len: event_byte_len(&event),
            event,
            except,
            appended_at,
        }
    }

    /// Returns the event's [`event_memory_len`](crate::source::log::event_memory_len).
    fn memory_len(&self) -> usize {
        self.byte_len + EVENT_OVERHEAD_LEN
    }

    /// Returns whether a subscriber with this sender name gets the event.
    #[inline]
    pub(super) fn is_visible_to(&self, sender: Option<&Arc<str>>) -> bool {
        self.except.is_none() || self.except.as_ref() != sender
    }
}

impl TopicLog {
    /// Creates an empty log. `lost_position` is the position of the newest event that an earlier log of the topic may have had; 0 if there
    /// was no such log.
    pub(super) fn new(lost_position: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            byte_len: 0,
            last_ordinal: 0,
            first_position: u64::MAX,
            last_dropped_position: lost_position,
            gap_ordinal: 0,
            uncounted_position: lost_position,
            ephemeral: None,
        }
    }

    /// Appends an event, and trims the log to its limits. The trimmed events are pushed to `trimmed`, so that the caller can drop them
    /// outside of its lock.
    pub(super) fn append(
        &mut self,
        entry: TopicLogEntry,
        limits: &EventLogLimits,
        trimmed: &mut Vec<Event>,
    ) {
        let now = entry.appended_at;
        while !self.entries.is_empty()
            && (self.entries.len() >= limits.max_events
                || self.memory_len() + entry.memory_len() > limits.max_bytes)
        {
            trimmed.extend(self.trim_oldest());
        }
        self.last_ordinal += 1;
        self.first_position = self.first_position.min(entry.position);
        self.byte_len += entry.byte_len;
        self.entries.push_back(entry);
        free_unused_places(&mut self.entries);
        self.trim_expired(limits, now, trimmed);
    }

    /// Appends an event without history.
    pub(super) fn append_ephemeral(&mut self, entry: TopicLogEntry, trimmed: &mut Vec<Event>) {
        let ephemeral = self.ephemeral.get_or_insert_default();
        while !ephemeral.entries.is_empty()
            && (ephemeral.entries.len() >= EPHEMERAL_LIMITS.max_events
                || ephemeral.memory_len() + entry.memory_len() > EPHEMERAL_LIMITS.max_bytes)
        {
            trimmed.extend(ephemeral.trim_oldest());
        }
        ephemeral.last_ordinal += 1;
        ephemeral.byte_len += entry.byte_len;
        ephemeral.entries.push_back(entry);
    }

    /// Drops the events without history, because the topic has no readers.
    pub(super) fn drop_ephemeral(&mut self, dropped: &mut Vec<Event>) {
        let entries = self.ephemeral.take().map(|ephemeral| ephemeral.entries);
        let entries = entries.into_iter().flatten();
        dropped.extend(entries.map(|entry| entry.event));
    }

    /// Trims the events that are too old at `now`.
    pub(super) fn trim_expired(
        &mut self,
        limits: &EventLogLimits,
        now: Duration,
        trimmed: &mut Vec<Event>,
    ) {
        let Some(max_age) = limits.max_age else {
            return;
        };
        let is_expired = |entry: &TopicLogEntry| now.saturating_sub(entry.appended_at) > max_age;
        while self.entries.front().is_some_and(is_expired) {
            trimmed.extend(self.trim_oldest());
        }
        free_unused_places(&mut self.entries);
    }

    /// Trims the older half of the events, and at least one.
    pub(super) fn trim_older_half(&mut self, trimmed: &mut Vec<Event>) {
        for _ in 0..self.entries.len().div_ceil(2) {
            trimmed.extend(self.trim_oldest());
        }
        free_unused_places(&mut self.entries);
    }

    /// Trims the older half of the events without history. Trims the only one, too, unless `keeps_newest`.
    pub(super) fn trim_older_half_of_ephemeral(
        &mut self,
        keeps_newest: bool,
        trimmed: &mut Vec<Event>,
    ) {
        let Some(ephemeral) = &mut self.ephemeral else {
            return;
        };
        let len = ephemeral.entries.len();
        for _ in 0..if keeps_newest {
            len / 2
        } else {
            len.div_ceil(2)
        } {
            trimmed.extend(ephemeral.trim_oldest());
        }
        free_unused_places(&mut ephemeral.entries);
    }

    /// Drops all events, because the feed of the hub has a gap at `position`: events of this topic may be missing.
    pub(super) fn restart_after_gap(&mut self, position: u64, trimmed: &mut Vec<Event>) {
        let entries = std::mem::take(&mut self.entries).into_iter();
        trimmed.extend(entries.map(|entry| entry.event));
        self.byte_len = 0;
        self.first_position = u64::MAX;
        self.last_dropped_position = position;
        self.uncounted_position = position;
        self.gap_ordinal = self.last_ordinal;
    }

    /// Returns whether the log has begun anew since a reader was at `ordinals`, and the reader has not passed the gap.
    #[inline]
    pub(super) fn has_gap_after(&self, ordinals: ReaderOrdinals) -> bool {
        ordinals.retained < self.gap_ordinal
    }

    /// Moves `ordinals` past the last gap of the hub's feed.
    pub(super) fn skip_gap(&self, ordinals: &mut ReaderOrdinals) {
        ordinals.retained = ordinals.retained.max(self.gap_ordinal);
    }

    fn trim_oldest(&mut self) -> Option<Event> {
        let entry = self.entries.pop_front()?;
        self.byte_len -= entry.byte_len;
        self.last_dropped_position = entry.position;
        Some(entry.event)
    }

    /// Returns the ordinals of a reader that has passed all events.
    pub(super) fn end_ordinals(&self) -> ReaderOrdinals {
        let ephemeral = self.ephemeral.as_ref();
        ReaderOrdinals {
            retained: self.last_ordinal,
            ephemeral: ephemeral.map_or(0, |ephemeral| ephemeral.last_ordinal),
        }
    }

    /// Returns the end of the topic's history when `position` was the newest position of the hub.
    pub(super) fn history_end_at(&self, position: u64) -> HistoryEnd {
        let count_later = |entries: &VecDeque<TopicLogEntry>| {
            let entries = entries.iter().rev();
            let later = entries.take_while(|entry| entry.position > position);
            later.count() as u64
        };
        let ephemeral = self.ephemeral.as_ref();
        let ephemeral = ephemeral.map_or(0, |log| log.last_ordinal - count_later(&log.entries));
        let later = count_later(&self.entries);
        let last_retained = self.entries.iter().rev().nth(later as usize);
        HistoryEnd {
            ordinals: ReaderOrdinals {
                retained: self.last_ordinal - later,
                ephemeral,
            },
            last_retained_position: last_retained
                .map_or(self.last_dropped_position, |entry| entry.position),
        }
    }

    /// Returns the events without history after `ordinals` and up to `position`, oldest first.
    #[cfg(feature = "json")]
    pub(super) fn unread_ephemeral_entries(
        &self,
        ordinals: ReaderOrdinals,
        position: u64,
    ) -> impl Iterator<Item = &TopicLogEntry> {
        let ephemeral = self.ephemeral.as_ref();
        let unread = ephemeral.into_iter();
        let unread = unread.flat_map(move |log| log.entries_after(ordinals.ephemeral));
        unread.take_while(move |entry| entry.position <= position)
    }

    /// Returns the number of events in the log.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the bytes of memory that the events of the log take, as [`EventLogLimits::max_bytes`] counts them: without their encodings, and
    /// without the events without history.
    pub(super) fn memory_len(&self) -> usize {
        self.byte_len + self.entries.len() * EVENT_OVERHEAD_LEN
    }

    /// Returns the same for the events without history.
    pub(super) fn ephemeral_memory_len(&self) -> usize {
        let ephemeral = self.ephemeral.as_deref();
        ephemeral.map_or(0, EphemeralEvents::memory_len)
    }

    /// Returns the entries of the log, oldest first.
    pub(super) fn entries(&self) -> &VecDeque<TopicLogEntry> {
        &self.entries
    }

    /// Returns the position of the newest event that the topic has ever had, in this log or an earlier one; 0 if it has had none.
    pub(super) fn last_history_position(&self) -> u64 {
        let last = self.entries.back().map_or(0, |entry| entry.position);
        last.max(self.last_dropped_position)
    }

    /// Returns the position of the last event up to which `is_before` returns `true`; 0 if there is none. `is_before` is `true` for each event before
    /// a certain one, and `false` for the others.
    pub(super) fn last_position_before(&self, is_before: impl Fn(&TopicLogEntry) -> bool) -> u64 {
        let len = self.entries.partition_point(is_before);
        let last = len.checked_sub(1).map(|index| &self.entries[index]);
        last.map_or(0, |entry| entry.position)
    }

    /// Returns the position of the newest event that the log does not have any more; 0 if there is none.
    pub(super) fn last_dropped_position(&self) -> u64 {
        self.last_dropped_position
    }

    /// Returns the ordinal of the newest event that this log has dropped; 0 if there is none.
    fn last_dropped_ordinal(&self) -> u64 {
        self.last_ordinal - self.entries.len() as u64
    }

    /// Determines where a reader that starts at `start` begins, and which events it misses. The reader gets at most the last `max_history`
    /// events of the log. With `allows_replaced`, missing events do not count as missed as long as the log has a newer event.
    pub(super) fn resolve_start(
        &self,
        start: TopicStart,
        max_history: Option<usize>,
        allows_replaced: bool,
    ) -> ResolvedTopicStart {
        let last_dropped_ordinal = self.last_dropped_ordinal();
        let mut missed = None;
        let mut ordinal = match start {
            TopicStart::Now => self.last_ordinal,
            TopicStart::Oldest => last_dropped_ordinal,
            TopicStart::Last(events) => {
                let events = u64::try_from(events).unwrap_or(u64::MAX);
                self.last_ordinal
                    .saturating_sub(events)
                    .max(last_dropped_ordinal)
            }
            TopicStart::AfterPosition(position) if position < self.last_dropped_position => {
                let is_counted =
                    self.uncounted_position <= position && position < self.first_position;
                missed = Some(MissedTopicEvents {
                    last_position: self.last_dropped_position,
                    count: is_counted.then_some(last_dropped_ordinal - self.gap_ordinal),
                });
                last_dropped_ordinal
            }
            TopicStart::AfterPosition(position) => {
                let read = self
                    .entries
                    .partition_point(|entry| entry.position <= position);
                last_dropped_ordinal + read as u64
            }
        };
        let withheld_until = max_history.map_or(0, |events| {
            let events = u64::try_from(events).unwrap_or(u64::MAX);
            self.last_ordinal.saturating_sub(events)
        });
        if ordinal < withheld_until {
            if matches!(start, TopicStart::AfterPosition(_)) {
                let count = missed.map_or(Some(0), |missed: MissedTopicEvents| missed.count);
                missed = Some(MissedTopicEvents {
                    last_position: self.position_at(withheld_until),
                    count: count.map(|count| count + withheld_until - ordinal),
                });
            }
            ordinal = withheld_until;
        }
        let ordinals = ReaderOrdinals {
            retained: ordinal,
            ephemeral: self.end_ordinals().ephemeral,
        };
        let is_replaced = allows_replaced && !self.entries.is_empty();
        ResolvedTopicStart {
            ordinals,
            missed: missed.filter(|_| !is_replaced),
        }
    }

    /// Returns the position of the event in the log with this ordinal.
    fn position_at(&self, ordinal: u64) -> u64 {
        let index = ordinal - self.last_dropped_ordinal() - 1;
        self.entries[index as usize].position
    }

    /// Returns the position of the first event after `ordinals`.
    pub(super) fn first_position_after(&self, ordinals: ReaderOrdinals) -> Option<u64> {
        let index = ordinals
            .retained
            .saturating_sub(self.last_dropped_ordinal());
        let entry = self.entries.get(usize::try_from(index).ok()?)?;
        Some(entry.position)
    }

    /// Returns the events after `ordinals` that the log no longer has, and moves `ordinals` past them.
    pub(super) fn skip_missed(&self, ordinals: &mut ReaderOrdinals) -> Option<MissedTopicEvents> {
        let last_dropped_ordinal = self.last_dropped_ordinal();
        let count = last_dropped_ordinal.saturating_sub(ordinals.retained);
        if count == 0 {
            return None;
        }
        ordinals.retained = last_dropped_ordinal;
        Some(MissedTopicEvents {
            last_position: self.last_dropped_position,
            count: Some(count),
        })
    }

    /// Returns whether the log has had an event without history since it last had no reader.
    #[inline]
    pub(super) fn has_had_ephemeral(&self) -> bool {
        self.ephemeral.is_some()
    }

    /// Returns the entries with history after `ordinals`. The log has the next event after `ordinals`: [`skip_missed`](Self::skip_missed) has
    /// returned `None`.
    #[inline]
    pub(super) fn retained_entries(
        &self,
        ordinals: ReaderOrdinals,
    ) -> vec_deque::Iter<'_, TopicLogEntry> {
        let index = ordinals.retained - self.last_dropped_ordinal();
        self.entries.range(index as usize..)
    }

    /// Returns the entries after `ordinals`, in the order of their positions. The log has the next event after `ordinals`:
    /// [`skip_missed`](Self::skip_missed) has returned `None`. Moves `ordinals` past the events without history that were dropped.
    #[inline]
    pub(super) fn unread_entries(&self, ordinals: &mut ReaderOrdinals) -> UnreadEntries<'_> {
        let ephemeral = self.ephemeral.as_deref().map(|ephemeral| {
            ordinals.ephemeral = ordinals.ephemeral.max(ephemeral.last_dropped_ordinal());
            ephemeral.entries_after(ordinals.ephemeral).peekable()
        });
        UnreadEntries {
            retained: self.retained_entries(*ordinals),
            ephemeral,
            next_retained: None,
        }
    }
}

impl ReaderOrdinals {
    /// Moves the ordinals past the next entry, which is an event without history if `is_ephemeral`.
    #[inline]
    pub(super) fn advance_past_entry(&mut self, is_ephemeral: bool) {
        match is_ephemeral {
            true => self.ephemeral += 1,
            false => self.retained += 1,
        }
    }
}

/// The entries of a [`TopicLog`] that a reader has not passed. Each item also says whether the entry is an event without history.
pub(super) struct UnreadEntries<'a> {
    retained: vec_deque::Iter<'a, TopicLogEntry>,
    ephemeral: Option<Peekable<vec_deque::Iter<'a, TopicLogEntry>>>,
    /// An entry taken from `retained` that is yielded after the next event without history.
    next_retained: Option<&'a TopicLogEntry>,
}

impl<'a> Iterator for UnreadEntries<'a> {
    type Item = (&'a TopicLogEntry, bool);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let retained = self.next_retained.take().or_else(|| self.retained.next());
        let Some(ephemeral) = &mut self.ephemeral else {
            return retained.map(|entry| (entry, false));
        };
        let is_before_retained = |next: &&TopicLogEntry| {
            retained.is_none_or(|retained| next.position < retained.position)
        };
        if let Some(entry) = ephemeral.next_if(is_before_retained) {
            self.next_retained = retained;
            return Some((entry, true));
        }
        retained.map(|entry| (entry, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimmed_log_frees_places_of_its_events() {
        let limits = EventLogLimits {
            max_events: 10_000,
            max_bytes: usize::MAX,
            max_age: None,
        };
        let (mut log, mut trimmed) = (TopicLog::new(0), Vec::new());
        for position in 1..=8000 {
            let entry = TopicLogEntry::new(position, Event::text("x"), None, Duration::ZERO);
            log.append(entry, &limits, &mut trimmed);
            let entry = TopicLogEntry::new(position, Event::text("x"), None, Duration::ZERO);
            log.append_ephemeral(entry, &mut trimmed);
        }
        for _ in 0..14 {
            log.trim_older_half(&mut trimmed);
            log.trim_older_half_of_ephemeral(true, &mut trimmed);
        }
        let ephemeral = &log.ephemeral.as_ref().unwrap().entries;
        assert_eq!((log.len(), ephemeral.len()), (0, 1));
        assert!(log.entries.capacity() <= 20 && ephemeral.capacity() <= 20);
    }
}
