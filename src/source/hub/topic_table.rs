use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    evicted_topics::EvictedTopics,
    hub_builder::HubConfig,
    idempotency_keys::IdempotencyKeys,
    pattern_table::PatternTable,
    publisher_ids::PublisherIds,
    topic_log::{TopicLog, TopicLogEntry},
    topic_pattern::TopicPattern,
    topic_state::TopicState,
};
use crate::event::{Event, Topic};

/// The topics of a hub, and the order of its events. All changes happen under one lock, which the owner holds.
///
/// # Invariant: a topic with a subscriber is never removed
/// Subscribers are counted under the same lock under which topics are removed. So a topic that a reader has joined is the topic that publishers
/// find.
#[derive(Debug)]
pub(super) struct TopicTable {
    indexes: HashMap<Topic, usize>,
    slots: Vec<Option<TopicSlot>>,
    /// The indexes of the empty slots.
    free: Vec<usize>,
    /// The indexes of topics without subscribers, and the times at which these topics were last used when they were queued. Topics that got
    /// subscribers since, and slots that are used anew, are in the queue too.
    idle_queue: VecDeque<(usize, Duration)>,
    /// The index of the slot that [`sweep`](Self::sweep) visits next.
    sweep_index: usize,
    /// The position of the newest event of the hub.
    last_position: u64,
    memory: LogsMemory,
    evicted: EvictedTopics,
    pub(super) idempotency_keys: IdempotencyKeys,
    pub(super) patterns: PatternTable,
    pub(super) publisher_ids: PublisherIds,
}

/// A topic in a [`TopicTable`].
#[derive(Debug)]
struct TopicSlot {
    topic: Arc<TopicState>,
    subscribers: usize,
    /// The time at which an event was last published to the topic, or a subscriber came or left.
    last_used_at: Duration,
    /// Whether the slot's index is in [`TopicTable::idle_queue`].
    is_queued: bool,
}

/// The memory of the logs of all topics.
#[derive(Debug, Default)]
struct LogsMemory {
    /// The sum of [`TopicLog::memory_len`].
    retained_len: usize,
    /// The sum of [`TopicLog::ephemeral_memory_len`].
    ephemeral_len: usize,
}

/// The index at which a topic was last found in a [`TopicTable`], so that a publication needs no search by name. The topic may have another index
/// since, or be removed.
#[derive(Debug, Default)]
pub(super) struct TopicIndexHint(AtomicUsize);

/// The events and topics that were removed from a [`TopicTable`]. The caller drops them outside of the lock of the table, because dropping a
/// payload can run its owner's code.
#[derive(Debug, Default)]
pub(super) struct DeferredDrops {
    pub(super) events: Vec<Event>,
    pub(super) topics: Vec<Arc<TopicState>>,
}

/// The events without history take at most this part of the hub's bytes besides: one eighth.
const EPHEMERAL_SHARE: usize = 8;

impl LogsMemory {
    /// Changes the log of a topic, and counts the change.
    #[inline]
    fn change(&mut self, topic: &TopicState, change: impl FnOnce(&mut TopicLog)) {
        let mut log = topic.log_for_writing();
        let (retained, ephemeral) = (log.memory_len(), log.ephemeral_memory_len());
        change(&mut log);
        self.retained_len = self.retained_len - retained + log.memory_len();
        self.ephemeral_len = self.ephemeral_len - ephemeral + log.ephemeral_memory_len();
    }
}

impl TopicIndexHint {
    pub(super) fn set(&self, index: usize) {
        self.0.store(index, Ordering::Relaxed);
    }
}

impl Clone for TopicIndexHint {
    fn clone(&self) -> Self {
        Self(AtomicUsize::new(self.0.load(Ordering::Relaxed)))
    }
}

impl TopicTable {
    pub(super) fn new(config: &HubConfig) -> Self {
        Self {
            indexes: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            idle_queue: VecDeque::new(),
            sweep_index: 0,
            last_position: 0,
            memory: LogsMemory::default(),
            evicted: EvictedTopics::new(config.max_evicted_topics, config.max_patterns > 0),
            patterns: PatternTable::new(config.max_patterns),
            publisher_ids: PublisherIds::new(config.max_publisher_ids),
            idempotency_keys: IdempotencyKeys::new(
                config.max_idempotency_keys,
                config.idempotency_lifetime,
            ),
        }
    }

    /// Returns the position of the newest event.
    pub(super) fn last_position(&self) -> u64 {
        self.last_position
    }

    /// Returns the next position, and counts it as used.
    pub(super) fn allocate_position(&mut self) -> u64 {
        self.last_position += 1;
        self.last_position
    }

