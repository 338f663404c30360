/// Detects that a source was pending only to let other tasks run, so that the caller polls it once more.
///
/// Some streams return `Pending` only to let other tasks run, such as `tokio_stream::iter` after each 32 items. If each such `Pending` ended a
/// write, the writes would be short, and each byte would cost more. So if a source was ready at least [`MIN_READY_IN_A_ROW`] times in a row and then
/// returns `Pending`, the caller polls the source once more. A source that really waits returns `Pending` again: the cost is one poll.
///
/// The caller bounds the number of polls, so that other tasks can run.
#[derive(Debug, Default)]
pub(super) struct YieldDetector {
    /// The number of polls that were ready since the last poll that was pending.
    ready_in_a_row: usize,
}

/// The number of polls in a row that must have been ready before a source is polled a second time.
const MIN_READY_IN_A_ROW: usize = 16;

impl YieldDetector {
    /// Records that the source was ready.
    #[inline]
    pub(super) fn on_ready(&mut self) {
        self.ready_in_a_row += 1;
    }

    /// Records that the source was pending. Returns whether it was probably pending only to let other tasks run: the caller then polls it again.
    #[inline]
    pub(super) fn on_pending(&mut self) -> bool {
        std::mem::take(&mut self.ready_in_a_row) >= MIN_READY_IN_A_ROW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_source_is_retried_once() {
        let mut yields = YieldDetector::default();
        for ready in [0, MIN_READY_IN_A_ROW - 1, MIN_READY_IN_A_ROW, 1000] {
            (0..ready).for_each(|_| yields.on_ready());
            assert_eq!(yields.on_pending(), ready >= MIN_READY_IN_A_ROW);
            assert!(!yields.on_pending());
        }
    }
}
