use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    hub_builder::HubConfig,
    hub_state::{JoinError, JoinedTopic},
    topic_log::{MissedTopicEvents, TopicLog, TopicLogEntry, TopicStart},
    topic_pattern::TopicPattern,
    topic_state::TopicState,
    topic_table::{DeferredDrops, TopicTable},
};
use crate::{
    event::{Event, Topic},
    source::log::EventLogLimits,
};

/// The patterns that have subscribers, each with a log of the events of all topics that match.
///
/// # Invariant: a subscriber of a pattern misses nothing
/// A publisher appends an event to the logs of the patterns under the lock of the hub's table, before it sets the published position, as for
/// topics. A subscriber joins the log of the pattern and the logs of the topics that match under the same lock. So each event is either in
/// the log of a topic when the subscriber joins, or is appended to the log of the pattern afterwards. The topics of the events in a pattern's
/// log need not stay in the hub.
#[derive(Debug, Default)]
pub(super) struct PatternTable {
    slots: HashMap<TopicPattern, PatternSlot>,
    max_patterns: usize,
}

/// A pattern in a [`PatternTable`].
#[derive(Debug)]
struct PatternSlot {
    log: Arc<TopicState>,
    subscribers: usize,
}

/// A pattern that a reader asks for.
#[derive(Clone, Debug)]
pub(super) struct RequestedPattern {
    pub(super) pattern: TopicPattern,
    pub(super) start: TopicStart,
    /// The maximum number of events from the log of each topic that matches.
    pub(super) max_history: Option<usize>,
}

/// The limits of the log of a pattern, which has only the events that subscribers are about to read.
const PATTERN_LOG_LIMITS: EventLogLimits = EventLogLimits {
    max_events: 1024,
    max_bytes: 1 << 20,
    max_age: None,
};

/// The maximum number of topics whose history a subscriber of a pattern reads: those with the newest events. The bound keeps the work for
/// a pattern that matches every topic small.
const MAX_HISTORY_TOPICS: usize = 256;

impl PatternTable {
    pub(super) fn new(max_patterns: usize) -> Self {
        Self {
            slots: HashMap::new(),
            max_patterns,
        }
    }

    /// Appends the event of one of `all_topics` to the log of each pattern that matches this topic. In the log, the event has the names of all of
    /// its topics that match. Returns the logs whose readers must be woken.
    pub(super) fn append(
        &self,
        all_topics: &[Topic],
        event: &Event,
        position: u64,
        new_entry: impl Fn(Event) -> TopicLogEntry,
        is_ephemeral: bool,
        deferred_drops: &mut DeferredDrops,
    ) -> Vec<Arc<TopicState>> {
        let mut logs = Vec::new();
        let Some(topic) = event.topic() else {
            return logs;
        };
        // Patterns that match the same topics share the event.
        let mut named = event.clone();
        for (pattern, slot) in &self.slots {
            // The log has an event that was published to several topics only once.
            if position == slot.log.last_position() || !pattern.matches(topic) {
                continue;
            }
            if all_topics.len() > 1 {
                let matching = all_topics.iter().filter(|topic| pattern.matches(topic));
                if !matching.clone().eq(named.topics()) {
                    named = event.clone().with_topics(matching.cloned());
                }
            }
            let entry = new_entry(named.clone());
            let mut log = slot.log.log_for_writing();
            let drops = &mut deferred_drops.events;
            match is_ephemeral {
                true => log.append_ephemeral(entry, drops),
                false => log.append(entry, &PATTERN_LOG_LIMITS, drops),
            }
            drop(log);
            slot.log.set_last_position(position);
            logs.push(slot.log.clone());
        }
        logs
    }

    /// Drops all events of the logs: see [`TopicTable::restart_after_gap`].
    pub(super) fn restart_after_gap(
        &self,
        position: u64,
        deferred_drops: &mut DeferredDrops,
    ) -> impl Iterator<Item = Arc<TopicState>> {
        let logs = self.slots.values().map(|slot| &slot.log);
        logs.map(move |log| {
            log.restart_after_gap(position, &mut deferred_drops.events);
            log.clone()
        })
    }

    /// Returns the logs of all patterns.
    pub(super) fn logs(&self) -> impl Iterator<Item = Arc<TopicState>> {
        self.slots.values().map(|slot| slot.log.clone())
    }

