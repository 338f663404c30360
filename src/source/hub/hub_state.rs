use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    HubEvent,
    hub_broker::{FeedGap, HubBroker},
    hub_builder::HubConfig,
    idempotency_keys::PublicationKeyHasher,
    pattern_table::RequestedPattern,
    publish_options::PublishOptions,
    revocable_subscriptions::RevocableSubscriptions,
    topic_log::{
        HistoryEnd, MissedTopicEvents, ReaderOrdinals, ResolvedTopicStart, TopicLogEntry,
        TopicStart,
    },
    topic_state::{TopicEvent, TopicState},
    topic_table::{DeferredDrops, TopicIndexHint, TopicTable},
};
#[cfg(feature = "json")]
use super::{hub_presence::HubPresence, local_members::LocalMembers};
use crate::{
    Error,
    event::{Event, EventId, Item, Topic},
    source::{
        TopicSet,
        log::{Epoch, LogCounters, event_memory_len},
    },
    sync::{AtomicU64, Mutex, Ordering, lock},
};

/// The state that all clones of a hub, and all their subscribers, share.
///
/// # Invariant: a reader of several topics misses nothing
/// A publisher holds the lock of the table. The publisher appends the event to the logs of its topics, sets their last positions, and then
/// sets `published_position`. A reader first loads `published_position`, and reads no log beyond it. So the reader finds every event up to
/// this position, in whatever order it reads the logs.
///
/// # Invariant: no reader sleeps through an event
/// After it has set `published_position`, the publisher wakes the readers of the topics. A reader that finds no event stores its waker in the wait list of each of
/// its topics, and under the list's lock checks whether the topic has a published event. So the reader either sees the event or is
/// woken. A topic in a [flush window](crate::source::log::FlushWindow) wakes its readers later: a reader checks whether the topic has a
/// *flushed* event.
#[derive(Debug)]
pub(super) struct HubState {
    pub(super) config: HubConfig,
    /// The identity with which the ids of this hub's events begin. Not used if the hub has a broker.
    epoch: Epoch,
    /// `None` if the hub itself publishes the events, and gives ids to them.
    broker: Option<Box<HubBroker>>,
    created_at: Instant,
    pub(super) table: Mutex<TopicTable>,
    /// The position of the newest event that readers may read.
    pub(super) published_position: AtomicU64,
    pub(super) counters: LogCounters,
    pub(super) revocable_subscriptions: RevocableSubscriptions,
    publication_key_hasher: PublicationKeyHasher,
    #[cfg(feature = "json")]
    pub(super) presence: HubPresence,
}

/// A topic that a reader asks for.
#[derive(Clone, Debug)]
pub(super) struct RequestedTopic {
    pub(super) topic: Topic,
    pub(super) start: TopicStart,
    /// The maximum number of events from the topic's log.
    pub(super) max_history: Option<usize>,
}

/// A topic that a reader has joined.
#[derive(Debug)]
pub(super) struct JoinedTopic {
    pub(super) topic: Arc<TopicState>,
    pub(super) ordinals: ReaderOrdinals,
    pub(super) missed: Option<MissedTopicEvents>,
    /// The position of the first event that the reader will get from the log.
    pub(super) first_position: Option<u64>,
    /// The end of the events that the reader reads from the log. `None` if the reader gets all events of the topic from the log.
    pub(super) history_end: Option<HistoryEnd>,
    /// The position of the cursor from which the client resumes the topic. `None` if the client begins without a cursor.
    pub(super) resume_position: Option<u64>,
}

/// The result of [`HubState::join`].
#[derive(Debug)]
pub(super) struct JoinedTopics {
    pub(super) topics: Vec<JoinedTopic>,
    /// The position of the newest event of the hub when the topics were joined.
    pub(super) published_position: u64,
}

/// A cursor of this hub from which a client resumes.
#[derive(Debug)]
pub(super) struct HubCursor {
    pub(super) id: EventId,
    /// The position of the event with this id.
    pub(super) position: u64,
}

/// How many topics a hub has, and how many bytes their events have.
pub(super) struct HubSize {
    pub(super) topics: usize,
    /// The bytes of the events in the logs of all topics.
    pub(super) bytes: usize,
}

/// The reason why a reader cannot join a topic or a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinError {
    /// The hub is full of topics with subscribers.
    TooManyTopics,
    /// The hub has its maximum number of patterns with subscribers.
    TooManyPatterns,
    /// The hub allows no patterns.
    PatternsDisabled,
}

