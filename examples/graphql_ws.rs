//! GraphQL over WebSocket: the protocol `graphql-transport-ws`, as the npm package `graphql-ws` and Apollo Client speak it.
//!
//! ```text
//! cargo run --example graphql_ws
//! ```
//! Another address: `cargo run --example graphql_ws 0.0.0.0:8080`. Clients connect with
//! `createClient({ url: "ws://127.0.0.1:3000/graphql", connectionParams: { token: "let me in" } })`.
//!
//! The example shows a source that reads the client's messages, answers from a task, and closes the connection with the codes that the
//! protocol names. [`execute`] stands for a GraphQL engine.

use std::{collections::HashMap, pin::Pin, time::Duration};

use axum::{Router, routing::any, serve::ListenerExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tokio_stream::{Stream, StreamExt, StreamMap, once, wrappers::ReceiverStream};
use tower_push::{
    BoxError, Event, Item, Push, WebSocketLayer,
    event::{CloseCode, CloseFrame, Payload},
    source::{ClientMessages, Rejection, Subscription, source_fn},
    transport::{StreamEnd, WebSocket, websocket::MessageFormat},
};

/// The protocol: <https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md>.
const SUBPROTOCOL: &str = "graphql-transport-ws";

/// How long a client may take to send `connection_init`.
const INIT_DEADLINE: Duration = Duration::from_secs(3);

/// The maximum number of operations of one connection at the same time.
const MAX_OPERATIONS: usize = 100;

const BAD_REQUEST: CloseCode = CloseCode::new(4400).unwrap();
const UNAUTHORIZED: CloseCode = CloseCode::new(4401).unwrap();
const FORBIDDEN: CloseCode = CloseCode::new(4403).unwrap();
const SUBPROTOCOL_NOT_ACCEPTABLE: CloseCode = CloseCode::new(4406).unwrap();
const INIT_TIMEOUT: CloseCode = CloseCode::new(4408).unwrap();
const SUBSCRIBER_EXISTS: CloseCode = CloseCode::new(4409).unwrap();
const TOO_MANY_INITS: CloseCode = CloseCode::new(4429).unwrap();
const INTERNAL_SERVER_ERROR: CloseCode = CloseCode::new(4500).unwrap();

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Answers that come from the task of a connection are sent even if the client has closed the connection meanwhile.
    let transport = WebSocket::new()
        .subprotocol(SUBPROTOCOL, MessageFormat::Plain)
        .answer_timeout(Duration::from_secs(1));
    let app = Router::new()
        .route("/graphql", any(async || Push::new(source_fn(connect))))
        .layer(WebSocketLayer::with(transport));

    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!(
        "open http://{}/graphql with a GraphQL client",
        listener.local_addr()?
    );
    // Without this option, TCP may hold an event back until the client has acknowledged the one before it.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, app).await?;
    Ok(())
}

type Items = Pin<Box<dyn Stream<Item = Result<Item, BoxError>> + Send>>;

async fn connect(subscription: Subscription) -> Result<Items, Rejection> {
    let messages = subscription.client_messages();
    let messages =
        messages.ok_or_else(|| Rejection::new(axum::http::StatusCode::UPGRADE_REQUIRED))?;
    if subscription.subprotocol() != Some(SUBPROTOCOL) {
        let close = closed(SUBPROTOCOL_NOT_ACCEPTABLE, "Subprotocol not acceptable");
        return Ok(Box::pin(once(Ok(close))));
    }
    // The stream ends when the task ends, because the task owns the only sender.
    let (sender, items) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(CloseError { code, reason }) = serve(messages, &sender).await {
            let _ = sender.send(Ok(closed(code, reason))).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(items)))
}

/// The codes of this protocol ask the client not to reconnect.
fn closed(code: CloseCode, reason: impl Into<String>) -> Item {
    Item::closed(CloseFrame::new(code, reason.into()), StreamEnd::FINISHED)
}

struct CloseError {
    code: CloseCode,
    reason: String,
}

