use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::StatusCode;

#[cfg(feature = "json")]
use super::{
    command_processor::{CommandProcessor, HubCommands},
    control_events,
};
use super::{
    hub_state::HubState,
    hub_subscriber::HubSubscriber,
    reader_request::{AllowedPattern, AllowedTopic, ReaderRequest},
    requested_topics::Topics,
    revocable_subscriptions::StaleAccessDecision,
    topic_access::{TopicAccess, TopicDecision},
    topic_or_pattern::TopicOrPattern,
    topic_pattern::TopicPattern,
};
#[cfg(feature = "json")]
use crate::event::Item;
use crate::{
    event::Topic,
    random,
    source::{
        PushSource, Rejection, StartPosition, Subscription,
        log::{ExternalIds, ReplayLog},
    },
};

/// Topics that clients choose, from [`Hub::subscribe`](super::Hub::subscribe), without the decision which of them a client may read.
///
/// [`authorize`](Self::authorize) or [`without_authorization`](Self::without_authorization) makes a source of this value.
#[derive(Debug)]
#[must_use = "this is no source before `authorize` or `without_authorization`"]
pub struct ClientTopics {
    hub: Arc<HubState>,
    topics: Topics,
}

/// A source whose clients choose their topics, from [`ClientTopics::authorize`].
///
/// ```
/// use tower_push::{Hub, Push, source::{Subscription, hub::Topics}, event::Topic};
///
/// let hub = Hub::new();
/// let push = Push::new(hub.subscribe(Topics::from_query("topic")).authorize(async |subscription: Subscription, topic: Topic| {
///     topic.as_str() == "news" || subscription.head().headers.contains_key("authorization")
/// }));
/// ```
#[derive(Clone)]
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct ClientTopicsSource {
    hub: Arc<HubState>,
    topics: Topics,
    authorizer: Authorizer,
    start: StartPosition,
    #[cfg(feature = "json")]
    commands: Option<HubCommands>,
}

/// The functions that decide about a client's access to topics and patterns.
#[derive(Clone)]
pub(super) struct Authorizer {
    authorize_topic: Arc<AuthorizeFn<Topic>>,
    /// `None` if clients may not ask for patterns.
    authorize_pattern: Option<Arc<AuthorizeFn<TopicPattern>>>,
}

type AuthorizeFn<T> = dyn Fn(Subscription, T) -> AccessFuture + Send + Sync;
type AccessFuture = Pin<Box<dyn Future<Output = TopicAccess> + Send>>;

/// The topics and patterns of a request that a client may read.
#[derive(Default)]
pub(super) struct AllowedTopics {
    pub(super) topics: Vec<AllowedTopic>,
    pub(super) patterns: Vec<AllowedPattern>,
    /// For each topic and each pattern, the key of the member that the client is.
    pub(super) members: Vec<(TopicOrPattern, Option<Arc<str>>)>,
    #[cfg(feature = "json")]
    pub(super) refused: Vec<(TopicOrPattern, Rejection)>,
    /// The topics that the client may publish to.
    pub(super) publishable: Vec<Topic>,
}

/// The maximum number of decisions about one request or one command. A decision is repeated if access to any topic was revoked in the meantime.
pub(super) const MAX_DECISIONS: usize = 8;

/// The time after which a client returns whose access could not be decided, because access to topics is revoked all the time.
const UNDECIDED_RETRY: Duration = Duration::from_secs(1);

impl ClientTopics {
    pub(super) fn new(hub: Arc<HubState>, topics: Topics) -> Self {
        Self { hub, topics }
    }

    /// Returns a source that asks `authorize` for each topic of a client whether the client may read it. The function is asked for every
    /// request: also when a client reconnects, and at each poll of long-polling. All topics of a request are decided at the same time.
    ///
    /// The result is a `bool`, a [`TopicAccess`], or a `Result` whose error is a [`Rejection`].
    pub fn authorize<F, Fut>(self, authorize: F) -> ClientTopicsSource
    where
        F: Fn(Subscription, Topic) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Into<TopicAccess>> + Send + 'static,
    {
        let authorize_topic = boxed_authorize_fn(authorize);
        ClientTopicsSource {
            start: self.hub.config.start.clone(),
            hub: self.hub,
            topics: self.topics,
            authorizer: Authorizer {
                authorize_topic,
                authorize_pattern: None,
            },
            #[cfg(feature = "json")]
            commands: None,
        }
    }

    /// Returns a source whose clients may read every topic of the hub. The source accepts no patterns.
    pub fn without_authorization(self) -> ClientTopicsSource {
        self.authorize(|_, _| std::future::ready(true))
    }
}

