use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tower_push::{
    EventId, Relay,
    source::{
        hub::HubBuilder,
        relay::{EventSink, RelayBuilder},
    },
};
use tower_push_proto::feed_backoff::FeedBackoff;

use crate::{
    api_response::{StreamConfig, StreamInfo, nanoseconds},
    error::Error,
    jetstream::JetStream,
    jetstream_hub::JetStreamHub,
    jetstream_publisher::JetStreamPublisher,
    jetstream_upstream::JetStreamUpstream,
    member_log::members_stream,
    nats_connection::NatsConnection,
    nats_servers::NatsServers,
    reader_status::ReaderMetrics,
    stream_api::StreamApi,
    stream_backend::{HubSink, StreamBackend},
    stream_connection::StreamConnection,
    stream_continuity::InitialEntriesLimits,
    stream_members::StreamMembers,
    stream_reader::{MessageSink, StreamReader, log_start_cursor},
    subject_mapping::SubjectMapping,
};

/// The configuration of a [`JetStream`], from [`JetStream::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// use tower_push_nats::{JetStream, NatsServers};
///
/// # async fn example() -> Result<(), tower_push_nats::Error> {
/// let stream = JetStream::builder(NatsServers::new("nats://127.0.0.1")?, "EVENTS")
///     .subject_prefix("events")
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
pub struct JetStreamBuilder {
    servers: NatsServers,
    stream: Arc<str>,
    subject_prefix: Option<String>,
    domain: Option<String>,
    relay: RelayBuilder,
    log_limits: InitialEntriesLimits,
    request_timeout: Duration,
    connect_retry_time: Duration,
    retry_time: Duration,
    new_stream: NewStream,
}

/// The stream that is created if it is missing.
#[derive(Clone, Debug)]
struct NewStream {
    is_created: bool,
    max_len: Option<u64>,
    max_age: Option<Duration>,
    replicas: usize,
    is_in_memory: bool,
    duplicate_window: Duration,
}

impl JetStreamBuilder {
    pub(crate) fn new(servers: NatsServers, stream: Arc<str>) -> Self {
        Self {
            servers,
            stream,
            subject_prefix: None,
            domain: None,
            relay: Relay::builder(),
            log_limits: InitialEntriesLimits {
                max_messages: 1024,
                max_bytes: 8 << 20,
            },
            request_timeout: Duration::from_secs(3),
            connect_retry_time: Duration::ZERO,
            retry_time: Duration::ZERO,
            new_stream: NewStream {
                is_created: true,
                max_len: None,
                max_age: None,
                replicas: 1,
                is_in_memory: false,
                duplicate_window: Duration::from_secs(300),
            },
        }
    }

