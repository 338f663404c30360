//! What a client subscribes to.
//!
//! A [`PushSource`] is asked once per client, with that client's [`Subscription`], and answers with a stream of
//! [items](crate::event::Item), or refuses with a [`Rejection`] before any byte is sent.
//!
//! Every `Stream` whose items are [`IntoItem`](crate::event::IntoItem) is a source: it serves one client, and announces a
//! [gap](crate::event::Gap) to a client that wants to resume. [`source_fn`] makes one that looks at the subscription.
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
mod push;
pub mod query;
mod rejection;
pub mod resumable;
mod source_fn;
mod subscription;

use std::future::Future;

use futures_core::Stream;

#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub use self::client_messages::ClientMessages;
#[cfg(feature = "websocket")]
pub(crate) use self::client_messages::{ClientMessageSender, MessageBatch};
pub(crate) use self::rejection::retry_after;
pub use self::{
    channel::Channel,
    item_stream::ItemStream,
    push::Push,
    rejection::Rejection,
    resumable::Resumable,
    source_fn::{SourceFn, source_fn},
    subscription::{LAST_EVENT_ID, StartPosition, Subscription},
};
use crate::{error::BoxError, event::Item};

/// Something that clients subscribe to. See the [module docs](self).
pub trait PushSource {
    /// One client's items. An error ends it, and the client sees that the stream was cut; its plain end is an end for now,
    /// after which the client may come back ([`Item::Ended`] says when); [`Item::Finished`] is the end for ever.
    type Stream: Stream<Item = Result<Item, BoxError>> + Send + 'static;

    /// Begins one client's subscription, or refuses it. Dropped if the client goes away meanwhile.
    fn subscribe(
        self,
        subscription: Subscription,
    ) -> impl Future<Output = Result<Self::Stream, Rejection>> + Send;

    /// Whether a client that comes back with a cursor is served from there: true for all but plain streams. A transport that
    /// asks again and again keeps a source alive for its client that cannot.
    fn is_resumable(&self) -> bool {
        true
    }
}
