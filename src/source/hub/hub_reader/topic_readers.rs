use std::{
    ops::{Deref, DerefMut},
    slice, vec,
};

use super::topic_reader::TopicReader;

/// The [`TopicReader`] of each topic of a `HubReader`. A single one, which is the usual number, is stored without an allocation.
pub(super) enum TopicReaders {
    One(TopicReader),
    Many(Vec<TopicReader>),
}

impl TopicReaders {
    pub(super) fn with_capacity(topics: usize) -> Self {
        match topics {
            0 | 1 => Self::default(),
            _ => Self::Many(Vec::with_capacity(topics)),
        }
    }

    pub(super) fn push(&mut self, reader: TopicReader) {
        *self = match std::mem::take(self) {
            Self::One(first) => Self::Many(vec![first, reader]),
            Self::Many(readers) if readers.capacity() == 0 => Self::One(reader),
            Self::Many(mut readers) => {
                readers.push(reader);
                Self::Many(readers)
            }
        };
    }

    /// Removes the reader at `index`. The last reader takes its place.
    #[cfg(feature = "json")]
    pub(super) fn swap_remove(&mut self, index: usize) -> TopicReader {
        let mut readers = std::mem::take(self).into_vec();
        let removed = readers.swap_remove(index);
        *self = readers.into();
        removed
    }

    fn into_vec(self) -> Vec<TopicReader> {
        match self {
            Self::One(reader) => vec![reader],
            Self::Many(readers) => readers,
        }
    }
}

impl Default for TopicReaders {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl From<Vec<TopicReader>> for TopicReaders {
    fn from(mut readers: Vec<TopicReader>) -> Self {
        match readers.pop() {
            Some(only) if readers.is_empty() => Self::One(only),
            last => {
                readers.extend(last);
                Self::Many(readers)
            }
        }
    }
}

impl Deref for TopicReaders {
    type Target = [TopicReader];

    #[inline]
    fn deref(&self) -> &[TopicReader] {
        match self {
            Self::One(reader) => slice::from_ref(reader),
            Self::Many(readers) => readers,
        }
    }
}

impl DerefMut for TopicReaders {
    #[inline]
    fn deref_mut(&mut self) -> &mut [TopicReader] {
        match self {
            Self::One(reader) => slice::from_mut(reader),
            Self::Many(readers) => readers,
        }
    }
}

impl IntoIterator for TopicReaders {
    type Item = TopicReader;
    type IntoIter = vec::IntoIter<TopicReader>;

    fn into_iter(self) -> Self::IntoIter {
        self.into_vec().into_iter()
    }
}

impl<'a> IntoIterator for &'a mut TopicReaders {
    type Item = &'a mut TopicReader;
    type IntoIter = slice::IterMut<'a, TopicReader>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