    /// Returns the logs of the patterns that match a topic.
    pub(super) fn logs_matching(&self, name: &Topic) -> impl Iterator<Item = Arc<TopicState>> {
        let slots = self.slots.iter();
        let matching = slots.filter(move |(pattern, _)| pattern.matches(name));
        matching.map(|(_, slot)| slot.log.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns the number of subscribers of a pattern.
    #[cfg(feature = "server")]
    pub(super) fn subscriber_count(&self, pattern: &TopicPattern) -> usize {
        self.slots.get(pattern).map_or(0, |slot| slot.subscribers)
    }

    /// Adds a subscriber to a pattern. Returns the end of the log of the pattern.
    fn add_subscriber(
        &mut self,
        pattern: &TopicPattern,
        config: &HubConfig,
    ) -> Result<JoinedTopic, JoinError> {
        if self.max_patterns == 0 {
            return Err(JoinError::PatternsDisabled);
        }
        if !self.slots.contains_key(pattern) && self.slots.len() >= self.max_patterns {
            return Err(JoinError::TooManyPatterns);
        }
        let new_slot = || PatternSlot {
            log: TopicState::of_pattern(pattern.clone(), TopicLog::new(0), config),
            subscribers: 0,
        };
        let slot = self.slots.entry(pattern.clone()).or_insert_with(new_slot);
        slot.subscribers += 1;
        let ordinals = slot.log.log().end_ordinals();
        Ok(JoinedTopic {
            topic: slot.log.clone(),
            ordinals,
            missed: None,
            first_position: None,
            history_end: None,
            resume_position: None,
        })
    }

    /// Removes a subscriber of a pattern, and the log of the pattern with its last subscriber.
    pub(super) fn remove_subscriber(
        &mut self,
        pattern: &TopicPattern,
        deferred_drops: &mut DeferredDrops,
    ) {
        let Some(slot) = self.slots.get_mut(pattern) else {
            return;
        };
        slot.subscribers -= 1;
        if slot.subscribers == 0 {
            let slot = self.slots.remove(pattern);
            deferred_drops.topics.extend(slot.map(|slot| slot.log));
        }
    }
}

impl TopicTable {
    /// Removes a reader from the topics and the patterns that it has joined.
    pub(super) fn remove_reader(
        &mut self,
        joined: &[JoinedTopic],
        now: Duration,
        deferred_drops: &mut DeferredDrops,
    ) {
        for JoinedTopic { topic, .. } in joined {
            match topic.pattern() {
                Some(pattern) => self.patterns.remove_subscriber(pattern, deferred_drops),
                None => self.remove_subscriber(topic, now, deferred_drops),
            }
        }
    }

    /// Adds a reader to a pattern: to the log of the pattern, and to the logs of the topics that match and have events for the reader.
    /// `joined` are the topics that the reader has joined so far.
    pub(super) fn join_pattern(
        &mut self,
        request: &RequestedPattern,
        config: &HubConfig,
        now: Duration,
        joined: &mut Vec<JoinedTopic>,
        deferred_drops: &mut DeferredDrops,
    ) -> Result<(), JoinError> {
        let RequestedPattern {
            pattern,
            start,
            max_history,
        } = request;
        let mut live = self.patterns.add_subscriber(pattern, config)?;
        let mut history = Vec::new();
        // For a subscriber that gets no history, the cost does not depend on the number of topics.
        let topics: Vec<_> = match start {
            TopicStart::Now => Vec::new(),
            _ => {
                let topics = self.topics().filter(|(name, _)| pattern.matches(name));
                topics.map(|(_, topic)| topic.clone()).collect()
            }
        };
        for topic in topics {
            self.trim_expired(&topic, now, config, deferred_drops);
            let log = topic.log();
            let resolved = log.resolve_start(*start, *max_history, config.is_last_value);
            let first_position = log.first_position_after(resolved.ordinals);
            if first_position.is_none() && resolved.missed.is_none() {
                continue;
            }
            let last_position = log.last_history_position();
            let history_end = Some(log.history_end_at(self.last_position()));
            drop(log);
            history.push((
                last_position,
                JoinedTopic {
                    topic,
                    ordinals: resolved.ordinals,
                    missed: resolved.missed,
                    first_position,
                    history_end,
                    resume_position: start.resume_position(),
                },
            ));
        }
        history.sort_by_key(|(last_position, _)| std::cmp::Reverse(*last_position));
        let left_out = history.get(MAX_HISTORY_TOPICS);
        let left_out_position = left_out.map_or(0, |(position, _)| *position);
        history.truncate(MAX_HISTORY_TOPICS);
        if let TopicStart::AfterPosition(position) = *start {
            let removed = self.last_position_of_removed_matching(pattern);
            let lost_position = removed.max(left_out_position);
            // The gap stands for several topics, each with a last missing event of its own. So the gap precedes all events: a client that has
            // an event which follows a missing event has the gap, too.
            live.resume_position = Some(position);
            live.missed = (lost_position > position).then_some(MissedTopicEvents {
                last_position: self.last_position(),
                count: None,
            });
        }
        // The reader gets later events of these topics from the log of the pattern, which may still have events that the topic's log has trimmed.
        for joined in joined.iter_mut() {
            if joined
                .topic
                .topic_name()
                .is_some_and(|name| pattern.matches(name))
            {
                joined.history_end = Some(joined.topic.history_end_at(self.last_position()));
            }
        }
        joined.push(live);
        for (_, history) in history {
            let is_joined = |other: &JoinedTopic| Arc::ptr_eq(&other.topic, &history.topic);
            if !joined.iter().any(is_joined) {
                self.add_subscriber(history.topic.index, now);
                joined.push(history);
            }
        }
        Ok(())
    }
}
