use std::collections::BTreeSet;

use tower_push_proto::fingerprint::Fingerprint;

/// The messages of a stream that this process has found unreadable for the NATS client, at most [`MAX_SEQUENCES`]. Reads go around them.
#[derive(Debug)]
pub(crate) struct UnreadableMessages {
    stream: Fingerprint,
    sequences: BTreeSet<u64>,
}

const MAX_SEQUENCES: usize = 1024;

impl UnreadableMessages {
    pub(crate) fn new() -> Self {
        Self {
            stream: Fingerprint::from_bits(0),
            sequences: BTreeSet::new(),
        }
    }

    /// Adds a message of the stream with the fingerprint `stream`, and forgets those of another stream. If there are too many, forgets the oldest
    /// one.
    pub(crate) fn add(&mut self, stream: Fingerprint, sequence: u64) {
        if self.stream != stream {
            *self = Self::new();
            self.stream = stream;
        }
        self.sequences.insert(sequence);
        if self.sequences.len() > MAX_SEQUENCES {
            self.sequences.pop_first();
        }
    }

    /// Returns the first of these messages with at least the sequence number `from`.
    pub(crate) fn first_from(&self, stream: Fingerprint, from: u64) -> Option<u64> {
        let mut found = self.sequences.range(from..);
        found.next().copied().filter(|_| self.stream == stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_of_one_stream_are_kept() {
        let [stream, other] = [1, 2].map(|bits| Fingerprint::from_bits(bits << 8));
        let mut messages = UnreadableMessages::new();
        messages.add(stream, 7);
        messages.add(stream, 4);
        assert_eq!(messages.first_from(stream, 1), Some(4));
        assert_eq!(messages.first_from(stream, 5), Some(7));
        assert_eq!(messages.first_from(stream, 8), None);
        assert_eq!(messages.first_from(other, 1), None);
        for sequence in 1..=MAX_SEQUENCES as u64 + 10 {
            messages.add(other, sequence);
        }
        assert_eq!(messages.first_from(other, 1), Some(11));
        assert_eq!(messages.first_from(stream, 1), None);
    }
}
