//! `examples/mercure`, judged by the text of the Mercure protocol, revision 8, and in `revision7` revision 7. Each test names the section that it checks.

mod clients;
mod publications;
mod revision7;
mod subscriptions;
mod tokens;

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use testkit::{TEST_TIMEOUT, example_process::ExampleProcess};
use tokio::time::timeout;

const KEY: &str = "!ChangeThisMercureHubJWTSecretKey!";
const HUB: &str = "https://hub.example.com/.well-known/mercure";
const BOOK: &str = "https://example.com/books/1";

/// A hub whose URL is [`HUB`], although it is reached at another address.
struct MercureServer {
    _process: ExampleProcess,
    address: String,
}

impl MercureServer {
    fn start() -> Self {
        Self::start_with_env(&[])
    }

    fn start_with_env(variables: &[(&str, &str)]) -> Self {
        let arguments = ["https://hub.example.com"];
        let process = ExampleProcess::start_with_env("mercure", &arguments, variables);
        let address = process.next_address();
        Self {
            _process: process,
            address,
        }
    }

    fn url(&self, query: &[(&str, &str)]) -> String {
        let url = format!("{}/.well-known/mercure", self.address);
        let url = reqwest::Url::parse_with_params(&url, query).unwrap();
        url.into()
    }

    fn get(&self, query: &[(&str, &str)]) -> RequestBuilder {
        Client::new().get(self.url(query))
    }

    /// Opens a stream.
    async fn subscribe(&self, query: &[(&str, &str)], token: Option<&str>) -> EventStream {
        let request = match token {
            Some(token) => self.get(query).bearer_auth(token),
            None => self.get(query),
        };
        EventStream::open(request).await
    }

    fn post(&self, form: &[(&str, &str)]) -> RequestBuilder {
        let form = reqwest::Url::parse_with_params("x:", form).unwrap();
        let form = form.query().unwrap_or_default().to_owned();
        let form_type = "application/x-www-form-urlencoded";
        let request = Client::new().post(self.url(&[]));
        request.header("content-type", form_type).body(form)
    }

    /// Publishes with a token that allows every topic, and returns the id.
    async fn publish(&self, form: &[(&str, &str)]) -> String {
        let token = token(&["publish"], &["*"]);
        let response = self.post(form).bearer_auth(token).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let content_type = response.headers()["content-type"].to_str().unwrap();
        assert!(content_type.starts_with("text/plain"));
        response.text().await.unwrap()
    }

    async fn get_path(&self, path: &str, token: Option<&str>) -> Response {
        let mut request = Client::new().get(format!("{}{path}", self.address));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap()
    }
}

/// An open stream of updates.
struct EventStream {
    response: Response,
    text: String,
}

impl EventStream {
    async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let content_type = response.headers()["content-type"].to_str().unwrap();
        assert!(content_type.starts_with("text/event-stream"));
        let text = String::new();
        Self { response, text }
    }

    /// Reads until the stream has an event with this text, and returns the bytes of the events since the last call, without comments.
    async fn read_until(&mut self, end: &str) -> String {
        while !(self.text.contains(end) && self.text.ends_with("\n\n")) {
            let chunk = timeout(TEST_TIMEOUT, self.response.chunk()).await;
            let chunk = chunk.unwrap_or_else(|_| panic!("no {end:?} in {:?}", self.text));
            let chunk = chunk.unwrap().expect("the stream goes on");
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        let text = std::mem::take(&mut self.text);
        let lines = text.split_inclusive('\n');
        lines.filter(|line| *line != ":\n").collect()
    }

    fn last_event_id(&self) -> Option<&str> {
        let id = self.response.headers().get("last-event-id")?;
        Some(id.to_str().unwrap())
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

fn claims(details: Value) -> Value {
    json!({ "aud": HUB, "exp": now() + 3600, "authorization_details": details })
}

fn details(actions: &[&str], topics: &[&str]) -> Value {
    let topics: Vec<_> = topics.iter().map(|text| json!({ "match": text })).collect();
    json!([{ "type": "mercure", "actions": actions, "topics": topics }])
}

/// Signs a token with the type of access tokens.
fn sign(claims: &Value) -> String {
    sign_with(
        claims,
        Some("at+jwt"),
        Algorithm::HS256,
        &EncodingKey::from_secret(KEY.as_bytes()),
    )
}

fn sign_with(claims: &Value, typ: Option<&str>, algorithm: Algorithm, key: &EncodingKey) -> String {
    let mut header = Header::new(algorithm);
    header.typ = typ.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn token(actions: &[&str], topics: &[&str]) -> String {
    sign(&claims(details(actions, topics)))
}

fn challenge(response: &Response) -> &str {
    response.headers()["www-authenticate"].to_str().unwrap()
}
