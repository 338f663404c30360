//! A source for [tower-push](tower_push) on NATS JetStream: every server shows the same feed, and any server serves any client.
//!
//! Behind a load balancer, a client that reconnects may reach any of several servers. With a [`JetStream`], the client continues on any of
//! these servers with the event after the last one that it has got, on every transport. The feed is a stream of NATS 2.11 or later.
//!
//! ```no_run
//! use tower_push::{Event, Push, PushLayer};
//! use tower_push_nats::{JetStream, NatsServers};
//!
//! # async fn example() -> Result<(), tower_push_nats::Error> {
//! let servers = NatsServers::new("nats://127.0.0.1")?;
//! let stream = JetStream::builder(servers, "events").max_len(100_000).connect().await?;
//!
//! // In a handler, on every server:
//! let push = Push::new(stream.clone());
//! // Anywhere, with the subject `events.news`:
//! stream.publish(&Event::text("hello").with_topic("news").unwrap()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! One reader in each process follows the stream and fills a [`Relay`](tower_push::Relay), the log that all clients of the process read. The
//! reader has a consumer of its own, which the server keeps in memory, and which needs no acknowledgements. The log begins with
//! the newest events of the stream, so nearly all clients that return after a deployment resume from memory. Clients with an older cursor read
//! pages of the stream, within the relay's [limits](tower_push::source::relay::UpstreamLimits).
//!
//! # Topics are subjects
//! The topic `orders.42` is the subject `events.orders.42`, where `events` is the
//! [prefix](JetStreamBuilder::subject_prefix). An event without a topic has the subject `events`.
//!
//! # Cursors
//! The id of an event is the sequence number of its message, a hash of the time at which the stream was created, and a fingerprint of the message:
//! `1716-k3vq7a-x2mpb4`. A client resumes after a message only if this very message is still in the stream, or was removed from it. Sequence
//! numbers have no holes. So the number of the removed messages is known, and a client that has missed any gets a
//! [gap](tower_push::Gap).
//!
//! | what happens to the stream | what clients get |
//! |---|---|
//! | the server restarts, or a stream gets another leader, and no message is lost | nothing: the events go on |
//! | the limits of the stream, a purge or a deletion remove messages that a client has not got | a gap (`expired`) |
//! | a crash loses the newest messages; the stream is deleted or created anew | a gap (`epoch`) |
//! | a stream in memory is lost with its server | a gap (`epoch`) |
//!
//! # Messages
//! The payload of a message is that of the event. The other parts of an event are in headers, which are all optional:
//!
//! | header | value |
//! |---|---|
//! | `Event-Type` | the event's type |
//! | `Content-Type` | `application/json` or `application/octet-stream`, for payloads that are not text |
//! | `Event-Token` | six random characters, from which the fingerprint is made |
//! | `Nats-Msg-Id` | the idempotency key, from which the fingerprint is made if there is no token |
//!
//! Other programs can publish, too: `nats pub events.news hello`. The fingerprint of a message without a token and a key is a hash of the time at
//! which the server has stored the message.
//!
//! # A hub with many topics
//! A [`JetStreamHub`] shows a stream as a [`Hub`](tower_push::Hub): many topics, one cursor for any of them. One hub is one stream. An event of several
//! topics is one message with headers for its topics; the docs of [`JetStreamHub`] describe these messages.
//!
//! # Members of topics
//! The members of a hub's topics ([`Hub::presence`](tower_push::Hub::presence)) are in a stream beside that of the hub: `EVENTS_MEMBERS`. It is a log of the
//! requests by which nodes change their members. Each node applies all of them, and so knows all members. A node that has members, or knows of some,
//! makes three requests within the [node timeout](tower_push::source::hub::PresenceOptions::node_timeout): by default, one in 10 s. Without members, there
//! are no requests, and no such stream. The event of a change is a message with the header `Event-Members`, which names the topic whose list
//! changes.
//!
//! # What this crate does not promise
//! A server acknowledges an event before the event is on its disk. By default, it writes to its disk every two minutes (`sync_interval`): if the
//! machine crashes, a stream with one replica loses the newest events. Clients that have got such an event get a gap; clients that have not got
//! it do not learn of it.
//!
//! If the message of a client's cursor was removed, its fingerprint cannot be compared. So a client resumes without a gap if a crash had lost its
//! message, another message got the same number, and that message was then removed.
//!
//! # TLS and users
//! [`NatsServers::options`] takes the options of the crate `async-nats`, for certificates, tokens and users. Nkeys, JWTs and credentials files need
//! the feature `nkeys`. A TLS connection needs a cryptography provider of rustls: the feature `ring`, or a provider that the program installs.
//! Without a provider, rustls panics.
//!
//! # Permissions
//! A user may publish to these subjects, where `EVENTS` is the stream, and subscribe to `_INBOX.>`:
//!
//! | subject | for |
//! |---|---|
//! | `$JS.API.STREAM.INFO.EVENTS`, `$JS.API.STREAM.MSG.GET.EVENTS`, `$JS.API.DIRECT.GET.EVENTS` | reading |
//! | `$JS.API.CONSUMER.CREATE.EVENTS.>`, `$JS.API.CONSUMER.MSG.NEXT.EVENTS.>` | following |
//! | `$JS.API.STREAM.CREATE.EVENTS` | creating the stream, unless [`create_stream`](JetStreamBuilder::create_stream) is `false` |
//! | `events`, `events.>` | publishing |
//! | `$JS.API.STREAM.INFO.EVENTS_MEMBERS`, `$JS.API.STREAM.MSG.GET.EVENTS_MEMBERS`, `$JS.API.DIRECT.GET.EVENTS_MEMBERS`, `$JS.API.STREAM.CREATE.EVENTS_MEMBERS`, `$JS.API.STREAM.PURGE.EVENTS_MEMBERS`, `$MEMBERS.EVENTS`, `$MEMBERS.EVENTS.>` | the members of a hub's topics |
//!
//! A hub whose user lacks the last ones shows all events, but no members: its status has a
//! [`members_error`](tower_push::source::relay::ReaderStatus::members_error).
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod answer_inbox;
mod api_response;
mod consumer_reader;
mod error;
mod fingerprint;
mod hub_headers;
mod jetstream;
mod jetstream_builder;
mod jetstream_hub;
mod jetstream_publisher;
mod jetstream_upstream;
mod log_message;
mod log_store;
mod member_ledger;
mod member_log;
#[cfg(test)]
mod member_log_tests;
mod member_replica;
mod message_time;
mod nats_connection;
mod nats_servers;
mod reader_status;
mod stored_headers;
mod stream_api;
mod stream_backend;
mod stream_connection;
mod stream_continuity;
mod stream_cursor;
mod stream_members;
mod stream_message;
mod stream_reader;
mod subject_mapping;
mod topic_page;
mod unreadable_messages;

pub use async_nats;
pub use tower_push::source::relay::{EventSink, ReaderState};

pub use self::{
    error::Error,
    jetstream::JetStream,
    jetstream_builder::JetStreamBuilder,
    jetstream_hub::JetStreamHub,
    jetstream_publisher::{JetStreamPublisher, PublishOutcome},
    jetstream_upstream::JetStreamUpstream,
    nats_servers::NatsServers,
    reader_status::ReaderStatus,
    stream_connection::StreamConnection,
};

/// The code of the README, as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDocTests;
