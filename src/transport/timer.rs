use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// Set when it is first needed, and then left to run out where it would only be put off: to set it is dear, and what it waits
    /// for is put off with all that is sent.
    #[derive(Debug, Default)]
    pub(super) struct Timer {
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    /// Ready at that time.
    pub(super) fn poll(self: Pin<&mut Self>, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut sleep = self.project().sleep;
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
        }
        ready!(running.as_mut().poll(cx));
        if running.deadline() < at {
            running.as_mut().reset(at);
            ready!(running.poll(cx));
        }
        Poll::Ready(())
    }
}
