//! Where readers wait for the next event.
//!
//! The invariant, which the models of its users (`models.rs`) check: a reader registers its waker under a lock, and looks for news once more
//! before it lets go of that lock; a writer publishes its news first, and takes the wakers under the same lock after. So
//! either the reader sees the news, or the writer sees the waker.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

use crate::sync::{Mutex, lock};

/// Wakers in as many lists as keep the readers of several threads out of each other's way.
#[derive(Debug)]
pub(crate) struct Waiting {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug, Default)]
struct Shard {
    /// One for each reader, for as long as it lives.
    seats: Vec<Seat>,
    free: Vec<usize>,
    /// The seats to look at when there is news: those who wait, and some who waited and left. So waking costs what there is to
    /// wake, however many readers there once were.
    listed: Vec<usize>,
}

#[derive(Debug, Default)]
struct Seat {
    /// There while the reader waits.
    waker: Option<Waker>,
    is_listed: bool,
}

/// A reader's place. Give it back with [`Waiting::leave`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    shard: usize,
    index: usize,
}

impl Waiting {
    pub(crate) fn new(shards: usize) -> Self {
        let shards = (0..shards).map(|_| Mutex::new(Shard::default()));
        Self {
            shards: shards.collect(),
        }
    }

    /// A place for the reader of this number.
    pub(crate) fn enter(&self, reader: usize) -> Place {
        let shard = reader % self.shards.len();
        let mut seats = lock(&self.shards[shard]);
        let index = seats.free.pop().unwrap_or(seats.seats.len());
        if index == seats.seats.len() {
            seats.seats.push(Seat::default());
        }
        Place { shard, index }
    }

    /// Waits, unless there is news.
    pub(crate) fn wait(
        &self,
        place: &Place,
        waker: &Waker,
        is_news: impl FnOnce() -> bool,
    ) -> bool {
        let mut shard = lock(&self.shards[place.shard]);
        if is_news() {
            return false;
        }
        let Shard { seats, listed, .. } = &mut *shard;
        let seat = &mut seats[place.index];
        if seat.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
            return true;
        }
        let old = seat.waker.replace(waker.clone());
        if !std::mem::replace(&mut seat.is_listed, true) {
            listed.push(place.index);
        }
        drop(shard);
        // Outside the lock: what goes with a waker may be another reader of this shard.
        drop(old);
        true
    }

    /// Wakes all who wait. A waker that panics is not the affair of whoever has news, nor of the others who wait.
    pub(crate) fn wake(&self) {
        for shard in &self.shards {
            let mut wakers = lock(shard).take().into_iter();
            // Outside the lock: a waker may run any code.
            let mut wake = || wakers.by_ref().for_each(Waker::wake);
            while catch_unwind(AssertUnwindSafe(&mut wake)).is_err() {}
        }
    }

    pub(crate) fn leave(&self, place: &Place) {
        let mut shard = lock(&self.shards[place.shard]);
        // Dropped outside the lock, for the same reason.
        let waker = shard.seats[place.index].waker.take();
        shard.free.push(place.index);
        if shard.free.len() == shard.seats.len() {
            *shard = Shard::default();
        }
        drop(shard);
        drop(waker);
    }
}

impl Shard {
    /// The wakers of all who wait.
    fn take(&mut self) -> Vec<Waker> {
        let Self { seats, listed, .. } = self;
        let taken = listed.drain(..).filter_map(|index| {
            let seat = &mut seats[index];
            seat.is_listed = false;
            seat.waker.take()
        });
        taken.collect()
    }
}
