use std::{
    fmt::Write,
    ops::ControlFlow::Break,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use tower_push_proto::{base64, sse};

use super::{
    super::gather::{Bounds, Gathered, Gathering, Rest},
    Payloads, Request, StreamCursor,
};
use crate::{
    byte_search,
    error::{BoxError, Error},
    event::{Event, EventId, Gap, Item, Payload},
    supervision::SupervisedStream,
    transport::{Encoder, End, FrameBuffer},
};

/// How the protocol writes data into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// As text.
    Text,
    /// As JSON arrays.
    Json,
    /// As base64.
    Base64,
}

/// A source's items as batches, each an event whose payload is what to write: `data`, where there is some, and `control`.
pub(super) struct Batches<S> {
    /// Until its end.
    items: Option<SupervisedStream<S>>,
    /// Looked at, and not taken.
    ahead: Option<Result<Item, BoxError>>,
    data: Data,
    bounds: Bounds,
    cursor: StreamCursor,
    /// The greatest that was sent.
    sent: u64,
    offset: Option<EventId>,
    /// What to say as long as the source has told no cursor.
    fallback: String,
    /// The client knows that it has everything.
    is_told: bool,
    /// What comes behind the last batch.
    last: Option<Result<Item, BoxError>>,
}

/// Items asked for in one go, so that a source that never pauses lets its neighbours run.
const ITEMS: usize = 1024;

impl<S> Batches<S> {
    pub(super) fn new(
        items: Option<SupervisedStream<S>>,
        ahead: Option<Result<Item, BoxError>>,
        data: Data,
        bounds: Bounds,
        request: &Request,
    ) -> Self {
        Self {
            items,
            ahead,
            data,
            bounds,
            cursor: request.cursor,
            sent: 0,
            offset: request.offset.id().cloned(),
            fallback: request.offset.as_str().to_owned(),
            is_told: false,
            last: None,
        }
    }

    /// What to write for a batch, if the client does not know it all.
    fn frames(&mut self, gathered: Gathered) -> Result<Option<Bytes>, Error> {
        let Gathered {
            body,
            has_content,
            cursor,
            rest,
            ..
        } = gathered;
        let has_moved = cursor != self.offset;
        self.offset = cursor;
        let is_told = std::mem::replace(&mut self.is_told, rest.is_empty());
        let is_news =
            has_content || has_moved || rest.is_finished() || (rest.is_empty() && !is_told);
        if !is_news {
            return Ok(None);
        }
        let mut out = BytesMut::with_capacity(body.len() + 128);
        if has_content {
            out.put_slice(b"event: data\n");
            self.data(&body, &mut out)?;
        }
        out.put_slice(b"event: control\n");
        let control = self.control(&rest);
        lines(control.as_bytes(), &mut out);
        Ok(Some(out.freeze()))
    }

    fn data(&self, body: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        match self.data {
            Data::Base64 => {
                out.put_slice(b"data:");
                base64::encode(body, out);
                out.put_slice(b"\n\n");
            }
            Data::Json => lines(body, out),
            Data::Text => {
                std::str::from_utf8(body).map_err(|_| Error::not_text())?;
                lines(body, out);
            }
        }
        Ok(())
    }

    fn control(&mut self, rest: &Rest) -> String {
        let offset = self
            .offset
            .as_ref()
            .map_or(&*self.fallback, EventId::as_str);
        let mut json = format!("{{\"streamNextOffset\":\"{offset}\"");
        if rest.is_finished() {
            json.push_str(",\"streamClosed\":true");
        } else {
            self.sent = self.sent.max(self.cursor.next());
            let _ = write!(json, ",\"streamCursor\":\"{}\"", self.sent);
        }
        if rest.is_empty() {
            json.push_str(",\"upToDate\":true");
        }
        json.push('}');
        json
    }
}

