//! What a stream has said lately: sans-io.
//!
//! It differs from a [channel](crate::source::channel)'s log in what it holds: gaps have their place among the events, so that a
//! client that lost one is told again, and the stream's end is part of it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    event::{Event, EventId, Gap, Item},
    source::channel::log::cost,
};

/// How much of one stream is kept. The newest entry is kept whatever its size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// What a stream says, once it has its id.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Event(Event),
    // Rare, and larger than an event.
    Gap(Box<Gap>),
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// For ever.
    Finished,
    /// For now.
    Ended,
    /// For now, with a hint when to come back.
    EndedFor(Duration),
    /// With this error.
    Failed(Arc<str>),
}

/// What comes next.
#[derive(Clone, Debug)]
pub(super) enum Next {
    Item(Item),
    /// All up to the number `resumed` is gone, which is so many events, if that is known.
    Gone {
        resumed: u64,
        missed: Option<u64>,
    },
    End(End),
}

/// The last entries, in their order, each under its number; the first is 1.
#[derive(Debug)]
pub(super) struct Log {
    bounds: Bounds,
    entries: VecDeque<Entry>,
    last: u64,
    bytes: usize,
    /// The number of the newest gap that fell off: how many events are missing behind a lower one is not known.
    vague: u64,
    end: Option<End>,
}

impl Entry {
    pub(super) fn under(self, id: EventId) -> Self {
        match self {
            Self::Event(event) => Self::Event(event.under(id)),
            Self::Gap(gap) => Self::Gap(Box::new(gap.resumed(id))),
        }
    }

    fn cost(&self) -> usize {
        match self {
            Self::Event(event) => cost(event),
            Self::Gap(_) => size_of::<Gap>(),
        }
    }

    fn item(&self) -> Item {
        match self {
            Self::Event(event) => Item::Event(event.clone()),
            Self::Gap(gap) => Item::Gap((**gap).clone()),
        }
    }
}

impl Log {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: VecDeque::new(),
            last: 0,
            bytes: 0,
            vague: 0,
            end: None,
        }
    }

    /// Adds an entry, and gives back what fell off: to be dropped outside of any lock, for a payload may have an owner, whose code
    /// runs then.
    #[must_use]
    pub(super) fn push(&mut self, entry: Entry) -> Vec<Entry> {
        self.last += 1;
        self.bytes += entry.cost();
        self.entries.push_back(entry);
        let mut dropped = Vec::new();
        while self.entries.len() > 1
            && (self.entries.len() > self.bounds.events || self.bytes > self.bounds.bytes)
        {
            dropped.extend(self.pop_oldest());
        }
        dropped
    }

    fn pop_oldest(&mut self) -> Option<Entry> {
        let oldest = self.entries.pop_front()?;
        self.bytes -= oldest.cost();
        if matches!(oldest, Entry::Gap(_)) {
            self.vague = self.before_oldest();
        }
        Some(oldest)
    }

    /// No more entries.
    pub(super) fn end(&mut self, end: End) {
        self.end = Some(end);
    }

    /// How the stream ended, if it has.
    pub(super) fn ended(&self) -> Option<&End> {
        self.end.as_ref()
    }

    pub(super) fn before_oldest(&self) -> u64 {
        self.last - self.entries.len() as u64
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What comes behind this number; `None` if there is nothing yet.
    pub(super) fn read(&self, at: u64) -> Option<Next> {
        let start = self.before_oldest();
        if at < start {
            let missed = (at >= self.vague).then(|| start - at);
            let resumed = start;
            return Some(Next::Gone { resumed, missed });
        }
        match self.entries.get((at - start) as usize) {
            Some(entry) => Some(Next::Item(entry.item())),
            None => self.end.clone().map(Next::End),
        }
    }

    pub(super) fn is_nothing(&self, at: u64) -> bool {
        at >= self.last && self.end.is_none()
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::GapReason;

    const PLENTY: Bounds = Bounds {
        events: usize::MAX,
        bytes: usize::MAX,
    };

    fn event(text: &str) -> Entry {
        Entry::Event(Event::text(text))
    }

    fn gap() -> Entry {
        Entry::Gap(Box::new(Gap::new(GapReason::Expired)))
    }

    #[test]
    fn the_end_comes_after_everything_else() {
        let mut log = Log::new(PLENTY);
        assert!(log.read(0).is_none());
        let _ = log.push(event("a"));
        log.end(End::Finished);
        assert!(matches!(log.read(0), Some(Next::Item(Item::Event(_)))));
        assert!(matches!(log.read(1), Some(Next::End(End::Finished))));
        assert!(!log.is_nothing(1));
    }

    #[test]
    fn a_gap_has_its_place_and_makes_a_count_unknown_once_it_fell() {
        let mut log = Log::new(Bounds {
            events: 2,
            ..PLENTY
        });
        for entry in [event("a"), gap(), event("b")] {
            let _ = log.push(entry);
        }
        assert!(matches!(log.read(1), Some(Next::Item(Item::Gap(_)))));
        let _ = log.push(event("c"));
        let missed = |at| match log.read(at) {
            Some(Next::Gone { resumed: 2, missed }) => missed,
            other => panic!("{other:?}"),
        };
        assert_eq!(missed(0), None);
        assert_eq!(missed(1), None);
        let _ = log.push(event("d"));
        let next = log.read(2);
        assert!(
            matches!(
                next,
                Some(Next::Gone {
                    resumed: 3,
                    missed: Some(1)
                })
            ),
            "{next:?}"
        );
    }

    proptest! {
        /// Against a list of all that was ever said.
        #[test]
        fn what_is_read_is_what_was_said(
            sizes in proptest::collection::vec(0_usize..30, 1..60),
            events in 0_usize..20,
            bytes in 0_usize..200,
            at in 0_u64..70,
        ) {
            let mut log = Log::new(Bounds { events, bytes });
            let texts: Vec<_> = sizes.iter().enumerate().map(|(n, size)| format!("{n}{}", "x".repeat(*size))).collect();
            for text in &texts {
                let _ = log.push(event(text));
                prop_assert!(log.entries.len() <= events.max(1));
                prop_assert!(log.bytes() <= bytes || log.entries.len() == 1);
            }
            match log.read(at) {
                Some(Next::Item(Item::Event(event))) => {
                    prop_assert_eq!(event.payload().as_text().unwrap(), &texts[at as usize]);
                }
                Some(Next::Gone { resumed, missed }) => {
                    prop_assert!(at < resumed && resumed == log.before_oldest());
                    prop_assert_eq!(missed, Some(resumed - at));
                }
                None => prop_assert!(at >= texts.len() as u64 && log.is_nothing(at)),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
