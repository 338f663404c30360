use std::future::Future;

use futures_core::Stream;

use super::{Rejection, Subscription};
use crate::{error::BoxError, event::Item};

/// A source of items for clients that subscribe to it. See the [module docs](super).
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
