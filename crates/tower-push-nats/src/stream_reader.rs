use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tower_push::{Gap, GapReason, source::relay::EventSink};
use tower_push_proto::{feed_backoff::FeedBackoff, fingerprint::Fingerprint};

use crate::{
    api_response::StreamInfo,
    consumer_reader::{ConsumerReader, Delivery},
    error::Error,
    reader_status::ReaderMetrics,
    stream_api::StreamApi,
    stream_continuity::{InitialEntriesLimits, StreamContinuity, check_continuity},
    stream_cursor::StreamCursor,
    stream_message::StreamMessage,
    subject_mapping::SubjectMapping,
};

/// The destination of the messages that a [`StreamReader`] reads: any [`EventSink`], or the writer of a hub.
pub(crate) trait MessageSink: Send + 'static {
    /// Appends the event of a message of the stream with the fingerprint `stream`. Messages come in the order of the stream, each once.
    fn push_message(
        &mut self,
        message: &StreamMessage,
        stream: Fingerprint,
        subjects: &SubjectMapping,
    );

    /// Prepares a gap. If this fails, the reader tries again later.
    fn before_gap(&mut self) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Announces that messages are missing after the last one.
    fn gap(&mut self, gap: &Gap);

    /// Reads what the sink could not read before a gap, if it is time to try again. The sink has all messages that the reader has read.
    fn after_read(&mut self) -> impl Future<Output = Result<(), Error>> + Send {
        std::future::ready(Ok(()))
    }
}

impl<S: EventSink> MessageSink for S {
    fn push_message(
        &mut self,
        message: &StreamMessage,
        stream: Fingerprint,
        subjects: &SubjectMapping,
    ) {
        self.push(message.to_event(stream, subjects));
    }

    fn gap(&mut self, gap: &Gap) {
        EventSink::gap(self, gap);
    }
}

/// The one reader of a stream in this process: it pushes every message into a sink, in order.
///
/// # Invariant: no hole and no duplicate
/// The sink has every message up to `position`, except where a gap was announced. Sequence numbers of a stream have no holes, so a number that is
/// left out is a message that was removed. The reader compares the position with the stream after it has created a consumer, and a stream that
/// is deleted takes its consumers with it. So all messages of a consumer are of the stream that `position` names.
///
/// # Messages that the NATS client cannot read
/// The NATS client closes its connection at a message whose headers it cannot parse, and ends at some, each time that a consumer delivers the
/// message. So after a consumer has failed, the reader reads the next message from the stream's leader, which returns it in another form, and
/// the next consumer begins behind this message. While consumers deliver nothing, the reader reads twice as many messages in this way.
pub(crate) struct StreamReader<S> {
    api: Arc<StreamApi>,
    sink: S,
    /// The last message that was read, or the sequence number before the first one.
    position: StreamCursor,
    /// The sequence numbers and fingerprints of the messages that were read last. With these numbers, the reader finds the position at which to
    /// continue after a server has lost the newest messages.
    recent: VecDeque<(u64, Fingerprint)>,
    limits: InitialEntriesLimits,
    metrics: Arc<ReaderMetrics>,
    backoff: FeedBackoff,
    /// The sequence number before the messages of the last consumer.
    consumer_start: u64,
    /// The number of messages to read from the leader before the next consumer is created.
    leader_messages: usize,
    stall: StallDetector,
}

/// The interval of comparisons of the position with the stream.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The time after which a loss of messages is checked again. The reader checks again because a new leader of a stream may not have applied all
/// messages yet.
pub(crate) const LOSS_CONFIRMATION_TIME: Duration = Duration::from_millis(250);

/// The maximum number of messages that are read from the leader before a consumer is created, and the number of bytes after which no more are
/// read.
const MAX_LEADER_MESSAGES: usize = 64;
const MAX_LEADER_BYTES: usize = 4 << 20;

/// While the log is filled, the next message is read from the leader, then two, then four, even if there is no time to wait for the server.
const MAX_FIRST_LEADER_MESSAGES: usize = 4;

/// The number of messages in `recent`.
const MAX_RECENT: usize = 512;

