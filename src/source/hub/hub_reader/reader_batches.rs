//! How a reader takes the next events from the logs of its topics.
//!
//! If only one topic has unread events, the reader takes them from its log as they are. Otherwise it merges the logs by position
//! ([`MergedBatch`]).

use std::sync::Arc;

use super::{
    HubReader,
    merged_batch::{FeedGapFound, FinishedBatch, MergedBatch, with_topics_of_both},
    topic_reader::{TopicReadOutcome, TopicReader},
};
use crate::{
    event::{Event, GapReason},
    source::hub::topic_state::TopicState,
};

/// The result of [`HubReader::read_batch`].
pub(super) enum BatchReadOutcome {
    /// There are items to yield.
    Items,
    /// No topic has an unread event.
    UpToDate,
    /// There is no item to yield yet: the caller must read again.
    Again,
    /// The reader was too slow, and must be disconnected.
    Lagged,
}

impl HubReader {
    /// Takes the next events from the logs.
    #[inline]
    pub(super) fn read_batch(&mut self) -> BatchReadOutcome {
        // Every other poll of a subscriber that keeps up finds nothing.
        match self.has_read_everything() {
            true => BatchReadOutcome::UpToDate,
            false => self.read_unread(),
        }
    }

    /// Returns whether the reader has read everything up to the published position, and has nothing else to yield.
    #[inline]
    fn has_read_everything(&self) -> bool {
        self.hub.published_position() == self.position
            && self.position >= self.catch_up_end
            && self.gaps.is_empty()
            && self.left_events.is_empty()
            && self.hub.feed_gap_after(self.position).is_none()
    }

    fn read_unread(&mut self) -> BatchReadOutcome {
        let published = self.hub.published_position();
        if let Some(gap) = self.hub.feed_gap_after(self.position) {
            self.skip_feed_gap(gap);
            return BatchReadOutcome::Items;
        }
        if published < self.position {
            // The reader has passed a gap that is about to be published.
            return BatchReadOutcome::UpToDate;
        }
        let is_catching_up = self.position < self.catch_up_end;
        if is_catching_up || !self.gaps.is_empty() || !self.left_events.is_empty() {
            let bound = match is_catching_up {
                true => published.min(self.catch_up_end),
                false => published,
            };
            return self.merge_topics(bound);
        }
        if published == self.position {
            return BatchReadOutcome::UpToDate;
        }
        let has_flush_window = !self.hub.config.flush_window.is_zero();
        if has_flush_window && self.all_unread_events_are_held_back() {
            return BatchReadOutcome::UpToDate;
        }
        let position = self.position;
        let has_unread = |reader: &TopicReader| reader.topic.last_position() > position;
        let mut with_unread = self.topics.iter_mut().filter(|reader| has_unread(reader));
        match (with_unread.next(), with_unread.next()) {
            (None, _) => {
                self.position = published;
                BatchReadOutcome::UpToDate
            }
            (Some(reader), None) => {
                let read = reader.read_events(published, self.sender.as_ref(), &mut self.buffer);
                self.finish_topic_read(read, published)
            }
            (Some(_), Some(_)) => self.merge_topics(published),
        }
    }

    /// Returns whether the topics have events that the reader has not read, and hold back all of them in a
    /// [`FlushWindow`](crate::source::log::FlushWindow).
    fn all_unread_events_are_held_back(&self) -> bool {
        if self.position < self.held_events_end {
            return false;
        }
        let mut topics = self.topics.iter().map(|reader| &reader.topic);
        let has_unread = |topic: &Arc<TopicState>| topic.last_position() > self.position;
        let has_flushed = |topic: &Arc<TopicState>| topic.flushed_position() > self.position;
        !topics.clone().any(has_flushed) && topics.any(has_unread)
    }

