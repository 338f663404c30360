//! A store in memory that relays read, with faults.

use std::{
    cmp::Ordering,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

pub(crate) use testkit::epoch_ids::{id, split_id};
use tower_push::{
    Event, EventId, Gap, GapReason,
    event::Topic,
    source::relay::{Page, PageRequest, Upstream, UpstreamError},
};

/// A list of numbered events. The id of an event is `epoch.number`, its text is its number. Clones are the same store.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<StoreState>>);

#[derive(Default)]
pub(crate) struct StoreState {
    pub(crate) epoch: u64,
    /// The number of the last event that was removed; 0 if there was none.
    pub(crate) removed: u64,
    pub(crate) events: VecDeque<Event>,
    /// The requests so far.
    pub(crate) requests: Vec<PageRequest>,
    /// What the next reads do, instead of answering.
    pub(crate) faults: VecDeque<Fault>,
    /// How long each read takes.
    pub(crate) delay: Duration,
    /// The largest number of reads at the same time.
    pub(crate) max_concurrent_reads: usize,
    concurrent_reads: usize,
}

/// What a read does instead of answering.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Fail,
    Panic,
    Hang,
    EventWithoutId,
}

/// The topic of the event with this number: one of three.
pub(crate) fn topic(number: u64) -> Topic {
    Topic::new(format!("topic {}", number % 3)).unwrap()
}

impl StoreState {
    pub(crate) fn last_number(&self) -> u64 {
        self.removed + self.events.len() as u64
    }

    pub(crate) fn last_id(&self) -> EventId {
        id(self.epoch, self.last_number())
    }

    /// Appends an event.
    pub(crate) fn append(&mut self) -> EventId {
        let number = self.last_number() + 1;
        let event = Event::text(number.to_string()).with_topic(topic(number));
        let event = event.unwrap().with_event_id(id(self.epoch, number));
        self.events.push_back(event);
        self.last_id()
    }

    pub(crate) fn trim(&mut self, count: usize) {
        let count = count.min(self.events.len());
        self.events.drain(..count);
        self.removed += count as u64;
    }

    pub(crate) fn recreate(&mut self) {
        self.epoch += 1;
        self.removed = 0;
        self.events.clear();
    }

    pub(crate) fn events_after(&self, number: u64) -> impl Iterator<Item = &Event> {
        let skipped = number.saturating_sub(self.removed) as usize;
        self.events.iter().skip(skipped)
    }

    fn read_page(&self, request: &PageRequest) -> Result<Page, UpstreamError> {
        let (epoch, number) = split_id(request.after());
        if epoch != self.epoch || number > self.last_number() {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        }
        let scanned: Vec<_> = self
            .events_after(number)
            .take(request.max_events())
            .collect();
        let last = scanned.last().and_then(|event| event.id().cloned());
        let included = scanned.into_iter().filter(|event| request.includes(event));
        let mut page = Page::new(included.cloned().collect());
        if let Some(last) = last {
            page = page.scanned_to(last);
        }
        if number < self.removed {
            let gap = Gap::new(GapReason::Expired).missed(self.removed - number);
            page = page.after_gap(gap.resumed(id(epoch, self.removed)));
        }
        Ok(page)
    }
}

impl Store {
    pub(crate) fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.0.lock().unwrap()
    }

    /// Appends this many events.
    pub(crate) fn append(&self, count: u64) {
        let mut store = self.lock();
        (0..count).for_each(|_| drop(store.append()));
    }

    pub(crate) fn read_count(&self) -> usize {
        self.lock().requests.len()
    }
}

impl Upstream for Store {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let (fault, delay) = {
            let mut store = self.lock();
            store.requests.push(request.clone());
            store.concurrent_reads += 1;
            store.max_concurrent_reads = store.max_concurrent_reads.max(store.concurrent_reads);
            (store.faults.pop_front(), store.delay)
        };
        tokio::time::sleep(delay).await;
        self.lock().concurrent_reads -= 1;
        match fault {
            None => self.lock().read_page(&request),
            Some(Fault::Fail) => Err("the store is away")?,
            Some(Fault::Panic) => panic!("the store panics, which this test expects"),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::EventWithoutId) => Ok(Page::new(vec![Event::text("x")])),
        }
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let (a, b) = (split_id(a), split_id(b));
        (a.0 == b.0).then(|| a.1.cmp(&b.1))
    }
}