fn close_error(code: CloseCode, reason: impl Into<String>) -> CloseError {
    CloseError {
        code,
        reason: reason.into(),
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ClientMessage {
    ConnectionInit { payload: Option<ConnectionParams> },
    Ping {},
    Pong {},
    Subscribe { id: String, payload: Operation },
    Complete { id: String },
}

#[derive(Deserialize)]
struct ConnectionParams {
    token: Option<String>,
}

#[derive(Deserialize)]
struct Operation {
    query: String,
    variables: Option<HashMap<String, Value>>,
}

/// The next result of an operation, or its end.
enum OperationUpdate {
    Next(Value),
    Complete,
}

/// The state of one connection.
#[derive(Default)]
struct Connection {
    has_init: bool,
    is_acknowledged: bool,
    /// The results of the operations that have not ended, by the ids that the client has given them.
    operations: StreamMap<String, Pin<Box<dyn Stream<Item = OperationUpdate> + Send>>>,
}

/// Serves one connection until the client closes it, or has broken the protocol.
async fn serve(
    mut messages: ClientMessages,
    sender: &mpsc::Sender<Result<Item, BoxError>>,
) -> Result<(), CloseError> {
    let mut connection = Connection::default();
    let mut init_deadline = std::pin::pin!(sleep(INIT_DEADLINE));
    loop {
        let has_operations = !connection.operations.is_empty();
        let answer = tokio::select! {
            message = messages.next() => match message {
                Some(message) => connection.on_message(parse(&message)?)?,
                None => return Ok(()),
            },
            Some((id, update)) = connection.operations.next(), if has_operations => {
                Some(connection.on_update(&id, update))
            }
            () = &mut init_deadline, if !connection.is_acknowledged => {
                return Err(close_error(INIT_TIMEOUT, "Connection initialisation timeout"));
            }
        };
        let Some(answer) = answer else { continue };
        let event = Event::json(&answer).map(Item::Event);
        // An error means that the connection has ended.
        if sender.send(event.map_err(BoxError::from)).await.is_err() {
            return Ok(());
        }
    }
}

impl Connection {
    /// Handles a message of the client. Returns the answer, if there is one.
    fn on_message(&mut self, message: ClientMessage) -> Result<Option<Value>, CloseError> {
        match message {
            ClientMessage::ConnectionInit { .. } if self.has_init => Err(close_error(
                TOO_MANY_INITS,
                "Too many initialisation requests",
            )),
            ClientMessage::ConnectionInit { payload } => {
                self.has_init = true;
                let token = payload.and_then(|params| params.token);
                if token.as_deref() != Some("let me in") {
                    return Err(close_error(FORBIDDEN, "Forbidden"));
                }
                self.is_acknowledged = true;
                Ok(Some(json!({ "type": "connection_ack" })))
            }
            ClientMessage::Ping {} => Ok(Some(json!({ "type": "pong" }))),
            ClientMessage::Pong {} => Ok(None),
            ClientMessage::Subscribe { .. } if !self.is_acknowledged => {
                Err(close_error(UNAUTHORIZED, "Unauthorized"))
            }
            ClientMessage::Subscribe { id, payload } => self.subscribe(id, &payload),
            ClientMessage::Complete { id } => {
                self.operations.remove(&id);
                Ok(None)
            }
        }
    }

    fn subscribe(
        &mut self,
        id: String,
        operation: &Operation,
    ) -> Result<Option<Value>, CloseError> {
        if self.operations.contains_key(&id) {
            let reason = format!("Subscriber for {id} already exists");
            return Err(close_error(SUBSCRIBER_EXISTS, reason));
        }
        let results = match self.operations.len() {
            MAX_OPERATIONS.. => Err(ExecuteError::Refused("too many operations".to_owned())),
            _ => execute(operation),
        };
        match results {
            Ok(results) => {
                let updates = results.map(OperationUpdate::Next);
                let updates = updates.chain(once(OperationUpdate::Complete));
                self.operations.insert(id, Box::pin(updates));
                Ok(None)
            }
            Err(ExecuteError::Refused(message)) => Ok(Some(
                json!({ "id": id, "type": "error", "payload": [{ "message": message }] }),
            )),
            // The details are for the server's log: the client learns only that the server has failed.
            Err(ExecuteError::Internal(details)) => {
                eprintln!("operation {id} failed: {details}");
                Err(close_error(INTERNAL_SERVER_ERROR, "Internal server error"))
            }
        }
    }

    /// Returns the message for a result of an operation, or for its end.
    fn on_update(&mut self, id: &str, update: OperationUpdate) -> Value {
        match update {
            OperationUpdate::Next(data) => {
                json!({ "id": id, "type": "next", "payload": { "data": data } })
            }
            OperationUpdate::Complete => {
                self.operations.remove(id);
                json!({ "id": id, "type": "complete" })
            }
        }
    }
}

fn parse(message: &Payload) -> Result<ClientMessage, CloseError> {
    let parsed = serde_json::from_slice(message.as_bytes());
    parsed.map_err(|error| close_error(BAD_REQUEST, format!("Invalid message: {error}")))
}

/// Why an operation has no results.
enum ExecuteError {
    /// The client's operation is refused, with this message. The connection goes on.
    Refused(String),
    /// The server has failed, with these details. The connection is closed.
    Internal(String),
}

/// Returns the results of an operation: `{ hello }`, or `subscription { countdown }` with the variable `from`. The operation
/// `{ broken }` stands for a failure of the server.
fn execute(
    operation: &Operation,
) -> Result<impl Stream<Item = Value> + Send + use<>, ExecuteError> {
    let (field, values) = if operation.query.contains("countdown") {
        let variables = operation.variables.as_ref();
        let from = variables.and_then(|variables| variables.get("from")?.as_u64());
        let count = from.unwrap_or(3).min(100);
        let values: Vec<Value> = (0..=count).rev().map(Value::from).collect();
        ("countdown", values)
    } else if operation.query.contains("hello") {
        ("hello", vec![Value::from("Hello, world!")])
    } else if operation.query.contains("broken") {
        return Err(ExecuteError::Internal("no database".to_owned()));
    } else {
        let message = format!("unknown operation: {}", operation.query);
        return Err(ExecuteError::Refused(message));
    };
    let ticks = tokio_stream::iter(values).throttle(Duration::from_millis(20));
    Ok(ticks.map(move |value| json!({ field: value })))
}
