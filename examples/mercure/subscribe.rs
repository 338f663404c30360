//! Subscriptions: `GET` requests, which event streams answer.

use std::{future::ready, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Request, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use percent_encoding::percent_decode;
use serde_json::json;
use tower_push::{
    EventId, Item, Push, PushSource,
    event::Topic,
    source::{
        Rejection, StartPosition, Subscription,
        hub::{HubSource, HubSubscriber, TopicPattern},
        source_fn,
    },
    transport::{Sse, Transport, sse::TopicForm},
};

use crate::{
    EARLIEST, MercureHub,
    error::HubError,
    matcher::{MatchType, Matcher},
    random_urn, revision7,
    token::{AccessToken, Action, TokenPlace},
    topic_name::TopicName,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The maximum number of matchers of a request.
const MAX_MATCHERS: usize = 64;

/// The time after which a subscriber must come back with its token, even if the token is still valid.
const MAX_CONNECTION_LIFETIME: Duration = Duration::from_secs(3600);

/// Opens the event stream of a subscriber.
pub(super) async fn subscribe(
    hub: &Arc<MercureHub>,
    request: Request<Body>,
) -> Result<Response, HubError> {
    let (head, _) = request.into_parts();
    let token = hub.subscribers.read(&head)?;
    let is_token_in_url = matches!(token, Some((_, TokenPlace::Query)));
    let token = token.map(|(token, _)| Arc::new(token));
    let query = read_pairs(head.uri.query().unwrap_or_default())?;
    let matchers = read_matchers(&query, hub)?;
    let subscriber = token.as_ref().and_then(|token| token.subject.clone());
    let subscriber = subscriber.unwrap_or_else(random_urn);

    // The subscriber does not get the events of its own subscriptions, which begin before its stream.
    let registration = hub.register(&matchers, &subscriber, token.as_deref())?;
    let requested = requested_id(&head, &query);
    let start = match requested.as_deref() {
        None | Some("") => StartPosition::Now,
        Some(EARLIEST) => StartPosition::Oldest,
        Some(id) => EventId::new(id).map_or(StartPosition::Oldest, StartPosition::After),
    };
    let source = source(hub, &matchers, token.as_ref())?;
    let updates = source.subscribe_from(start.clone());
    let updates = updates.map_err(|_| HubError::Full)?;
    let response_id = requested.map(|_| preceding_id(hub, &start, &updates, token.as_deref()));

    let lifetime = token
        .as_ref()
        .map_or(Duration::MAX, |token| token.expires_in);
    let lifetime = lifetime.min(MAX_CONNECTION_LIFETIME);
    let stream = source_fn(async move |subscription: Subscription| {
        subscription.expire_within(lifetime);
        Ok::<_, Rejection>(updates.filter_map(|item| ready(update_of(item))))
    });
    let push = Push::new(stream.holding(registration));
    let mut response = respond(head, push).await;
    let headers = response.headers_mut();
    if let Some(id) = response_id.and_then(|id| HeaderValue::try_from(id).ok()) {
        headers.insert(LAST_EVENT_ID, id);
    }
    if is_token_in_url {
        let private = HeaderValue::from_static("private, no-store");
        headers.insert(header::CACHE_CONTROL, private);
    }
    Ok(response)
}

/// Reads the pairs of a query or a form, which must be UTF-8.
pub(super) fn read_pairs(text: &str) -> Result<Vec<(String, String)>, HubError> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let decoded = percent_decode(text.as_bytes()).decode_utf8();
        decoded.map(String::from)
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode(name)?, decode(value)?))
    });
    let pairs: Result<_, std::str::Utf8Error> = pairs.collect();
    pairs.map_err(|_| HubError::InvalidRequest("a parameter is not UTF-8"))
}

/// Reads the matchers of a query: the parameters whose names begin with `match`, and the selectors of revision 7, `topic`.
fn read_matchers(query: &[(String, String)], hub: &MercureHub) -> Result<Vec<Matcher>, HubError> {
    let mut matchers: Vec<Matcher> = Vec::new();
    for (name, text) in query {
        let match_type = match name == "topic" && hub.accepts_revision_7 {
            true => Some(revision7::selector_type(text)),
            false => match_type_of(name)?,
        };
        let Some(match_type) = match_type else {
            continue;
        };
        let matcher = Matcher::new(match_type, text, &hub.url);
        let matcher = matcher.ok_or(HubError::InvalidRequest("a matcher is not valid"))?;
        let is_same = |other: &Matcher| other.match_type == match_type && *other.text == **text;
        if matchers.iter().any(is_same) {
            continue;
        }
        if matchers.len() == MAX_MATCHERS {
            return Err(HubError::InvalidRequest("too many matchers"));
        }
        matchers.push(matcher);
    }
    match matchers.is_empty() {
        true => Err(HubError::InvalidRequest(
            "the query has no parameter `match` or `matchURLPattern`",
        )),
        false => Ok(matchers),
    }
}

