//! Cap'n Proto RPC over TLS. A connection lives on one thread: its library knows no other way.
//!
//! `capnp/bench_capnp.rs` is what the schema compiler makes of `capnp/bench.capnp`, whose head says how.

#[rustfmt::skip]
#[allow(
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::unimplemented,
    dead_code,
    unreachable_pub,
    unused_qualifications,
    reason = "generated"
)]
mod bench_capnp;

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use ::capnp::message::ReaderOptions;
use bytes::Bytes;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::twoparty::VatNetwork;
use capnp_rpc::{RpcSystem, new_client};
use futures_util::io::{AsyncRead, AsyncReadExt as _, BufReader, BufWriter};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use self::bench_capnp::{bench, sink};
use super::{Target, raw_tcp};
use crate::Result;
use crate::load::{Dial, Download, LocalEcho, Upload, check, payload};
use crate::process::ready;
use crate::tls::{Files, KeyExchange, SERVER_NAME};

/// Room for reads and for the writes of one message: the library advises buffers, and writes a message in several pieces.
const BUFFER_BYTES: usize = 64 * 1024;

/// What a stream may have under way. The default of 64 KiB lets one large message wait for the next.
const WINDOW_BYTES: usize = 1024 * 1024;

fn network(stream: TlsStream<TcpStream>, side: Side) -> VatNetwork<impl AsyncRead + Unpin> {
    let (from, to) = stream.compat().split();
    let mut network = VatNetwork::new(
        BufReader::with_capacity(BUFFER_BYTES, from),
        BufWriter::with_capacity(BUFFER_BYTES, to),
        side,
        ReaderOptions::new(),
    );
    network.set_window_size(WINDOW_BYTES);
    network
}

// ---- the server ------------------------------------------------------------------------------------

pub(crate) async fn serve(tls: &Files) -> Result<()> {
    let acceptor = TlsAcceptor::from(tls.server_config(KeyExchange::Classical, &[])?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    ready(listener.local_addr()?);
    LocalSet::new()
        .run_until(async {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let acceptor = acceptor.clone();
                spawn_local(async move {
                    let network = network(acceptor.accept(stream).await?.into(), Side::Server);
                    let server: bench::Client = new_client(Server);
                    RpcSystem::new(Box::new(network), Some(server.client)).await?;
                    Ok::<_, crate::Failure>(())
                });
            }
        })
        .await
}

struct Server;

impl bench::Server for Server {
    async fn echo(
        self: Rc<Self>,
        params: bench::EchoParams,
        mut results: bench::EchoResults,
    ) -> Result<(), ::capnp::Error> {
        results.get().set_payload(params.get()?.get_payload()?);
        Ok(())
    }

    async fn download(
        self: Rc<Self>,
        params: bench::DownloadParams,
        _: bench::DownloadResults,
    ) -> Result<(), ::capnp::Error> {
        let params = params.get()?;
        let message = payload(0, params.get_size() as usize);
        let sink = params.get_sink()?;
        // Ends when the client cancels the call.
        loop {
            let mut push = sink.push_request();
            push.get().set_payload(&message);
            push.send().await?;
        }
    }

    async fn upload(
        self: Rc<Self>,
        _: bench::UploadParams,
        mut results: bench::UploadResults,
    ) -> Result<(), ::capnp::Error> {
        results.get().set_sink(new_client(Counter::default()));
        Ok(())
    }
}

/// Counts the bytes of an upload.
#[derive(Default)]
struct Counter {
    byte_count: Cell<u64>,
}

impl sink::Server for Counter {
    async fn push(self: Rc<Self>, params: sink::PushParams) -> Result<(), ::capnp::Error> {
        let bytes = params.get()?.get_payload()?.len() as u64;
        self.byte_count.set(self.byte_count.get() + bytes);
        Ok(())
    }

    async fn done(
        self: Rc<Self>,
        _: sink::DoneParams,
        mut results: sink::DoneResults,
    ) -> Result<(), ::capnp::Error> {
        results.get().set_byte_count(self.byte_count.get());
        Ok(())
    }
}