impl<S: MessageSink> StreamReader<S> {
    /// Creates a reader that passes the messages after `position` to `sink`.
    pub(crate) fn new(
        api: Arc<StreamApi>,
        sink: S,
        position: StreamCursor,
        limits: InitialEntriesLimits,
        metrics: Arc<ReaderMetrics>,
    ) -> Self {
        let sequence = position.sequence;
        metrics.set_position(sequence);
        Self {
            api,
            sink,
            position,
            recent: VecDeque::new(),
            limits,
            metrics,
            backoff: FeedBackoff::default(),
            consumer_start: sequence,
            leader_messages: 0,
            stall: StallDetector::default(),
        }
    }

    /// Pushes the messages that the stream has now. While the server is not available, tries again until `ends_at`. Returns the consumer with
    /// which the reader goes on.
    pub(crate) async fn fill_log_until(
        &mut self,
        ends_at: Instant,
    ) -> Result<ConsumerReader, Error> {
        loop {
            let (error, may_be_unreadable) = match self.open_consumer().await {
                Ok((consumer, pending)) => match self.read_pending(consumer, pending).await {
                    Ok(consumer) => return Ok(consumer),
                    Err(error) => {
                        self.after_failed_consumer();
                        (error, self.leader_messages <= MAX_FIRST_LEADER_MESSAGES)
                    }
                },
                Err(error) => (error, false),
            };
            let may_retry = may_be_unreadable || Instant::now() < ends_at;
            if !may_retry || !error.is_unavailable() {
                return Err(error);
            }
            sleep(self.backoff.next_delay()).await;
            self.api.connection.wait_until_connected_or_timeout().await;
        }
    }

    /// Reads the number `pending` of messages from a new consumer.
    async fn read_pending(
        &mut self,
        mut consumer: ConsumerReader,
        mut pending: u64,
    ) -> Result<ConsumerReader, Error> {
        while pending > 0 {
            match consumer.next().await? {
                Delivery::Message(delivered) => {
                    pending = (pending - 1).min(delivered.pending);
                    self.push(&delivered.message).await?;
                }
                Delivery::RequestEnded => {}
                // The pending messages were removed from the stream meanwhile.
                Delivery::Heartbeat => break,
            }
        }
        Ok(consumer)
    }

    /// Follows the stream until this future is dropped, first with `consumer` and later with new ones.
    pub(crate) async fn run(mut self, mut consumer: ConsumerReader) {
        loop {
            let mut error = self.follow(consumer).await;
            self.after_failed_consumer();
            consumer = loop {
                self.metrics.record_error(error);
                sleep(self.backoff.next_delay()).await;
                self.api.connection.wait_until_connected_or_timeout().await;
                match self.open_consumer().await {
                    Ok((consumer, _)) => break consumer,
                    Err(again) => error = again,
                }
            };
            self.metrics.add_reconnect();
        }
    }

    /// Reads from one consumer until it fails.
    async fn follow(&mut self, mut consumer: ConsumerReader) -> Error {
        let mut check_at = Instant::now() + CHECK_INTERVAL;
        self.stall = StallDetector::default();
        loop {
            // Whether the consumer lives, or has nothing to deliver.
            let mut has_answer = true;
            match timeout_at(check_at, consumer.next()).await {
                Ok(Ok(Delivery::Message(delivered))) => {
                    if let Err(error) = self.push(&delivered.message).await {
                        return error;
                    }
                }
                Ok(Ok(Delivery::Heartbeat)) => {}
                // Requests that end without a message are no progress.
                Ok(Ok(Delivery::RequestEnded)) | Err(_) => has_answer = false,
                Ok(Err(error)) => return error,
            }
            if Instant::now() >= check_at {
                match self.check_stream().await {
                    Ok(is_at_end) => has_answer |= is_at_end,
                    Err(error) => return error,
                }
                check_at = Instant::now() + CHECK_INTERVAL;
            }
            if let Err(error) = self.sink.after_read().await {
                return error;
            }
            if has_answer {
                self.metrics.record_answer();
                self.backoff = FeedBackoff::default();
            }
        }
    }

    /// Prepares the next consumer after one has failed, perhaps at a message that the NATS client cannot read.
    fn after_failed_consumer(&mut self) {
        let has_delivered = self.position.sequence != self.consumer_start;
        self.leader_messages = match has_delivered {
            true => 1,
            false => (self.leader_messages * 2).clamp(1, MAX_LEADER_MESSAGES),
        };
    }

