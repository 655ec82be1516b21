//! Services and where their methods are found.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use remus_wire::{MethodId, ServiceId};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service as _;

use crate::message::{Body, Element, ElementStream, Request, Response};
use crate::stream::Streaming;
use crate::topics::Broker;
use crate::{Codec, Codecs, Error};

/// A future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type Answering = BoxFuture<Result<Response<Body>, Error>>;

/// Which directions of a method stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// One request, one answer.
    Unary,
    /// One request, a stream of answers.
    ServerStream,
    /// A stream of requests, one answer.
    ClientStream,
    /// A stream each way.
    TwoWay,
}

impl MethodKind {
    /// Whether the answer streams.
    #[must_use]
    pub fn answer_streams(self) -> bool {
        matches!(self, Self::ServerStream | Self::TwoWay)
    }

    /// Whether the request streams.
    #[must_use]
    pub fn request_streams(self) -> bool {
        matches!(self, Self::ClientStream | Self::TwoWay)
    }
}

/// What people and tools are told of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDescription {
    /// Full name.
    pub name: String,
    /// ID on the wire.
    pub id: u32,
    /// One line for people; may be empty.
    pub description: String,
    /// Its methods, in the order in which they were added.
    pub methods: Vec<MethodDescription>,
}

/// What people and tools are told of a method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodDescription {
    /// Name within the service.
    pub name: String,
    /// ID on the wire.
    pub id: u32,
    /// Which directions stream.
    pub kind: MethodKind,
}

/// One method behind whatever middleware stands in front of it. A `tower::Service`.
#[derive(Clone)]
pub struct Route(Arc<dyn Fn(Request<Body>) -> Answering + Send + Sync>);

impl Route {
    fn new<F>(handle: F) -> Self
    where
        F: Fn(Request<Body>) -> Answering + Send + Sync + 'static,
    {
        Self(Arc::new(handle))
    }

    pub(crate) fn handle(&self, request: Request<Body>) -> Answering {
        (self.0)(request)
    }

    /// The route behind one more layer.
    fn layered<L>(self, layer: &L) -> Self
    where
        L: Layer<Self>,
        L::Service: tower_service::Service<Request<Body>, Response = Response<Body>>
            + Clone
            + Send
            + Sync
            + 'static,
        <L::Service as tower_service::Service<Request<Body>>>::Error: Into<Error>,
        <L::Service as tower_service::Service<Request<Body>>>::Future: Send,
    {
        let service = layer.layer(self);
        Self::new(move |request| {
            let mut service = service.clone();
            Box::pin(async move {
                poll_fn(|cx| service.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                service.call(request).await.map_err(Into::into)
            })
        })
    }
}

impl tower_service::Service<Request<Body>> for Route {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        self.handle(request)
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Route(..)")
    }
}

/// A named set of methods.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    description: String,
    methods: Vec<(String, MethodKind, Route)>,
}

