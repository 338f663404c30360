use futures_util::future::try_join_all;
use tower_push::{
    Gap, GapReason,
    source::{
        hub::HubEvent,
        relay::{Page, PageRequest, UpstreamError},
    },
};

use crate::{
    api_response::StreamContents, error::Error, jetstream_upstream::messages_within_limits,
    stream_api::StreamApi, stream_cursor::StreamCursor, stream_message::StreamMessage,
};

/// Reads a page that has only the messages of the requested topics: the server selects them by their subjects.
///
/// # Invariant: no hole
/// A page has each requested message after the cursor and up to the sequence number at which the page ends, or begins with a gap:
/// - The stream's leader says for each subject which message is the first one after the cursor. The server that returns the messages may lag behind the
///   leader, and may have removed messages earlier. If the returned messages begin with the leader's first one, no message between the first
///   and the last of them is missing, because a stream without holes loses its oldest messages first.
/// - The leader says for each subject which message follows the last one that was returned. The page ends before this message.
/// - After these reads, the leader says that the stream is still the cursor's, that the stream has no holes, and which message is the oldest one. The
///   page leaves out the messages before this oldest one, because some of them may be missing.
///
/// If one of these conditions does not hold, [`read`](Self::read) returns no page, and the caller reads the messages of all topics.
#[derive(Debug)]
pub(crate) struct TopicPageReader<'a> {
    api: &'a StreamApi,
    request: &'a PageRequest,
    cursor: StreamCursor,
    /// The subjects of the requested topics, and the subject of messages that have several topics.
    subjects: Vec<String>,
}

/// The requested messages of one subject.
#[derive(Debug)]
struct SubjectMessages {
    /// All messages of the subject after the cursor and up to `complete_to`. The list may also have later messages.
    messages: Vec<StreamMessage>,
    /// The sequence number up to which `messages` is complete.
    complete_to: u64,
}

/// The requested messages of all subjects, which become a page.
#[derive(Debug)]
struct MergedMessages {
    /// In the order of the stream.
    messages: Vec<StreamMessage>,
    /// Whether `messages` has all requested messages up to the end of the stream.
    is_complete: bool,
    /// Whether messages between the cursor and the first one of the page were removed.
    has_gap: bool,
}

/// The maximum number of topics of a page whose messages are selected by subject.
const MAX_SELECTED_TOPICS: usize = 32;

impl<'a> TopicPageReader<'a> {
    /// Returns `None` if a page of all topics costs fewer requests: if the page cannot be selected by topics, begins near the end of the stream, or
    /// would probably not be complete. `read_before` is the sequence number up to which the reader of this process has read the stream.
    ///
    /// This function sends no request, because most pages are near the end.
    pub(crate) fn new_if_cheaper(
        api: &'a StreamApi,
        request: &'a PageRequest,
        read_before: u64,
    ) -> Option<Self> {
        let topics = request.topics()?;
        let cursor = StreamCursor::parse(request.after())?;
        let is_far = is_far_before(cursor, read_before, request);
        // A read of one subject cannot end before an unreadable message.
        let has_unreadable = api.first_unreadable_from(cursor.sequence).is_some();
        if topics.len() > MAX_SELECTED_TOPICS || !is_far || api.had_holes() || has_unreadable {
            return None;
        }
        let mut subjects = vec![api.subjects.subject_of_several_topics()];
        for topic in topics {
            subjects.push(api.subjects.subject_of(Some(topic))?);
        }
        Some(Self {
            api,
            request,
            cursor,
            subjects,
        })
    }

    /// Reads the page. Returns `None` if the caller must read the messages of all topics, because a check of the invariant fails.
    pub(crate) async fn read(&self) -> Result<Option<Page<HubEvent>>, UpstreamError> {
        let Some(last) = self.stream_end_if_selectable().await? else {
            return Ok(None);
        };
        let own = self.api.message_at(self.cursor.sequence);
        let end = self.api.message_at(last);
        let subjects = self.subjects.iter();
        let reads = try_join_all(subjects.map(|subject| self.read_subject(subject, last)));
        let (own, end, reads) = tokio::try_join!(own, end, reads)?;
        if own.is_some_and(|own| !self.cursor.matches_message(own.fingerprint)) {
            return Ok(None);
        }
        let Some(reads) = reads.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let info = self.api.info().await?;
        let is_same = info.fingerprint() == self.cursor.stream && info.state.last_seq >= last;
        if !is_same || info.state.has_holes() {
            return Ok(None);
        }
        let merged = merge_subjects(reads, self.cursor, last, info.state, self.request);
        Ok(self.make_page(&merged, last, end.as_ref()))
    }

