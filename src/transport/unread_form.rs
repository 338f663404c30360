use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use http_body::Body;
use tower_push_proto::header_list::media_type;

use super::{BoxResponseFuture, Transport, rejection_response};
use crate::source::{FormBody, Push, Rejection};

/// The extension of a request's head with the body of a `QUERY` that is not read yet.
///
/// A layer or service puts the body into the head. The body is read once all guards have admitted the request, so that a client that is
/// refused cannot make the server wait for its body. Clones of the head share the body, and only the first taker gets it.
#[derive(Clone)]
pub(crate) struct UnreadForm(Arc<Mutex<Option<FormFuture>>>);

/// Reads the bytes of a form.
type FormFuture = Pin<Box<dyn Future<Output = Result<Bytes, Rejection>> + Send>>;

/// The media type of forms.
const FORM_MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// The response header that names the media types that the body of a `QUERY` may have (RFC 10008).
const ACCEPT_QUERY: HeaderName = HeaderName::from_static("accept-query");

/// The maximum length of a form, in bytes.
pub(crate) const MAX_FORM_LEN: usize = 64 * 1024;

/// The time within which the body of a request must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls [`respond`](Transport::respond) of a transport, after reading the form in the body of a `QUERY` request.
///
/// The form is read if `head` is from a [layer](crate::layer) or [`service`](crate::service), and if the transport does not
/// [read it itself](Transport::reads_form). `respond` gets a head whose extensions contain the form as a [`FormBody`]. If the form cannot be
/// read, the response is 400, 408, 413 or 415, and `respond` is not called.
///
/// A transport around other transports calls this function instead of `respond`:
///
/// ```
/// use std::sync::Arc;
///
/// use http::{Version, request::Parts};
/// use tower_push::{
///     Push,
///     transport::{BoxResponseFuture, Preference, Transport, respond_with_form},
/// };
///
/// /// Refuses requests without a token, before their bodies are read.
/// #[derive(Debug)]
/// struct WithToken<T>(Arc<T>);
///
/// impl<T: Transport> Transport for WithToken<T> {
///     fn reads_form(&self) -> bool {
///         true
///     }
///     fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
///         if head.headers.contains_key("authorization") {
///             return respond_with_form(&self.0, head, push);
///         }
///         # use tower_push::{source::Rejection, transport::rejection_response};
///         let rejection = Rejection::new(http::StatusCode::UNAUTHORIZED);
///         Box::pin(async { rejection_response(rejection) })
///     }
///     fn name(&self) -> &'static str {
///         self.0.name()
///     }
///     fn media_types(&self) -> &[&'static str] {
///         self.0.media_types()
///     }
///     fn methods(&self, version: Version) -> &[&'static str] {
///         self.0.methods(version)
///     }
///     fn preference(&self, head: &Parts) -> Option<Preference> {
///         self.0.preference(head)
///     }
///     fn is_polling(&self) -> bool {
///         self.0.is_polling()
///     }
/// }
/// ```
pub fn respond_with_form<T>(transport: &Arc<T>, head: &mut Parts, push: Push) -> BoxResponseFuture
where
    T: Transport + ?Sized,
{
    if transport.reads_form() {
        return transport.respond(head, push);
    }
    let Some(form) = head.extensions.remove::<UnreadForm>() else {
        return transport.respond(head, push);
    };
    let (transport, mut head) = (transport.clone(), head.clone());
    Box::pin(async move {
        match form.read_into(&mut head).await {
            Ok(()) => transport.respond(&mut head, push).await,
            Err(rejection) => rejection_response(rejection),
        }
    })
}

impl UnreadForm {
    /// Puts a body into the extensions of `head`. `reader` reads the body.
    pub(crate) fn insert<F>(head: &mut Parts, reader: F)
    where
        F: Future<Output = Result<Bytes, Rejection>> + Send + 'static,
    {
        let reader: FormFuture = Box::pin(reader);
        head.extensions
            .insert(Self(Arc::new(Mutex::new(Some(reader)))));
    }

    /// Puts `body` into the extensions of `head`.
    pub(crate) fn insert_body<B: Body + Send + 'static>(head: &mut Parts, body: B) {
        Self::insert(head, read_body(body, MAX_FORM_LEN));
    }

    /// Returns whether the extensions of `head` contain a form that is not read yet.
    pub(crate) fn is_in(head: &Parts) -> bool {
        head.extensions.get::<Self>().is_some()
    }

    /// Reads the form, and inserts it into the extensions of `head`.
    ///
    /// # Errors
    /// Returns the rejection of a body that cannot be read, of a body without `Content-Type`, of a body with another type, and of a form that is not
    /// UTF-8. An empty body may have any type.
    async fn read_into(self, head: &mut Parts) -> Result<(), Rejection> {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(reader) = reader else {
            return Ok(());
        };
        let form = within_body_timeout(reader).await?;
        if !form.is_empty() && !is_form(&head.headers) {
            return Err(unsupported_content(&head.headers));
        }
        let form = std::str::from_utf8(&form).map_err(|_| {
            Rejection::new(StatusCode::BAD_REQUEST).message("the form is not UTF-8")
        })?;
        head.extensions.insert(FormBody::new(form));
        Ok(())
    }
}

/// Refuses the body of a `QUERY` that is no form.
fn unsupported_content(headers: &HeaderMap) -> Rejection {
    let status = match headers.contains_key(header::CONTENT_TYPE) {
        true => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        false => StatusCode::BAD_REQUEST,
    };
    Rejection::new(status)
        .message("the content of a QUERY must be application/x-www-form-urlencoded")
        .header(ACCEPT_QUERY, HeaderValue::from_static(FORM_MEDIA_TYPE))
}

/// Returns whether the `Content-Type` is that of forms.
pub(crate) fn is_form(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(media_type);
    media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case(FORM_MEDIA_TYPE))
}

/// Waits until `reader` has read the body of a request. Returns a rejection with the status 408 if the body does not arrive in time.
pub(crate) async fn within_body_timeout(
    reader: impl Future<Output = Result<Bytes, Rejection>>,
) -> Result<Bytes, Rejection> {
    let mut reader = pin!(reader);
    // The timer needs a tokio runtime, and is created only if the body has not arrived yet.
    let first_poll = poll_fn(|cx| Poll::Ready(reader.as_mut().poll(cx)));
    if let Poll::Ready(result) = first_poll.await {
        return result;
    }
    match tokio::time::timeout(BODY_TIMEOUT, reader).await {
        Ok(result) => result,
        Err(_) => Err(Rejection::new(StatusCode::REQUEST_TIMEOUT)),
    }
}

/// Reads a whole body of at most `max_len` bytes.
///
/// # Errors
/// Returns a rejection with the status 413 if the body is too long, or 400 if it breaks off.
pub(crate) async fn read_body<B: Body>(body: B, max_len: usize) -> Result<Bytes, Rejection> {
    let mut body = pin!(body);
    if body.size_hint().lower() > max_len as u64 {
        // A client that expects `100 (Continue)` has not sent the body yet.
        return Err(Rejection::new(StatusCode::PAYLOAD_TOO_LARGE));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| Rejection::new(StatusCode::BAD_REQUEST))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if data.remaining() > max_len - bytes.len() {
            return Err(Rejection::new(StatusCode::PAYLOAD_TOO_LARGE));
        }
        bytes.put(data);
    }
    Ok(bytes.into())
}
