use std::{cmp::Ordering, fmt, future::Future, pin::Pin};

use crate::{
    BoxError,
    event::{Event, EventId, Gap, GapReason, Topic},
    source::TopicSet,
};

/// The store behind a [`Relay`](super::Relay), which has older events than the relay's own log.
///
/// The relay reads a page of events when a client returns with a cursor that is not in the log.
///
/// # The cursor rule
/// An upstream accepts a cursor only if it knows which events came after the event with this id: the event is still in the store, or was
/// the newest one. If the store has another event at the place of this id, or no event, the upstream fails with [`UpstreamError::Lost`]: a
/// client that resumed from such an id would miss events without notice. An id must therefore name one event for good: no other event may get
/// the same id, even after the store was emptied.
///
/// ```
/// use tower_push::{
///     Event, GapReason,
///     source::relay::{Page, PageRequest, Upstream, UpstreamError},
/// };
///
/// /// A table whose rows are numbered from 1. The id of a row is its number.
/// struct Table(Vec<String>);
///
/// impl Upstream for Table {
///     async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
///         // A cursor that is no number of a row is of another table.
///         let read = request.after().as_str().parse::<usize>().ok().filter(|row| *row <= self.0.len());
///         let Some(read) = read else { return Err(UpstreamError::Lost(GapReason::Epoch)) };
///         let rows = self.0.iter().zip(1_u64..).skip(read).take(request.max_events());
///         let events = rows.map(|(text, row)| Event::text(text.as_str()).with_event_id(row.into()));
///         Ok(Page::new(events.collect()))
///     }
/// }
/// ```
pub trait Upstream: Send + Sync + 'static {
    /// Reads the events after [`PageRequest::after`], in the order of the feed. An empty page says that there are no such events yet.
    ///
    /// The future runs in a task of its own, and is dropped after [`UpstreamLimits::read_timeout`](super::UpstreamLimits::read_timeout).
    /// Clients that need the same page at the same time share one call.
    ///
    /// # Errors
    /// [`UpstreamError::Lost`] if the upstream does not know which events came after the cursor. [`UpstreamError::Failed`] if the upstream
    /// cannot answer now; the `?` operator makes this error from any other.
    fn read_page(
        &self,
        request: PageRequest,
    ) -> impl Future<Output = Result<Page, UpstreamError>> + Send;

    /// Compares the order of two events in the feed by their ids. Returns `None` if the ids do not show the order, as the default
    /// implementation does.
    ///
    /// The relay calls this function only for a client that has read [as many events as it may](super::UpstreamLimits::max_scan), and
    /// that would continue with the relay's log. If the client is ahead of the log, because the log lags behind the upstream, the log
    /// would repeat events. The relay then ends the client's stream, and the client returns later. If the result is `None`, the relay
    /// assumes that the client is behind the log. An upstream that compares ids returns `None` for ids of different feeds, for example before
    /// and after the feed was created anew: the client then gets a gap with the reason [`Epoch`](GapReason::Epoch).
    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let _ = (a, b);
        None
    }
}

/// A request of a [`Relay`](super::Relay) to its [`Upstream`] for one page of events.
///
/// ```
/// use tower_push::{Event, event::Topic, source::relay::PageRequest};
///
/// let news = Topic::new("news")?;
/// let request = PageRequest::new(7.into()).with_topics([news]).with_max_events(100);
/// assert_eq!((request.after().as_str(), request.max_events()), ("7", 100));
/// assert!(request.includes(&Event::text("x").with_topic("news")?));
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PageRequest {
    key: PageKey,
    max_events: usize,
    max_bytes: usize,
}

/// The cursor and the topics of a [`PageRequest`]. Clients with equal keys share a page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageKey {
    pub(super) after: EventId,
    pub(super) topics: Option<TopicSet>,
}

/// The bytes of memory that a topic of a key takes besides its text.
const TOPIC_OVERHEAD_LEN: usize = 32;

impl PageKey {
    /// Returns the bytes of memory that the topics take. A client can name many.
    pub(super) fn memory_len(&self) -> usize {
        let topics = self.topics.iter().flat_map(TopicSet::as_slice);
        topics
            .map(|topic| topic.as_str().len() + TOPIC_OVERHEAD_LEN)
            .sum()
    }
}

/// A part of the feed that a [`Relay`](super::Relay) has read from its [`Upstream`].
///
/// ```
/// use tower_push::{Event, EventId, Gap, GapReason, source::relay::Page};
///
/// let event = Event::text("the oldest that is left").with_id(41)?;
/// let page = Page::new(vec![event]).after_gap(Gap::new(GapReason::Expired).missed(33)).scanned_to(EventId::from(50));
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Page<E = Event> {
    pub(super) gap: Option<Gap>,
    pub(super) events: Vec<E>,
    pub(super) scanned_to: Option<EventId>,
}

/// An event of a [`Page`].
pub(crate) trait PageEvent: Send + Sync + 'static {
    /// The event, whose id is the cursor that resumes after it.
    fn event(&self) -> &Event;
}

impl PageEvent for Event {
    fn event(&self) -> &Event {
        self
    }
}

/// The error of [`Upstream::read_page`].
///
/// ```
/// use tower_push::source::relay::UpstreamError;
///
/// fn parse_number(text: &str) -> Result<u64, UpstreamError> {
///     Ok(text.parse()?)
/// }
/// assert!(matches!(parse_number("x"), Err(UpstreamError::Failed(_))));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The upstream cannot tell which events came after the cursor. The client gets a gap with this reason, and continues with the
    /// oldest event in the relay's log.
    Lost(GapReason),
    /// The upstream cannot answer now. The client's stream ends with the time after which the client should return; it then sends
    /// the same cursor again.
    Failed(BoxError),
}

