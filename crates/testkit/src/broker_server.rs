//! Servers that a test takes away for some time.

use crate::{NatsServer, RedisServer};

/// A server of a broker. It has all that it has acknowledged when it starts again.
pub trait BrokerServer {
    /// Stops the server: it answers nothing until [`resume`](Self::resume).
    fn pause(&self);

    /// Lets the server go on after [`pause`](Self::pause).
    fn resume(&self);

    /// Kills the server.
    fn kill(&mut self);

    /// Starts the server again after [`kill`](Self::kill).
    fn start_again(&mut self);
}

/// How a server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The server answers nothing.
    Silent,
    /// The server is killed, and starts again with its data.
    Killed,
}

impl Absence {
    /// Takes a server away.
    pub fn begin(self, server: &mut impl BrokerServer) {
        match self {
            Self::Silent => server.pause(),
            Self::Killed => server.kill(),
        }
    }

    /// Lets a server come back.
    pub fn end(self, server: &mut impl BrokerServer) {
        match self {
            Self::Silent => server.resume(),
            Self::Killed => server.start_again(),
        }
    }
}

macro_rules! impl_broker_server {
    ($server:ty) => {
        impl BrokerServer for $server {
            fn pause(&self) {
                self.pause();
            }

            fn resume(&self) {
                self.resume();
            }

            fn kill(&mut self) {
                self.kill();
            }

            fn start_again(&mut self) {
                self.start_again();
            }
        }
    };
}

impl_broker_server!(NatsServer);
impl_broker_server!(RedisServer);
