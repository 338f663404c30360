use http::request::Parts;

use super::{StreamHandle, SupervisedStream};
use crate::source::{Push, PushSource, Rejection, Subscription};

/// A client's subscription that its source has not accepted yet, with the handle of its guard.
///
/// See the [module docs](super) for an example.
#[derive(Debug)]
#[must_use = "a pending stream does nothing unless it is opened"]
pub struct PendingStream {
    /// Without the handle, so that a source that keeps its subscription does not keep the stream counted.
    subscription: Subscription,
    handle: Option<StreamHandle>,
}

impl PendingStream {
    /// Reads the subscription that a request asks for, and takes the guard's handle out of the head's extensions.
    ///
    /// `transport` is the [name](crate::transport::Transport::name) of the transport.
    pub fn new(head: &mut Parts, transport: &'static str) -> Self {
        let handle = head.extensions.remove();
        Self {
            subscription: Subscription::new(head, transport),
            handle,
        }
    }

    /// The subscription.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Replaces the subscription by what `map` makes of it: for transports whose requests name the start in a way of their own.
    pub fn map_subscription(self, map: impl FnOnce(Subscription) -> Subscription) -> Self {
        Self {
            subscription: map(self.subscription),
            handle: self.handle,
        }
    }

    /// Subscribes to `push`.
    ///
    /// # Errors
    /// If the source refuses the subscription. [`rejection_response`](crate::transport::rejection_response) is the response then.
    pub async fn open(self, push: Push) -> Result<SupervisedStream, Rejection> {
        let items = push.subscribe(self.subscription.clone()).await?;
        Ok(self.supervise(items))
    }

    /// Supervises `items`, with which the transport itself has answered the subscription. They count as open from now on.
    pub fn supervise<S>(self, items: S) -> SupervisedStream<S> {
        if let Some(handle) = &self.handle {
            handle.lifecycle().on_open(&self.subscription);
        }
        SupervisedStream::new(items, self.handle, self.subscription.expires_at())
    }
}
