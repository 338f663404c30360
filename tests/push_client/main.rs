//! The Rust client: it loses no event and repeats none, whatever happens to its connections, and it says what happened.

mod bad_servers;
mod cuts;
mod durable_streams;
mod failures;
mod feeds;
mod other_servers;
mod outages;
mod reactions;
mod sources;
mod support;
mod tail_example;
