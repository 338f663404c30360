use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_nats::{
    Client, Event as ClientEvent, HeaderMap, Message, Request, ServerError, Subscriber,
    connection::State,
};
use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{error::Error, nats_servers::NatsServers};

/// The connection of this process to the servers. The NATS client inside reconnects by itself.
#[derive(Debug)]
pub(crate) struct NatsConnection {
    client: Client,
    events: Arc<ConnectionEvents>,
    /// The longest time for an attempt to connect, and for the answer to a request.
    timeout: Duration,
}

/// The events of the connection: changes of its state, and the newest refusal.
#[derive(Debug)]
struct ConnectionEvents {
    changes: watch::Sender<()>,
    /// The newest refusal of a subject, as the server has worded it.
    refusal: Mutex<Option<String>>,
}

/// Notices that the connection breaks after this value was created.
#[derive(Debug)]
pub(crate) struct ConnectionLossDetector {
    changes: watch::Receiver<()>,
    connects: u64,
}

impl NatsConnection {
    /// Connects to one of the servers.
    pub(crate) async fn connect(servers: &NatsServers, timeout: Duration) -> Result<Self, Error> {
        let events = Arc::new(ConnectionEvents {
            changes: watch::Sender::new(()),
            refusal: Mutex::default(),
        });
        let options = servers.connect_options(timeout).event_callback({
            let events = events.clone();
            move |event| {
                events.record(event);
                std::future::ready(())
            }
        });
        let client = options.connect(servers.addresses()).await?;
        Ok(Self {
            client,
            events,
            timeout,
        })
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns whether the server has at least this version.
    pub(crate) fn has_version(&self, (major, minor, patch): (i64, i64, i64)) -> bool {
        self.client.is_server_compatible(major, minor, patch)
    }

    /// The largest number of bytes of a message with its headers.
    pub(crate) fn max_message_len(&self) -> usize {
        self.client.max_payload()
    }

    /// Returns a detector of the loss of the present connection.
    ///
    /// # Errors
    /// [`Error::is_unavailable`] if there is no connection now. The NATS client would keep a message that is sent now until it is connected
    /// again.
    pub(crate) fn loss_detector(&self) -> Result<ConnectionLossDetector, Error> {
        // The receiver is created first, so that it notices a change after the check.
        let changes = self.events.changes.subscribe();
        match self.client.connection_state() {
            State::Connected => Ok(ConnectionLossDetector {
                changes,
                connects: self.connect_count(),
            }),
            State::Pending | State::Disconnected => {
                Err(Error::unavailable("there is no connection"))
            }
        }
    }

    /// Waits until the connection of a detector is lost.
    pub(crate) async fn wait_until_broken(&self, detector: &mut ConnectionLossDetector) -> Error {
        self.wait_for_interruption(detector, None).await
    }

    /// Like [`wait_until_broken`](Self::wait_until_broken), but also returns the error if the server refuses a message with this subject.
    pub(crate) async fn wait_until_refused(
        &self,
        detector: &mut ConnectionLossDetector,
        subject: &str,
    ) -> Error {
        self.wait_for_interruption(detector, Some(subject)).await
    }

    /// Waits until the connection is broken, or the server refuses the subject of a request, or a subscription.
    async fn wait_for_interruption(
        &self,
        detector: &mut ConnectionLossDetector,
        subject: Option<&str>,
    ) -> Error {
        loop {
            // `self.events` holds the sender, so waiting for a change never fails.
            if detector.changes.changed().await.is_err() {
                return Error::disconnected();
            }
            let is_connected = self.client.connection_state() == State::Connected;
            if !is_connected || self.connect_count() != detector.connects {
                return Error::disconnected();
            }
            if let Some(subject) = subject
                && let Some(refusal) = self.events.take_refusal_of(subject)
            {
                return Error::unauthorized(&refusal);
            }
        }
    }

    fn connect_count(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Sends a request, and waits for the answer.
    pub(crate) async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, Error> {
        let mut request = Request::new().payload(payload).timeout(None);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let mut detector = self.loss_detector()?;
        let answer = async {
            tokio::select! {
                answer = self.client.send_request(subject.clone(), request) => Ok(answer?),
                error = self.wait_for_interruption(&mut detector, Some(&subject)) => Err(error),
            }
        };
        match timeout(self.timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.leave_silent_server().await),
        }
    }

    /// Sends a request that has several answers. Returns the subscription that gets them.
    pub(crate) async fn request_many(
        &self,
        subject: String,
        payload: Bytes,
    ) -> Result<Subscriber, Error> {
        let answers = self.client.new_inbox();
        let subscriber = self.subscribe(answers.clone()).await?;
        self.send(subject, answers, payload).await?;
        Ok(subscriber)
    }

    pub(crate) fn new_inbox(&self) -> String {
        self.client.new_inbox()
    }

    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, Error> {
        let subscribed = timeout(self.timeout, self.client.subscribe(subject)).await;
        Ok(subscribed.map_err(|_| Error::timeout())??)
    }

    /// Sends a message whose answers go to the subject `reply_to`.
    pub(crate) async fn send(
        &self,
        subject: String,
        reply_to: String,
        payload: Bytes,
    ) -> Result<(), Error> {
        let send = self.client.publish_with_reply(subject, reply_to, payload);
        Ok(timeout(self.timeout, send)
            .await
            .map_err(|_| Error::timeout())??)
    }

    /// Reconnects, to another server or to the same one, after the server has not answered in time. Returns the error for this.
    ///
    /// During an attempt to connect, this method does not ask for another attempt: it would break the connection that the attempt makes.
    pub(crate) async fn leave_silent_server(&self) -> Error {
        if self.client.connection_state() == State::Connected {
            // The queue of the NATS client can be full.
            let _ = timeout(self.timeout, self.client.force_reconnect()).await;
        }
        Error::timeout()
    }

    /// Waits until there is a connection, for a limited time.
    pub(crate) async fn wait_until_connected_or_timeout(&self) {
        let mut changes = self.events.changes.subscribe();
        let connected = async {
            while self.client.connection_state() != State::Connected {
                // The NATS client sends the connection event only after it has set its state.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = connected => {}
            () = sleep(self.timeout) => {}
        }
    }
}

impl ConnectionEvents {
    fn record(&self, event: ClientEvent) {
        if let ClientEvent::ServerError(ServerError::Other(text)) = event {
            if !text.to_ascii_lowercase().contains("permissions violation") {
                return;
            }
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
        self.changes.send_replace(());
    }

    /// Returns the server's newest refusal, if this refusal concerns `subject` or a subscription for answers.
    fn take_refusal_of(&self, subject: &str) -> Option<String> {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let is_subject = |text: &mut String| {
            text.contains(&format!("\"{subject}\"")) || text.contains("Subscription to")
        };
        refusal.take_if(is_subject)
    }
}
