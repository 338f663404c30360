//! Changes of the patterns of a reader, for clients that send commands.
//!
//! A reader gets the events of a topic from the log of a pattern that matches the topic, if it has one, and otherwise from the log of the topic.
//! While a pattern is added or removed, the reader changes from one log to the other: the log of the topic has the events up to a position, and
//! the log of the pattern has those after it.

use std::slice;

use super::{HubReader, TopicReader};
use crate::{
    event::{EventId, Topic},
    source::hub::{
        hub_state::{JoinError, JoinedTopic, JoinedTopics, RequestedTopic, copy_for_topic},
        pattern_table::RequestedPattern,
        subscribed_topics::SubscribedTopics,
        topic_log::{EPHEMERAL_LIMITS, TopicLogEntry, TopicStart},
        topic_pattern::TopicPattern,
        topic_table::DeferredDrops,
    },
};

impl HubReader {
    /// Returns whether the reader has a pattern that matches a topic.
    pub(super) fn has_pattern_for(&self, topic: &Topic) -> bool {
        let mut patterns = self
            .topics
            .iter()
            .filter_map(|reader| reader.topic.pattern());
        patterns.any(|pattern| pattern.matches(topic))
    }

    /// Joins a further pattern. The events of the topics that match come before the next events of the other topics. `cursor` is the cursor
    /// from which the client resumes the pattern.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for the pattern, or allows no patterns.
    pub(in crate::source::hub) fn join_pattern(
        &mut self,
        request: &RequestedPattern,
        cursor: Option<&EventId>,
    ) -> Result<(), JoinError> {
        let mut deferred_drops = DeferredDrops::default();
        let patterns = std::slice::from_ref(request);
        let joined = self.hub().join(&[], patterns, &mut deferred_drops)?;
        self.add_pattern(&request.pattern, joined, cursor);
        Ok(())
    }

    /// Adds a pattern that the reader has joined. `cursor` is the cursor from which the client resumes the pattern.
    pub(super) fn add_pattern(
        &mut self,
        pattern: &TopicPattern,
        joined: JoinedTopics,
        cursor: Option<&EventId>,
    ) {
        let published = joined.published_position;
        let (known, new): (Vec<_>, Vec<_>) = joined
            .topics
            .into_iter()
            .partition(|joined| self.has_events_of(joined));
        self.hub().leave(known.iter().map(|joined| &*joined.topic));
        for reader in &mut self.topics {
            let name = reader.topic.topic_name();
            let is_matching = name.is_some_and(|name| pattern.matches(name));
            if is_matching && reader.history_end.is_none() {
                reader.history_end = Some(Box::new(reader.topic.history_end_at(published)));
            }
        }
        let new = JoinedTopics {
            topics: new,
            published_position: published,
        };
        self.add_further_topics(new, cursor);
    }

    /// Returns whether the reader gets the events of the topic `joined` from another log already: that of the topic, or that of another
    /// pattern.
    fn has_events_of(&self, joined: &JoinedTopic) -> bool {
        let name = joined.topic.topic_name();
        name.is_some_and(|name| self.has_reader_of(name) || self.has_pattern_for(name))
    }

    fn has_reader_of(&self, topic: &Topic) -> bool {
        if self.backend_resume_topics().contains(topic) {
            return true;
        }
        self.index_of(topic).is_some()
    }

    /// Returns the index of the reader's own log of a topic.
    fn index_of(&self, topic: &Topic) -> Option<usize> {
        let mut topics = self.topics.iter();
        topics.position(|reader| reader.topic.topic_name() == Some(topic))
    }

    /// Adds topics that the reader has joined after others. The client has the events of its other topics up to the reader's position.
    pub(super) fn add_further_topics(&mut self, joined: JoinedTopics, cursor: Option<&EventId>) {
        self.raise_catch_up_end(self.position());
        // The client was not told of a gap in these topics.
        self.is_gap_told = false;
        self.held_events_end = joined.published_position;
        self.history_end_position = joined.published_position;
        for mut topic in joined.topics {
            let name = topic.topic.topic_name().cloned();
            if let Some(name) = name.filter(|name| self.has_pattern_for(name)) {
                if let Some(index) = self.index_of(&name) {
                    let known = &self.topics[index];
                    let is_earlier = topic.ordinals.retained < known.ordinals.retained;
                    if !is_earlier && topic.missed.is_none() {
                        // The reader reads these events of the topic already.
                        self.hub().leave(std::iter::once(&*topic.topic));
                        continue;
                    }
                    // The reader goes back in the topic. It still gets later events from the log of the pattern.
                    let known = self.topics.swap_remove(index);
                    topic.ordinals.ephemeral = known.ordinals.ephemeral;
                    topic.history_end = known.history_end.as_deref().copied();
                    self.leave(slice::from_ref(&known));
                }
                let end = || topic.topic.history_end_at(joined.published_position);
                topic.history_end.get_or_insert_with(end);
            }
            self.add_topic(topic, cursor);
        }
    }

    /// Ends the registration of the client's access to a pattern.
    pub(in crate::source::hub) fn deregister_pattern_access(&mut self, pattern: &TopicPattern) {
        let hub = self.hub().clone();
        if let Some(revocable) = &mut self.revocable {
            hub.revocable_subscriptions
                .remove_pattern(revocable, pattern);
        }
    }

