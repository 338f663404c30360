use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use self::sealed::Sealed;
use crate::{
    source::Push,
    transport::{NoBody, PushBody},
};

/// What a service behind a layer answers with: a [`Push`], or a response, which may carry one. It is implemented for nothing
/// else.
#[diagnostic::on_unimplemented(
    message = "a service behind a tower-push layer answers with a `Push` or a response, not with `{Self}`",
    note = "a service that answers with a stream becomes one by `.map_response(Push::new)`"
)]
pub trait IntoPushOrResponse: Sealed {
    /// The body of the responses that carry none.
    type Body;

    /// Which of the two it is.
    #[doc(hidden)]
    fn into_push_or_response(self) -> PushOrResponse<Self::Body>;
}

mod sealed {
    #[allow(unnameable_types, reason = "that is its purpose")]
    pub trait Sealed {}
}

impl Sealed for Push {}
impl<B> Sealed for Response<B> {}

/// What a service answered with.
#[doc(hidden)]
#[derive(Debug)]
pub enum PushOrResponse<B> {
    /// A push, and what the response that carried it has beside: headers and extensions that services in between have set.
    Push(Push, HeaderMap, Extensions),
    /// Any other response.
    Response(Response<B>),
}

impl IntoPushOrResponse for Push {
    type Body = NoBody;

    fn into_push_or_response(self) -> PushOrResponse<NoBody> {
        PushOrResponse::Push(self, HeaderMap::new(), Extensions::new())
    }
}

impl<B> IntoPushOrResponse for Response<B> {
    type Body = B;

    fn into_push_or_response(mut self) -> PushOrResponse<B> {
        let carried = self.extensions_mut().remove::<PushExtension>();
        let Some(push) = carried.and_then(PushExtension::take) else {
            return PushOrResponse::Response(self);
        };
        let (mut carrier, _) = self.into_parts();
        for name in ABOUT_THE_MESSAGE {
            carrier.headers.remove(name);
        }
        PushOrResponse::Push(push, carrier.headers, carrier.extensions)
    }
}

/// What describes the carrying response's own content.
const ABOUT_THE_MESSAGE: [HeaderName; 11] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::TRANSFER_ENCODING,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::EXPIRES,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// What a cache policy forbids, the most first: to store, to share, to use unasked.
fn forbids(headers: &HeaderMap) -> [bool; 3] {
    ["no-store", "private", "no-cache"].map(|directive| {
        let mut policies = headers.get_all(header::CACHE_CONTROL).iter();
        policies.any(|policy| {
            let policy = String::from_utf8_lossy(policy.as_bytes());
            policy.to_ascii_lowercase().contains(directive)
        })
    })
}

/// Whether the carrier's cache policy stays: it may be a person's word, and is never weakened.
fn is_as_strict(carrier: &HeaderMap, push: &HeaderMap) -> bool {
    let forbidden = forbids(carrier);
    forbidden[..2].contains(&true) && forbidden >= forbids(push)
}

/// A push inside a response's extensions, which want to be `Clone`.
#[derive(Clone)]
struct PushExtension(Arc<Mutex<Option<Push>>>);

impl PushExtension {
    /// The first of the clones to ask gets it.
    fn take(self) -> Option<Push> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The response that carries a push to the layer around the service. Without a layer it is what it looks like: a 500 that says
/// so.
impl From<Push> for Response<String> {
    fn from(push: Push) -> Self {
        let mut response = Response::new(UNLAYERED.to_owned());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text);
        let carried = PushExtension(Arc::new(Mutex::new(Some(push))));
        response.extensions_mut().insert(carried);
        response
    }
}

const UNLAYERED: &str = "This response carries a tower_push::Push that no layer turned into a push response: \
    add .layer(tower_push::PushLayer::new()) around the service.\n";

impl fmt::Debug for PushExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushExtension")
    }
}

/// The push's response, under what its carrier has beside.
pub(super) fn merge<B>(
    response: Response<PushBody>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Response<PushBody<B>> {
    let mut response = response.map(PushBody::beside);
    let mut merged = headers;
    let keeps_policy = is_as_strict(&merged, response.headers());
    for name in response.headers().keys() {
        let is_kept = match *name {
            header::VARY | header::SET_COOKIE => true,
            header::CACHE_CONTROL => keeps_policy,
            _ => false,
        };
        if !is_kept {
            merged.remove(name);
        }
    }
    for (name, value) in response.headers() {
        if name != header::CACHE_CONTROL || !keeps_policy {
            merged.append(name, value.clone());
        }
    }
    *response.headers_mut() = merged;
    response.extensions_mut().extend(extensions);
    response
}