impl Service {
    /// A service without methods. The name is dot-separated, such as `greet.v1.Greeter`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            description: String::new(),
            methods: Vec::new(),
        }
    }

    /// One line for people.
    #[must_use]
    pub fn describe(mut self, description: &str) -> Self {
        description.clone_into(&mut self.description);
        self
    }

    /// A method with one request and one answer.
    #[must_use]
    pub fn unary<In, Out, C, H, F>(self, name: &str, codecs: C, handler: H) -> Self
    where
        In: Send + 'static,
        Out: Send + 'static,
        C: Codecs<In, Out>,
        H: Fn(Request<In>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Out>, Error>> + Send + 'static,
    {
        let (decoder, encoder) = codecs.split();
        self.method(name, MethodKind::Unary, move |request| {
            match request.try_map(|body| decoder.decode(body.into_single()?)) {
                Ok(request) => Box::pin(Single {
                    answering: handler(request),
                    encoder: encoder.clone(),
                }),
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        })
    }

    /// A method with one request and a stream of answers.
    #[must_use]
    pub fn server_stream<In, Out, C, H, F, S>(self, name: &str, codecs: C, handler: H) -> Self
    where
        In: Send + 'static,
        Out: Send + 'static,
        C: Codecs<In, Out>,
        H: Fn(Request<In>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<S>, Error>> + Send + 'static,
        S: Stream<Item = Result<Out, Error>> + Send + 'static,
    {
        let (decoder, encoder) = codecs.split();
        self.method(name, MethodKind::ServerStream, move |request| {
            let encoder = encoder.clone();
            let answering = request
                .try_map(|body| decoder.decode(body.into_single()?))
                .map(&handler);
            Box::pin(async move { Ok(streamed(answering?.await?, encoder)) })
        })
    }

    /// A method with a stream of requests and one answer.
    #[must_use]
    pub fn client_stream<In, Out, C, H, F>(self, name: &str, codecs: C, handler: H) -> Self
    where
        In: Send + 'static,
        Out: Send + 'static,
        C: Codecs<In, Out>,
        H: Fn(Request<Streaming<In>>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Out>, Error>> + Send + 'static,
    {
        let (decoder, encoder) = codecs.split();
        self.method(name, MethodKind::ClientStream, move |request| {
            let (decoder, encoder) = (decoder.clone(), encoder.clone());
            let answering = request
                .try_map(|body| Ok(Streaming::new(elements(body), decoder)))
                .map(&handler);
            Box::pin(async move { single(answering?.await?, &encoder) })
        })
    }

    /// A method with a stream each way.
    #[must_use]
    pub fn two_way<In, Out, C, H, F, S>(self, name: &str, codecs: C, handler: H) -> Self
    where
        In: Send + 'static,
        Out: Send + 'static,
        C: Codecs<In, Out>,
        H: Fn(Request<Streaming<In>>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<S>, Error>> + Send + 'static,
        S: Stream<Item = Result<Out, Error>> + Send + 'static,
    {
        let (decoder, encoder) = codecs.split();
        self.method(name, MethodKind::TwoWay, move |request| {
            let (decoder, encoder) = (decoder.clone(), encoder.clone());
            let answering = request
                .try_map(|body| Ok(Streaming::new(elements(body), decoder)))
                .map(&handler);
            Box::pin(async move { Ok(streamed(answering?.await?, encoder)) })
        })
    }

    /// A method that sees requests and answers undecoded, with topics and metadata of each element.
    #[must_use]
    pub fn raw<H, F>(self, name: &str, kind: MethodKind, handler: H) -> Self
    where
        H: Fn(Request<Body>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, Error>> + Send + 'static,
    {
        self.method(name, kind, move |request| Box::pin(handler(request)))
    }

    fn method(
        mut self,
        name: &str,
        kind: MethodKind,
        handle: impl Fn(Request<Body>) -> Answering + Send + Sync + 'static,
    ) -> Self {
        self.methods
            .push((name.to_owned(), kind, Route::new(handle)));
        self
    }
}

pin_project_lite::pin_project! {
    /// A handler with one answer at work, and what becomes of the answer. An async block would hold the handler's future twice.
    struct Single<F, C> {
        #[pin]
        answering: F,
        encoder: C,
    }
}

impl<F, Out, C> Future for Single<F, C>
where
    F: Future<Output = Result<Response<Out>, Error>>,
    C: Codec<Out>,
{
    type Output = Result<Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = std::task::ready!(this.answering.poll(cx))?;
        Poll::Ready(single(response, this.encoder))
    }
}

fn single<Out>(
    response: Response<Out>,
    encoder: &impl Codec<Out>,
) -> Result<Response<Body>, Error> {
    let body = Body::Single(encoder.encode(&response.body)?);
    Ok(response.map(|_| body))
}

fn streamed<Out: 'static, S>(response: Response<S>, encoder: impl Codec<Out>) -> Response<Body>
where
    S: Stream<Item = Result<Out, Error>> + Send + 'static,
{
    response.map(|stream| {
        Body::Stream(Box::pin(Encoding {
            stream: Box::pin(stream),
            encoder,
        }))
    })
}

/// A stream of values that becomes one of elements.
struct Encoding<S, C> {
    stream: Pin<Box<S>>,
    encoder: C,
}

// The stream is boxed and the encoder is never pinned.
impl<S, C> Unpin for Encoding<S, C> {}

impl<Out, S: Stream<Item = Result<Out, Error>>, C: Codec<Out>> Stream for Encoding<S, C> {
    type Item = Result<Element, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.stream.as_mut().poll_next(cx));
        Poll::Ready(next.map(|value| {
            value
                .and_then(|value| self.encoder.encode(&value))
                .map(Element::from)
        }))
    }
}

/// The body as a stream: one value is a stream of one.
fn elements(body: Body) -> ElementStream {
    match body {
        Body::Empty => Box::pin(Once(None)),
        Body::Single(bytes) => Box::pin(Once(Some(bytes.into()))),
        Body::Stream(stream) => stream,
    }
}

struct Once(Option<Element>);

impl Stream for Once {
    type Item = Result<Element, Error>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

/// A set of services. Cheap to clone. A `tower::Service`.
#[derive(Clone, Debug, Default)]
pub struct Router {
    table: Arc<Table>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    /// Peers look up, only the program adds: an unkeyed hash cannot be used against it.
    methods: FxHashMap<(ServiceId, MethodId), Entry>,
    services: Vec<ServiceDescription>,
    broker: Option<Broker>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Arc<str>,
    kind: MethodKind,
    route: Route,
}

/// What a router finds for a pair of IDs.
pub(crate) struct Found<'a> {
    pub(crate) name: &'a Arc<str>,
    pub(crate) kind: MethodKind,
    pub(crate) route: &'a Route,
}

impl Router {
    /// A router without services.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service.
    ///
    /// # Panics
    ///
    /// When two names have the same ID on the wire, or a method is added twice: that is a mistake in the program, found when
    /// it starts. The message names both.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        let table = Arc::make_mut(&mut self.table);
        let service_id = ServiceId::of(&service.name);
        let mut methods = Vec::with_capacity(service.methods.len());
        for (method, kind, route) in service.methods {
            let full: Arc<str> = format!("{}/{method}", service.name).into();
            let id = MethodId::of(&full);
            methods.push(MethodDescription {
                name: method,
                id: id.0,
                kind,
            });
            let entry = Entry {
                name: Arc::clone(&full),
                kind,
                route,
            };
            if let Some(other) = table.methods.insert((service_id, id), entry) {
                #[expect(clippy::panic, reason = "a mistake in the program, found at its start")]
                {
                    panic!(
                        "`{full}` and `{}` have the same ID {:#010x} on the wire; rename one",
                        other.name, id.0
                    );
                }
            }
        }
        table.services.push(ServiceDescription {
            name: service.name,
            id: service_id.0,
            description: service.description,
            methods,
        });
        self
    }

    /// Adds the built-in topics service with `broker` behind it.
    #[must_use]
    pub fn topics(mut self, broker: &Broker) -> Self {
        Arc::make_mut(&mut self.table).broker = Some(broker.clone());
        self.service(crate::topics::service(broker))
    }

    /// Puts a layer in front of every method added so far.
    #[must_use]
    pub fn layer<L>(mut self, layer: &L) -> Self
    where
        L: Layer<Route>,
        L::Service: tower_service::Service<Request<Body>, Response = Response<Body>>
            + Clone
            + Send
            + Sync
            + 'static,
        <L::Service as tower_service::Service<Request<Body>>>::Error: Into<Error>,
        <L::Service as tower_service::Service<Request<Body>>>::Future: Send,
    {
        for entry in Arc::make_mut(&mut self.table).methods.values_mut() {
            entry.route = entry.route.clone().layered(layer);
        }
        self
    }

    /// What is served, in the order in which it was added.
    #[must_use]
    pub fn services(&self) -> &[ServiceDescription] {
        &self.table.services
    }

    pub(crate) fn broker(&self) -> Option<&Broker> {
        self.table.broker.as_ref()
    }

    pub(crate) fn find(&self, service: ServiceId, method: MethodId) -> Option<Found<'_>> {
        let entry = self.table.methods.get(&(service, method))?;
        Some(Found {
            name: &entry.name,
            kind: entry.kind,
            route: &entry.route,
        })
    }

    /// The error for a pair of IDs that nothing is found for.
    pub(crate) fn unknown(&self, service: ServiceId, method: MethodId) -> Error {
        match self
            .table
            .services
            .iter()
            .find(|known| known.id == service.0)
        {
            None => Error::unimplemented(format!(
                "no service with ID {:#010x} is served here",
                service.0
            )),
            Some(known) => Error::unimplemented(format!(
                "service `{}` has no method with ID {:#010x}",
                known.name, method.0
            )),
        }
    }
}

impl tower_service::Service<Request<Body>> for Router {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        let (service, method) = request.ids();
        match self.find(service, method) {
            Some(found) => found.route.handle(request),
            None => {
                let error = self.unknown(service, method);
                Box::pin(std::future::ready(Err(error)))
            }
        }
    }
}
