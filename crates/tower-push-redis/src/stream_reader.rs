use std::{collections::VecDeque, sync::Arc, time::Duration};

use redis::{RedisResult, Value, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep, timeout};
use tower_push::{EventId, Gap, GapReason, source::relay::EventSink};
use tower_push_proto::{
    feed_backoff::FeedBackoff, fingerprint::Fingerprint, random, read_sizer::ReadSizer,
};

use crate::{
    connector::{Connector, SharedConnection, is_master},
    entry_id::EntryId,
    error::Error,
    initial_entries::{InitialEntries, InitialEntriesLimits},
    log_end::LogEnd,
    reader_status::ReaderMetrics,
    stream_continuity::{ReaderPosition, StreamContinuity, StreamSnapshot},
    stream_cursor::StreamCursor,
    stream_entry::StreamEntry,
    stream_reads::{
        MAX_RESPONSE_ENTRIES, ReadResponse, read_snapshot, run_sized_read, size_of_entries,
    },
};

/// The destination of the entries that a [`StreamReader`] reads: any [`EventSink`], or the writer of a hub.
pub(crate) trait EntrySink: Send + 'static {
    /// Appends the event of an entry. Entries come in the order of the stream, each once.
    fn push_entry(&mut self, entry: &StreamEntry);

    /// Reads what the sink needs before a gap is announced.
    fn before_gap(
        &mut self,
        connector: &Connector,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (connector, connection);
        async { Ok(()) }
    }

    /// Announces that entries are missing after the last one.
    fn gap(&mut self, gap: &Gap);

    /// Reads what the sink could not read before a gap, if it is time to try again. The sink has all entries that the reader has read.
    fn after_read(
        &mut self,
        connector: &Connector,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (connector, connection);
        async { Ok(()) }
    }
}

impl<S: EventSink> EntrySink for S {
    fn push_entry(&mut self, entry: &StreamEntry) {
        self.push(entry.to_event());
    }

    fn gap(&mut self, gap: &Gap) {
        EventSink::gap(self, gap);
    }
}

/// The one reader of a stream in this process: it pushes every entry into a sink, in order.
///
/// # Invariant: no hole and no duplicate
/// The sink has every entry up to `position`, except where a gap was announced. The reader pushes an entry only after the server has said
/// that the entry of `position` is still in the stream, or that nothing is missing in spite of its absence
/// ([`ReaderPosition::continuity`]). A stream is trimmed from its oldest entry on, so no entry is missing between `position` and the
/// entries that the server returns.
pub(crate) struct StreamReader<S> {
    connector: Arc<Connector>,
    sink: S,
    position: ReaderPosition,
    /// The cursor at which the sink's log ends. `None` if the log knows no cursor.
    log_cursor: Option<EventId>,
    /// The position and the cursor, for the upstream.
    log_end: Arc<LogEnd>,
    /// The entries that were read last. With these entries, the reader finds the position at which to continue after a failover that lost the
    /// newest entries.
    recent: VecDeque<(EntryId, Fingerprint)>,
    limits: InitialEntriesLimits,
    sizer: ReadSizer,
    metrics: Arc<ReaderMetrics>,
    /// The connections of the upstream and of the publisher. If the reader's connection breaks, these connections are probably broken, too.
    shared: [Arc<SharedConnection>; 2],
    backoff: FeedBackoff,
    /// The time at which the server last said that it is a master.
    role_checked_at: Instant,
}

/// The result of a read that waits for entries.
struct BlockingReadResult {
    /// The entries after the reader's position. Empty if there was none in time.
    entries: Vec<StreamEntry>,
    /// Whether the stream still has the last entry that the reader has read.
    has_position_entry: bool,
}

impl ReadResponse for BlockingReadResult {
    fn size(&self) -> (usize, usize) {
        size_of_entries(&self.entries)
    }
}

/// The time for which the server waits for an entry, before it answers that there is none.
const BLOCK_TIME: Duration = Duration::from_secs(5);

/// The least time after which the reader makes a new connection, so that it finds a master that has moved. The time is random.
const MIN_CONNECTION_AGE: Duration = Duration::from_secs(8 * 60);
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(12 * 60);

/// The number of entries in `recent`.
const MAX_RECENT: usize = 512;

impl<S: EntrySink> StreamReader<S> {
    /// Creates a reader that passes the entries after the position of `initial` to `sink`. The initial entries are pushed first, with
    /// [`push_initial_entries`](Self::push_initial_entries).
    pub(crate) fn new(
        connector: Arc<Connector>,
        sink: S,
        initial: &InitialEntries,
        limits: InitialEntriesLimits,
        sizer: ReadSizer,
        metrics: Arc<ReaderMetrics>,
        shared: [Arc<SharedConnection>; 2],
    ) -> Self {
        Self {
            connector,
            sink,
            position: initial.position,
            log_cursor: Some(initial.start.clone()),
            log_end: Arc::default(),
            recent: VecDeque::new(),
            limits,
            sizer,
            metrics,
            shared,
            backoff: FeedBackoff::default(),
            role_checked_at: Instant::now(),
        }
    }

