//! Streams on real servers, and what clients get when the servers fail.

mod broker_away;
mod cluster;
mod connecting;
mod faults;
mod feed;
mod foreign_messages;
mod hub;
mod hub_random_faults;
mod nodes;
mod presence;
mod publishing;
mod random_faults;
mod retries;
mod slow_link;
mod upstream_resumes;
