use tower_push_proto::fingerprint::Fingerprint;

use crate::{api_response::StreamContents, stream_cursor::StreamCursor};

/// The result of comparing a reader's position with a stream: whether the stream still has everything up to the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamContinuity {
    /// The messages after the position are those with higher sequence numbers. Missing numbers are messages that were removed.
    Intact,
    /// The stream has lost messages that were read, and may have given their sequence numbers to others.
    Rewound,
    /// The stream was deleted and created anew.
    Replaced,
}

/// Compares a position with the stream as it is now. `stream` is the stream's fingerprint, and `message` the fingerprint of the message that has
/// the sequence number of the position, if there is one.
pub(crate) fn check_continuity(
    position: StreamCursor,
    stream: Fingerprint,
    contents: StreamContents,
    message: Option<Fingerprint>,
) -> StreamContinuity {
    if position.stream != stream {
        return StreamContinuity::Replaced;
    }
    let is_other_message = message.is_some_and(|message| !position.matches_message(message));
    match contents.last_seq < position.sequence || is_other_message {
        true => StreamContinuity::Rewound,
        false => StreamContinuity::Intact,
    }
}

/// How many of the newest messages, and how many of their bytes, a log begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InitialEntriesLimits {
    pub(crate) max_messages: usize,
    pub(crate) max_bytes: usize,
}

impl InitialEntriesLimits {
    /// Returns the sequence number before the newest messages that fit the limits. The bytes of these messages are estimated by the average
    /// size of the stream's messages.
    pub(crate) fn start_sequence(&self, contents: StreamContents) -> u64 {
        let average = contents.bytes / contents.messages.max(1);
        let fitting = self.max_bytes as u64 / average.max(1);
        let messages = (self.max_messages as u64).min(fitting).max(1);
        let first = contents.first_seq.max(1);
        (contents.last_seq + 1).saturating_sub(messages).max(first) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(first_seq: u64, last_seq: u64) -> StreamContents {
        let messages = (last_seq + 1).saturating_sub(first_seq.max(1));
        StreamContents {
            messages,
            bytes: messages * 100,
            first_seq,
            last_seq,
        }
    }

    #[test]
    fn faults_are_told_apart() {
        let [stream, other] = [1, 2].map(|bits| Fingerprint::from_bits(bits << 8));
        let [message, other_message] = [3, 4].map(|bits| Fingerprint::from_bits(bits << 8));
        let position = StreamCursor {
            sequence: 7,
            stream,
            message: Some(message),
        };
        let check = |last, found| check_continuity(position, stream, contents(1, last), found);
        assert_eq!(check(7, Some(message)), StreamContinuity::Intact);
        assert_eq!(check(9, Some(message)), StreamContinuity::Intact);
        // The message was removed.
        assert_eq!(check(7, None), StreamContinuity::Intact);
        assert_eq!(check(9, None), StreamContinuity::Intact);
        assert_eq!(check(6, None), StreamContinuity::Rewound);
        assert_eq!(check(7, Some(other_message)), StreamContinuity::Rewound);
        assert_eq!(check(9, Some(other_message)), StreamContinuity::Rewound);
        let replaced = check_continuity(position, other, contents(1, 9), Some(message));
        assert_eq!(replaced, StreamContinuity::Replaced);
        let without_message = StreamCursor {
            message: None,
            ..position
        };
        let found = check_continuity(without_message, stream, contents(1, 7), Some(message));
        assert_eq!(found, StreamContinuity::Intact);
    }

    #[test]
    fn log_begins_with_newest_messages() {
        let start = |max_messages, max_bytes, contents| {
            let limits = InitialEntriesLimits {
                max_messages,
                max_bytes,
            };
            limits.start_sequence(contents)
        };
        let bytes = 1 << 20;
        assert_eq!(start(10, bytes, contents(0, 0)), 0);
        assert_eq!(start(10, bytes, contents(1, 5)), 0);
        assert_eq!(start(10, bytes, contents(1, 50)), 40);
        assert_eq!(start(10, bytes, contents(48, 50)), 47);
        // Purged.
        assert_eq!(start(10, bytes, contents(51, 50)), 50);
        assert_eq!(start(10, 300, contents(1, 50)), 47);
        assert_eq!(start(10, 0, contents(1, 50)), 49);
        assert_eq!(start(usize::MAX, usize::MAX, contents(1, 50)), 0);
    }
}
