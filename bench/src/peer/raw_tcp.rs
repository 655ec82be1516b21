//! The frames of [`super::raw`] over TCP, unencrypted.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::{Target, raw};
use crate::Result;
use crate::load::{Dial, Download, Upload};
use crate::process::ready;

pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    ready(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (from, to) = stream.into_split();
        tokio::spawn(raw::serve(from, to));
    }
}

/// A connection with TCP_NODELAY.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) struct Dialler(SocketAddr);

impl Dial for Dialler {
    type Client = raw::Client<(std::sync::Arc<raw::Tasks>, ())>;

    fn prepare(target: &Target) -> Result<Self> {
        Ok(Self(target.address))
    }

    async fn connect(&self) -> Result<Self::Client> {
        let (from, to) = connect(self.0).await?.into_split();
        raw::Client::start(from, to, ()).await
    }
}

pub(crate) async fn download(
    target: &Target,
    size: usize,
    messages: bool,
) -> Result<impl Download + use<>> {
    let (from, to) = connect(target.address).await?.into_split();
    raw::Incoming::<OwnedReadHalf, OwnedWriteHalf, ()>::start(from, to, size, messages, ()).await
}

pub(crate) async fn upload(target: &Target) -> Result<impl Upload + use<>> {
    let (from, to) = connect(target.address).await?.into_split();
    raw::Outgoing::<OwnedReadHalf, OwnedWriteHalf, ()>::start(from, to, ()).await
}
