//! A source over a store that several servers share.

use std::{
    cmp::Ordering,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tower_push::{
    Event, EventId, Gap, GapReason, Relay,
    source::relay::{Page, PageRequest, RelayBuilder, RelayWriter, Upstream, UpstreamError},
};

/// A list of texts that several [`Relay`]s read, as servers read a broker.
///
/// Clones are the same journal. The id of an entry is `epoch.number`.
#[derive(Clone, Default)]
pub struct Journal(Arc<JournalState>);

#[derive(Default)]
struct JournalState {
    entries: Mutex<Entries>,
    /// Notifies the readers of changes of `entries`.
    changes: watch::Sender<()>,
    /// The number of pages that were read.
    reads: AtomicUsize,
}

#[derive(Default)]
struct Entries {
    /// The number of times that the journal was created anew.
    epoch: u64,
    /// The number of entries that were removed. The first of `texts` has the next number.
    removed: u64,
    texts: Vec<String>,
}

impl Journal {
    /// Creates an empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry, and returns its id.
    pub fn append(&self, text: impl Into<String>) -> EventId {
        let mut entries = self.lock();
        entries.texts.push(text.into());
        let id = entries.id(entries.last_number());
        drop(entries);
        self.0.changes.send_replace(());
        id
    }

    /// Removes the oldest entries until `count` are left.
    pub fn trim(&self, count: usize) {
        let mut entries = self.lock();
        let removed = entries.texts.len().saturating_sub(count);
        entries.texts.drain(..removed);
        entries.removed += removed as u64;
    }

    /// Removes all entries. The numbers begin at 1 again.
    pub fn recreate(&self) {
        let mut entries = self.lock();
        *entries = Entries {
            epoch: entries.epoch + 1,
            ..Entries::default()
        };
        drop(entries);
        self.0.changes.send_replace(());
    }

    /// Returns the number of pages that were read.
    pub fn read_count(&self) -> usize {
        self.0.reads.load(Relaxed)
    }

    /// Builds a relay of this journal, as a server does at its start: reads the last `prefill` entries first, and then follows the
    /// journal in a task, `delay` behind it.
    pub fn relay(&self, builder: RelayBuilder, prefill: usize, delay: Duration) -> Relay {
        let entries = self.lock();
        let skipped = entries.texts.len().saturating_sub(prefill) as u64;
        let (epoch, read) = (entries.epoch, entries.removed + skipped);
        let start = entries.id(read);
        drop(entries);
        let (feed, relay) = builder.upstream(self.clone()).start_after(start).build();
        let mut reader = JournalReader {
            journal: self.clone(),
            feed,
            epoch,
            read,
        };
        reader.read_all();
        tokio::spawn(reader.follow(delay));
        relay
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn last_number(&self) -> u64 {
        self.removed + self.texts.len() as u64
    }

    fn id(&self, number: u64) -> EventId {
        let id = EventId::new(format!("{}.{number}", self.epoch));
        id.expect("digits and a dot are an id")
    }

    /// Returns the entries after `number`, at most `max` of them.
    fn events_after(&self, number: u64, max: usize) -> Vec<Event> {
        let skipped = number.saturating_sub(self.removed) as usize;
        let texts = self.texts.iter().zip(self.removed + 1..);
        let texts = texts.skip(skipped).take(max);
        texts
            .map(|(text, number)| Event::text(text.as_str()).with_event_id(self.id(number)))
            .collect()
    }
}

fn split_id(id: &EventId) -> Option<(u64, u64)> {
    let (epoch, number) = id.as_str().split_once('.')?;
    Some((epoch.parse().ok()?, number.parse().ok()?))
}

impl Upstream for Journal {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        self.0.reads.fetch_add(1, Relaxed);
        tokio::task::yield_now().await;
        let (epoch, number) = split_id(request.after()).ok_or("not an id of a journal")?;
        let entries = self.lock();
        if epoch != entries.epoch || number > entries.last_number() {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        }
        let page = Page::new(entries.events_after(number, request.max_events()));
        if number >= entries.removed {
            return Ok(page);
        }
        let gap = Gap::new(GapReason::Expired)
            .missed(entries.removed - number)
            .resumed(entries.id(entries.removed));
        Ok(page.after_gap(gap))
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let (a, b) = (split_id(a)?, split_id(b)?);
        (a.0 == b.0).then(|| a.1.cmp(&b.1))
    }
}

/// The one reader of a journal in a server.
struct JournalReader {
    journal: Journal,
    feed: RelayWriter,
    /// The epoch and the number of the last entry that was read.
    epoch: u64,
    read: u64,
}

impl JournalReader {
    async fn follow(mut self, delay: Duration) {
        let mut changes = self.journal.0.changes.subscribe();
        loop {
            // A change after this line ends the wait below.
            changes.borrow_and_update();
            self.read_all();
            if changes.changed().await.is_err() {
                return;
            }
            sleep(delay).await;
        }
    }

    /// Pushes the entries that were not read yet.
    fn read_all(&mut self) {
        let entries = self.journal.lock();
        if self.epoch != entries.epoch {
            self.feed
                .gap(&Gap::new(GapReason::Epoch).resumed(entries.id(0)));
            (self.epoch, self.read) = (entries.epoch, 0);
        }
        if self.read < entries.removed {
            let gap = Gap::new(GapReason::Expired).missed(entries.removed - self.read);
            self.feed.gap(&gap.resumed(entries.id(entries.removed)));
            self.read = entries.removed;
        }
        for event in entries.events_after(self.read, usize::MAX) {
            self.feed.push(event).expect("ids are unique");
        }
        self.read = entries.last_number();
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}