    /// Checks that the stream is still the one that the position names, and that the consumer delivers its messages. Returns whether the position is
    /// at the end of the stream.
    async fn check_stream(&mut self) -> Result<bool, Error> {
        let info = self.api.info().await?;
        match check_continuity(self.position, info.fingerprint(), info.state, None) {
            StreamContinuity::Intact => {}
            StreamContinuity::Rewound | StreamContinuity::Replaced => {
                return Err(Error::unavailable("the stream was replaced"));
            }
        }
        let position = self.position.sequence;
        if !self.stall.check(position, info.state.last_seq) {
            return Ok(position == info.state.last_seq);
        }
        // The last messages may have been removed before the consumer could deliver them.
        match self.api.first_message_from(position + 1, ">").await? {
            Some(_) => Err(Error::unavailable("the consumer delivers no messages")),
            None => Ok(true),
        }
    }

    /// Announces a gap if the stream is not the one that the position names, and then creates a consumer of the messages after the position. Also
    /// returns the number of messages that are already waiting for the consumer.
    async fn open_consumer(&mut self) -> Result<(ConsumerReader, u64), Error> {
        let info = self.api.info_or_create().await?;
        match self.compare_with_stream(&info).await? {
            StreamContinuity::Intact => {}
            StreamContinuity::Rewound => {
                sleep(LOSS_CONFIRMATION_TIME).await;
                let info = self.api.info_or_create().await?;
                if self.compare_with_stream(&info).await? == StreamContinuity::Rewound {
                    self.resume_after_loss(&info).await?;
                }
            }
            StreamContinuity::Replaced => {
                let start = log_start_cursor(&self.api, &info, self.limits).await?;
                self.restart_with_gap(start).await?;
                self.recent.clear();
            }
        }
        // `position` is not beyond the end of the stream: the server would accept such a sequence number, and skip the messages before it.
        let messages = self.read_from_leader().await?;
        let last = messages
            .last()
            .map_or(self.position.sequence, |last| last.sequence);
        let consumer = self.api.create_consumer(last + 1).await?;
        let reader = ConsumerReader::new(self.api.clone(), &consumer).await?;
        let info = self.api.info().await?;
        match self.compare_with_stream(&info).await? {
            StreamContinuity::Intact => {
                for message in &messages {
                    self.push(message).await?;
                }
                self.consumer_start = self.position.sequence;
                Ok((reader, consumer.num_pending))
            }
            // The reader tries again after this error, and then announces the gap.
            _ => Err(Error::unavailable("the stream was replaced")),
        }
    }

    /// Reads the messages after the position that the next consumer does not deliver.
    async fn read_from_leader(&mut self) -> Result<Vec<StreamMessage>, Error> {
        let (mut messages, mut bytes) = (Vec::new(), 0);
        let mut from = self.position.sequence + 1;
        while messages.len() < self.leader_messages && bytes < MAX_LEADER_BYTES {
            let Some(message) = self.api.first_message_from(from, ">").await? else {
                break;
            };
            from = message.sequence + 1;
            bytes += message.byte_len();
            messages.push(message);
        }
        Ok(messages)
    }

    async fn compare_with_stream(&mut self, info: &StreamInfo) -> Result<StreamContinuity, Error> {
        let message = self.api.message_at(self.position.sequence).await?;
        let message = message.map(|message| message.fingerprint);
        let stream = info.fingerprint();
        Ok(check_continuity(self.position, stream, info.state, message))
    }

    /// Announces a gap, and continues after the newest message that the reader has read and that the stream still has.
    async fn resume_after_loss(&mut self, info: &StreamInfo) -> Result<(), Error> {
        // The lost messages are the newest ones, so a binary search finds the first of them.
        let (mut kept, mut lost) = (0, self.recent.len());
        while kept < lost {
            let middle = kept.midpoint(lost);
            let (sequence, fingerprint) = self.recent[middle];
            let is_lost = sequence > info.state.last_seq || {
                let found = self.api.message_at(sequence).await?;
                found.is_some_and(|found| found.fingerprint != fingerprint)
            };
            match is_lost {
                true => lost = middle,
                false => kept = middle + 1,
            }
        }
        let oldest = self.recent.front().map(|(sequence, _)| *sequence);
        let last_kept = kept.checked_sub(1).map(|last| self.recent[last]);
        let start = match last_kept {
            Some((sequence, fingerprint)) => StreamCursor {
                sequence,
                stream: info.fingerprint(),
                message: Some(fingerprint),
            },
            None => {
                let start = log_start_cursor(&self.api, info, self.limits).await?;
                // Even the oldest recent message is lost. Clients have got the messages before it.
                let first_new = oldest.map_or(0, |oldest| oldest.saturating_sub(1));
                match first_new.min(info.state.last_seq) {
                    sequence if sequence > start.sequence => {
                        cursor_at_sequence(&self.api, sequence, info.fingerprint()).await?
                    }
                    _ => start,
                }
            }
        };
        self.restart_with_gap(start).await?;
        self.recent.truncate(kept);
        Ok(())
    }

