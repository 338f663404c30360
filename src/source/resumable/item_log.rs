use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    event::{EndWithCloseFrame, Event, EventId, Gap, Item},
    source::log::event_memory_len,
};

/// The limits of an [`ItemLog`]. The log keeps its newest entry even if this entry alone exceeds the limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct ItemLogLimits {
    /// The maximum number of events and gaps. Values below 1 count as 1.
    pub(super) max_entries: usize,
    /// The maximum sum of [`LoggedEventOrGap::memory_len`].
    pub(super) max_bytes: usize,
}

/// An event or a gap that a stream has yielded, as an entry of an [`ItemLog`].
#[derive(Clone, Debug)]
pub(super) enum LoggedEventOrGap {
    Event(Event),
    // Boxed because a gap is rare, and larger than an event.
    Gap(Box<Gap>),
}

/// The way in which a stream has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LoggedEnd {
    /// The source has finished: clients must not reconnect.
    Finished,
    /// The stream has ended, and clients may reconnect.
    Ended,
    /// The stream has ended, and clients may reconnect after this delay.
    EndedWithRetry(Duration),
    /// The stream has ended with a close frame of the application.
    Closed(Box<EndWithCloseFrame>),
    /// The stream has failed with an error of this text.
    Failed(Arc<str>),
}

/// The result of [`ItemLog::read`]: what follows the reader's position.
#[derive(Clone, Debug)]
pub(super) enum ItemLogReadOutcome {
    /// The next item.
    Item(Item),
    /// The entries up to and including `up_to` are trimmed. `missed` is the number of events among them; `None` if it is not known.
    Trimmed { up_to: u64, missed: Option<u64> },
    /// The reader has read all entries, and the stream has ended.
    End(LoggedEnd),
}

/// The latest items of one stream, and its end.
///
/// Entries have consecutive positions, of which the first is 1. The oldest entries are trimmed when the log exceeds its limits. The
/// log differs from an [`EventLog`](crate::source::log::EventLog) in that it also holds the stream's gaps, so that a client that
/// lost a gap gets the gap again, and the stream's end.
#[derive(Debug)]
pub(super) struct ItemLog {
    limits: ItemLogLimits,
    entries: VecDeque<LoggedEventOrGap>,
    /// The position of the newest entry that was ever appended, trimmed or not.
    last_position: u64,
    /// The sum of [`LoggedEventOrGap::memory_len`] over `entries`.
    memory_len: usize,
    /// The position of the newest gap that was trimmed; 0 if there was none. The number of events that a reader before this
    /// position has missed is not known.
    last_dropped_gap: u64,
    end: Option<LoggedEnd>,
}

impl LoggedEventOrGap {
    pub(super) fn with_id(self, id: EventId) -> Self {
        match self {
            Self::Event(event) => Self::Event(event.with_event_id(id)),
            Self::Gap(mut gap) => {
                gap.resumed = Some(id);
                Self::Gap(gap)
            }
        }
    }

    fn memory_len(&self) -> usize {
        match self {
            Self::Event(event) => event_memory_len(event),
            Self::Gap(_) => size_of::<Gap>(),
        }
    }

    fn to_item(&self) -> Item {
        match self {
            Self::Event(event) => Item::Event(event.clone()),
            Self::Gap(gap) => Item::Gap(gap.clone()),
        }
    }
}

impl ItemLog {
    pub(super) fn new(limits: ItemLogLimits) -> Self {
        Self {
            limits,
            entries: VecDeque::new(),
            last_position: 0,
            memory_len: 0,
            last_dropped_gap: 0,
            end: None,
        }
    }

    /// Appends an entry. Returns the entries that were trimmed. The caller drops them outside of its lock, because dropping a
    /// payload can run its owner's code.
    #[must_use]
    pub(super) fn append_and_trim(&mut self, entry: LoggedEventOrGap) -> Vec<LoggedEventOrGap> {
        self.last_position += 1;
        self.memory_len += entry.memory_len();
        self.entries.push_back(entry);
        let mut trimmed = Vec::new();
        while self.entries.len() > 1
            && (self.entries.len() > self.limits.max_entries
                || self.memory_len > self.limits.max_bytes)
        {
            trimmed.extend(self.pop_oldest());
        }
        trimmed
    }

    fn pop_oldest(&mut self) -> Option<LoggedEventOrGap> {
        let oldest = self.entries.pop_front()?;
        self.memory_len -= oldest.memory_len();
        if matches!(oldest, LoggedEventOrGap::Gap(_)) {
            self.last_dropped_gap = self.position_before_oldest();
        }
        Some(oldest)
    }

    /// Records that the stream has ended. The caller must not append entries after this.
    pub(super) fn set_end(&mut self, end: LoggedEnd) {
        self.end = Some(end);
    }