    /// Sets where the reader tells the end of the sink's log.
    pub(crate) fn with_log_end(self, log_end: Arc<LogEnd>) -> Self {
        Self { log_end, ..self }
    }

    /// Pushes initial entries, which follow the sink's last event.
    pub(crate) fn push_initial_entries(&mut self, initial: InitialEntries) {
        self.push_all(&initial.entries);
        self.set_position(initial.position);
    }

    /// Follows the stream until this future is dropped, first with `connection` and later with new ones.
    pub(crate) async fn run(mut self, connection: MultiplexedConnection) {
        let mut next = Some(connection);
        loop {
            let result = match next.take() {
                Some(connection) => self.follow(connection).await,
                None => self.reconnect().await,
            };
            if let Err(error) = result {
                if error.is_unavailable() {
                    for connection in &self.shared {
                        connection.reconnect().await;
                    }
                }
                self.metrics.record_error(error);
                sleep(self.backoff.next_delay()).await;
            }
        }
    }

    async fn reconnect(&mut self) -> Result<(), Error> {
        let mut connection = self.connector.connect().await?;
        self.metrics.add_reconnect();
        self.role_checked_at = Instant::now();
        self.check_position(&mut connection, false).await?;
        self.follow(connection).await
    }

    /// Reads from one connection until it is old.
    async fn follow(&mut self, mut connection: MultiplexedConnection) -> Result<(), Error> {
        let age = random::duration_between(MIN_CONNECTION_AGE, MAX_CONNECTION_AGE);
        let renewed_at = Instant::now() + age;
        while Instant::now() < renewed_at {
            self.read_next(&mut connection).await?;
            let connector = &self.connector;
            self.sink.after_read(connector, &mut connection).await?;
            self.metrics.record_answer();
            self.backoff = FeedBackoff::default();
        }
        Ok(())
    }

    /// Waits for the next entries and pushes them.
    async fn read_next(&mut self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let read = self.read_blocking(connection).await?;
        if !read.has_position_entry {
            return self.check_position(connection, true).await;
        }
        self.push_all(&read.entries);
        Ok(())
    }

    /// Waits until there are entries after the position, at most for [`BLOCK_TIME`].
    ///
    /// The server executes a second command after the blocking read has returned. If the second command finds the entry of the position, this
    /// entry was in the stream during the blocking read, too.
    async fn read_blocking(
        &mut self,
        connection: &mut MultiplexedConnection,
    ) -> Result<BlockingReadResult, Error> {
        let sized = self.sizer.begin(MAX_RESPONSE_ENTRIES, usize::MAX);
        let key = self.connector.key();
        let position = self.position.id.to_string();
        let mut pipeline = redis::pipe();
        let read = pipeline.cmd("XREAD").arg("COUNT").arg(sized.max_entries());
        read.arg("BLOCK").arg(BLOCK_TIME.as_millis() as u64);
        read.arg("STREAMS").arg(key).arg(&position);
        let check = pipeline
            .cmd("XRANGE")
            .arg(key)
            .arg(&position)
            .arg(&position);
        check.arg("COUNT").arg(1);
        let is_role_due = self.role_checked_at.elapsed() >= BLOCK_TIME;
        if is_role_due {
            pipeline.cmd("ROLE");
        }
        pipeline.ignore_errors();

        let limit = BLOCK_TIME + self.connector.timeout();
        let position = self.position;
        let response = async {
            let responses = timeout(limit, pipeline.query_async(connection)).await;
            let responses: Vec<RedisResult<Value>> = responses.map_err(|_| Error::timeout())??;
            let mut responses = responses.into_iter();
            let mut next = || responses.next().ok_or_else(Error::unsupported);
            let entries = StreamEntry::parse_streams(next()??)?;
            let found = StreamEntry::parse_list(next()??)?;
            if is_role_due && !is_master(&next()??) {
                return Err(Error::not_master());
            }
            Ok(BlockingReadResult {
                entries,
                has_position_entry: found.iter().any(|entry| position.is_at_entry(entry)),
            })
        };
        // The wait for an entry makes an answer late, so the size grows only while there are entries at once.
        let result = run_sized_read(sized, self.connector.timeout(), response).await?;
        if is_role_due {
            self.role_checked_at = Instant::now();
        }
        Ok(result)
    }