/// A `data` field for each line, and the empty line that dispatches the event.
///
/// A space behind the colon belongs to the field only where another follows: readers of this protocol exist that look for none.
fn lines(text: &[u8], out: &mut BytesMut) {
    let mut rest = Some(text);
    while let Some(text) = rest {
        let at = byte_search::find_byte(text, |b| b == b'\n' || b == b'\r');
        let line = &text[..at.unwrap_or(text.len())];
        out.put_slice(if line.starts_with(b" ") {
            b"data: "
        } else {
            b"data:"
        });
        out.put_slice(line);
        out.put_u8(b'\n');
        rest = at.map(|at| {
            let is_crlf = text[at..].starts_with(b"\r\n");
            &text[at + 1 + usize::from(is_crlf)..]
        });
    }
    out.put_u8(b'\n');
}

impl<S> Batches<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, BoxError>>> {
        if let Some(ahead) = self.ahead.take() {
            return Poll::Ready(Some(ahead));
        }
        match &mut self.items {
            Some(items) => Pin::new(items).poll_next(cx),
            None => Poll::Ready(None),
        }
    }

    /// Takes what is ready. Items that have ended come with it, unless by a failure, which is told already.
    fn gather(&mut self, cx: &mut Context<'_>) -> (Gathered, Option<SupervisedStream<S>>) {
        let encoder = Box::new(Payloads::new(self.data == Data::Json));
        let mut gathering = Gathering::new(encoder, self.bounds, self.offset.clone());
        for _ in 0..ITEMS {
            let Poll::Ready(next) = self.poll_item(cx) else {
                return (gathering.finish(Rest::Nothing), None);
            };
            let is_content = matches!(&next, Some(Ok(item)) if item.is_content());
            if is_content && gathering.is_full() {
                self.ahead = next;
                break;
            }
            let taken = match &self.items {
                Some(items) => gathering.take_of(items, next),
                None => gathering.take(next),
            };
            if let Break(rest) = taken {
                let is_told = matches!(rest, Rest::Failed(_));
                let ended = self.items.take().filter(|_| !is_told);
                return (gathering.finish(rest), ended);
            }
        }
        (gathering.finish(Rest::More), None)
    }
}

impl<S> Stream for Batches<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(last) = this.last.take() {
            return Poll::Ready(Some(last));
        }
        if this.items.is_none() && this.ahead.is_none() {
            return Poll::Ready(None);
        }
        let (mut gathered, ended) = this.gather(cx);
        if let Rest::Failed(error) = gathered.rest {
            if !gathered.has_content {
                return Poll::Ready(Some(Err(error)));
            }
            // What came before it goes out first.
            this.last = Some(Err(error));
            gathered.rest = Rest::More;
        }
        if let Rest::Later(Some(retry)) = gathered.rest {
            this.last = Some(Ok(Item::Ended { retry }));
        }
        let is_more = matches!(gathered.rest, Rest::More);
        match this.frames(gathered) {
            Ok(Some(frames)) => Poll::Ready(Some(Ok(Item::Event(Event::binary(frames))))),
            Err(error) => {
                let error = error.into();
                if let Some(items) = this.items.take().or(ended) {
                    items.report_send_error(&error);
                }
                this.ahead = None;
                Poll::Ready(Some(Err(error)))
            }
            Ok(None) if this.items.is_none() => Poll::Ready(this.last.take()),
            Ok(None) => {
                if is_more {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

/// Writes what [`Batches`] have made.
pub(super) struct Verbatim;

impl Encoder for Verbatim {
    fn open(&mut self, _: &mut FrameBuffer) {}

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        match event.payload() {
            Payload::Binary(frames) => out.push(frames.clone()),
            other => out.buffer().put_slice(other.as_bytes()),
        }
        Ok(())
    }

    fn gap(&mut self, _: &Gap, _: &mut FrameBuffer) -> Result<(), Error> {
        Err(Error::gap_unsupported())
    }

    fn cursor(&mut self, _: &EventId, _: &mut FrameBuffer) {}

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        sse::write_comment(out.buffer());
    }

    fn end(&mut self, end: End, out: &mut FrameBuffer) {
        if let Some(retry) = end.retry {
            sse::write_retry(retry, out.buffer());
        }
    }
}
