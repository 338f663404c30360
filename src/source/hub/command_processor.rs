use std::{
    future::Future,
    pin::Pin,
    slice,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use http::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    PublishOptions,
    backend_resume::BackendResumeTopics,
    client_command::{ClientCommand, CommandAction},
    client_topics::{AllowedTopics, Authorizer, MAX_DECISIONS},
    control_events,
    hub_reader::HubReader,
    hub_state::RequestedTopic,
    reader_request::{AllowedTopic, topic_start},
    requested_topics::Topics,
    revocable_subscriptions::StaleAccessDecision,
    subscribed_topics::SubscribedTopics,
    topic_log::TopicStart,
    topic_or_pattern::TopicOrPattern,
};
use crate::{
    Error,
    event::{Event, EventId, Gap, GapReason, Item, Topic},
    source::{ClientMessages, Rejection, StartPosition, Subscription, TopicSet},
};

/// The settings for the commands that a source accepts from its clients' WebSockets: see
/// [`ClientTopicsSource::commands`](super::ClientTopicsSource::commands).
///
/// ```
/// use tower_push::source::hub::HubCommands;
///
/// let commands = HubCommands::new().max_rate(5);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct HubCommands {
    max_rate: u32,
}

impl HubCommands {
    /// Accepts 20 commands in a second. Commands subscribe to a topic, end a subscription, or publish.
    pub fn new() -> Self {
        Self { max_rate: 20 }
    }

    /// Sets the number of commands that a client may send in a second. The default is 20. Further commands are refused in-band, with the
    /// status 429.
    pub fn max_rate(mut self, commands: u32) -> Self {
        self.max_rate = commands;
        self
    }
}

impl Default for HubCommands {
    fn default() -> Self {
        Self::new()
    }
}

/// Executes the commands of one client, one after another.
pub(super) struct CommandProcessor {
    messages: ClientMessages,
    subscription: Subscription,
    authorizer: Authorizer,
    topics: Topics,
    /// The position at which the client begins in a topic for which it has no cursor.
    first_start: StartPosition,
    rate_limiter: RateLimiter,
    subscribed: SubscribedTopics,
    pending: Option<PendingCommand>,
    /// A subscription that waits until the reader has read its earlier topics from the broker.
    delayed: Option<ClientCommand>,
}

/// A command that waits for a decision about the client's access, or for the hub's broker.
type PendingCommand = Pin<Box<dyn Future<Output = AwaitedAnswer> + Send>>;

/// The answer that a command has waited for.
enum AwaitedAnswer {
    /// The decision about the command's topic or pattern.
    Decided(CommandDecision),
    /// The answer of the hub's broker to the command's event.
    Published {
        topic: Topic,
        reference: Option<Value>,
        result: Result<EventId, Error>,
    },
}

/// The decision about the topic or pattern of a command.
struct CommandDecision {
    command: ClientCommand,
    /// The number of revocations before the decision.
    decided_after: u64,
    /// The number of decisions about the command so far.
    decisions: usize,
    decision: Result<AllowedTopics, Rejection>,
}

/// Counts the commands in each second.
struct RateLimiter {
    max_rate: u32,
    second_start: Instant,
    count: u32,
}

/// The maximum number of commands that are executed in one poll, so that the poll also reaches the client's events and other tasks can run.
const MAX_COMMANDS_PER_POLL: usize = 16;

impl CommandProcessor {
    pub(super) fn new(
        messages: ClientMessages,
        subscription: Subscription,
        authorizer: Authorizer,
        topics: Topics,
        first_start: StartPosition,
        subscribed: SubscribedTopics,
        commands: &HubCommands,
    ) -> Self {
        Self {
            messages,
            subscription,
            authorizer,
            topics,
            first_start,
            rate_limiter: RateLimiter {
                max_rate: commands.max_rate,
                second_start: Instant::now(),
                count: 0,
            },
            subscribed,
            pending: None,
            delayed: None,
        }
    }

