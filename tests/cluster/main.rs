//! `examples/cluster.rs` as several processes over a real broker that fails, with Redis and with NATS: clients move between the nodes.

mod broker;
mod load_balancer;
mod requests;
mod two_nodes;
