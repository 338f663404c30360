//! Connections that a test can break, and make slow.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// A proxy for TCP connections to one server. The test can break all connections, at any byte.
#[derive(Debug)]
pub struct BreakableProxy {
    address: SocketAddr,
    next_connections: Arc<ConnectionSettings>,
    breaks: watch::Sender<()>,
    attempts: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// The settings of the next connections.
#[derive(Debug)]
struct ConnectionSettings {
    server_port: AtomicU16,
    /// The bytes that the server sends in a second at most. `u64::MAX` for no limit.
    bytes_per_second: AtomicU64,
}

/// The bytes that a slow connection forwards at once.
const SLOW_CHUNK_BYTES: usize = 1024;

impl BreakableProxy {
    /// Starts a proxy in front of the server at this port of 127.0.0.1.
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let breaks = watch::Sender::new(());
        let next_connections = Arc::new(ConnectionSettings {
            server_port: AtomicU16::new(server_port),
            bytes_per_second: AtomicU64::new(u64::MAX),
        });
        let attempts = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(
            listener,
            next_connections.clone(),
            breaks.clone(),
            attempts.clone(),
        ));
        Self {
            address,
            next_connections,
            breaks,
            attempts,
            task,
        }
    }

    /// Returns the proxy's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the server of the next connections. The others stay where they are.
    pub fn set_server_port(&self, port: u16) {
        let settings = &self.next_connections;
        settings.server_port.store(port, Ordering::Relaxed);
    }

    /// Sets how many bytes the server of each of the next connections can send in a second. The others stay as they are.
    pub fn set_server_rate(&self, bytes_per_second: u64) {
        let rate = &self.next_connections.bytes_per_second;
        rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Returns how often a client has connected or sent something so far. What a client sends at once counts once.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
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

async fn accept(
    listener: TcpListener,
    settings: Arc<ConnectionSettings>,
    breaks: watch::Sender<()>,
    attempts: Arc<AtomicU64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        attempts.fetch_add(1, Ordering::Relaxed);
        let attempts = attempts.clone();
        let server_port = settings.server_port.load(Ordering::Relaxed);
        let rate = settings.bytes_per_second.load(Ordering::Relaxed);
        let mut broken = breaks.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = forward(client, server_port, rate, &attempts) => {}
                _ = broken.changed() => {}
            }
        });
    }
}

/// Copies bytes both ways until both sides have closed their directions, or one of them fails.
async fn forward(
    mut client: TcpStream,
    server_port: u16,
    bytes_per_second: u64,
    attempts: &AtomicU64,
) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_reader, mut client_writer) = client.split();
    let (mut server_reader, server_writer) = server.split();
    let to_server = copy_and_count(client_reader, server_writer, attempts);
    let to_client = async {
        if bytes_per_second < u64::MAX {
            return copy_slowly(server_reader, client_writer, bytes_per_second).await;
        }
        copy(&mut server_reader, &mut client_writer).await?;
        client_writer.shutdown().await
    };
    let _ = tokio::try_join!(to_server, to_client);
}

async fn copy_and_count(
    mut reader: ReadHalf<'_>,
    mut writer: WriteHalf<'_>,
    attempts: &AtomicU64,
) -> io::Result<()> {
    let mut chunk = [0; 8 * SLOW_CHUNK_BYTES];
    loop {
        let len = reader.read(&mut chunk).await?;
        if len == 0 {
            return writer.shutdown().await;
        }
        attempts.fetch_add(1, Ordering::Relaxed);
        writer.write_all(&chunk[..len]).await?;
    }
}

async fn copy_slowly(
    mut reader: ReadHalf<'_>,
    mut writer: WriteHalf<'_>,
    bytes_per_second: u64,
) -> io::Result<()> {
    let mut chunk = [0; SLOW_CHUNK_BYTES];
    let mut free_at = Instant::now();
    loop {
        let len = reader.read(&mut chunk).await?;
        if len == 0 {
            return writer.shutdown().await;
        }
        let time = Duration::from_secs_f64(len as f64 / bytes_per_second.max(1) as f64);
        free_at = free_at.max(Instant::now()) + time;
        sleep_until(free_at).await;
        writer.write_all(&chunk[..len]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a server that reads all of a request, and then answers with as many bytes.
    async fn start_half_close_server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            connection.read_to_end(&mut request).await.unwrap();
            connection.write_all(&request).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn slow_connection_goes_on_after_half_close() {
        for rate in [1 << 20, 1 << 32, u64::MAX - 1] {
            let proxy = BreakableProxy::start(start_half_close_server().await.port()).await;
            proxy.set_server_rate(rate);
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            let sent = vec![7; 10 * SLOW_CHUNK_BYTES];
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, sent);
        }
    }
}
