use http::request::Parts;

use super::{StreamHandle, StreamHandleExtension, SupervisedStream};
#[cfg(feature = "server")]
use crate::detach::DetachOffer;
use crate::source::{Push, PushSource, Rejection, Subscription};

/// A client's subscription that its source has not accepted yet, with the handle of its guard.
///
/// See the [module docs](super) for an example.
#[derive(Debug)]
#[must_use = "a pending subscription does nothing unless it is opened"]
pub struct PendingSubscription {
    /// The subscription that the source gets. The subscription does not contain the handle, so that a source that keeps its
    /// subscription does not keep the stream open.
    subscription: Subscription,
    handle: Option<StreamHandle>,
    #[cfg(feature = "server")]
    detach_offer: Option<DetachOffer>,
}

impl PendingSubscription {
    /// Reads the subscription that a request asks for, and takes the guard's handle out of the head's extensions.
    ///
    /// `transport` is the [name](crate::transport::Transport::name) of the transport.
    pub fn new(head: &mut Parts, transport: &'static str) -> Self {
        let handle = StreamHandleExtension::take_from(head);
        Self {
            #[cfg(feature = "server")]
            detach_offer: DetachOffer::take_from(head),
            subscription: Subscription::new(head, transport),
            handle,
        }
    }

    /// Returns the subscription.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Replaces the subscription by the result of `map`. A transport calls [`Subscription::with_start`] in `map` if its requests
    /// name the start in their own way.
    pub fn map_subscription(self, map: impl FnOnce(Subscription) -> Subscription) -> Self {
        Self {
            subscription: map(self.subscription),
            ..self
        }
    }

    /// Returns the offer of the server to detach the response.
    #[cfg(feature = "server")]
    pub(crate) fn detach_offer(&self) -> Option<DetachOffer> {
        self.detach_offer.clone()
    }

    /// Subscribes to `push`, and supervises the stream of its items.
    ///
    /// # Errors
    /// Returns the rejection if the source refuses the subscription. [`rejection_response`](crate::transport::rejection_response)
    /// turns the rejection into a response.
    pub async fn open(self, push: Push) -> Result<SupervisedStream, Rejection> {
        let items = push.subscribe(self.subscription.clone()).await?;
        Ok(self.supervise(items))
    }

    /// Supervises `items` that the transport provides itself, instead of those of a source. From this call on, the stream counts
    /// as open.
    pub fn supervise<S>(self, items: S) -> SupervisedStream<S> {
        if let Some(handle) = &self.handle {
            handle.lifecycle().on_open(&self.subscription);
        }
        SupervisedStream::new(items, self.handle, self.subscription.expires_at())
    }
}
