use http::StatusCode;
use serde_json::{Map, Value};

use super::{is_control_type, topic_or_pattern::TopicOrPattern, topic_pattern::TopicPattern};
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

/// The maximum length of a reference in JSON, and of an idempotency key, in bytes.
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
        let reference =
            reference.filter(|value| value.is_u64() || value.as_str().is_some_and(is_short));
        match Self::parse_members(&mut members) {
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
    ) -> Result<(TopicOrPattern, CommandAction), &'static str> {
        let mut arguments = |name| match members.remove(name) {
            Some(Value::Object(arguments)) => Some(arguments),
            _ => None,
        };
        if let Some(arguments) = arguments("subscribe") {
            let cursor = string_member(&arguments, "cursor")?;
            let cursor = cursor.map(|cursor| EventId::new(cursor).map_err(|_| INVALID_CURSOR));
            let cursor = cursor.transpose()?;
            return Ok((
                parse_topic_or_pattern(&arguments)?,
                CommandAction::Subscribe { cursor },
            ));
        }
        if let Some(arguments) = arguments("unsubscribe") {
            return Ok((
                parse_topic_or_pattern(&arguments)?,
                CommandAction::Unsubscribe,
            ));
        }
        let Some(mut arguments) = arguments("publish") else {
            return Err("a command is `subscribe`, `unsubscribe` or `publish`");
        };
        let event = match arguments.remove("data") {
            Some(Value::String(text)) => Event::text(text),
            Some(data) => Event::json(&data).map_err(|_| "the data is not JSON")?,
            None => return Err("`data` is missing"),
        };
        let event_type = string_member(&arguments, "event")?;
        let event = match event_type.map(EventType::new) {
            Some(Ok(name)) if !is_control_type(&name) => event.with_type(name),
            Some(_) => return Err("`event` is not a type that clients may use"),
            None => Ok(event),
        };
        let key = string_member(&arguments, "key")?.filter(|key| is_short(key));
        let action = CommandAction::Publish {
            event: event.map_err(|_| "`event` is not a type")?,
            idempotency_key: key.map(str::to_owned),
            has_echo: arguments.get("echo") != Some(&Value::Bool(false)),
        };
        Ok((TopicOrPattern::Topic(parse_topic(&arguments)?), action))
    }
}

const INVALID_CURSOR: &str = "`cursor` is not an id";

fn is_short(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN
}

fn string_member<'a>(
    arguments: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, &'static str> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err("a member is not a string"),
    }
}

fn parse_topic(arguments: &Map<String, Value>) -> Result<Topic, &'static str> {
    let name = string_member(arguments, "topic")?.ok_or("`topic` is missing")?;
    Topic::new(name).map_err(|_| "`topic` is not a topic")
}

fn parse_topic_or_pattern(arguments: &Map<String, Value>) -> Result<TopicOrPattern, &'static str> {
    let pattern = match (arguments.get("pattern"), arguments.get("topic")) {
        (None, _) => return parse_topic(arguments).map(TopicOrPattern::Topic),
        (Some(Value::Object(pattern)), None) => pattern,
        (Some(_), Some(_)) => return Err("a command has a topic or a pattern, not both"),
        (Some(_), None) => return Err("`pattern` is not an object"),
    };
    let prefix = string_member(pattern, "prefix")?.ok_or("`prefix` is missing")?;
    let suffix = string_member(pattern, "suffix")?;
    TopicPattern::from_client(prefix, suffix).map(TopicOrPattern::Pattern)
}

fn bad_request(message: &'static str) -> Rejection {
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
        ] {
            assert_eq!(
                parse(message).unwrap_err().rejection.status(),
                400,
                "{message}"
            );
        }
        let long = format!(
            r#"{{"unsubscribe":{{"topic":"a"}},"ref":"{}"}}"#,
            "x".repeat(200)
        );
        assert_eq!(parse(&long).unwrap().reference, None);
    }
}
