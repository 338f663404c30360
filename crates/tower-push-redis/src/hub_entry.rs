//! The events of a hub as entries of a stream.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tower_push::{
    Gap,
    event::Topic,
    source::{
        TopicSet,
        hub::{HubEvent, HubWriter, MemberListUpdater, MemberSnapshot},
        relay::PushError,
    },
};
use tower_push_proto::read_sizer::ReadSizer;

use crate::{
    connector::Connector,
    error::Error,
    reader_status::ReaderMetrics,
    redis_presence::read_members,
    stream_entry::{Fields, StreamEntry, TOPIC, fields_with_topics},
    stream_reader::EntrySink,
};

/// The field with the sender whose own subscriptions do not get the event.
const EXCEPT: &str = "except";

/// The field of an event without history, with the value [`NO_HISTORY`].
const HISTORY: &str = "history";
const NO_HISTORY: &str = "no";

/// The field with the topic whose list of members the event changes.
const MEMBERS: &str = "members";

/// The maximum number of topics of one event. If another program has added an entry with more topics, the further topics are not used.
pub(crate) const MAX_TOPICS: usize = 1024;

/// Returns the fields of the entry for an event of a hub.
pub(crate) fn fields_of_hub_event(event: &HubEvent) -> Fields {
    let topics = event.topics().iter().map(Topic::as_str);
    let mut fields = fields_with_topics(event.event(), topics);
    if let Some(sender) = event.excluded_sender() {
        fields.push((EXCEPT.into(), sender.into()));
    }
    if !event.has_history() {
        fields.push((HISTORY.into(), NO_HISTORY.into()));
    }
    if let Some(topic) = event.members_topic() {
        fields.push((MEMBERS.into(), topic.as_str().into()));
    }
    fields
}

impl StreamEntry {
    /// Returns the entry as an event of a hub. An entry without a valid topic has no topics: it reaches no client.
    pub(crate) fn to_hub_event(&self) -> HubEvent {
        let topic = |value| Topic::new(std::str::from_utf8(value).ok()?).ok();
        let topics = self.values_of(TOPIC).filter_map(topic).take(MAX_TOPICS);
        let event = HubEvent::new(TopicSet::new(topics), self.to_event());
        let sender = self.values_of(EXCEPT).next();
        let event = match sender.and_then(|sender| std::str::from_utf8(sender).ok()) {
            Some(sender) => event.except(sender),
            None => event,
        };
        let members = self.values_of(MEMBERS).find_map(topic);
        let event = match members {
            Some(topic) => event.changing_members_of(topic),
            None => event,
        };
        match self.values_of(HISTORY).next() == Some(NO_HISTORY.as_bytes()) {
            true => event.without_history(),
            false => event,
        }
    }
}

/// The writer of a hub, into which the reader of the stream pushes.
pub(crate) struct HubSink {
    writer: HubWriter,
    member_list: MemberListUpdater<Error>,
    member_sizer: Arc<ReadSizer>,
}

impl HubSink {
    /// Creates the sink of a new hub. `member_sizer` has the sizes of the reads of members, of which the first one is made before this call.
    pub(crate) fn new(
        writer: HubWriter,
        member_sizer: Arc<ReadSizer>,
        metrics: Arc<ReaderMetrics>,
    ) -> Self {
        Self {
            writer,
            member_list: MemberListUpdater::new(metrics),
            member_sizer,
        }
    }

    /// Reads the list of members. The outer error means that Redis is not available, the inner one that Redis refuses the read.
    async fn read_members(
        &self,
        connector: &Connector,
        connection: &mut MultiplexedConnection,
    ) -> Result<Result<MemberSnapshot, Error>, Error> {
        match read_members(connector, connection, &self.member_sizer).await {
            Err(error) if error.is_unavailable() => Err(error),
            result => Ok(result),
        }
    }
}

impl EntrySink for HubSink {
    fn push_entry(&mut self, entry: &StreamEntry) {
        let pushed = self.writer.push(entry.to_hub_event());
        // Each entry has an id of its own, so an id that the hub has is the id of the same entry.
        debug_assert!(matches!(pushed, Ok(()) | Err(PushError::DuplicateId)));
    }

    async fn before_gap(
        &mut self,
        connector: &Connector,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        // Events do not wait for members that Redis refuses to read.
        let read = self.read_members(connector, connection).await?;
        self.member_list.finish_read(&mut self.writer, read);
        Ok(())
    }

    async fn after_read(
        &mut self,
        connector: &Connector,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        if self.member_list.must_read_again(&self.writer) {
            let read = self.read_members(connector, connection).await?;
            self.member_list.finish_reread(&mut self.writer, read);
        }
        Ok(())
    }

    fn gap(&mut self, gap: &Gap) {
        self.writer.gap(gap);
    }
}

#[cfg(test)]
mod tests {
    use tower_push::Event;

    use super::*;
    use crate::entry_id::EntryId;

    fn read(fields: Fields) -> HubEvent {
        StreamEntry::new(EntryId { ms: 7, seq: 0 }, fields).to_hub_event()
    }

    #[test]
    fn hub_event_comes_back_from_its_entry() {
        let topics = TopicSet::try_from(["orders/42", "orders"]).unwrap();
        let event = Event::json_text("[1]").unwrap().with_topic("not used");
        let event = event.unwrap().with_type("shipped").unwrap();
        let plain = HubEvent::new(topics, event);
        for event in [
            plain.clone(),
            plain
                .clone()
                .changing_members_of(Topic::new("orders/42").unwrap()),
            plain.clone().except("tab 7"),
            plain.without_history(),
        ] {
            let read = read(fields_of_hub_event(&event));
            assert_eq!(read.topics(), event.topics());
            assert_eq!(read.event().payload(), event.event().payload());
            assert_eq!(read.event().event_type(), event.event().event_type());
            assert_eq!(read.excluded_sender(), event.excluded_sender());
            assert_eq!(read.has_history(), event.has_history());
            assert_eq!(read.members_topic(), event.members_topic());
        }
    }

    #[test]
    fn entry_of_other_program_has_valid_topics() {
        let field = |name: &str, value: &[u8]| (name.into(), value.to_vec());
        let event = read(vec![
            field("topic", b"news"),
            field("data", b"x"),
            field("topic", b"two\nlines"),
            field("topic", b"sport"),
            field("topic", &[0xff]),
            field("except", &[0xff]),
            field("history", b"yes"),
        ]);
        assert_eq!(
            event.topics(),
            &TopicSet::try_from(["news", "sport"]).unwrap()
        );
        assert_eq!((event.excluded_sender(), event.has_history()), (None, true));
        assert_eq!(event.event().payload().as_text(), Some("x"));
        assert!(read(vec![field("data", b"x")]).topics().is_empty());
        let many = (0..2000).map(|number| field("topic", number.to_string().as_bytes()));
        assert_eq!(read(many.collect()).topics().len(), MAX_TOPICS);
    }
}
