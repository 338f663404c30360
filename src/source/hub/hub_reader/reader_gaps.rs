//! Where the gaps of a reader stand among its events, and which cursors they have.
//!
//! # Where a gap stands
//! - **In a hub with a broker**, a gap precedes all events that the client has not got. Its cursor is the position of the reader, which is
//!   before the first missing event, so that several gaps have the same cursor and each may be the last item that the client gets. The cursor
//!   moves past the last missing event with the last item of the batch, or with an event after it. If a gap stood after events of other topics,
//!   those would move the cursor past missing events: another server may still have them all, and would announce nothing.
//! - **In a hub without a broker**, a gap stands at its last missing event, and has the cursor of that event. Before the gap, events of other topics
//!   may have moved the cursor past the first missing event. A client that resumes from there gets the gap, because the logs of the only server still
//!   lack its last missing event. A gap in topics that match a pattern precedes all events, as in a hub with a broker.
//! - **A gap of the feed** is a gap in all topics, and has a position of its own. The reader passes it before it reads a later event. A gap of a log
//!   whose last missing event precedes this position is part of the gap of the feed; another gap of a log follows it.
//!
//! # The cursors of records while a gap is owed
//! While the client has not got a gap, no item gets the cursor `catch_up_end`, and an event has its own id as the cursor.
//!
//! # The cursors of records after a gap of limited topics
//! If the client was told of a gap in all topics that the reader has yet to read up to `catch_up_end`, every item has the cursor `catch_up_end`.

use std::{collections::VecDeque, ops::RangeInclusive};

use super::{HubReader, lazy_deque::LazyDeque, topic_gap::TopicGap};
use crate::{
    event::{Event, EventId, Gap, GapReason, Item},
    source::hub::{hub_broker::FeedGap, topic_log::MissedTopicEvents, topic_state::TopicState},
};

impl HubReader {
    /// Returns whether the client is about to get a gap.
    pub(in crate::source::hub) fn has_gap(&self) -> bool {
        let is_gap = |item: &Item| matches!(item, Item::Gap(_));
        !self.gaps.is_empty() || self.items.iter().any(is_gap)
    }

    /// Adds a gap to those that the client gets. Returns whether the client gets the gap before all events that it
    /// has not got yet, and not among them by position.
    pub(super) fn push_gap(
        &mut self,
        topic: &TopicState,
        missed: MissedTopicEvents,
        reason: GapReason,
        requested: Option<EventId>,
    ) -> bool {
        let is_lost_pattern = topic.pattern().is_some() && reason == GapReason::Expired;
        let precedes_all_events = is_lost_pattern || self.hub.broker().is_some();
        let gap = TopicGap {
            last_missing_position: missed.last_position,
            precedes_all_events,
            topic: topic.topic_name().cloned(),
            reason,
            missed: missed.count,
            requested,
        };
        let position = gap.position();
        let index = self.gaps.partition_point(|gap| gap.position() <= position);
        self.gaps.insert(index, gap);
        precedes_all_events
    }

