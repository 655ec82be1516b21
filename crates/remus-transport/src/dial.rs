//! Opening a session over any carrier. Spec: transport §1, carriers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite;

use crate::link::{Carrier, Link};
use crate::webtransport::{self, ConnectError, Target, race};
use crate::{web, websocket};

/// What a client dials with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// For what goes over QUIC; its TLS speaks `h3`.
    pub quic: quinn::Endpoint,
    /// TLS on TCP that speaks `h2`.
    pub http2: Arc<ClientConfig>,
    /// TLS on TCP that speaks `http/1.1`.
    pub http1: Arc<ClientConfig>,
}

/// Opens a link.
pub(crate) async fn open(
    dialer: &Dialer,
    carrier: Carrier,
    target: &Target,
) -> Result<Link, ConnectError> {
    match carrier {
        Carrier::WebTransport => webtransport::open_link(&dialer.quic, target).await,
        Carrier::WebSocket => {
            let (stream, remote) = tls(&dialer.http1, target).await?;
            let authority = target.authority();
            websocket::connect(stream, &authority, remote)
                .await
                .map_err(|error| refused(authority, error))
        }
        Carrier::LongPoll | Carrier::ServerSentEvents => {
            web::client::open(dialer, carrier, target).await
        }
    }
}

/// Makes a TCP connection with TLS.
pub(crate) async fn tls(
    config: &Arc<ClientConfig>,
    target: &Target,
) -> Result<(TlsStream<TcpStream>, SocketAddr), ConnectError> {
    let name = ServerName::try_from(target.host().to_owned()).map_err(|_| ConnectError::Url {
        url: target.authority(),
        why: "its host cannot be in a certificate",
    })?;
    race(target, |address| {
        let (connector, name) = (TlsConnector::from(Arc::clone(config)), name.clone());
        Ok(async move {
            let connecting = async {
                let stream = TcpStream::connect(address).await?;
                // What is written is whole, so there is nothing to wait for more of.
                stream.set_nodelay(true)?;
                Ok::<_, io::Error>((connector.connect(name, stream).await?, address))
            };
            connecting
                .await
                .map_err(|source| ConnectError::Tcp { address, source })
        })
    })
    .await
}

fn refused(authority: String, error: tungstenite::Error) -> ConnectError {
    let carrier = Carrier::WebSocket;
    match error {
        tungstenite::Error::Http(response) => ConnectError::Refused {
            authority,
            carrier,
            status: response.status(),
            message: response.body().as_deref().map_or_else(String::new, |body| {
                String::from_utf8_lossy(body).into_owned()
            }),
        },
        error => ConnectError::Link {
            authority,
            carrier,
            source: Box::new(error),
        },
    }
}
