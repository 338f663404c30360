use std::{
    fmt,
    sync::{Arc, Weak},
};

use super::{
    HubEvent,
    hub_broker::{DuplicateId, FeedGap},
    hub_state::{EventAppender, HubState, copies_for_topics, drop_after_publication},
    topic_state::TopicEvent,
    topic_table::DeferredDrops,
};
use crate::{
    event::{EventId, Gap},
    source::{log::event_memory_len, relay::PushError},
    sync::{Ordering, lock},
};

/// The writing half of a hub with a broker, from [`HubBuilder::build_with_backend`](super::HubBuilder::build_with_backend). The task that reads
/// the broker pushes each event into the `HubWriter`.
///
/// Events are pushed strictly in the order of the broker: there is one `HubWriter`, it has no clones, and pushing takes `&mut self`. The methods
/// never wait for a subscriber. The writer does not keep the hub alive: when the hub and all its subscribers are gone, pushing does nothing.
///
/// If the `HubWriter` is dropped, for example because its task has panicked, the subscribers' streams end after the last event, and the clients
/// are told to return later.
pub struct HubWriter {
    hub: Weak<HubState>,
}

impl HubWriter {
    pub(super) fn new(hub: Weak<HubState>) -> Self {
        Self { hub }
    }

    /// Appends an event to the logs of its topics, and wakes the subscribers. The event's id is the cursor that resumes after it.
    ///
    /// # Errors
    /// [`PushError`] if the event's id cannot be a cursor of this hub.
    pub fn push(&mut self, event: HubEvent) -> Result<(), PushError> {
        PushError::check_id(event.event())?;
        match self.hub.upgrade() {
            Some(hub) => hub.push_from_writer(event),
            None => Ok(()),
        }
    }

    /// Announces that events are missing after the last one that was pushed, in any topics. The logs of all topics begin anew: their events are
    /// dropped, and for an earlier cursor the hub reads the backend.
    ///
    /// Every connected subscriber gets a gap with the `reason` of `gap`, and without a topic and a number. `resumed` is the id of the last of the
    /// missing events, if it is known; the next event that is pushed follows it. The other fields of `gap` are not used.
    pub fn gap(&mut self, gap: &Gap) {
        if let Some(hub) = self.hub.upgrade() {
            hub.restart_after_gap(gap);
        }
    }

    /// Sets the members of all topics of a hub with a [`PresenceBackend`](super::PresenceBackend). Call this method before the first event
    /// is pushed, and before each [`gap`](Self::gap). Does nothing in other hubs.
    ///
    /// From now on, the hub changes the list with each event that is [marked](HubEvent::changing_members_of) and is pushed. It skips the events that
    /// [`HubBackend::compare_ids`](super::HubBackend::compare_ids) places at or before the snapshot's id. Connected clients get the
    /// new list only with the next [`gap`](Self::gap). Returns whether this list is another one than before.
    ///
    /// If the snapshot [may lack members](super::MemberSnapshot::storage_age), the members that the hub has stay in the list, and no events are skipped.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn set_members(&mut self, members: super::MemberSnapshot) -> bool {
        let hub = self.hub.upgrade();
        hub.is_some_and(|hub| hub.set_members(members))
    }

    /// Returns whether it is time to read the members again, because the list may have members that are gone.
    #[cfg(feature = "json")]
    pub(super) fn must_read_members_again(&self) -> bool {
        let hub = self.hub.upgrade();
        hub.is_some_and(|hub| hub.must_read_members_again())
    }

    /// Returns the id of the last event that was pushed, from which a reader that reconnects continues. Before the first event, returns the
    /// id with which the hub was built; after a gap, the gap's `resumed`.
    pub fn last_id(&self) -> Option<EventId> {
        let hub = self.hub.upgrade()?;
        hub.id_at(hub.published_position())
    }
}

/// The methods by which a writer changes its hub.
impl HubState {
    /// Publishes an event to which the broker has given an id, at the next position.
    fn push_from_writer(self: &Arc<Self>, event: HubEvent) -> Result<(), PushError> {
        // The members are locked before the table, as in a hub without a broker.
        #[cfg(feature = "json")]
        let mut pushed_change = self.lock_presence_for(&event);
        let HubEvent {
            topics,
            event,
            except,
            is_ephemeral,
            members_topic: _,
        } = event;
        let (Some(broker), Some(id)) = (self.broker(), event.id().cloned()) else {
            return Err(PushError::MissingId);
        };
        let memory_len = event_memory_len(&event);
        let copies = match topics.as_slice() {
            [] => None,
            [first, others @ ..] => Some(copies_for_topics(event, first, others)),
        };
        let mut deferred_drops = DeferredDrops::default();
        let mut woken = Vec::new();
        let position = {
            let table = &mut *lock(&self.table);
            let pushed = broker.append_id(&id, || table.allocate_position());
            pushed.map_err(|DuplicateId| PushError::DuplicateId)?;
            #[cfg(feature = "json")]
            if let Some(change) = &mut pushed_change {
                self.apply_pushed_change(change, &id);
            }
            let now = self.now();
            let mut appender = EventAppender {
                hub: self,
                table,
                topics: topics.as_slice(),
                except: except.as_ref(),
                id: &id,
                now,
                deferred_drops: &mut deferred_drops,
                is_ephemeral: is_ephemeral || self.config.has_no_history(),
                woken_patterns: Vec::new(),
            };
            if let Some((first, others)) = copies {
                for (topic, event) in topics.iter().zip([first].into_iter().chain(others)) {
                    woken.extend(appender.append(topic, None, event));
                }
            }
            woken.append(&mut appender.woken_patterns);
            table.sweep(1, now, &self.config, &mut deferred_drops);
            let position = table.last_position();
            self.published_position.store(position, Ordering::Release);
            position
        };
        #[cfg(feature = "json")]
        drop(pushed_change);
        self.counters.add_appended();
        let event = TopicEvent {
            position,
            memory_len,
        };
        woken.iter().for_each(|topic| topic.on_published(event));
        broker.waiting_resumes.wake_all();
        drop_after_publication(deferred_drops);
        Ok(())
    }

    /// Drops the events of all topics, and announces a gap to all readers.
    fn restart_after_gap(&self, gap: &Gap) {
        let Some(broker) = self.broker() else {
            return;
        };
        broker.upstream.forget_transient_answers();
        let mut deferred_drops = DeferredDrops::default();
        let (woken, position) = {
            let table = &mut *lock(&self.table);
            let position = table.allocate_position();
            let reason = gap.reason;
            broker.restart_after_gap(FeedGap { position, reason }, gap.resumed.clone());
            let woken = table.restart_after_gap(position, &mut deferred_drops);
            self.published_position.store(position, Ordering::Release);
            (woken, position)
        };
        woken.iter().for_each(|topic| topic.flush_up_to(position));
        broker.waiting_resumes.wake_all();
        drop_after_publication(deferred_drops);
    }

    /// Ends the streams of all readers when they have read the last event.
    fn end_feed(&self) {
        let Some(broker) = self.broker() else {
            return;
        };
        broker.set_writer_gone();
        let topics = lock(&self.table).all_topics();
        let position = self.published_position();
        topics.iter().for_each(|topic| topic.flush_up_to(position));
        broker.waiting_resumes.wake_all();
    }
}

impl Drop for HubWriter {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.end_feed();
        }
    }
}

impl fmt::Debug for HubWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubWriter")
            .field("last_id", &self.last_id())
            .finish_non_exhaustive()
    }
}
