//! Streams on real servers, Redis and Valkey, and what clients get when the servers fail.

mod broker_away;
mod connecting;
mod faults;
mod feed;
mod hub;
mod hub_faults;
mod nodes;
mod presence;
mod publishing;
mod random_faults;
mod retries;
mod slow_link;
mod topologies;
mod upstream_resumes;
