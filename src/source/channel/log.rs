//! The replay log: sans-io, with the time as an argument.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use super::taken::Taken;
use crate::event::Event;

/// How much a log keeps. The newest event is kept whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) age: Option<Duration>,
}

/// Events in their order, each under its number; the first is 1. What exceeds the bounds falls off the old end.
#[derive(Debug)]
pub(super) struct Log {
    bounds: Bounds,
    entries: VecDeque<Entry>,
    /// The number of the last event ever written, kept or not.
    last: u64,
    bytes: usize,
    closed: bool,
    /// What fell off and is to be dropped outside of any lock: a payload may have an owner, whose code runs then.
    dropped: Vec<Event>,
    /// For readers that are content with the newest event of each key.
    fallen: Option<Fallen>,
}

#[derive(Debug)]
struct Entry {
    event: Event,
    key: Option<Box<str>>,
    at: Duration,
}

/// What a reader gets next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Events, after which it is at this number. Between them may be others that newer ones have replaced.
    Read(u64),
    /// Nothing yet.
    Nothing,
    /// Nothing any more.
    Closed,
    /// All up to this number is gone.
    Gone(u64),
}

impl Bounds {
    fn is_old(&self, entry: &Entry, now: Duration) -> bool {
        let age = now.saturating_sub(entry.at);
        self.age.is_some_and(|oldest| age > oldest)
    }
}

impl Log {
    /// A log; one that conflates keeps the newest event of each key beyond the bounds, and as many of those again.
    pub(super) fn new(bounds: Bounds, conflates: bool) -> Self {
        Self {
            bounds,
            entries: VecDeque::new(),
            last: 0,
            bytes: 0,
            closed: false,
            dropped: Vec::new(),
            fallen: conflates.then(Fallen::default),
        }
    }

    /// The number that the next event will have.
    pub(super) fn next(&self) -> u64 {
        self.last + 1
    }

    pub(super) fn push(&mut self, event: Event, key: Option<Box<str>>, now: Duration) {
        self.last += 1;
        self.bytes += cost(&event);
        if let (Some(fallen), Some(key)) = (&mut self.fallen, &key) {
            self.dropped.extend(fallen.replace(key, self.last));
        }
        let at = now;
        self.entries.push_back(Entry { event, key, at });
        while self.entries.len() > self.bounds.events.max(1)
            || (self.bytes > self.bounds.bytes && self.entries.len() > 1)
        {
            self.drop_oldest();
        }
        self.expire(now);
    }

    /// Lets fall what has become too old.
    pub(super) fn expire(&mut self, now: Duration) {
        let bounds = self.bounds;
        let is_old = |entry: Option<&Entry>| entry.is_some_and(|entry| bounds.is_old(entry, now));
        while is_old(self.entries.front()) {
            self.drop_oldest();
        }
        if let Some(fallen) = &mut self.fallen {
            while is_old(fallen.oldest()) {
                self.dropped.extend(fallen.forget_oldest());
            }
        }
    }

