//! Server push for tower.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
pub mod event;
mod keep_alive;
pub mod layer;
mod query;
mod random;
pub mod source;
pub mod transport;

#[cfg(feature = "json")]
pub use self::event::Json;
pub use self::{
    error::{BoxError, Error},
    event::{Event, EventId, EventType, Gap, GapReason, IntoItem, Item},
    keep_alive::KeepAlive,
    layer::{ChunkedLayer, PushLayer, SseLayer, respond, service},
    source::{Push, PushSource},
    transport::PushBody,
};