impl ClientTopicsSource {
    /// Returns the same source, whose clients without a cursor begin at `start` in each topic.
    pub fn with_start(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// Returns the same source, which accepts commands on WebSockets: a client subscribes to further topics, ends subscriptions, and
    /// publishes to topics where its [access](TopicAccess::with_publishing) allows it. Each command is authorized like the topics of the
    /// request, and answered in-band. A WebSocket may then begin without a topic. With [`authorize_patterns`](Self::authorize_patterns), commands may
    /// also name patterns.
    ///
    /// Clients need messages in the JSON format, as of the subprotocol `json.tower-push`. The page
    /// [hub-protocol.md](https://github.com/tower-push/tower-push/blob/main/docs/hub-protocol.md) describes the messages.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn commands(mut self, commands: HubCommands) -> Self {
        self.commands = Some(commands);
        self
    }

    /// Returns the same source, which also accepts [patterns](TopicPattern) of topics from its clients, and asks `authorize` for each of them
    /// whether the client may read **every** topic that matches. The function is asked for every request, as the function of
    /// [`ClientTopics::authorize`] is. The latter function is not asked for the topics that match the pattern. [`Topics::max_patterns`]
    /// says how requests name patterns, and limits their number. The hub must allow patterns, too:
    /// [`HubBuilder::max_patterns`](super::HubBuilder::max_patterns).
    ///
    /// Clients are no members of the topics that match, and may not publish to them: [`TopicAccess::with_publishing`], `present` and
    /// `with_members` have no effect on a pattern. [`TopicAccess::max_history`] limits the events of each topic.
    ///
    /// ```
    /// use tower_push::{Hub, Push, source::{Subscription, hub::{TopicPattern, Topics}}};
    ///
    /// let hub = Hub::builder().max_patterns(1000).build();
    /// let source = hub
    ///     .subscribe(Topics::from_query("topic").max_patterns(4))
    ///     .authorize(async |_: Subscription, topic: tower_push::event::Topic| topic.as_str().starts_with("public/"))
    ///     // /events?pattern_prefix=public/
    ///     .authorize_patterns(async |_: Subscription, pattern: TopicPattern| pattern.common_prefix().starts_with("public/"));
    /// let push = Push::new(source);
    /// ```
    pub fn authorize_patterns<F, Fut>(mut self, authorize: F) -> Self
    where
        F: Fn(Subscription, TopicPattern) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: Into<TopicAccess>> + Send + 'static,
    {
        self.authorizer.authorize_pattern = Some(boxed_authorize_fn(authorize));
        self
    }

    /// Returns the topics and patterns that the request names. A request may name none of them if its WebSocket accepts commands.
    fn read_requested(
        &self,
        subscription: &Subscription,
        can_be_empty: bool,
    ) -> Result<Vec<TopicOrPattern>, Rejection> {
        let topics = self.topics.read_topics(subscription)?;
        let patterns = self.topics.read_patterns(subscription)?;
        if topics.is_empty() && patterns.is_empty() && !can_be_empty {
            let rejection = Rejection::new(StatusCode::BAD_REQUEST);
            return Err(rejection.message("the request names no topic"));
        }
        let topics = topics.iter().map(TopicOrPattern::from);
        let patterns = patterns.into_iter().map(TopicOrPattern::Pattern);
        Ok(topics.chain(patterns).collect())
    }
}

fn boxed_authorize_fn<T, F, Fut>(authorize: F) -> Arc<AuthorizeFn<T>>
where
    F: Fn(Subscription, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Into<TopicAccess>> + Send + 'static,
{
    Arc::new(move |subscription, requested| {
        let access = authorize(subscription, requested);
        Box::pin(async move { access.await.into() })
    })
}

impl Authorizer {
    /// Decides about the client's access to all topics and patterns.
    ///
    /// # Errors
    /// The rejection of the request.
    pub(super) async fn authorize(
        &self,
        subscription: &Subscription,
        requested: &[TopicOrPattern],
    ) -> Result<AllowedTopics, Rejection> {
        let decisions = requested.iter();
        let decisions = decisions.map(|requested| self.decide(subscription, requested));
        let decisions = decisions.collect::<Result<_, _>>()?;
        let mut allowed = AllowedTopics::default();
        for (requested, access) in requested.iter().zip(join_all(decisions).await) {
            match access.0 {
                TopicDecision::Allow {
                    max_history,
                    member,
                    can_publish,
                    #[cfg(feature = "json")]
                    presence,
                } => {
                    allowed.members.push((requested.clone(), member));
                    match requested {
                        TopicOrPattern::Topic(topic) => {
                            if can_publish {
                                allowed.publishable.push(topic.clone());
                            }
                            allowed.topics.push(AllowedTopic {
                                topic: topic.clone(),
                                max_history,
                                #[cfg(feature = "json")]
                                presence,
                            });
                        }
                        TopicOrPattern::Pattern(pattern) => allowed.patterns.push(AllowedPattern {
                            pattern: pattern.clone(),
                            max_history,
                        }),
                    }
                }
                TopicDecision::RefuseRequest(rejection) => return Err(rejection),
                #[cfg(feature = "json")]
                TopicDecision::RefuseTopic(rejection) => {
                    allowed.refused.push((requested.clone(), rejection));
                }
            }
        }
        Ok(allowed)
    }

    /// Begins to decide about the client's access to one topic or pattern.
    ///
    /// # Errors
    /// The rejection of a pattern if the source accepts none.
    fn decide(
        &self,
        subscription: &Subscription,
        requested: &TopicOrPattern,
    ) -> Result<AccessFuture, Rejection> {
        match (requested, &self.authorize_pattern) {
            (TopicOrPattern::Topic(topic), _) => {
                Ok((self.authorize_topic)(subscription.clone(), topic.clone()))
            }
            (TopicOrPattern::Pattern(pattern), Some(authorize)) => {
                Ok(authorize(subscription.clone(), pattern.clone()))
            }
            (TopicOrPattern::Pattern(_), None) => {
                let rejection = Rejection::new(StatusCode::NOT_IMPLEMENTED);
                Err(rejection.message("clients may not subscribe to patterns of topics"))
            }
        }
    }
}

/// Waits for all futures.
async fn join_all(mut futures: Vec<AccessFuture>) -> Vec<TopicAccess> {
    let mut outputs: Vec<_> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut is_ready = true;
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(access) => *output = Some(access),
                    Poll::Pending => is_ready = false,
                }
            }
        }
        match is_ready {
            true => Poll::Ready(outputs.drain(..).flatten().collect()),
            false => Poll::Pending,
        }
    })
    .await
}

