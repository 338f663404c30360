use std::sync::Arc;

use super::topic_reader::{MAX_READ_BYTES, TopicReader};
use crate::{event::Event, source::hub::topic_log::MissedTopicEvents};

/// The next events of several topics, in the order of their positions.
///
/// An event that was published to several topics is in the log of each at the same position. The batch has this event once, with the names of
/// those topics in whose logs the reader has found it.
pub(super) struct MergedBatch {
    entries: Vec<BatchEntry>,
    /// No event after this position is in the batch.
    end_position: u64,
}

/// The error of [`MergedBatch::add_topic`]: the feed of the hub has a gap before the next events of the topic.
pub(super) struct FeedGapFound;

/// The result of [`MergedBatch::finish`].
pub(super) struct FinishedBatch {
    /// The events, each with its position.
    pub(super) events: Vec<(u64, Event)>,
    /// The position up to which the batch has all events.
    pub(super) end_position: u64,
}

/// An entry of a topic's log after the reader's position.
struct BatchEntry {
    position: u64,
    /// The index of the topic among the reader's topics.
    topic_index: usize,
    is_ephemeral: bool,
    byte_len: usize,
    /// Whether an entry before this one, of another topic, has the same event.
    is_repeated: bool,
    /// `None` if the reader does not get the event.
    event: Option<Event>,
}

/// The number of log entries in a full batch.
const CAPACITY: usize = 8;

impl MergedBatch {
    /// Creates an empty batch for events up to the position `bound`.
    pub(super) fn new(bound: u64) -> Self {
        Self {
            entries: Vec::new(),
            end_position: bound,
        }
    }

    /// Adds the next events of a topic. Returns the missed events, which the topic's log no longer has and which the reader skips.
    pub(super) fn add_topic(
        &mut self,
        topic_index: usize,
        reader: &mut TopicReader,
        sender: Option<&Arc<str>>,
    ) -> Result<Option<MissedTopicEvents>, FeedGapFound> {
        if reader.has_read_history() {
            return Ok(None);
        }
        let log = reader.topic.log();
        if log.has_gap_after(reader.ordinals) {
            return Err(FeedGapFound);
        }
        let history_len = reader.unread_history_len();
        let missed = log.skip_missed(&mut reader.ordinals);
        // Events that are missing after the end of the history are in the log of the pattern.
        let mut missed = missed.filter(|_| history_len != Some(0));
        if let Some(missed) = &mut missed {
            // Only the missed events of the history count.
            let counts = missed.count.into_iter().chain(history_len);
            missed.count = missed.count.and(counts.min());
            let history_end = reader
                .history_end
                .as_deref()
                .map(|end| end.last_retained_position);
            missed.last_position = missed.last_position.min(history_end.unwrap_or(u64::MAX));
        }
        let entries = log.unread_entries(&mut reader.ordinals);
        let mut passed = reader.ordinals;
        for (entry, is_ephemeral) in entries {
            passed.advance_past_entry(is_ephemeral);
            let history_end = reader.history_end.as_deref();
            let is_after_history =
                history_end.is_some_and(|end| end.is_before(passed, is_ephemeral));
            if is_after_history || entry.position > self.end_position {
                break;
            }
            let index = self
                .entries
                .partition_point(|other| other.position <= entry.position);
            let previous = index.checked_sub(1).map(|index| &self.entries[index]);
            let is_repeated = previous.is_some_and(|other| other.position == entry.position);
            let entry = BatchEntry {
                position: entry.position,
                topic_index,
                is_ephemeral,
                byte_len: entry.byte_len,
                is_repeated,
                event: entry.is_visible_to(sender).then(|| entry.event.clone()),
            };
            self.entries.insert(index, entry);
            self.truncate_to_capacity();
        }
        Ok(missed)
    }

    /// Leaves out the last position if the batch has too many entries. Entries of the same position are kept or left out together.
    fn truncate_to_capacity(&mut self) {
        while self.entries.len() > CAPACITY {
            let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
                return;
            };
            let last_position = last.position;
            if first.position == last_position {
                return;
            }
            self.truncate_at(last_position);
        }
    }

    /// Leaves out the entries at `position` and after it.
    fn truncate_at(&mut self, position: u64) {
        let kept = self
            .entries
            .partition_point(|entry| entry.position < position);
        self.entries.truncate(kept);
        self.end_position = self.entries.last().map_or(0, |entry| entry.position);
    }

    /// Moves the readers past the entries of the batch, and returns the events of the batch.
    pub(super) fn finish(mut self, readers: &mut [TopicReader]) -> FinishedBatch {
        let mut byte_len = 0;
        let exceeds = |entry: &BatchEntry| {
            let is_sent = entry.event.is_some() && !entry.is_repeated;
            byte_len += if is_sent { entry.byte_len } else { 0 };
            byte_len > MAX_READ_BYTES
        };
        let first_position = self.entries.first().map_or(0, |entry| entry.position);
        let first_too_long = self.entries.iter().position(exceeds);
        if let Some(position) = first_too_long.map(|index| self.entries[index].position) {
            let next = self.entries.iter().map(|entry| entry.position);
            // The first event is taken alone if it exceeds the limit.
            let end = next.filter(|next| *next > first_position).min();
            if let Some(end) = end {
                self.truncate_at(position.max(end));
            }
        }
        let mut events: Vec<(u64, Event)> = Vec::with_capacity(self.entries.len());
        for entry in self.entries {
            readers[entry.topic_index]
                .ordinals
                .advance_past_entry(entry.is_ephemeral);
            let Some(mut event) = entry.event else {
                continue;
            };
            let previous = events.last().map(|(position, _)| *position);
            if previous == Some(entry.position) {
                if let Some((_, first)) = events.pop() {
                    event = with_topics_of_both(first, &event);
                }
            }
            events.push((entry.position, event));
        }
        FinishedBatch {
            events,
            end_position: self.end_position,
        }
    }
}

/// Returns `event` with the topics of both arguments. `other` is the same event, from the log of another topic.
pub(super) fn with_topics_of_both(event: Event, other: &Event) -> Event {
    let topics = event.topics().iter().chain(other.topics());
    let topics: Vec<_> = topics.cloned().collect();
    event.with_topics(topics)
}
