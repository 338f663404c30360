//! A client of a hub that sends commands, without a socket.

use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use tower_push::{
    EventId, PushSource,
    event::Payload,
    source::{
        ClientMessageSender, Rejection, Subscription,
        hub::{ClientTopicsSource, HubCommands, HubSubscriber},
    },
};

use crate::request::get_request_head;

/// A client that sends commands, and its stream.
#[derive(Debug)]
pub struct CommandingSubscriber {
    /// The stream of the client's items.
    pub items: HubSubscriber,
    messages: ClientMessageSender,
}

impl CommandingSubscriber {
    /// Subscribes with a `GET` request of this URI, with a cursor if the client has one. The number of commands in a second is not limited. Panics if the
    /// authorization is not ready at once.
    ///
    /// # Errors
    /// The rejection of the request.
    pub fn subscribe(
        source: ClientTopicsSource,
        uri: &str,
        cursor: Option<&EventId>,
    ) -> Result<Self, Rejection> {
        let cursor = cursor.map(|cursor| ("last-event-id", cursor.as_str()));
        let head = get_request_head(uri, cursor.as_slice());
        let messages = ClientMessageSender::new();
        let subscription = Subscription::new(&head, "test").with_client_messages(&messages);
        let commands = HubCommands::new().max_rate(u32::MAX);
        let subscribed = source.commands(commands).subscribe(subscription);
        let subscribed = subscribed.now_or_never();
        Ok(Self {
            items: subscribed.expect("the authorization is ready")?,
            messages,
        })
    }

    /// Sends a command. Returns `false` if the queue of commands is full, so that a transport would not read the client's socket.
    pub fn send(&self, command: &str) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(Some(mut batch)) = self.messages.poll_batch(cx) else {
            return false;
        };
        batch.push(Payload::Text(command.to_owned()));
        self.messages.send(batch, cx);
        true
    }
}
