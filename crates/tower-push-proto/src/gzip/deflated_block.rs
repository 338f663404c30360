use bytes::{Bytes, BytesMut};

use super::checksum::BlockChecksum;
use crate::{
    compressor::{COMPRESSOR, with_thread_local},
    event::{Event, RunEncoding},
};

/// Compressed bytes: one or more blocks of DEFLATE, of which none is the last of its stream. The blocks end at the border of a byte.
#[derive(Clone, Debug)]
pub(crate) struct DeflatedBlock {
    pub(super) bytes: Bytes,
    /// The checksum of the uncompressed bytes.
    pub(super) checksum: BlockChecksum,
}

/// The window of DEFLATE, in bytes: no reference reaches further back.
const WINDOW_LEN: usize = 32 * 1024;

/// The maximum number of bytes that are stored without compression. A block of at most this length becomes hardly shorter if it is compressed.
pub(super) const MAX_STORED_LEN: usize = 48;

impl DeflatedBlock {
    /// Compresses `events` in `encoding`. The compressed bytes refer to the bytes of `history`, which the client must have received
    /// immediately before.
    pub(crate) fn of_events(history: &[Event], events: &[Event], encoding: RunEncoding) -> Self {
        let parts = || events.iter().map(|event| &encoding.encoded(event)[..]);
        Self::compress(&history_tail(history, encoding), parts)
    }

    /// Compresses `parts`, one after the other. Few bytes are stored without compression.
    pub(super) fn of_parts(parts: &[Bytes]) -> Self {
        let parts = || parts.iter().map(|part| &part[..]);
        if parts().map(<[u8]>::len).sum::<usize>() > MAX_STORED_LEN {
            return Self::compress(&[], parts);
        }
        let joined: Vec<u8> = parts().flatten().copied().collect();
        let len = joined.len() as u16;
        let mut bytes = BytesMut::with_capacity(joined.len() + 5);
        bytes.extend_from_slice(&[0x00]);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&(!len).to_le_bytes());
        bytes.extend_from_slice(&joined);
        Self {
            bytes: bytes.freeze(),
            checksum: BlockChecksum::of(parts()),
        }
    }

    fn compress<'a, I: Iterator<Item = &'a [u8]>>(
        dictionary: &[u8],
        parts: impl Fn() -> I,
    ) -> Self {
        let mut bytes = BytesMut::new();
        with_thread_local(&COMPRESSOR, |compressor| {
            compressor.compress_parts(dictionary, parts(), &mut bytes);
        });
        Self {
            // The block lives as long as its run: without a copy, it would keep up to twice its length.
            bytes: Bytes::copy_from_slice(&bytes),
            checksum: BlockChecksum::of(parts()),
        }
    }
}

/// Returns the last bytes of the history, at most as many as the window of DEFLATE holds.
fn history_tail(history: &[Event], encoding: RunEncoding) -> Vec<u8> {
    let mut len = 0;
    let in_window = history.iter().rev().take_while(|event| {
        let is_reached = len < WINDOW_LEN;
        len += encoding.encoded(event).len();
        is_reached
    });
    let first = history.len() - in_window.count();
    let mut tail = Vec::with_capacity(len);
    for event in &history[first..] {
        tail.extend_from_slice(encoding.encoded(event));
    }
    tail.split_off(tail.len().saturating_sub(WINDOW_LEN))
}