    /// Announces a gap if entries are missing after the position, and pushes the entries after the position.
    async fn check_position(
        &mut self,
        connection: &mut MultiplexedConnection,
        is_connected_since: bool,
    ) -> Result<(), Error> {
        let sized = self.sizer.begin(MAX_RESPONSE_ENTRIES, usize::MAX);
        let connector = &self.connector;
        // The entry of the position is read, too.
        let max_entries = sized.max_entries() + 1;
        let read = read_snapshot(connection, connector.key(), self.position.id, max_entries);
        let read = connector.with_timeout(read);
        let snapshot = run_sized_read(sized, connector.timeout(), read).await?;
        match self.position.continuity(&snapshot, is_connected_since) {
            StreamContinuity::Intact => {}
            StreamContinuity::Trimmed { missed } => {
                self.sink.before_gap(&self.connector, connection).await?;
                self.metrics.add_trimmed();
                let mut gap = Gap::new(GapReason::Expired);
                gap.missed = missed;
                if snapshot.entries.is_empty() {
                    // Clients continue at the end of the stream, so that they do not get the gap again when they return.
                    let end = ReaderPosition::at_end_without_entry(snapshot.info.as_ref());
                    gap = gap.resumed(StreamCursor::without_entry(end.id).to_event_id());
                }
                self.announce_gap(&gap);
                // `entries_added` becomes the number of entries that were added before the first entry of the stream.
                let info = snapshot.info.unwrap_or_default();
                self.position.entries_added = info.entries_added.saturating_sub(info.length);
            }
            StreamContinuity::Replaced => return self.resume_in_replaced_stream(connection).await,
        }
        self.push_snapshot(snapshot);
        self.metrics.record_answer();
        Ok(())
    }

    /// Pushes the entries of a snapshot that are after the position.
    fn push_snapshot(&mut self, snapshot: StreamSnapshot) {
        let mut entries = snapshot.entries;
        entries.retain(|entry| entry.id > self.position.id);
        self.push_all(&entries);
        if let (Some(info), true) = (snapshot.info, snapshot.is_complete) {
            // Entries that were deleted before the reader could read them count as read, too.
            let is_at_end = self.position.id == info.last_generated_id;
            self.set_position(match is_at_end {
                true => ReaderPosition {
                    entries_added: info.entries_added,
                    ..self.position
                },
                false => ReaderPosition::at_end_without_entry(Some(&info)),
            });
        }
    }

    /// Announces a gap, and continues in a stream that is not the one that was read up to the position. If a failover has lost only the newest
    /// entries, the reader continues after the newest entry that it has read and that the stream still has. Otherwise it continues with the newest
    /// entries of the stream.
    async fn resume_in_replaced_stream(
        &mut self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        self.sink.before_gap(&self.connector, connection).await?;
        let initial = InitialEntries::read(&self.connector, connection, self.limits, &self.sizer);
        let mut initial = initial.await?;
        let known = initial
            .entries
            .iter()
            .rposition(|entry| self.is_recently_read(entry));
        // The number of recent entries that are still in the stream.
        let mut known_recent = 0;
        if let Some(known) = known {
            let newer = initial.entries.split_off(known + 1);
            if let Some(entry) = initial.entries.pop() {
                let mut recent = self.recent.iter();
                let lost = recent.position(|(id, _)| *id > entry.id);
                known_recent = lost.unwrap_or(self.recent.len());
                initial.start = entry.event_id();
            }
            initial.entries = newer;
        }
        self.metrics.add_replaced();
        let gap = Gap::new(GapReason::Epoch).resumed(initial.start.clone());
        self.announce_gap(&gap);
        // The recent entries that the stream still has are kept: after another failover, the reader may have to go further back.
        self.recent.truncate(known_recent);
        self.push_initial_entries(initial);
        Ok(())
    }

    /// Announces a gap. The log ends at the gap's `resumed`.
    fn announce_gap(&mut self, gap: &Gap) {
        self.log_end.forget_cursor();
        self.sink.gap(gap);
        self.log_cursor = gap.resumed.clone();
    }

    /// Returns whether the reader has read this entry recently.
    fn is_recently_read(&self, entry: &StreamEntry) -> bool {
        let mut recent = self.recent.iter().rev();
        let found = recent.find(|(id, _)| *id == entry.id);
        found.is_some_and(|(_, fingerprint)| *fingerprint == entry.fingerprint())
    }

    /// Pushes the entries after the position, and moves the position.
    fn push_all(&mut self, entries: &[StreamEntry]) {
        let Some(last) = entries.last() else {
            return;
        };
        for entry in entries {
            if self.recent.len() >= MAX_RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back((entry.id, entry.fingerprint()));
            self.sink.push_entry(entry);
            let entries_added = self.position.entries_added + 1;
            self.position = ReaderPosition::after(entry, entries_added);
        }
        self.log_cursor = Some(last.event_id());
        let read = entries.len() as u64;
        self.metrics.add_read(read);
        self.set_position(self.position);
    }

    fn set_position(&mut self, position: ReaderPosition) {
        self.position = position;
        self.log_end.set(position.id, self.log_cursor.clone());
        let added = position.entries_added;
        self.metrics.set_position(added);
    }
}
