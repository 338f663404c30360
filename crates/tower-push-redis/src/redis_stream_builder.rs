use std::{sync::Arc, time::Duration};

use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};
use tower_push::{
    EventId, Relay,
    source::{
        hub::{HubBuilder, MemberSnapshot},
        relay::{EventSink, RelayBuilder},
    },
};
use tower_push_proto::{feed_backoff::FeedBackoff, read_sizer::ReadSizer};

use crate::{
    connector::{Connector, SharedConnection},
    error::Error,
    hub_entry::HubSink,
    initial_entries::{InitialEntries, InitialEntriesLimits},
    log_end::LogEnd,
    reader_status::ReaderMetrics,
    redis_hub::RedisHub,
    redis_presence::read_members,
    redis_publisher::{PublisherConfig, RedisPublisher},
    redis_servers::RedisServers,
    redis_stream::RedisStream,
    redis_upstream::RedisUpstream,
    stream_backend::StreamBackend,
    stream_connection::StreamConnection,
    stream_cursor::StreamCursor,
    stream_reader::{EntrySink, StreamReader},
    stream_reads::read_sizer,
    trim_policy::TrimPolicy,
};

/// The configuration of a [`RedisStream`], from [`RedisStream::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// use tower_push_redis::{RedisServers, RedisStream};
///
/// # async fn example() -> Result<(), tower_push_redis::Error> {
/// let stream = RedisStream::builder(RedisServers::single("redis://127.0.0.1/")?, "events")
///     .max_log_events(10_000)
///     .max_len(1_000_000)
///     .max_age(Duration::from_secs(24 * 3600))
///     .connect_retry_time(Duration::from_secs(30))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct RedisStreamBuilder {
    servers: RedisServers,
    key: Arc<str>,
    relay: RelayBuilder,
    log_limits: InitialEntriesLimits,
    command_timeout: Duration,
    connect_retry_time: Duration,
    publisher: PublisherConfig,
}

impl RedisStreamBuilder {
    pub(crate) fn new(servers: RedisServers, key: Arc<str>) -> Self {
        Self {
            servers,
            key,
            relay: Relay::builder(),
            log_limits: InitialEntriesLimits {
                max_entries: 1024,
                max_bytes: 8 << 20,
            },
            command_timeout: Duration::from_secs(3),
            connect_retry_time: Duration::ZERO,
            publisher: PublisherConfig {
                trim: TrimPolicy::default(),
                max_event_len: 1 << 20,
                retry_time: Duration::ZERO,
                key_lifetime: Duration::from_secs(300),
            },
        }
    }

    /// Sets the maximum number of events that this process has in memory. The default is 1024. 0 is raised to 1.
    ///
    /// These events are read before [`connect`](Self::connect) returns. Clients whose cursor is older read the stream, in pages.
    pub fn max_log_events(mut self, events: usize) -> Self {
        self.log_limits.max_entries = events.max(1);
        self
    }

    /// Sets the maximum number of bytes of memory that the events take that this process has in memory. The default is 8 MiB. Bytes are counted as
    /// in a [relay](tower_push::source::relay::RelayBuilder::max_bytes): 480 bytes for each event, besides its payload, id, type and topic.
    pub fn max_log_bytes(mut self, bytes: usize) -> Self {
        self.log_limits.max_bytes = bytes;
        self
    }

    /// Sets the configuration of the [`Relay`], such as what it does with slow clients, where clients without a cursor begin, and the
    /// limits on pages. The relay's log limits, its `start_after` and its `upstream` are set by this builder.
    pub fn relay(mut self, relay: RelayBuilder) -> Self {
        self.relay = relay;
        self
    }

    /// Sets the number of entries to which a publication trims the stream, approximately. By default, the stream is not trimmed.
    ///
    /// The server removes whole blocks, of 100 entries by default, so that the stream can be longer.
    pub fn max_len(mut self, entries: u64) -> Self {
        self.publisher.trim.max_len = Some(entries);
        self
    }