impl HubState {
    pub(super) fn new(config: HubConfig, broker: Option<Box<HubBroker>>) -> Self {
        #[cfg(feature = "json")]
        let presence = {
            let backend = broker.as_ref().and_then(|broker| broker.presence.as_ref());
            let has_events = config.publishes_presence();
            HubPresence::new(
                backend.map(|_| LocalMembers::new(config.presence.clone(), has_events)),
            )
        };
        Self {
            epoch: Epoch::random(),
            broker,
            created_at: Instant::now(),
            table: Mutex::new(TopicTable::new(&config)),
            published_position: AtomicU64::new(0),
            counters: LogCounters::default(),
            revocable_subscriptions: RevocableSubscriptions::default(),
            publication_key_hasher: PublicationKeyHasher::default(),
            #[cfg(feature = "json")]
            presence,
            config,
        }
    }

    /// Returns the time since the hub was created.
    pub(super) fn now(&self) -> Duration {
        self.created_at.elapsed()
    }

    #[inline]
    pub(super) fn broker(&self) -> Option<&HubBroker> {
        self.broker.as_deref()
    }

    /// Returns the last gap of the feed, if a reader at `position` has not passed it.
    #[inline]
    pub(super) fn feed_gap_after(&self, position: u64) -> Option<FeedGap> {
        self.broker.as_ref()?.gap_after(position)
    }

    /// Returns whether the hub has a broker, and its writer is gone.
    #[inline]
    pub(super) fn is_writer_gone(&self) -> bool {
        self.broker().is_some_and(HubBroker::is_writer_gone)
    }

    /// Returns the last item of an up-to-date client's stream, if the writer is gone.
    #[inline]
    pub(super) fn end_item_if_writer_gone(&self) -> Option<Item> {
        let broker = self.broker().filter(|broker| broker.is_writer_gone())?;
        let retry = broker.random_retry_delay();
        Some(Item::Ended { retry })
    }

    /// Returns the id of the event at `position`. Returns `None` if a broker has given the id, and the hub does not remember it.
    pub(super) fn id_at(&self, position: u64) -> Option<EventId> {
        match &self.broker {
            None => Some(self.epoch.event_id(position)),
            Some(broker) => broker.id_at(position),
        }
    }

    /// Returns the id of the newest event. If this id is not known, returns an id that no event has.
    pub(super) fn last_id(&self) -> EventId {
        let position = self.published_position();
        let id = self.id_at(position);
        id.unwrap_or_else(|| self.epoch.event_id(position))
    }

    /// Returns the position of the newest event that readers may read.
    #[inline]
    pub(super) fn published_position(&self) -> u64 {
        self.published_position.load(Ordering::Acquire)
    }

    /// Returns the position of the event to which this hub, or its publisher, has given this id. Returns `None` for an id of another hub, and
    /// for an id of a publisher that the hub does not remember.
    pub(super) fn position_of(&self, id: &EventId) -> Option<u64> {
        let position = match &self.broker {
            Some(broker) => broker.position_of(id)?,
            None => match self.epoch.position(id) {
                Some(position) => position,
                None => return lock(&self.table).publisher_ids.position_of(id),
            },
        };
        (position <= self.published_position()).then_some(position)
    }

    /// Returns the topics of the event to which its publisher has given this id. Returns `None` for an id that the hub has made itself, and for
    /// an id that the hub does not remember.
    pub(super) fn topics_of_publisher_id(&self, id: &EventId) -> Option<TopicSet> {
        lock(&self.table).publisher_ids.topics_of(id).cloned()
    }

    /// Returns whether a publisher can give its event this id: the id is no cursor that the library or this hub makes itself.
    fn allows_publisher_id(&self, id: &EventId) -> bool {
        !id.as_str().starts_with('~') && self.epoch.position(id).is_none()
    }

    /// Publishes an event to `topics`, at one position. The caller has checked that the hub has no broker.
    #[inline]
    pub(super) fn publish(
        &self,
        topics: &[Topic],
        event: Event,
        options: &PublishOptions,
    ) -> EventId {
        self.publish_under_lock(topics, None, event, options)
            .finish()
    }

    /// Returns an error if the events of the hub are published by a broker.
    pub(super) fn check_publishes_locally(&self) -> Result<(), Error> {
        match self.broker {
            None => Ok(()),
            Some(_) => Err(Error::wait_required()),
        }
    }

