//! Connections that a test can break.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A proxy for TCP connections to one server. The test can break all connections, at any byte.
#[derive(Debug)]
pub struct BreakableProxy {
    address: SocketAddr,
    server_port: Arc<AtomicU16>,
    breaks: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl BreakableProxy {
    /// Starts a proxy in front of the server at this port of 127.0.0.1.
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let breaks = watch::Sender::new(());
        let server_port = Arc::new(AtomicU16::new(server_port));
        let task = tokio::spawn(accept(listener, server_port.clone(), breaks.clone()));
        Self {
            address,
            server_port,
            breaks,
            task,
        }
    }

    /// Returns the proxy's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the server of the next connections. The others stay where they are.
    pub fn set_server_port(&self, port: u16) {
        self.server_port.store(port, Ordering::Relaxed);
    }

    /// Closes all connections, with the bytes that are on their way.
    pub fn break_connections(&self) {
        self.breaks.send_replace(());
    }
}

impl Drop for BreakableProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.break_connections();
    }
}

async fn accept(listener: TcpListener, server_port: Arc<AtomicU16>, breaks: watch::Sender<()>) {
    while let Ok((client, _)) = listener.accept().await {
        let server_port = server_port.load(Ordering::Relaxed);
        let mut broken = breaks.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = forward(client, server_port) => {}
                _ = broken.changed() => {}
            }
        });
    }
}

/// Copies bytes both ways until a side closes its connection.
async fn forward(mut client: TcpStream, server_port: u16) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let _ = copy_bidirectional(&mut client, &mut server).await;
}
