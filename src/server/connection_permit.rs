use std::sync::{Arc, atomic::Ordering};

use tokio::sync::SemaphorePermit;

use super::{SharedServer, server_counts::increment};

/// Keeps a connection counted until its socket is closed.
///
/// The permit is owned by the value that owns the socket, so it stays with a socket that is upgraded.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    server: Arc<SharedServer>,
}

impl ConnectionPermit {
    /// Counts another connection as open. `slot` is the permit of the server's semaphore, if the number of connections is limited.
    pub(super) fn new(server: &Arc<SharedServer>, slot: Option<SemaphorePermit<'_>>) -> Self {
        if let Some(slot) = slot {
            // The slot is given back when this value is dropped.
            slot.forget();
        }
        let counters = &server.counters;
        counters.open_connections.fetch_add(1, Ordering::SeqCst);
        increment(&counters.opened_connections);
        Self {
            server: server.clone(),
        }
    }

    /// Counts another connection as open. Returns `None` if the server has reached its limit on connections.
    pub(super) fn try_acquire(server: &Arc<SharedServer>) -> Option<Self> {
        let slot = match &server.free_slots {
            Some(slots) => Some(slots.try_acquire().ok()?),
            None => None,
        };
        Some(Self::new(server, slot))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let SharedServer {
            counters,
            free_slots,
            last_connection_closed,
            ..
        } = &*self.server;
        if let Some(slots) = free_slots {
            slots.add_permits(1);
        }
        if counters.open_connections.fetch_sub(1, Ordering::SeqCst) == 1 {
            last_connection_closed.notify_waiters();
        }
    }
}
