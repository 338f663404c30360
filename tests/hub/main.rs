//! The hub: topics on demand, one order and one cursor for any set of topics, limits, what a returning client gets, topics that
//! clients choose, and patterns of topics.

mod broker;
mod broker_gaps;
mod broker_hub;
mod broker_model;
mod broker_polls;
mod broker_subscribe;
mod client_patterns;
mod client_topics;
mod commands;
mod event_loops;
mod model;
mod pattern_commands;
mod patterns;
mod paused_clock;
mod presence;
mod presence_ledger;
mod presence_nodes;
mod publisher_ids;
mod requests;
mod stress;
mod topic_labels;
mod topics;
mod transports;