    /// Returns the last sequence number of the stream. Returns `None` if the caller must read the messages of all topics: if there is no stream, or
    /// if the stream is not the cursor's, has holes, or ends soon after the cursor.
    async fn stream_end_if_selectable(&self) -> Result<Option<u64>, Error> {
        let info = match self.api.info().await {
            Err(error) if error.is_not_found() => return Ok(None),
            info => info?,
        };
        let last = info.state.last_seq;
        let is_far = is_far_before(self.cursor, last, self.request);
        let is_same = info.fingerprint() == self.cursor.stream;
        Ok((is_same && is_far && !info.state.has_holes()).then_some(last))
    }

    /// Reads messages of one subject. They are complete up to `last` at most. Returns `None` if the first message of the server that answers is not
    /// the leader's first message.
    async fn read_subject(
        &self,
        subject: &str,
        last: u64,
    ) -> Result<Option<SubjectMessages>, Error> {
        let first = self.cursor.sequence + 1;
        let Some(first) = self.api.first_message_from(first, subject).await? else {
            return Ok(Some(SubjectMessages {
                messages: Vec::new(),
                complete_to: last,
            }));
        };
        let max_messages = self.request.max_events().max(1);
        let max_bytes = self.request.max_bytes() / self.subjects.len();
        let read = self
            .api
            .read_direct(first.sequence, Some(subject), max_messages, max_bytes);
        let messages = read.await?.messages;
        let (Some(read_first), Some(read_last)) = (messages.first(), messages.last()) else {
            return Ok(None);
        };
        if *read_first != first {
            return Ok(None);
        }
        let next = self.api.first_message_from(read_last.sequence + 1, subject);
        let next = next.await?.map(|next| next.sequence - 1);
        Ok(Some(SubjectMessages {
            complete_to: next.unwrap_or(last),
            messages,
        }))
    }

    /// Returns the page of merged messages. `end` is the message with the sequence number `last`, if there is one.
    fn make_page(
        &self,
        merged: &MergedMessages,
        last: u64,
        end: Option<&StreamMessage>,
    ) -> Option<Page<HubEvent>> {
        let stream = self.cursor.stream;
        let scanned_to = match (merged.is_complete, end) {
            (true, Some(end)) => end.cursor(stream),
            (true, None) => self.cursor.without_message_at(last),
            (false, _) => merged.messages.last()?.cursor(stream),
        };
        let to_event = |message: &StreamMessage| {
            let event = message.to_hub_event(stream, &self.api.subjects);
            event.is_requested(self.request).then_some(event)
        };
        let events = merged.messages.iter().filter_map(to_event).collect();
        let page = Page::new(events).scanned_to(scanned_to.to_event_id());
        Some(match merged.has_gap {
            // The removed messages may have had other topics, so their number is not known.
            true => page.after_gap(Gap::new(GapReason::Expired)),
            false => page,
        })
    }
}

/// Returns whether more messages follow the cursor, up to the sequence number `last`, than a page has.
fn is_far_before(cursor: StreamCursor, last: u64, request: &PageRequest) -> bool {
    last.saturating_sub(cursor.sequence) > request.max_events() as u64
}

