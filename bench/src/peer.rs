//! The peers: their names, what each can do, and the way from a case to its code.
//!
//! A new peer is a module with `serve` and the traits of [`crate::load`] that it supports, a variant here, and an arm in each
//! `match` of this file.

mod capnp;
mod nats;
mod raw;
mod raw_quinn;
mod raw_tcp;
mod raw_tls;
mod remus;
mod tarpc;
mod tonic;
mod zenoh;

use std::net::SocketAddr;

use clap::ValueEnum;
use tokio::task::LocalSet;

use crate::Result;
use crate::case::{Case, Kind, Runtime};
use crate::load::{self, Outcome, Window};
use crate::tls::Files;

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Peer {
    /// Remus over WebTransport, through its public API.
    Remus,
    /// The same over a WebSocket.
    #[value(name = "remus-websocket")]
    RemusWebSocket,
    /// The same by long-polling.
    #[value(name = "remus-http-poll")]
    RemusPoll,
    /// The same by server-sent events.
    #[value(name = "remus-http-events")]
    RemusEvents,
    /// The floor: frames by hand in one QUIC stream, with Remus' QUIC settings.
    RawQuinn,
    /// The same frames over TLS.
    RawTls,
    /// The same frames over TCP, unencrypted.
    RawTcp,
    /// gRPC.
    Tonic,
    /// tarpc over TLS.
    Tarpc,
    /// Cap'n Proto RPC over TLS.
    Capnp,
    /// nats-server and async-nats, with TLS.
    Nats,
    /// zenoh, through a router, with TLS.
    Zenoh,
}

/// The server that a driver drives.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Files,
    /// Of Remus: what to connect by.
    pub(crate) carrier: ::remus::Carrier,
}

impl Peer {
    /// Those that are measured where none is named: of Remus, its usual carrier.
    pub(crate) const ALL: &[Self] = &[
        Self::Remus,
        Self::RawQuinn,
        Self::RawTls,
        Self::RawTcp,
        Self::Tonic,
        Self::Tarpc,
        Self::Capnp,
        Self::Nats,
        Self::Zenoh,
    ];

    /// The name on the command line and in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Remus => "remus",
            Self::RemusWebSocket => "remus-websocket",
            Self::RemusPoll => "remus-http-poll",
            Self::RemusEvents => "remus-http-events",
            Self::RawQuinn => "raw-quinn",
            Self::RawTls => "raw-tls",
            Self::RawTcp => "raw-tcp",
            Self::Tonic => "tonic",
            Self::Tarpc => "tarpc",
            Self::Capnp => "capnp",
            Self::Nats => "nats",
            Self::Zenoh => "zenoh",
        }
    }

    /// The name in the results, where the carrier is a field of its own.
    pub(crate) fn product(self) -> &'static str {
        match self {
            Self::RemusWebSocket | Self::RemusPoll | Self::RemusEvents => Self::Remus.name(),
            other => other.name(),
        }
    }

    /// Remus over `carrier`.
    pub(crate) fn over(carrier: ::remus::Carrier) -> Option<Self> {
        let all = [
            Self::Remus,
            Self::RemusWebSocket,
            Self::RemusPoll,
            Self::RemusEvents,
        ];
        all.into_iter().find(|peer| peer.remus_carrier() == carrier)
    }

    /// What Remus connects by; of no meaning to the others.
    pub(crate) fn remus_carrier(self) -> ::remus::Carrier {
        match self {
            Self::RemusWebSocket => ::remus::Carrier::WebSocket,
            Self::RemusPoll => ::remus::Carrier::LongPoll,
            Self::RemusEvents => ::remus::Carrier::ServerSentEvents,
            _ => ::remus::Carrier::WebTransport,
        }
    }

    pub(crate) fn carrier(self) -> &'static str {
        match self {
            Self::Remus | Self::RemusWebSocket | Self::RemusPoll | Self::RemusEvents => {
                self.remus_carrier().name()
            }
            Self::RawQuinn => "quic",
            Self::RawTls | Self::Tarpc | Self::Capnp | Self::Nats | Self::Zenoh => "tls",
            Self::RawTcp => "tcp",
            Self::Tonic => "http2-tls",
        }
    }

    pub(crate) fn supports(self, case: &Case) -> bool {
        match self {
            Self::Remus => true,
            // Topics and idle connections are the broker's and the session's affair, whatever carries them.
            Self::RemusWebSocket | Self::RemusPoll | Self::RemusEvents => {
                !matches!(case.kind, Kind::Topic | Kind::Idle)
            }
            Self::RawQuinn | Self::RawTls | Self::RawTcp | Self::Tonic => case.kind != Kind::Topic,
            Self::Tarpc => matches!(case.kind, Kind::Unary | Kind::Setup | Kind::Idle),
            // Its clients stay on one thread, and the open loop's may not.
            Self::Capnp => case.kind != Kind::Topic && case.rate.is_none(),
            // A flow of publications is no stream of a server.
            Self::Nats => matches!(
                case.kind,
                Kind::Unary | Kind::Topic | Kind::Setup | Kind::Idle
            ),
            // Of its queries through a router some end without an answer, often all of a session.
            Self::Zenoh => case.kind == Kind::Topic,
        }
    }

    /// What this machine lacks for it, if anything.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::Nats => nats::missing(),
            _ => None,
        }
    }

    /// Whether its server or client has threads of its own, whatever runtime was asked for.
    pub(crate) fn brings_runtime(self) -> bool {
        matches!(self, Self::Nats | Self::Zenoh)
    }

    /// The runtime it is given where `asked` was asked for.
    pub(crate) fn runtime(self, asked: Runtime) -> Runtime {
        match self {
            // It refuses the other.
            Self::Zenoh => Runtime::Multi,
            _ => asked,
        }
    }
}

