//! The compressor of each thread, which WebSocket messages and streams in gzip share.

use std::{cell::Cell, thread::LocalKey};

use bytes::BytesMut;
use flate2::{Compress, Compression, FlushCompress};

thread_local! {
    /// The compressor of the thread. `None` before its first use, and during a use.
    pub(crate) static COMPRESSOR: Cell<Option<Compressor>> = const { Cell::new(None) };
}

/// Calls `f` with the thread's value, or with a new value if the thread has no value yet or is ending.
///
/// The value is taken out of its slot during the call. A panic in `f` therefore drops the value, so that no later call gets a value in the
/// middle of a message. A nested call gets a new value.
pub(crate) fn with_thread_local<T: Default, R>(
    slot: &'static LocalKey<Cell<Option<T>>>,
    f: impl FnOnce(&mut T) -> R,
) -> R {
    // `try_with` fails while the thread destroys its thread-local values.
    let kept = slot.try_with(Cell::take).ok().flatten();
    let mut value = kept.unwrap_or_default();
    let result = f(&mut value);
    let _ = slot.try_with(|slot| slot.set(Some(value)));
    result
}

/// Compresses bytes as blocks of DEFLATE that end with a sync flush. Each call is independent of the calls before.
pub(crate) struct Compressor {
    pub(crate) stream: Compress,
    /// The output buffer of one call of zlib. The bytes of this buffer are copied to `out`, so that `out` grows by the number of bytes
    /// written and not by the capacity of this buffer.
    pub(crate) chunk: Vec<u8>,
}

impl Compressor {
    /// The compression level of zlib.
    ///
    /// Measured on JSON of 128 B to 16 KiB: up to 1 KiB, levels 2 to 6 take nearly the same time, most of which is spent on the reset (1.6
    /// µs, with any window) and the Huffman trees. Level 6 makes the fewest bytes, and each byte is sent to many clients. Level 9 is slower
    /// and makes no fewer bytes. Level 1 takes a third of the time and makes 10 to 60 % more bytes.
    const LEVEL: u32 = 6;

    /// The length of the output buffer, in bytes: 16 KiB, so that nearly every message needs only one call of zlib.
    pub(crate) const CHUNK_LEN: usize = 16 * 1024;

    /// Appends the compressed bytes of `message` to `out`.
    #[cfg(feature = "deflate")]
    pub(crate) fn compress(&mut self, message: &[u8], out: &mut BytesMut) {
        self.stream.reset();
        self.write(message, FlushCompress::Sync, out);
    }

    /// Appends the compressed bytes of `parts`, one after the other, to `out`. The compressed bytes refer to `dictionary`, of which at most
    /// the last 32 KiB are used.
    #[cfg(feature = "gzip")]
    pub(crate) fn compress_parts<'a>(
        &mut self,
        dictionary: &[u8],
        parts: impl IntoIterator<Item = &'a [u8]>,
        out: &mut BytesMut,
    ) {
        self.stream.reset();
        if !dictionary.is_empty() {
            // `set_dictionary` fails only for a stream that was not reset before. Without the dictionary the blocks are longer.
            let set = self.stream.set_dictionary(dictionary);
            debug_assert!(set.is_ok());
        }
        for part in parts {
            self.write(part, FlushCompress::None, out);
        }
        self.write(&[], FlushCompress::Sync, out);
    }

    /// Compresses `input`, and appends what zlib writes to `out`.
    fn write(&mut self, mut input: &[u8], flush: FlushCompress, out: &mut BytesMut) {
        loop {
            self.chunk.clear();
            let consumed_before = self.stream.total_in();
            let status = self.stream.compress_vec(input, &mut self.chunk, flush);
            input = &input[(self.stream.total_in() - consumed_before) as usize..];
            out.extend_from_slice(&self.chunk);
            let is_flushed = self.chunk.len() < self.chunk.capacity();
            if status.is_err() || (input.is_empty() && is_flushed) {
                break;
            }
        }
        debug_assert!(input.is_empty());
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self {
            stream: Compress::new(Compression::new(Self::LEVEL), false),
            chunk: Vec::with_capacity(Self::CHUNK_LEN),
        }
    }
}