    /// Publishes an event. Waits until the broker has it, if the hub has a broker.
    pub(super) async fn publish_and_wait(
        &self,
        topics: TopicSet,
        event: Event,
        options: &PublishOptions,
    ) -> Result<EventId, Error> {
        let Some(broker) = &self.broker else {
            return Ok(self.publish(topics.as_slice(), event, options));
        };
        if options.id.is_some() {
            return Err(Error::publisher_id_unsupported());
        }
        let mut event = HubEvent::with_options(topics, event, options);
        event.is_ephemeral |= self.config.has_no_history();
        let key = options.idempotency_key.clone();
        broker.publisher.publish(event, key).await
    }

    /// Publishes an event like [`publish`](Self::publish), for a caller that holds a lock. The caller
    /// [finishes](UnfinishedPublication::finish) the publication after it has released the lock. `hint` is of the first topic.
    #[inline]
    pub(super) fn publish_under_lock(
        &self,
        topics: &[Topic],
        hint: Option<&TopicIndexHint>,
        event: Event,
        options: &PublishOptions,
    ) -> UnfinishedPublication {
        let key = options.idempotency_key.as_ref().map(|key| {
            let topics = TopicSet::new(topics.iter().cloned());
            self.publication_key_hasher.key_of(&topics, key)
        });
        let publisher_id = options.id.clone();
        let publisher_id = publisher_id.filter(|id| self.allows_publisher_id(id));
        let id_topics = publisher_id
            .is_some()
            .then(|| TopicSet::new(topics.iter().cloned()));
        // Copies are made before the table is locked.
        debug_assert!(!topics.is_empty(), "`Hub::publish` refuses an empty set");
        let [first_topic, other_topics @ ..] = topics else {
            return UnfinishedPublication::of_earlier_event(self.last_id());
        };
        let (first, copies) = copies_for_topics(event, first_topic, other_topics);
        let mut deferred_drops = DeferredDrops::default();
        let mut published = {
            let table = &mut *lock(&self.table);
            let now = self.now();
            if let Some(key) = key {
                if let Some(id) = table.idempotency_keys.id_of(key, now) {
                    return UnfinishedPublication::of_earlier_event(id);
                }
            }
            let position = table.allocate_position();
            let id = publisher_id.unwrap_or_else(|| self.epoch.event_id(position));
            let is_ephemeral = options.is_ephemeral || self.config.has_no_history();
            let mut appender = EventAppender {
                hub: self,
                table,
                topics,
                except: options.except.as_ref(),
                id: &id,
                now,
                deferred_drops: &mut deferred_drops,
                is_ephemeral,
                woken_patterns: Vec::new(),
            };
            let memory_len = event_memory_len(&first);
            let first_woken = appender.append(first_topic, hint, first);
            let mut others_woken = Vec::new();
            for (topic, event) in other_topics.iter().zip(copies) {
                others_woken.extend(appender.append(topic, None, event));
            }
            others_woken.append(&mut appender.woken_patterns);
            table.sweep(1, now, &self.config, &mut deferred_drops);
            if let Some(topics) = id_topics.filter(|_| !is_ephemeral) {
                table.publisher_ids.insert(id.clone(), position, topics);
            }
            if let Some(key) = key {
                table.idempotency_keys.insert(key, id.clone(), now);
            }
            self.published_position
                .store(table.last_position(), Ordering::Release);
            UnfinishedPublication {
                id,
                event: TopicEvent {
                    position: table.last_position(),
                    memory_len,
                },
                first_woken,
                others_woken,
                deferred_drops: DeferredDrops::default(),
            }
        };
        published.deferred_drops = deferred_drops;
        self.counters.add_appended();
        published
    }

    /// Joins topics: a reader of the topics gets every event that is published from now on. The caller drops `deferred_drops` when it holds no
    /// lock.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a topic or a pattern, or allows no patterns. The reader has joined nothing then.
    pub(super) fn join(
        &self,
        requests: &[RequestedTopic],
        patterns: &[RequestedPattern],
        deferred_drops: &mut DeferredDrops,
    ) -> Result<JoinedTopics, JoinError> {
        let table = &mut *lock(&self.table);
        let now = self.now();
        let published = table.last_position();
        let mut joined = Vec::with_capacity(requests.len());
        for request in requests {
            let index =
                table.get_or_insert(&request.topic, published, now, &self.config, deferred_drops);
            let topic = index.and_then(|index| table.add_subscriber(index, now));
            let Some(topic) = topic else {
                table.remove_reader(&joined, now, deferred_drops);
                return Err(JoinError::TooManyTopics);
            };
            table.trim_expired(&topic, now, &self.config, deferred_drops);
            let log = topic.log();
            let ResolvedTopicStart { ordinals, missed } = log.resolve_start(
                request.start,
                request.max_history,
                self.config.is_last_value,
            );
            let first_position = log.first_position_after(ordinals);
            drop(log);
            joined.push(JoinedTopic {
                topic,
                ordinals,
                missed,
                first_position,
                history_end: None,
                resume_position: request.start.resume_position(),
            });
        }
        for request in patterns {
            let config = &self.config;
            let result = table.join_pattern(request, config, now, &mut joined, deferred_drops);
            if let Err(error) = result {
                table.remove_reader(&joined, now, deferred_drops);
                return Err(error);
            }
        }
        Ok(JoinedTopics {
            topics: joined,
            published_position: published,
        })
    }

