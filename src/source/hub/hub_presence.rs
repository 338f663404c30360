use std::{
    io::{self, Write},
    iter,
    sync::{Arc, Weak},
    time::Duration,
};

use http::StatusCode;
use serde_json::Value;
use tokio::{
    runtime::Handle,
    task::{JoinHandle, yield_now},
    time::sleep,
};

use super::{
    HubCounts, PublishOptions, control_events,
    hub_state::{HubState, UnfinishedPublication},
    local_members::LocalMembers,
    presence_table::{PresenceChange, PresenceTable, TooManyMembers},
};
use crate::{
    event::{EventId, Topic},
    source::Rejection,
    sync::{Mutex, MutexGuard, lock},
};

/// The members of a hub's topics, and the task that lets members leave.
///
/// In a hub with a [`PresenceBackend`](super::PresenceBackend), `table` changes when the writer pushes the event of the change. The members of
/// this node are in `local`, and `presence_sync` tells the broker of them.
///
/// # Invariant: a list and the events after it have each change exactly once
/// The lock of the table is held while the table changes and while the event of the change is published. So a list that is read under this
/// lock has exactly the changes whose events are at or before the hub's published position. (After a gap of the feed, the list can be newer,
/// until the writer has pushed the events up to [`HubWriter::set_members`](super::HubWriter::set_members).)
#[derive(Debug)]
pub(super) struct HubPresence(Mutex<LockedPresence>);

#[derive(Debug)]
pub(super) struct LockedPresence {
    /// The members of all nodes, as clients see them.
    pub(super) table: PresenceTable,
    /// The members that are connected to this node. `None` in a hub without a presence backend.
    pub(super) local: Option<Box<LocalMembers>>,
    /// The id of the event up to which `table` has the changes already, until the writer has pushed it.
    pub(super) loaded_up_to: Option<EventId>,
    /// The time from which on the broker's list is complete again after a loss. Until then, `table` may have members that are gone.
    pub(super) complete_at: Option<Duration>,
    /// The task that removes members whose grace time has ended.
    departure_task: Option<JoinHandle<()>>,
    /// The task that makes the requests to the presence backend.
    pub(super) request_task: Option<JoinHandle<()>>,
}

/// Keeps one connection of a member of a topic counted until it is dropped. From [`TopicPresence::enter`](super::TopicPresence::enter).
///
/// When the last `MemberConnection` of the member is dropped, the member leaves after the [grace time](super::PresenceOptions::grace).
#[derive(Debug)]
#[must_use = "the connection ends when this value is dropped"]
pub struct MemberConnection {
    hub: Arc<HubState>,
    topic: Topic,
    key: Arc<str>,
    has_grace: bool,
}

/// The keys and the values of the members of one topic.
pub(super) type MemberPairs = Vec<(Arc<str>, Arc<Value>)>;

/// The time after which a client returns if there was no room for another member.
const TOO_MANY_MEMBERS_RETRY: Duration = Duration::from_secs(10);

/// The maximum number of members that leave while the lock is held.
const MAX_DEPARTURES: usize = 64;

impl MemberConnection {
    /// Returns the topic.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Returns the key of the member.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Ends the connection without a grace time: with the last connection, the member leaves at once.
    pub fn leave_now(mut self) {
        self.has_grace = false;
    }
}

impl Drop for MemberConnection {
    fn drop(&mut self) {
        self.hub
            .end_connection(&self.topic, &self.key, self.has_grace);
    }
}

impl Drop for LockedPresence {
    fn drop(&mut self) {
        let tasks = [&self.departure_task, &self.request_task];
        tasks.into_iter().flatten().for_each(JoinHandle::abort);
    }
}

impl HubPresence {
    /// Creates the state of a hub without members. `local` is that of a hub with a presence backend.
    pub(super) fn new(local: Option<LocalMembers>) -> Self {
        Self(Mutex::new(LockedPresence {
            table: PresenceTable::default(),
            local: local.map(Box::new),
            loaded_up_to: None,
            complete_at: None,
            departure_task: None,
            request_task: None,
        }))
    }
}

impl LockedPresence {
    pub(super) fn members(&self, topic: &Topic) -> MemberPairs {
        self.table.members(topic)
    }

    /// Starts the task that lets members leave, unless the task already runs. Returns `false` outside of a tokio runtime.
    fn ensure_departure_task(&mut self, hub: &Arc<HubState>) -> bool {
        ensure_task(&mut self.departure_task, || {
            remove_departed(Arc::downgrade(hub))
        })
    }
}

