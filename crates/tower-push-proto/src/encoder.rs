use std::{borrow::Cow, time::Duration};

use crate::{
    error::Error,
    event::{Event, EventId, Gap},
    frame_buffer::FrameBuffer,
};

/// What one stream of one transport writes: sans-io, in order, without a clock.
///
/// Each method appends to a [`FrameBuffer`]. An error cuts the stream, visibly, behind what was written before.
pub trait Encoder: Send {
    /// What the stream begins with: sent at once, so that the client knows that it is connected.
    fn open(&mut self, out: &mut FrameBuffer);

    /// An event.
    ///
    /// # Errors
    /// If it cannot be written without misleading the client.
    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error>;

    /// Events that are missing here.
    ///
    /// # Errors
    /// If the client cannot be told.
    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error>;

    /// The cursor moves without an event.
    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer);

    /// A heartbeat. One that writes nothing turns heartbeats off for the rest of the stream.
    fn heartbeat(&mut self, out: &mut FrameBuffer);

    /// The end. It is not called for a stream that is cut.
    fn end(&mut self, end: End, out: &mut FrameBuffer);

    /// What a batch begins with: a complete answer, as long-polling sends it, for which none of [`open`](Self::open),
    /// [`heartbeat`](Self::heartbeat) and [`end`](Self::end) is called. By default nothing.
    fn open_batch(&mut self, out: &mut FrameBuffer) {
        let _ = out;
    }

    /// What a batch ends with, told of an end only where the source has [finished](End::finished). By default that end, and
    /// nothing else.
    fn close_batch(&mut self, end: Option<End>, out: &mut FrameBuffer) {
        if let Some(end) = end {
            self.end(end, out);
        }
    }
}

/// How a stream ended, where it was not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct End {
    /// Whether the source has [finished for ever](crate::event::Item::Finished); otherwise it ended for now.
    pub finished: bool,
    /// After what time the client should come back, where it was [said](crate::event::Item::Ended).
    pub retry: Option<Duration>,
}

impl End {
    /// The source has finished: clients must not reconnect.
    pub const FINISHED: Self = Self {
        finished: true,
        retry: None,
    };

    /// The stream ends, and clients may reconnect: after this time, where there is one.
    #[inline]
    pub fn reconnect(retry: Option<Duration>) -> Self {
        Self {
            finished: false,
            retry,
        }
    }

    /// The JSON form, the same on every transport: `{"finished":true}`, `{"finished":false}`, or, where there is a hint when to
    /// come back, with it in milliseconds: `{"finished":false,"retry":1500}`.
    pub fn to_json(self) -> Cow<'static, str> {
        match self.retry {
            _ if self.finished => r#"{"finished":true}"#.into(),
            None => r#"{"finished":false}"#.into(),
            Some(retry) => {
                let retry = whole_millis(retry);
                format!(r#"{{"finished":false,"retry":{retry}}}"#).into()
            }
        }
    }
}

/// At most what a script's timer can hold: 24 days.
pub(crate) fn whole_millis(time: Duration) -> u128 {
    time.as_millis().min(i32::MAX as u128)
}