    /// Lets the reader read the events that its topics hold back now. Returns an upper bound for their number: how many events the hub has after the
    /// reader's position. Returns 0 if the hub has no flush window.
    pub(in crate::source::hub) fn release_and_count_held_events(&mut self) -> u32 {
        if self.hub.config.flush_window.is_zero() {
            return 0;
        }
        self.held_events_end = self.hub.published_position();
        let unread = self.held_events_end.saturating_sub(self.position);
        u32::try_from(unread).unwrap_or(u32::MAX)
    }

    /// Moves the reader's position after events of one topic were read, which is the only one with unread events up to `bound`.
    #[inline]
    fn finish_topic_read(&mut self, read: TopicReadOutcome, bound: u64) -> BatchReadOutcome {
        match read {
            TopicReadOutcome::Missed => self.merge_topics(bound),
            TopicReadOutcome::FeedGap => BatchReadOutcome::Again,
            TopicReadOutcome::Events {
                stopped_after,
                last_id_position,
            } => {
                self.position = stopped_after.unwrap_or(bound);
                self.cursor_position = self.cursor_position.max(last_id_position);
                match (self.buffer.len(), stopped_after) {
                    (1.., _) => BatchReadOutcome::Items,
                    (0, Some(_)) => BatchReadOutcome::Again,
                    (0, None) => BatchReadOutcome::UpToDate,
                }
            }
        }
    }

    /// Takes the next events of all topics up to the position `bound`, and the gaps among them.
    fn merge_topics(&mut self, bound: u64) -> BatchReadOutcome {
        let mut batch = MergedBatch::new(bound);
        for index in 0..self.topics.len() {
            let reader = &mut self.topics[index];
            let missed = match batch.add_topic(index, reader, self.sender.as_ref()) {
                Ok(missed) => missed,
                Err(FeedGapFound) => return BatchReadOutcome::Again,
            };
            if let Some(missed) = missed.filter(|_| !self.may_miss_replaced_values(index)) {
                self.hub.counters.add_lagged(missed.count.unwrap_or(0));
                if self.hub.config.disconnects_lagging {
                    return BatchReadOutcome::Lagged;
                }
                let topic = self.topics[index].topic.clone();
                self.push_gap(&topic, missed, GapReason::Lagged, None);
            }
        }
        let FinishedBatch {
            mut events,
            end_position,
        } = batch.finish(&mut self.topics);
        self.take_left_events(&mut events, end_position);
        let is_caught_up = end_position >= self.catch_up_end;
        if let Some(resumed) = &self.resumed_events {
            let unnamed =
                |(position, event)| Some((position, resumed.without_named_topics(event)?));
            events = events.into_iter().filter_map(unnamed).collect();
            if is_caught_up {
                self.resumed_events = None;
            }
        }
        let ends_catch_up = self.position < self.catch_up_end && is_caught_up;
        let start_position = std::mem::replace(&mut self.position, end_position);
        self.queue_items(events, start_position..=end_position, ends_catch_up);
        match self.items.is_empty() {
            false => BatchReadOutcome::Items,
            true => BatchReadOutcome::Again,
        }
    }

    /// Adds the events of `left_events` up to `end_position` to the events of a batch. An event that was published to several topics may be there
    /// once for each.
    fn take_left_events(&mut self, events: &mut Vec<(u64, Event)>, end_position: u64) {
        if self.left_events.is_empty() {
            return;
        }
        let left = &mut *self.left_events;
        let len = left.partition_point(|(position, _)| *position <= end_position);
        events.extend(left.drain(..len));
        events.sort_by_key(|(position, _)| *position);
        events.dedup_by(|(position, event), (previous_position, previous)| {
            let is_repeated = position == previous_position;
            if is_repeated {
                *previous = with_topics_of_both(previous.clone(), event);
            }
            is_repeated
        });
        self.left_events.free_if_empty();
    }

    /// Returns whether the reader may miss events of the topic without a gap, because a newer value replaces them.
    fn may_miss_replaced_values(&self, index: usize) -> bool {
        let topic = &self.topics[index].topic;
        self.hub.config.is_last_value && topic.pattern().is_none() && !topic.log().is_empty()
    }
}
