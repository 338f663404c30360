use std::{borrow::Cow, time::Duration};

use bytes::Bytes;

use super::{CloseFrame, Event, EventId, Gap, GapReason, Payload};
use crate::{
    encoder::{Encoder, StreamEnd},
    error::{BoxError, Error},
    frame_buffer::FrameBuffer,
};

/// An item of a source's stream: an event, a gap, a cursor, or an end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Item {
    /// An event. The client's cursor moves to the event's id, if it has one.
    Event(Event),
    /// An event with a cursor of its own: a client that resumes after this event sends `cursor` instead of the event's id.
    ///
    /// A stream that joins several logs yields this item while one log catches up: an old event of this log then comes after newer events
    /// of another log. A client that resumed after the id of the old event would receive the newer events again.
    EventWithCursor {
        /// The event.
        event: Event,
        /// The cursor that resumes after the event.
        cursor: EventId,
    },
    /// Events that the subscriber will never receive. Boxed, because gaps are rare and large: every other item stays small.
    Gap(Box<Gap>),
    /// A cursor: the client's cursor moves to it without an event.
    ///
    /// A source yields a cursor after events that it filters out, at the end of a replay, or as its first item. A cursor as the first item
    /// makes a connection resumable even if it drops before its first event.
    Cursor(EventId),
    /// The source has finished: clients must not reconnect. The stream is not polled again.
    ///
    /// The transport announces the end in-band, and moves the client's cursor to [`EventId::FINISHED`]. An `EventSource` reconnects once
    /// with this cursor, gets the response 204, and then stops.
    Finished,
    /// The stream ends, and clients may reconnect after the time `retry`. The stream is not polled again.
    ///
    /// If many streams end at the same time, give each client a different `retry`, so that the clients do not all reconnect at once.
    Ended {
        /// The time that the client waits before it reconnects. Transports send whole milliseconds, except that long-polling sends whole
        /// seconds.
        retry: Duration,
    },
    /// The stream ends because the client's authorization has expired. The stream is not polled again.
    ///
    /// A source need not yield this item: with `Subscription::expire_by` the stream ends by itself.
    Expired,
    /// The stream ends with a WebSocket close frame of the application, such as 4403 "Forbidden". [`Item::closed`] makes this item. The stream
    /// is not polled again. Boxed, so that every other item stays small.
    Closed(Box<EndWithCloseFrame>),
}

/// The end of a stream, and the close frame with which a WebSocket announces it: the content of [`Item::Closed`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndWithCloseFrame {
    /// The close frame that a WebSocket sends.
    pub frame: CloseFrame,
    /// The meaning of the end for the client: [`StreamEnd::FINISHED`] if the client must not reconnect, [`StreamEnd::reconnect`] if the client
    /// may.
    pub end: StreamEnd,
}

impl Item {
    /// Makes an item that ends the stream with a WebSocket close frame of the application.
    ///
    /// A WebSocket sends `frame`. If its message format has a message for the end, the message for `end` is sent before the frame. Every
    /// other transport sends `end` alone, as if the source had yielded [`Finished`](Self::Finished), [`Ended`](Self::Ended) or
    /// [`Expired`](Self::Expired).
    ///
    /// ```
    /// # mod tower_push { pub use tower_push_proto::{*, self as transport}; }
    /// use tower_push::{Item, event::{CloseCode, CloseFrame}, transport::StreamEnd};
    ///
    /// const FORBIDDEN: CloseCode = CloseCode::new(4403).unwrap();
    /// // Clients must not reconnect, over any transport.
    /// let item = Item::closed(CloseFrame::new(FORBIDDEN, "Forbidden"), StreamEnd::FINISHED);
    /// assert_eq!(item.end(), Some(StreamEnd::FINISHED));
    /// ```
    pub fn closed(frame: CloseFrame, end: StreamEnd) -> Self {
        Self::Closed(Box::new(EndWithCloseFrame { frame, end }))
    }

    /// Returns the event if the item has one, else `None`.
    #[inline]
    pub fn event(&self) -> Option<&Event> {
        match self {
            Self::Event(event) | Self::EventWithCursor { event, .. } => Some(event),
            _ => None,
        }
    }

    /// Returns the cursor to which the item moves the client, or `None` if the client's cursor stays where it is.
    pub fn cursor(&self) -> Option<&EventId> {
        match self {
            Self::Event(event) => event.id(),
            Self::EventWithCursor { cursor, .. } | Self::Cursor(cursor) => Some(cursor),
            Self::Gap(gap) => gap.resumed.as_ref(),
            Self::Finished | Self::Ended { .. } | Self::Expired | Self::Closed(_) => None,
        }
    }

    /// Returns how the stream ends, if the item ends it. Transports do not send what a stream yields after such an item.
    #[inline]
    pub fn end(&self) -> Option<StreamEnd> {
        match self {
            Self::Finished => Some(StreamEnd::FINISHED),
            Self::Ended { retry } => Some(StreamEnd::reconnect(Some(*retry))),
            Self::Expired => Some(StreamEnd::EXPIRED),
            Self::Closed(close) => Some(close.end),
            Self::Event(_) | Self::EventWithCursor { .. } | Self::Gap(_) | Self::Cursor(_) => None,
        }
    }