impl PageRequest {
    /// Creates a request for the events of all topics after the event with the id `after`: at most 256 events and 1 MiB.
    pub fn new(after: EventId) -> Self {
        Self::from_key(PageKey {
            after,
            topics: None,
        })
    }

    pub(super) fn from_key(key: PageKey) -> Self {
        Self {
            key,
            max_events: 256,
            max_bytes: 1 << 20,
        }
    }

    /// Sets the topics whose events are requested.
    pub fn with_topics(mut self, topics: impl IntoIterator<Item = Topic>) -> Self {
        self.key.topics = Some(TopicSet::new(topics));
        self
    }

    /// Sets the maximum number of events.
    pub fn with_max_events(mut self, events: usize) -> Self {
        self.max_events = events.max(1);
        self
    }

    /// Sets the maximum number of bytes.
    pub fn with_max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Returns the cursor: the id of the last event that the client has.
    pub fn after(&self) -> &EventId {
        &self.key.after
    }

    /// Returns the topics whose events are requested. `None` stands for the events of all topics, and those without a topic.
    ///
    /// An upstream that cannot select by topic may return events of other topics: the relay does not send them.
    pub fn topics(&self) -> Option<&[Topic]> {
        self.key.topics.as_ref().map(TopicSet::as_slice)
    }

    /// Returns whether an event's topic is requested.
    pub fn includes(&self, event: &Event) -> bool {
        let topics = self.key.topics.as_ref();
        topics.is_none_or(|topics| topics.includes(event))
    }

    /// Returns the maximum number of events to look at. An upstream that looks at events of other topics, too, counts them, and says
    /// with [`Page::scanned_to`] how far it has come.
    pub fn max_events(&self) -> usize {
        self.max_events
    }

    /// Returns the number of bytes of payloads after which the page should end. The page has at least one event, however large.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

impl<E> Page<E> {
    /// Creates a page of events, in the order of the feed. Each event must have an id, which is the cursor that resumes after it.
    pub fn new(events: Vec<E>) -> Self {
        Self {
            gap: None,
            events,
            scanned_to: None,
        }
    }

    /// Sets a gap that the client gets before the page's events. An upstream that has lost only the first of the events after the cursor
    /// returns a page with a gap instead of [`UpstreamError::Lost`], so that the client gets the events that are left.
    ///
    /// The client must get a cursor after the gap: that of an event, the gap's [`resumed`](field@Gap::resumed), or
    /// [`scanned_to`](Self::scanned_to). A page that has a gap and none of these cursors is handled as `Lost`.
    pub fn after_gap(mut self, gap: Gap) -> Self {
        self.gap = Some(gap);
        self
    }

    /// Sets the cursor with which the next page is requested. By default, this cursor is the id of the page's last event. An upstream that
    /// has looked at later events, of other topics, sets the id of the last event that it has looked at.
    pub fn scanned_to(mut self, id: EventId) -> Self {
        self.scanned_to = Some(id);
        self
    }

    /// Returns the gap before the page's events, and the events. With this method, the task that has the [`RelayWriter`](super::RelayWriter) can read
    /// the store in pages, too, so that only the upstream checks cursors.
    ///
    /// ```
    /// use tower_push::source::relay::{RelayWriter, Page};
    ///
    /// fn push_page(page: Page, writer: &mut RelayWriter) {
    ///     let (gap, events) = page.into_parts();
    ///     gap.iter().for_each(|gap| writer.gap(gap));
    ///     for event in events {
    ///         // An event that the relay has already is not pushed twice.
    ///         let _ = writer.push(event);
    ///     }
    /// }
    /// ```
    pub fn into_parts(self) -> (Option<Gap>, Vec<E>) {
        (self.gap, self.events)
    }

    /// Returns whether the page says that there are no events after `cursor`.
    pub(super) fn is_end_of_feed(&self, cursor: &EventId) -> bool {
        let has_moved = self.scanned_to.as_ref().is_some_and(|id| id != cursor);
        self.events.is_empty() && self.gap.is_none() && !has_moved
    }

    /// Returns the reason of a gap after which the page has nothing: neither an event nor another cursor. A client that requested the next
    /// page after `cursor` would get this page again.
    pub(super) fn reason_of_loss(&self, cursor: &EventId) -> Option<GapReason> {
        let has_moved = |id: &Option<EventId>| id.as_ref().is_some_and(|id| id != cursor);
        let gap = self.gap.as_ref()?;
        let has_next = !self.events.is_empty() || has_moved(&gap.resumed);
        (!has_next && !has_moved(&self.scanned_to)).then_some(gap.reason)
    }
}

impl<E> Default for Page<E> {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// Makes [`UpstreamError::Failed`].
impl<E: Into<BoxError>> From<E> for UpstreamError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(reason) => {
                write!(f, "the events after the cursor are lost: {}", reason.name())
            }
            Self::Failed(error) => write!(f, "the upstream has failed: {error}"),
        }
    }
}

/// An upstream whose pages have events of the type `E`, as a trait object.
pub(crate) trait ErasedUpstream<E>: Send + Sync {
    fn read_page(
        &self,
        request: PageRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Page<E>, UpstreamError>> + Send + '_>>;

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering>;
}

impl<U: Upstream> ErasedUpstream<Event> for U {
    fn read_page(
        &self,
        request: PageRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Page, UpstreamError>> + Send + '_>> {
        Box::pin(Upstream::read_page(self, request))
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        Upstream::compare_ids(self, a, b)
    }
}
