//! A hub of the [Mercure protocol](https://mercure.rocks/spec), revision 8, and on demand for clients of revision 7. The library has the topics, the history, the cursors and the
//! event streams; this program adds Mercure's matchers, tokens and documents.
//!
//! ```text
//! cargo run --example mercure
//! ```
//! The program prints its address. Everybody can subscribe to public updates:
//! ```text
//! curl -N 'http://127.0.0.1:3000/.well-known/mercure?match=https://example.com/books/1'
//! curl -N 'http://127.0.0.1:3000/.well-known/mercure?matchURLPattern=https://example.com/books/:id'
//! ```
//! A publisher needs a token. The program accepts tokens that are signed with the key `!ChangeThisMercureHubJWTSecretKey!` (HS256), have the
//! type `at+jwt`, and name the hub as their audience. These commands make a token that is valid for an hour, publish an update, and list the
//! subscriptions:
//! ```text
//! base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
//! HUB=http://127.0.0.1:3000/.well-known/mercure
//! HEAD=$(printf '{"alg":"HS256","typ":"at+jwt"}' | base64url)
//! DETAILS='[{"type":"mercure","actions":["publish","subscribe"],"topics":[{"match":"*"}]}]'
//! CLAIMS=$(printf '{"aud":"%s","exp":%s,"authorization_details":%s}' $HUB $(($(date +%s) + 3600)) "$DETAILS" | base64url)
//! MAC=$(printf %s.%s $HEAD $CLAIMS | openssl dgst -sha256 -hmac '!ChangeThisMercureHubJWTSecretKey!' -binary | base64url)
//! curl -H "Authorization: Bearer $HEAD.$CLAIMS.$MAC" -d topic=https://example.com/books/1 -d data=hello $HUB
//! curl -H "Authorization: Bearer $HEAD.$CLAIMS.$MAC" $HUB/subscriptions
//! ```
//! Another address, and the URL at which clients reach the hub: `cargo run --example mercure 127.0.0.1:8080 https://hub.example.com`.
//!
//! | variable of the environment | default | meaning |
//! |---|---|---|
//! | `MERCURE_PUBLISHER_JWT_KEY`, `MERCURE_SUBSCRIBER_JWT_KEY` | `!ChangeThis…` | the secret, or the public key in PEM |
//! | `MERCURE_PUBLISHER_JWT_ALG`, `MERCURE_SUBSCRIBER_JWT_ALG` | `HS256` | the only algorithm of tokens: `RS256`, `ES256`, `EdDSA`, … |
//! | `MERCURE_ORIGINS` | none | origins, separated by commas, whose pages may send cookies |
//! | `MERCURE_COMPATIBILITY` | none | `7` also accepts what clients of revision 7 send: URI templates, several topics, and tokens with the claim `mercure` |
//!
//! # How updates are published
//! The hub has two topics for each topic of Mercure: one for public updates, and one for private ones (`TopicName`). A subscriber reads the
//! private one if its token grants the topic. So private updates need no filter for each subscriber, and a token decides about the history
//! as about new updates. Matchers that are no exact match are one `TopicPattern` for each subscriber.
//!
//! The history is in memory: the last 1000 updates of each topic. A subscriber of a URL pattern gets the history of at most 256 topics.

mod error;
mod matcher;
mod publish;
mod revision7;
mod subscribe;
mod subscriptions;
mod token;
mod topic_name;