    /// Sets the age beyond which a publication removes entries, approximately. By default, the stream is not trimmed.
    ///
    /// The age is measured with the server's clock, which gives the entries their ids. Entries are removed when something is published. If
    /// [`max_len`](Self::max_len) is set, too, one publication in 16 trims by age.
    ///
    /// If ids are ahead of the time, because the server's clock was, or because another program has added such an entry, Redis gives later entries
    /// ids that are ahead, too. No entry is removed for that: this machine's clock must also have reached the age. Entries with such ids stay
    /// until the time in their ids has come, so set `max_len`, too.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.publisher.trim.max_age = Some(age);
        self
    }

    /// Sets the maximum number of bytes of an event that is published: of its payload, type and topic. The default is 1 MiB.
    ///
    /// If this is more than the server's own limit (`proto-max-bulk-len`, by default 512 MiB), the lower limit applies, if the user has the
    /// permission `+config|get`. Without this permission, set a number below the server's limit: the server breaks a connection on which it gets
    /// a larger value, so that other publications at the same time may fail, too.
    pub fn max_event_len(mut self, bytes: usize) -> Self {
        self.publisher.max_event_len = bytes;
        self
    }

    /// Sets how long a publication is tried again while the server is not available. By default, a publication is tried once.
    pub fn publish_retry_time(mut self, time: Duration) -> Self {
        self.publisher.retry_time = time;
        self
    }

    /// Sets how long Redis remembers the key of [`publish_once`](RedisPublisher::publish_once). The default is 5 minutes.
    pub fn idempotency_lifetime(mut self, lifetime: Duration) -> Self {
        self.publisher.key_lifetime = lifetime;
        self
    }

    /// Sets the longest time that a connection attempt, or the answer to a command, may take. The default is 3 s.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// Sets how long [`connect`](Self::connect) tries again while the server is not available. By default, `connect` tries once.
    pub fn connect_retry_time(mut self, wait: Duration) -> Self {
        self.connect_retry_time = wait;
        self
    }

    /// Connects to the server, reads the newest events, and starts the reader of this process, which is a task of the current tokio runtime.
    ///
    /// # Errors
    /// An [`Error`] if the server is not available, refuses the user, is older than Redis 7.0, or has something else at the key. A stream that does
    /// not exist is created, if the user [may do so](crate#permissions).
    pub async fn connect(self) -> Result<RedisStream, Error> {
        let relay = self
            .relay
            .clone()
            .max_events(self.log_limits.max_entries)
            .max_bytes(self.log_limits.max_bytes);
        let build = |start, upstream| relay.start_after(start).upstream(upstream).build();
        let (relay, connection) = self.connect_with(build).await?;
        Ok(RedisStream::new(relay, connection))
    }

    /// Connects like [`connect`](Self::connect), and fills a [`Hub`](tower_push::Hub) instead of a [`Relay`]. `hub` has the limits of the topics' logs.
    /// [`relay`](Self::relay) has no effect.
    ///
    /// The newest [`max_log_events`](Self::max_log_events) events of the stream are in the hub before `connect_hub` returns. The hub of each server shows the
    /// same events, with the same ids. See [`RedisHub`].
    ///
    /// # Errors
    /// The same as those of [`connect`](Self::connect).
    pub async fn connect_hub(self, hub: HubBuilder) -> Result<RedisHub, Error> {
        let metrics = Arc::new(ReaderMetrics::new());
        let member_sizer = Arc::new(read_sizer());
        let sizer = member_sizer.clone();
        let build = |start, upstream, publisher, members| {
            let backend = StreamBackend::new(publisher, upstream, metrics.clone());
            let (mut writer, hub) = hub.build_with_presence(backend, start);
            if let Some(members) = members {
                writer.set_members(members);
            }
            (HubSink::new(writer, sizer, metrics.clone()), hub)
        };
        let connect = self.connect_sink(metrics.clone(), Some(&member_sizer), build);
        let (hub, connection) = connect.await?;
        Ok(RedisHub::new(hub, connection))
    }

    /// Like [`connect`](Self::connect), but fills a log of your own instead of a [`Relay`].
    ///
    /// `make_log` gets the id before the first event that the reader pushes, and the upstream that has older events. `make_log` returns the
    /// sink that the reader fills, and any value, which `connect_with` returns.
    ///
    /// ```no_run
    /// use tower_push::{Event, Gap};
    /// use tower_push_redis::{EventSink, RedisServers, RedisStream};
    ///
    /// struct Printer;
    ///
    /// impl EventSink for Printer {
    ///     fn push(&mut self, event: Event) {
    ///         println!("{:?}", event.payload());
    ///     }
    ///     fn gap(&mut self, gap: &Gap) {
    ///         println!("{gap:?}");
    ///     }
    /// }
    ///
    /// # async fn example() -> Result<(), tower_push_redis::Error> {
    /// let builder = RedisStream::builder(RedisServers::single("redis://127.0.0.1/")?, "events");
    /// let ((), connection) = builder.connect_with(|_start, _upstream| (Printer, ())).await?;
    /// connection.publisher().publish(&Event::text("hello")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The same as those of [`connect`](Self::connect).
    pub async fn connect_with<S: EventSink, T>(
        self,
        make_log: impl FnOnce(EventId, RedisUpstream) -> (S, T),
    ) -> Result<(T, StreamConnection), Error> {
        let make_log = |start, upstream, _publisher, _members| make_log(start, upstream);
        let metrics = Arc::new(ReaderMetrics::new());
        self.connect_sink(metrics, None, make_log).await
    }

    /// Connects, and fills a log. `member_sizer` has the sizes of the reads of a hub's members.
    async fn connect_sink<S: EntrySink, T>(
        self,
        metrics: Arc<ReaderMetrics>,
        member_sizer: Option<&ReadSizer>,
        make_log: impl FnOnce(EventId, RedisUpstream, RedisPublisher, Option<MemberSnapshot>) -> (S, T),
    ) -> Result<(T, StreamConnection), Error> {
        let connector = Connector::new(self.servers, self.key, self.command_timeout);
        let connector = Arc::new(connector);
        let limits = self.log_limits;
        let sizer = read_sizer();
        let (mut connection, members, initial) = connect_and_read_initial_entries(
            &connector,
            limits,
            &sizer,
            member_sizer,
            self.connect_retry_time,
        )
        .await?;
        let reads = Arc::new(SharedConnection::new(connector.clone()));
        let writes = Arc::new(SharedConnection::new(connector.clone()));
        let mut publisher = self.publisher;
        if let Some(max_bytes) = connector.max_value_bytes(&mut connection).await? {
            publisher.max_event_len = publisher.max_event_len.min(max_bytes);
        }
        let publisher = RedisPublisher::new(writes.clone(), publisher);
        let log_end = Arc::new(LogEnd::default());
        let upstream = RedisUpstream::new(reads.clone(), log_end.clone());
        let (sink, log) = make_log(initial.start.clone(), upstream, publisher.clone(), members);
        let mut reader = StreamReader::new(
            connector.clone(),
            sink,
            &initial,
            limits,
            sizer,
            metrics.clone(),
            [reads.clone(), writes],
        )
        .with_log_end(log_end);
        reader.push_initial_entries(initial);
        let task = tokio::spawn(reader.run(connection));
        Ok((log, StreamConnection::new(publisher, reads, metrics, task)))
    }
}