// ---- the client ------------------------------------------------------------------------------------

pub(crate) struct Dialler {
    connector: TlsConnector,
    address: SocketAddr,
}

/// A connection, which ends with the last clone.
#[derive(Clone)]
pub(crate) struct Client {
    server: bench::Client,
    _connection: Rc<Connection>,
}

struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Dial for Dialler {
    type Client = Client;

    fn prepare(target: &Target) -> Result<Self> {
        let tls = target.tls.client_config(KeyExchange::Classical, &[])?;
        Ok(Self {
            connector: TlsConnector::from(tls),
            address: target.address,
        })
    }

    async fn connect(&self) -> Result<Client> {
        let stream = raw_tcp::connect(self.address).await?;
        let name = ServerName::try_from(SERVER_NAME)?;
        let stream = self.connector.connect(name, stream).await?;
        let mut system = RpcSystem::new(Box::new(network(stream.into(), Side::Client)), None);
        let server = system.bootstrap(Side::Server);
        let connection = spawn_local(system);
        Ok(Client {
            server,
            _connection: Rc::new(Connection(connection.abort_handle())),
        })
    }
}

impl LocalEcho for Client {
    async fn call_local(&self, payload: Bytes) -> Result<Bytes> {
        let mut echo = self.server.echo_request();
        echo.get().set_payload(&payload);
        let answer = echo.send().promise.await?;
        Ok(Bytes::copy_from_slice(answer.get()?.get_payload()?))
    }
}

/// Bytes that have come and were not asked for yet.
#[derive(Default)]
struct Inbox {
    bytes: Cell<usize>,
    came: Notify,
}

struct Receiver {
    message: Bytes,
    inbox: Rc<Inbox>,
}

impl sink::Server for Receiver {
    async fn push(self: Rc<Self>, params: sink::PushParams) -> Result<(), ::capnp::Error> {
        let params = params.get()?;
        let got = params.get_payload()?;
        check(&self.message, got).map_err(|error| ::capnp::Error::failed(error.to_string()))?;
        self.inbox.bytes.set(self.inbox.bytes.get() + got.len());
        self.inbox.came.notify_one();
        Ok(())
    }
}

pub(crate) struct Incoming {
    inbox: Rc<Inbox>,
    call: ::capnp::capability::RemotePromise<bench::download_results::Owned>,
    _client: Client,
}

pub(crate) async fn download(target: &Target, size: usize) -> Result<Incoming> {
    let client = Dialler::prepare(target)?.connect().await?;
    let inbox = Rc::new(Inbox::default());
    let mut download = client.server.download_request();
    download.get().set_size(u32::try_from(size)?);
    download.get().set_sink(new_client(Receiver {
        message: payload(0, size),
        inbox: inbox.clone(),
    }));
    Ok(Incoming {
        inbox,
        call: download.send(),
        _client: client,
    })
}

impl Download for Incoming {
    async fn next(&mut self) -> Result<usize> {
        loop {
            let bytes = self.inbox.bytes.take();
            if bytes > 0 {
                return Ok(bytes);
            }
            tokio::select! {
                () = self.inbox.came.notified() => {}
                ended = &mut self.call.promise => {
                    ended?;
                    return Err("the server ended the stream".into());
                }
            }
        }
    }
}

pub(crate) struct Outgoing {
    sink: sink::Client,
    _client: Client,
}

pub(crate) async fn upload(target: &Target) -> Result<Outgoing> {
    let client = Dialler::prepare(target)?.connect().await?;
    let answer = client.server.upload_request().send().promise.await?;
    let sink = answer.get()?.get_sink()?;
    Ok(Outgoing {
        sink,
        _client: client,
    })
}

impl Upload for Outgoing {
    async fn send(&mut self, payload: Bytes) -> Result<()> {
        let mut push = self.sink.push_request();
        push.get().set_payload(&payload);
        Ok(push.send().await?)
    }

    async fn finish(self) -> Result<u64> {
        let answer = self.sink.done_request().send().promise.await?;
        Ok(answer.get()?.get_byte_count())
    }
}
