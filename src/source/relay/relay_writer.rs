use std::{error, fmt, sync::Arc};

use super::{missing_event::missing_event, relay_state::RelayState};
use crate::{
    event::{Event, EventId, Gap, Topic},
    source::log::AppendError,
};

/// The writing half of a [`Relay`](super::Relay). The task that reads the shared store pushes each event into the `RelayWriter`.
///
/// Events are pushed strictly in the order of the upstream: there is one `RelayWriter`, it has no clones, and pushing takes `&mut self`. The
/// methods never wait for a subscriber.
///
/// If the `RelayWriter` is dropped and not [closed](Self::close), for example because its task has panicked, the subscribers' streams end, and
/// the clients are told to return later.
///
/// ```
/// use tower_push::{Event, Relay};
///
/// let (mut writer, relay) = Relay::builder().build();
/// writer.push(Event::text("21.5").with_id("1716-0~k3")?)?;
/// assert_eq!(relay.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RelayWriter {
    relay: Arc<RelayState>,
}

/// The error of [`RelayWriter::push`]. The event was not pushed.
///
/// ```
/// use tower_push::{Event, Relay, source::relay::PushError};
///
/// let (mut writer, _relay) = Relay::builder().build();
/// assert_eq!(writer.push(Event::text("x")), Err(PushError::MissingId));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// The event has no id, so that clients could not resume after it.
    MissingId,
    /// The event's id is [`EventId::FINISHED`], with which clients say that a source has finished.
    ReservedId,
    /// The relay has an event with this id. A reader that pushes some events again after it has reconnected can ignore this error.
    DuplicateId,
}

impl PushError {
    /// Checks that the event has an id from which clients can resume.
    ///
    /// # Errors
    /// [`MissingId`](Self::MissingId) or [`ReservedId`](Self::ReservedId).
    pub(crate) fn check_id(event: &Event) -> Result<(), Self> {
        match event.id() {
            None => Err(Self::MissingId),
            Some(id) if id.is_finished() => Err(Self::ReservedId),
            Some(_) => Ok(()),
        }
    }
}

impl RelayWriter {
    pub(super) fn new(relay: Arc<RelayState>) -> Self {
        Self { relay }
    }

    /// Appends an event to the log, and wakes the subscribers. The event's id is the cursor that resumes after it.
    ///
    /// # Errors
    /// [`PushError`] if the event's id cannot be a cursor of this relay.
    ///
    /// ```
    /// use tower_push::{Event, Relay, source::relay::PushError};
    ///
    /// let (mut writer, _relay) = Relay::builder().build();
    /// let event = Event::json_text("[1]")?.with_topic("orders/42")?.with_id("1716-0~k3")?;
    /// writer.push(event.clone())?;
    /// assert_eq!(writer.push(event), Err(PushError::DuplicateId));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn push(&mut self, event: Event) -> Result<(), PushError> {
        PushError::check_id(&event)?;
        self.append(event)
    }

    /// Appends an entry in place of one event that the writer could not get: the event with this id. `topic` is the event's topic, if it is
    /// known. Each client gets a [gap](Gap) with the reason [`Unsupported`](crate::GapReason::Unsupported) in place of the event, and the log
    /// keeps its other events. The entry counts as an event in [`RelayCounts`](super::RelayCounts) and in the limits of the log. The key function of a
    /// relay that [conflates](crate::source::channel::LagPolicy::Conflate) gets the entry, too: an event with this id and topic.
    ///
    /// For several missing events, or one whose id is not known, use [`gap`](Self::gap).
    ///
    /// # Errors
    /// [`PushError`] if the id cannot be a cursor of this relay.
    ///
    /// ```
    /// use tower_push::{Event, Relay};
    ///
    /// let (mut writer, relay) = Relay::builder().build();
    /// writer.push(Event::text("21.5").with_id("7")?)?;
    /// // The transport from the store cannot carry the next event.
    /// writer.push_missing("8".parse()?, None)?;
    /// assert_eq!((relay.len(), writer.last_id()), (2, Some("8".parse()?)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn push_missing(&mut self, id: EventId, topic: Option<Topic>) -> Result<(), PushError> {
        let event = missing_event(id, topic);
        PushError::check_id(&event)?;
        self.relay.set_had_missing_event();
        self.append(event)
    }

    fn append(&mut self, event: Event) -> Result<(), PushError> {
        match self.relay.log.append(event, |event, _| event) {
            // Only the writer closes the log.
            Ok(_) | Err(AppendError::Closed) => Ok(()),
            Err(AppendError::DuplicateId) => Err(PushError::DuplicateId),
        }
    }

    /// Announces that events are missing after the last one that was pushed. The log restarts: its events are dropped, and a client with an
    /// earlier cursor gets events from the upstream, or a gap.
    ///
    /// The fields `reason` and `missed` of `gap` describe the missing events. `resumed` is the id of the last missing event, if it is known;
    /// the next event that is pushed follows it. The other fields of `gap` are not used. Every connected subscriber gets the gap with a number
    /// of its own: `missed`, plus the pushed events that this subscriber had not read.
    ///
    /// ```
    /// use tower_push::{Gap, GapReason, Relay};
    ///
    /// let (mut writer, _relay) = Relay::builder().build();
    /// // The upstream was deleted and created again: no earlier id is valid.
    /// writer.gap(&Gap::new(GapReason::Epoch));
    /// // The upstream has dropped three events before this process could read them.
    /// writer.gap(&Gap::new(GapReason::Expired).missed(3).resumed("1716-9~p2".parse()?));
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    pub fn gap(&mut self, gap: &Gap) {
        self.relay.counters.add_gap();
        if let Some(upstream) = &self.relay.upstream {
            upstream.forget_transient_answers();
        }
        self.relay.log.restart_after_gap(gap);
    }

    /// Returns the id of the last event that was pushed, from which a reader that reconnects continues. Before the first event, returns
    /// [`RelayBuilder::start_after`](super::RelayBuilder::start_after); after a gap, the gap's `resumed`.
    ///
    /// ```
    /// use tower_push::{Event, Relay};
    ///
    /// let (mut writer, _relay) = Relay::builder().start_after(41.into()).build();
    /// assert_eq!(writer.last_id(), Some(41.into()));
    /// writer.push(Event::text("x").with_id(42)?)?;
    /// assert_eq!(writer.last_id(), Some(42.into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn last_id(&self) -> Option<EventId> {
        self.relay.log.last_id()
    }

    /// Closes the relay for good. Subscribers get the remaining events, and then [`Item::Finished`](crate::Item::Finished).
    ///
    /// ```
    /// use tower_push::Relay;
    ///
    /// let (writer, _relay) = Relay::builder().build();
    /// writer.close();
    /// ```
    pub fn close(self) {
        self.relay.finish();
    }
}

impl Drop for RelayWriter {
    fn drop(&mut self) {
        self.relay.log.close();
    }
}

impl fmt::Debug for RelayWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayWriter")
            .field("last_id", &self.last_id())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingId => "the event has no id",
            Self::ReservedId => "the event's id is reserved",
            Self::DuplicateId => "the relay has an event with this id",
        })
    }
}

impl error::Error for PushError {}
