use std::{
    cmp::Ordering,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep, timeout};

use super::{
    page_cache::{PageReadError, PageResult},
    upstream::{Page, PageEvent, PageKey},
    upstream_reader::UpstreamReader,
};
use crate::{
    event::{EventId, GapReason, Item},
    random,
    source::TopicSet,
    sync::StoreWakerOutcome,
};

/// The resume of a returning client whose cursor is not in the log of a relay or a hub: the client reads pages from the upstream until the
/// log has its cursor.
///
/// # Invariant: no hole and no duplicate
/// The client has exactly the events up to `cursor`, as far as no gap was announced. A page begins after `cursor`, and each of its
/// events moves `cursor` on. The client continues with the log only at the position of `cursor` itself, and only if the log has
/// everything after it. So the events of the pages and those of the log together are the feed, in its order.
pub(crate) struct UpstreamResume<E> {
    upstream: Arc<UpstreamReader<E>>,
    /// The topics that are requested from the upstream. `None` stands for all topics.
    topics: Option<TopicSet>,
    cursor: EventId,
    page: Option<PagePosition<E>>,
    /// Whether the client has the gap that stands between `cursor` and the event after it. If the page is read anew, the gap is not sent
    /// again.
    is_gap_after_cursor_sent: bool,
    /// The number of events that the upstream may still look at for this client. An event counts when the client takes it from its page,
    /// so that a page that is read anew does not count twice.
    remaining_scan: usize,
    /// The position of the last gap of the feed when the cursor was last looked up.
    gap_position: u64,
    step: UpstreamResumeStep<E>,
}

/// The next step of an [`UpstreamResume`] that has no page to take events from.
enum UpstreamResumeStep<E> {
    /// Waits for the page after `id`, which says whether the upstream knows this id.
    Confirm {
        id: EventId,
        read: Pin<Box<dyn Future<Output = PageResult<E>> + Send>>,
    },
    /// Looks the cursor up in the log. The client continues with the log if the log has the cursor, and otherwise requests the next page.
    LookUp,
    /// Waits for a page.
    ReadPage(Pin<Box<dyn Future<Output = PageResult<E>> + Send>>),
    /// The upstream has no events after the cursor, and the log does not know the cursor, because the log lags behind the upstream. The
    /// client waits until the writer has pushed the event of the cursor. If the writer announces a gap, or the timer ends first, the client asks the
    /// upstream again, because the writer may have skipped this event.
    WaitForWriter(Pin<Box<Sleep>>),
}

/// The part of a page that the client has not got yet.
///
/// The cache owns the page, so that clients that do not read hold no memory. A page that the cache has dropped is read anew.
struct PagePosition<E> {
    page: Weak<Page<E>>,
    is_gap_sent: bool,
    /// The index of the next event.
    next: usize,
}

/// The log in which a client continues after an [`UpstreamResume`].
pub(crate) trait UpstreamResumeLog {
    type Event: PageEvent;
    /// The place at which a client continues in the log.
    type Start;

    /// Returns the place at which a client continues if it has every event up to `cursor`. Returns `None` if the log does not have every later
    /// event.
    fn start_after(&mut self, cursor: &EventId) -> Option<Self::Start>;

    /// Counts the lost cursor of a client, and returns the place at which the client continues with a gap.
    fn start_after_loss(&mut self, cursor: &EventId, reason: GapReason) -> Self::Start;

    /// Returns how the client's stream ends if the writer is gone and has pushed nothing after `position`.
    fn end_of_feed_at(&mut self, position: u64) -> Option<Self::Start>;

    /// Returns the position of the newest event that the writer has pushed.
    fn last_position(&self) -> u64;

    /// Returns the position of the last gap that the writer has announced; 0 if there was none.
    fn last_gap_position(&self) -> u64;

    /// Returns the id of the newest event that the writer has pushed, if it is known.
    fn last_id(&self) -> Option<EventId>;

    /// Stores the waker, unless the writer has pushed an event after `position` or is gone.
    fn store_waker_unless_pushed(&self, waker: &Waker, position: u64) -> StoreWakerOutcome;

    /// Returns the item for an event of a page. Returns `None` if the client does not get the event.
    fn item_for(&mut self, event: &Self::Event) -> Option<Item>;
}

/// The result of [`UpstreamResume::poll_next`].
pub(crate) enum UpstreamResumeOutcome<S> {
    /// The next item. If the client gets a gap, the caller counts the events that are missing.
    Item(Item),
    /// The client continues with the log.
    ReadLog(S),
    /// A page cannot be read now.
    Unavailable,
}

/// The time for which a client waits for a log that lags behind the upstream, before the client asks the upstream again.
const WAIT_FOR_WRITER_TIME: Duration = Duration::from_secs(5);

/// The maximum time that a client waits for the word of [`UpstreamResume::begin_if_known`]. The read goes on for the client's next attempt.
///
/// The time is shorter than that after which clients take a silent topic for one that has no first events: 5 s in the clients of this project.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(3);