    /// Writes the item if it is an event, a gap or a cursor. If the item ends the stream, the transport then calls [`Encoder::end`], and does not
    /// poll the source again.
    ///
    /// If the encoder refuses an event, this method writes a gap in the event's place, with the reason
    /// [`Unsupported`](super::GapReason::Unsupported). So the client's cursor moves past the event, and the stream goes on.
    ///
    /// ```
    /// # mod tower_push { pub use tower_push_proto::{*, self as transport}; }
    /// use tower_push::{Event, Item, event::ItemOutcome, format::Ndjson, transport::{Encoder, FrameBuffer}};
    ///
    /// let (mut encoder, mut out) = (Ndjson::new(), FrameBuffer::default());
    /// encoder.open(&mut out);
    /// for item in [Item::Event(Event::text("hi").with_id(7)?), Item::Finished] {
    ///     if let ItemOutcome::EndsStream(end) = item.write_to(&mut encoder, &mut out)? {
    ///         encoder.end(end, &mut out);
    ///     }
    /// }
    /// let sent = " {\"id\":\"7\",\"data\":\"hi\"}\n{\"id\":\"~finished\",\"end\":{\"finished\":true}}\n";
    /// assert_eq!(out.into_bytes(), sent);
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// An error if the encoder can write neither a gap nor what the gap is in place of: the error of [`Encoder::event`], or else of
    /// [`Encoder::gap`]. Nothing of the item is written then.
    // As a method of `Encoder`, this function would cost `dyn Encoder` another dynamic call for each event.
    #[inline]
    pub fn write_to<E>(self, encoder: &mut E, out: &mut FrameBuffer) -> Result<ItemOutcome, Error>
    where
        E: Encoder + ?Sized,
    {
        match self {
            Self::Event(event) => {
                if let Err(error) = encoder.event(&event, out) {
                    return write_gap_instead(error, &event, event.id(), encoder, out);
                }
            }
            Self::EventWithCursor { event, cursor } => {
                if let Err(error) = encoder.event_with_cursor(&event, &cursor, out) {
                    return write_gap_instead(error, &event, Some(&cursor), encoder, out);
                }
            }
            Self::Gap(gap) => encoder.gap(&gap, out)?,
            Self::Cursor(id) => encoder.cursor(&id, out),
            Self::Finished => return Ok(ItemOutcome::EndsStream(StreamEnd::FINISHED)),
            Self::Ended { retry } => {
                return Ok(ItemOutcome::EndsStream(StreamEnd::reconnect(Some(retry))));
            }
            Self::Expired => return Ok(ItemOutcome::EndsStream(StreamEnd::EXPIRED)),
            Self::Closed(close) => return Ok(ItemOutcome::EndsStream(close.end)),
        }
        Ok(ItemOutcome::Written)
    }

    /// Whether the item is an event or a gap. Cursors and ends are no content: they only move the client's cursor, or end the stream.
    #[inline]
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Event(_) | Self::EventWithCursor { .. } | Self::Gap(_)
        )
    }
}

/// What [`Item::write_to`] has done with an item.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ItemOutcome {
    /// The item is written.
    Written,
    /// The encoder has refused the event, and this gap is written in its place. The transport passes the gap to
    /// `SupervisedStream::report_unsupported`, so that a guard counts it and observers learn of it.
    GapWritten(Box<Gap>),
    /// The item ends the stream, and nothing is written. The transport calls [`Encoder::end`].
    EndsStream(StreamEnd),
}

/// Writes a gap in place of an event that `encoder` has refused with `error`. `cursor` is the cursor after the event. Returns `error` if the
/// encoder cannot write a gap.
#[cold]
fn write_gap_instead<E>(
    error: Error,
    event: &Event,
    cursor: Option<&EventId>,
    encoder: &mut E,
    out: &mut FrameBuffer,
) -> Result<ItemOutcome, Error>
where
    E: Encoder + ?Sized,
{
    let mut gap = Gap::new(GapReason::Unsupported).missed(1);
    gap.resumed = cursor.cloned();
    gap.topic = event.topic().cloned();
    match encoder.gap(&gap, out) {
        Ok(()) => Ok(ItemOutcome::GapWritten(Box::new(gap))),
        Err(_) => Err(error),
    }
}

/// Conversion into an [`Item`]. [`Event`], [`Gap`], [`Item`], texts and bytes implement this trait, and so does a `Result` of each.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{Item, event::IntoItem};
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
    /// Converts the value into an item.
    ///
    /// # Errors
    /// An error if the value is an error or cannot be converted. The error aborts the stream, so that the client notices the failure.
    fn into_item(self) -> Result<Item, BoxError>;
}

impl From<Event> for Item {
    #[inline]
    fn from(event: Event) -> Self {
        Self::Event(event)
    }
}

impl From<Gap> for Item {
    fn from(gap: Gap) -> Self {
        Self::Gap(Box::new(gap))
    }
}

impl IntoItem for Item {
    #[inline]
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
        Ok(Item::from(self))
    }
}

impl IntoItem for Payload {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::from(self).into_item()
    }
}

/// Makes a text event.
impl IntoItem for String {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::text(self).into_item()
    }
}

/// Makes a text event.
impl IntoItem for &str {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::text(self).into_item()
    }
}

/// Makes a text event.
impl IntoItem for Cow<'_, str> {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::text(self).into_item()
    }
}

/// Makes a binary event.
impl IntoItem for Bytes {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::binary(self).into_item()
    }
}

/// Makes a binary event.
impl IntoItem for Vec<u8> {
    fn into_item(self) -> Result<Item, BoxError> {
        Event::binary(self).into_item()
    }
}

impl<T: IntoItem, E: Into<BoxError>> IntoItem for Result<T, E> {
    #[inline]
    fn into_item(self) -> Result<Item, BoxError> {
        match self {
            Ok(value) => value.into_item(),
            Err(error) => Err(error.into()),
        }
    }
}

/// A wrapper that makes a serializable value an event with a JSON payload.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{Json, event::IntoItem};
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

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
impl<T: serde::Serialize> TryFrom<Json<T>> for Event {
    type Error = Error;

    fn try_from(Json(value): Json<T>) -> Result<Self, Error> {
        Self::json(&value)
    }
}
