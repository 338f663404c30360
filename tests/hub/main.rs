//! The hub: topics on demand, one order and one cursor for any set of topics, limits, and what a returning client gets.

mod model;
mod stress;
mod topics;
mod transports;