/// Serves every case on an ephemeral port of loopback, which it tells with [`crate::process::ready`], until it is killed.
pub(crate) async fn serve(peer: Peer, tls: &Files, runtime: Runtime) -> Result<()> {
    match peer {
        Peer::Remus | Peer::RemusWebSocket | Peer::RemusPoll | Peer::RemusEvents => {
            remus::serve(tls).await
        }
        Peer::RawQuinn => raw_quinn::serve(tls).await,
        Peer::RawTls => raw_tls::serve(tls).await,
        Peer::RawTcp => raw_tcp::serve().await,
        Peer::Tonic => tonic::serve(tls).await,
        Peer::Tarpc => tarpc::serve(tls).await,
        Peer::Capnp => capnp::serve(tls).await,
        Peer::Nats => nats::serve(tls, runtime),
        Peer::Zenoh => zenoh::serve(tls).await,
    }
}

/// Does `case` against `target`.
pub(crate) async fn drive(
    peer: Peer,
    case: &Case,
    target: &Target,
    window: Window,
) -> Result<Outcome> {
    match case.kind {
        Kind::Unary => match peer {
            Peer::Remus | Peer::RemusWebSocket | Peer::RemusPoll | Peer::RemusEvents => {
                load::unary::<remus::Dialler>(case, target, window).await
            }
            Peer::RawQuinn => load::unary::<raw_quinn::Dialler>(case, target, window).await,
            Peer::RawTls => load::unary::<raw_tls::Dialler>(case, target, window).await,
            Peer::RawTcp => load::unary::<raw_tcp::Dialler>(case, target, window).await,
            Peer::Tonic => load::unary::<tonic::Dialler>(case, target, window).await,
            Peer::Tarpc => load::unary::<tarpc::Dialler>(case, target, window).await,
            Peer::Capnp => load::unary_local::<capnp::Dialler>(case, target, window).await,
            Peer::Nats => load::unary::<nats::Dialler>(case, target, window).await,
            Peer::Zenoh => load::unary::<zenoh::Dialler>(case, target, window).await,
        },
        Kind::Setup => match peer {
            Peer::Remus | Peer::RemusWebSocket | Peer::RemusPoll | Peer::RemusEvents => {
                load::setup::<remus::Dialler>(case, target, window).await
            }
            Peer::RawQuinn => load::setup::<raw_quinn::Dialler>(case, target, window).await,
            Peer::RawTls => load::setup::<raw_tls::Dialler>(case, target, window).await,
            Peer::RawTcp => load::setup::<raw_tcp::Dialler>(case, target, window).await,
            Peer::Tonic => load::setup::<tonic::Dialler>(case, target, window).await,
            Peer::Tarpc => load::setup::<tarpc::Dialler>(case, target, window).await,
            Peer::Capnp => {
                let load = load::setup::<capnp::Dialler>(case, target, window);
                LocalSet::new().run_until(load).await
            }
            Peer::Nats => load::setup::<nats::Dialler>(case, target, window).await,
            Peer::Zenoh => load::setup::<zenoh::Dialler>(case, target, window).await,
        },
        Kind::Idle => match peer {
            Peer::Remus | Peer::RemusWebSocket | Peer::RemusPoll | Peer::RemusEvents => {
                load::idle::<remus::Dialler>(case, target, window).await
            }
            Peer::RawQuinn => load::idle::<raw_quinn::Dialler>(case, target, window).await,
            Peer::RawTls => load::idle::<raw_tls::Dialler>(case, target, window).await,
            Peer::RawTcp => load::idle::<raw_tcp::Dialler>(case, target, window).await,
            Peer::Tonic => load::idle::<tonic::Dialler>(case, target, window).await,
            Peer::Tarpc => load::idle::<tarpc::Dialler>(case, target, window).await,
            Peer::Capnp => {
                let load = load::idle::<capnp::Dialler>(case, target, window);
                LocalSet::new().run_until(load).await
            }
            Peer::Nats => load::idle::<nats::Dialler>(case, target, window).await,
            Peer::Zenoh => load::idle::<zenoh::Dialler>(case, target, window).await,
        },
        Kind::Stream | Kind::BulkDown => {
            let size = case.size;
            let messages = case.kind == Kind::Stream;
            match peer {
                Peer::Remus | Peer::RemusWebSocket | Peer::RemusPoll | Peer::RemusEvents => {
                    load::download(remus::download(target, size).await?, size, window).await
                }
                Peer::RawQuinn => {
                    load::download(
                        raw_quinn::download(target, size, messages).await?,
                        size,
                        window,
                    )
                    .await
                }
                Peer::RawTls => {
                    load::download(
                        raw_tls::download(target, size, messages).await?,
                        size,
                        window,
                    )
                    .await
                }
                Peer::RawTcp => {
                    load::download(
                        raw_tcp::download(target, size, messages).await?,
                        size,
                        window,
                    )
                    .await
                }
                Peer::Tonic => {
                    load::download(tonic::download(target, size).await?, size, window).await
                }
                Peer::Capnp => {
                    let load = async {
                        load::download(capnp::download(target, size).await?, size, window).await
                    };
                    LocalSet::new().run_until(load).await
                }
                Peer::Tarpc | Peer::Nats | Peer::Zenoh => unsupported(peer, case),
            }
        }
        Kind::BulkUp => {
            let size = case.size;
            match peer {
                Peer::Remus | Peer::RemusWebSocket | Peer::RemusPoll | Peer::RemusEvents => {
                    load::upload(remus::upload(target).await?, size, window).await
                }
                Peer::RawQuinn => {
                    load::upload(raw_quinn::upload(target).await?, size, window).await
                }
                Peer::RawTls => load::upload(raw_tls::upload(target).await?, size, window).await,
                Peer::RawTcp => load::upload(raw_tcp::upload(target).await?, size, window).await,
                Peer::Tonic => load::upload(tonic::upload(target).await?, size, window).await,
                Peer::Capnp => {
                    let load =
                        async { load::upload(capnp::upload(target).await?, size, window).await };
                    LocalSet::new().run_until(load).await
                }
                Peer::Tarpc | Peer::Nats | Peer::Zenoh => unsupported(peer, case),
            }
        }
        Kind::Topic => match peer {
            Peer::Remus | Peer::RemusWebSocket | Peer::RemusPoll | Peer::RemusEvents => {
                load::topic::<remus::Broker>(case, target, window).await
            }
            Peer::Nats => load::topic::<nats::Dialler>(case, target, window).await,
            Peer::Zenoh => load::topic::<zenoh::Dialler>(case, target, window).await,
            _ => unsupported(peer, case),
        },
    }
}

/// The process that answers the calls of [`Peer::Nats`].
pub(crate) use nats::respond as nats_responder;

fn unsupported(peer: Peer, case: &Case) -> Result<Outcome> {
    Err(format!("{} does not do {case}", peer.name()).into())
}
