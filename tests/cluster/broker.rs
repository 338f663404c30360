//! The broker of a cluster.

use testkit::{NatsServer, RedisProgram, RedisServer};

/// A running broker, which loses nothing when it is killed.
pub(crate) enum Broker {
    Redis(RedisServer),
    Nats(NatsServer),
}

impl Broker {
    pub(crate) fn start_redis() -> Self {
        let options = ["--appendonly", "yes", "--appendfsync", "always"];
        Self::Redis(RedisServer::start(RedisProgram::Redis, &options))
    }

    pub(crate) fn start_nats() -> Self {
        Self::Nats(NatsServer::start(""))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Nats(server) => server.url(),
        }
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Redis(server) => server.kill(),
            Self::Nats(server) => server.kill(),
        }
    }

    /// Starts the server again after [`kill`](Self::kill), with its data.
    pub(crate) fn start_again(&mut self) {
        match self {
            Self::Redis(server) => server.start_again(),
            Self::Nats(server) => server.start_again(),
        }
    }
}
