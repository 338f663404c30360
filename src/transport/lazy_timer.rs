use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use pin_project_lite::pin_project;
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

pin_project! {
    /// Set when it is first needed, and then left to run out where it would only be put off: to set it is dear, and what it waits
    /// for is put off with all that is sent.
    #[derive(Debug, Default)]
    pub(super) struct LazyTimer {
        #[pin]
        sleep: Option<Sleep>,
        // Whom it will wake: to tell it again what it knows is dear too.
        waker: Option<Waker>,
    }
}

impl LazyTimer {
    /// Ready at that time.
    pub(super) fn poll(self: Pin<&mut Self>, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let mut sleep = this.sleep;
        let mut running = match sleep.as_mut().as_pin_mut() {
            Some(running) => running,
            None => {
                sleep.set(Some(sleep_until(at)));
                let Some(running) = sleep.as_mut().as_pin_mut() else {
                    return Poll::Pending;
                };
                running
            }
        };
        if running.deadline() > at {
            running.as_mut().reset(at);
            *this.waker = None;
        }
        let knows = |waker: &Waker| waker.will_wake(cx.waker());
        if this.waker.as_ref().is_some_and(knows) && !running.is_elapsed() {
            return Poll::Pending;
        }
        *this.waker = Some(cx.waker().clone());
        ready!(poll_sleep(running.as_mut(), cx));
        if running.deadline() < at {
            running.as_mut().reset(at);
            ready!(poll_sleep(running, cx));
        }
        *this.waker = None;
        Poll::Ready(())
    }
}

/// A task that has used up what tokio allows it in one go is told so without its waker being taken.
fn poll_sleep(mut sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    let poll = poll_fn(|cx| sleep.as_mut().poll(cx));
    pin!(unconstrained(poll)).poll(cx)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
        time::Duration,
    };

    use proptest::{collection::vec, prelude::*};
    use tokio::{
        runtime,
        task::consume_budget,
        time::{advance, sleep},
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How often it was woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// By one of several, for so many milliseconds from now, with or without a budget.
        Poll(usize, u64, bool),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_usize, 0..30_u64, any::<bool>())
                .prop_map(|(who, at, is_spent)| Step::Poll(who, at, is_spent)),
            (0..20_u64).prop_map(Step::Advance),
        ]
    }

    /// Whoever was the last to be told to wait is woken, and is then told that it is time.
    async fn wakes(steps: Vec<Step>) {
        let mut timer = pin!(LazyTimer::default());
        let wakes: [Arc<Wakes>; 3] = Default::default();
        let woken = |who: usize| wakes[who].0.load(Ordering::Relaxed);
        // Since when who waits, and until when.
        let mut waits: Option<(usize, usize, Instant)> = None;
        for step in steps {
            match step {
                Step::Poll(who, at, is_spent) => {
                    let at = Instant::now() + Duration::from_millis(at);
                    let before = woken(who);
                    let waker = Waker::from(wakes[who].clone());
                    let poll = poll_fn(|cx| {
                        while is_spent && pin!(consume_budget()).poll(cx).is_ready() {}
                        let cx = &mut Context::from_waker(&waker);
                        Poll::Ready(timer.as_mut().poll(at, cx))
                    });
                    let is_pending = poll.await.is_pending();
                    assert!(is_pending || at <= Instant::now());
                    waits = is_pending.then_some((who, before, at));
                }
                Step::Advance(by) => {
                    advance(Duration::from_millis(by)).await;
                    // The clock's hand moves by milliseconds.
                    sleep(Duration::from_millis(1)).await;
                }
            }
            if let Some((who, before, at)) = waits {
                assert!(at >= Instant::now() || woken(who) > before);
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_who_waits_is_forgotten(steps in vec(step(), 0..80)) {
            let mut paused = runtime::Builder::new_current_thread();
            let paused = paused.enable_time().start_paused(true).build().unwrap();
            paused.block_on(wakes(steps));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_when_its_time_has_come_and_may_be_put_off_and_forward() {
        let mut timer = pin!(LazyTimer::default());
        let start = Instant::now();
        for seconds in [10, 5, 7, 7, 30, 3] {
            let at = Instant::now() + seconds * SECOND;
            // Nothing comes of the time before.
            let none = poll_fn(|cx| Poll::Ready(timer.as_mut().poll(at + 20 * SECOND, cx))).await;
            assert!(none.is_pending());
            poll_fn(|cx| timer.as_mut().poll(at, cx)).await;
            assert_eq!(Instant::now(), at);
        }
        assert_eq!(start.elapsed(), 62 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_a_task_whose_budget_was_spent_when_it_was_set() {
        let mut timer = pin!(LazyTimer::default());
        let at = Instant::now() + SECOND;
        poll_fn(|cx| {
            while pin!(consume_budget()).poll(cx).is_ready() {}
            Poll::Ready(timer.as_mut().poll(at, cx).is_pending())
        })
        .await;
        poll_fn(|cx| timer.as_mut().poll(at, cx)).await;
        assert_eq!(Instant::now(), at);
    }
}
