//! gRPC by tonic over TLS. A codec of our own passes payloads as they are: no schema is encoded, which is gRPC at its fastest.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{Ipv4Addr, SocketAddr};

use ::tonic::client::Grpc;
use ::tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use ::tonic::codegen::http::uri::PathAndQuery;
use ::tonic::codegen::{Body, BoxFuture, Context, Poll, Service, StdError, http};
use ::tonic::server::NamedService;
use ::tonic::transport::server::TcpIncoming;
use ::tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Identity, Server, ServerTlsConfig,
};
use ::tonic::{Code, Request, Response, Status};
use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::Stream;
use tokio::sync::mpsc;

use super::Target;
use crate::load::{Dial, Download, Echo, Upload, check, payload};
use crate::tls::{Files, KeyExchange, SERVER_NAME, provider};
use crate::{Failure, Result};

/// HTTP/2 windows of a stream and of a connection, on both sides. With hyper's defaults, and with windows that adapt, streams
/// are some per cent slower.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// HTTP/2 frames that a client takes from a stream of small messages: 1.8 million of 1 KiB per second instead of 1.3 with
/// the default of 16 KiB, because tonic makes a frame of what it has gathered. Large messages are slower so.
const FRAME_BYTES: u32 = 256 * 1024;

/// What counts as small there.
const SMALL_BYTES: usize = 16 * 1024;

/// Messages that wait for the client's connection to take them.
const UPLOAD_QUEUE: usize = 16;

/// Where each method is called.
const ECHO: &str = "/bench.v1.Bench/Echo";
const DOWN: &str = "/bench.v1.Bench/Down";
const UP: &str = "/bench.v1.Bench/Up";

/// tonic takes its key exchange from the process' crypto provider.
fn install_provider() {
    // A second installation is refused, and is the same anyway.
    let _ = rustls::crypto::CryptoProvider::install_default(
        (*provider(KeyExchange::Classical)).clone(),
    );
}

/// Payloads as they are.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

// ---- the server ------------------------------------------------------------------------------------

pub(crate) async fn serve(tls: &Files) -> Result<()> {
    install_provider();
    let identity = Identity::from_pem(std::fs::read(tls.certificate())?, std::fs::read(tls.key())?);
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into())?.with_nodelay(Some(true));
    crate::process::ready(incoming.local_addr()?);
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(Bench)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// What `tonic-build` would make of the service's description.
#[derive(Clone)]
struct Bench;

impl NamedService for Bench {
    const NAME: &'static str = "bench.v1.Bench";
}

impl<B> Service<http::Request<B>> for Bench
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<::tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let mut grpc = ::tonic::server::Grpc::new(Plain);
        match request.uri().path() {
            ECHO => Box::pin(async move { Ok(grpc.unary(EchoMethod, request).await) }),
            DOWN => Box::pin(async move { Ok(grpc.server_streaming(DownMethod, request).await) }),
            UP => Box::pin(async move { Ok(grpc.client_streaming(UpMethod, request).await) }),
            _ => Box::pin(ready(Ok(Status::new(
                Code::Unimplemented,
                "no such method",
            )
            .into_http()))),
        }
    }
}

struct EchoMethod;

impl Service<Request<Bytes>> for EchoMethod {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

struct DownMethod;

type Messages = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl Service<Request<Bytes>> for DownMethod {
    type Response = Response<Messages>;
    type Error = Status;
    type Future = Ready<Result<Response<Messages>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let size = request.get_ref().first_chunk();
        let size = size.map_or(0, |size| u32::from_be_bytes(*size) as usize);
        let message = payload(0, size);
        let messages = futures_util::stream::repeat_with(move || Ok(message.clone()));
        ready(Ok(Response::new(Box::pin(messages))))
    }
}

struct UpMethod;

impl Service<Request<Streaming<Bytes>>> for UpMethod {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            let mut messages = request.into_inner();
            let mut count = 0_u64;
            while let Some(message) = messages.message().await? {
                count += message.len() as u64;
            }
            Ok(Response::new(Bytes::copy_from_slice(&count.to_be_bytes())))
        })
    }
}

// ---- the client ------------------------------------------------------------------------------------

pub(crate) struct Dialler {
    address: SocketAddr,
    tls: ClientTlsConfig,
}

impl Dial for Dialler {
    type Client = Channel;

    fn prepare(target: &Target) -> Result<Self> {
        install_provider();
        let ca = Certificate::from_pem(std::fs::read(target.tls.ca())?);
        Ok(Self {
            address: target.address,
            tls: ClientTlsConfig::new()
                .ca_certificate(ca)
                .domain_name(SERVER_NAME),
        })
    }

    async fn connect(&self) -> Result<Channel> {
        self.taking_frames_of(None).await
    }
}

impl Dialler {
    async fn taking_frames_of(&self, bytes: Option<u32>) -> Result<Channel> {
        Ok(Channel::from_shared(format!("https://{}", self.address))?
            .tls_config(self.tls.clone())?
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(bytes)
            .connect()
            .await?)
    }
}

async fn ready_client(channel: &Channel) -> Result<Grpc<Channel>> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    Ok(grpc)
}

impl Echo for Channel {
    async fn call(&self, payload: Bytes) -> Result<Bytes> {
        let answer = ready_client(self)
            .await?
            .unary(
                Request::new(payload),
                PathAndQuery::from_static(ECHO),
                Plain,
            )
            .await?;
        Ok(answer.into_inner())
    }
}

pub(crate) struct Incoming {
    messages: Streaming<Bytes>,
    message: Bytes,
}

pub(crate) async fn download(target: &Target, size: usize) -> Result<Incoming> {
    let frames = (size < SMALL_BYTES).then_some(FRAME_BYTES);
    let channel = Dialler::prepare(target)?.taking_frames_of(frames).await?;
    let request = Bytes::copy_from_slice(&u32::try_from(size)?.to_be_bytes());
    let messages = ready_client(&channel)
        .await?
        .server_streaming(
            Request::new(request),
            PathAndQuery::from_static(DOWN),
            Plain,
        )
        .await?
        .into_inner();
    Ok(Incoming {
        messages,
        message: payload(0, size),
    })
}

impl Download for Incoming {
    async fn next(&mut self) -> Result<usize> {
        let message = self.messages.message().await?.ok_or("the stream ended")?;
        check(&self.message, &message)?;
        Ok(message.len())
    }
}

pub(crate) struct Outgoing {
    to: mpsc::Sender<Bytes>,
    answer: tokio::task::JoinHandle<Result<Bytes>>,
}

pub(crate) async fn upload(target: &Target) -> Result<Outgoing> {
    let channel = Dialler::prepare(target)?.connect().await?;
    let (to, from) = mpsc::channel(UPLOAD_QUEUE);
    let messages = futures_util::stream::unfold(from, async |mut from| {
        from.recv().await.map(|message| (message, from))
    });
    let answer = tokio::spawn(async move {
        let answer = ready_client(&channel)
            .await?
            .client_streaming(Request::new(messages), PathAndQuery::from_static(UP), Plain)
            .await?;
        Ok::<Bytes, Failure>(answer.into_inner())
    });
    Ok(Outgoing { to, answer })
}

impl Upload for Outgoing {
    async fn send(&mut self, payload: Bytes) -> Result<()> {
        Ok(self.to.send(payload).await?)
    }

    async fn finish(self) -> Result<u64> {
        drop(self.to);
        let count = self.answer.await??;
        let count = count.first_chunk().ok_or("the server told no count")?;
        Ok(u64::from_be_bytes(*count))
    }
}
