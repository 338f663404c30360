use std::{cmp::Ordering, sync::Arc};

use tokio::time::sleep;
use tower_push::{
    EventId, Gap, GapReason,
    source::{
        hub::HubEvent,
        relay::{Page, PageRequest, Upstream, UpstreamError},
    },
};

use crate::{
    api_response::StreamInfo, reader_status::ReaderMetrics, stream_api::StreamApi,
    stream_cursor::StreamCursor, stream_message::StreamMessage,
    stream_reader::LOSS_CONFIRMATION_TIME, topic_page::TopicPageReader,
};

/// The [`Upstream`] of a stream: reads the messages after a client's cursor, if the client may resume there.
///
/// | the cursor's message | result |
/// |---|---|
/// | is in the stream, with the cursor's fingerprint | the messages after it |
/// | was removed, or there is none | the messages with higher sequence numbers |
/// | is newer than all messages, or was replaced; or the stream was created anew or is missing | [`UpstreamError::Lost`] (`epoch`) |
///
/// If messages after the cursor were removed, the page begins with a gap (`expired`) that counts them. A page ends before removed messages, so a
/// stream with many holes, such as one with a maximum number of messages for each subject, costs a page for each hole.
///
/// A page costs two requests: one for the messages, which any server with a copy of the stream answers, and one for the description of the
/// stream, which its leader answers. Clones share a connection.
#[derive(Clone, Debug)]
pub struct JetStreamUpstream {
    api: Arc<StreamApi>,
    metrics: Arc<ReaderMetrics>,
}

impl JetStreamUpstream {
    pub(crate) fn new(api: Arc<StreamApi>, metrics: Arc<ReaderMetrics>) -> Self {
        Self { api, metrics }
    }

    /// Adds the first message after the cursor, from the stream's leader, to messages that have none. The server that was asked first may lag behind
    /// the leader.
    async fn add_from_leader(
        &self,
        cursor: StreamCursor,
        info: &StreamInfo,
        messages: &mut Vec<StreamMessage>,
    ) -> Result<(), UpstreamError> {
        let last = info.state.last_seq;
        if messages.is_empty() && last >= cursor.sequence {
            messages.extend(self.api.message_at(cursor.sequence).await?);
        }
        let has_later = messages
            .last()
            .is_some_and(|message| message.sequence > cursor.sequence);
        if !has_later && last > cursor.sequence {
            let first = self.api.first_message_from(cursor.sequence + 1, ">");
            messages.extend(first.await?);
        }
        Ok(())
    }
}

impl JetStreamUpstream {
    /// Reads a page of events of a hub.
    pub(crate) async fn read_hub_page(
        &self,
        request: &PageRequest,
    ) -> Result<Page<HubEvent>, UpstreamError> {
        if let Some(reader) =
            TopicPageReader::new_if_cheaper(&self.api, request, self.metrics.position())
            && let Some(page) = reader.read().await?
        {
            return Ok(page);
        }
        let to_event = |cursor: StreamCursor, message: &StreamMessage| {
            let event = message.to_hub_event(cursor.stream, &self.api.subjects);
            event.is_requested(request).then_some(event)
        };
        self.read_page_with(request, to_event).await
    }

    /// Reads the messages after a cursor, and makes the events of a page from them. `to_event` gets the cursor, too, and returns `None` for a message
    /// that is not requested.
    async fn read_page_with<E>(
        &self,
        request: &PageRequest,
        to_event: impl Fn(StreamCursor, &StreamMessage) -> Option<E>,
    ) -> Result<Page<E>, UpstreamError> {
        let lost = UpstreamError::Lost(GapReason::Epoch);
        let cursor = StreamCursor::parse(request.after()).ok_or(lost)?;
        let page = self.read_page_once(cursor, request, &to_event).await;
        match page {
            // The stream is the cursor's, so a leader that lags can have answered.
            Err(UpstreamError::Lost(_)) if self.api.fingerprint() == cursor.stream => {
                sleep(LOSS_CONFIRMATION_TIME).await;
                self.read_page_once(cursor, request, &to_event).await
            }
            page => page,
        }
    }

