//! Reading what a request publishes.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use tower_push_proto::header_list::{media_type, single_value};

use super::publisher_builder::PublisherConfig;
use crate::{
    Error,
    event::{Event, Topic},
    source::{
        Rejection, TopicSet,
        hub::is_control_type,
        query::{decode_path, utf8_parameter},
    },
    transport::is_form,
};
#[cfg(feature = "json")]
use crate::{
    event::Payload,
    source::hub::{MAX_JSON_DEPTH, is_too_deep},
};

/// An event that a request publishes, checked.
#[derive(Debug)]
pub(super) struct CheckedPublication {
    /// At least one topic, and at most [`PublisherConfig::max_topics`].
    pub(super) topics: TopicSet,
    pub(super) event: Event,
    pub(super) idempotency_key: Option<String>,
}

/// The form of the response to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseForm {
    /// The id as plain text.
    Text,
    /// A JSON object.
    Object,
    /// A JSON array of objects: the response to a batch, which only JSON can be.
    #[cfg(feature = "json")]
    Array,
}

/// The header that names a publication.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The response header with the media types that a `POST` may have.
const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");

/// The media types of bodies that name their topics.
const TOPIC_MEDIA_TYPES: &str = if cfg!(feature = "json") {
    "application/json, application/x-www-form-urlencoded"
} else {
    "application/x-www-form-urlencoded"
};

/// The maximum length of an idempotency key, in bytes.
const MAX_KEY_LEN: usize = 256;

/// Reads and checks the publications of a request.
///
/// # Errors
/// Returns the rejection of the request. The message of the rejection says what is wrong.
pub(super) fn read_request(
    head: &Parts,
    body: &Bytes,
    config: &PublisherConfig,
) -> Result<(Vec<CheckedPublication>, ResponseForm), Rejection> {
    let path_topic = head.uri.path().strip_prefix(&*config.path_prefix);
    let path_topic = path_topic.filter(|topic| !topic.is_empty());
    let (mut publications, form) = if let Some(topic) = path_topic {
        (vec![read_raw(head, topic, body)?], ResponseForm::Object)
    } else if is_form(&head.headers) {
        check_charset(&head.headers)?;
        (vec![read_form(body, config)?], ResponseForm::Text)
    } else if is_json(head) && cfg!(feature = "json") {
        read_json(body, config)?
    } else {
        let accepted = HeaderValue::from_static(TOPIC_MEDIA_TYPES);
        return Err(Rejection::new(StatusCode::UNSUPPORTED_MEDIA_TYPE)
            .message(format!(
                "the path names no topic, and the body is not {TOPIC_MEDIA_TYPES}"
            ))
            .header(ACCEPT_POST, accepted));
    };
    add_idempotency_key(head, &mut publications, form)?;
    for publication in &publications {
        let key = publication.idempotency_key.as_deref();
        if key.is_some_and(|key| key.is_empty() || key.len() > MAX_KEY_LEN) {
            return Err(bad_request("an idempotency key is 1 to 256 bytes"));
        }
        #[cfg(feature = "json")]
        if matches!(publication.event.payload(), Payload::Json { 0: json, .. } if is_too_deep(json))
        {
            let message = format!("JSON has at most {MAX_JSON_DEPTH} levels of arrays and objects");
            return Err(bad_request(message));
        }
        if (publication.event.event_type()).is_some_and(is_control_type) {
            return Err(bad_request(
                "event types that begin with `hub.` are the hub's own",
            ));
        }
    }
    Ok((publications, form))
}

/// Reads a body that is the payload of an event to the topic in the path.
fn read_raw(head: &Parts, topic: &str, body: &Bytes) -> Result<CheckedPublication, Rejection> {
    let topic = Topic::new(decode_path(topic)?.into_owned()).map_err(invalid)?;
    let mut event = match media_type_of(head).as_deref() {
        Some(media_type) if is_json_type(media_type) => json_event(text_of(body)?)?,
        Some(media_type) if media_type.starts_with("text/") || is_form(&head.headers) => {
            check_charset(&head.headers)?;
            Event::text(text_of(body)?)
        }
        _ => Event::binary(body.clone()),
    };
    let query = head.uri.query().unwrap_or_default();
    if let Some(event_type) = utf8_parameter(query, "event").next() {
        event = event.with_type(&*event_type?).map_err(invalid)?;
    }
    Ok(CheckedPublication {
        topics: topic.into(),
        event,
        idempotency_key: None,
    })
}

/// Reads a form with the fields `topic`, `data` and `type`.
fn read_form(body: &Bytes, config: &PublisherConfig) -> Result<CheckedPublication, Rejection> {
    let form = std::str::from_utf8(body).map_err(|_| bad_request("the form is not UTF-8"))?;
    let mut topics = Vec::new();
    for name in utf8_parameter(form, "topic") {
        check_topic_count(topics.len() + 1, config)?;
        topics.push(Topic::new(name?.into_owned()).map_err(invalid)?);
    }
    if topics.is_empty() {
        return Err(bad_request("the form has no field `topic`"));
    }
    let data = utf8_parameter(form, "data").next().transpose()?;
    let mut event = Event::text(data.map_or_else(String::new, Cow::into_owned));
    let event_type = utf8_parameter(form, "type").next().transpose()?;
    if let Some(event_type) = event_type.filter(|event_type| !event_type.is_empty()) {
        event = event.with_type(&*event_type).map_err(invalid)?;
    }
    Ok(CheckedPublication {
        topics: TopicSet::new(topics),
        event,
        idempotency_key: None,
    })
}

