//! The error responses of RFC 6750 §3.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use url::Url;

use crate::METADATA_PATH;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HubError {
    /// The request has no token, and needs one. The URL is that of the hub.
    MissingToken(Url),
    InvalidToken,
    /// The token does not allow the request.
    InsufficientScope,
    /// The request is malformed.
    InvalidRequest(&'static str),
    TooLarge(&'static str),
    BodyTimeout,
    NotFound,
    /// A page of another origin has sent the request with a cookie.
    ForeignOrigin,
    /// The hub has no room for another subscription or topic.
    Full,
}

impl IntoResponse for HubError {
    fn into_response(self) -> Response {
        let (status, challenge, message) = match self {
            Self::MissingToken(hub) => {
                let metadata = hub.join(METADATA_PATH).map_or(String::new(), String::from);
                let challenge = format!("Bearer resource_metadata=\"{metadata}\"");
                let message = "this request needs an access token";
                (StatusCode::UNAUTHORIZED, Some(challenge), message)
            }
            Self::InvalidToken => bearer_error(
                StatusCode::UNAUTHORIZED,
                "invalid_token",
                "the access token is not valid",
            ),
            Self::InsufficientScope => bearer_error(
                StatusCode::FORBIDDEN,
                "insufficient_scope",
                "the access token does not allow this request",
            ),
            Self::InvalidRequest(message) => {
                bearer_error(StatusCode::BAD_REQUEST, "invalid_request", message)
            }
            Self::TooLarge(message) => (StatusCode::PAYLOAD_TOO_LARGE, None, message),
            Self::BodyTimeout => {
                let message = "the body did not arrive in time";
                (StatusCode::REQUEST_TIMEOUT, None, message)
            }
            Self::NotFound => (StatusCode::NOT_FOUND, None, "there is no such subscription"),
            Self::ForeignOrigin => {
                let message = "pages of this origin cannot publish with a cookie";
                (StatusCode::FORBIDDEN, None, message)
            }
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, None, "the hub is full"),
        };
        let mut response = (status, format!("{message}\n")).into_response();
        let challenge = challenge.and_then(|challenge| HeaderValue::try_from(challenge).ok());
        if let Some(challenge) = challenge {
            let headers = response.headers_mut();
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

fn bearer_error(
    status: StatusCode,
    code: &str,
    message: &'static str,
) -> (StatusCode, Option<String>, &'static str) {
    (status, Some(format!("Bearer error=\"{code}\"")), message)
}
