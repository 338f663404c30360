//! A parser of event streams, written from WHATWG HTML §9.2.6 ("Interpreting an event stream"), to judge the encoder by.

/// What a client dispatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The event's type, `message` where the stream names none.
    pub event_type: String,
    /// The data lines, joined with line feeds.
    pub data: String,
    /// The last event ID when the event is dispatched.
    pub last_event_id: String,
}

/// The state that the standard names: buffers, and what outlives a message.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    started: bool,
    data: String,
    event_type: String,
    id_buffer: String,
    /// What a client sends as `Last-Event-ID` when it reconnects.
    pub last_event_id: String,
    /// The value of the last valid `retry:` line, in milliseconds.
    pub reconnection_time: Option<u64>,
    /// The events that were dispatched.
    pub messages: Vec<Message>,
}

impl Parser {
    /// Parses a whole stream.
    pub fn read(stream: &[u8]) -> Self {
        let mut parser = Self::default();
        parser.feed(stream);
        parser
    }

    /// Parses the next bytes of a stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_line(),
                byte => self.line.push(*byte),
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let mut line = String::from_utf8_lossy(&line).into_owned();
        // "One leading U+FEFF BYTE ORDER MARK character must be ignored if any are present."
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(&line).to_owned();
        }
        if line.is_empty() {
            return self.dispatch();
        }
        if line.starts_with(':') {
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        self.process(field, value.strip_prefix(' ').unwrap_or(value));
    }

    fn process(&mut self, field: &str, value: &str) {
        match field {
            "event" => self.event_type = value.to_owned(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id_buffer = value.to_owned(),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.reconnection_time = value.parse().ok();
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        self.last_event_id = self.id_buffer.clone();
        let data = std::mem::take(&mut self.data);
        let event_type = std::mem::take(&mut self.event_type);
        if data.is_empty() {
            return;
        }
        let is_typed = !event_type.is_empty();
        self.messages.push(Message {
            event_type: if is_typed {
                event_type
            } else {
                "message".to_owned()
            },
            data: data.strip_suffix('\n').unwrap_or(&data).to_owned(),
            last_event_id: self.last_event_id.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The facts of the standard and its test suite that a parser must know, so that it can be trusted as a judge.
    #[test]
    fn the_judge_knows_the_standard() {
        let data = |stream: &str| -> Vec<String> {
            let messages = Parser::read(stream.as_bytes()).messages;
            messages.into_iter().map(|m| m.data).collect()
        };
        assert_eq!(data("\u{feff}data: 1\n\n"), ["1"]);
        assert_eq!(data("\u{feff}\u{feff}data: 1\n\n"), [""; 0]);
        assert_eq!(data("data:1\rdata:2\r\n\rdata:3\n\n"), ["1\n2", "3"]);
        assert_eq!(data("data\n\n"), [""]);
        assert_eq!(data("data:\n\n"), [""]);
        assert_eq!(data("data: x"), [""; 0]);
        assert_eq!(data("data: x\n"), [""; 0]);
        assert_eq!(data("event: x\n\ndata: y\n\n"), ["y"]);
        assert_eq!(data(":\n:\nfoo: bar\n data: x\n\n"), [""; 0]);
        assert_eq!(data("id: a\0b\ndata: x\n\n"), ["x"]);
        assert_eq!(data("data:  two\n\n"), [" two"]);

        let parser = Parser::read(b"id: 1\n\nid\ndata: x\n\n");
        assert_eq!(parser.last_event_id, "");
        assert_eq!(Parser::read(b"id: 1\n\n").last_event_id, "1");
        assert_eq!(Parser::read(b"id: a\0b\ndata: x\n\n").last_event_id, "");
        assert_eq!(Parser::read(b"id: 1\ndata: cut").last_event_id, "");
        assert_eq!(
            Parser::read(b"event: x\n\ndata: y\n\n").messages[0].event_type,
            "message"
        );
        for odd in ["1000x", "-1", "1e3", "", "1.5"] {
            assert_eq!(
                Parser::read(format!("retry:{odd}\n").as_bytes()).reconnection_time,
                None
            );
        }
        assert_eq!(Parser::read(b"retry: 1005\n").reconnection_time, Some(1005));

        let stream = "data:1\rdata:2\r\n\rid:7\r\ndata:3\n\n".as_bytes();
        let whole = Parser::read(stream).messages;
        for at in 0..stream.len() {
            let mut split = Parser::read(&stream[..at]);
            split.feed(&stream[at..]);
            assert_eq!(split.messages, whole, "split at {at}");
        }
    }
}
