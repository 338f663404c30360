use std::{fmt, sync::Arc};

use redis::Value;
use tokio::task::JoinHandle;

use crate::{
    connector::SharedConnection,
    error::Error,
    reader_status::{ReaderMetrics, ReaderStatus},
    redis_publisher::RedisPublisher,
    stream_info::StreamInfo,
};

/// The reader of a stream in this process, and the publisher, from
/// [`RedisStreamBuilder::connect_with`](crate::RedisStreamBuilder::connect_with).
///
/// Clones share the reader. When the last clone is dropped, the reader ends, and drops its sink.
#[derive(Clone)]
pub struct StreamConnection {
    publisher: RedisPublisher,
    /// The connection of the upstream.
    reads: Arc<SharedConnection>,
    metrics: Arc<ReaderMetrics>,
    _reader: Arc<ReaderTask>,
}

/// The task of a reader, which ends when this value is dropped.
struct ReaderTask(JoinHandle<()>);

impl Drop for ReaderTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StreamConnection {
    pub(crate) fn new(
        publisher: RedisPublisher,
        reads: Arc<SharedConnection>,
        metrics: Arc<ReaderMetrics>,
        reader: JoinHandle<()>,
    ) -> Self {
        Self {
            publisher,
            reads,
            metrics,
            _reader: Arc::new(ReaderTask(reader)),
        }
    }

    /// Returns the publisher.
    pub fn publisher(&self) -> &RedisPublisher {
        &self.publisher
    }

    /// Returns the state of the reader, its last error, and its counts of entries, reconnects and lost entries.
    pub fn reader_status(&self) -> ReaderStatus {
        self.metrics.status()
    }

    /// Asks the server how many entries the reader has not read yet.
    ///
    /// # Errors
    /// An [`Error`] if the server does not answer, or the key does not exist.
    pub async fn lag(&self) -> Result<u64, Error> {
        let mut command = redis::cmd("XINFO");
        command.arg("STREAM").arg(self.reads.connector().key());
        let mut numbered = self.reads.get_or_connect().await?;
        let read = command.query_async(&mut numbered.connection);
        let info: Value = self.reads.run_command(numbered.number, read).await?;
        let info = StreamInfo::parse(info)?;
        let read = self.metrics.position();
        Ok(info.entries_added.saturating_sub(read))
    }
}

impl fmt::Debug for StreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamConnection")
            .field("reader", &self.metrics.status())
            .finish_non_exhaustive()
    }
}
