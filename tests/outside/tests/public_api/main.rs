//! What a source and a transport from outside of tower-push get from it, over real sockets.

mod journal;
mod length_delimited;
mod ring_channel;
mod support;
mod transport_switching;