    /// Whether anything has become too old.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let fallen = self.fallen.as_ref().and_then(Fallen::oldest);
        let mut oldest = fallen.into_iter().chain(self.entries.front());
        oldest.any(|entry| self.bounds.is_old(entry, now))
    }

    /// What fell off since this was asked last.
    pub(super) fn take_dropped(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.dropped)
    }

    fn drop_oldest(&mut self) {
        let number = self.before_oldest() + 1;
        let Some(entry) = self.entries.pop_front() else {
            return;
        };
        self.bytes -= cost(&entry.event);
        match &mut self.fallen {
            Some(fallen) => {
                self.dropped.extend(fallen.add(number, entry));
                while fallen.exceeds(self.bounds) {
                    self.dropped.extend(fallen.forget_oldest());
                }
            }
            None => self.dropped.push(entry.event),
        }
    }

    /// The number before that of the oldest event: where a reader of all that there is stands.
    pub(super) fn before_oldest(&self) -> u64 {
        self.last - self.entries.len() as u64
    }

    /// The same, but before the newest event of each key too that a conflating log has beyond its bounds.
    pub(super) fn before_snapshot(&self) -> u64 {
        let fallen = self.fallen.as_ref();
        fallen.map_or(self.before_oldest(), |fallen| fallen.forgotten)
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// No more events.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Gives a reader at this number what comes next: about so many bytes, but one event at least.
    pub(super) fn read(&self, at: u64, bytes: usize, into: &mut Taken) -> Next {
        let start = self.before_oldest();
        if at >= self.last {
            return if self.closed {
                Next::Closed
            } else {
                Next::Nothing
            };
        }
        if at < start {
            return self.read_fallen(at, start, bytes, into);
        }
        let entries = self.entries.range((at - start) as usize..);
        let numbered = (at + 1..).zip(entries.map(|entry| &entry.event));
        Next::Read(fill(into, bytes, numbered).unwrap_or(at))
    }

    fn read_fallen(&self, at: u64, start: u64, bytes: usize, into: &mut Taken) -> Next {
        match &self.fallen {
            None => Next::Gone(start),
            Some(fallen) if at < fallen.forgotten => Next::Gone(fallen.forgotten),
            Some(fallen) => {
                let newest = fallen.newest.range(at + 1..);
                let numbered = newest.map(|(number, entry)| (*number, &entry.event));
                Next::Read(fill(into, bytes, numbered).unwrap_or(start))
            }
        }
    }
}

/// Of the events that fell off a log, the newest of each key that the log itself has no newer one of.
#[derive(Debug, Default)]
struct Fallen {
    newest: BTreeMap<u64, Entry>,
    numbers: HashMap<Box<str>, u64>,
    bytes: usize,
    /// The number of the newest one that had to go.
    forgotten: u64,
}

impl Fallen {
    /// An event of this key was written: the one before it is of no use any more.
    fn replace(&mut self, key: &str, number: u64) -> Option<Event> {
        match self.numbers.get_mut(key) {
            Some(newest) => {
                let older = std::mem::replace(newest, number);
                self.remove(older).map(|entry| entry.event)
            }
            None => {
                self.numbers.insert(key.into(), number);
                None
            }
        }
    }

    /// An event fell off the log; it comes back if it is not the newest of its key.
    fn add(&mut self, number: u64, entry: Entry) -> Option<Event> {
        if entry.key().and_then(|key| self.numbers.get(key)) != Some(&number) {
            return Some(entry.event);
        }
        self.bytes += entry.cost();
        self.newest.insert(number, entry);
        None
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.newest.remove(&number)?;
        self.bytes -= entry.cost();
        Some(entry)
    }

    fn oldest(&self) -> Option<&Entry> {
        self.newest.values().next()
    }

    fn exceeds(&self, bounds: Bounds) -> bool {
        self.newest.len() > bounds.events || self.bytes > bounds.bytes
    }

    fn forget_oldest(&mut self) -> Option<Event> {
        let number = *self.newest.keys().next()?;
        let entry = self.remove(number)?;
        if let Some(key) = entry.key() {
            self.numbers.remove(key);
        }
        self.forgotten = number;
        Some(entry.event)
    }
}

impl Entry {
    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// In bytes, the key that stands at two places included.
    fn cost(&self) -> usize {
        cost(&self.event) + 2 * self.key().map_or(0, str::len)
    }
}

/// Takes the first events that make up so many bytes, and says the number of the last one.
fn fill<'a>(
    into: &mut Taken,
    bytes: usize,
    events: impl Iterator<Item = (u64, &'a Event)>,
) -> Option<u64> {
    let mut room = bytes;
    let mut last = None;
    for (number, event) in events {
        let cost = cost(event) + AROUND;
        if into.is_full() || (cost > room && last.is_some()) {
            break;
        }
        room = room.saturating_sub(cost);
        into.push(event.clone());
        last = Some(number);
    }
    last
}

