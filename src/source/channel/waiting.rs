//! Where readers wait for the next event.
//!
//! The invariant, which the models in `models.rs` check: a reader registers its waker under a lock, and looks for news once more
//! before it lets go of that lock; a writer publishes its news first, and takes the wakers under the same lock after. So
//! either the reader sees the news, or the writer sees the waker.

use std::task::Waker;

use super::sync::{Mutex, lock};

/// Wakers in as many lists as keep the readers of several threads out of each other's way.
#[derive(Debug)]
pub(in crate::source) struct Waiting {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug, Default)]
struct Shard {
    /// One place for each reader, for as long as it lives: filled while it waits.
    places: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// A reader's place. Give it back with [`Waiting::leave`].
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source) struct Place {
    shard: usize,
    index: usize,
}

impl Waiting {
    pub(in crate::source) fn new(shards: usize) -> Self {
        let shards = (0..shards).map(|_| Mutex::new(Shard::default()));
        Self {
            shards: shards.collect(),
        }
    }

    /// A place for the reader of this number.
    pub(in crate::source) fn enter(&self, reader: usize) -> Place {
        let shard = reader % self.shards.len();
        let mut places = lock(&self.shards[shard]);
        let index = places.free.pop().unwrap_or(places.places.len());
        if index == places.places.len() {
            places.places.push(None);
        }
        Place { shard, index }
    }

    /// Waits, unless there is news.
    pub(in crate::source) fn wait(
        &self,
        place: &Place,
        waker: &Waker,
        is_news: impl FnOnce() -> bool,
    ) -> bool {
        let mut shard = lock(&self.shards[place.shard]);
        if is_news() {
            return false;
        }
        match &mut shard.places[place.index] {
            Some(old) => old.clone_from(waker),
            empty => *empty = Some(waker.clone()),
        }
        true
    }

    /// Wakes all who wait.
    pub(in crate::source) fn wake(&self) {
        let mut wakers = Vec::new();
        for shard in &self.shards {
            wakers.extend(lock(shard).places.iter_mut().filter_map(Option::take));
            // Outside the lock: a waker may run any code.
            wakers.drain(..).for_each(Waker::wake);
        }
    }

    pub(in crate::source) fn leave(&self, place: &Place) {
        let mut shard = lock(&self.shards[place.shard]);
        // Dropped outside the lock, for the same reason.
        let waker = shard.places[place.index].take();
        shard.free.push(place.index);
        if shard.free.len() == shard.places.len() {
            *shard = Shard::default();
        }
        drop(shard);
        drop(waker);
    }
}