use std::{
    env,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{HeaderName, HeaderValue, Method, Request, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use serde_json::json;
use tokio::net::TcpListener;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tower_push::{
    BoxError, Error, Event, EventId, Hub, OriginPolicy,
    source::{TopicSet, hub::PublishOptions},
};
use url::Url;

use self::{error::HubError, subscriptions::ActiveSubscriptions, token::TokenVerifier};

/// The path of every Mercure hub. Topics with this path, or below it, are the hub's own.
const HUB_PATH: &str = "/.well-known/mercure";

/// The path of the hub's metadata, from RFC 9728.
const METADATA_PATH: &str = "/.well-known/oauth-protected-resource/.well-known/mercure";

/// The `lastEventID` before the first update of a hub, and the cursor of a client that wants all updates.
const EARLIEST: &str = "earliest";

/// The maximum length of the body of a publication, in bytes.
const MAX_BODY_LEN: usize = 1 << 20;

const DEFAULT_KEY: &str = "!ChangeThisMercureHubJWTSecretKey!";

/// What all requests share.
struct MercureHub {
    hub: Hub,
    /// The URL of the hub: its resource identifier, and the base of relative topics.
    url: Url,
    publishers: TokenVerifier,
    subscribers: TokenVerifier,
    subscriptions: ActiveSubscriptions,
    /// The id of the newest update. Publications take this lock, so that the id follows the order of the hub.
    last_event_id: Mutex<Option<EventId>>,
    /// The pages that may publish with a cookie.
    cookie_origins: OriginPolicy,
    /// Whether the hub accepts what clients of revision 7 send.
    accepts_revision_7: bool,
}

impl MercureHub {
    fn last_event_id(&self) -> String {
        let id = lock(&self.last_event_id);
        id.as_ref()
            .map_or(EARLIEST.to_owned(), |id| id.as_str().to_owned())
    }

    /// Publishes an update. Returns its id: `id`, or one that the hub makes.
    fn dispatch(
        &self,
        topics: TopicSet,
        event: Event,
        id: Option<EventId>,
    ) -> Result<EventId, Error> {
        let is_reserved = |id: &EventId| id.as_str() == EARLIEST || id.as_str().starts_with('~');
        let id = match id.filter(|id| !is_reserved(id)) {
            Some(id) => id,
            None => EventId::new(random_urn())?,
        };
        let mut last_event_id = lock(&self.last_event_id);
        let options = PublishOptions::new().id(id);
        let id = self.hub.publish_with(topics, event, &options)?;
        *last_event_id = Some(id.clone());
        Ok(id)
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    let local = format!("http://{}", listener.local_addr()?);
    let public = arguments.next().unwrap_or_else(|| local.clone());
    let origins = env::var("MERCURE_ORIGINS").unwrap_or_default();
    let origins: Vec<_> = origins.split(',').filter(|name| !name.is_empty()).collect();

    let url = Url::parse(&public)?.join(HUB_PATH)?;
    let mut cookie_origins = OriginPolicy::same_origin().require_origin();
    for origin in &origins {
        cookie_origins = cookie_origins.allow_origin(origin)?;
    }
    let accepts_revision_7 = match env::var("MERCURE_COMPATIBILITY").as_deref() {
        Ok("7") => true,
        Ok(other) if !other.is_empty() => return Err("MERCURE_COMPATIBILITY is 7 or absent".into()),
        _ => false,
    };
    let verifier = |role| verifier(role, &url, accepts_revision_7);
    let hub = Arc::new(MercureHub {
        hub: Hub::builder().max_events(1000).max_patterns(10_000).build(),
        publishers: verifier("PUBLISHER")?,
        subscribers: verifier("SUBSCRIBER")?,
        subscriptions: ActiveSubscriptions::default(),
        last_event_id: Mutex::default(),
        cookie_origins,
        accepts_revision_7,
        url,
    });
    let subscriptions = format!("{HUB_PATH}/subscriptions");
    let app = Router::new()
        .route("/", get(home_page))
        .route(HUB_PATH, any(hub_url))
        .route(&subscriptions, get(subscriptions::list))
        .route(
            &format!("{subscriptions}/{{*path}}"),
            get(subscriptions::list),
        )
        .route(METADATA_PATH, get(metadata))
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(hub.clone(), add_hub_link))
        .layer(cors(&origins)?)
        .with_state(hub);
    println!("open {local}");
    tower_push::serve(listener, app).await?;
    Ok(())
}

/// Reads the key and the algorithm of tokens for one role from the environment.
fn verifier(role: &str, url: &Url, accepts_revision_7: bool) -> Result<TokenVerifier, BoxError> {
    let variable = |name: &str| env::var(format!("MERCURE_{role}_JWT_{name}")).ok();
    let key = variable("KEY").unwrap_or_else(|| DEFAULT_KEY.to_owned());
    let algorithm = variable("ALG").unwrap_or_else(|| "HS256".to_owned());
    TokenVerifier::new(&key, algorithm.parse()?, url, accepts_revision_7)
}

/// Pages of every origin may use the hub. Only those of `origins` may send cookies.
fn cors(origins: &[&str]) -> Result<CorsLayer, BoxError> {
    let last_event_id = HeaderName::from_static("last-event-id");
    let cors = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CACHE_CONTROL,
            header::CONTENT_TYPE,
            last_event_id.clone(),
        ])
        .expose_headers([header::LINK, header::ETAG, last_event_id]);
    if origins.is_empty() {
        return Ok(cors.allow_origin(Any));
    }
    let origins: Result<Vec<HeaderValue>, _> = origins.iter().map(|name| name.parse()).collect();
    let origins = AllowOrigin::list(origins?);
    Ok(cors.allow_origin(origins).allow_credentials(true))
}

/// Adds the link with which clients discover the hub.
async fn add_hub_link(
    State(hub): State<Arc<MercureHub>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    let link = format!("<{}>; rel=\"mercure\"", hub.url);
    if let Ok(link) = HeaderValue::try_from(link) {
        response.headers_mut().append(header::LINK, link);
    }
    response
}

/// The URL of the hub: `GET` subscribes, `POST` publishes.
async fn hub_url(
    State(hub): State<Arc<MercureHub>>,
    request: Request<Body>,
) -> Result<Response, HubError> {
    match *request.method() {
        Method::GET => subscribe::subscribe(&hub, request).await,
        Method::POST => publish::publish(&hub, request).await,
        _ => {
            let allow = [(header::ALLOW, "GET, POST")];
            Ok((StatusCode::METHOD_NOT_ALLOWED, allow).into_response())
        }
    }
}

async fn home_page() -> &'static str {
    "A Mercure hub. Its URL is in the header Link.\n"
}

/// The metadata of the hub as a protected resource, from RFC 9728.
async fn metadata(State(hub): State<Arc<MercureHub>>) -> axum::Json<serde_json::Value> {
    axum::Json(json!({
        "resource": hub.url.as_str(),
        "bearer_methods_supported": ["header", "query"],
        "mercure_cookie": true,
        "mercure_version": 8,
    }))
}

/// Returns a random UUID (version 4) as a URN.
fn random_urn() -> String {
    format!("urn:uuid:{}", uuid::Uuid::new_v4())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