    /// Removes a reader from topics that it has joined.
    pub(super) fn leave<'a>(&self, topics: impl Iterator<Item = &'a TopicState>) {
        let mut deferred_drops = DeferredDrops::default();
        let table = &mut *lock(&self.table);
        let now = self.now();
        for topic in topics {
            if let Some(pattern) = topic.pattern() {
                table
                    .patterns
                    .remove_subscriber(pattern, &mut deferred_drops);
                continue;
            }
            table.remove_subscriber(topic, now, &mut deferred_drops);
        }
        table.sweep(1, now, &self.config, &mut deferred_drops);
    }

    /// Calls `inspect` with the topic, after its events that are too old were trimmed. Returns `None` if the hub does not hold the topic.
    pub(super) fn inspect_topic<T>(
        &self,
        name: &Topic,
        inspect: impl FnOnce(&TopicState, usize) -> T,
    ) -> Option<T> {
        let mut deferred_drops = DeferredDrops::default();
        let table = &mut *lock(&self.table);
        let topic = table.get(name)?.clone();
        table.trim_expired(&topic, self.now(), &self.config, &mut deferred_drops);
        Some(inspect(&topic, table.subscriber_count(topic.index)))
    }

    /// Returns the number of subscribers of each of these topics and patterns, which a reader has joined.
    #[cfg(feature = "server")]
    pub(super) fn subscriber_counts<'a>(
        &self,
        topics: impl Iterator<Item = &'a TopicState>,
    ) -> Vec<usize> {
        let table = lock(&self.table);
        let counts = topics.map(|topic| match topic.pattern() {
            Some(pattern) => table.patterns.subscriber_count(pattern),
            None => table.subscriber_count(topic.index),
        });
        counts.collect()
    }

    /// Returns the position of the newest event that a removed topic may have had; 0 if the topic has had no event.
    pub(super) fn last_position_of_removed(&self, name: &Topic) -> u64 {
        lock(&self.table).last_position_of_removed(name)
    }

    /// Ends the subscriptions to a topic, and to patterns that match the topic, for whose member key `is_revoked` returns true. Returns their number.
    pub(super) fn revoke(
        &self,
        name: &Topic,
        is_revoked: impl FnMut(Option<&str>) -> bool,
    ) -> usize {
        let count = self.revocable_subscriptions.revoke(name, is_revoked);
        if count > 0 {
            let logs: Vec<_> = {
                let table = lock(&self.table);
                let topic = table.get(name).cloned();
                topic
                    .into_iter()
                    .chain(table.patterns.logs_matching(name))
                    .collect()
            };
            logs.iter().for_each(|log| log.wake_readers());
        }
        count
    }

    /// Removes the topics that are idle and the events that are too old.
    pub(super) fn remove_idle_topics(&self) {
        let mut deferred_drops = DeferredDrops::default();
        let table = &mut *lock(&self.table);
        table.sweep(usize::MAX, self.now(), &self.config, &mut deferred_drops);
    }

    /// Returns the number of topics, and the bytes of the events in their logs.
    pub(super) fn size(&self) -> HubSize {
        let table = lock(&self.table);
        HubSize {
            topics: table.len(),
            bytes: table.memory_len(),
        }
    }
}

/// Copies an event for each of its topics. Copies are made before the hub's table is locked.
#[inline]
pub(super) fn copies_for_topics(
    event: Event,
    first_topic: &Topic,
    other_topics: &[Topic],
) -> (Event, Vec<Event>) {
    let others = other_topics.iter();
    let others = others
        .map(|topic| copy_for_topic(event.clone(), topic))
        .collect();
    (copy_for_topic(event, first_topic), others)
}

