use std::{borrow::Cow, fmt, sync::Arc};

use http::{StatusCode, request::Parts};

use super::topic_pattern::TopicPattern;
use crate::{
    event::Topic,
    source::{
        FormBody, Rejection, Subscription, TopicSet,
        query::{NotUtf8, decode_path, utf8_parameter},
    },
};

/// The place in a request where a client names the topics that it wants, for [`Hub::subscribe`](super::Hub::subscribe).
///
/// A request is rejected with the status 400 if it names no topic, names too many topics, or has a name that is not a [`Topic`].
///
/// ```
/// use tower_push::source::hub::Topics;
///
/// // /events?topic=news&topic=user%2F7
/// let topics = Topics::from_query("topic").max_topics(10);
/// // /topics/user/7
/// let topics = Topics::from_path("/topics/");
/// ```
#[derive(Clone)]
#[must_use]
pub struct Topics {
    place: TopicsLocation,
    max_topics: usize,
    max_patterns: usize,
    sender_parameter: Option<Cow<'static, str>>,
}

/// The function of [`Topics::from_fn`].
type TopicNamesFn = dyn Fn(&Parts) -> Vec<String> + Send + Sync;

/// The part of a request that names topics.
#[derive(Clone)]
enum TopicsLocation {
    Query(Cow<'static, str>),
    /// The rest of the path after this prefix.
    Path(Cow<'static, str>),
    Function(Arc<TopicNamesFn>),
}

/// The query parameter that names topics which are new for a client that resumes others.
const FRESH_PARAMETER: &str = "fresh";

/// The query parameter that names the topics with a prefix.
const PREFIX_PARAMETER: &str = "pattern_prefix";

/// The query parameter that names the topics that differ in one segment: the text before the segment, a line feed, and the text after it. No
/// topic has a line feed, so the texts need no escapes.
const SEGMENT_PARAMETER: &str = "pattern_segment";

impl Topics {
    fn new(place: TopicsLocation) -> Self {
        Self {
            place,
            max_topics: 64,
            max_patterns: 8,
            sender_parameter: None,
        }
    }

    /// Reads the topics from the query parameter `name`, which may occur several times. A `QUERY` request may also have the parameter in its
    /// [form](FormBody).
    pub fn from_query(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(TopicsLocation::Query(name.into()))
    }

    /// Reads one topic from the path: the rest of the path after `prefix`, percent-decoded. The topic may contain slashes.
    ///
    /// A router that nests services may remove a prefix from the path of the request.
    pub fn from_path(prefix: impl Into<Cow<'static, str>>) -> Self {
        Self::new(TopicsLocation::Path(prefix.into()))
    }

    /// Gets the names of the topics from a function of the request's head.
    ///
    /// ```
    /// use tower_push::source::hub::Topics;
    ///
    /// #[derive(Clone)]
    /// struct User(u64);
    /// let own = Topics::from_fn(|head| head.extensions.get::<User>().map(|User(id)| format!("user/{id}")).into_iter().collect());
    /// ```
    pub fn from_fn(names: impl Fn(&Parts) -> Vec<String> + Send + Sync + 'static) -> Self {
        Self::new(TopicsLocation::Function(Arc::new(names)))
    }

    /// Sets the maximum number of topics that a request may name, repetitions included. The default is 64. A WebSocket that
    /// sends commands (`ClientTopicsSource::commands`) has at most this number at a time.
    pub fn max_topics(mut self, topics: usize) -> Self {
        self.max_topics = topics;
        self
    }

    /// Sets the maximum number of patterns that a request may name, repetitions included. The default is 8. A WebSocket that sends commands
    /// has at most this number at a time.
    ///
    /// A source accepts patterns only if it has [`authorize_patterns`](super::ClientTopicsSource::authorize_patterns). A request
    /// names patterns in parameters of its query or form, even if its path names the topics. The parameter `pattern_prefix` has a
    /// [prefix](TopicPattern::prefix). The parameter `pattern_segment` has the prefix and the suffix around
    /// [one segment](TopicPattern::one_segment), with a line feed (`%0A`) between them. The prefix and the suffix have at most 1024 bytes together.
    pub fn max_patterns(mut self, patterns: usize) -> Self {
        self.max_patterns = patterns;
        self
    }

    /// Reads the name under which the client publishes from this query parameter: see
    /// [`PublishOptions::except`](super::PublishOptions::except).
    ///
    /// A client can choose any name. A client that takes the name of another client only misses events that the other client sends.
    pub fn sender_from_query(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.sender_parameter = Some(name.into());
        self
    }

    #[cfg(feature = "json")]
    pub(super) fn topic_limit(&self) -> usize {
        self.max_topics
    }

    #[cfg(feature = "json")]
    pub(super) fn pattern_limit(&self) -> usize {
        self.max_patterns
    }

    /// Returns the topics that a request names, which may be none.
    pub(super) fn read_topics(&self, subscription: &Subscription) -> Result<TopicSet, Rejection> {
        let head = subscription.head();
        let topics = match &self.place {
            TopicsLocation::Query(name) => self.check_names(parameters(head, name))?,
            TopicsLocation::Path(prefix) => {
                let rest = head.uri.path().strip_prefix(&**prefix);
                let name = rest.filter(|rest| !rest.is_empty()).map(decode_path);
                self.check_names(name.into_iter())?
            }
            TopicsLocation::Function(names) => {
                self.check_names(names(head).into_iter().map(Cow::Owned).map(Ok))?
            }
        };
        Ok(topics)
    }

    /// Returns the patterns that a request names, each once.
    pub(super) fn read_patterns(
        &self,
        subscription: &Subscription,
    ) -> Result<Vec<TopicPattern>, Rejection> {
        let head = subscription.head();
        let prefixes = parameters(head, PREFIX_PARAMETER);
        let prefixes =
            prefixes.map(|prefix| TopicPattern::from_client(&prefix?, None).map_err(bad_request));
        let segments = parameters(head, SEGMENT_PARAMETER);
        let segments = segments.map(|texts| {
            let texts = texts?;
            let (prefix, suffix) = texts
                .split_once('\n')
                .ok_or_else(|| bad_request("`pattern_segment` has no line feed"))?;
            TopicPattern::from_client(prefix, Some(suffix)).map_err(bad_request)
        });
        let mut patterns = Vec::new();
        for (index, pattern) in prefixes.chain(segments).enumerate() {
            if index == self.max_patterns {
                let message = format!("more than {} patterns", self.max_patterns);
                return Err(bad_request(message));
            }
            let pattern = pattern?;
            if !patterns.contains(&pattern) {
                patterns.push(pattern);
            }
        }
        Ok(patterns)
    }

    /// Returns the topics that are new for a client that resumes others: those of the query parameter `fresh`.
    pub(super) fn read_fresh_topics(
        &self,
        subscription: &Subscription,
    ) -> Result<TopicSet, Rejection> {
        self.check_names(parameters(subscription.head(), FRESH_PARAMETER))
    }

    /// Returns the name under which the client publishes.
    pub(super) fn read_sender(&self, subscription: &Subscription) -> Option<Arc<str>> {
        let name = self.sender_parameter.as_ref()?;
        let sender = parameters(subscription.head(), name).next()?.ok()?;
        (sender.len() <= MAX_SENDER_LEN).then(|| sender.into())
    }

    fn check_names<'a>(
        &self,
        names: impl Iterator<Item = Result<Cow<'a, str>, NotUtf8>>,
    ) -> Result<TopicSet, Rejection> {
        let mut topics = Vec::new();
        for name in names {
            if topics.len() == self.max_topics {
                let message = format!("more than {} topics", self.max_topics);
                return Err(bad_request(message));
            }
            let topic = Topic::new(name?.into_owned());
            topics.push(topic.map_err(|error| bad_request(error.to_string()))?);
        }
        Ok(TopicSet::new(topics))
    }
}

/// The maximum length of a sender's name, in bytes. A longer name, and one that is not UTF-8, is ignored.
const MAX_SENDER_LEN: usize = 128;

fn bad_request(message: impl Into<Cow<'static, str>>) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST).message(message)
}

/// Returns the values of a parameter in the query and in the form of a request.
fn parameters<'a>(
    head: &'a Parts,
    name: &str,
) -> impl Iterator<Item = Result<Cow<'a, str>, NotUtf8>> {
    let form = head.extensions.get::<FormBody>();
    let form = form.map_or("", FormBody::as_str);
    let query = head.uri.query().unwrap_or_default();
    utf8_parameter(query, name).chain(utf8_parameter(form, name))
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topics")
            .field("max_topics", &self.max_topics)
            .field("max_patterns", &self.max_patterns)
            .finish_non_exhaustive()
    }
}
