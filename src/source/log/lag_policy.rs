use std::{fmt, sync::Arc};

use crate::event::Event;

/// The policy of a [`Channel`](crate::Channel) or a [`Relay`](crate::Relay) for a connected subscriber that has not read events before the
/// log trimmed them.
///
/// The counts of the channel or relay include every event that a subscriber does not get.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum LagPolicy {
    /// The subscriber gets a gap (`lagged`) with the number of events that are missing, and goes on with the oldest event in the
    /// log.
    #[default]
    Gap,
    /// The subscriber is disconnected with an error ([`Error::is_lagged`](crate::Error::is_lagged)). When the client reconnects,
    /// it gets a gap (`expired`).
    Disconnect,
    /// The subscriber gets the newest event of each key among those that it missed: see [`LagPolicy::conflate`].
    Conflate(KeyFn),
}

/// The function that gives the key of an event, in a channel that [conflates](LagPolicy::conflate).
#[derive(Clone)]
pub struct KeyFn(Arc<DynKeyFn>);

type DynKeyFn = dyn Fn(&Event) -> Box<str> + Send + Sync;

impl LagPolicy {
    /// Returns the policy by which a subscriber that is too slow gets the newest event of each key among those that it missed, and
    /// then the events in the log. This policy suits events that replace older events of their key, such as prices.
    ///
    /// Of the events that it has trimmed from its log, the channel keeps the newest of each key. The log's limits on events and
    /// bytes apply to these events separately. A subscriber gets a gap only if these events exceed the limits.
    ///
    /// Only events that the log has trimmed are conflated: a subscriber gets every event that is still in the log, older events of a key
    /// included. If
    /// clients should get hardly more than the newest event of each key, let the log hold as many events as there are keys
    /// ([`max_events`](crate::source::channel::ChannelBuilder::max_events)).
    ///
    /// A client that reconnects with a cursor older than the log gets these events, too. A client without a cursor also gets them if it
    /// begins at [`StartPosition::Oldest`](crate::source::StartPosition::Oldest): its stream begins with a snapshot, the newest
    /// event of each key.
    ///
    /// ```
    /// use tower_push::{Channel, Event, source::{StartPosition, channel::LagPolicy}};
    ///
    /// let by_type = |event: &Event| event.event_type().map_or("", |name| name.as_str()).to_owned();
    /// let prices = Channel::builder().lag_policy(LagPolicy::conflate(by_type)).start(StartPosition::Oldest).build();
    /// ```
    pub fn conflate<F, K>(key: F) -> Self
    where
        F: Fn(&Event) -> K + Send + Sync + 'static,
        K: Into<Box<str>>,
    {
        Self::Conflate(KeyFn(Arc::new(move |event| key(event).into())))
    }

    /// Returns the event's key; `None` unless the channel conflates.
    pub(super) fn key_of(&self, event: &Event) -> Option<Box<str>> {
        match self {
            Self::Conflate(KeyFn(key)) => Some(key(event)),
            Self::Gap | Self::Disconnect => None,
        }
    }
}

impl fmt::Debug for KeyFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFn")
    }
}