/// Starts a task unless it already runs. Returns `false` outside of a runtime.
pub(super) fn ensure_task<F>(task: &mut Option<JoinHandle<()>>, run: impl FnOnce() -> F) -> bool
where
    F: Future<Output = ()> + Send + 'static,
{
    // `is_finished` is also true for a task whose runtime has shut down.
    let is_running = |task: &JoinHandle<()>| !task.is_finished();
    if task.as_ref().is_some_and(is_running) {
        return true;
    }
    let Ok(runtime) = Handle::try_current() else {
        return false;
    };
    *task = Some(runtime.spawn(run()));
    true
}

/// Lets members leave until no member is without a connection or the hub is gone.
async fn remove_departed(hub: Weak<HubState>) {
    let remove = || hub.upgrade()?.remove_departed_members();
    while let Some(next) = remove() {
        match next.is_zero() {
            true => yield_now().await,
            false => sleep(next).await,
        }
    }
}

impl HubState {
    /// Locks the members. While the lock is held, the caller must not publish and must not drop a [`MemberConnection`].
    pub(super) fn lock_presence(&self) -> MutexGuard<'_, LockedPresence> {
        lock(&self.presence.0)
    }

    /// Returns whether clients get members' events. In a hub whose topics have no history, or their last value only, clients could not get every
    /// event. A hub with a broker and without a presence backend has no members.
    pub(super) fn publishes_presence(&self) -> bool {
        self.config.publishes_presence() && (self.broker().is_none() || self.has_presence_backend())
    }

    /// Adds a connection of a member of a topic.
    ///
    /// # Errors
    /// The rejection of a client that cannot be a member.
    pub(super) fn enter(
        self: &Arc<Self>,
        topic: &Topic,
        key: &Arc<str>,
        value: Arc<Value>,
    ) -> Result<MemberConnection, Rejection> {
        self.check_member(topic, key, &value)?;
        let published = {
            let presence = &mut *self.lock_presence();
            let options = &self.config.presence;
            let full = |TooManyMembers| too_many_members_rejection();
            match &mut presence.local {
                None => {
                    let change = presence.table.enter(topic, key, value, options);
                    let change = change.map_err(full)?;
                    change.and_then(|change| self.publish_change(change))
                }
                Some(local) => {
                    if !presence.table.has_member(topic, key) {
                        presence.table.check_room(topic, options).map_err(full)?;
                    }
                    local.enter(topic, key, value).map_err(full)?;
                    self.tell_broker_of_members(presence);
                    None
                }
            }
        };
        finish_publication(published);
        Ok(MemberConnection {
            hub: self.clone(),
            topic: topic.clone(),
            key: key.clone(),
            has_grace: true,
        })
    }

    /// Sets the value of a member. Returns whether the topic has the member.
    ///
    /// # Errors
    /// A rejection if [`check_member`](Self::check_member) returns one, and of any member if too many changes wait for the broker.
    pub(super) fn update_member(
        self: &Arc<Self>,
        topic: &Topic,
        key: &Arc<str>,
        value: Arc<Value>,
    ) -> Result<bool, Rejection> {
        self.check_member(topic, key, &value)?;
        let (is_member, published) = {
            let presence = &mut *self.lock_presence();
            let is_member = presence.table.has_member(topic, key);
            match &mut presence.local {
                None => {
                    let change = presence.table.update(topic, key, value);
                    let published = change.and_then(|change| self.publish_change(change));
                    (is_member, published)
                }
                Some(local) => {
                    let is_member = is_member || local.has_member(topic, key);
                    if is_member {
                        let updated = local.update(topic, key, value);
                        updated.map_err(|TooManyMembers| too_many_members_rejection())?;
                        self.tell_broker_of_members(presence);
                    }
                    (is_member, None)
                }
            }
        };
        finish_publication(published);
        Ok(is_member)
    }

    /// Removes a connection of a member.
    fn end_connection(self: &Arc<Self>, topic: &Topic, key: &Arc<str>, has_grace: bool) {
        let published = {
            let presence = &mut *self.lock_presence();
            let grace = self.config.presence.grace;
            let has_grace = has_grace && !grace.is_zero();
            let leaves_at = has_grace.then(|| self.now().saturating_add(grace));
            // Outside of a tokio runtime no task measures the grace time, so the member leaves at once.
            let leaves_at = leaves_at.filter(|_| presence.ensure_departure_task(self));
            match &mut presence.local {
                None => {
                    let change = presence.table.leave(topic, key, leaves_at);
                    change.and_then(|change| self.publish_change(change))
                }
                Some(local) => {
                    if local.leave(topic, key, leaves_at, &presence.table) {
                        self.tell_broker_of_members(presence);
                    }
                    None
                }
            }
        };
        finish_publication(published);
    }

    /// Removes members whose time to leave has come, at most [`MAX_DEPARTURES`]. Returns the time until the next member leaves.
    fn remove_departed_members(self: &Arc<Self>) -> Option<Duration> {
        let mut published = Vec::new();
        let next = {
            let presence = &mut *self.lock_presence();
            let now = self.now();
            let next = match &mut presence.local {
                None => {
                    let departed = iter::from_fn(|| presence.table.expire_one(now));
                    let departed = departed.take(MAX_DEPARTURES);
                    published.extend(departed.map(|change| self.publish_change(change)));
                    presence.table.next_departure()
                }
                Some(local) => {
                    let departed = iter::from_fn(|| local.expire_one(now, &presence.table));
                    let departed = departed.take(MAX_DEPARTURES);
                    let must_tell_broker = departed.fold(false, |must_tell, one| must_tell | one);
                    let next = local.next_departure();
                    if must_tell_broker {
                        self.tell_broker_of_members(presence);
                    }
                    next
                }
            };
            if next.is_none() {
                // The task ends, and it publishes without the lock before. A departure of this time starts another task.
                presence.departure_task = None;
            }
            next.map(|time| time.saturating_sub(now))
        };
        published.into_iter().for_each(finish_publication);
        next
    }

    /// Returns the members of a topic, and the id of the hub's newest event.
    pub(super) fn list_members(&self, topic: &Topic) -> (MemberPairs, EventId) {
        let presence = self.lock_presence();
        let members = presence.members(topic);
        (members, self.last_id())
    }

    pub(super) fn member_count(&self, topic: &Topic) -> usize {
        self.lock_presence().table.member_count(topic)
    }

    pub(super) fn count_members(&self, counts: &mut HubCounts) {
        let presence = self.lock_presence();
        counts.members = presence.table.len();
        match &presence.local {
            None => counts.members_here = counts.members,
            Some(local) => {
                counts.members_here = local.len();
                counts.pending_members = local.pending_len();
            }
        }
    }

    /// Returns the topic whose members join and leave in the topic `presence_topic`, which is the same topic with the suffix of
    /// [`PresenceOptions::topic_suffix`](super::PresenceOptions::topic_suffix).
    pub(super) fn topic_with_members_of(&self, presence_topic: &Topic) -> Topic {
        let suffix = &*self.config.presence.topic_suffix;
        let base = presence_topic.as_str().strip_suffix(suffix);
        let base = base.and_then(|base| Topic::new(base).ok());
        base.unwrap_or_else(|| presence_topic.clone())
    }
}

