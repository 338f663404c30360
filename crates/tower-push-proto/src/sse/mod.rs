//! Server-Sent Events ([WHATWG HTML §9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html)): the encoder of a stream, and a
//! parser.
//!
//! A field is a line `name: value`. An event is one or more fields and an empty line. The `write_…` functions append single fields and
//! events, for transports that have their own encoder.
//!
//! An event's [topic](crate::Topic) is written as a field `topic`. The standard has no such field: an `EventSource` ignores the topic, and
//! [`SseParser`] reads it.

mod config;
mod encoder;
mod lines;
mod parser;

pub use self::{
    config::{HeartbeatForm, SseConfig, TopicForm},
    encoder::SseEncoder,
    lines::{for_each_data_line, write_comment, write_cursor, write_event, write_id, write_retry},
    parser::{SseEvent, SseParser},
};
