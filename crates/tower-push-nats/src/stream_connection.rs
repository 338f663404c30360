use std::{fmt, sync::Arc};

use tokio::task::JoinHandle;

use crate::{
    error::Error,
    jetstream_publisher::JetStreamPublisher,
    reader_status::{ReaderMetrics, ReaderStatus},
    stream_api::StreamApi,
};

/// The reader of a stream in this process, and the publisher, from
/// [`JetStreamBuilder::connect_with`](crate::JetStreamBuilder::connect_with).
///
/// Clones share the reader. When the last clone is dropped, the reader ends, and drops its sink.
#[derive(Clone)]
pub struct StreamConnection {
    publisher: JetStreamPublisher,
    api: Arc<StreamApi>,
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
        publisher: JetStreamPublisher,
        api: Arc<StreamApi>,
        metrics: Arc<ReaderMetrics>,
        reader: JoinHandle<()>,
    ) -> Self {
        Self {
            publisher,
            api,
            metrics,
            _reader: Arc::new(ReaderTask(reader)),
        }
    }

    /// Returns the publisher.
    pub fn publisher(&self) -> &JetStreamPublisher {
        &self.publisher
    }

    /// Returns the state of the reader, its last error, and its counts of messages, new consumers and lost messages.
    pub fn reader_status(&self) -> ReaderStatus {
        self.metrics.status()
    }

    /// Asks the server how many messages the reader has not read yet.
    ///
    /// # Errors
    /// An [`Error`] if the server does not answer, or the stream does not exist.
    pub async fn lag(&self) -> Result<u64, Error> {
        let contents = self.api.info().await?.state;
        let read = self.metrics.position();
        Ok(contents
            .last_seq
            .saturating_sub(read)
            .min(contents.messages))
    }
}

impl fmt::Debug for StreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamConnection")
            .field("reader", &self.metrics.status())
            .finish_non_exhaustive()
    }
}