impl HubState {
    /// Publishes the event of a change, while the members are locked.
    fn publish_change(&self, change: PresenceChange) -> Option<UnfinishedPublication> {
        let topic = self.presence_topic_of(&change.topic).ok()?;
        let event = control_events::presence_changed(&change);
        let options = PublishOptions::new();
        let publish =
            || self.publish_under_lock(std::slice::from_ref(&topic), None, event, &options);
        self.publishes_presence().then(publish)
    }

    /// Returns the topic that has the events of the members of `topic`.
    fn presence_topic_of(&self, topic: &Topic) -> Result<Topic, Rejection> {
        let suffix = &*self.config.presence.topic_suffix;
        if suffix.is_empty() {
            return Ok(topic.clone());
        }
        let invalid = |_| bad_request("the topic's name is not one that can have members");
        Topic::new(format!("{topic}{suffix}")).map_err(invalid)
    }

    /// Returns a rejection if the hub has a broker without members, if the topic cannot have members, or if the key and the value exceed `max_member_len`.
    fn check_member(&self, topic: &Topic, key: &str, value: &Value) -> Result<(), Rejection> {
        if self.broker().is_some() && !self.has_presence_backend() {
            let message = "the hub's broker has no members";
            return Err(Rejection::new(StatusCode::NOT_IMPLEMENTED).message(message));
        }
        self.presence_topic_of(topic)?;
        let mut budget = LengthLimitedWriter(self.config.presence.max_member_len);
        let fits = budget.write_all(key.as_bytes()).is_ok();
        match fits && serde_json::to_writer(&mut budget, value).is_ok() {
            true => Ok(()),
            false => Err(bad_request(
                "the key and the value of a member are too long",
            )),
        }
    }
}

/// A writer that fails when more bytes are written than this number.
struct LengthLimitedWriter(usize);

impl Write for LengthLimitedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.checked_sub(bytes.len()) {
            Some(rest) => {
                self.0 = rest;
                Ok(bytes.len())
            }
            None => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn finish_publication(published: Option<UnfinishedPublication>) {
    if let Some(published) = published {
        published.finish();
    }
}

fn bad_request(message: &'static str) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST).message(message)
}

fn too_many_members_rejection() -> Rejection {
    Rejection::new(StatusCode::SERVICE_UNAVAILABLE)
        .message("the topic has no room for another member")
        .retry_after(TOO_MANY_MEMBERS_RETRY)
}
