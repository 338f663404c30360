//! The hub: topics on demand, one order and one cursor for any set of topics, limits, what a returning client gets, and topics that
//! clients choose.

mod client_topics;
mod commands;
mod model;
mod presence;
mod stress;
mod topics;
mod transports;