    pub(super) fn len(&self) -> usize {
        self.indexes.len()
    }

    pub(super) fn memory_len(&self) -> usize {
        self.memory.retained_len + self.memory.ephemeral_len
    }

    pub(super) fn get(&self, topic: &Topic) -> Option<&Arc<TopicState>> {
        let index = *self.indexes.get(topic)?;
        self.slot(index).map(|slot| &slot.topic)
    }

    /// Returns all topics.
    pub(super) fn topics(&self) -> impl Iterator<Item = (&Topic, &Arc<TopicState>)> {
        let indexes = self.indexes.iter();
        indexes.filter_map(|(name, index)| Some((name, &self.slot(*index)?.topic)))
    }

    /// Returns the index of the topic if the hint is right.
    pub(super) fn index_by_hint(&self, topic: &Topic, hint: &TopicIndexHint) -> Option<usize> {
        let index = hint.0.load(Ordering::Relaxed);
        let hinted = self.slot(index)?.topic.topic_name();
        (hinted == Some(topic)).then_some(index)
    }

    fn slot(&self, index: usize) -> Option<&TopicSlot> {
        self.slots.get(index)?.as_ref()
    }

    fn slot_mut(&mut self, index: usize) -> Option<&mut TopicSlot> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// Returns the number of subscribers of the topic at `index`.
    pub(super) fn subscriber_count(&self, index: usize) -> usize {
        self.slot(index).map_or(0, |slot| slot.subscribers)
    }

