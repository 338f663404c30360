//! Response bodies, read to their end.

use std::fmt;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tower_push::{BoxError, PushBody};

/// Reads `body` to its end and returns it as text. Panics if the body fails or is not UTF-8.
pub async fn body_text<B>(body: B) -> String
where
    B: Body<Data = Bytes>,
    B::Error: fmt::Debug,
{
    let bytes = body.collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Reads `body` until it ends or fails. Returns the data frames, and the error if the body has failed.
pub async fn body_frames(mut body: PushBody) -> (Vec<Bytes>, Result<(), BoxError>) {
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frames.push(frame.into_data().unwrap()),
            Err(error) => return (frames, Err(error)),
        }
    }
    (frames, Ok(()))
}
