use std::{borrow::Cow, collections::HashMap};

use http::StatusCode;
use serde_json::{Map, Value, value::RawValue};

use super::{
    is_control_type,
    json_depth::{MAX_JSON_DEPTH, is_too_deep},
    topic_or_pattern::TopicOrPattern,
    topic_pattern::TopicPattern,
};
use crate::{
    event::{Event, EventId, EventType, Payload, Topic},
    source::Rejection,
};

/// A command that a client sends in a message on its WebSocket: see `docs/hub-protocol.md`.
#[derive(Debug)]
pub(super) struct ClientCommand {
    /// A topic if the command publishes.
    pub(super) requested: TopicOrPattern,
    pub(super) action: CommandAction,
    /// The client's name for the command, which the answer repeats.
    pub(super) reference: Option<Value>,
}

impl ClientCommand {
    /// Returns whether this is a subscription.
    pub(super) fn subscribes(&self) -> bool {
        matches!(self.action, CommandAction::Subscribe { .. })
    }
}

#[derive(Debug)]
pub(super) enum CommandAction {
    Subscribe {
        cursor: Option<EventId>,
    },
    Unsubscribe,
    Publish {
        event: Event,
        idempotency_key: Option<String>,
        /// Whether the client gets its own event.
        has_echo: bool,
    },
}

/// The error of a message that is no command: what is wrong, and the client's name for the command.
#[derive(Debug)]
pub(super) struct InvalidCommand {
    pub(super) rejection: Rejection,
    pub(super) reference: Option<Value>,
}

/// The maximum length of a reference and of an idempotency key, in bytes.
const MAX_NAME_LEN: usize = 128;

impl ClientCommand {
    /// Parses a message.
    pub(super) fn parse(message: &Payload) -> Result<Self, InvalidCommand> {
        let value = serde_json::from_slice(message.as_bytes());
        let Ok(Value::Object(mut members)) = value else {
            return Err(InvalidCommand {
                rejection: bad_request("a command is a JSON object"),
                reference: None,
            });
        };
        let reference = members.remove("ref");
        let is_integer = |value: &Value| value.is_u64() || value.is_i64();
        let reference =
            reference.filter(|value| is_integer(value) || value.as_str().is_some_and(is_short));
        match Self::parse_members(&mut members, message.as_bytes()) {
            Ok((requested, action)) => Ok(Self {
                requested,
                action,
                reference,
            }),
            Err(message) => Err(InvalidCommand {
                rejection: bad_request(message),
                reference,
            }),
        }
    }

    /// Parses the member that has the name of the command. Returns the topic or the pattern, and the action.
    fn parse_members(
        members: &mut Map<String, Value>,
        message: &[u8],
    ) -> Result<(TopicOrPattern, CommandAction), InvalidMember> {
        let names = ["subscribe", "unsubscribe", "publish"];
        let mut commands = names.map(|name| members.remove(name));
        if commands.iter().flatten().count() > 1 {
            return Err("a message is one command".into());
        }
        match commands.each_mut().map(Option::take) {
            [Some(Value::Object(arguments)), _, _] => {
                let cursor = string_member(&arguments, "cursor")?.map(EventId::new);
                let cursor = cursor.transpose().map_err(|_| "`cursor` is not an id")?;
                let requested = parse_topic_or_pattern(&arguments)?;
                Ok((requested, CommandAction::Subscribe { cursor }))
            }
            [_, Some(Value::Object(arguments)), _] => {
                let requested = parse_topic_or_pattern(&arguments)?;
                Ok((requested, CommandAction::Unsubscribe))
            }
            [_, _, Some(Value::Object(arguments))] => parse_publication(arguments, message),
            _ => Err("a command is `subscribe`, `unsubscribe` or `publish`".into()),
        }
    }
}

/// What is wrong with a member of a command.
type InvalidMember = Cow<'static, str>;

