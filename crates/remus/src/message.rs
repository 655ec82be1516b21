//! Requests and responses as handlers and callers see them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_core::Stream;
use remus_wire::{Context, Flags, Priority, Routing};

use crate::client::Client;
use crate::{Error, MethodId, ServiceId, names};

/// Names and values that travel beside a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    context: Context,
}

impl Metadata {
    /// The value of `name`; the first if there are several.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.context
            .custom()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// The value of `name` as text, if it is UTF-8.
    #[must_use]
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Adds a name and its value.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT where name and value together exceed 65,527 bytes. All metadata of a message is at most 64 KiB, which
    /// is checked when the call is made.
    pub fn insert(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.context
            .add_custom(name, value.as_ref())
            .map_err(|_| Error::invalid_argument(format!("metadata `{name}` is too long")))
    }

    /// All names and values, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.context.custom()
    }

    /// The whole context: trace, tenant, content type and the like.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The whole context, to be changed.
    pub fn context_mut(&mut self) -> &mut Context {
        &mut self.context
    }

    pub(crate) fn into_context(self) -> Context {
        self.context
    }
}

impl From<Context> for Metadata {
    fn from(context: Context) -> Self {
        Self { context }
    }
}

/// One call on its way to a handler.
#[derive(Debug)]
pub struct Request<B> {
    /// The method's full name, where it is known.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) routing: Routing,
    pub(crate) metadata: Metadata,
    pub(crate) flags: Flags,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
    pub(crate) peer: Option<Client>,
    pub(crate) answered: bool,
    pub(crate) body: B,
}

impl<B> Request<B> {
    /// A request for a method, such as `greet.v1.Greeter/Hello`, with ordinary priority and no deadline.
    #[must_use]
    pub fn new(method: &str, body: B) -> Self {
        let (service, method_id) = names::ids_of(method);
        Self {
            name: Some(method.into()),
            routing: Routing::to(service, method_id),
            metadata: Metadata::default(),
            flags: Flags::default(),
            priority: Priority::default(),
            deadline: None,
            peer: None,
            answered: true,
            body,
        }
    }

    /// The method's full name; empty where the receiver does not know it.
    #[must_use]
    pub fn method(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The IDs that stand for service and method on the wire.
    #[must_use]
    pub fn ids(&self) -> (ServiceId, MethodId) {
        (self.routing.service, self.routing.method)
    }

    /// The topic that the request names, if any.
    #[must_use]
    pub fn topic(&self) -> Option<&str> {
        self.routing.topic()
    }

    /// What travels beside the request.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What travels beside the request, to be changed.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// When the caller gives up; `None` where it waits for as long as it takes.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Whether it may be run more than once.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        self.flags.contains(Flags::IDEMPOTENT)
    }

    /// Whether the caller waits for an answer.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// The caller, to be called back over the same connection. `None` for a request that came from nowhere.
    #[must_use]
    pub fn peer(&self) -> Option<&Client> {
        self.peer.as_ref()
    }

    /// The caller's address.
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.peer.as_ref().and_then(Client::remote_address)
    }

    /// The body.
    #[must_use]
    pub fn get_ref(&self) -> &B {
        &self.body
    }

    /// The body, to be changed.
    pub fn get_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// The body, alone.
    #[must_use]
    pub fn into_inner(self) -> B {
        self.body
    }

    pub(crate) fn into_parts(self) -> (Routing, B) {
        (self.routing, self.body)
    }

    pub(crate) fn try_map<C>(
        self,
        map: impl FnOnce(B) -> Result<C, Error>,
    ) -> Result<Request<C>, Error> {
        Ok(Request {
            name: self.name,
            routing: self.routing,
            metadata: self.metadata,
            flags: self.flags,
            priority: self.priority,
            deadline: self.deadline,
            peer: self.peer,
            answered: self.answered,
            body: map(self.body)?,
        })
    }
}

/// The answer to a call.
#[derive(Clone, Debug, Default)]
pub struct Response<B> {
    pub(crate) metadata: Metadata,
    pub(crate) flags: Flags,
    pub(crate) body: B,
}

impl<B> Response<B> {
    /// An answer without metadata.
    #[must_use]
    pub fn new(body: B) -> Self {
        Self {
            metadata: Metadata::default(),
            flags: Flags::default(),
            body,
        }
    }

    /// What travels beside the answer. For a streamed answer: with its first element.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What travels beside the answer, to be changed.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// The body.
    #[must_use]
    pub fn get_ref(&self) -> &B {
        &self.body
    }

    /// The body, to be changed.
    pub fn get_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// The body, alone.
    #[must_use]
    pub fn into_inner(self) -> B {
        self.body
    }

    /// The same answer with another body.
    pub fn map<C>(self, map: impl FnOnce(B) -> C) -> Response<C> {
        Response {
            metadata: self.metadata,
            flags: self.flags,
            body: map(self.body),
        }
    }
}

/// One element of a stream, undecoded.
#[derive(Clone, Debug, Default)]
pub struct Element {
    /// The application's bytes.
    pub payload: Bytes,
    /// Where it belongs: the topic of a publication.
    pub routing: Routing,
    /// What travels beside it.
    pub metadata: Metadata,
    /// When it was sent, in µs since the Unix epoch, by the sender's hybrid clock. Set by the session.
    pub timestamp_us: u64,
}

impl From<Bytes> for Element {
    fn from(payload: Bytes) -> Self {
        Self {
            payload,
            ..Self::default()
        }
    }
}

/// A stream of elements.
pub(crate) type ElementStream = Pin<Box<dyn Stream<Item = Result<Element, Error>> + Send>>;

/// The body of a request or response, undecoded.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// One value.
    Single(Bytes),
    /// Any number of values. An error is its last.
    Stream(ElementStream),
}

impl Body {
    /// A body that streams.
    pub fn stream(elements: impl Stream<Item = Result<Element, Error>> + Send + 'static) -> Self {
        Self::Stream(Box::pin(elements))
    }

    /// The one value; an empty one where there is none.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT where the body streams.
    pub fn into_single(self) -> Result<Bytes, Error> {
        match self {
            Self::Empty => Ok(Bytes::new()),
            Self::Single(bytes) => Ok(bytes),
            Self::Stream(_) => Err(Error::invalid_argument(
                "the method takes one message, and a stream came",
            )),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Single(bytes) => write!(f, "Single({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream(..)"),
        }
    }
}