/// Merges the messages of several subjects after `cursor`, in a stream that had the messages up to `last` when the reads began, and that has
/// `contents` after them.
fn merge_subjects(
    reads: Vec<SubjectMessages>,
    cursor: StreamCursor,
    last: u64,
    contents: StreamContents,
    request: &PageRequest,
) -> MergedMessages {
    let complete_to = reads.iter().map(|read| read.complete_to);
    let complete_to = complete_to.min().unwrap_or(last).min(last);
    let mut messages: Vec<_> = reads.into_iter().flat_map(|read| read.messages).collect();
    let left = contents.first_seq.max(cursor.sequence + 1)..=complete_to;
    messages.retain(|message| left.contains(&message.sequence));
    messages.sort_unstable_by_key(|message| message.sequence);
    let fitting = messages_within_limits(&messages, request).len();
    let is_complete = complete_to == last && fitting == messages.len();
    messages.truncate(fitting);
    MergedMessages {
        messages,
        is_complete,
        has_gap: contents.first_seq > cursor.sequence + 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tower_push::EventId;
    use tower_push_proto::fingerprint::Fingerprint;

    use super::*;

    /// A stream whose messages have these subjects, from the sequence number 1 on.
    #[derive(Clone, Debug)]
    struct ModelStream {
        subjects: Vec<usize>,
    }

    impl ModelStream {
        fn sequences_of(&self, subject: usize) -> impl Iterator<Item = u64> {
            let subjects = (1_u64..).zip(&self.subjects);
            let found = subjects.filter(move |(_, other)| **other == subject);
            found.map(|(sequence, _)| sequence)
        }

        /// Reads up to `max_messages` messages of a subject, as [`TopicPageReader::read_subject`] does.
        fn read(
            &self,
            subject: usize,
            after: u64,
            last: u64,
            max_messages: usize,
        ) -> SubjectMessages {
            let later = self
                .sequences_of(subject)
                .filter(|sequence| *sequence > after);
            let later: Vec<_> = later.collect();
            let read = &later[..max_messages.min(later.len())];
            let next = later.get(read.len()).map(|next| next - 1);
            SubjectMessages {
                messages: read.iter().map(|sequence| message(*sequence)).collect(),
                complete_to: next.unwrap_or(last),
            }
        }
    }

    fn message(sequence: u64) -> StreamMessage {
        StreamMessage::with_payload(sequence, vec![b'x'; 10])
    }

    fn sequences(messages: &[StreamMessage]) -> Vec<u64> {
        let sequences = messages.iter().map(|message| message.sequence);
        sequences.collect()
    }

    proptest! {
        #[test]
        fn page_has_all_requested_messages(
            subjects in prop::collection::vec(0..4_usize, 1..60),
            after in 0..60_u64,
            published_later in 0..5_u64,
            first_seq in 1..60_u64,
            max_messages in 1..8_usize,
            max_events in 1..30_usize,
            max_bytes in 0..200_usize,
        ) {
            let stream = ModelStream { subjects };
            let last_seq = stream.subjects.len() as u64;
            let after = after.min(last_seq);
            let first_seq = first_seq.min(last_seq);
            let last = last_seq.saturating_sub(published_later).max(after);
            let cursor = StreamCursor {
                sequence: after,
                stream: Fingerprint::from_bits(0),
                message: None,
            };
            let request = PageRequest::new(EventId::from(0))
                .with_max_events(max_events)
                .with_max_bytes(max_bytes);
            // The subjects 0 and 1 are requested.
            let reads = [0, 1].map(|subject| stream.read(subject, after, last, max_messages));
            let contents = StreamContents {
                messages: last_seq + 1 - first_seq,
                bytes: 0,
                first_seq,
                last_seq,
            };
            let merged = merge_subjects(reads.into(), cursor, last, contents, &request);
            let found = sequences(&merged.messages);
            let end = match merged.is_complete {
                true => last,
                // An incomplete page is empty only if its messages were removed during the reads.
                false => found.last().copied().unwrap_or(after),
            };
            let is_requested = |sequence: &u64| stream.subjects[*sequence as usize - 1] <= 1;
            let expected = (first_seq.max(after + 1)..=end).filter(is_requested);
            prop_assert_eq!(&found, &expected.collect::<Vec<_>>());
            prop_assert_eq!(merged.has_gap, first_seq > after + 1);
            prop_assert!(found.len() <= max_events);
            prop_assert!(found.len() <= max_bytes.div_ceil(10).max(1));
            let has_progress = merged.is_complete || !found.is_empty() || first_seq > after + 1;
            prop_assert!(has_progress);
        }
    }
}