impl<E: PageEvent> UpstreamResume<E> {
    pub(crate) fn new(
        upstream: Arc<UpstreamReader<E>>,
        topics: Option<TopicSet>,
        cursor: EventId,
    ) -> Self {
        Self {
            remaining_scan: upstream.limits().max_scan,
            upstream,
            topics,
            cursor,
            is_gap_after_cursor_sent: false,
            page: None,
            gap_position: 0,
            step: UpstreamResumeStep::LookUp,
        }
    }

    /// Lets the resume begin only if the upstream knows `id`: the cursor with which the client has returned, and which is after the cursor of the
    /// resume.
    pub(crate) fn begin_if_known(mut self, id: EventId) -> Self {
        let read = self.read_page_after(id.clone());
        let read = Box::pin(async {
            let result = timeout(CONFIRMATION_TIMEOUT, read).await;
            result.unwrap_or(Err(PageReadError::Unavailable))
        });
        self.step = UpstreamResumeStep::Confirm { id, read };
        self
    }

    fn read_page_after(
        &self,
        cursor: EventId,
    ) -> Pin<Box<dyn Future<Output = PageResult<E>> + Send>> {
        Box::pin(self.upstream.read_page(PageKey {
            after: cursor,
            topics: self.topics.clone(),
        }))
    }

    /// Waits until the upstream has said whether it knows the id of [`begin_if_known`](Self::begin_if_known). Returns how the resume ends if the
    /// upstream does not know it.
    pub(crate) fn poll_begin<L: UpstreamResumeLog<Event = E>>(
        &mut self,
        log: &mut L,
        cx: &mut Context<'_>,
    ) -> Poll<Option<UpstreamResumeOutcome<L::Start>>> {
        let UpstreamResumeStep::Confirm { id, read } = &mut self.step else {
            return Poll::Ready(None);
        };
        let result = ready!(read.as_mut().poll(cx));
        let id = id.clone();
        self.step = UpstreamResumeStep::LookUp;
        Poll::Ready(match page_after(&id, result) {
            Ok(_) => None,
            Err(error) => Some(end_without_page(&id, error, log)),
        })
    }

    /// Sets the topics of the next pages.
    #[cfg(feature = "json")]
    pub(crate) fn set_topics(&mut self, topics: Option<TopicSet>) {
        self.topics = topics;
    }

    /// Returns the cursor up to which the client has every event.
    #[cfg(feature = "json")]
    pub(crate) fn cursor(&self) -> &EventId {
        &self.cursor
    }