    /// Leaves a pattern. The reader gets further events of the topics of `subscribed` from their own logs. Returns the topics that the hub has
    /// no room for any more, which the client loses.
    pub(in crate::source::hub) fn remove_pattern(
        &mut self,
        pattern: &TopicPattern,
        subscribed: &SubscribedTopics,
    ) -> Vec<(Topic, JoinError)> {
        self.deregister_pattern_access(pattern);
        if let Some(resume) = &mut self.backend_resume {
            resume.remove_pattern(pattern);
            if resume.is_left() {
                self.leave_added_topics();
                self.leave_topics_kept_for(pattern, subscribed);
            }
        }
        let is_log = |other: Option<&TopicPattern>| other == Some(pattern);
        let mut readers = self.topics.iter();
        let Some(index) = readers.position(|reader| is_log(reader.topic.pattern())) else {
            return Vec::new();
        };
        let pattern_reader = self.topics.swap_remove(index);
        let mut left = Vec::new();
        let readers = self.topics.iter();
        let patterns = readers.filter_map(|reader| reader.topic.pattern().cloned());
        let patterns: Vec<_> = patterns.collect();
        let has_pattern_for = |name: &Topic| patterns.iter().any(|other| other.matches(name));
        for mut reader in std::mem::take(&mut self.topics) {
            let name = reader.topic.topic_name();
            let was_matching = name.filter(|name| pattern.matches(name) && !has_pattern_for(name));
            match was_matching.filter(|_| reader.history_end.is_some()) {
                None => self.topics.push(reader),
                // If the reader has read the whole history of the topic, it has got later events from the log of the pattern.
                // `return_to_topics` then joins the topic again, after these events.
                Some(name) if subscribed.topics().contains(name) && !reader.has_read_history() => {
                    reader.history_end = None;
                    self.topics.push(reader);
                }
                Some(_) => left.push(reader),
            }
        }
        self.leave(&left);
        let lost = self.return_to_topics(&pattern_reader, subscribed);
        self.leave(slice::from_ref(&pattern_reader));
        lost
    }

    /// Leaves the topics that the client has left while the reader was about to join a pattern that matches them.
    fn leave_topics_kept_for(&mut self, pattern: &TopicPattern, subscribed: &SubscribedTopics) {
        let is_kept = |name: &Topic| pattern.matches(name) && !subscribed.topics().contains(name);
        let (left, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.topics)
            .into_iter()
            .partition(|reader| reader.topic.topic_name().is_some_and(is_kept));
        self.topics = kept.into();
        self.leave(&left);
    }

    /// Joins the topics of `subscribed` whose events the reader got from the log of a pattern that it has no longer, but has not left yet.
    fn return_to_topics(
        &mut self,
        pattern_reader: &TopicReader,
        subscribed: &SubscribedTopics,
    ) -> Vec<(Topic, JoinError)> {
        // The reader has all events up to this position.
        let start = TopicStart::AfterPosition(self.position().max(self.catch_up_end));
        let mut lost = Vec::new();
        for topic in subscribed.topics() {
            if self.has_reader_of(topic) || self.has_pattern_for(topic) {
                continue;
            }
            let request = RequestedTopic {
                topic: topic.clone(),
                start,
                max_history: None,
            };
            let mut deferred_drops = DeferredDrops::default();
            let requests = std::slice::from_ref(&request);
            match self.hub().join(requests, &[], &mut deferred_drops) {
                Ok(joined) => {
                    self.held_events_end = joined.published_position;
                    self.keep_left_events(pattern_reader, topic, joined.published_position);
                    for topic in joined.topics {
                        self.add_topic(topic, None);
                    }
                }
                Err(error) => lost.push((topic.clone(), error)),
            }
        }
        lost
    }

    /// Keeps the unread events without history of a topic, from the log of a pattern up to `end_position`: the log of the topic has only later ones.
    fn keep_left_events(&mut self, pattern_reader: &TopicReader, topic: &Topic, end_position: u64) {
        let TopicReader {
            topic: pattern_topic,
            ordinals,
            ..
        } = pattern_reader;
        let sender = self.sender().cloned();
        let log = pattern_topic.log();
        let unread = log.unread_ephemeral_entries(*ordinals, end_position);
        let unread = unread.filter(|entry| {
            entry.event.topics().contains(topic) && entry.is_visible_to(sender.as_ref())
        });
        let event_of = |entry: &TopicLogEntry| match entry.event.topics() {
            [_] => entry.event.clone(),
            _ => copy_for_topic(entry.event.clone(), topic),
        };
        let unread: Vec<_> = unread
            .map(|entry| (entry.position, event_of(entry)))
            .collect();
        if unread.is_empty() {
            return;
        }
        let left_events = &mut *self.left_events;
        left_events.extend(unread);
        left_events
            .make_contiguous()
            .sort_by_key(|(position, _)| *position);
        let excess = left_events
            .len()
            .saturating_sub(EPHEMERAL_LIMITS.max_events);
        left_events.drain(..excess);
    }
}
