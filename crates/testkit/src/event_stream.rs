//! A parser of event streams, written from WHATWG HTML §9.2.6 ("Interpreting an event stream"). The tests of the SSE encoder rely on this
//! parser.

/// An event that a browser's `EventSource` dispatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageEvent {
    /// The event's type, or `message` if the stream names no type.
    pub event_type: String,
    /// The data lines, joined with line feeds.
    pub data: String,
    /// The last event ID at the time of dispatch.
    pub last_event_id: String,
}

/// An incremental parser with the buffers that the standard names.
#[derive(Debug, Default)]
pub struct EventStreamParser {
    line: Vec<u8>,
    after_cr: bool,
    started: bool,
    data: String,
    event_type: String,
    id_buffer: String,
    /// The value that a client sends as `Last-Event-ID` when it reconnects.
    pub last_event_id: String,
    /// The value of the last valid `retry:` line, in milliseconds.
    pub reconnection_time: Option<u64>,
    /// The dispatched events.
    pub messages: Vec<MessageEvent>,
}

impl EventStreamParser {
    /// Parses a whole stream.
    pub fn parse(stream: &[u8]) -> Self {
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
        self.process_field(field, value.strip_prefix(' ').unwrap_or(value));
    }

    fn process_field(&mut self, field: &str, value: &str) {
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
        self.messages.push(MessageEvent {
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

    /// The examples of the standard and cases of its test suite.
    #[test]
    fn parser_follows_the_standard() {
        let data = |stream: &str| -> Vec<String> {
            let messages = EventStreamParser::parse(stream.as_bytes()).messages;
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

        let parser = EventStreamParser::parse(b"id: 1\n\nid\ndata: x\n\n");
        assert_eq!(parser.last_event_id, "");
        assert_eq!(EventStreamParser::parse(b"id: 1\n\n").last_event_id, "1");
        assert_eq!(
            EventStreamParser::parse(b"id: a\0b\ndata: x\n\n").last_event_id,
            ""
        );
        assert_eq!(
            EventStreamParser::parse(b"id: 1\ndata: cut").last_event_id,
            ""
        );
        assert_eq!(
            EventStreamParser::parse(b"event: x\n\ndata: y\n\n").messages[0].event_type,
            "message"
        );
        for odd in ["1000x", "-1", "1e3", "", "1.5"] {
            assert_eq!(
                EventStreamParser::parse(format!("retry:{odd}\n").as_bytes()).reconnection_time,
                None
            );
        }
        assert_eq!(
            EventStreamParser::parse(b"retry: 1005\n").reconnection_time,
            Some(1005)
        );

        let stream = "data:1\rdata:2\r\n\rid:7\r\ndata:3\n\n".as_bytes();
        let whole = EventStreamParser::parse(stream).messages;
        for split in 0..stream.len() {
            let mut parser = EventStreamParser::parse(&stream[..split]);
            parser.feed(&stream[split..]);
            assert_eq!(parser.messages, whole, "split at {split}");
        }
    }
}
