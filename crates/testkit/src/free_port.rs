//! Ports for servers that cannot be given port 0, or that are started again on the same port.

use std::{
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// The system gives no outgoing connection a port below 32 768. So a port of this range stays free while its server is killed. The range ends where
/// the ports of cluster buses begin, so no server gets a port that another one uses for its bus.
const PORTS: Range<u16> = 10_000..20_000;

/// A node of a Redis cluster uses the port that is this far above its own, too.
const CLUSTER_BUS_OFFSET: u16 = 10_000;

const _: () = assert!(PORTS.end <= PORTS.start + CLUSTER_BUS_OFFSET);

/// The maximum number of ports that [`free_port`] tries.
const MAX_ATTEMPTS: usize = 10_000;

/// The UDP sockets on the ports that this process has got. Other tests see by them that the ports are taken, in other processes, too.
static RESERVATIONS: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// Returns a TCP port of 127.0.0.1 that no program uses, and that no other test gets until this process ends. The port 10 000 above it is free, too.
///
/// # Panics
/// If there is no such port among many that are tried.
pub fn free_port() -> u16 {
    for _ in 0..MAX_ATTEMPTS {
        let random = RandomState::new().hash_one(()) % u64::from(PORTS.end - PORTS.start);
        let port = PORTS.start + random as u16;
        let Ok(reservation) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else {
            continue;
        };
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + CLUSTER_BUS_OFFSET) {
            let mut reservations = RESERVATIONS.lock().unwrap_or_else(PoisonError::into_inner);
            reservations.push(reservation);
            return port;
        }
    }
    panic!("none of {MAX_ATTEMPTS} ports of {PORTS:?} is free");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_gets_another_port() {
        let mut ports: Vec<_> = (0..100).map(|_| free_port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 100);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
            assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_err());
        }
    }
}