    /// Executes the commands that have arrived. Is ready when the client sends no more messages.
    pub(super) fn poll_commands(
        &mut self,
        reader: &mut HubReader,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        for _ in 0..MAX_COMMANDS_PER_POLL {
            if let Some(pending) = &mut self.pending {
                let answer = ready!(pending.as_mut().poll(cx));
                self.pending = None;
                self.finish(answer, reader);
                continue;
            }
            if let Some(command) = self.delayed.take_if(|_| !reader.is_resuming_from_broker()) {
                self.begin(command, reader);
                continue;
            }
            if self.delayed.is_some() {
                // The reader wakes the task at the end of the resume.
                return Poll::Pending;
            }
            let Some(message) = ready!(Pin::new(&mut self.messages).poll_next(cx)) else {
                return Poll::Ready(());
            };
            if !self.rate_limiter.admits(Instant::now()) {
                let too_many = Rejection::new(StatusCode::TOO_MANY_REQUESTS);
                reader.push_answer(control_events::refused(None, &too_many, None));
                continue;
            }
            match ClientCommand::parse(&message) {
                // One resume from the broker runs at a time, and at the end of one at the connection, the reader begins at another position.
                Ok(command) if command.subscribes() => self.delayed = Some(command),
                Ok(command) => self.begin(command, reader),
                Err(invalid) => {
                    let answer =
                        control_events::refused(None, &invalid.rejection, invalid.reference);
                    reader.push_answer(answer);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Continues the command that has waited for `answer`.
    fn finish(&mut self, answer: AwaitedAnswer, reader: &mut HubReader) {
        match answer {
            AwaitedAnswer::Decided(decision) => self.execute(decision, reader),
            AwaitedAnswer::Published {
                topic,
                reference,
                result,
            } => answer_publication(topic, result, reference, reader),
        }
    }

    /// Executes a command, or begins to ask whether the client may do it.
    fn begin(&mut self, command: ClientCommand, reader: &mut HubReader) {
        let requested = &command.requested;
        match &command.action {
            CommandAction::Unsubscribe => self.unsubscribe(command, reader),
            CommandAction::Subscribe { .. } if self.subscribed.contains(requested) => {
                let answer = control_events::subscribed(requested, command.reference);
                reader.push_answer(answer);
            }
            CommandAction::Subscribe { .. } => {
                match self.subscribed.check_room(requested, &self.topics) {
                    Ok(()) => self.decide(command, 0, reader),
                    Err(message) => {
                        let rejection = Rejection::new(StatusCode::BAD_REQUEST).message(message);
                        refuse(reader, requested, &rejection, command.reference);
                    }
                }
            }
            CommandAction::Publish { .. } => self.decide(command, 0, reader),
        }
    }

    fn unsubscribe(&mut self, command: ClientCommand, reader: &mut HubReader) {
        let requested = command.requested;
        self.subscribed.remove(&requested);
        let lost_topics = match &requested {
            TopicOrPattern::Topic(topic) => {
                reader.remove_topic(topic);
                Vec::new()
            }
            TopicOrPattern::Pattern(pattern) => reader.remove_pattern(pattern, &self.subscribed),
        };
        reader.push_answer(control_events::unsubscribed(&requested, command.reference));
        for (topic, error) in lost_topics {
            reader.remove_topic(&topic);
            let topic = TopicOrPattern::Topic(topic);
            self.subscribed.remove(&topic);
            refuse(reader, &topic, &error.into(), None);
        }
    }

    /// Begins to ask whether the client may do what the command says. Refuses the command after too many `earlier_decisions`, which access that was
    /// revoked in the meantime has made stale.
    fn decide(&mut self, command: ClientCommand, earlier_decisions: usize, reader: &mut HubReader) {
        if earlier_decisions == MAX_DECISIONS {
            let rejection = Rejection::new(StatusCode::SERVICE_UNAVAILABLE);
            let rejection = rejection.message("access to topics is being revoked");
            return refuse(reader, &command.requested, &rejection, command.reference);
        }
        let (authorizer, subscription) = (self.authorizer.clone(), self.subscription.clone());
        let decided_after = reader.hub().revocable_subscriptions.count();
        self.pending = Some(Box::pin(async move {
            let requested = slice::from_ref(&command.requested);
            let decision = authorizer.authorize(&subscription, requested).await;
            AwaitedAnswer::Decided(CommandDecision {
                command,
                decided_after,
                decisions: earlier_decisions + 1,
                decision,
            })
        }));
    }

    /// Executes a command after the decision about its topic or pattern.
    fn execute(&mut self, decision: CommandDecision, reader: &mut HubReader) {
        let CommandDecision {
            command,
            decided_after,
            decisions,
            decision,
        } = decision;
        let requested = &command.requested;
        let allowed = decision.and_then(|mut allowed| match allowed.refused.pop() {
            Some((_, rejection)) => Err(rejection),
            None => Ok(allowed),
        });
        let mut allowed = match allowed {
            Ok(allowed) => allowed,
            Err(rejection) => return refuse(reader, requested, &rejection, command.reference),
        };
        match &command.action {
            CommandAction::Publish { .. } if allowed.publishable.is_empty() => {
                let rejection = StatusCode::FORBIDDEN.into();
                refuse(reader, requested, &rejection, command.reference);
            }
            // Access may have been revoked while the decision was made.
            CommandAction::Publish { .. }
                if reader.hub().revocable_subscriptions.count() != decided_after =>
            {
                self.decide(command, decisions, reader);
            }
            CommandAction::Publish { .. } => self.pending = publish(command, reader),
            CommandAction::Unsubscribe => {}
            CommandAction::Subscribe { .. } => {
                let member = allowed.members.pop().and_then(|(_, key)| key);
                match reader.register_access(requested.clone(), member, decided_after) {
                    Ok(()) => self.subscribe(command, &allowed, reader),
                    Err(StaleAccessDecision) => self.decide(command, decisions, reader),
                }
            }
        }
    }

    /// Subscribes the client to the one topic or the one pattern in `allowed`.
    fn subscribe(
        &mut self,
        command: ClientCommand,
        allowed: &AllowedTopics,
        reader: &mut HubReader,
    ) {
        let ClientCommand {
            requested,
            action,
            reference,
        } = command;
        let cursor = match action {
            CommandAction::Subscribe { cursor } => cursor,
            CommandAction::Unsubscribe | CommandAction::Publish { .. } => None,
        };
        let position = cursor.as_ref().and_then(|id| reader.hub().position_of(id));
        if let Some(cursor) = &cursor {
            match begin_resume(cursor, position, allowed, reader) {
                Ok(true) => {
                    reader.push_answer(control_events::subscribed(&requested, reference));
                    self.subscribed.insert(requested);
                    return;
                }
                Ok(false) => {}
                Err(rejection) => return undo(&requested, &rejection, reference, reader),
            }
        }
        let start = match &cursor {
            Some(id) => topic_start(&StartPosition::After(id.clone()), position),
            None => topic_start(&self.first_start, None),
        };
        let joined = match (&*allowed.topics, &*allowed.patterns) {
            ([topic, ..], _) => {
                join_topic(topic, start, cursor.as_ref(), position.is_none(), reader)
            }
            ([], [pattern, ..]) => {
                let request = pattern.join_request(start);
                let joined = reader.join_pattern(&request, cursor.as_ref());
                joined.map(|()| None).map_err(Rejection::from)
            }
            ([], []) => return,
        };
        let members = match joined {
            Ok(members) => members,
            Err(rejection) => return undo(&requested, &rejection, reference, reader),
        };
        // The list of members precedes the answer, so that a client that has the answer has the list.
        if let Some(members) = members {
            reader.push_answer(members);
        }
        reader.push_answer(control_events::subscribed(&requested, reference));
        if let (Some(id), None) = (cursor, position) {
            let mut gap = Gap::new(GapReason::Epoch).requested(id);
            if let TopicOrPattern::Topic(topic) = &requested {
                gap = gap.topic(topic.clone());
            }
            reader.push_answer_item(Item::from(gap));
        }
        self.subscribed.insert(requested);
    }
}

/// Begins to read the one topic or the one pattern in `allowed` from the hub's broker. Returns `false` if the client reads the hub's logs.
fn begin_resume(
    cursor: &EventId,
    position: Option<u64>,
    allowed: &AllowedTopics,
    reader: &mut HubReader,
) -> Result<bool, Rejection> {
    let (topic, pattern) = (allowed.topics.first(), allowed.patterns.first());
    let topic_limit = topic.and_then(|allowed| allowed.max_history);
    let pattern_limit = pattern.and_then(|allowed| allowed.max_history);
    if topic_limit.or(pattern_limit).is_some() {
        // A page may have too many events.
        return Ok(false);
    }
    let topics = topic.iter().map(|allowed| allowed.topic.clone());
    let patterns = pattern.iter().map(|allowed| allowed.pattern.clone());
    let resumed = BackendResumeTopics {
        cursor: cursor.clone(),
        later_cursor: None,
        topics: topics.collect(),
        patterns: patterns.collect(),
        excluded_topics: Vec::new(),
    };
    if !reader.begin_resume_of_added(resumed, position)? {
        return Ok(false);
    }
    if let Some(topic) = topic {
        if topic.presence.lists_members {
            reader.add_listed_topic(&topic.topic);
        }
        reader.enter_as_member(topic.presence_member().into_iter().collect())?;
    }
    Ok(true)
}

/// Joins a topic, and makes the client its member if its access says so. Returns the list of members if the client gets one.
fn join_topic(
    allowed: &AllowedTopic,
    start: TopicStart,
    cursor: Option<&EventId>,
    is_new: bool,
    reader: &mut HubReader,
) -> Result<Option<Event>, Rejection> {
    let request = RequestedTopic {
        topic: allowed.topic.clone(),
        start,
        max_history: allowed.max_history,
    };
    let members = reader.join_topic(&request, cursor, &allowed.presence, is_new)?;
    reader.enter_as_member(allowed.presence_member().into_iter().collect())?;
    Ok(members)
}

/// Publishes the event of a command. Returns the command if it waits for the hub's broker.
fn publish(command: ClientCommand, reader: &mut HubReader) -> Option<PendingCommand> {
    let CommandAction::Publish {
        event,
        idempotency_key,
        has_echo,
    } = command.action
    else {
        return None;
    };
    let TopicOrPattern::Topic(topic) = command.requested else {
        return None;
    };
    let mut options = PublishOptions::new();
    if let Some(key) = idempotency_key {
        options = options.idempotency_key(key);
    }
    if let Some(sender) = reader.sender().filter(|_| !has_echo) {
        options = options.except(sender.clone());
    }
    let (reference, hub) = (command.reference, reader.hub().clone());
    if hub.broker().is_none() {
        let id = hub.publish(slice::from_ref(&topic), event, &options);
        answer_publication(topic, Ok(id), reference, reader);
        return None;
    }
    Some(Box::pin(async move {
        let topics = TopicSet::from(&topic);
        let result = hub.publish_and_wait(topics, event, &options).await;
        AwaitedAnswer::Published {
            topic,
            reference,
            result,
        }
    }))
}

fn answer_publication(
    topic: Topic,
    result: Result<EventId, Error>,
    reference: Option<Value>,
    reader: &mut HubReader,
) {
    match result {
        Ok(id) => reader.push_answer(control_events::published(&topic, &id, reference)),
        Err(error) => {
            let rejection = Rejection::from(&error);
            let topic = TopicOrPattern::Topic(topic);
            refuse(reader, &topic, &rejection, reference);
        }
    }
}

/// Refuses a subscription that has begun.
fn undo(
    requested: &TopicOrPattern,
    rejection: &Rejection,
    reference: Option<Value>,
    reader: &mut HubReader,
) {
    match requested {
        TopicOrPattern::Topic(topic) => reader.remove_topic(topic),
        TopicOrPattern::Pattern(pattern) => reader.deregister_pattern_access(pattern),
    }
    refuse(reader, requested, rejection, reference);
}

fn refuse(
    reader: &mut HubReader,
    requested: &TopicOrPattern,
    rejection: &Rejection,
    reference: Option<Value>,
) {
    let answer = control_events::refused(Some(requested), rejection, reference);
    reader.push_answer(answer);
}

impl RateLimiter {
    fn admits(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.second_start) >= Duration::from_secs(1) {
            (self.second_start, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= self.max_rate
    }
}
