use std::sync::Arc;

use crate::{
    Error,
    event::{Event, Topic},
};

/// A set of topics, in alphabetical order.
///
/// The conversions from texts fail with [`Error::is_invalid_topic`] if one of the texts is not a [`Topic`].
///
/// ```
/// use tower_push::source::TopicSet;
///
/// let topics = TopicSet::try_from(["news", "user/7", "news"])?;
/// assert_eq!(topics.len(), 2);
/// assert!(topics.contains("news"));
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicSet(Arc<[Topic]>);

impl TopicSet {
    /// Creates the set of these topics. A topic that occurs twice is in the set once.
    pub fn new(topics: impl IntoIterator<Item = Topic>) -> Self {
        let mut topics: Vec<_> = topics.into_iter().collect();
        topics.sort_unstable();
        topics.dedup();
        Self(topics.into())
    }

    /// Returns the topics in alphabetical order.
    pub fn as_slice(&self) -> &[Topic] {
        &self.0
    }

    /// Returns an iterator over the topics, in alphabetical order.
    pub fn iter(&self) -> std::slice::Iter<'_, Topic> {
        self.0.iter()
    }

    /// Returns whether the set has the topic with this name.
    pub fn contains(&self, topic: impl AsRef<str>) -> bool {
        let name = topic.as_ref();
        let position = self.0.binary_search_by(|topic| topic.as_str().cmp(name));
        position.is_ok()
    }

    /// Returns the number of topics.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the set has no topic.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the event's topic is in the set.
    pub(crate) fn includes(&self, event: &Event) -> bool {
        event.topic().is_some_and(|topic| self.contains(topic))
    }
}

impl<'a> IntoIterator for &'a TopicSet {
    type Item = &'a Topic;
    type IntoIter = std::slice::Iter<'a, Topic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Topic> for TopicSet {
    fn from_iter<I: IntoIterator<Item = Topic>>(topics: I) -> Self {
        Self::new(topics)
    }
}

impl From<Topic> for TopicSet {
    fn from(topic: Topic) -> Self {
        Self(Arc::new([topic]))
    }
}

impl From<&Topic> for TopicSet {
    fn from(topic: &Topic) -> Self {
        topic.clone().into()
    }
}

impl From<&Self> for TopicSet {
    fn from(topics: &Self) -> Self {
        topics.clone()
    }
}

impl TryFrom<&str> for TopicSet {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self, Error> {
        Topic::new(name).map(Self::from)
    }
}

impl TryFrom<String> for TopicSet {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        Topic::new(name).map(Self::from)
    }
}

impl TryFrom<&String> for TopicSet {
    type Error = Error;

    fn try_from(name: &String) -> Result<Self, Error> {
        Topic::new(name.as_str()).map(Self::from)
    }
}

impl<T, const N: usize> TryFrom<[T; N]> for TopicSet
where
    T: TryInto<Topic>,
    Error: From<T::Error>,
{
    type Error = Error;

    fn try_from(topics: [T; N]) -> Result<Self, Error> {
        try_collect(topics)
    }
}

impl<T> TryFrom<Vec<T>> for TopicSet
where
    T: TryInto<Topic>,
    Error: From<T::Error>,
{
    type Error = Error;

    fn try_from(topics: Vec<T>) -> Result<Self, Error> {
        try_collect(topics)
    }
}

fn try_collect<T>(topics: impl IntoIterator<Item = T>) -> Result<TopicSet, Error>
where
    T: TryInto<Topic>,
    Error: From<T::Error>,
{
    let topics = topics.into_iter().map(|topic| Ok(topic.try_into()?));
    let topics: Vec<Topic> = topics.collect::<Result<_, Error>>()?;
    Ok(TopicSet::new(topics))
}
