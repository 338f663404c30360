//! Server-Sent Events, as in [WHATWG HTML §9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html).
//!
//! Each field is a line `name: value`; the parser removes one space behind the colon. The fields of an event stand together and
//! end with an empty line.

mod encoder;
mod lines;
mod parser;

pub use self::{
    encoder::{SseConfig, SseEncoder},
    lines::{for_each_data_line, write_comment, write_cursor, write_event, write_id, write_retry},
    parser::{SseEvent, SseParser},
};
