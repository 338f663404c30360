/// How many streams a [`Resumable`](super::Resumable) keeps, and what became of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResumableCounts {
    /// Streams that have a client now.
    pub active: usize,
    /// Streams that are parked now.
    pub parked: usize,
    /// Bytes in the logs of the streams that are parked now.
    pub parked_bytes: usize,
    /// How often a client has resumed a stream.
    pub resumed: u64,
    /// Streams dropped because they were parked for too long.
    pub expired: u64,
    /// Streams dropped because too many streams, or too many bytes, were parked.
    pub evicted: u64,
}
