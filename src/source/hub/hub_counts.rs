/// The number of topics that a [`Hub`](super::Hub) holds, of events that it has published, and of those that its subscribers did not
/// get.
///
/// ```
/// use tower_push::Hub;
///
/// let hub = Hub::new();
/// hub.publish("news", "hello")?;
/// assert_eq!((hub.counts().published, hub.counts().topics), (1, 1));
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubCounts {
    /// Topics that the hub holds now: those with subscribers, and those with events.
    pub topics: usize,
    /// Bytes that the events in all logs take, as [`HubBuilder::max_total_bytes`](super::HubBuilder::max_total_bytes) counts them.
    pub bytes: usize,
    /// Events published, with or without history. An event to several topics counts once. A publication whose idempotency key is known does
    /// not count.
    pub published: u64,
    /// Events that returning clients missed, because the hub no longer had them. An event counts once for each client that missed it. A gap
    /// whose number of missing events is not known adds nothing.
    pub missed_on_resume: u64,
    /// Events that connected subscribers missed, because the topic's log dropped the events before the subscriber read them. An event
    /// counts once for each subscriber that missed it.
    pub lagged: u64,
    /// Members of all topics now, on all nodes. A member of two topics counts twice.
    pub members: usize,
    /// Members with a connection to this node, or whose grace time on this node has not ended.
    pub members_here: usize,
    /// Gaps that the [writer](super::HubWriter) has announced. 0 in a hub without a backend, as are the counts that follow.
    pub feed_gaps: u64,
    /// Subscriptions for which the hub read the [backend](super::HubBackend), because its own logs did not have every event after the cursor.
    pub backend_resumes: u64,
    /// Calls of [`HubBackend::read_page`](super::HubBackend::read_page).
    pub backend_reads: u64,
    /// Calls of [`HubBackend::read_page`](super::HubBackend::read_page) that failed or took too long.
    pub failed_reads: u64,
    /// Resumes from the broker that ended in a gap, because the broker has lost the events after the cursor, or because these events were too many.
    pub lost_cursors: u64,
    /// Streams that ended because a page could not be read.
    pub unavailable: u64,
    /// Pages of the backend that are being read now, or wait for their turn.
    pub pending_reads: usize,
    /// Members of this node whose last change the broker has not confirmed yet: the queue of the `PresenceBackend`.
    pub pending_members: usize,
}
