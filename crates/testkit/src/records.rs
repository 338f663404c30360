//! A parser of all formats of the transports, which yields the same records for each format.

use serde_json::Value;

use crate::event_stream::{EventStreamParser, MessageEvent};

/// An event, a gap message or an end message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedRecord {
    /// The payload, if this is an event.
    pub data: Option<String>,
    /// The content of a gap message.
    pub gap: Option<Value>,
    /// The content of an end message.
    pub end: Option<Value>,
}

/// Parses a response piece by piece, and keeps the cursor with which a client would resume.
#[derive(Debug)]
pub struct RecordReader {
    format: Format,
    /// The bytes of an incomplete line, part or array.
    unread: Vec<u8>,
    /// The cursor to resume from.
    pub cursor: Option<String>,
}

#[derive(Debug)]
enum Format {
    Sse(Box<EventStreamParser>),
    Lines,
    /// One JSON array, which is parsed when it is complete.
    Array,
    Multipart {
        delimiter: String,
    },
}

impl RecordReader {
    /// Creates a reader for a response with this `Content-Type`. `cursor` is the cursor of the client's request.
    pub fn new(content_type: &str, cursor: Option<String>) -> Self {
        let format = match content_type.split(';').next().unwrap() {
            "text/event-stream" => Format::Sse(Box::default()),
            "application/x-ndjson" | "application/json-seq" => Format::Lines,
            "application/json" => Format::Array,
            "multipart/mixed" => Format::Multipart {
                delimiter: format!("\r\n--{}", content_type.split_once("boundary=").unwrap().1),
            },
            other => panic!("{other}"),
        };
        // The first delimiter of a multipart body has no line break before it, unlike all other delimiters.
        let unread = match format {
            Format::Multipart { .. } => b"\r\n".to_vec(),
            Format::Sse(_) | Format::Lines | Format::Array => Vec::new(),
        };
        Self {
            format,
            unread,
            cursor,
        }
    }

    /// Reads the next bytes of a response, and returns the records that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<ParsedRecord> {
        if let Format::Sse(parser) = &mut self.format {
            parser.feed(bytes);
            if !parser.last_event_id.is_empty() {
                self.cursor = Some(parser.last_event_id.clone());
            }
            let messages = std::mem::take(&mut parser.messages);
            return messages
                .into_iter()
                .flat_map(|message| self.records_of_message(message))
                .collect();
        }
        self.unread.extend_from_slice(bytes);
        if matches!(self.format, Format::Array) {
            return self.parse_array();
        }
        std::iter::from_fn(|| self.next_piece()).flatten().collect()
    }

    fn records_of_message(&mut self, message: MessageEvent) -> Vec<ParsedRecord> {
        let json: Option<Value> = serde_json::from_str(&message.data).ok();
        let record = match &*message.event_type {
            "gap" => ParsedRecord {
                gap: json,
                ..ParsedRecord::default()
            },
            "end" | "finished" => ParsedRecord {
                end: json,
                ..ParsedRecord::default()
            },
            // An event stream of Durable Streams sends a batch in a `data` event, and then its offset in a `control` event. A batch is
            // complete only after the `control` event.
            "data" => {
                self.unread = message.data.into_bytes();
                return Vec::new();
            }
            "control" => {
                let batch = self.parse_array();
                self.unread.clear();
                let next = json
                    .as_ref()
                    .and_then(|json| json["streamNextOffset"].as_str());
                self.cursor = next.map(str::to_owned);
                return batch;
            }
            _ => ParsedRecord {
                data: Some(message.data),
                ..ParsedRecord::default()
            },
        };
        vec![record]
    }

    /// Removes and returns the next line or part. Returns `None` if the line or part is incomplete. The inner value is `None` for
    /// heartbeats and other pieces without a record.
    fn next_piece(&mut self) -> Option<Option<ParsedRecord>> {
        let delimiter = match &self.format {
            Format::Multipart { delimiter } => delimiter.clone(),
            Format::Sse(_) | Format::Lines | Format::Array => "\n".to_owned(),
        };
        let end = find_bytes(&self.unread, delimiter.as_bytes())?;
        let rest = self.unread.split_off(end + delimiter.len());
        let mut piece = std::mem::replace(&mut self.unread, rest);
        piece.truncate(end);
        Some(match self.format {
            Format::Multipart { .. } => self.parse_part(&piece),
            Format::Sse(_) | Format::Lines | Format::Array => {
                let text = String::from_utf8(piece).unwrap();
                self.parse_json(text.trim_matches('\u{1e}'))
            }
        })
    }

    /// Parses the unread bytes as an array of envelopes or of payloads. Returns no records if the array is incomplete.
    fn parse_array(&mut self) -> Vec<ParsedRecord> {
        let Ok(Value::Array(values)) = serde_json::from_slice(&self.unread) else {
            return Vec::new();
        };
        let records = values.into_iter().filter_map(|value| match value {
            Value::Object(_) => self.parse_json(&value.to_string()),
            Value::String(data) => Some(ParsedRecord {
                data: Some(data),
                ..ParsedRecord::default()
            }),
            other => panic!("{other}"),
        });
        records.collect()
    }

    /// Parses a part of a multipart body.
    fn parse_part(&mut self, part: &[u8]) -> Option<ParsedRecord> {
        let end = find_bytes(part, b"\r\n\r\n")?;
        let head = String::from_utf8(part[..end].to_vec()).unwrap();
        let content = String::from_utf8(part[end + 4..].to_vec()).unwrap();
        if head.contains("application/vnd.tower-push+json") {
            return self.parse_json(&content);
        }
        let id = head
            .lines()
            .find_map(|line| line.strip_prefix("Event-ID: "));
        self.cursor = id.map(str::to_owned).or(self.cursor.take());
        Some(ParsedRecord {
            data: Some(content),
            ..ParsedRecord::default()
        })
    }

    /// Parses an envelope, and moves the cursor to its id. Returns `None` if the text holds neither an event, a gap nor an end.
    fn parse_json(&mut self, text: &str) -> Option<ParsedRecord> {
        let mut value: Value = serde_json::from_str(text).ok()?;
        if let Some(id) = value["id"].as_str() {
            self.cursor = Some(id.to_owned());
        }
        let mut take = |key: &str| value.as_object_mut()?.remove(key);
        let data = take("data").map(|data| data.as_str().map_or(data.to_string(), str::to_owned));
        let record = ParsedRecord {
            data,
            gap: take("gap"),
            end: take("end"),
        };
        (record != ParsedRecord::default()).then_some(record)
    }
}

/// Returns the index at which `needle` first occurs in `bytes`.
pub fn find_bytes(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}
