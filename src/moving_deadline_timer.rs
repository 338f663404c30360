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
    /// A timer for a deadline that moves with every write or read.
    ///
    /// The timer is registered with tokio when it is first polled. Registering a timer for another time is expensive, so the timer stays
    /// registered for the first deadline if the deadline moves later. When the timer fires, it is registered again for the current deadline.
    #[derive(Debug, Default)]
    pub(crate) struct MovingDeadlineTimer {
        #[pin]
        sleep: Option<Sleep>,
        // The waker that `sleep` will wake, so that `sleep` need not be polled again with the same waker, which is expensive.
        waker: Option<Waker>,
    }
}

impl MovingDeadlineTimer {
    /// Polls the timer. Returns `Ready` once `deadline` has passed.
    pub(crate) fn poll(self: Pin<&mut Self>, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let mut slot = this.sleep;
        let mut sleep = match slot.as_mut().as_pin_mut() {
            Some(sleep) => sleep,
            None => {
                slot.set(Some(sleep_until(deadline)));
                let Some(sleep) = slot.as_mut().as_pin_mut() else {
                    return Poll::Pending;
                };
                sleep
            }
        };
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
            *this.waker = None;
        }
        let will_wake = |waker: &Waker| waker.will_wake(cx.waker());
        if this.waker.as_ref().is_some_and(will_wake) && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        *this.waker = Some(cx.waker().clone());
        ready!(poll_unconstrained(sleep.as_mut(), cx));
        if sleep.deadline() < deadline {
            sleep.as_mut().reset(deadline);
            ready!(poll_unconstrained(sleep, cx));
        }
        *this.waker = None;
        Poll::Ready(())
    }
}

/// Polls `sleep` outside of tokio's cooperative budget. A `Sleep` that is polled without budget does not register its waker.
fn poll_unconstrained(mut sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
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

    /// A waker that counts how often it is woken.
    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Polls the timer.
        Poll {
            /// The index of the waker that polls the timer.
            waker: usize,
            /// The deadline, in milliseconds from now.
            after: u64,
            /// Whether the task has used up its cooperative budget.
            is_budget_spent: bool,
        },
        /// Advances the clock by milliseconds.
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_usize, 0..30_u64, any::<bool>()).prop_map(|(waker, after, is_budget_spent)| {
                Step::Poll {
                    waker,
                    after,
                    is_budget_spent,
                }
            }),
            (0..20_u64).prop_map(Step::Advance),
        ]
    }

    /// The last poll that was pending.
    struct PendingPoll {
        waker: usize,
        wakes_before: usize,
        deadline: Instant,
    }

    /// Checks that the last waker whose poll was pending is woken after its deadline.
    async fn check_last_waker_is_woken(steps: Vec<Step>) {
        let mut timer = pin!(MovingDeadlineTimer::default());
        let counters: [Arc<WakeCounter>; 3] = Default::default();
        let wakes = |waker: usize| counters[waker].0.load(Ordering::Relaxed);
        let mut pending: Option<PendingPoll> = None;
        for step in steps {
            match step {
                Step::Poll {
                    waker,
                    after,
                    is_budget_spent,
                } => {
                    let deadline = Instant::now() + Duration::from_millis(after);
                    let wakes_before = wakes(waker);
                    let std_waker = Waker::from(counters[waker].clone());
                    let poll = poll_fn(|cx| {
                        while is_budget_spent && pin!(consume_budget()).poll(cx).is_ready() {}
                        let cx = &mut Context::from_waker(&std_waker);
                        Poll::Ready(timer.as_mut().poll(deadline, cx))
                    });
                    let is_pending = poll.await.is_pending();
                    assert!(is_pending || deadline <= Instant::now());
                    pending = is_pending.then_some(PendingPoll {
                        waker,
                        wakes_before,
                        deadline,
                    });
                }
                Step::Advance(millis) => {
                    advance(Duration::from_millis(millis)).await;
                    // Tokio's timers fire at whole milliseconds.
                    sleep(Duration::from_millis(1)).await;
                }
            }
            if let Some(pending) = &pending {
                let is_due = pending.deadline < Instant::now();
                assert!(!is_due || wakes(pending.waker) > pending.wakes_before);
            }
        }
    }

    proptest! {
        #[test]
        fn last_waker_is_always_woken(steps in vec(step(), 0..80)) {
            let mut paused = runtime::Builder::new_current_thread();
            let paused = paused.enable_time().start_paused(true).build().unwrap();
            paused.block_on(check_last_waker_is_woken(steps));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_can_move_in_both_directions() {
        let mut timer = pin!(MovingDeadlineTimer::default());
        let start = Instant::now();
        for seconds in [10, 5, 7, 7, 30, 3] {
            let deadline = Instant::now() + seconds * SECOND;
            // An earlier poll with a later deadline has no effect.
            let later = deadline + 20 * SECOND;
            let poll = poll_fn(|cx| Poll::Ready(timer.as_mut().poll(later, cx))).await;
            assert!(poll.is_pending());
            poll_fn(|cx| timer.as_mut().poll(deadline, cx)).await;
            assert_eq!(Instant::now(), deadline);
        }
        assert_eq!(start.elapsed(), 62 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn task_without_budget_is_woken() {
        let mut timer = pin!(MovingDeadlineTimer::default());
        let deadline = Instant::now() + SECOND;
        poll_fn(|cx| {
            while pin!(consume_budget()).poll(cx).is_ready() {}
            Poll::Ready(timer.as_mut().poll(deadline, cx).is_pending())
        })
        .await;
        poll_fn(|cx| timer.as_mut().poll(deadline, cx)).await;
        assert_eq!(Instant::now(), deadline);
    }
}
