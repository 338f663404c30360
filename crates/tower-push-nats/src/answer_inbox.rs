use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::error::Error;

/// The subscription that gets the answers to all requests of a connection.
///
/// The NATS client has such a subscription, too, but it remembers each request that gets no answer for as long as the client exists: each
/// publication that the server refuses, and each one that takes too long.
#[derive(Debug)]
pub(crate) struct AnswerInbox {
    /// A subject for an answer is this prefix, a dot, and the number of the request.
    prefix: String,
    requests: Arc<Mutex<WaitingRequests>>,
    task: JoinHandle<()>,
}

/// The requests that wait for their answers, by their numbers.
#[derive(Debug, Default)]
struct WaitingRequests {
    last_number: u64,
    senders: HashMap<u64, oneshot::Sender<Message>>,
}

/// The answer to one request. When this value is dropped, the inbox forgets the request.
#[derive(Debug)]
pub(crate) struct PendingAnswer {
    number: u64,
    requests: Arc<Mutex<WaitingRequests>>,
    receiver: oneshot::Receiver<Message>,
}

impl AnswerInbox {
    /// Creates an inbox. `answers` is the subscription to all subjects with the prefix and one more part. `on_end` is called when the NATS client
    /// has ended.
    pub(crate) fn new(
        prefix: String,
        answers: Subscriber,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Self {
        let requests = Arc::new(Mutex::default());
        let task = tokio::spawn({
            let requests = requests.clone();
            async move {
                deliver_answers(answers, &requests).await;
                on_end();
                lock(&requests).senders.clear();
            }
        });
        Self {
            prefix,
            requests,
            task,
        }
    }

    /// Registers a request. Returns its answer, and the subject for the answer.
    pub(crate) fn register(&self) -> (PendingAnswer, String) {
        let (sender, receiver) = oneshot::channel();
        let number = lock(&self.requests).add(sender);
        let answer = PendingAnswer {
            number,
            requests: self.requests.clone(),
            receiver,
        };
        (answer, format!("{}.{number}", self.prefix))
    }
}

impl Drop for AnswerInbox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PendingAnswer {
    pub(crate) async fn wait(mut self) -> Result<Message, Error> {
        let answer = (&mut self.receiver).await;
        answer.map_err(|_| Error::disconnected())
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        lock(&self.requests).senders.remove(&self.number);
    }
}

impl WaitingRequests {
    fn add(&mut self, sender: oneshot::Sender<Message>) -> u64 {
        self.last_number += 1;
        self.senders.insert(self.last_number, sender);
        self.last_number
    }
}

/// Passes each answer to its request, until the NATS client ends.
async fn deliver_answers(mut answers: Subscriber, requests: &Mutex<WaitingRequests>) {
    while let Some(answer) = answers.next().await {
        let number = answer.subject.rsplit('.').next();
        let number = number.and_then(|number| number.parse().ok());
        let sender = number.and_then(|number: u64| lock(requests).senders.remove(&number));
        if let Some(sender) = sender {
            // The request may have been dropped meanwhile.
            let _ = sender.send(answer);
        }
    }
}

fn lock(requests: &Mutex<WaitingRequests>) -> MutexGuard<'_, WaitingRequests> {
    // No code panics while it holds the lock.
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_request_is_forgotten() {
        let requests = Arc::new(Mutex::new(WaitingRequests::default()));
        let register = || {
            let (sender, receiver) = oneshot::channel();
            PendingAnswer {
                number: lock(&requests).add(sender),
                requests: requests.clone(),
                receiver,
            }
        };
        let [first, second] = [register(), register()];
        assert_ne!(first.number, second.number);
        drop(first);
        let left: Vec<_> = lock(&requests).senders.keys().copied().collect();
        assert_eq!(left, [second.number]);
        drop(second.wait());
        assert!(lock(&requests).senders.is_empty());
    }
}
