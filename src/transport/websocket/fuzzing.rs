//! What the targets in `fuzz/` see of the inside.

use std::borrow::Cow;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Response, StatusCode, request::Parts};

use super::{
    decoder::{self, Message, Received, Rules},
    deflate::{self, InflateError},
    frame::CloseCode,
    handshake::{self, Terms},
};
use crate::{origin_policy::OriginPolicy, source::query, transport::PushBody};

#[derive(Debug)]
pub struct Decoder(decoder::Decoder);

/// What a decoder says, in a form that compares: a failure by its code.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Text(String),
    Binary(Vec<u8>),
    Compressed(bool, Vec<u8>),
    Dropped,
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Failed(u16),
}

impl Decoder {
    pub fn new(message: usize, allows_compressed: bool) -> Self {
        Self(decoder::Decoder::new(Rules {
            message,
            allows_compressed,
        }))
    }

    pub fn feed(&mut self, mut piece: &[u8], keeps: bool) -> Vec<Said> {
        let mut said = Vec::new();
        loop {
            let mut pinged = Vec::new();
            let mut ping = |payload: &[u8]| pinged = payload.to_vec();
            said.push(match self.0.decode(&mut piece, keeps, &mut ping) {
                Ok(Some(Received::Ping)) => Said::Ping(pinged),
                Ok(Some(received)) => received.into(),
                Ok(None) => {
                    assert!(piece.is_empty());
                    return said;
                }
                Err(violation) => Said::Failed(violation.code.get()),
            });
        }
    }

    pub fn is_idle(&self) -> bool {
        self.0.is_idle()
    }

    /// Of the message that is not whole, in bytes.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl From<Received> for Said {
    fn from(received: Received) -> Self {
        match received {
            Received::Message(Message::Text(text)) => Self::Text(text),
            Received::Message(Message::Binary(payload)) => Self::Binary(payload),
            Received::Message(Message::Compressed { is_text, payload }) => {
                Self::Compressed(is_text, payload)
            }
            Received::Dropped => Self::Dropped,
            Received::Ping => Self::Ping(Vec::new()),
            Received::Pong => Self::Pong,
            Received::Close(code) => Self::Close(code.map(CloseCode::get)),
        }
    }
}

/// The window's bits, and what to answer.
pub fn negotiate(headers: &HeaderMap) -> Option<(u8, HeaderValue)> {
    let (agreed, answer) = deflate::negotiate(headers)?;
    Some((agreed.window_bits, answer))
}

pub fn compress(payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    deflate::compress(payload, &mut out);
    out.into()
}

/// An error is whether it would be too big.
pub fn inflate(compressed: &[u8], limit: usize) -> Result<Vec<u8>, bool> {
    deflate::inflate(compressed, limit).map_err(|error| error == InflateError::TooBig)
}

pub fn is_asked(head: &Parts) -> bool {
    handshake::is_asked(head)
}

pub fn handshake(
    head: &mut Parts,
    protocols: &[&str],
) -> Result<Response<PushBody>, (StatusCode, HeaderMap)> {
    let terms = Terms {
        origin: &OriginPolicy::same_origin(),
        protocols,
        deflate: true,
    };
    match handshake::accept(head, &terms) {
        Ok(accepted) => Ok(accepted.response),
        Err(rejection) => {
            let (status, headers, _) = rejection.into_parts();
            Err((status, headers))
        }
    }
}

pub fn query_values<'a>(query: &'a str, name: &str) -> Vec<Cow<'a, str>> {
    query::parameter_values(query, name).collect()
}
