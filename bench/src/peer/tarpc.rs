//! tarpc over TLS: its serde transport with bincode, frames of tokio-util's length-delimited codec.

use std::net::{Ipv4Addr, SocketAddr};

use ::tarpc::context::{self, Context};
use ::tarpc::server::{BaseChannel, Channel as _};
use ::tarpc::tokio_serde::formats::Bincode;
use ::tarpc::{client, serde_transport, server};
use bytes::Bytes;
use futures_util::StreamExt as _;
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::codec::LengthDelimitedCodec;

use super::{Target, raw_tcp};
use crate::Result;
use crate::load::{Dial, Echo};
use crate::process::ready;
use crate::tls::{Files, KeyExchange, SERVER_NAME};

/// Calls that may wait in a channel between the caller and the connection, and answers likewise. The default of 100 makes 256
/// callers wait for one another.
const PENDING_MAX: usize = 1024;

#[::tarpc::service]
pub(crate) trait Bench {
    async fn echo(payload: Bytes) -> Bytes;
}

#[derive(Clone)]
struct Server;

impl Bench for Server {
    async fn echo(self, _: Context, payload: Bytes) -> Bytes {
        payload
    }
}

pub(crate) async fn serve(tls: &Files) -> Result<()> {
    let acceptor = TlsAcceptor::from(tls.server_config(KeyExchange::Classical, &[])?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    ready(listener.local_addr()?);
    let config = server::Config {
        pending_response_buffer: PENDING_MAX,
    };
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, config) = (acceptor.clone(), config.clone());
        tokio::spawn(async move {
            // A client that fails to connect says so itself.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let framed = LengthDelimitedCodec::builder().new_framed(stream);
            let transport = serde_transport::new(framed, Bincode::default());
            // Polled in one task: with a task for each call it is slower.
            BaseChannel::new(config, transport)
                .execute(Server.serve())
                .for_each_concurrent(None, |answer| answer)
                .await;
        });
    }
}

pub(crate) struct Dialler {
    connector: TlsConnector,
    address: SocketAddr,
}

impl Dial for Dialler {
    type Client = BenchClient;

    fn prepare(target: &Target) -> Result<Self> {
        let tls = target.tls.client_config(KeyExchange::Classical, &[])?;
        Ok(Self {
            connector: TlsConnector::from(tls),
            address: target.address,
        })
    }

    async fn connect(&self) -> Result<BenchClient> {
        let stream = raw_tcp::connect(self.address).await?;
        let name = ServerName::try_from(SERVER_NAME)?;
        let stream = self.connector.connect(name, stream).await?;
        let framed = LengthDelimitedCodec::builder().new_framed(stream);
        let mut config = client::Config::default();
        config.pending_request_buffer = PENDING_MAX;
        Ok(BenchClient::new(config, serde_transport::new(framed, Bincode::default())).spawn())
    }
}

impl Echo for BenchClient {
    async fn call(&self, payload: Bytes) -> Result<Bytes> {
        Ok(self.echo(context::current(), payload).await?)
    }
}
