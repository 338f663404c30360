//! Sources: what clients subscribe to.
//!
//! A [`PushSource`] answers the [`Subscription`] of one client with a stream of [items](crate::event::Item). The source can also
//! refuse the client with a [`Rejection`] before any byte is sent.
//!
//! - Every `Stream` whose items are [`IntoItem`](crate::event::IntoItem) is a source. A plain stream serves one client, and begins
//!   with a [gap](crate::event::Gap) if that client sends a cursor.
//! - [`source_fn`](source_fn()) makes a source from a function of the subscription.
//! - [`Channel`] is a source for many clients, with a log that they resume from.
//! - [`Resumable`] makes another source resumable.
//!
//! ```
//! use tower_push::{Event, Push, source::{Rejection, Subscription, source_fn}};
//!
//! let any_stream = Push::new(tokio_stream::iter(["one", "two"]));
//!
//! let numbers = Push::new(source_fn(|subscription: Subscription| async move {
//!     let next = match subscription.cursor() {
//!         None => 0,
//!         Some(cursor) => match cursor.as_str().parse::<u64>() {
//!             Ok(seen) => seen + 1,
//!             Err(_) => return Err(Rejection::new(http::StatusCode::NOT_FOUND)),
//!         },
//!     };
//!     let events = (next..100).map(|n| Event::text(format!("number {n}")).with_id(n));
//!     Ok(tokio_stream::iter(events))
//! }));
//! ```

pub mod channel;
#[cfg(feature = "websocket")]
mod client_messages;
mod item_stream;
mod log;
mod push;
pub mod query;
mod rejection;
mod requested_cursor;
pub mod resumable;
mod source_fn;
mod subscription;

use std::future::Future;

use futures_core::Stream;

#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub use self::client_messages::{ClientMessageSender, ClientMessages, MessageBatch};
pub(crate) use self::rejection::retry_after;
pub use self::{
    channel::Channel,
    item_stream::ItemStream,
    push::Push,
    rejection::Rejection,
    requested_cursor::LAST_EVENT_ID,
    resumable::Resumable,
    source_fn::{SourceFn, source_fn},
    subscription::{StartPosition, Subscription},
};
use crate::{error::BoxError, event::Item};

/// A source of items for clients that subscribe to it. See the [module docs](self).
pub trait PushSource {
    /// The items of one client.
    ///
    /// - `None` ends the stream, and the client may reconnect. [`Item::Ended`] also ends the stream, and says after which delay the
    ///   client may reconnect.
    /// - [`Item::Finished`] says that the source has finished, and the client must not reconnect.
    /// - An error disconnects the client, which sees that its stream was cut off.
    type Stream: Stream<Item = Result<Item, BoxError>> + Send + 'static;

    /// Subscribes one client, or refuses it. If the client leaves before the future is ready, the future is dropped.
    fn subscribe(
        self,
        subscription: Subscription,
    ) -> impl Future<Output = Result<Self::Stream, Rejection>> + Send;

    /// Returns whether a client that comes back with a cursor goes on from there. Only plain streams return `false`.
    ///
    /// A transport that answers with several responses, such as long-polling, keeps the stream of a source that cannot resume, and
    /// subscribes anew to a source that can.
    fn is_resumable(&self) -> bool {
        true
    }
}
