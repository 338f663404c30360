use std::future::Future;

use futures_core::Stream;

use super::{Rejection, Subscription};
use crate::{BoxError, event::Item};

/// A source of items for clients that subscribe to it. See the [module docs](super).
pub trait PushSource {
    /// The stream of items for one client.
    ///
    /// - `None` ends the stream, and the client may reconnect. [`Item::Ended`] also ends the stream, and contains the delay after
    ///   which the client may reconnect.
    /// - [`Item::Finished`] says that the source has finished, and the client must not reconnect.
    /// - An error disconnects the client, which sees that its stream was cut off.
    type Stream: Stream<Item = Result<Item, BoxError>> + Send + 'static;

    /// Subscribes one client, or refuses it. If the client leaves before the future is ready, the future is dropped.
    fn subscribe(
        self,
        subscription: Subscription,
    ) -> impl Future<Output = Result<Self::Stream, Rejection>> + Send;

    /// Returns whether the source can resume from the cursor that a returning client sends. Only plain streams return `false`.
    ///
    /// Some transports, such as long-polling, send one stream in several responses. If the source can resume, each request subscribes
    /// to it anew. If the source cannot resume, the transport keeps the stream between the requests.
    fn is_resumable(&self) -> bool {
        true
    }

    /// Returns whether each stream of the source is made for one client. This is so for plain streams and for a
    /// [`Resumable`](super::Resumable). By default, returns `true` if the source is not [resumable](Self::is_resumable).
    ///
    /// A client of such a source expects the whole stream in one response. [`Negotiate`](crate::transport::Negotiate) therefore sends the
    /// stream in several responses only to a client that asks for that, and not because of the client's `Accept` header.
    fn is_for_one_client(&self) -> bool {
        !self.is_resumable()
    }
}