    /// Queues events and the gaps up to the end of `positions` in the order of their positions. The reader had all events up to the start of
    /// `positions`, and has all events up to the end. If `ends_catch_up`, the cursor after the last queued item is `catch_up_end`.
    pub(super) fn queue_items(
        &mut self,
        events: Vec<(u64, Event)>,
        positions: RangeInclusive<u64>,
        ends_catch_up: bool,
    ) {
        let (start_position, end_position) = positions.into_inner();
        let mut queue = VecDeque::with_capacity(events.len());
        let mut events = events.into_iter().peekable();
        let mut last_missing_position = 0;
        let told_gap_cursor = match self.is_gap_told && start_position < self.catch_up_end {
            true => self.hub.id_at(self.catch_up_end),
            false => None,
        };
        loop {
            let gap_position = self.gaps.front().map(TopicGap::position);
            let gap_position = gap_position.filter(|position| *position <= end_position);
            let next_event =
                events.next_if(|(position, _)| gap_position.is_none_or(|gap| *position < gap));
            if let Some((position, event)) = next_event {
                let item = match &told_gap_cursor {
                    Some(cursor) if event.id().is_some() => {
                        self.cursor_position = self.catch_up_end;
                        Item::EventWithCursor {
                            event,
                            cursor: cursor.clone(),
                        }
                    }
                    _ => {
                        if event.id().is_some() {
                            self.cursor_position = position;
                        }
                        Item::Event(event)
                    }
                };
                queue.push_back(item);
            } else if gap_position.is_some() {
                let Some(gap) = self.gaps.pop_front() else {
                    break;
                };
                last_missing_position = gap.last_missing_position.max(last_missing_position);
                let next_event_position = events
                    .peek()
                    .filter(|(_, event)| event.id().is_some())
                    .map(|(position, _)| *position);
                self.cursor_position = match gap.precedes_all_events {
                    true if told_gap_cursor.is_some() => self.catch_up_end,
                    true => start_position,
                    false => self.position_before_next(gap.position(), next_event_position),
                };
                // The list precedes the gap, which moves the cursor: a client whose connection breaks in between gets both again.
                #[cfg(feature = "json")]
                queue.extend(self.member_lists(gap.topic.as_ref()).map(Item::Event));
                let resumed = self.hub.id_at(self.cursor_position);
                queue.push_back(gap.into_item(resumed));
            } else {
                break;
            }
        }
        self.gaps.free_if_empty();
        // A later gap may begin before the end of the catch-up, and precedes the cursor that says that the client has everything up to there.
        let is_cursor_behind = ends_catch_up && self.cursor_position < self.catch_up_end;
        if self.gaps.is_empty() && (is_cursor_behind || !queue.is_empty()) {
            if ends_catch_up {
                self.set_cursor_of_last(&mut queue, self.catch_up_end);
            } else if self.cursor_position < last_missing_position
                && last_missing_position <= end_position
            {
                // A client that returns is not told of the gap again.
                self.set_cursor_of_last(&mut queue, last_missing_position);
            }
        }
        match self.items.is_empty() {
            true => self.items = queue.into(),
            false => self.items.append(&mut queue),
        }
    }

    /// Returns the position of the cursor of a gap that stands at `gap_position`.
    ///
    /// At this position, another topic may have a gap, too, or still have the event. Until the client has those, its cursor is before the
    /// position, so that a connection that breaks in between loses none of them.
    fn position_before_next(&self, gap_position: u64, next_event_position: Option<u64>) -> u64 {
        let next_gap = self.gaps.front();
        let is_gap_next = next_gap.is_some_and(|next| next.position() == gap_position);
        let is_event_next = next_event_position == Some(gap_position);
        gap_position - u64::from(is_gap_next || is_event_next)
    }

    /// Sets the cursor of the last item to the id at `position`, up to which the client has everything then. If this id is not known, the cursor
    /// stays behind.
    fn set_cursor_of_last(&mut self, queue: &mut VecDeque<Item>, position: u64) {
        let Some(cursor) = self.hub.id_at(position) else {
            return;
        };
        self.cursor_position = position;
        match queue.pop_back() {
            Some(Item::Event(event) | Item::EventWithCursor { event, .. })
                if event.id().is_some() =>
            {
                queue.push_back(Item::EventWithCursor { event, cursor });
            }
            Some(Item::Gap(mut gap)) => {
                gap.resumed = Some(cursor);
                queue.push_back(Item::Gap(gap));
            }
            last => queue.extend(last.into_iter().chain([Item::Cursor(cursor)])),
        }
    }

    /// Moves the reader past a gap of the feed, and queues the gap.
    #[inline(never)]
    pub(super) fn skip_feed_gap(&mut self, feed_gap: FeedGap) {
        let FeedGap { position, reason } = feed_gap;
        self.position = position;
        self.cursor_position = position;
        self.gaps.retain(|gap| gap.last_missing_position > position);
        self.left_events = LazyDeque::default();
        for reader in &mut self.topics {
            reader.topic.log().skip_gap(&mut reader.ordinals);
        }
        let mut gap = Gap::new(reason);
        gap.resumed = self.hub.id_at(position);
        self.push_member_lists_and_gap(gap);
    }

    /// Queues a gap, and before it the lists of members of its topics.
    pub(in crate::source::hub) fn push_member_lists_and_gap(&mut self, gap: Gap) {
        self.push_member_lists(gap.topic.as_ref());
        self.items.push_back(Item::from(gap));
    }
}