/// Returns the type of the matchers in a parameter. Returns `None` if the parameter has no matcher.
fn match_type_of(parameter: &str) -> Result<Option<MatchType>, HubError> {
    let prefix = parameter.as_bytes().get(..5);
    if !prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"match")) {
        return Ok(None);
    }
    let match_type = match parameter.strip_prefix("match") {
        Some("") => Some(MatchType::Exact),
        Some(type_name) => MatchType::from_name(type_name),
        None => None,
    };
    let match_type = match_type.ok_or(HubError::InvalidRequest(
        "there is no such type of matchers: the types are match, matchExact and matchURLPattern",
    ))?;
    Ok(Some(match_type))
}

/// Returns the id after which the client resumes: that of the header, else that of the query. The id is empty if the client has sent
/// an empty one only: such a client has no event yet.
fn requested_id(head: &Parts, query: &[(String, String)]) -> Option<String> {
    let header = head.headers.get(LAST_EVENT_ID);
    let header = header.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let is_name = |name: &str| ["lastEventID", "Last-Event-ID"].contains(&name);
    let parameters = query.iter().filter(|(name, _)| is_name(name));
    let mut ids = header
        .into_iter()
        .chain(parameters.map(|(_, id)| id.clone()));
    let first = ids.next()?;
    match first.is_empty() {
        true => Some(ids.find(|id| !id.is_empty()).unwrap_or(first)),
        false => Some(first),
    }
}

/// Returns the source of the updates that match and that the token allows.
fn source(
    hub: &MercureHub,
    matchers: &[Matcher],
    token: Option<&Arc<AccessToken>>,
) -> Result<HubSource, HubError> {
    let invalid = |_| HubError::InvalidRequest("a matcher is not valid");
    let token = token.filter(|token| token.allows_some(Action::Subscribe));
    let (exact, wide): (Vec<_>, Vec<_>) = matchers
        .iter()
        .cloned()
        .partition(|matcher| matcher.exact_topic().is_some());
    let mut topics: Vec<Topic> = Vec::new();
    for topic in exact.iter().filter_map(Matcher::exact_topic) {
        topics.push(TopicName::public(topic).to_topic().map_err(invalid)?);
        if token.is_some_and(|token| token.allows(Action::Subscribe, topic)) {
            topics.push(TopicName::private(topic).to_topic().map_err(invalid)?);
        }
    }
    let source = hub.hub.topics(topics).map_err(invalid)?;
    if wide.is_empty() {
        return Ok(source);
    }
    // Subscribers with the same matchers and the same rights share a pattern. The key is JSON, so that no matcher can imitate the rights of
    // another client.
    let matchers = wide
        .iter()
        .map(|matcher| (matcher.match_type.name(), &*matcher.text));
    let matchers: Vec<_> = matchers.collect();
    let key = json!([matchers, token.map(|token| &token.details_json)]).to_string();
    let token = token.cloned();
    let pattern = TopicPattern::from_fn(key, move |name| {
        TopicName::parse(name).is_some_and(|name| {
            wide.iter().any(|matcher| matcher.matches(name.topic))
                && (!name.is_private || is_readable(name.topic, token.as_deref()))
        })
    });
    Ok(source.with_patterns([pattern]))
}

/// Returns whether a client with this token may read the private updates of a topic.
fn is_readable(topic: &str, token: Option<&AccessToken>) -> bool {
    token.is_some_and(|token| token.allows(Action::Subscribe, topic))
}

/// Returns the value of the response header `Last-Event-ID`: the id that the client has sent, if the client misses nothing after it and may
/// know the event.
fn preceding_id(
    hub: &MercureHub,
    start: &StartPosition,
    updates: &HubSubscriber,
    token: Option<&AccessToken>,
) -> String {
    let id = match start {
        StartPosition::After(id) if !updates.has_gap() => Some(id),
        _ => None,
    };
    let is_visible = |id: &&EventId| {
        let topics = hub.hub.topics_of(id);
        topics.is_some_and(|topics| {
            topics
                .iter()
                .filter_map(|topic| TopicName::parse(topic.as_str()))
                .any(|name| !name.is_private || is_readable(name.topic, token))
        })
    };
    let id = id.filter(is_visible);
    id.map_or(EARLIEST.to_owned(), |id| id.as_str().to_owned())
}

/// Returns the update of an item. Cursors and gaps are left out: they are no updates, and the header `Last-Event-ID` of the response
/// tells the client whether it has missed some.
fn update_of<E>(item: Result<Item, E>) -> Option<Result<Item, E>> {
    match item {
        Ok(Item::EventWithCursor { event, .. }) => Some(Ok(Item::Event(event))),
        Ok(Item::Cursor(_) | Item::Gap(_)) => None,
        item => Some(item),
    }
}

async fn respond(mut head: Parts, push: Push) -> Response {
    // The cursor is read already.
    head.headers.remove(LAST_EVENT_ID);
    head.uri = Uri::from_static(crate::HUB_PATH);
    let sse = Sse::new()
        .topic_form(TopicForm::Omitted)
        .end_event(None)
        .finished_event(None);
    sse.respond(&mut head, push).await.into_response()
}