/// Returns the event with the name of one of its topics.
#[inline]
pub(super) fn copy_for_topic(event: Event, topic: &Topic) -> Event {
    event.with_event_topic(topic.clone())
}

/// Drops what a publication has removed. The new event is published already, so a panic while events are dropped must not reach the caller.
pub(super) fn drop_after_publication(deferred_drops: DeferredDrops) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(deferred_drops)));
}

/// A publication whose event is in the logs, and whose readers are not woken yet. The caller releases its lock, and then calls
/// [`finish`](Self::finish).
#[must_use = "readers that wait miss the event unless they are woken"]
pub(super) struct UnfinishedPublication {
    id: EventId,
    event: TopicEvent,
    /// The first topic of the event, if it has readers.
    first_woken: Option<Arc<TopicState>>,
    /// The other topics of the event that have readers.
    others_woken: Vec<Arc<TopicState>>,
    /// The events and topics that were removed to make room.
    deferred_drops: DeferredDrops,
}

impl UnfinishedPublication {
    /// Creates the result of a publication that has published nothing, and whose id is that of an earlier event.
    fn of_earlier_event(id: EventId) -> Self {
        Self {
            id,
            event: TopicEvent {
                position: 0,
                memory_len: 0,
            },
            first_woken: None,
            others_woken: Vec::new(),
            deferred_drops: DeferredDrops::default(),
        }
    }

    /// Wakes the readers of the event, and drops the events that were removed. The caller holds no lock. Returns the id of the event.
    #[inline]
    pub(super) fn finish(self) -> EventId {
        for topic in self.first_woken.iter().chain(&self.others_woken) {
            topic.on_published(self.event);
        }
        drop_after_publication(self.deferred_drops);
        self.id
    }
}

/// Appends one event to the logs of its topics and patterns, while the table is locked.
pub(super) struct EventAppender<'a> {
    pub(super) hub: &'a HubState,
    pub(super) table: &'a mut TopicTable,
    /// All topics of the event.
    pub(super) topics: &'a [Topic],
    /// The sender whose own subscribers do not get the event.
    pub(super) except: Option<&'a Arc<str>>,
    pub(super) id: &'a EventId,
    pub(super) now: Duration,
    pub(super) deferred_drops: &'a mut DeferredDrops,
    pub(super) is_ephemeral: bool,
    /// The logs of patterns whose readers must be woken.
    pub(super) woken_patterns: Vec<Arc<TopicState>>,
}

impl EventAppender<'_> {
    /// Appends the event to a topic. Returns the topic if its readers must be woken.
    pub(super) fn append(
        &mut self,
        name: &Topic,
        hint: Option<&TopicIndexHint>,
        event: Event,
    ) -> Option<Arc<TopicState>> {
        let position = self.table.last_position();
        let except = self.except.cloned();
        let event = match self.is_ephemeral {
            true => event.without_id(),
            false => event.with_event_id(self.id.clone()),
        };
        if !self.table.patterns.is_empty() {
            self.append_to_patterns(&event);
        }
        let config = &self.hub.config;
        if self.is_ephemeral {
            let topic = self.table.get(name)?.clone();
            if self.table.subscriber_count(topic.index) == 0 {
                return None;
            }
            let entry = TopicLogEntry::new(position, event, except, self.now);
            (self.table).append_ephemeral(&topic, entry, config, self.deferred_drops);
            return Some(topic);
        }
        let hinted = hint.and_then(|hint| self.table.index_by_hint(name, hint));
        let index = hinted.or_else(|| {
            let drops = &mut *self.deferred_drops;
            let index = (self.table).get_or_insert(name, position - 1, self.now, config, drops)?;
            hint.inspect(|hint| hint.set(index));
            Some(index)
        });
        let Some(index) = index else {
            self.table.record_lost_event(name, position);
            return None;
        };
        let entry = TopicLogEntry::new(position, event, except, self.now);
        (self.table).append(index, entry, config, self.now, self.deferred_drops)
    }

    /// Appends the event of a topic to the logs of the patterns that match the topic.
    fn append_to_patterns(&mut self, event: &Event) {
        let position = self.table.last_position();
        let new_entry = |event| {
            let except = self.except.cloned();
            TopicLogEntry::new(position, event, except, self.now)
        };
        let patterns = &self.table.patterns;
        let woken = patterns.append(
            self.topics,
            event,
            position,
            new_entry,
            self.is_ephemeral,
            self.deferred_drops,
        );
        self.woken_patterns.extend(woken);
    }
}