    async fn read_page_once<E>(
        &self,
        cursor: StreamCursor,
        request: &PageRequest,
        to_event: impl Fn(StreamCursor, &StreamMessage) -> Option<E>,
    ) -> Result<Page<E>, UpstreamError> {
        let lost = || UpstreamError::Lost(GapReason::Epoch);
        let from = cursor.sequence.max(1);
        let max_messages = request.max_events().max(1) + 1;
        let messages = self
            .api
            .read_direct(from, None, max_messages, request.max_bytes());
        let messages = messages.await;
        // The description of the stream is read after the messages: if it says that the stream is the cursor's, the messages are of that
        // stream, too.
        let info = match self.api.info().await {
            Err(error) if error.is_not_found() => return Err(lost()),
            info => info?,
        };
        if cursor.stream != info.fingerprint() || cursor.sequence > info.state.last_seq {
            return Err(lost());
        }
        let mut messages = messages?.messages;
        self.add_from_leader(cursor, &info, &mut messages).await?;
        let last = info.state.last_seq;
        page_after(cursor, &messages, last, request, |message| {
            to_event(cursor, message)
        })
    }
}

impl Upstream for JetStreamUpstream {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let to_event = |cursor: StreamCursor, message: &StreamMessage| {
            let event = message.to_event(cursor.stream, &self.api.subjects);
            request.includes(&event).then_some(event)
        };
        self.read_page_with(&request, to_event).await
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let (a, b) = (StreamCursor::parse(a)?, StreamCursor::parse(b)?);
        (a.stream == b.stream).then(|| a.sequence.cmp(&b.sequence))
    }
}

/// Returns the page after a cursor, from messages of the cursor's stream that begin at the cursor's sequence number. `last_sequence` is the
/// highest sequence number of the stream. If this number is higher than the cursor's and there are no messages after the cursor, the messages
/// after the cursor were removed.
fn page_after<E>(
    cursor: StreamCursor,
    messages: &[StreamMessage],
    last_sequence: u64,
    request: &PageRequest,
    to_event: impl Fn(&StreamMessage) -> Option<E>,
) -> Result<Page<E>, UpstreamError> {
    let (own, later) = match messages.split_first() {
        Some((own, later)) if own.sequence == cursor.sequence => (Some(own), later),
        _ => (None, messages),
    };
    if own.is_some_and(|own| !cursor.matches_message(own.fingerprint)) {
        return Err(UpstreamError::Lost(GapReason::Epoch));
    }
    let without_message = |sequence| cursor.without_message_at(sequence).to_event_id();
    let gap = |missed| match request.topics() {
        // The removed messages may have had other topics.
        Some(_) => Gap::new(GapReason::Expired),
        None => Gap::new(GapReason::Expired).missed(missed),
    };
    let later = messages_of_page(later, request);
    let [first, ..] = later else {
        if last_sequence > cursor.sequence {
            let gap = gap(last_sequence - cursor.sequence);
            let end = without_message(last_sequence);
            return Ok(Page::new(Vec::new()).after_gap(gap.resumed(end)));
        }
        // The id without a fingerprint stands for the end of the stream in a process that has started after the message was removed.
        let end = match own {
            Some(own) => own.cursor(cursor.stream).to_event_id(),
            None => without_message(cursor.sequence),
        };
        return Ok(Page::new(Vec::new()).scanned_to(end));
    };
    let page = Page::new(later.iter().filter_map(to_event).collect());
    let last = later.last().unwrap_or(first);
    let page = page.scanned_to(last.cursor(cursor.stream).to_event_id());
    match first.sequence - cursor.sequence - 1 {
        0 => Ok(page),
        missed => Ok(page.after_gap(gap(missed))),
    }
}

/// Returns the messages of a page. The page ends before removed messages, so that the gap for these is at the beginning of the next page.
fn messages_of_page<'a>(
    messages: &'a [StreamMessage],
    request: &PageRequest,
) -> &'a [StreamMessage] {
    let is_next =
        |pair: &[StreamMessage]| pair[0].sequence.checked_add(1) == Some(pair[1].sequence);
    let hole = messages.windows(2).position(|pair| !is_next(pair));
    let end = hole.map_or(messages.len(), |before| before + 1);
    messages_within_limits(&messages[..end], request)
}