    /// Returns the next item of the pages, or where the client continues.
    pub(crate) fn poll_next<L: UpstreamResumeLog<Event = E>>(
        &mut self,
        log: &mut L,
        cx: &mut Context<'_>,
    ) -> Poll<UpstreamResumeOutcome<L::Start>> {
        loop {
            if let Some(item) = self.next_page_item(log) {
                return Poll::Ready(UpstreamResumeOutcome::Item(item));
            }
            match &mut self.step {
                UpstreamResumeStep::Confirm { .. } => {
                    if let Some(outcome) = ready!(self.poll_begin(log, cx)) {
                        return Poll::Ready(outcome);
                    }
                }
                UpstreamResumeStep::LookUp => {
                    self.gap_position = log.last_gap_position();
                    if let Some(start) = log.start_after(&self.cursor) {
                        return Poll::Ready(UpstreamResumeOutcome::ReadLog(start));
                    }
                    if self.remaining_scan == 0 {
                        return Poll::Ready(self.end_at_scan_limit(log));
                    }
                    let read = self.read_page_after(self.cursor.clone());
                    self.step = UpstreamResumeStep::ReadPage(read);
                }
                UpstreamResumeStep::ReadPage(read) => {
                    let result = ready!(read.as_mut().poll(cx));
                    self.step = UpstreamResumeStep::LookUp;
                    match page_after(&self.cursor, result) {
                        Ok(page) => self.start_page(&page),
                        Err(error) => {
                            return Poll::Ready(end_without_page(&self.cursor, error, log));
                        }
                    }
                }
                UpstreamResumeStep::WaitForWriter(recheck) => {
                    // The position is read before the log is searched, so that an event that the writer pushes after the search ends the wait.
                    let last_position = log.last_position();
                    if let Some(start) = log.start_after(&self.cursor) {
                        return Poll::Ready(UpstreamResumeOutcome::ReadLog(start));
                    }
                    if let Some(end) = log.end_of_feed_at(last_position) {
                        return Poll::Ready(UpstreamResumeOutcome::ReadLog(end));
                    }
                    let has_gap = log.last_gap_position() > self.gap_position;
                    if has_gap || recheck.as_mut().poll(cx).is_ready() {
                        self.step = UpstreamResumeStep::LookUp;
                    } else if log
                        .store_waker_unless_pushed(cx.waker(), last_position)
                        .is_stored()
                    {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Begins to read a page.
    fn start_page(&mut self, page: &Arc<Page<E>>) {
        let limits = self.upstream.limits();
        if page.is_end_of_feed(&self.cursor) {
            // The client now has every event of the upstream, so that the limit for missed events starts anew.
            self.remaining_scan = limits.max_scan;
            let wait = random::jittered(WAIT_FOR_WRITER_TIME, 0.2);
            self.step = UpstreamResumeStep::WaitForWriter(Box::pin(sleep(wait)));
            return;
        }
        self.page = Some(PagePosition {
            page: Arc::downgrade(page),
            is_gap_sent: self.is_gap_after_cursor_sent,
            next: 0,
        });
    }

    /// Returns the next item of the page, and moves the cursor.
    fn next_page_item(&mut self, log: &mut impl UpstreamResumeLog<Event = E>) -> Option<Item> {
        let position = self.page.as_mut()?;
        let Some(page) = position.page.upgrade() else {
            self.page = None;
            return None;
        };
        if !std::mem::replace(&mut position.is_gap_sent, true) {
            if let Some(gap) = &page.gap {
                let mut gap = gap.clone();
                gap.requested.get_or_insert_with(|| self.cursor.clone());
                let resumed = gap.resumed.as_ref().unwrap_or(&self.cursor).clone();
                self.is_gap_after_cursor_sent = resumed == self.cursor;
                self.cursor = resumed;
                return Some(Item::from(gap));
            }
        }
        while let Some(event) = page.events.get(position.next) {
            position.next += 1;
            self.remaining_scan = self.remaining_scan.saturating_sub(1);
            self.is_gap_after_cursor_sent = false;
            self.cursor = event.event().id().unwrap_or(&self.cursor).clone();
            if let Some(item) = log.item_for(event) {
                return Some(item);
            }
        }
        self.page = None;
        let scanned_to = page.scanned_to.clone().filter(|id| *id != self.cursor);
        if scanned_to.is_some() || page.events.is_empty() {
            // The page does not tell how many events the upstream has looked at, so the page counts as a full one.
            let full_page = self.upstream.limits().max_page_events;
            let uncounted = full_page.saturating_sub(page.events.len());
            self.remaining_scan = self.remaining_scan.saturating_sub(uncounted);
        }
        let scanned_to = scanned_to?;
        self.is_gap_after_cursor_sent = false;
        self.cursor = scanned_to.clone();
        Some(Item::Cursor(scanned_to))
    }

    /// Returns an id that is not before the end of the gap that the client has just got. Returns `None` if the cache has dropped the page.
    pub(crate) fn end_of_gap(&self) -> Option<EventId> {
        if !self.is_gap_after_cursor_sent {
            return Some(self.cursor.clone());
        }
        let page = self.page.as_ref()?.page.upgrade()?;
        let next = page.events.first().and_then(|event| event.event().id());
        next.or(page.scanned_to.as_ref()).cloned()
    }

    /// Ends the resume of a client that has read as many events of the upstream as it may, and whose cursor is still not in the log.
    fn end_at_scan_limit<L: UpstreamResumeLog<Event = E>>(
        &self,
        log: &mut L,
    ) -> UpstreamResumeOutcome<L::Start> {
        let compare_with_cursor = |id: &EventId| self.upstream.compare_ids(&self.cursor, id);
        // A log without an id has just begun, or restarted.
        let Some(last_id) = log.last_id() else {
            return UpstreamResumeOutcome::Unavailable;
        };
        let reason = match compare_with_cursor(&last_id) {
            // The log lags far behind the client. The client continues with its cursor when it returns.
            Some(Ordering::Greater) => return UpstreamResumeOutcome::Unavailable,
            Some(_) => GapReason::Expired,
            // The upstream can compare the cursor, but not with an id of the log: the feed was created anew.
            None if compare_with_cursor(&self.cursor).is_some() => GapReason::Epoch,
            None => GapReason::Expired,
        };
        UpstreamResumeOutcome::ReadLog(log.start_after_loss(&self.cursor, reason))
    }
}

/// Returns the page that was requested after `cursor`.
///
/// # Errors
/// Also if the page says that the events after the cursor are lost.
fn page_after<E: PageEvent>(cursor: &EventId, result: PageResult<E>) -> PageResult<E> {
    let page = result?;
    match page.reason_of_loss(cursor) {
        Some(reason) => Err(PageReadError::Lost(reason)),
        None => Ok(page),
    }
}

/// Ends the resume of a client that gets no page after `cursor`.
fn end_without_page<L: UpstreamResumeLog>(
    cursor: &EventId,
    error: PageReadError,
    log: &mut L,
) -> UpstreamResumeOutcome<L::Start> {
    match error {
        PageReadError::Lost(reason) => {
            UpstreamResumeOutcome::ReadLog(log.start_after_loss(cursor, reason))
        }
        PageReadError::Unavailable => UpstreamResumeOutcome::Unavailable,
    }
}
