use std::sync::Arc;

use crate::{
    event::Topic,
    source::{
        hub::{
            topic_log::{HistoryEnd, ReaderOrdinals, TopicLogEntry},
            topic_state::TopicState,
        },
        log::ReadBuffer,
    },
    sync::WaiterKey,
};

/// What a [`HubReader`] has read of one of its topics.
pub(super) struct TopicReader {
    pub(super) topic: Arc<TopicState>,
    /// The key in the topic's wait list. `None` if the reader has [delegated](super::HubReader::delegate_wakeups) the topic's wakeups to an event loop.
    pub(super) key: Option<WaiterKey>,
    pub(super) ordinals: ReaderOrdinals,
    /// The end of the events to read, if the reader gets later events of the topic from the log of a pattern.
    pub(super) history_end: Option<Box<HistoryEnd>>,
}

/// The result of [`TopicReader::read_events`].
pub(super) enum TopicReadOutcome {
    /// The log no longer has the next events.
    Missed,
    /// The feed of the hub has a gap before the next events.
    FeedGap,
    Events {
        /// The position of the last event that was passed, if the log has more events.
        stopped_after: Option<u64>,
        /// The position of the last event that has an id; 0 if there is none.
        last_id_position: u64,
    },
}

/// Upper bound for the bytes of events that are taken from the logs at once. A single larger event is taken alone.
pub(super) const MAX_READ_BYTES: usize = 16 * 1024;

impl TopicReader {
    /// Returns whether the reader gets all further events of the topic from the log of a pattern.
    pub(super) fn has_read_history(&self) -> bool {
        let end = self.history_end.as_deref();
        end.is_some_and(|HistoryEnd { ordinals, .. }| {
            ordinals.retained <= self.ordinals.retained
                && ordinals.ephemeral <= self.ordinals.ephemeral
        })
    }

    /// Returns the number of unread events with history before those that the reader gets from the log of a pattern. Returns `None` if the
    /// reader gets all events from the log of the topic.
    pub(super) fn unread_history_len(&self) -> Option<u64> {
        let end = self.history_end.as_deref()?.ordinals;
        Some(end.retained.saturating_sub(self.ordinals.retained))
    }

    /// Returns whether this is the log of `topic`, or of a pattern that matches `topic`.
    pub(super) fn reads(&self, topic: &Topic) -> bool {
        let pattern = self.topic.pattern();
        self.topic.topic_name() == Some(topic)
            || pattern.is_some_and(|pattern| pattern.matches(topic))
    }

    /// Takes events up to the position `bound` from the topic's log.
    pub(super) fn read_events(
        &mut self,
        bound: u64,
        sender: Option<&Arc<str>>,
        buffer: &mut ReadBuffer,
    ) -> TopicReadOutcome {
        let log = self.topic.log();
        if log.has_gap_after(self.ordinals) {
            return TopicReadOutcome::FeedGap;
        }
        let mut missed_ordinals = self.ordinals;
        if log.skip_missed(&mut missed_ordinals).is_some() {
            return TopicReadOutcome::Missed;
        }
        let ordinals = &mut self.ordinals;
        if log.has_had_ephemeral() {
            let entries = log.unread_entries(ordinals);
            return take_events(entries, ordinals, bound, sender, buffer);
        }
        // Without a merge, a read takes measurably less time.
        let entries = log.retained_entries(*ordinals);
        let entries = entries.map(|entry| (entry, false));
        take_events(entries, ordinals, bound, sender, buffer)
    }
}

/// Takes the events of `entries` up to the position `bound`, and moves `ordinals` past them.
#[inline]
fn take_events<'a>(
    entries: impl Iterator<Item = (&'a TopicLogEntry, bool)>,
    ordinals: &mut ReaderOrdinals,
    bound: u64,
    sender: Option<&Arc<str>>,
    buffer: &mut ReadBuffer,
) -> TopicReadOutcome {
    let (mut stopped_after, mut last_position, mut last_id_position) = (None, None, 0);
    let mut byte_len = 0;
    for (entry, is_ephemeral) in entries {
        if entry.position > bound {
            break;
        }
        if entry.is_visible_to(sender) {
            byte_len += entry.byte_len;
            if buffer.is_full() || (buffer.len() > 0 && byte_len > MAX_READ_BYTES) {
                stopped_after = last_position;
                break;
            }
            buffer.push(entry.event.clone());
            if !is_ephemeral {
                last_id_position = entry.position;
            }
        }
        ordinals.advance_past_entry(is_ephemeral);
        last_position = Some(entry.position);
    }
    TopicReadOutcome::Events {
        stopped_after,
        last_id_position,
    }
}
