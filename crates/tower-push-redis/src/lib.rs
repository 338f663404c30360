//! A source for [tower-push](tower_push) on Redis Streams: every server shows the same feed, and any server serves any client.
//!
//! Behind a load balancer, a client that reconnects may reach any of several servers. With a [`RedisStream`], the client continues on any of
//! these servers with the event after the last one that it has got, on every transport. The stream is in Redis 7.0 or later, or in Valkey.
//!
//! ```no_run
//! use tower_push::{Event, Push, PushLayer};
//! use tower_push_redis::{RedisServers, RedisStream};
//!
//! # async fn example() -> Result<(), tower_push_redis::Error> {
//! let servers = RedisServers::single("redis://127.0.0.1/")?;
//! let stream = RedisStream::builder(servers, "events").max_len(100_000).connect().await?;
//!
//! // In a handler, on every server:
//! let push = Push::new(stream.clone());
//! // Anywhere:
//! stream.publish(&Event::text("hello").with_topic("news").unwrap()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! One reader in each process follows the stream and fills a [`Relay`](tower_push::Relay), the log that all clients of the process read. The log
//! begins with the newest events of the stream, so nearly all clients that return after a deployment resume from memory. Clients with an older
//! cursor read pages of the stream, within the relay's [limits](tower_push::source::relay::UpstreamLimits).
//!
//! # Cursors
//! The id of an event is the entry's id and six characters of a hash over its fields: `1716402-0~k3vq7a`. A client resumes after an entry
//! only if this very entry is still in the stream, or nothing was added after it. In all other cases, the client gets a [gap](tower_push::Gap).
//!
//! | what happens to the stream | what clients get |
//! |---|---|
//! | the server restarts, or a failover loses nothing | nothing: the events go on |
//! | the stream is trimmed beyond a client's cursor, or before the reader could read | a gap (`expired`) |
//! | a failover loses the newest events; the key is deleted, flushed or created anew | a gap (`epoch`) |
//! | an entry in the middle is deleted with `XDEL` | nothing. A client that returns with the id of this entry gets a gap (`epoch`) |
//!
//! # Entries
//! The entry of an event has the field `data`, and the optional fields `type`, `topic` and `format` (`text`, `json` or `binary`). Other programs
//! can add entries, too: `redis-cli XADD events '*' data hello topic news`. An entry without `data` becomes an event whose payload is a JSON
//! object of its fields.
//!
//! # What this crate does not promise
//! Redis acknowledges an event before it is on the disk or on a replica. A crash or a failover can lose such an event. Clients that have got it
//! get a gap; clients that have not got it do not learn of it.
//!
//! Three changes of a stream cannot be told from harmless changes:
//! - A key was deleted and filled again while a process was not connected. The refilled stream looks like a trimmed one: clients get a gap with
//!   the reason `expired`, and not `epoch`.
//! - The last entry was removed, and a client returns with the id of this entry. The hash in the cursor has no entry to be compared with, and the
//!   client resumes.
//! - An entry was deleted with `XDEL` before a client got it. The client gets the entries before and after it, without a gap.
//!
//! # A hub with many topics
//! A [`RedisHub`] shows a stream as a [`Hub`](tower_push::Hub): many topics, one cursor for any of them. One hub is one stream. The entry of an event
//! has a field `topic` for each of the event's topics, `except` for a sender that gets no echo, and `history` with the value `no` for an event
//! without history. Other programs can add such entries, too: `redis-cli XADD events '*' data hello topic news topic sport`.
//!
//! # Members of topics
//! The members of a hub's topics ([`Hub::presence`](tower_push::Hub::presence)) are in keys beside the stream, whose names begin with
//! `{STREAM}:presence:`. A script changes them and adds the entries of the changes in one step, so that each join and each leave is one entry,
//! however many nodes there are. The entry has a field `members` with the topic whose list changes. A node that has members, or knows of some, runs
//! the script three times within the [node timeout](tower_push::source::hub::PresenceOptions::node_timeout): by default, once in 10 s. Without members,
//! nothing runs.
//!
//! If Redis may evict keys (`maxmemory-policy`), choose a policy that evicts only keys with a time to live: these keys have none.
//!
//! # Permissions
//! A user (ACL) needs `+xread +xrange +xrevrange +xinfo|stream +type +role +multi +exec +xadd` on the stream's key, and for
//! [`publish_once`](RedisStream::publish_once) and for the idempotency keys of a hub also `+evalsha +script|load +get +set` on the keys `{STREAM}:once:*`.
//! A hub also needs `+hscan +hget +type +time` on the keys `{STREAM}:presence:*`, and for members `+evalsha +script|load +hset +hdel +hlen +zadd +zrem
//! +zrangebyscore +zrangebylex +del`.
//! If the server has a lower limit for values than [`max_event_len`](RedisStreamBuilder::max_event_len), `+config|get` lets a publisher know it.
//! To create a stream, the user needs `+evalsha +script|load +xdel`. Without these permissions, the first publication creates the stream. If a
//! client got its cursor before that publication, and moves to another server, it gets a gap (`epoch`) although it has missed nothing.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod connector;
mod entry_id;
mod error;
mod fingerprint;
mod hub_entry;
mod initial_entries;
mod log_end;
mod reader_status;
mod redis_hub;
mod redis_presence;
mod redis_publisher;
mod redis_servers;
mod redis_stream;
mod redis_stream_builder;
mod redis_upstream;
mod stream_backend;
mod stream_connection;
mod stream_continuity;
mod stream_cursor;
mod stream_entry;
mod stream_info;
mod stream_reader;
mod stream_reads;
mod trim_policy;

pub use self::{
    error::Error,
    reader_status::ReaderStatus,
    redis_hub::RedisHub,
    redis_publisher::{PublishOutcome, RedisPublisher},
    redis_servers::RedisServers,
    redis_stream::RedisStream,
    redis_stream_builder::RedisStreamBuilder,
    redis_upstream::RedisUpstream,
    stream_connection::StreamConnection,
};
pub use redis;
pub use tower_push::source::relay::{EventSink, ReaderState};

/// The code of the README, as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDocTests;
