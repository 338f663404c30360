use tower_push::EventId;
use tower_push_proto::fingerprint::Fingerprint;

/// A cursor of this crate in parsed form: the parts of an event id.
///
/// | text | meaning |
/// |---|---|
/// | `7-STREAM-MESSAGE` | the message with the sequence number 7 and the fingerprint `MESSAGE`, in the stream with the fingerprint `STREAM` |
/// | `7-STREAM` | the position after the sequence number 7 of the stream, where this process has found no message |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamCursor {
    pub(crate) sequence: u64,
    /// The fingerprint of the time at which the stream was created.
    pub(crate) stream: Fingerprint,
    pub(crate) message: Option<Fingerprint>,
}

impl StreamCursor {
    pub(crate) fn parse(id: &EventId) -> Option<Self> {
        let mut parts = id.as_str().split('-');
        let sequence = parse_decimal(parts.next()?)?;
        let stream = Fingerprint::parse(parts.next()?)?;
        let message = match parts.next() {
            Some(message) => Some(Fingerprint::parse(message)?),
            None => None,
        };
        parts.next().is_none().then_some(Self {
            sequence,
            stream,
            message,
        })
    }

    pub(crate) fn to_event_id(self) -> EventId {
        let stream = self.stream.as_str();
        let text = match &self.message {
            Some(message) => format!("{}-{stream}-{}", self.sequence, message.as_str()),
            None => format!("{}-{stream}", self.sequence),
        };
        // Digits, `-` and letters are valid in an id, and the text is at most 34 bytes long.
        EventId::new(text).unwrap_or_else(|_| self.sequence.into())
    }

    /// Returns the cursor at another sequence number of the stream, where there is no message.
    pub(crate) fn without_message_at(self, sequence: u64) -> Self {
        Self {
            sequence,
            message: None,
            ..self
        }
    }

    /// Returns whether the cursor's message has this fingerprint. A cursor without a message agrees with any fingerprint.
    pub(crate) fn matches_message(&self, fingerprint: Fingerprint) -> bool {
        self.message.is_none_or(|message| message == fingerprint)
    }
}

/// Parses a number without a sign and without leading zeros, so that each id has one text.
fn parse_decimal(text: &str) -> Option<u64> {
    let is_canonical = text == "0" || text.starts_with(|first: char| ('1'..='9').contains(&first));
    is_canonical.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_id_is_parsed() {
        let max = format!("{}-aaaaaa-bbbbbb", u64::MAX);
        for text in ["7-abc234-bcd567", "0-abc234", &max] {
            let id = EventId::new(text).unwrap();
            let cursor = StreamCursor::parse(&id).unwrap();
            assert_eq!(cursor.to_event_id(), id);
        }
        for text in [
            "7",
            "7-",
            "07-abc234",
            "7-abc23",
            "7-abc234-",
            "7-abc234-abc234-",
            "+7-abc234",
            "~finished",
            "18446744073709551616-abc234",
        ] {
            let id = EventId::new(text).unwrap();
            assert_eq!(StreamCursor::parse(&id), None, "{text}");
        }
    }
}