/// Each client begins after its cursor, or at the source's [`StartPosition`] if it has none.
impl PushSource for ClientTopicsSource {
    type Stream = HubSubscriber;

    async fn subscribe(self, subscription: Subscription) -> Result<HubSubscriber, Rejection> {
        #[cfg(feature = "json")]
        let messages = self
            .commands
            .as_ref()
            .and_then(|_| subscription.client_messages());
        #[cfg(feature = "json")]
        let accepts_commands = messages.is_some();
        #[cfg(not(feature = "json"))]
        let accepts_commands = false;
        let requested = self.read_requested(&subscription, accepts_commands)?;
        let fresh_topics = self.topics.read_fresh_topics(&subscription)?;
        let mut sender = self.topics.read_sender(&subscription);
        if accepts_commands && sender.is_none() {
            // A client needs a sender's name to publish events that it does not get itself (no echo).
            sender = Some(format!("~{:016x}", random::bits()).into());
        }
        let subscriptions = &self.hub.revocable_subscriptions;
        for _ in 0..MAX_DECISIONS {
            let decided_after = subscriptions.count();
            let allowed = self.authorizer.authorize(&subscription, &requested).await?;
            let is_nothing_allowed = allowed.topics.is_empty() && allowed.patterns.is_empty();
            if is_nothing_allowed && !requested.is_empty() {
                return Err(Rejection::new(StatusCode::FORBIDDEN));
            }
            #[cfg(feature = "json")]
            let subscribed = allowed.members.iter().filter(|_| accepts_commands);
            #[cfg(feature = "json")]
            let subscribed = subscribed.map(|(requested, _)| requested.clone()).collect();
            #[cfg(feature = "json")]
            let present: Vec<_> = allowed
                .topics
                .iter()
                .filter_map(AllowedTopic::presence_member)
                .collect();
            let request = ReaderRequest {
                topics: allowed.topics,
                patterns: allowed.patterns,
                fresh_topics: Some(fresh_topics.clone()),
                first_start: self.start.clone(),
                start: ReplayLog::<ExternalIds>::requested_start(&subscription, self.start.clone()),
                sender: sender.clone(),
            };
            let reader = request.open(self.hub.clone());
            let mut reader = reader.map_err(Rejection::from)?;
            match subscriptions.register(allowed.members, decided_after) {
                Ok(registration) => reader.set_revocable(registration),
                Err(StaleAccessDecision) => continue,
            }
            #[cfg(feature = "json")]
            reader.enter_as_member(present)?;
            #[cfg(feature = "json")]
            for (requested, rejection) in &allowed.refused {
                let refused = control_events::refused(Some(requested), rejection, None);
                reader.push_item(Item::Event(refused));
            }
            #[cfg(feature = "json")]
            if let (Some(commands), Some(messages)) = (&self.commands, messages) {
                let processor = CommandProcessor::new(
                    messages,
                    subscription,
                    self.authorizer,
                    self.topics,
                    self.start,
                    subscribed,
                    commands,
                );
                return Ok(HubSubscriber::with_commands(reader, processor));
            }
            return Ok(HubSubscriber::new(reader));
        }
        Err(Rejection::new(StatusCode::SERVICE_UNAVAILABLE).retry_after(UNDECIDED_RETRY))
    }

    /// Returns whether the hub has history. Long-polling keeps the stream of a hub without history between two polls.
    fn is_resumable(&self) -> bool {
        !self.hub.config.has_no_history()
    }

    fn is_for_one_client(&self) -> bool {
        false
    }
}

impl fmt::Debug for ClientTopicsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTopicsSource")
            .field("topics", &self.topics)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}
