//! How a reader takes events from pages of the broker, in a hub with a broker, before it joins the topics of these events.
//!
//! # The cursors of records
//! An event of a page has its own id as the cursor, so that each page moves the cursor on. Otherwise a client that polls, and gets only a part of
//! the events with each response, would get the same events with the next one.
//!
//! - **New topics** are read from the pages, too. Before the pages, the client gets those of their first events that are not after its cursor, from
//!   the hub's logs. The cursor goes back to these events.
//! - **Topics that a command has added** to others have pages of their own, while the others wait at the reader's position. A record of these pages
//!   has the smaller one of two cursors: its own, and the id at the reader's position. So the cursor goes back to the pages, and stays before the
//!   events of the other topics that the client has not got. At the end of the pages, it comes forward as after a catch-up from the logs.
//! - **Topics with a limited history** have no events in pages. The client is told of a gap in them before the pages, and gets their events from
//!   the logs after the pages. These events have the last cursor of the pages, because a cursor that goes back would never get past the pages:
//!   [`HubReader::is_gap_told`].
//!
//! An event of both kinds of topics is yielded twice, each time with the names of the topics of one kind.

use std::{
    cmp::Ordering,
    task::{Context, Poll, ready},
};

use super::{HubReader, MAX_READS_PER_POLL, reader_batches::BatchReadOutcome};
#[cfg(feature = "json")]
use crate::event::Topic;
use crate::{
    Error,
    event::{Gap, Item},
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
    #[cfg(any(feature = "json", feature = "server"))]
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

    /// Returns the next item of a resume from the broker. Returns `None` if the caller must read again: the client has joined its topics, or there
    /// are other items.
    ///
    /// # Errors
    /// The error that disconnects a subscriber that is too slow.
    // Kept out of line: for a client that reads the logs, the check costs only one comparison.
    #[inline(never)]
    pub(super) fn poll_backend_resume(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Item>, Error>> {
        let lists_members = self.lists_members();
        let Some(resume) = &mut self.backend_resume else {
            return Poll::Ready(Ok(None));
        };
        let end = ready!(resume.poll_begin(cx));
        if let (None, Some(first_events)) = (&end, resume.first_events()) {
            match ready!(first_events.poll_first_event(cx))? {
                Some(item) => return Poll::Ready(Ok(self.take_first_event(item))),
                None => *resume.first_events() = None,
            }
        }
        let outcome = match end {
            Some(end) => end,
            None => ready!(resume.poll_next(self.sender.as_ref(), cx)),
        };
        #[cfg(feature = "json")]
        let outcome = match outcome {
            // The stream does not end because of a command.
            UpstreamResumeOutcome::Unavailable if resume.is_added() => {
                UpstreamResumeOutcome::ReadLog(resume.join_logs())
            }
            outcome => outcome,
        };
        Poll::Ready(Ok(match outcome {
            UpstreamResumeOutcome::Item(item) => {
                if lists_members && matches!(item, Item::Gap(_)) {
                    match resume.compare_gap_with_writer() {
                        // The hub's list has every change before the end of this gap.
                        Some(Ordering::Less | Ordering::Equal) => {}
                        // The hub has no such list yet. The client returns later, and gets the gap then.
                        Some(Ordering::Greater) if !resume.is_added() => {
                            return Poll::Ready(Ok(Some(self.end_to_return())));
                        }
                        // The client gets a list at the end of the resume, too, and its cursor after that list.
                        _ => resume.hold_cursor(),
                    }
                }
                if let Item::Gap(gap) = &item {
                    resume.count_missed_on_resume(gap);
                }
                self.take_page_item(item)
            }
            #[cfg(feature = "json")]
            UpstreamResumeOutcome::ReadLog(BackendResumeEnd::Joined {
                position,
                joined,
                gap,
            }) if resume.is_added() => {
                // A command may wait for the end of the resume.
                cx.waker().wake_by_ref();
                self.join_added_topics(position, joined, gap);
                None
            }
            UpstreamResumeOutcome::ReadLog(BackendResumeEnd::Joined {
                position,
                joined,
                gap,
            }) => {
                let resumed_events = std::mem::take(resume.resumed_events());
                let is_cursor_held = resume.is_cursor_held();
                self.backend_resume = None;
                // A command may wait for the end of the resume.
                cx.waker().wake_by_ref();
                self.continue_at(position, joined, resumed_events);
                if let Some(gap) = gap {
                    self.push_member_lists_and_gap(gap);
                } else if is_cursor_held {
                    self.push_member_lists(None);
                    let cursor_position = match self.is_gap_told {
                        true => self.catch_up_end,
                        false => self.position,
                    };
                    let cursor = self.hub.id_at(cursor_position);
                    self.items.extend(cursor.map(Item::Cursor));
                }
                None
            }
            UpstreamResumeOutcome::ReadLog(BackendResumeEnd::Ended)
            | UpstreamResumeOutcome::Unavailable => Some(self.end_to_return()),
        }))
    }

    /// Takes an item of the first events of new topics. A gap follows the lists of members.
    fn take_first_event(&mut self, item: Item) -> Option<Item> {
        let Item::Gap(gap) = item else {
            return Some(item);
        };
        let resume = self.backend_resume.as_mut();
        let first_events = resume.map(|resume| resume.first_events());
        let Some(first_events) = first_events.filter(|_| gap.topic.is_none()) else {
            self.push_member_lists_and_gap(*gap);
            return None;
        };
        // The hub's feed has a gap, after which the reader of the first events has nothing to read. The pages say which events are missing after the
        // client's cursor. So this gap is about the events before the cursor, and does not move it.
        let topics: Vec<_> = first_events
            .take()
            .into_iter()
            .flat_map(|reader| reader.topic_names())
            .collect();
        for topic in topics {
            self.push_member_lists_and_gap(Gap::new(gap.reason).topic(topic));
        }
        None
    }

    /// Leaves a topic before the client has got all of its first events. Those that were taken from its log are still yielded, before the answer to
    /// the command.
    #[cfg(feature = "json")]
    pub(super) fn remove_first_events(&mut self, topic: &Topic) {
        let Some(resume) = &mut self.backend_resume else {
            return;
        };
        let mut taken = Vec::new();
        if let Some(first_events) = resume.first_events() {
            taken.extend(std::iter::from_fn(|| first_events.pop_taken()));
            first_events.remove_topic(topic);
            if first_events.topics.is_empty() {
                *resume.first_events() = None;
            }
        }
        for item in taken {
            let item = self.take_first_event(item);
            self.items.extend(item);
        }
    }

    /// Returns the next item up to the end of the catch-up. Returns `None` if there are no more. Events after this end are of the pages, even if the reader
    /// gets none of those before it.
    ///
    /// # Errors
    /// The error that disconnects a subscriber that is too slow.
    fn poll_first_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Item>, Error>> {
        for _ in 0..MAX_READS_PER_POLL {
            if let Some(item) = self.pop_taken() {
                return Poll::Ready(Ok(Some(item)));
            }
            if self.has_caught_up() {
                return Poll::Ready(Ok(None));
            }
            match self.read_batch() {
                BatchReadOutcome::Items | BatchReadOutcome::Again => {}
                BatchReadOutcome::Lagged => return Poll::Ready(Err(Error::lagged())),
                BatchReadOutcome::UpToDate => return Poll::Ready(Ok(None)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns the next item that was taken from the logs.
    fn pop_taken(&mut self) -> Option<Item> {
        self.pop_item()
            .or_else(|| self.buffer.pop().map(Item::Event))
    }

    /// Takes an item of a page. Returns it with the cursor that the client has after it.
    fn take_page_item(&mut self, item: Item) -> Option<Item> {
        let resume = self.backend_resume.as_mut()?;
        let item = resume.with_cursor(item)?;
        match item {
            Item::Gap(mut gap) => {
                resume.name_added_topic(&mut gap);
                self.push_member_lists_and_gap(*gap);
                None
            }
            item => {
                if let Item::Event(event) | Item::EventWithCursor { event, .. } = &item {
                    let is_read = |topic| self.topics.iter().any(|reader| reader.reads(topic));
                    if event.topics().iter().any(is_read) {
                        resume.resumed_events().insert(event);
                    }
                }
                Some(item)
            }
        }
    }

    /// Returns the end of the stream of a client that returns later.
    fn end_to_return(&self) -> Item {
        let retry = self.hub.broker().map(HubBroker::random_retry_delay);
        Item::Ended {
            retry: retry.unwrap_or_default(),
        }
    }

    /// Continues with the logs of topics that the client has joined, of which it has all events up to `position`.
    fn continue_at(&mut self, position: u64, joined: JoinedTopics, resumed_events: ResumedEvents) {
        if self.topics.is_empty() {
            self.position = position;
            self.cursor_position = position;
        } else if self.position < position {
            // The reader has read its other topics only up to an earlier position. The client was told of a gap in them.
            self.raise_catch_up_end(position);
            self.is_gap_told = self.catch_up_end == position;
            self.resumed_events = (!resumed_events.is_empty()).then(|| Box::new(resumed_events));
        } else {
            // The reader has read its other topics up to a later position.
            self.position = position;
        }
        self.add_topics(joined, None);
    }
}
