use std::time::Duration;

use tower_push_proto::{Event, EventId, Gap};

use crate::{error::Error, transport::Transport};

/// An item of an [`EventStream`](crate::EventStream).
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientItem {
    /// An event.
    Event {
        /// The event.
        event: Event,
        /// The cursor that resumes after the event, if it is not the event's id: a server sends such a cursor with the older events of a topic
        /// while the client is already further ahead on other topics. [`cursor`](Self::cursor) returns the cursor in both cases.
        cursor: Option<EventId>,
    },
    /// Events that the client will never receive. A client that keeps a state should load the state again.
    Gap(Gap),
    /// The client's cursor has moved without an event.
    Cursor(EventId),
    /// The server has accepted the subscription. Yielded once for each connection, except that successful long polls one after another
    /// count as one connection.
    Connected {
        /// The transport over which the events arrive.
        transport: Transport,
    },
    /// The connection has ended or failed, and the client will send another request.
    Reconnecting {
        /// The time until the next request.
        delay: Duration,
        /// The reason for which the connection failed. `None` if the server has ended the response as planned.
        error: Option<Error>,
    },
    /// The source has finished. The stream ends after this item.
    Finished,
}

impl ClientItem {
    /// Returns the event if the item has one, else `None`.
    pub fn event(&self) -> Option<&Event> {
        match self {
            Self::Event { event, .. } => Some(event),
            _ => None,
        }
    }

    /// Returns the event if the item has one, else `None`.
    pub fn into_event(self) -> Option<Event> {
        match self {
            Self::Event { event, .. } => Some(event),
            _ => None,
        }
    }

    /// Returns the cursor that resumes after the item, or `None` if the client's cursor stays where it is.
    pub fn cursor(&self) -> Option<&EventId> {
        match self {
            Self::Event { event, cursor } => cursor.as_ref().or(event.id()),
            Self::Gap(gap) => gap.resumed.as_ref(),
            Self::Cursor(cursor) => Some(cursor),
            Self::Connected { .. } | Self::Reconnecting { .. } | Self::Finished => None,
        }
    }
}
