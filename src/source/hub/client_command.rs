use std::{borrow::Cow, collections::HashMap};

use http::StatusCode;
use serde_json::{Value, value::RawValue};

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

/// The members of a JSON object, as the client has written them: a `Value` would change the order of the data's members, and long numbers.
type Members<'a> = HashMap<String, &'a RawValue>;

/// The maximum length of a reference and of an idempotency key, in bytes.
const MAX_NAME_LEN: usize = 128;

impl ClientCommand {
    /// Parses a message.
    pub(super) fn parse(message: &Payload) -> Result<Self, InvalidCommand> {
        let Ok(members) = serde_json::from_slice::<Members<'_>>(message.as_bytes()) else {
            return Err(InvalidCommand {
                rejection: bad_request("a command is a JSON object"),
                reference: None,
            });
        };
        let reference = members.get("ref");
        let reference = reference.and_then(|value| serde_json::from_str(value.get()).ok());
        let is_integer = |value: &Value| value.is_u64() || value.is_i64();
        let reference =
            reference.filter(|value| is_integer(value) || value.as_str().is_some_and(is_short));
        match Self::parse_members(&members) {
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
        members: &Members<'_>,
    ) -> Result<(TopicOrPattern, CommandAction), InvalidMember> {
        let names = ["subscribe", "unsubscribe", "publish"];
        let mut commands = names
            .into_iter()
            .filter_map(|name| Some((name, members.get(name)?)));
        let (Some((name, arguments)), other) = (commands.next(), commands.next()) else {
            return Err(NO_COMMAND.into());
        };
        if other.is_some() {
            return Err("a message is one command".into());
        }
        let arguments = serde_json::from_str::<Members<'_>>(arguments.get());
        let arguments = arguments.map_err(|_| NO_COMMAND)?;
        match name {
            "subscribe" => {
                let cursor = string_member(&arguments, "cursor")?.map(EventId::new);
                let cursor = cursor.transpose().map_err(|_| "`cursor` is not an id")?;
                let requested = parse_topic_or_pattern(&arguments)?;
                Ok((requested, CommandAction::Subscribe { cursor }))
            }
            "unsubscribe" => {
                let requested = parse_topic_or_pattern(&arguments)?;
                Ok((requested, CommandAction::Unsubscribe))
            }
            _ => parse_publication(&arguments),
        }
    }
}

const NO_COMMAND: &str = "a command is `subscribe`, `unsubscribe` or `publish`";

/// What is wrong with a member of a command.
type InvalidMember = Cow<'static, str>;

fn parse_publication(
    arguments: &Members<'_>,
) -> Result<(TopicOrPattern, CommandAction), InvalidMember> {
    let data = arguments.get("data").ok_or("`data` is missing")?.get();
    let event = match data.starts_with('"') {
        true => serde_json::from_str::<String>(data).map(Event::text).ok(),
        false if is_too_deep(data) => {
            return Err(format!("`data` has more than {MAX_JSON_DEPTH} levels").into());
        }
        false => Event::json_text(data).ok(),
    };
    let event = event.ok_or("the data is not JSON")?;
    let event_type = string_member(arguments, "event")?;
    let event = match event_type.map(EventType::new) {
        Some(Ok(name)) if !is_control_type(&name) => event.with_type(name),
        Some(_) => return Err("`event` is not a type that clients may use".into()),
        None => Ok(event),
    };
    let key = string_member(arguments, "key")?;
    if key
        .as_deref()
        .is_some_and(|key| key.is_empty() || !is_short(key))
    {
        return Err(format!("`key` is 1 to {MAX_NAME_LEN} bytes").into());
    }
    let has_echo = arguments.get("echo").map_or("true", |echo| echo.get());
    let has_echo = match has_echo {
        "true" | "null" => true,
        "false" => false,
        _ => return Err("`echo` is not a boolean".into()),
    };
    let action = CommandAction::Publish {
        event: event.map_err(|_| "`event` is not a type")?,
        idempotency_key: key,
        has_echo,
    };
    Ok((TopicOrPattern::Topic(parse_topic(arguments)?), action))
}

fn is_short(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN
}

fn string_member(arguments: &Members<'_>, name: &str) -> Result<Option<String>, InvalidMember> {
    let Some(value) = arguments.get(name) else {
        return Ok(None);
    };
    let text = serde_json::from_str::<Option<String>>(value.get());
    text.map_err(|_| format!("`{name}` is not a string").into())
}

fn parse_topic(arguments: &Members<'_>) -> Result<Topic, InvalidMember> {
    let name = string_member(arguments, "topic")?.ok_or("`topic` is missing")?;
    Topic::new(name).map_err(|_| "`topic` is not a topic".into())
}

fn parse_topic_or_pattern(arguments: &Members<'_>) -> Result<TopicOrPattern, InvalidMember> {
    let pattern = match (arguments.get("pattern"), arguments.get("topic")) {
        (None, _) => return parse_topic(arguments).map(TopicOrPattern::Topic),
        (Some(pattern), None) => pattern.get(),
        (Some(_), Some(_)) => return Err("a command has a topic or a pattern, not both".into()),
    };
    let pattern = serde_json::from_str::<Members<'_>>(pattern);
    let pattern = &pattern.map_err(|_| "`pattern` is not an object")?;
    let prefix = string_member(pattern, "prefix")?.ok_or("`prefix` is missing")?;
    let suffix = string_member(pattern, "suffix")?;
    let pattern = TopicPattern::from_client(&prefix, suffix.as_deref())?;
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
