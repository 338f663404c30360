//! Access tokens: JWTs as of RFC 9068, whose claim `authorization_details` says which actions are allowed on which topics. Tokens of revision 7 are
//! JWTs of any other type, with the claim `mercure`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header, request::Parts};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tower_push::BoxError;
use url::Url;

use crate::{error::HubError, matcher::Matcher, revision7, subscribe::read_pairs};

/// The name of the cookie with the token.
const COOKIE: &str = "mercureAccessToken";

const MAX_TOKEN_LEN: usize = 32 * 1024;

/// The maximum number of authorization details of a token.
const MAX_DETAILS: usize = 64;

/// The maximum number of topic matchers of an authorization detail.
const MAX_MATCHERS: usize = 64;

/// Verifies the tokens of one role.
pub(super) struct TokenVerifier {
    key: DecodingKey,
    algorithm: Algorithm,
    /// The URL of the hub, which is the audience of its tokens.
    hub_url: Url,
    accepts_revision_7: bool,
}

/// What a client can do with topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Publish,
    Subscribe,
}

/// A valid token.
#[derive(Clone, Debug)]
pub(super) struct AccessToken {
    pub(super) subject: Option<String>,
    /// Time until the token expires.
    pub(super) expires_in: Duration,
    details: Vec<AuthorizationDetail>,
    /// The claim `authorization_details`, or the selectors of revision 7, as JSON: tokens with the same text allow the same.
    pub(super) details_json: String,
}

/// An authorization detail of the type `mercure`.
#[derive(Clone, Debug)]
struct AuthorizationDetail {
    actions: Vec<Action>,
    topics: Vec<Matcher>,
    payload: Option<Map<String, Value>>,
}

/// Where a request has its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenPlace {
    Header,
    Query,
    Cookie,
}

#[derive(Deserialize)]
struct Claims {
    exp: f64,
    sub: Option<String>,
    #[serde(default)]
    authorization_details: Vec<Value>,
}

impl TokenVerifier {
    pub(super) fn new(
        key: &str,
        algorithm: Algorithm,
        hub_url: &Url,
        accepts_revision_7: bool,
    ) -> Result<Self, BoxError> {
        let text = key.as_bytes();
        let key = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                DecodingKey::from_secret(text)
            }
            Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(text)?,
            Algorithm::EdDSA => DecodingKey::from_ed_pem(text)?,
            _ => DecodingKey::from_rsa_pem(text)?,
        };
        Ok(Self {
            key,
            algorithm,
            hub_url: hub_url.clone(),
            accepts_revision_7,
        })
    }

    /// Reads and verifies the token of a request. Returns `None` if the request has no token.
    ///
    /// # Errors
    /// [`HubError::InvalidToken`] if the token is not valid.
    pub(super) fn read(&self, head: &Parts) -> Result<Option<(AccessToken, TokenPlace)>, HubError> {
        let Some((token, place)) = find_token(head, self.accepts_revision_7)? else {
            return Ok(None);
        };
        let token = self.verify(&token).ok_or(HubError::InvalidToken)?;
        Ok(Some((token, place)))
    }

    /// Reads and verifies the token of a request that needs one.
    pub(super) fn require(&self, head: &Parts) -> Result<(AccessToken, TokenPlace), HubError> {
        let token = self.read(head)?;
        token.ok_or_else(|| HubError::MissingToken(self.hub_url.clone()))
    }

    fn verify(&self, token: &str) -> Option<AccessToken> {
        if token.len() > MAX_TOKEN_LEN {
            return None;
        }
        // The algorithm is that of the configuration. The algorithm that the token names is not used to verify the token.
        let mut validation = Validation::new(self.algorithm);
        validation.validate_nbf = true;
        validation.leeway = 0;
        let header = decode_header(token).ok()?;
        if header.crit.is_some() {
            // RFC 7515 §4.1.11: the token has extensions that a verifier must know, and this one knows none.
            return None;
        }
        let is_access_token = header.typ.is_some_and(|token_type| {
            let names = ["at+jwt", "application/at+jwt"];
            names
                .iter()
                .any(|name| name.eq_ignore_ascii_case(&token_type))
        });
        match is_access_token {
            true => self.verify_access_token(token, validation),
            false if self.accepts_revision_7 => self.verify_revision_7(token, validation),
            false => None,
        }
    }

    fn verify_access_token(&self, token: &str, mut validation: Validation) -> Option<AccessToken> {
        validation.set_audience(&[self.hub_url.as_str()]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        let claims = decode::<Claims>(token, &self.key, &validation).ok()?.claims;
        Some(AccessToken {
            subject: claims.sub,
            expires_in: lifetime_until(claims.exp)?,
            details: self.read_details(&claims.authorization_details)?,
            details_json: Value::Array(claims.authorization_details).to_string(),
        })
    }

    /// Verifies a token of revision 7, which needs neither an audience nor a time at which it expires.
    fn verify_revision_7(&self, token: &str, mut validation: Validation) -> Option<AccessToken> {
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = decode::<revision7::Claims>(token, &self.key, &validation);
        let revision7::Claims { exp, sub, mercure } = claims.ok()?.claims;
        let publish = mercure.publish.unwrap_or_default();
        let subscribe = mercure.subscribe.unwrap_or_default();
        let detail = |action, selectors: &[String], payload| {
            Some(AuthorizationDetail {
                actions: vec![action],
                topics: revision7::read_selectors(selectors, &self.hub_url)?,
                payload,
            })
        };
        Some(AccessToken {
            subject: sub,
            expires_in: exp.map_or(Some(Duration::MAX), lifetime_until)?,
            details: vec![
                detail(Action::Publish, &publish, None)?,
                detail(Action::Subscribe, &subscribe, mercure.payload)?,
            ],
            details_json: json!({ "subscribe": subscribe }).to_string(),
        })
    }

    /// Reads the details of the type `mercure`. Returns `None` if one of them is malformed, because a part of a token must not be ignored.
    fn read_details(&self, details: &[Value]) -> Option<Vec<AuthorizationDetail>> {
        let mut read = Vec::new();
        for detail in details {
            let detail = detail.as_object()?;
            if detail.get("type")?.as_str()? == "mercure" {
                read.push(AuthorizationDetail::read(detail, &self.hub_url)?);
            }
        }
        (read.len() <= MAX_DETAILS).then_some(read)
    }
}

