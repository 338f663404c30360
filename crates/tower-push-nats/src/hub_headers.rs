use async_nats::HeaderMap;
use tower_push::{
    event::Topic,
    source::{TopicSet, hub::HubEvent},
};

use crate::subject_mapping::{decode_percent, encode_percent};

/// The headers that only the message of a hub's event has, besides the headers of every event.
///
/// | header | value |
/// |---|---|
/// | `Event-Topic` | a topic of an event that has several, one header for each. Only used in messages with the subject of several topics |
/// | `Event-Except` | the sender whose own subscriptions do not get the event |
/// | `Event-History` | `no` for an event without history |
/// | `Event-Members` | the topic whose list of members the event changes |
///
/// Topics and senders are written as in [subjects](encode_percent), because a header has neither line breaks nor white space at its ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HubHeaders {
    /// The topics as they are in the headers.
    topics: Vec<String>,
    except: Option<Box<str>>,
    is_without_history: bool,
    /// The topic as it is in the header.
    members_topic: Option<Box<str>>,
}

/// The maximum number of topics of one event. If another program has published a message with more topics, the further topics are not used.
pub(crate) const MAX_TOPICS: usize = 1024;

const EVENT_TOPIC: &str = "Event-Topic";
const EVENT_EXCEPT: &str = "Event-Except";
const EVENT_HISTORY: &str = "Event-History";
const NO_HISTORY: &str = "no";
const EVENT_MEMBERS: &str = "Event-Members";

impl HubHeaders {
    /// Reads the headers of a message. `headers` returns the values of a header.
    pub(crate) fn parse<'a>(headers: impl Fn(&str) -> Vec<&'a str>) -> Self {
        let topics = headers(EVENT_TOPIC).into_iter().take(MAX_TOPICS);
        Self {
            topics: topics.map(str::to_owned).collect(),
            except: headers(EVENT_EXCEPT)
                .pop()
                .and_then(decode_percent)
                .map(Box::from),
            is_without_history: headers(EVENT_HISTORY).pop() == Some(NO_HISTORY),
            members_topic: headers(EVENT_MEMBERS).pop().map(Box::from),
        }
    }

    /// Returns the topics. A header with an invalid topic is left out.
    pub(crate) fn topics(&self) -> TopicSet {
        TopicSet::new(self.topics.iter().filter_map(|text| parse_topic(text)))
    }

    /// Sets the sender, the history, and the topic of changed members of an event.
    pub(crate) fn apply_to(&self, event: HubEvent) -> HubEvent {
        let event = match &self.except {
            Some(sender) => event.except(&**sender),
            None => event,
        };
        let event = match self.members_topic.as_deref().and_then(parse_topic) {
            Some(topic) => event.changing_members_of(topic),
            None => event,
        };
        match self.is_without_history {
            true => event.without_history(),
            false => event,
        }
    }
}

fn parse_topic(text: &str) -> Option<Topic> {
    Topic::new(decode_percent(text)?).ok()
}

/// Adds the headers of an event of a hub. Several topics are written in headers. A single topic is in the message's subject.
pub(crate) fn add_hub_headers(headers: &mut HeaderMap, event: &HubEvent) {
    if event.topics().len() > 1 {
        for topic in event.topics() {
            headers.append(EVENT_TOPIC, encode_percent(topic.as_str()));
        }
    }
    if let Some(sender) = event.excluded_sender() {
        headers.insert(EVENT_EXCEPT, encode_percent(sender));
    }
    if !event.has_history() {
        headers.insert(EVENT_HISTORY, NO_HISTORY);
    }
    if let Some(topic) = event.members_topic() {
        headers.insert(EVENT_MEMBERS, encode_percent(topic.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use tower_push::Event;

    use super::*;

    fn topics(topics: &[&str]) -> TopicSet {
        TopicSet::try_from(topics.to_vec()).unwrap()
    }

    fn parse(headers: &HeaderMap) -> HubHeaders {
        HubHeaders::parse(|name| headers.get_all(name).map(|value| value.as_str()).collect())
    }

    #[test]
    fn options_come_back_from_headers() {
        let plain = HubEvent::new(topics(&["orders/42", "a  b", "é"]), Event::text("x"));
        for event in [
            plain.clone(),
            plain.clone().except("tab 7\r\n\u{e9}% "),
            plain.clone().except(""),
            plain
                .clone()
                .changing_members_of(Topic::new("orders/42 é").unwrap()),
            plain.without_history(),
        ] {
            let mut headers = HeaderMap::new();
            add_hub_headers(&mut headers, &event);
            let read = parse(&headers);
            assert_eq!(&read.topics(), event.topics());
            let read = read.apply_to(HubEvent::new(topics(&[]), Event::text("x")));
            assert_eq!(read.excluded_sender(), event.excluded_sender());
            assert_eq!(read.has_history(), event.has_history());
            assert_eq!(read.members_topic(), event.members_topic());
        }
    }

    #[test]
    fn plain_event_of_one_topic_has_no_headers() {
        let mut headers = HeaderMap::new();
        add_hub_headers(
            &mut headers,
            &HubEvent::new(topics(&["a"]), Event::text("x")),
        );
        assert!(headers.is_empty());
    }

    #[test]
    fn headers_of_other_program_are_read() {
        let mut headers = HeaderMap::new();
        for topic in ["news", "two%0Alines", "sport", "", "%FF"] {
            headers.append(EVENT_TOPIC, topic);
        }
        headers.insert(EVENT_EXCEPT, "%FF");
        headers.insert(EVENT_HISTORY, "yes");
        let read = parse(&headers);
        assert_eq!(read.topics(), topics(&["news", "sport"]));
        let event = read.apply_to(HubEvent::new(topics(&[]), Event::text("x")));
        assert_eq!((event.excluded_sender(), event.has_history()), (None, true));
        let mut many = HeaderMap::new();
        (0..2000).for_each(|number| many.append(EVENT_TOPIC, number.to_string()));
        assert_eq!(parse(&many).topics().len(), MAX_TOPICS);
    }
}
