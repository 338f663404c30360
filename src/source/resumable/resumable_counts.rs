/// The number of streams that a [`Resumable`](super::Resumable) holds, has resumed and has dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResumableCounts {
    /// Streams that have a client now.
    pub active: usize,
    /// Streams that are parked now.
    pub parked: usize,
    /// Bytes in the logs of the streams that are parked now.
    pub parked_bytes: usize,
    /// The number of times that a client has resumed a stream.
    pub resumed: u64,
    /// Streams dropped because no client resumed them within the park timeout.
    pub parked_too_long: u64,
    /// Parked streams dropped to keep within the maximum number of parked streams or of their bytes.
    pub evicted: u64,
}
