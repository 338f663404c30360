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
    reader_request::{AllowedTopic, ReaderRequest},
    requested_topics::Topics,
    revocations::AccessChanged,
    topic_access::{TopicAccess, TopicDecision},
};
#[cfg(feature = "json")]
use crate::event::Item;
use crate::{
    event::Topic,
    random,
    source::{
        PushSource, Rejection, StartPosition, Subscription, TopicSet,
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

/// The function that decides about a client's access to a topic.
#[derive(Clone)]
pub(super) struct Authorizer(Arc<AuthorizeFn>);

type AuthorizeFn = dyn Fn(Subscription, Topic) -> AccessFuture + Send + Sync;
type AccessFuture = Pin<Box<dyn Future<Output = TopicAccess> + Send>>;

/// The topics of a request that a client may read.
#[derive(Default)]
pub(super) struct AllowedTopics {
    pub(super) topics: Vec<AllowedTopic>,
    /// The keys of the member as whom the client reads each topic.
    pub(super) members: Vec<(Topic, Option<Arc<str>>)>,
    #[cfg(feature = "json")]
    pub(super) refused: Vec<(Topic, Rejection)>,
    /// The topics that the client may publish to.
    pub(super) publishable: Vec<Topic>,
}

/// How often access is decided anew because access to some topic was revoked in the meantime.
const MAX_DECISIONS: usize = 8;

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
        let authorize = move |subscription, topic| {
            let access = authorize(subscription, topic);
            Box::pin(async move { access.await.into() }) as AccessFuture
        };
        ClientTopicsSource {
            start: self.hub.config.start.clone(),
            hub: self.hub,
            topics: self.topics,
            authorizer: Authorizer(Arc::new(authorize)),
            #[cfg(feature = "json")]
            commands: None,
        }
    }

    /// Returns a source whose clients may read every topic of the hub.
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
    /// request, and answered in-band. A WebSocket may then begin without a topic.
    ///
    /// Clients need messages in the JSON format, as of the subprotocol `json.tower-push`. The page
    /// [hub-protocol.md](https://github.com/tower-push/tower-push/blob/main/docs/hub-protocol.md) describes the messages.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn commands(mut self, commands: HubCommands) -> Self {
        self.commands = Some(commands);
        self
    }

    /// Returns the topics that the request names. A WebSocket that accepts commands may begin without a topic.
    fn read_topics(
        &self,
        subscription: &Subscription,
        can_be_empty: bool,
    ) -> Result<TopicSet, Rejection> {
        let topics = self.topics.read_topics(subscription)?;
        match topics.is_empty() && !can_be_empty {
            true => {
                Err(Rejection::new(StatusCode::BAD_REQUEST).message("the request names no topic"))
            }
            false => Ok(topics),
        }
    }
}

impl Authorizer {
    /// Decides about the client's access to all topics.
    ///
    /// # Errors
    /// The rejection of the request.
    pub(super) async fn authorize(
        &self,
        subscription: &Subscription,
        topics: &TopicSet,
    ) -> Result<AllowedTopics, Rejection> {
        let decisions = topics
            .iter()
            .map(|topic| (self.0)(subscription.clone(), topic.clone()));
        let mut allowed = AllowedTopics::default();
        for (topic, access) in topics.iter().zip(join_all(decisions.collect()).await) {
            match access.0 {
                TopicDecision::Allow {
                    max_history,
                    member,
                    can_publish,
                    #[cfg(feature = "json")]
                    presence,
                } => {
                    if can_publish {
                        allowed.publishable.push(topic.clone());
                    }
                    allowed.members.push((topic.clone(), member));
                    let topic = topic.clone();
                    allowed.topics.push(AllowedTopic {
                        topic,
                        max_history,
                        #[cfg(feature = "json")]
                        presence,
                    });
                }
                TopicDecision::RefuseRequest(rejection) => return Err(rejection),
                #[cfg(feature = "json")]
                TopicDecision::RefuseTopic(rejection) => {
                    allowed.refused.push((topic.clone(), rejection));
                }
            }
        }
        Ok(allowed)
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
        let topics = self.read_topics(&subscription, accepts_commands)?;
        let fresh_topics = self.topics.read_fresh_topics(&subscription)?;
        let mut sender = self.topics.read_sender(&subscription);
        if accepts_commands && sender.is_none() {
            // The name of a connection that publishes without an echo.
            sender = Some(format!("~{:016x}", random::bits()).into());
        }
        let revocations = &self.hub.revocations;
        for _ in 0..MAX_DECISIONS {
            let decided_after = revocations.count();
            let allowed = self.authorizer.authorize(&subscription, &topics).await?;
            if allowed.topics.is_empty() && !topics.is_empty() {
                return Err(Rejection::new(StatusCode::FORBIDDEN));
            }
            #[cfg(feature = "json")]
            let present: Vec<_> = allowed
                .topics
                .iter()
                .filter_map(AllowedTopic::present_member)
                .collect();
            let request = ReaderRequest {
                topics: allowed.topics,
                patterns: Vec::new(),
                fresh_topics: Some(fresh_topics.clone()),
                first_start: self.start.clone(),
                start: ReplayLog::<ExternalIds>::requested_start(&subscription, self.start.clone()),
                sender: sender.clone(),
            };
            let reader = request.open(self.hub.clone());
            let mut reader = reader.map_err(Rejection::from)?;
            match revocations.register(allowed.members, decided_after) {
                Ok(registration) => reader.set_revocable(registration),
                Err(AccessChanged) => continue,
            }
            #[cfg(feature = "json")]
            reader.enter(present)?;
            #[cfg(feature = "json")]
            for (topic, rejection) in &allowed.refused {
                let refused = control_events::refused(Some(topic), rejection, None);
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