    /// Returns the index of the topic, and creates the topic if it does not exist. Returns `None` if the table is full of topics with
    /// subscribers. `last_position` is an upper bound for the position of the last event of an earlier log of the topic.
    pub(super) fn get_or_insert(
        &mut self,
        name: &Topic,
        last_position: u64,
        now: Duration,
        config: &HubConfig,
        deferred_drops: &mut DeferredDrops,
    ) -> Option<usize> {
        if let Some(index) = self.indexes.get(name) {
            return Some(*index);
        }
        self.sweep(2, now, config, deferred_drops);
        if self.indexes.len() >= config.max_topics && !self.evict_idle_topic(deferred_drops) {
            return None;
        }
        let index = self.free.pop().unwrap_or(self.slots.len());
        // For a forgotten topic, `last_position` returns an upper bound, which may be the position of the event that is being published.
        let lost_position = self.evicted.last_position(name).min(last_position);
        let log = TopicLog::new(lost_position);
        let slot = Some(TopicSlot {
            topic: TopicState::new(name.clone(), index, log, config),
            subscribers: 0,
            last_used_at: now,
            is_queued: false,
        });
        if index == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.slots[index] = slot;
        }
        self.indexes.insert(name.clone(), index);
        self.queue_if_idle(index);
        Some(index)
    }

    /// Appends an event to the log of the topic at `index`, and trims the logs to the hub's limits. Returns the topic if it has subscribers,
    /// which must be woken.
    pub(super) fn append(
        &mut self,
        index: usize,
        entry: TopicLogEntry,
        config: &HubConfig,
        now: Duration,
        deferred_drops: &mut DeferredDrops,
    ) -> Option<Arc<TopicState>> {
        let slot = self.slots.get_mut(index)?.as_mut()?;
        let position = entry.position;
        self.memory.change(&slot.topic, |log| {
            log.append(entry, &config.topic_limits, &mut deferred_drops.events);
        });
        slot.topic.set_last_position(position);
        slot.last_used_at = now;
        let woken = (slot.subscribers > 0).then(|| slot.topic.clone());
        if self.memory.retained_len > config.max_total_bytes {
            self.trim_to_max_total_bytes(index, config, deferred_drops);
        }
        woken
    }

    /// Appends an event without history to the log of a topic with subscribers. The events without history of all topics together have a share of
    /// the hub's bytes, so that they do not displace history. The topic keeps this event.
    pub(super) fn append_ephemeral(
        &mut self,
        topic: &TopicState,
        entry: TopicLogEntry,
        config: &HubConfig,
        deferred_drops: &mut DeferredDrops,
    ) {
        topic.set_last_position(entry.position);
        self.memory.change(topic, |log| {
            log.append_ephemeral(entry, &mut deferred_drops.events);
        });
        let max_bytes = config.max_total_bytes / EPHEMERAL_SHARE;
        let mut visits_without_effect = 0;
        while self.memory.ephemeral_len > max_bytes && visits_without_effect < self.slots.len() {
            visits_without_effect += 1;
            let index = self.next_sweep_index();
            let Some(visited) = self.slot(index).map(|slot| slot.topic.clone()) else {
                continue;
            };
            let before = self.memory.ephemeral_len;
            self.memory.change(&visited, |log| {
                let is_published = index == topic.index;
                log.trim_older_half_of_ephemeral(is_published, &mut deferred_drops.events);
            });
            if self.memory.ephemeral_len < before {
                visits_without_effect = 0;
            }
        }
    }

    /// Returns the position of the newest event that a topic outside of the table may have had; 0 if the topic has had no event.
    pub(super) fn last_position_of_removed(&self, topic: &Topic) -> u64 {
        self.evicted.last_position(topic)
    }

    /// Returns the position of the newest event that a topic outside of the table which matches the pattern may have had; 0 if there was no
    /// such event.
    pub(super) fn last_position_of_removed_matching(&self, pattern: &TopicPattern) -> u64 {
        let is_removed = |topic: &Topic| !self.indexes.contains_key(topic);
        let matches = |topic: &Topic| pattern.matches(topic) && is_removed(topic);
        self.evicted.last_position_matching(matches)
    }

    /// Records the position of an event that is lost, because the table has no room for its topic.
    pub(super) fn record_lost_event(&mut self, topic: &Topic, position: u64) {
        self.evicted.insert(topic, position);
    }

    /// Adds a subscriber to the topic at `index`, and returns the topic.
    pub(super) fn add_subscriber(
        &mut self,
        index: usize,
        now: Duration,
    ) -> Option<Arc<TopicState>> {
        let slot = self.slot_mut(index)?;
        slot.subscribers += 1;
        slot.last_used_at = now;
        Some(slot.topic.clone())
    }

    /// Removes a subscriber, and the topic if it has no other subscriber and no event.
    pub(super) fn remove_subscriber(
        &mut self,
        topic: &TopicState,
        now: Duration,
        deferred_drops: &mut DeferredDrops,
    ) {
        let Some(slot) = self.slot_mut(topic.index) else {
            return;
        };
        slot.subscribers -= 1;
        slot.last_used_at = now;
        if slot.subscribers > 0 {
            return;
        }
        let dropped = &mut deferred_drops.events;
        self.memory.change(topic, |log| log.drop_ephemeral(dropped));
        let is_empty = topic.log().is_empty();
        match is_empty {
            true => self.evict_topic(topic.index, deferred_drops),
            false => self.queue_if_idle(topic.index),
        }
    }

    /// Visits at most `max_visits` topics. Removes the events of the visited topics that are too old, and then those visited topics that have no
    /// subscriber and are idle or empty. Successive calls visit all topics in turn.
    pub(super) fn sweep(
        &mut self,
        max_visits: usize,
        now: Duration,
        config: &HubConfig,
        deferred_drops: &mut DeferredDrops,
    ) {
        for _ in 0..max_visits.min(self.slots.len()) {
            let index = self.next_sweep_index();
            let Some(slot) = self.slot(index) else {
                continue;
            };
            let is_idle = now.saturating_sub(slot.last_used_at) > config.idle_timeout;
            let is_unused = slot.subscribers == 0 && is_idle;
            // A topic without subscribers has events, unless they expire. So only the slots are visited if events do not expire.
            let is_empty = config.topic_limits.max_age.is_some() && {
                let topic = slot.topic.clone();
                self.trim_expired(&topic, now, config, deferred_drops)
            };
            if is_unused || (is_empty && self.subscriber_count(index) == 0) {
                self.evict_topic(index, deferred_drops);
            }
        }
    }

    fn next_sweep_index(&mut self) -> usize {
        let index = match self.sweep_index < self.slots.len() {
            true => self.sweep_index,
            false => 0,
        };
        self.sweep_index = index + 1;
        index
    }

    /// Trims the topic's events that are too old. Returns whether the topic has no event.
    pub(super) fn trim_expired(
        &mut self,
        topic: &TopicState,
        now: Duration,
        config: &HubConfig,
        deferred_drops: &mut DeferredDrops,
    ) -> bool {
        if config.topic_limits.max_age.is_none() {
            return topic.log().is_empty();
        }
        let trimmed = &mut deferred_drops.events;
        self.memory.change(topic, |log| {
            log.trim_expired(&config.topic_limits, now, trimmed);
        });
        topic.log().is_empty()
    }

    /// Queues the topic at `index` for [`evict_idle_topic`](Self::evict_idle_topic) if it has no subscriber.
    fn queue_if_idle(&mut self, index: usize) {
        let Some(slot) = self.slot_mut(index) else {
            return;
        };
        if slot.subscribers > 0 || std::mem::replace(&mut slot.is_queued, true) {
            return;
        }
        let last_used_at = slot.last_used_at;
        self.idle_queue.push_back((index, last_used_at));
        if self.idle_queue.len() > 2 * self.slots.len() + 16 {
            // Most entries of the queue are outdated: another topic has got their slot since.
            let slots = self.slots.iter_mut().enumerate();
            let idle = slots.filter_map(|(index, slot)| {
                let slot = slot.as_mut()?;
                slot.is_queued = slot.subscribers == 0;
                slot.is_queued.then_some((index, slot.last_used_at))
            });
            self.idle_queue = idle.collect();
        }
    }

    /// Removes a topic without subscribers that was not used for long. Returns `false` if every topic has a subscriber.
    fn evict_idle_topic(&mut self, deferred_drops: &mut DeferredDrops) -> bool {
        /// The number of topics that are kept because they were used since they were queued.
        const MAX_KEPT: usize = 8;
        let mut kept = 0;
        while let Some((index, queued_use)) = self.idle_queue.pop_front() {
            let Some(slot) = self.slot_mut(index) else {
                continue;
            };
            if slot.subscribers > 0 {
                slot.is_queued = false;
            } else if slot.last_used_at > queued_use && kept < MAX_KEPT {
                kept += 1;
                let last_used_at = slot.last_used_at;
                self.idle_queue.push_back((index, last_used_at));
            } else {
                self.evict_topic(index, deferred_drops);
                return true;
            }
        }
        false
    }

    /// Removes idle topics and trims logs until the logs have at most the hub's number of bytes. The topic at `published_index` keeps its newest
    /// event.
    fn trim_to_max_total_bytes(
        &mut self,
        published_index: usize,
        config: &HubConfig,
        deferred_drops: &mut DeferredDrops,
    ) {
        let mut visits_without_effect = 0;
        let max_bytes = config.max_total_bytes;
        while self.memory.retained_len > max_bytes && visits_without_effect < self.slots.len() {
            visits_without_effect += 1;
            let index = self.next_sweep_index();
            let Some(slot) = self.slot(index) else {
                continue;
            };
            if slot.subscribers == 0 && index != published_index {
                self.evict_topic(index, deferred_drops);
                visits_without_effect = 0;
                continue;
            }
            let topic = slot.topic.clone();
            let len = topic.log().len();
            if len > 1 || (len == 1 && index != published_index) {
                let trimmed = &mut deferred_drops.events;
                self.memory
                    .change(&topic, |log| log.trim_older_half(trimmed));
                visits_without_effect = 0;
            }
        }
    }

    /// Drops all events, because the feed has a gap at `position`. Removes the topics without subscribers. Returns the other topics, whose
    /// readers must be woken.
    pub(super) fn restart_after_gap(
        &mut self,
        position: u64,
        deferred_drops: &mut DeferredDrops,
    ) -> Vec<Arc<TopicState>> {
        let mut woken: Vec<_> = self
            .patterns
            .restart_after_gap(position, deferred_drops)
            .collect();
        self.memory.retained_len = 0;
        for index in 0..self.slots.len() {
            let Some(slot) = self.slot(index) else {
                continue;
            };
            let topic = slot.topic.clone();
            let is_idle = slot.subscribers == 0;
            topic.restart_after_gap(position, &mut deferred_drops.events);
            match is_idle {
                true => self.evict_topic(index, deferred_drops),
                false => woken.push(topic),
            }
        }
        self.evicted.forget_all(position);
        woken
    }

    /// Returns all topics.
    pub(super) fn all_topics(&self) -> Vec<Arc<TopicState>> {
        let slots = self.slots.iter().flatten();
        let topics = slots.map(|slot| slot.topic.clone());
        topics.chain(self.patterns.logs()).collect()
    }

    fn evict_topic(&mut self, index: usize, deferred_drops: &mut DeferredDrops) {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else {
            return;
        };
        debug_assert_eq!(slot.subscribers, 0);
        self.free.push(index);
        {
            let log = slot.topic.log();
            self.memory.retained_len -= log.memory_len();
            if let Some(name) = slot.topic.topic_name() {
                self.indexes.remove(name);
                self.evicted.insert(name, log.last_history_position());
            }
        }
        deferred_drops.topics.push(slot.topic);
        if self.indexes.is_empty() {
            // The table is empty, so the memory that many topics needed is freed.
            (self.slots, self.free) = (Vec::new(), Vec::new());
            self.idle_queue = VecDeque::new();
            self.indexes = HashMap::new();
        }
    }
}