    /// Returns how the stream has ended, or `None` if it has not ended.
    pub(super) fn stream_end(&self) -> Option<&LoggedEnd> {
        self.end.as_ref()
    }

    /// Returns the position from which a reader gets all entries.
    pub(super) fn position_before_oldest(&self) -> u64 {
        self.last_position - self.entries.len() as u64
    }

    pub(super) fn last_position(&self) -> u64 {
        self.last_position
    }

    pub(super) fn memory_len(&self) -> usize {
        self.memory_len
    }

    /// Returns the next item or the end after `position`, or `None` if the log has neither yet.
    pub(super) fn read(&self, position: u64) -> Option<ItemLogReadOutcome> {
        let before_oldest = self.position_before_oldest();
        if position < before_oldest {
            return Some(ItemLogReadOutcome::Trimmed {
                up_to: before_oldest,
                missed: (position >= self.last_dropped_gap).then(|| before_oldest - position),
            });
        }
        match self.entries.get((position - before_oldest) as usize) {
            Some(entry) => Some(ItemLogReadOutcome::Item(entry.to_item())),
            None => self.end.clone().map(ItemLogReadOutcome::End),
        }
    }

    /// Returns whether [`read`](Self::read) returns `None` for `position`: the log has no later entry and no end yet.
    pub(super) fn is_up_to_date(&self, position: u64) -> bool {
        position >= self.last_position && self.end.is_none()
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::GapReason;

    const UNLIMITED: ItemLogLimits = ItemLogLimits {
        max_entries: usize::MAX,
        max_bytes: usize::MAX,
    };

    fn event(text: &str) -> LoggedEventOrGap {
        LoggedEventOrGap::Event(Event::text(text))
    }

    fn gap() -> LoggedEventOrGap {
        LoggedEventOrGap::Gap(Box::new(Gap::new(GapReason::Expired)))
    }

    #[test]
    fn end_follows_all_entries() {
        let mut log = ItemLog::new(UNLIMITED);
        assert!(log.read(0).is_none());
        let _ = log.append_and_trim(event("a"));
        log.set_end(LoggedEnd::Finished);
        assert!(matches!(
            log.read(0),
            Some(ItemLogReadOutcome::Item(Item::Event(_)))
        ));
        assert!(matches!(
            log.read(1),
            Some(ItemLogReadOutcome::End(LoggedEnd::Finished))
        ));
        assert!(!log.is_up_to_date(1));
    }

    #[test]
    fn trimmed_gap_makes_missed_count_unknown() {
        let mut log = ItemLog::new(ItemLogLimits {
            max_entries: 2,
            ..UNLIMITED
        });
        for entry in [event("a"), gap(), event("b")] {
            let _ = log.append_and_trim(entry);
        }
        assert!(matches!(
            log.read(1),
            Some(ItemLogReadOutcome::Item(Item::Gap(_)))
        ));
        let _ = log.append_and_trim(event("c"));
        let missed = |position| match log.read(position) {
            Some(ItemLogReadOutcome::Trimmed { up_to: 2, missed }) => missed,
            other => panic!("{other:?}"),
        };
        assert_eq!(missed(0), None);
        assert_eq!(missed(1), None);
        let _ = log.append_and_trim(event("d"));
        let read = log.read(2);
        assert!(
            matches!(
                read,
                Some(ItemLogReadOutcome::Trimmed {
                    up_to: 3,
                    missed: Some(1)
                })
            ),
            "{read:?}"
        );
    }

    proptest! {
        /// Compares the log with a list of all events that were appended.
        #[test]
        fn reads_return_appended_entries(
            sizes in proptest::collection::vec(0_usize..30, 1..60),
            max_entries in 0_usize..20,
            max_bytes in 0_usize..5000,
            position in 0_u64..70,
        ) {
            let mut log = ItemLog::new(ItemLogLimits { max_entries, max_bytes });
            let texts: Vec<_> = sizes.iter().enumerate().map(|(n, size)| format!("{n}{}", "x".repeat(*size))).collect();
            for text in &texts {
                let _ = log.append_and_trim(event(text));
                prop_assert!(log.entries.len() <= max_entries.max(1));
                prop_assert!(log.memory_len() <= max_bytes || log.entries.len() == 1);
            }
            match log.read(position) {
                Some(ItemLogReadOutcome::Item(Item::Event(event))) => {
                    prop_assert_eq!(event.payload().as_text().unwrap(), &texts[position as usize]);
                }
                Some(ItemLogReadOutcome::Trimmed { up_to, missed }) => {
                    prop_assert!(position < up_to && up_to == log.position_before_oldest());
                    prop_assert_eq!(missed, Some(up_to - position));
                }
                None => prop_assert!(position >= texts.len() as u64 && log.is_up_to_date(position)),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