impl AccessToken {
    /// Returns whether the token allows the action on a topic.
    pub(super) fn allows(&self, action: Action, topic: &str) -> bool {
        let mut details = self.details.iter();
        details.any(|detail| detail.allows(action, topic))
    }

    /// Returns whether the token allows to read any private update.
    pub(super) fn allows_some(&self, action: Action) -> bool {
        let mut details = self.details.iter();
        details.any(|detail| detail.actions.contains(&action))
    }

    /// Returns the payload of a subscription with this matcher.
    pub(super) fn payload(&self, matcher: &Matcher) -> Option<&Map<String, Value>> {
        let mut details = self.details.iter();
        let detail = details.find(|detail| detail.allows(Action::Subscribe, &matcher.text))?;
        detail.payload.as_ref()
    }
}

impl AuthorizationDetail {
    fn read(detail: &Map<String, Value>, hub_url: &Url) -> Option<Self> {
        let actions = detail.get("actions")?.as_array()?.iter();
        let actions = actions.map(|action| match action.as_str()? {
            "publish" => Some(Action::Publish),
            "subscribe" => Some(Action::Subscribe),
            _ => None,
        });
        let actions = actions.collect::<Option<Vec<_>>>()?;
        let topics = detail.get("topics")?.as_array()?;
        if actions.is_empty() || topics.is_empty() || topics.len() > MAX_MATCHERS {
            return None;
        }
        let topics = topics
            .iter()
            .map(|topic| Matcher::from_json(topic, hub_url));
        let payload = match detail.get("payload") {
            Some(payload) => Some(payload.as_object()?.clone()),
            None => None,
        };
        Some(Self {
            actions,
            topics: topics.collect::<Option<_>>()?,
            payload,
        })
    }

    fn allows(&self, action: Action, topic: &str) -> bool {
        let mut topics = self.topics.iter();
        self.actions.contains(&action) && topics.any(|matcher| matcher.matches(topic))
    }
}

/// Returns the time until a token expires. Returns `None` if the token has expired.
fn lifetime_until(expires_at: f64) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    // `decode` accepts a token until the end of the second in which it expires.
    let lifetime = expires_at - now.as_secs_f64();
    (lifetime > 0.0).then(|| Duration::try_from_secs_f64(lifetime).unwrap_or(Duration::MAX))
}

/// Finds the token of a request: in the header, else in the query, else in the cookie. Revision 7 has other names of the parameter and the cookie.
fn find_token(
    head: &Parts,
    accepts_revision_7: bool,
) -> Result<Option<(String, TokenPlace)>, HubError> {
    let is_name = |name: &str, of_revision_8: &str, of_revision_7: &str| {
        name == of_revision_8 || (accepts_revision_7 && name == of_revision_7)
    };
    let mut headers = head.headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = headers.next() {
        let value = value.to_str().map_err(|_| HubError::InvalidToken)?;
        let (scheme, token) = value.split_once(' ').ok_or(HubError::InvalidToken)?;
        if !scheme.eq_ignore_ascii_case("Bearer") || headers.next().is_some() {
            return Err(HubError::InvalidToken);
        }
        return Ok(Some((token.trim().to_owned(), TokenPlace::Header)));
    }
    let query = read_pairs(head.uri.query().unwrap_or_default())?;
    let mut tokens = query
        .into_iter()
        .filter(|(name, _)| is_name(name, "access_token", revision7::TOKEN_PARAMETER));
    if let Some((_, token)) = tokens.next() {
        if tokens.next().is_some() {
            return Err(HubError::InvalidRequest("more than one access token"));
        }
        return Ok(Some((token, TokenPlace::Query)));
    }
    let is_cookie = |name: &str| is_name(name, COOKIE, revision7::COOKIE);
    let cookie = find_cookie(&head.headers, is_cookie);
    Ok(cookie.map(|token| (token.to_owned(), TokenPlace::Cookie)))
}

fn find_cookie(headers: &HeaderMap, is_name: impl Fn(&str) -> bool) -> Option<&str> {
    let headers = headers.get_all(header::COOKIE).iter();
    let cookies = headers.filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';'));
    pairs.find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        is_name(name).then_some(value.trim_matches('"'))
    })
}
