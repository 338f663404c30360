//! Requests for the topics of a hub.

use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use http::request::Parts;
use testkit::get_request_head;
use tower_push::{
    EventId, PushSource,
    event::Payload,
    source::{
        ClientMessageSender, FormBody, Rejection, Subscription,
        hub::{ClientTopicsSource, HubCommands, HubSubscriber},
    },
};

/// Subscribes with a `GET` request. Panics if the authorization is not ready at once.
pub(crate) fn subscribe_to(
    source: &ClientTopicsSource,
    uri: &str,
) -> Result<HubSubscriber, Rejection> {
    subscribe_with_head(source, &get_request_head(uri, &[]))
}

/// Subscribes a client that sends commands, and may have a cursor.
pub(crate) fn subscribe_with_commands(
    source: ClientTopicsSource,
    uri: &str,
    cursor: Option<&EventId>,
) -> Result<CommandingSubscriber, Rejection> {
    let cursor = cursor.map(|cursor| ("last-event-id", cursor.as_str()));
    let head = get_request_head(uri, cursor.as_slice());
    let messages = ClientMessageSender::new();
    let subscription = Subscription::new(&head, "test").with_client_messages(&messages);
    let commands = HubCommands::new().max_per_second(u32::MAX);
    let subscribed = source.commands(commands).subscribe(subscription);
    let subscribed = subscribed.now_or_never();
    Ok(CommandingSubscriber {
        items: subscribed.expect("the authorization is ready")?,
        messages,
    })
}

/// A client that sends commands, and its stream.
pub(crate) struct CommandingSubscriber {
    pub(crate) items: HubSubscriber,
    messages: ClientMessageSender,
}

impl CommandingSubscriber {
    /// Sends a command, unless the queue of commands is full.
    pub(crate) fn send(&self, command: &str) {
        let cx = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(Some(mut batch)) = self.messages.poll_batch(cx) {
            batch.push(Payload::Text(command.to_owned()));
            self.messages.send(batch, cx);
        }
    }
}

/// Like [`subscribe_to`], with a form as the body of a `QUERY` request.
pub(crate) fn subscribe_with_form(
    source: &ClientTopicsSource,
    uri: &str,
    form: &str,
) -> Result<HubSubscriber, Rejection> {
    let mut head = get_request_head(uri, &[]);
    head.extensions.insert(FormBody::new(form.to_owned()));
    subscribe_with_head(source, &head)
}

/// Subscribes with a form that has 10 000 values for one parameter, which may be longer than a URL.
pub(crate) fn subscribe_with_long_form(
    source: &ClientTopicsSource,
    parameter: &str,
) -> Result<HubSubscriber, Rejection> {
    let form = (0..10_000).map(|number| format!("{parameter}={number}"));
    let form = form.collect::<Vec<_>>().join("&");
    subscribe_with_form(source, "/", &form)
}

fn subscribe_with_head(
    source: &ClientTopicsSource,
    head: &Parts,
) -> Result<HubSubscriber, Rejection> {
    let subscription = Subscription::new(head, "test");
    let subscribed = source.clone().subscribe(subscription).now_or_never();
    subscribed.expect("the authorization is ready")
}
