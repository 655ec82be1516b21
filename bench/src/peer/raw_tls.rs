//! The frames of [`super::raw`] over TLS 1.3, tokio-rustls.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Target, raw, raw_tcp};
use crate::Result;
use crate::load::{Dial, Download, Upload};
use crate::process::ready;
use crate::tls::{Files, KeyExchange, SERVER_NAME};

pub(crate) async fn serve(tls: &Files) -> Result<()> {
    let acceptor = TlsAcceptor::from(tls.server_config(KeyExchange::Classical, &[])?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    ready(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let (from, to) = tokio::io::split(acceptor.accept(stream).await?);
            raw::serve(from, to).await
        });
    }
}

pub(crate) struct Dialler {
    connector: TlsConnector,
    address: SocketAddr,
}

impl Dialler {
    async fn open(&self) -> Result<TlsStream<TcpStream>> {
        let stream = raw_tcp::connect(self.address).await?;
        let name = ServerName::try_from(SERVER_NAME)?;
        Ok(self.connector.connect(name, stream).await?)
    }
}

impl Dial for Dialler {
    type Client = raw::Client<(Arc<raw::Tasks>, ())>;

    fn prepare(target: &Target) -> Result<Self> {
        let tls = target.tls.client_config(KeyExchange::Classical, &[])?;
        Ok(Self {
            connector: TlsConnector::from(tls),
            address: target.address,
        })
    }

    async fn connect(&self) -> Result<Self::Client> {
        let (from, to) = tokio::io::split(self.open().await?);
        raw::Client::start(from, to, ()).await
    }
}

pub(crate) async fn download(
    target: &Target,
    size: usize,
    messages: bool,
) -> Result<impl Download + use<>> {
    let (from, to) = tokio::io::split(Dialler::prepare(target)?.open().await?);
    raw::Incoming::start(from, to, size, messages, ()).await
}

pub(crate) async fn upload(target: &Target) -> Result<impl Upload + use<>> {
    let (from, to) = tokio::io::split(Dialler::prepare(target)?.open().await?);
    raw::Outgoing::start(from, to, ()).await
}