    /// Sets the subject of events without a topic. The subject of an event with a topic is this prefix, a dot, and the topic: an event of the
    /// topic `orders.42` has the subject `events.orders.42` if the prefix is `events`. The default is the name of the stream.
    ///
    /// With an empty prefix, the topic is the subject. So with an empty prefix, a stream with any subjects can be read, and only events with a
    /// topic can be published.
    ///
    /// A topic is any text. In the subject, characters that have a meaning there, white space, and characters outside of ASCII are written as `%`
    /// and two hexadecimal digits.
    pub fn subject_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.subject_prefix = Some(prefix.into());
        self
    }

    /// Sets the JetStream domain of the stream, for programs that are connected to a leaf node. By default, the domain is that of the server.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Sets the maximum number of events that this process has in memory. The default is 1024. 0 is raised to 1.
    ///
    /// These events are read before [`connect`](Self::connect) returns. Clients whose cursor is older read the stream, in pages.
    pub fn max_log_events(mut self, events: usize) -> Self {
        self.log_limits.max_messages = events.max(1);
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

    /// Sets whether a missing stream is created: when this process connects, and when the reader finds that the stream was deleted. The default
    /// is `true`.
    ///
    /// The stream has the subjects of the [prefix](Self::subject_prefix) and allows direct reads. [`max_len`](Self::max_len),
    /// [`max_age`](Self::max_age), [`replicas`](Self::replicas), [`in_memory`](Self::in_memory) and
    /// [`idempotency_lifetime`](Self::idempotency_lifetime) are its other settings. These settings do not change a stream that exists.
    pub fn create_stream(mut self, is_created: bool) -> Self {
        self.new_stream.is_created = is_created;
        self
    }

    /// Sets the maximum number of messages of a stream that is created. By default, there is no limit.
    pub fn max_len(mut self, messages: u64) -> Self {
        self.new_stream.max_len = Some(messages);
        self
    }

    /// Sets the age at which the stream removes its messages, if this builder creates the stream. By default, there is no limit.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.new_stream.max_age = Some(age);
        self
    }

    /// Sets the number of servers that have a copy of the stream, if this builder creates the stream. The default is 1.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.new_stream.replicas = replicas;
        self
    }

    /// Sets whether the stream is in memory only, and lost when its servers stop, if this builder creates the stream. By default, the stream is
    /// in files.
    pub fn in_memory(mut self, is_in_memory: bool) -> Self {
        self.new_stream.is_in_memory = is_in_memory;
        self
    }

    /// Sets how long a stream that is created remembers the key of [`publish_once`](JetStreamPublisher::publish_once). The default is
    /// 5 minutes. The time is at most [`max_age`](Self::max_age).
    pub fn idempotency_lifetime(mut self, lifetime: Duration) -> Self {
        self.new_stream.duplicate_window = lifetime;
        self
    }

    /// Sets how long a publication is tried again while the server is not available. By default, a publication is tried once.
    pub fn publish_retry_time(mut self, time: Duration) -> Self {
        self.retry_time = time;
        self
    }

    /// Sets the longest time that a connection attempt, or the answer to a request, may take. The default is 3 s.
    ///
    /// A request without an answer fails. If the server sends nothing at all in this time, not even the answer to a PING, this process connects
    /// to another server, or to the same one again.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
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
    /// An [`Error`] if the server is not available, refuses the user, is older than NATS 2.11, or has no JetStream; or if the stream cannot be a
    /// feed, or is missing and is not created.
    pub async fn connect(self) -> Result<JetStream, Error> {
        let relay = self
            .relay
            .clone()
            .max_events(self.log_limits.max_messages)
            .max_bytes(self.log_limits.max_bytes);
        let build = |start, upstream| relay.start_after(start).upstream(upstream).build();
        let (relay, connection) = self.connect_with(build).await?;
        Ok(JetStream::new(relay, connection))
    }

    /// Connects like [`connect`](Self::connect), and fills a [`Hub`](tower_push::Hub) instead of a [`Relay`]. `hub` has the limits of the topics' logs.
    /// [`relay`](Self::relay) has no effect.
    ///
    /// The newest [`max_log_events`](Self::max_log_events) events of the stream are in the hub before `connect_hub` returns. The hub of each server shows the
    /// same events, with the same ids. See [`JetStreamHub`].
    ///
    /// # Errors
    /// The same as those of [`connect`](Self::connect).
    pub async fn connect_hub(self, hub: HubBuilder) -> Result<JetStreamHub, Error> {
        let node = self.connect_to_stream().await?;
        let members = Arc::new(self.stream_members(&node));
        // The description of the stream, with which the log begins, is older than the snapshot. So the log has all events after the snapshot.
        let read = match retry_until(node.ends_at, || members.read()).await {
            // A user without permission for the members can still follow the events.
            Err(error) if !error.is_unauthorized() && !error.is_wrong_stream() => {
                return Err(error);
            }
            read => read,
        };
        let publisher = node.publisher.clone();
        let metrics = node.metrics.clone();
        let build = |start, upstream| {
            let backend = StreamBackend::new(publisher, upstream, members.clone(), metrics.clone());
            let (writer, hub) = hub.build_with_presence(backend, start);
            (HubSink::new(writer, members, read, metrics), hub)
        };
        let (hub, connection) = node.start_reader(self.log_limits, build).await?;
        Ok(JetStreamHub::new(hub, connection))
    }

    /// Like [`connect`](Self::connect), but fills a log of your own instead of a [`Relay`].
    ///
    /// `make_log` gets the id before the first event that the reader pushes, and the upstream that has older events. `make_log` returns the
    /// sink that the reader fills, and any value, which `connect_with` returns.
    ///
    /// ```no_run
    /// use tower_push::{Event, Gap, source::relay::EventSink};
    /// use tower_push_nats::{JetStream, NatsServers};
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
    /// # async fn example() -> Result<(), tower_push_nats::Error> {
    /// let builder = JetStream::builder(NatsServers::new("nats://127.0.0.1")?, "events");
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
        make_log: impl FnOnce(EventId, JetStreamUpstream) -> (S, T),
    ) -> Result<(T, StreamConnection), Error> {
        let node = self.connect_to_stream().await?;
        node.start_reader(self.log_limits, make_log).await
    }

    /// Connects, and gets the description of the stream. Creates the stream if there is none.
    async fn connect_to_stream(&self) -> Result<StartingNode, Error> {
        let ends_at = Instant::now() + self.connect_retry_time;
        let (api, info) = retry_until(ends_at, || self.try_connect()).await?;
        let metrics = Arc::new(ReaderMetrics::new());
        let publisher = JetStreamPublisher::new(api.clone(), metrics.clone(), self.retry_time);
        Ok(StartingNode {
            api,
            info,
            metrics,
            publisher,
            ends_at,
        })
    }

    async fn try_connect(&self) -> Result<(Arc<StreamApi>, StreamInfo), Error> {
        let connection = NatsConnection::connect(&self.servers, self.request_timeout).await?;
        let prefix = self.subject_prefix.as_deref().unwrap_or(&self.stream);
        let subjects = SubjectMapping::new(prefix);
        let new_stream = self.new_stream.config(&self.stream, &subjects);
        let domain = self.domain.as_deref();
        let api = StreamApi::new(
            Arc::new(connection),
            self.stream.clone(),
            subjects,
            domain,
            new_stream,
        );
        let info = api.info_or_create().await?;
        Ok((Arc::new(api), info))
    }

    /// Returns the members of the hub whose events are in the stream. Their log has a stream of its own, which is created with the first member.
    fn stream_members(&self, node: &StartingNode) -> StreamMembers {
        let (name, subject) = members_stream(&self.stream);
        let subjects = SubjectMapping::new(&subject);
        let without_limits = NewStream {
            max_len: None,
            max_age: None,
            ..self.new_stream.clone()
        };
        let new_stream = without_limits.config(&name, &subjects);
        let api = StreamApi::new(
            node.api.connection.clone(),
            name.into(),
            subjects,
            self.domain.as_deref(),
            new_stream,
        );
        StreamMembers::new(node.api.clone(), api, &subject, node.publisher.clone())
    }
}