fn parse_publication(
    mut arguments: Map<String, Value>,
    message: &[u8],
) -> Result<(TopicOrPattern, CommandAction), InvalidMember> {
    let event = match arguments.remove("data") {
        Some(Value::String(text)) => Event::text(text),
        Some(_) => json_event_of(message)?,
        None => return Err("`data` is missing".into()),
    };
    let event_type = string_member(&arguments, "event")?;
    let event = match event_type.map(EventType::new) {
        Some(Ok(name)) if !is_control_type(&name) => event.with_type(name),
        Some(_) => return Err("`event` is not a type that clients may use".into()),
        None => Ok(event),
    };
    let key = string_member(&arguments, "key")?;
    if key.is_some_and(|key| key.is_empty() || !is_short(key)) {
        return Err(format!("`key` is 1 to {MAX_NAME_LEN} bytes").into());
    }
    let has_echo = match arguments.get("echo") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(has_echo)) => *has_echo,
        Some(_) => return Err("`echo` is not a boolean".into()),
    };
    let action = CommandAction::Publish {
        event: event.map_err(|_| "`event` is not a type")?,
        idempotency_key: key.map(str::to_owned),
        has_echo,
    };
    Ok((TopicOrPattern::Topic(parse_topic(&arguments)?), action))
}

/// Returns the event of the data in a publication, as the client has written it: a `Value` would change the order of the data's members, and long
/// numbers.
fn json_event_of(message: &[u8]) -> Result<Event, InvalidMember> {
    let data = || {
        let command: HashMap<String, &RawValue> = serde_json::from_slice(message).ok()?;
        let arguments = command.get("publish")?.get();
        let arguments: HashMap<String, &RawValue> = serde_json::from_str(arguments).ok()?;
        arguments.get("data").copied()
    };
    let data = data().ok_or("the data is not JSON")?.get();
    if is_too_deep(data) {
        return Err(format!("`data` has more than {MAX_JSON_DEPTH} levels").into());
    }
    Event::json_text(data).map_err(|_| "the data is not JSON".into())
}

fn is_short(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN
}

