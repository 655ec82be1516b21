//! The frames of [`super::raw`] in one QUIC stream: quinn with exactly the settings of remus-transport.

use bytes::Bytes;
use quinn::{Endpoint, RecvStream, SendStream};
use remus_transport::quic;

use super::Target;
use super::raw::{self, Mode};
use crate::Result;
use crate::load::{Dial, Download, Upload, payload};
use crate::process::ready;
use crate::tls::{Files, KeyExchange, SERVER_NAME};

const ALPN: &[&str] = &["remus-bench"];

/// Bytes read at once in bulk.
const CHUNK_MAX: usize = 1024 * 1024;

pub(crate) async fn serve(tls: &Files) -> Result<()> {
    let socket = quic::bind((std::net::Ipv4Addr::LOCALHOST, 0).into(), false)?;
    let endpoint =
        quic::server_endpoint(socket, tls.server_config(KeyExchange::PostQuantum, ALPN)?)?;
    ready(endpoint.local_addr()?);
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            // A client ends its connection when it has what it came for; that is no failure.
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((to, from)) = connection.accept_bi().await {
                tokio::spawn(stream(to, from));
            }
        });
    }
    Ok(())
}

/// One stream. Bulk is by chunks, which saves a copy that the other carriers cannot save.
async fn stream(mut to: SendStream, mut from: RecvStream) -> Result<()> {
    let mut first = [0; 1];
    from.read_exact(&mut first).await?;
    let rest = std::io::Cursor::new(first);
    let [up, ..] = raw::preamble(Mode::Up, 0)?;
    let [down, ..] = raw::preamble(Mode::Down, 0)?;
    if first == [up] {
        let mut size = [0; 4];
        from.read_exact(&mut size).await?;
        let mut count = 0_u64;
        while let Some(chunk) = from.read_chunk(CHUNK_MAX, true).await? {
            count += chunk.bytes.len() as u64;
        }
        to.write_all(&count.to_be_bytes()).await?;
        to.finish()?;
        // Returning would end the stream before its last bytes were acknowledged.
        let _ = to.stopped().await;
    } else if first == [down] {
        let mut size = [0; 4];
        from.read_exact(&mut size).await?;
        let piece = payload(0, u32::from_be_bytes(size) as usize);
        loop {
            to.write_chunk(piece.clone()).await?;
        }
    } else {
        raw::serve(tokio::io::AsyncReadExt::chain(rest, from), to).await?;
    }
    Ok(())
}

pub(crate) struct Dialler {
    endpoint: Endpoint,
    address: std::net::SocketAddr,
}

impl Dialler {
    async fn open(&self) -> Result<(SendStream, RecvStream, quinn::Connection)> {
        let connection = self.endpoint.connect(self.address, SERVER_NAME)?.await?;
        let (to, from) = connection.open_bi().await?;
        Ok((to, from, connection))
    }
}

/// Closes a connection with its last user.
#[derive(Clone)]
pub(crate) struct Open(#[expect(dead_code, reason = "kept open by being kept")] quinn::Connection);

impl Dial for Dialler {
    type Client = raw::Client<(std::sync::Arc<raw::Tasks>, Open)>;

    fn prepare(target: &Target) -> Result<Self> {
        let tls = target.tls.client_config(KeyExchange::PostQuantum, ALPN)?;
        Ok(Self {
            endpoint: quic::client_endpoint(tls)?,
            address: target.address,
        })
    }

    async fn connect(&self) -> Result<Self::Client> {
        let (to, from, connection) = self.open().await?;
        raw::Client::start(from, to, Open(connection)).await
    }
}

/// A stream of messages, or of bytes.
pub(crate) enum Incoming {
    Messages(raw::Incoming<RecvStream, SendStream, (Endpoint, Open)>),
    Bytes {
        from: RecvStream,
        _kept: (SendStream, Endpoint, Open),
    },
}

pub(crate) async fn download(target: &Target, size: usize, messages: bool) -> Result<Incoming> {
    let dialler = Dialler::prepare(target)?;
    let (mut to, from, connection) = dialler.open().await?;
    let (endpoint, connection) = (dialler.endpoint, Open(connection));
    Ok(if messages {
        let kept = (endpoint, connection);
        Incoming::Messages(raw::Incoming::start(from, to, size, true, kept).await?)
    } else {
        to.write_all(&raw::preamble(Mode::Down, size)?).await?;
        Incoming::Bytes {
            from,
            _kept: (to, endpoint, connection),
        }
    })
}

impl Download for Incoming {
    async fn next(&mut self) -> Result<usize> {
        match self {
            Self::Messages(messages) => messages.next().await,
            Self::Bytes { from, .. } => match from.read_chunk(CHUNK_MAX, true).await? {
                Some(chunk) => Ok(chunk.bytes.len()),
                None => Err("the stream ended".into()),
            },
        }
    }
}

pub(crate) struct Outgoing {
    to: SendStream,
    from: RecvStream,
    _kept: (Endpoint, Open),
}

pub(crate) async fn upload(target: &Target) -> Result<Outgoing> {
    let dialler = Dialler::prepare(target)?;
    let (mut to, from, connection) = dialler.open().await?;
    to.write_all(&raw::preamble(Mode::Up, 0)?).await?;
    Ok(Outgoing {
        to,
        from,
        _kept: (dialler.endpoint, Open(connection)),
    })
}

impl Upload for Outgoing {
    async fn send(&mut self, payload: Bytes) -> Result<()> {
        Ok(self.to.write_chunk(payload).await?)
    }

    async fn finish(mut self) -> Result<u64> {
        self.to.finish()?;
        let mut count = [0; 8];
        self.from.read_exact(&mut count).await?;
        Ok(u64::from_be_bytes(count))
    }
}