/// The parts of a node that connects, before its reader starts.
struct StartingNode {
    api: Arc<StreamApi>,
    info: StreamInfo,
    metrics: Arc<ReaderMetrics>,
    publisher: JetStreamPublisher,
    /// The time until which requests are tried again while the server is not available.
    ends_at: Instant,
}

impl StartingNode {
    /// Fills a log with the newest events, and starts the reader.
    async fn start_reader<S: MessageSink, T>(
        self,
        limits: InitialEntriesLimits,
        make_log: impl FnOnce(EventId, JetStreamUpstream) -> (S, T),
    ) -> Result<(T, StreamConnection), Error> {
        let Self {
            api,
            info,
            metrics,
            publisher,
            ends_at,
        } = self;
        let position = retry_until(ends_at, || log_start_cursor(&api, &info, limits)).await?;
        let upstream = JetStreamUpstream::new(api.clone(), metrics.clone());
        let (sink, log) = make_log(position.to_event_id(), upstream);
        let mut reader = StreamReader::new(api.clone(), sink, position, limits, metrics.clone());
        let consumer = reader.fill_log_until(ends_at).await?;
        let task = tokio::spawn(reader.run(consumer));
        Ok((log, StreamConnection::new(publisher, api, metrics, task)))
    }
}

impl NewStream {
    /// Returns the configuration for the JetStream API. Returns `None` if a missing stream is an error.
    fn config(&self, name: &str, subjects: &SubjectMapping) -> Option<StreamConfig> {
        let max_age = self.max_age.map_or(0, nanoseconds);
        let duplicate_window = nanoseconds(self.duplicate_window);
        self.is_created.then(|| StreamConfig {
            name: name.to_owned(),
            subjects: subjects.stream_subjects(),
            retention: "limits".to_owned(),
            storage: if self.is_in_memory { "memory" } else { "file" }.to_owned(),
            num_replicas: self.replicas,
            max_msgs: self
                .max_len
                .map_or(-1, |len| i64::try_from(len).unwrap_or(i64::MAX)),
            max_age,
            // The server refuses a window that is longer than the age.
            duplicate_window: match max_age {
                0 => duplicate_window,
                max_age => duplicate_window.min(max_age),
            },
            allow_direct: true,
        })
    }
}

/// Runs a request. While the server is not available, tries again until `ends_at`.
pub(crate) async fn retry_until<T, F: Future<Output = Result<T, Error>>>(
    ends_at: Instant,
    mut request: impl FnMut() -> F,
) -> Result<T, Error> {
    let mut backoff = FeedBackoff::default();
    loop {
        let result = request().await;
        let delay = backoff.next_delay();
        match result {
            Err(error) if error.is_unavailable() && Instant::now() + delay < ends_at => {
                sleep(delay).await;
            }
            result => return result,
        }
    }
}
