//! Sources: what clients subscribe to.
//!
//! [`docs/sources.md`](https://github.com/tower-push/tower-push/blob/main/docs/sources.md) says which source fits which program, and has
//! recipes for common tasks.
//!
//! A [`PushSource`] answers the [`Subscription`] of one client with a stream of [items](crate::event::Item). The source can also
//! refuse the client with a [`Rejection`] before any byte is sent.
//!
//! - Every `Stream` whose items are [`IntoItem`](crate::event::IntoItem) is a source. A plain stream serves one client, and begins
//!   with a [gap](crate::event::Gap) if that client sends a cursor.
//! - [`source_fn`](source_fn()) makes a source from a function of the subscription.
//! - [`receive_fn`](receive_fn()) makes a source that only reads its clients' messages.
//! - [`Channel`] is a source for many clients, with a log that they resume from.
//! - [`Hub`] has many topics, each with a log, and sources for any set of them.
//! - [`Relay`] is a source for many clients over a store that several servers share.
//! - [`Resumable`] makes another source resumable.
//! - [`BroadcastSource`], [`WatchSource`] and [`MpscSource`] are sources over tokio's channels.
//!
//! ```
//! use tower_push::{Event, Push, source::{Rejection, Subscription, source_fn}};
//!
//! let any_stream = Push::new(tokio_stream::iter(["one", "two"]));
//!
//! let numbers = Push::new(source_fn(|subscription: Subscription| async move {
//!     let next = match subscription.cursor() {
//!         None => 0,
//!         Some(cursor) => match cursor.as_str().parse::<u64>() {
//!             Ok(seen) => seen + 1,
//!             Err(_) => return Err(Rejection::new(http::StatusCode::NOT_FOUND)),
//!         },
//!     };
//!     let events = (next..100).map(|n| Event::text(format!("number {n}")).with_id(n));
//!     Ok(tokio_stream::iter(events))
//! }));
//! ```

mod answering_source;
mod box_item_stream;
pub mod broadcast;
pub mod channel;
mod client_messages;
mod early_response_source;
mod form_body;
pub mod hub;
mod item_stream;
mod log;
pub mod mpsc;
mod preceded_source;
mod push;
mod push_source;
pub mod query;
mod receive_fn;
mod rejection;
pub mod relay;
mod requested_cursor;
pub mod resumable;
mod source_fn;
mod source_stream;
mod subscription;
mod topic_set;
mod value_holding_source;
pub mod watch;

pub(crate) use self::rejection::retry_after_value;
pub use self::{
    answering_source::{AnsweringSource, AnsweringStream},
    box_item_stream::BoxItemStream,
    broadcast::BroadcastSource,
    channel::Channel,
    client_messages::{ClientMessageSender, ClientMessages, MessageBatch},
    early_response_source::{EarlyResponseSource, EarlyResponseStream},
    form_body::FormBody,
    hub::Hub,
    item_stream::ItemStream,
    mpsc::MpscSource,
    preceded_source::{PrecededSource, PrecededStream},
    push::Push,
    push_source::PushSource,
    receive_fn::{ReceiveFn, ReceiveFnStream, receive_fn},
    rejection::Rejection,
    relay::Relay,
    requested_cursor::LAST_EVENT_ID,
    resumable::Resumable,
    source_fn::{SourceFn, source_fn},
    subscription::{StartPosition, Subscription},
    topic_set::TopicSet,
    value_holding_source::{ValueHoldingSource, ValueHoldingStream},
    watch::WatchSource,
};
#[cfg(feature = "server")]
pub(crate) use self::{log::WatchedLog, source_stream::EventLoopJoin};
