//! What a client makes of a stream in any format, as it comes.

use serde_json::Value;

use crate::event_source::{Message, Parser};

/// An event, or what is said between events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The payload of an event.
    pub data: Option<String>,
    /// What a gap message says.
    pub gap: Option<Value>,
    /// What an end message says.
    pub end: Option<Value>,
}

/// A reader that keeps its cursor, like a client that means to come back.
#[derive(Debug)]
pub struct Reader {
    format: Format,
    unread: Vec<u8>,
    /// The cursor to resume from.
    pub cursor: Option<String>,
}

#[derive(Debug)]
enum Format {
    Sse(Box<Parser>),
    Lines,
    /// All at once.
    Array,
    Multipart {
        delimiter: String,
    },
}

impl Reader {
    /// Creates a reader for a response of this type, from a client that had `cursor`.
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
        // So that the first delimiter begins like all others.
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
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Record> {
        if let Format::Sse(parser) = &mut self.format {
            parser.feed(bytes);
            if !parser.last_event_id.is_empty() {
                self.cursor = Some(parser.last_event_id.clone());
            }
            let messages = std::mem::take(&mut parser.messages);
            return messages
                .into_iter()
                .flat_map(|message| self.message(message))
                .collect();
        }
        self.unread.extend_from_slice(bytes);
        if matches!(self.format, Format::Array) {
            return self.array();
        }
        std::iter::from_fn(|| self.piece()).flatten().collect()
    }

    fn message(&mut self, message: Message) -> Vec<Record> {
        let json: Option<Value> = serde_json::from_str(&message.data).ok();
        let record = match &*message.event_type {
            "gap" => Record {
                gap: json,
                ..Record::default()
            },
            "end" => Record {
                end: json,
                ..Record::default()
            },
            // Durable Streams': a batch, which counts with the offset behind it.
            "data" => {
                self.unread = message.data.into_bytes();
                return Vec::new();
            }
            "control" => {
                let batch = self.array();
                self.unread.clear();
                let next = json
                    .as_ref()
                    .and_then(|json| json["streamNextOffset"].as_str());
                self.cursor = next.map(str::to_owned);
                return batch;
            }
            _ => Record {
                data: Some(message.data),
                ..Record::default()
            },
        };
        vec![record]
    }

    /// The next line or part, if it is whole: what it says, if it says anything.
    fn piece(&mut self) -> Option<Option<Record>> {
        let delimiter = match &self.format {
            Format::Multipart { delimiter } => delimiter.clone(),
            Format::Sse(_) | Format::Lines | Format::Array => "\n".to_owned(),
        };
        let at = find(&self.unread, delimiter.as_bytes())?;
        let rest = self.unread.split_off(at + delimiter.len());
        let mut piece = std::mem::replace(&mut self.unread, rest);
        piece.truncate(at);
        Some(match self.format {
            Format::Multipart { .. } => self.part(&piece),
            Format::Sse(_) | Format::Lines | Format::Array => {
                let text = String::from_utf8(piece).unwrap();
                self.json(text.trim_matches('\u{1e}'))
            }
        })
    }

    /// Of envelopes, or of payloads alone.
    fn array(&mut self) -> Vec<Record> {
        let Ok(Value::Array(values)) = serde_json::from_slice(&self.unread) else {
            return Vec::new();
        };
        let records = values.into_iter().filter_map(|value| match value {
            Value::Object(_) => self.json(&value.to_string()),
            Value::String(data) => Some(Record {
                data: Some(data),
                ..Record::default()
            }),
            other => panic!("{other}"),
        });
        records.collect()
    }

    fn part(&mut self, part: &[u8]) -> Option<Record> {
        let end = find(part, b"\r\n\r\n")?;
        let head = String::from_utf8(part[..end].to_vec()).unwrap();
        let content = String::from_utf8(part[end + 4..].to_vec()).unwrap();
        if head.contains("application/vnd.tower-push+json") {
            return self.json(&content);
        }
        let id = head
            .lines()
            .find_map(|line| line.strip_prefix("Event-ID: "));
        self.cursor = id.map(str::to_owned).or(self.cursor.take());
        Some(Record {
            data: Some(content),
            ..Record::default()
        })
    }

    fn json(&mut self, text: &str) -> Option<Record> {
        let mut value: Value = serde_json::from_str(text).ok()?;
        if let Some(id) = value["id"].as_str() {
            self.cursor = Some(id.to_owned());
        }
        let mut take = |key: &str| value.as_object_mut()?.remove(key);
        let data = take("data").map(|data| data.as_str().map_or(data.to_string(), str::to_owned));
        let record = Record {
            data,
            gap: take("gap"),
            end: take("end"),
        };
        (record != Record::default()).then_some(record)
    }
}

/// Returns where `needle` first occurs in `bytes`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}