fn string_member<'a>(
    arguments: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, InvalidMember> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{name}` is not a string").into()),
    }
}

fn parse_topic(arguments: &Map<String, Value>) -> Result<Topic, InvalidMember> {
    let name = string_member(arguments, "topic")?.ok_or("`topic` is missing")?;
    Topic::new(name).map_err(|_| "`topic` is not a topic".into())
}

fn parse_topic_or_pattern(arguments: &Map<String, Value>) -> Result<TopicOrPattern, InvalidMember> {
    let pattern = match (arguments.get("pattern"), arguments.get("topic")) {
        (None, _) => return parse_topic(arguments).map(TopicOrPattern::Topic),
        (Some(Value::Object(pattern)), None) => pattern,
        (Some(_), Some(_)) => return Err("a command has a topic or a pattern, not both".into()),
        (Some(_), None) => return Err("`pattern` is not an object".into()),
    };
    let prefix = string_member(pattern, "prefix")?.ok_or("`prefix` is missing")?;
    let suffix = string_member(pattern, "suffix")?;
    let pattern = TopicPattern::from_client(prefix, suffix)?;
    Ok(TopicOrPattern::Pattern(pattern))
}

fn bad_request(message: impl Into<Cow<'static, str>>) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST).message(message)
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    fn parse(message: &str) -> Result<ClientCommand, InvalidCommand> {
        ClientCommand::parse(&Payload::Text(message.to_owned()))
    }

    fn topic(name: &str) -> TopicOrPattern {
        TopicOrPattern::Topic(Topic::new(name).unwrap())
    }

    #[test]
    fn commands_are_parsed() {
        let command = parse(r#"{"subscribe":{"topic":"a","cursor":"7"},"ref":1}"#).unwrap();
        assert_eq!(
            (command.requested, command.reference),
            (topic("a"), Some(1.into()))
        );
        let CommandAction::Subscribe { cursor } = command.action else {
            panic!("not a subscription")
        };
        assert_eq!(cursor, Some(7.into()));
        let publish = r#"{"publish":{"topic":"a","event":"x","data":[1],"echo":false,"key":"k"}}"#;
        let CommandAction::Publish {
            event,
            idempotency_key,
            has_echo,
        } = parse(publish).unwrap().action
        else {
            panic!("not a publication")
        };
        assert_eq!(event.payload().as_text(), Some("[1]"));
        assert_eq!((idempotency_key.as_deref(), has_echo), (Some("k"), false));
    }

    #[test]
    fn data_stays_as_it_is_written() {
        let data = r#"{"b": 12345678901234567890123, "a": 1.10}"#;
        for message in [
            format!(r#"{{"publish":{{"topic":"a","data":{data}}}}}"#),
            format!(r#"{{"ref":1,"publish":{{"d\u0061ta":{data},"topic":"a"}}}}"#),
        ] {
            let CommandAction::Publish { event, .. } = parse(&message).unwrap().action else {
                panic!("not a publication")
            };
            assert_eq!(event.payload().as_text(), Some(data));
        }
    }

    #[test]
    fn patterns_are_parsed() {
        let requested = |arguments: &str| {
            let message = format!(r#"{{"subscribe":{arguments}}}"#);
            parse(&message).map(|command| command.requested)
        };
        let prefix = requested(r#"{"pattern":{"prefix":"a/"}}"#).unwrap();
        assert_eq!(prefix, TopicOrPattern::from(&TopicPattern::prefix("a/")));
        let segment = requested(r#"{"pattern":{"prefix":"a/","suffix":"/b"}}"#).unwrap();
        let expected = TopicPattern::one_segment("a/", "/b");
        assert_eq!(segment, TopicOrPattern::from(&expected));
        // A name has no wildcards.
        assert_eq!(requested(r#"{"topic":"a/*"}"#).unwrap(), topic("a/*"));
        let long = format!(r#"{{"pattern":{{"prefix":"{}"}}}}"#, "x".repeat(10 * 1024));
        for bad in [
            r#"{"topic":"a","pattern":{"prefix":"a"}}"#,
            r#"{"pattern":"a"}"#,
            r#"{"pattern":null}"#,
            r#"{"pattern":{}}"#,
            r#"{"pattern":{"suffix":"a"}}"#,
            r#"{"pattern":{"prefix":7}}"#,
            r#"{"pattern":{"prefix":"a\n"}}"#,
            &long,
        ] {
            let rejection = requested(bad).unwrap_err().rejection;
            assert_eq!(rejection.status(), 400, "{bad:.60}");
        }
        let publish = r#"{"publish":{"pattern":{"prefix":"a"},"data":1}}"#;
        assert!(parse(publish).is_err());
    }

    #[test]
    fn malformed_commands_are_refused() {
        let deep = "[".repeat(10_000);
        let deep_data = |depth| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"publish":{{"topic":"a","data":{open}{close}}}}}"#)
        };
        assert!(parse(&deep_data(120)).is_ok());
        let long = "x".repeat(129);
        let long_key = format!(r#"{{"publish":{{"topic":"a","data":1,"key":"{long}"}}}}"#);
        for message in [
            "",
            "7",
            "{}",
            "{",
            &deep,
            r#"{"subscribe":"a"}"#,
            r#"{"subscribe":{}}"#,
            r#"{"subscribe":{"topic":7}}"#,
            r#"{"subscribe":{"topic":""}}"#,
            r#"{"subscribe":{"topic":"a\n"}}"#,
            r#"{"subscribe":{"topic":"a","cursor":"two words"}}"#,
            r#"{"publish":{"topic":"a"}}"#,
            r#"{"publish":{"topic":"a","data":1,"event":"hub.refused"}}"#,
            r#"{"publish":{"topic":"a","data":1,"event":"a\nb"}}"#,
            r#"{"publish":{"topic":"a","data":1,"key":""}}"#,
            r#"{"publish":{"topic":"a","data":1,"key":7}}"#,
            r#"{"publish":{"topic":"a","data":1,"echo":"false"}}"#,
            r#"{"subscribe":{"topic":"a"},"unsubscribe":{"topic":"b"}}"#,
            &long_key,
            &deep_data(10_000),
            &deep_data(121),
        ] {
            assert_eq!(
                parse(message).unwrap_err().rejection.status(),
                400,
                "{message}"
            );
        }
        // Such a command is executed, and its answer has no `ref`.
        let long = format!(r#""{long}""#);
        for reference in ["1.5", "true", "[1]", "{}", &long] {
            let message = format!(r#"{{"unsubscribe":{{"topic":"a"}},"ref":{reference}}}"#);
            assert_eq!(parse(&message).unwrap().reference, None, "{reference}");
        }
        let negative = parse(r#"{"unsubscribe":{"topic":"a"},"ref":-1}"#).unwrap();
        assert_eq!(negative.reference, Some((-1).into()));
    }
}
