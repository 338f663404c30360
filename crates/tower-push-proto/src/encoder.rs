use std::{borrow::Cow, time::Duration};

use crate::{
    error::Error,
    event::{Event, EventId, EventRun, Gap, RunEncoding},
    frame_buffer::FrameBuffer,
};

/// Writes one stream in the format of one transport.
///
/// An encoder has no clock and does no I/O: each method appends to a [`FrameBuffer`], in the order of the calls. First comes
/// [`open`](Self::open), then any number of items and heartbeats, then [`end`](Self::end), unless the stream fails.
///
/// A method that returns an error writes nothing. [`Item::write_to`](crate::Item::write_to) dispatches to the methods for events, gaps and cursors,
/// and a transport calls it for each item that the source yields. If the encoder refuses an event, `write_to` writes a gap in its place. If
/// the encoder cannot write a gap, the transport sends what was written before, and then aborts the stream so that the client can tell the
/// failure from an end.
pub trait Encoder: Send {
    /// Writes the beginning of the stream. The transport sends these bytes at once, so that the client knows that it is connected.
    fn open(&mut self, out: &mut FrameBuffer);

    /// Writes an event.
    ///
    /// # Errors
    /// An error if the event cannot be written without misleading the client. The client then gets a gap in the event's place:
    /// see [`Item::write_to`](crate::Item::write_to).
    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error>;

    /// Returns the encoding in which the events of `run` are written at once. Returns `None`, the default, if each event must be written by
    /// [`event`](Self::event), because its bytes depend on this stream, or because an event cannot be written.
    ///
    /// If the encoding is returned, the caller writes the run in this encoding as the next part of the stream.
    fn run_encoding(&mut self, run: &EventRun) -> Option<RunEncoding> {
        let _ = run;
        None
    }

    /// Writes the events of a run at once. Returns `false`, and writes nothing, if each event must be written by [`event`](Self::event).
    ///
    /// All streams that write the same run send the same [`Bytes`](bytes::Bytes).
    fn write_run(&mut self, run: &EventRun, out: &mut FrameBuffer) -> bool {
        let Some(encoding) = self.run_encoding(run) else {
            return false;
        };
        out.push(run.encoded(encoding));
        true
    }

    /// Returns the least number of events that a transport passes to [`write_run`](Self::write_run), at least 1. The default is 2, because
    /// a single event is cheaper as an [`Item`](crate::Item). An encoder that needs the positions of all events returns 1.
    fn min_run_len(&self) -> usize {
        2
    }

    /// Writes an event after which a client resumes from `cursor` instead of from the event's id: see
    /// [`Item::EventWithCursor`](crate::Item::EventWithCursor).
    ///
    /// The default calls [`event`](Self::event), and then [`cursor`](Self::cursor).
    ///
    /// # Errors
    /// An error if the event cannot be written without misleading the client.
    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        self.event(event, out)?;
        self.cursor(cursor, out);
        Ok(())
    }

    /// Writes the announcement that events are missing at this place of the stream.
    ///
    /// # Errors
    /// An error if the format cannot announce a gap.
    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error>;

    /// Writes a cursor: the client's cursor moves to `id` without an event.
    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer);

    /// Writes what the encoder has held back, such as a cursor that the next event could have carried: nothing by default.
    ///
    /// A transport calls this method whenever no further item is ready, and before it aborts the stream. [`end`](Self::end) writes the held
    /// bytes too.
    fn flush(&mut self, out: &mut FrameBuffer) {
        let _ = out;
    }

    /// Writes a heartbeat. After a call that writes nothing, the transport calls this method no more on this stream.
    fn heartbeat(&mut self, out: &mut FrameBuffer);

    /// Writes the end of the stream. The transport does not call this method for a stream that fails.
    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer);
}

/// Writes complete responses, each with a batch of items, as long-polling sends them. The source's stream usually goes on after a batch.
///
/// A batch begins with [`begin_batch`](Self::begin_batch) and ends with [`end_batch`](Self::end_batch). The items of the batch are written
/// between these two calls. Transports of batches do not call [`open`](Encoder::open), [`heartbeat`](Encoder::heartbeat) and
/// [`end`](Encoder::end).
pub trait BatchEncoder: Encoder {
    /// Writes the beginning of a batch: nothing by default.
    fn begin_batch(&mut self, out: &mut FrameBuffer) {
        let _ = out;
    }

    /// Writes the end of a batch. `end` is `Some` only if the source has [finished](StreamEnd::finished). By default,
    /// this method calls [`end`](Encoder::end) if `end` is `Some`, and otherwise [`flush`](Encoder::flush).
    fn end_batch(&mut self, end: Option<StreamEnd>, out: &mut FrameBuffer) {
        match end {
            Some(end) => self.end(end, out),
            None => self.flush(out),
        }
    }
}