/// Reads a publication or a batch of publications.
#[cfg(feature = "json")]
fn read_json(
    body: &Bytes,
    config: &PublisherConfig,
) -> Result<(Vec<CheckedPublication>, ResponseForm), Rejection> {
    use crate::format::Publication;

    let publications = Publication::from_json(body, config.max_publications);
    let publications = publications.map_err(|error| match error.is_too_long() {
        true => too_large(format!(
            "a batch has at most {} publications",
            config.max_publications
        )),
        false => invalid(error),
    })?;
    let mut checked = Vec::with_capacity(publications.len());
    for publication in publications {
        check_topic_count(publication.topics.len(), config)?;
        checked.push(CheckedPublication {
            topics: TopicSet::new(publication.topics),
            event: publication.event,
            idempotency_key: publication.idempotency_key,
        });
    }
    let first_byte = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let form = match first_byte {
        Some(b'[') => ResponseForm::Array,
        _ => ResponseForm::Object,
    };
    Ok((checked, form))
}

#[cfg(not(feature = "json"))]
fn read_json(
    _: &Bytes,
    _: &PublisherConfig,
) -> Result<(Vec<CheckedPublication>, ResponseForm), Rejection> {
    Err(Rejection::new(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

#[cfg(feature = "json")]
fn json_event(text: String) -> Result<Event, Rejection> {
    Event::json_text(text).map_err(invalid)
}

#[cfg(not(feature = "json"))]
fn json_event(text: String) -> Result<Event, Rejection> {
    Ok(Event::text(text))
}

/// Gives the key in the header to the publications that have no key of their own. In a batch, the number of the publication is added.
fn add_idempotency_key(
    head: &Parts,
    publications: &mut [CheckedPublication],
    form: ResponseForm,
) -> Result<(), Rejection> {
    if !head.headers.contains_key(IDEMPOTENCY_KEY) {
        return Ok(());
    }
    let key = single_value(&head.headers, IDEMPOTENCY_KEY).and_then(|value| value.to_str().ok());
    let key = key.ok_or_else(|| bad_request("the idempotency key is not readable"))?;
    // The header is a string of RFC 9651, with quotes. Some clients send the header without quotes.
    let unquoted = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    let key = unquoted.unwrap_or(key);
    for (index, publication) in publications.iter_mut().enumerate() {
        #[cfg(not(feature = "json"))]
        let (_, _) = (index, form);
        let of_header = || match form {
            #[cfg(feature = "json")]
            ResponseForm::Array if !key.is_empty() => format!("{key}/{index}"),
            _ => key.to_owned(),
        };
        publication.idempotency_key.get_or_insert_with(of_header);
    }
    Ok(())
}

/// Returns the media type of the body, in lower case.
fn media_type_of(head: &Parts) -> Option<String> {
    let content_type = head.headers.get(header::CONTENT_TYPE)?;
    media_type(content_type).map(str::to_ascii_lowercase)
}

fn is_json(head: &Parts) -> bool {
    media_type_of(head).is_some_and(|media_type| media_type == "application/json")
}

fn is_json_type(media_type: &str) -> bool {
    media_type == "application/json" || media_type.ends_with("+json")
}

/// Refuses a text whose `Content-Type` names a charset other than UTF-8: its bytes may be UTF-8 by chance, and mean something else.
fn check_charset(headers: &HeaderMap) -> Result<(), Rejection> {
    let content_type = headers.get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let parameters = content_type.unwrap_or_default().split(';').skip(1);
    let mut charsets = parameters.filter_map(|parameter| {
        let (name, charset) = parameter.trim().split_once('=')?;
        (name.eq_ignore_ascii_case("charset")).then_some(charset.trim_matches('"'))
    });
    let is_utf8 = |charset: &str| {
        let names = ["utf-8", "utf8", "us-ascii"];
        names.iter().any(|name| charset.eq_ignore_ascii_case(name))
    };
    match charsets.all(is_utf8) {
        true => Ok(()),
        false => Err(Rejection::new(StatusCode::UNSUPPORTED_MEDIA_TYPE)
            .message("the charset of the body is not UTF-8")),
    }
}

fn text_of(body: &Bytes) -> Result<String, Rejection> {
    let text = std::str::from_utf8(body).map_err(|_| bad_request("the body is not UTF-8"))?;
    Ok(text.to_owned())
}

/// The rejection of a body or a part of a request that is not valid. The message is the error's, and that of its cause.
fn invalid(error: Error) -> Rejection {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    bad_request(format!("{error}{}", cause.unwrap_or_default()))
}

fn bad_request(message: impl Into<Cow<'static, str>>) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST).message(message)
}

/// Refuses a publication with more than [`PublisherConfig::max_topics`] topics.
fn check_topic_count(count: usize, config: &PublisherConfig) -> Result<(), Rejection> {
    if count <= config.max_topics {
        return Ok(());
    }
    Err(too_large(format!(
        "a publication has at most {} topics",
        config.max_topics
    )))
}

fn too_large(message: String) -> Rejection {
    Rejection::new(StatusCode::PAYLOAD_TOO_LARGE).message(message)
}