/// What is allocated around an event's payload, about.
const AROUND: usize = 256;

/// What an event costs: its payload, id and type. Its encodings come on top, once for each transport in use.
pub(in crate::source) fn cost(event: &Event) -> usize {
    let id = event.id().map_or(0, |id| id.as_str().len());
    let event_type = event.event_type().map_or(0, |t| t.as_str().len());
    event.payload().as_bytes().len() + id + event_type
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLENTY: Bounds = Bounds {
        events: usize::MAX,
        bytes: usize::MAX,
        age: None,
    };

    fn log(bounds: Bounds) -> Log {
        Log::new(bounds, false)
    }

    fn push(log: &mut Log, text: &str) {
        log.push(Event::text(text), None, Duration::ZERO);
    }

    fn read(log: &Log, at: u64, bytes: usize) -> (Vec<String>, Next) {
        let mut taken = Taken::default();
        let next = log.read(at, bytes, &mut taken);
        let texts =
            std::iter::from_fn(|| taken.pop()).map(|e| e.payload().as_text().unwrap().to_owned());
        (texts.collect(), next)
    }

    #[test]
    fn a_reader_gets_what_comes_after_its_number() {
        let mut log = log(PLENTY);
        assert_eq!(read(&log, 0, 100), (vec![], Next::Nothing));
        for text in ["a", "b", "c"] {
            push(&mut log, text);
        }
        assert_eq!(read(&log, 0, 1000).1, Next::Read(3));
        assert_eq!(read(&log, 2, 100), (vec!["c".to_owned()], Next::Read(3)));
        assert_eq!(read(&log, 3, 100), (vec![], Next::Nothing));
        assert_eq!(
            read(&log, 0, 0),
            (vec!["a".to_owned()], Next::Read(1)),
            "one at least"
        );
        log.close();
        assert_eq!(read(&log, 2, 100).1, Next::Read(3));
        assert_eq!(read(&log, 3, 100).1, Next::Closed);
    }

    #[test]
    fn each_bound_holds_and_the_newest_event_stays() {
        let mut few = log(Bounds {
            events: 2,
            ..PLENTY
        });
        let mut small = log(Bounds { bytes: 4, ..PLENTY });
        for text in ["aa", "bb", "cc"] {
            push(&mut few, text);
            push(&mut small, text);
        }
        for log in [&mut few, &mut small] {
            assert_eq!((log.len(), log.bytes(), log.before_oldest()), (2, 4, 1));
            assert_eq!(read(log, 0, 100).1, Next::Gone(1));
            assert_eq!(read(log, 1, 1000).0, ["bb", "cc"]);
        }
        push(&mut small, "larger than the bound");
        assert_eq!((small.len(), small.before_oldest()), (1, 3));

        let minute = Duration::from_secs(60);
        let mut young = log(Bounds {
            age: Some(minute),
            ..PLENTY
        });
        push(&mut young, "a");
        young.expire(minute);
        assert_eq!(young.len(), 1);
        young.push(Event::text("b"), None, minute + Duration::from_nanos(1));
        assert_eq!(read(&young, 1, 100).0, ["b"]);
        young.expire(Duration::MAX);
        assert_eq!((young.len(), young.bytes(), young.last()), (0, 0, 2));
        assert_eq!(read(&young, 0, 100).1, Next::Gone(2));
        assert_eq!(read(&young, 2, 100).1, Next::Nothing);
    }

    #[test]
    fn no_age_is_too_long() {
        let mut log = log(Bounds {
            age: Some(Duration::MAX),
            ..PLENTY
        });
        log.push(Event::text("a"), None, Duration::MAX);
        log.expire(Duration::MAX);
        assert_eq!(log.len(), 1);
    }

    #[test]
    fn what_a_conflating_log_keeps_ages_too() {
        let minute = Duration::from_secs(60);
        let bounds = Bounds {
            events: 1,
            age: Some(minute),
            ..PLENTY
        };
        let mut log = Log::new(bounds, true);
        for key in ["a", "b"] {
            log.push(Event::text(key), Some(key.into()), Duration::ZERO);
        }
        assert_eq!(read(&log, 0, 1000).0, ["a"]);
        log.expire(2 * minute);
        assert_eq!(read(&log, 0, 1000), (vec![], Next::Gone(2)));
        assert_eq!(log.take_dropped().len(), 2);
    }

    proptest! {
        /// Against a list of all events ever written.
        #[test]
        fn what_is_read_is_what_was_written(
            sizes in proptest::collection::vec(0_usize..30, 1..60),
            events in 1_usize..20,
            bytes in 1_usize..200,
            at in 0_u64..70,
            room in 0_usize..3000,
        ) {
            let mut log = log(Bounds { events, bytes, age: None });
            let texts: Vec<_> = sizes.iter().enumerate().map(|(n, size)| format!("{n}{}", "x".repeat(*size))).collect();
            for text in &texts {
                push(&mut log, text);
                prop_assert!(log.len() <= events);
                prop_assert!(log.bytes() <= bytes || log.len() == 1);
            }
            let (read, next) = read(&log, at, room);
            match next {
                Next::Read(number) => {
                    prop_assert!(number > at);
                    prop_assert_eq!(&read[..], &texts[at as usize..number as usize]);
                }
                Next::Gone(number) => prop_assert!(at < number && number == log.before_oldest()),
                Next::Nothing => prop_assert!(at >= texts.len() as u64),
                Next::Closed => prop_assert!(false),
            }
        }

        /// A reader who comes now and then ends with the newest event of each key, and sees none of them go backwards.
        #[test]
        fn a_slow_reader_of_a_conflating_log_has_the_newest_of_each_key(
            keys in proptest::collection::vec(0_u8..6, 1..80),
            events in 6_usize..20,
            pauses in proptest::collection::vec(1_usize..30, 1..20),
        ) {
            let mut log = Log::new(Bounds { events, ..PLENTY }, true);
            let mut have = HashMap::new();
            let mut at = 0;
            let mut pauses = pauses.into_iter().cycle();
            let mut next_read = pauses.next().unwrap();
            let mut newest = HashMap::new();
            for (n, key) in keys.iter().enumerate() {
                let key = key.to_string();
                newest.insert(key.clone(), n);
                log.push(Event::text(format!("{key}={n}")), Some(key.into()), Duration::ZERO);
                let is_last = n + 1 == keys.len();
                if n < next_read && !is_last {
                    continue;
                }
                next_read = n + pauses.next().unwrap();
                loop {
                    let (texts, next) = read(&log, at, 10);
                    for text in texts {
                        let (key, n) = text.split_once('=').unwrap();
                        let n: usize = n.parse().unwrap();
                        prop_assert!(have.insert(key.to_owned(), n).is_none_or(|before| before < n));
                    }
                    match next {
                        Next::Read(number) => at = number,
                        other => {
                            prop_assert_eq!(other, Next::Nothing);
                            break;
                        }
                    }
                }
            }
            prop_assert_eq!(have, newest);
        }
    }

    #[test]
    fn what_a_conflating_log_must_forget_is_gone_for_its_readers() {
        let mut log = Log::new(
            Bounds {
                events: 2,
                ..PLENTY
            },
            true,
        );
        for key in 1..=6 {
            log.push(
                Event::text(key.to_string()),
                Some(key.to_string().into()),
                Duration::ZERO,
            );
        }
        // 5 and 6 are in the log, 3 and 4 are the newest that fell off, 1 and 2 are forgotten.
        assert_eq!(read(&log, 0, 100), (vec![], Next::Gone(2)));
        assert_eq!(read(&log, 2, 1000).0, ["3", "4"]);
        assert_eq!(read(&log, 4, 1000).0, ["5", "6"]);
    }
}