/// Returns the first messages, as far as the limits of a page allow. The first message is returned however large it is.
pub(crate) fn messages_within_limits<'a>(
    messages: &'a [StreamMessage],
    request: &PageRequest,
) -> &'a [StreamMessage] {
    let mut bytes = 0;
    let fitting = messages
        .iter()
        .take(request.max_events())
        .take_while(|message| {
            let fits = bytes < request.max_bytes();
            bytes += message.byte_len();
            fits
        });
    let count = fitting.count().max(1).min(messages.len());
    &messages[..count]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject_mapping::SubjectMapping;
    use tower_push_proto::fingerprint::Fingerprint;

    fn stream() -> Fingerprint {
        Fingerprint::from_bits(0)
    }

    fn at(sequence: u64) -> StreamCursor {
        message(sequence).cursor(stream())
    }

    /// A message whose payload has as many bytes as its sequence number.
    fn message(sequence: u64) -> StreamMessage {
        StreamMessage::with_payload(sequence, vec![b'x'; sequence as usize])
    }

    /// The page after a cursor, of a stream that had the messages 1 to 9, from which all but these were removed.
    fn page_of(cursor: StreamCursor, left: &[u64], request: &PageRequest) -> String {
        let left = left.iter().filter(|sequence| **sequence >= cursor.sequence);
        let messages: Vec<_> = left.map(|sequence| message(*sequence)).collect();
        let subjects = SubjectMapping::new("events");
        let to_event = |message: &StreamMessage| Some(message.to_event(cursor.stream, &subjects));
        match page_after(cursor, &messages, 9, request, to_event) {
            Ok(page) => {
                let (gap, events) = page.into_parts();
                let gap = gap.map(|gap| format!("{} {:?} ", gap.reason.name(), gap.missed));
                let lengths = events.iter().map(|event| event.payload().as_bytes().len());
                let lengths: Vec<_> = lengths.collect();
                format!("{}{lengths:?}", gap.unwrap_or_default())
            }
            Err(UpstreamError::Lost(reason)) => format!("lost {}", reason.name()),
            Err(error) => panic!("{error}"),
        }
    }

    fn page(cursor: StreamCursor, left: &[u64]) -> String {
        page_of(cursor, left, &PageRequest::new(cursor.to_event_id()))
    }

    #[test]
    fn cursor_rule_holds() {
        assert_eq!(page(at(7), &[5, 6, 7, 8, 9]), "[8, 9]");
        assert_eq!(page(at(9), &[5, 6, 7, 8, 9]), "[]");
        assert_eq!(page(at(9), &[]), "[]");
        assert_eq!(page(at(4), &[5, 6, 7, 8, 9]), "[5, 6, 7, 8, 9]");
        assert_eq!(
            page(at(2), &[5, 6, 7, 8, 9]),
            "expired Some(2) [5, 6, 7, 8, 9]"
        );
        assert_eq!(page(at(2), &[2, 3, 5, 8, 9]), "[3]");
        assert_eq!(page(at(3), &[2, 3, 5, 8, 9]), "expired Some(1) [5]");
        assert_eq!(page(at(7), &[7]), "expired Some(2) []");
        let other = StreamCursor {
            sequence: 7,
            ..at(3)
        };
        assert_eq!(page(other, &[5, 6, 7, 8]), "lost epoch");
        let without_message = StreamCursor {
            message: None,
            ..at(7)
        };
        assert_eq!(page(without_message, &[7, 8, 9]), "[8, 9]");
    }

    #[test]
    fn page_ends_after_max_bytes() {
        let count = |max_bytes| {
            let request = PageRequest::new(at(1).to_event_id()).with_max_bytes(max_bytes);
            page_of(at(1), &[1, 2, 3, 4, 5, 6, 7, 8, 9], &request)
        };
        assert_eq!(count(0), "[2]");
        assert_eq!(count(2), "[2]");
        assert_eq!(count(3), "[2, 3]");
        assert_eq!(count(1000), "[2, 3, 4, 5, 6, 7, 8, 9]");
    }
}
