//! How a reader takes events from pages of the broker, in a hub with a broker, before it joins the topics of these events.
//!
//! The client may have joined other topics already, such as those that are new for it. The reader reads them after the pages, so the cursor stays
//! where it was when the client returned. An event of both kinds of topics is yielded once, from its page, and names the topics of both kinds:
//! [`HubReader::add_joined_topics`].

use std::{
    cmp::Ordering,
    task::{Context, Poll, ready},
};

use super::HubReader;
use crate::{
    event::{Event, Item, Topic},
    source::{
        hub::{
            backend_resume::{BackendResume, BackendResumeEnd},
            hub_broker::HubBroker,
            hub_state::JoinedTopics,
            resumed_events::ResumedEvents,
        },
        relay::UpstreamResumeOutcome,
    },
};

impl HubReader {
    /// Lets the client read pages of the broker before it joins the topics of `resume`.
    pub(in crate::source::hub) fn begin_backend_resume(&mut self, resume: BackendResume) {
        self.backend_resume = Some(Box::new(resume));
    }

    /// Returns whether the client reads pages of the broker before it joins some of its topics.
    #[cfg(feature = "server")]
    pub(in crate::source::hub) fn is_resuming_from_broker(&self) -> bool {
        self.backend_resume.is_some()
    }

    /// Returns the topics that the client joins after its resume from the broker.
    #[cfg(feature = "json")]
    pub(super) fn backend_resume_topics(&self) -> &[Topic] {
        self.backend_resume
            .as_ref()
            .map_or(&[], |resume| resume.topics())
    }

    /// Returns the next item of a resume from the broker. Returns `None` if the client has joined its topics.
    // Kept out of line: for a client that reads the logs, the check costs only one comparison.
    #[inline(never)]
    pub(super) fn poll_backend_resume(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let lists_members = self.lists_members();
        let Some(resume) = &mut self.backend_resume else {
            return Poll::Ready(None);
        };
        match ready!(resume.poll_next(self.sender.as_ref(), cx)) {
            UpstreamResumeOutcome::Item(item) => {
                if lists_members && matches!(item, Item::Gap(_)) {
                    match resume.compare_gap_with_writer() {
                        // The hub's list has every change before the end of this gap.
                        Some(Ordering::Less | Ordering::Equal) => {}
                        // The hub has no such list yet. The client returns later, and gets the gap then.
                        Some(Ordering::Greater) => return Poll::Ready(Some(self.end_to_return())),
                        // The client gets a list at the end of the resume, too, and its cursor after that list.
                        None => resume.hold_cursor(),
                    }
                }
                if let Item::Gap(gap) = &item {
                    resume.count_missed_on_resume(gap);
                }
                Poll::Ready(match self.with_held_cursor(item) {
                    Some(Item::Gap(gap)) => {
                        self.push_member_lists_and_gap(*gap);
                        None
                    }
                    item => item,
                })
            }
            UpstreamResumeOutcome::ReadLog(BackendResumeEnd::Joined {
                position,
                joined,
                gap,
            }) => {
                let resumed_events = std::mem::take(resume.resumed_events());
                let is_cursor_held = resume.is_cursor_held();
                self.backend_resume = None;
                let has_other_topics = !self.topics.is_empty();
                self.continue_at(position, joined, resumed_events);
                if let Some(gap) = gap {
                    self.push_member_lists_and_gap(gap);
                } else if is_cursor_held {
                    self.push_member_lists(None);
                    let cursor = self.hub.id_at(position).filter(|_| !has_other_topics);
                    self.items.extend(cursor.map(Item::Cursor));
                }
                Poll::Ready(None)
            }
            UpstreamResumeOutcome::ReadLog(BackendResumeEnd::Ended)
            | UpstreamResumeOutcome::Unavailable => Poll::Ready(Some(self.end_to_return())),
        }
    }

    /// Returns the end of the stream of a client that returns later.
    fn end_to_return(&self) -> Item {
        let retry = self.hub.broker().map(HubBroker::random_retry_delay);
        Item::Ended {
            retry: retry.unwrap_or_default(),
        }
    }

    /// Returns an item of a resume from the broker without its cursor, if the client has joined other topics, or the resume
    /// [holds the cursor](BackendResume::hold_cursor). The client has not got the events of the other topics
    /// yet, so its cursor stays where it was when the client returned. Returns `None` if nothing is left of the item.
    fn with_held_cursor(&mut self, item: Item) -> Option<Item> {
        let resume = self.backend_resume.as_deref();
        let has_other_topics = !self.topics.is_empty();
        let Some(resume) = resume.filter(|resume| has_other_topics || resume.is_cursor_held())
        else {
            return Some(item);
        };
        let cursor = resume.requested_cursor().clone();
        match item {
            Item::Event(event) => Some(Item::EventWithCursor {
                event: self.add_joined_topics(event),
                cursor,
            }),
            Item::Gap(mut gap) => {
                gap.resumed = None;
                Some(Item::Gap(gap))
            }
            Item::Cursor(_) => None,
            other => Some(other),
        }
    }

    /// Adds to an event of a page those of its topics that the client has joined already. The reader does not get the event again from the logs
    /// of these topics, or from those of patterns. A topic that the client joins later gets the event from its log.
    fn add_joined_topics(&mut self, event: Event) -> Event {
        let resume = self.backend_resume.as_deref_mut();
        let Some(events) = resume.map(BackendResume::resumed_events) else {
            return event;
        };
        let is_read = |topic: &Topic| self.topics.iter().any(|reader| reader.reads(topic));
        let is_in_read_log = event.topics().iter().any(is_read);
        if !is_in_read_log && !events.has_unnamed_topics(&event) {
            return event;
        }
        // Checked before the logs are searched, so that an event that the writer pushes meanwhile is found there.
        let is_ahead_of_writer = self.hub.is_ahead_of_writer(&event);
        let page_event = event.clone();
        let is_unread = |topic: &Topic| {
            let mut readers = self.topics.iter().filter(|reader| reader.reads(topic));
            readers.any(|reader| is_ahead_of_writer || reader.has_unread(&page_event))
        };
        if event.topics().iter().any(is_unread) {
            events.insert(&event, event.topics());
        }
        events.name_topics(event, is_unread)
    }

    /// Continues with the logs of topics that the client has joined, of which it has all events up to `position`.
    fn continue_at(&mut self, position: u64, joined: JoinedTopics, resumed_events: ResumedEvents) {
        if self.topics.is_empty() {
            self.position = position;
            self.cursor_position = position;
        } else if self.position < position {
            // The reader has read its other topics only up to an earlier position.
            self.raise_catch_up_end(position);
            self.resumed_events = (!resumed_events.is_empty()).then(|| Box::new(resumed_events));
        } else {
            // The reader has read its other topics up to a later position.
            self.position = position;
        }
        self.add_topics(joined, None);
    }
}
