use std::{borrow::Cow, time::Duration};

use bytes::Bytes;

use super::{Event, EventId, Gap, Payload};
use crate::error::BoxError;

/// What a source's stream yields.
#[derive(Clone, Debug)]
pub enum Item {
    /// An event.
    Event(Event),
    /// Events that the subscriber will never get.
    Gap(Gap),
    /// The cursor moves without an event: after filtering, at the end of a replay, or first of all, so that a connection
    /// that drops before its first event can be resumed.
    Cursor(EventId),
    /// The source has finished for ever, so that no client should come back. The rest of the stream is not asked for.
    ///
    /// The transport says so in-band and moves the client's cursor to [`EventId::FINISHED`], with which a client that
    /// comes back all the same, as an `EventSource` does once, is answered 204: the answer on which it stops.
    Finished,
    /// The stream ends for now, as it does when it yields `None`, and the client should come back after this time. The rest of
    /// the stream is not asked for.
    ///
    /// Where many clients are told so at once, give each a time of its own, or all come back at once.
    Ended {
        /// How long to stay away.
        retry: Duration,
    },
    /// The stream ends for now because what the client was let in by has expired. The rest of the stream is not asked for.
    ///
    /// A source need not yield it: see `Subscription::expire_by`.
    Expired,
}

/// What can be pushed as it is: implemented for [`Event`], texts, bytes, [`Item`] itself, and `Result`s of those.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{IntoItem, Item};
///
/// let Item::Event(event) = "hello".into_item()? else { unreachable!() };
/// assert_eq!(event.payload().as_text(), Some("hello"));
/// # Ok::<(), tower_push::BoxError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be pushed as it is",
    note = "what can be are `Event`s, texts, bytes, `Result`s of those, and, with the feature `json`, `Json(value)`"
)]
pub trait IntoItem {
    /// Converts, or fails the stream.
    ///
    /// # Errors
    /// Whatever the value has to report. It ends the stream, and the client sees that it was cut.
    fn into_item(self) -> Result<Item, BoxError>;
}

impl IntoItem for Item {
    fn into_item(self) -> Result<Item, BoxError> {
        Ok(self)
    }
}

impl IntoItem for Event {
    fn into_item(self) -> Result<Item, BoxError> {
        Ok(Item::Event(self))
    }
}

impl IntoItem for Gap {
    fn into_item(self) -> Result<Item, BoxError> {
        Ok(Item::Gap(self))
    }
}

impl IntoItem for Payload {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::from(self).into_item()
    }
}

/// A text event.
impl IntoItem for String {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::text(self).into_item()
    }
}

/// A text event.
impl IntoItem for &str {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::text(self).into_item()
    }
}

/// A text event.
impl IntoItem for Cow<'_, str> {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::text(self).into_item()
    }
}

/// A binary event.
impl IntoItem for Bytes {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::binary(self).into_item()
    }
}

/// A binary event.
impl IntoItem for Vec<u8> {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::binary(self).into_item()
    }
}

impl<T: IntoItem, E: Into<BoxError>> IntoItem for Result<T, E> {
    fn into_item(self) -> Result<Item, BoxError> {
        self.map_err(Into::into)?.into_item()
    }
}

/// A value that is pushed as JSON.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{IntoItem, Json};
///
/// Json(vec![1, 2, 3]).into_item()?;
/// # Ok::<(), tower_push::BoxError>(())
/// ```
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Json<T>(pub T);

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
impl<T: serde::Serialize> IntoItem for Json<T> {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::json(&self.0)?.into_item()
    }
}
