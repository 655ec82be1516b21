//! Values to bytes and back.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// How values of type `T` travel.
///
/// A codec is a small value that is cloned into each call. A pair `(A, B)` uses `A` for requests and `B` for answers.
pub trait Codec<T>: Clone + Send + Sync + 'static {
    /// The bytes of `value`.
    ///
    /// # Errors
    ///
    /// INTERNAL where the value cannot be encoded.
    fn encode(&self, value: &T) -> Result<Bytes, Error>;

    /// The value in `bytes`.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT, saying where and why.
    fn decode(&self, bytes: Bytes) -> Result<T, Error>;
}

/// JSON by serde. An empty payload counts as `null`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(&self, value: &T) -> Result<Bytes, Error> {
        serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
            Error::internal(format!("the value cannot be written as JSON: {error}"))
        })
    }

    fn decode(&self, bytes: Bytes) -> Result<T, Error> {
        let bytes = if bytes.is_empty() {
            Bytes::from_static(b"null")
        } else {
            bytes
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid_argument(format!("the JSON does not fit: {error}")))
    }
}

/// Bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    fn encode(&self, value: &Bytes) -> Result<Bytes, Error> {
        Ok(value.clone())
    }

    fn decode(&self, bytes: Bytes) -> Result<Bytes, Error> {
        Ok(bytes)
    }
}

/// The codecs of a method: one for both directions, or a pair.
pub trait Codecs<In, Out>: Clone + Send + Sync + 'static {
    /// The codec of requests.
    type Request: Codec<In>;
    /// The codec of answers.
    type Answer: Codec<Out>;

    /// Both.
    fn split(self) -> (Self::Request, Self::Answer);
}

macro_rules! both_ways {
    ($($codec:ty),*) => {$(
        impl<In, Out> Codecs<In, Out> for $codec
        where
            Self: Codec<In> + Codec<Out>,
        {
            type Request = Self;
            type Answer = Self;

            fn split(self) -> (Self, Self) {
                (self, self)
            }
        }
    )*};
}

both_ways!(Json, Raw);

impl<In, Out, A: Codec<In>, B: Codec<Out>> Codecs<In, Out> for (A, B) {
    type Request = A;
    type Answer = B;

    fn split(self) -> (A, B) {
        self
    }
}
