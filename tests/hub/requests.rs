//! Requests for the topics of a hub.

use futures_util::FutureExt;
use http::request::Parts;
use testkit::get_request_head;
use tower_push::{
    PushSource,
    source::{
        FormBody, Rejection, Subscription,
        hub::{ClientTopicsSource, HubSubscriber},
    },
};

/// Subscribes with a `GET` request. Panics if the authorization is not ready at once.
pub(crate) fn subscribe_to(
    source: &ClientTopicsSource,
    uri: &str,
) -> Result<HubSubscriber, Rejection> {
    subscribe_with_head(source, &get_request_head(uri, &[]))
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