/// The way in which a stream ends without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamEnd {
    /// Whether the source has [finished](crate::Item::Finished). Clients must not reconnect if it is `true`, and may reconnect if it
    /// is `false`.
    pub finished: bool,
    /// Whether the stream ends because the client's authorization has [expired](crate::Item::Expired).
    pub expired: bool,
    /// The time that the client waits before it reconnects, if the source has [set one](crate::Item::Ended).
    pub retry: Option<Duration>,
}

impl StreamEnd {
    /// The source has finished: clients must not reconnect.
    pub const FINISHED: Self = Self {
        finished: true,
        expired: false,
        retry: None,
    };

    /// The client's authorization has expired: the client may reconnect with a new authorization.
    pub const EXPIRED: Self = Self {
        finished: false,
        expired: true,
        retry: None,
    };

    /// Returns an end after which clients may reconnect. If `retry` is set, the clients wait for this time first.
    #[inline]
    pub fn reconnect(retry: Option<Duration>) -> Self {
        Self {
            finished: false,
            expired: false,
            retry,
        }
    }

    /// Returns the JSON form, which is the same on every transport: `{"finished":true}`, `{"finished":false}`, or with a
    /// [`retry`](Self::retry) in milliseconds, `{"finished":false,"retry":1500}`.
    pub fn to_json(self) -> Cow<'static, str> {
        match self.retry {
            _ if self.finished => r#"{"finished":true}"#.into(),
            None => r#"{"finished":false}"#.into(),
            Some(retry) => {
                let retry = millis_within_browser_limit(retry);
                format!(r#"{{"finished":false,"retry":{retry}}}"#).into()
            }
        }
    }
}

/// Returns `time` in milliseconds, rounded down, and at most 2³¹ - 1 (24 days): the longest timer of a browser.
pub(crate) fn millis_within_browser_limit(time: Duration) -> u128 {
    time.as_millis().min(i32::MAX as u128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CloseCode, CloseFrame, GapReason, Item, ItemOutcome};

    /// An encoder that writes the name of each called method.
    struct CallLog;

    impl Encoder for CallLog {
        fn open(&mut self, _: &mut FrameBuffer) {}
        fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
            out.buffer().extend_from_slice(event.payload().as_bytes());
            Ok(())
        }
        fn gap(&mut self, _: &Gap, _: &mut FrameBuffer) -> Result<(), Error> {
            Err(Error::gap_unsupported())
        }
        fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
            out.buffer().extend_from_slice(format!("@{id}").as_bytes());
        }
        fn heartbeat(&mut self, _: &mut FrameBuffer) {}
        fn end(&mut self, _: StreamEnd, _: &mut FrameBuffer) {}
    }

    #[test]
    fn item_dispatches_to_one_method() {
        let event = || Event::text("e").with_id(1).unwrap();
        let cursor = || EventId::from(2);
        let mut out = FrameBuffer::default();
        for (item, written, end) in [
            (Item::Event(event()), "e", None),
            (
                Item::EventWithCursor {
                    event: event(),
                    cursor: cursor(),
                },
                "e@2",
                None,
            ),
            (Item::Cursor(cursor()), "@2", None),
            (Item::Finished, "", Some(StreamEnd::FINISHED)),
            (
                Item::Ended {
                    retry: Duration::ZERO,
                },
                "",
                Some(StreamEnd::reconnect(Some(Duration::ZERO))),
            ),
            (Item::Expired, "", Some(StreamEnd::EXPIRED)),
            (
                Item::closed(
                    CloseFrame::new(CloseCode::NORMAL, "bye"),
                    StreamEnd::FINISHED,
                ),
                "",
                Some(StreamEnd::FINISHED),
            ),
        ] {
            assert_eq!(item.end(), end);
            let outcome = item.write_to(&mut CallLog, &mut out).unwrap();
            assert_eq!(
                outcome,
                end.map_or(ItemOutcome::Written, ItemOutcome::EndsStream)
            );
            assert_eq!(std::mem::take(&mut out).into_bytes(), written);
        }
        let gap = Item::from(Gap::new(GapReason::Lagged));
        let refused = gap.write_to(&mut CallLog, &mut out).unwrap_err();
        assert!(refused.is_gap_unsupported());
    }

    #[test]
    fn end_is_finished_or_has_milliseconds() {
        let retry = |time| StreamEnd::reconnect(Some(time)).to_json();
        assert_eq!(StreamEnd::FINISHED.to_json(), r#"{"finished":true}"#);
        assert_eq!(StreamEnd::EXPIRED.to_json(), r#"{"finished":false}"#);
        assert_eq!(
            retry(Duration::from_micros(1_500_900)),
            r#"{"finished":false,"retry":1500}"#
        );
        assert_eq!(
            retry(Duration::MAX),
            r#"{"finished":false,"retry":2147483647}"#
        );
    }
}