    /// Announces that the stream is not the one that was read, and continues at `start`.
    async fn restart_with_gap(&mut self, start: StreamCursor) -> Result<(), Error> {
        self.sink.before_gap().await?;
        self.metrics.add_replaced();
        let gap = Gap::new(GapReason::Epoch).resumed(start.to_event_id());
        self.sink.gap(&gap);
        self.set_position(start);
        Ok(())
    }

    /// Announces a gap if the messages before `message` were removed, and pushes `message`.
    async fn push(&mut self, message: &StreamMessage) -> Result<(), Error> {
        let stream = self.position.stream;
        let missed = message.sequence.saturating_sub(self.position.sequence + 1);
        if missed > 0 {
            self.sink.before_gap().await?;
            self.metrics.add_trimmed();
            let before = StreamCursor {
                sequence: message.sequence - 1,
                stream,
                message: None,
            };
            let gap = Gap::new(GapReason::Expired).missed(missed);
            self.sink.gap(&gap.resumed(before.to_event_id()));
        }
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent
            .push_back((message.sequence, message.fingerprint));
        self.sink.push_message(message, stream, &self.api.subjects);
        self.metrics.add_read(1);
        self.set_position(message.cursor(stream));
        Ok(())
    }

    fn set_position(&mut self, position: StreamCursor) {
        self.position = position;
        let sequence = position.sequence;
        self.metrics.set_position(sequence);
    }
}

/// Notices that a consumer delivers nothing although the stream has messages for it.
#[derive(Debug, Default)]
struct StallDetector {
    /// The position at the last check, if there were messages after it.
    behind_at: Option<u64>,
    /// The number of checks in a row that have found no progress since the check before.
    checks: u32,
}

impl StallDetector {
    /// The number of checks without progress after which a consumer is replaced. It leaves a large message on a slow link the time that
    /// [`ConsumerReader`] leaves it.
    const MAX_CHECKS: u32 = 2;

    /// Compares the position with the end of the stream. Returns whether there are messages after the position, and there was no progress for too long.
    fn check(&mut self, position: u64, last: u64) -> bool {
        let was_behind = self.behind_at == Some(position);
        self.checks = if was_behind { self.checks + 1 } else { 0 };
        self.behind_at = (last > position).then_some(position);
        self.checks >= Self::MAX_CHECKS
    }
}

/// Returns the position before the newest messages, with which a log begins.
pub(crate) async fn log_start_cursor(
    api: &StreamApi,
    info: &StreamInfo,
    limits: InitialEntriesLimits,
) -> Result<StreamCursor, Error> {
    cursor_at_sequence(api, limits.start_sequence(info.state), info.fingerprint()).await
}

/// Returns the position after a sequence number.
async fn cursor_at_sequence(
    api: &StreamApi,
    sequence: u64,
    stream: Fingerprint,
) -> Result<StreamCursor, Error> {
    let message = api.message_at(sequence).await?;
    Ok(StreamCursor {
        sequence,
        stream,
        message: message.map(|message| message.fingerprint),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stall_is_noticed() {
        let mut stall = StallDetector::default();
        // The position is at the end of the stream, or follows it.
        let following = [(5, 5), (5, 5), (5, 5), (5, 9), (6, 9), (8, 20), (8, 20)];
        for (position, last) in following {
            assert!(!stall.check(position, last), "{position} of {last}");
        }
        assert!(stall.check(8, 30));
        assert!(stall.check(8, 30));
        assert!(!stall.check(9, 30));
        assert!(!stall.check(9, 30));
        assert!(stall.check(9, 30));
    }
}