/// Connects, and reads the newest entries and the members of a hub. While the server is not available, tries again for the time `wait`.
async fn connect_and_read_initial_entries(
    connector: &Connector,
    limits: InitialEntriesLimits,
    sizer: &ReadSizer,
    member_sizer: Option<&ReadSizer>,
    wait: Duration,
) -> Result<
    (
        MultiplexedConnection,
        Option<MemberSnapshot>,
        InitialEntries,
    ),
    Error,
> {
    let ends_at = Instant::now() + wait;
    let mut backoff = FeedBackoff::default();
    loop {
        let connected = async {
            let mut connection = connector.connect().await?;
            // The initial entries must include all that are newer than the list of members. In the rare case that they do not, the list is read
            // again, after these entries.
            let mut members = None;
            if let Some(sizer) = member_sizer {
                members = Some(read_members(connector, &mut connection, sizer).await?);
            }
            let initial = InitialEntries::read(connector, &mut connection, limits, sizer).await?;
            if let (Some(sizer), Some(read)) = (member_sizer, &members)
                && is_before(read.last_id(), &initial.start)
            {
                members = Some(read_members(connector, &mut connection, sizer).await?);
            }
            Ok((connection, members, initial))
        };
        let delay = backoff.next_delay();
        match connected.await {
            Err(error) if Error::is_unavailable(&error) && Instant::now() + delay < ends_at => {
                sleep(delay).await;
            }
            result => return result,
        }
    }
}

/// Returns whether the entry of `id` is before the entry of `other`.
fn is_before(id: &EventId, other: &EventId) -> bool {
    let (id, other) = (StreamCursor::parse(id), StreamCursor::parse(other));
    id.zip(other).is_some_and(|(id, other)| id.id < other.id)
}
