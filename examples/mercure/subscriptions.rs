//! The active subscriptions: their events, and the API that lists them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};
use tower_push::{Event, event::Topic, source::TopicSet};

use crate::{
    HUB_PATH, MercureHub,
    error::HubError,
    lock,
    matcher::{MatchType, Matcher},
    token::{AccessToken, Action},
    topic_name::TopicName,
};

/// The characters that an expansion of RFC 6570 escapes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The subscriptions of all open streams, by the path of each.
#[derive(Default)]
pub(super) struct ActiveSubscriptions(Mutex<BTreeMap<String, ActiveSubscription>>);

/// A subscription. Several streams of one subscriber with one matcher are one subscription.
struct ActiveSubscription {
    topic: Topic,
    document: Value,
    streams: usize,
}

/// Keeps the subscriptions of a stream active until it is dropped.
pub(super) struct SubscriptionRegistration {
    hub: Arc<MercureHub>,
    paths: Vec<String>,
}

impl MercureHub {
    /// Registers the subscriptions of a stream, and publishes the event of each that is new.
    pub(super) fn register(
        self: &Arc<Self>,
        matchers: &[Matcher],
        subscriber: &str,
        token: Option<&AccessToken>,
    ) -> Result<SubscriptionRegistration, HubError> {
        let mut registration = SubscriptionRegistration {
            hub: self.clone(),
            paths: Vec::new(),
        };
        for matcher in matchers {
            let path = subscription_path(matcher.match_type, &matcher.text, Some(subscriber));
            let topic = TopicName::private(&path).to_topic();
            let topic = topic.map_err(|_| HubError::InvalidRequest("a matcher is too long"))?;
            let mut document = json!({
                "id": path,
                "type": "Subscription",
                "matchType": matcher.match_type.name(),
                "match": &*matcher.text,
                "subscriber": subscriber,
                "active": true,
            });
            if let Some(payload) = token.and_then(|token| token.payload(matcher)) {
                document["payload"] = json!(payload);
            }
            // The lock orders the events of a subscription like the changes of the list.
            let mut active = lock(&self.subscriptions.0);
            let subscription = active.entry(path.clone()).or_insert(ActiveSubscription {
                topic,
                document,
                streams: 0,
            });
            subscription.streams += 1;
            if subscription.streams == 1 {
                self.publish_subscription(subscription);
            }
            registration.paths.push(path);
        }
        Ok(registration)
    }

    fn publish_subscription(&self, subscription: &ActiveSubscription) {
        let document = with_context(&subscription.document);
        let event = Event::text(document.to_string());
        // The topic and the id are valid, so that the publication cannot fail.
        let _ = self.dispatch(TopicSet::from(&subscription.topic), event, None);
    }

    fn deregister(&self, path: &str) {
        let mut active = lock(&self.subscriptions.0);
        let Some(subscription) = active.get_mut(path) else {
            return;
        };
        subscription.streams -= 1;
        if subscription.streams == 0 {
            subscription.document["active"] = json!(false);
            self.publish_subscription(subscription);
            active.remove(path);
        }
    }
}

impl Drop for SubscriptionRegistration {
    fn drop(&mut self) {
        for path in &self.paths {
            self.hub.deregister(path);
        }
    }
}

/// Returns the path of a subscription, or of the subscriptions with one matcher.
fn subscription_path(match_type: MatchType, text: &str, subscriber: Option<&str>) -> String {
    let text = utf8_percent_encode(text, ESCAPED);
    let mut path = format!("{HUB_PATH}/subscriptions/{}/{text}", match_type.name());
    if let Some(subscriber) = subscriber {
        path.push('/');
        path.extend(utf8_percent_encode(subscriber, ESCAPED));
    }
    path
}

fn with_context(document: &Value) -> Value {
    let mut document = document.clone();
    document["@context"] = json!("https://mercure.rocks/");
    document
}

/// The API of subscriptions: all of them, those with one matcher, or one.
pub(super) async fn list(
    State(hub): State<Arc<MercureHub>>,
    request: Request<Body>,
) -> Result<Response, HubError> {
    let (head, _) = request.into_parts();
    let (token, _) = hub.subscribers.require(&head)?;
    let (path, is_single) = canonical_path(&head.uri).ok_or(HubError::NotFound)?;
    if !token.allows(Action::Subscribe, &path) {
        return Err(HubError::InsufficientScope);
    }
    // The id is read before the list: a client that subscribes from it gets every later change, and perhaps some that the list has.
    let last_event_id = hub.last_event_id();
    let mut document = {
        let active = lock(&hub.subscriptions.0);
        match is_single {
            true => {
                let subscription = active.get(&path).ok_or(HubError::NotFound)?;
                with_context(&subscription.document)
            }
            false => {
                let below = format!("{path}/");
                let paths = active.range(below.clone()..);
                let paths = paths.take_while(|(path, _)| path.starts_with(&below));
                let documents: Vec<_> = paths.map(|(_, active)| &active.document).collect();
                with_context(&json!({
                    "id": path,
                    "type": "Subscriptions",
                    "subscriptions": documents,
                }))
            }
        }
    };
    document["lastEventID"] = json!(last_event_id);
    Ok(json_ld(&head.headers, &last_event_id, &document))
}

/// Returns the path of a request in the form that the hub writes, and whether it is that of one subscription.
fn canonical_path(uri: &Uri) -> Option<(String, bool)> {
    let path = uri.path();
    let rest = path
        .strip_prefix(HUB_PATH)?
        .strip_prefix("/subscriptions")?;
    let segments = rest.split('/').skip(1);
    let segments = segments.map(|segment| percent_decode_str(segment).decode_utf8().ok());
    let segments: Vec<_> = segments.collect::<Option<_>>()?;
    match &segments[..] {
        [] => Some((path.to_owned(), false)),
        [match_type, text] => {
            let match_type = MatchType::from_name(match_type)?;
            Some((subscription_path(match_type, text, None), false))
        }
        [match_type, text, subscriber] => {
            let match_type = MatchType::from_name(match_type)?;
            let path = subscription_path(match_type, text, Some(subscriber));
            Some((path, true))
        }
        _ => None,
    }
}

fn json_ld(headers: &HeaderMap, last_event_id: &str, document: &Value) -> Response {
    let tag = HeaderValue::try_from(format!("\"{}\"", last_event_id.replace('"', "%22")));
    let tag = tag.unwrap_or(HeaderValue::from_static("\"\""));
    let is_fresh = headers.get(header::IF_NONE_MATCH) == Some(&tag);
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/ld+json"),
        ),
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("private, must-revalidate"),
        ),
        (
            header::VARY,
            HeaderValue::from_static("authorization, cookie"),
        ),
        (header::ETAG, tag),
    ];
    match is_fresh {
        true => (StatusCode::NOT_MODIFIED, headers).into_response(),
        false => (headers, document.to_string()).into_response(),
    }
}
