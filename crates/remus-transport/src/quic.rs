//! UDP sockets and QUIC settings. quinn's defaults are made for a laboratory; each number here has its reason.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{
    AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, Runtime as _, ServerConfig,
    TokioRuntime, TransportConfig, UdpPoller, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::congestion::Congestion;
pub use crate::shard::{SHARDS_MAX, ShardError, ShardGroup, ShardStatistics};

/// Bytes asked of the kernel for each direction of a UDP socket.
///
/// With the usual 208 KiB a bulk transfer overflows the receiver's socket and loses 1 to 4 % of its packets; 1 MiB lost none.
pub const SOCKET_BUFFER_BYTES: usize = 1024 * 1024;

/// Largest UDP payload probed for and taken.
///
/// Batches hold ten segments whatever their size, and the kernel takes at most 64 KiB a batch, so a larger one would make every
/// batch fail.
pub const UDP_PAYLOAD_MAX: u16 = 6500;

/// Bidirectional streams that a peer may have open: a request for the session, sixteen lanes, and plain requests beside them.
/// quinn reserves memory for each allowed stream.
const BIDI_STREAMS_MAX: u32 = 64;

/// Unidirectional streams that a peer may have open: control, two of QPACK, and a few of WebTransport.
const UNI_STREAMS_MAX: u32 = 16;

/// Bytes that may be in flight towards us: a stream's window covers 2 MiB per round trip, a connection holds 8 MiB at most.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Bytes that quinn holds for sending. Larger only adds a standing queue in front of urgent calls.
const SEND_WINDOW_BYTES: u64 = 2 * 1024 * 1024;

/// Silence after which QUIC gives up; the session's own heartbeats notice a lost peer earlier.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps QUIC from giving up while a session with a longer idle timeout has nothing to say: a third of [`IDLE_TIMEOUT`].
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Datagrams held in each direction, in bytes; beyond it the oldest go.
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;

/// Packets that the peer may send before we acknowledge: one in ten saves a quarter of the CPU of small calls.
const ACK_EVERY: u32 = 10;

/// The round trip assumed before the first is measured. quinn's 333 ms makes every first flight on a fast network slow.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Connections whose handshake has not begun that may wait on one endpoint; beyond it new ones are dropped and try again.
const PENDING_CONNECTIONS_MAX: usize = 1024;

/// Bytes that one connection, and all together, may send before they are accepted.
const PENDING_CONNECTION_BYTES: u64 = 64 * 1024;
const PENDING_BYTES: u64 = 16 * 1024 * 1024;

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    let mut ack = quinn::AckFrequencyConfig::default();
    ack.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_MAX);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(quinn::IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .ack_frequency_config(Some(ack))
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(Congestion::default()))
        .initial_rtt(INITIAL_RTT);
    config
}

fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // 6,500 is within what QUIC allows (1,200 to 65,527), so this cannot fail.
    let _ = config.max_udp_payload_size(UDP_PAYLOAD_MAX);
    config
}

/// A UDP socket for QUIC. `shared`: several sockets take the same port, and the kernel spreads connections over them.
///
/// An unspecified IPv6 address takes IPv4 as well.
///
/// # Errors
///
/// That of the operating system, `AddrInUse` among them.
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    // The kernel gives what its limits allow; less is slower, not wrong.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// An endpoint that takes connections on `socket`, on the runtime in which it is called.
///
/// # Errors
///
/// [`EndpointError`]: the TLS configuration lacks what QUIC needs, or the operating system refused.
pub fn server_endpoint(
    socket: UdpSocket,
    tls: Arc<rustls::ServerConfig>,
) -> Result<Endpoint, EndpointError> {
    Ok(Endpoint::new_with_abstract_socket(
        endpoint_config(),
        Some(server_config(tls)?),
        wrapped(socket)?,
        Arc::new(TokioRuntime),
    )?)
}

/// An endpoint that takes connections on `socket`, on the runtime in which it is called, as shard `number` of `group`.
///
/// The sockets of a group are [bound](bind) to one address, as shared ones. The kernel spreads new connections over them, and each
/// connection stays with the endpoint that took it, also when its client comes from another address than before. A group of one
/// is an endpoint like any other.
///
/// # Errors
///
/// [`EndpointError`] as [`server_endpoint`], and [`EndpointError::Shard`].
pub fn shard_endpoint(
    socket: UdpSocket,
    tls: Arc<rustls::ServerConfig>,
    group: &ShardGroup,
    number: usize,
) -> Result<Endpoint, EndpointError> {
    let mut config = endpoint_config();
    let mut socket = wrapped(socket)?;
    // Where there is nobody to hand anything to, the group would be work for nothing.
    if group.count() > 1 || number > 0 {
        let opened = group.open(number, socket)?;
        let (group, shard) = (group.clone(), opened.shard());
        config.cid_generator(move || Box::new(group.generator(shard)));
        socket = Arc::new(opened);
    }
    Ok(Endpoint::new_with_abstract_socket(
        config,
        Some(server_config(tls)?),
        socket,
        Arc::new(TokioRuntime),
    )?)
}

fn server_config(tls: Arc<rustls::ServerConfig>) -> Result<ServerConfig, NoInitialCipherSuite> {
    let crypto = QuicServerConfig::try_from(tls)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    config.max_incoming(PENDING_CONNECTIONS_MAX);
    config.incoming_buffer_size(PENDING_CONNECTION_BYTES);
    config.incoming_buffer_size_total(PENDING_BYTES);
    Ok(config)
}

/// An endpoint for outgoing connections, on the runtime in which it is called: IPv6 and IPv4, or IPv4 where that is all.
///
/// # Errors
///
/// [`EndpointError`] as [`server_endpoint`].
pub fn client_endpoint(tls: Arc<rustls::ClientConfig>) -> Result<Endpoint, EndpointError> {
    let crypto = QuicClientConfig::try_from(tls)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    let socket = bind((Ipv6Addr::UNSPECIFIED, 0).into(), false)
        .or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into(), false))?;
    let (socket, runtime) = (wrapped(socket)?, Arc::new(TokioRuntime));
    let mut endpoint =
        Endpoint::new_with_abstract_socket(endpoint_config(), None, socket, runtime)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// The socket on this runtime, with receive buffers no larger than the kernel fills.
fn wrapped(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(Arc::new(Socket64K(TokioRuntime.wrap_udp_socket(socket)?)))
}

/// Segments of [`UDP_PAYLOAD_MAX`] that the kernel puts into one buffer: together they are never longer than a UDP datagram may be,
/// 65,535 bytes.
const RECEIVED_SEGMENTS_MAX: usize = 65_535_usize.div_ceil(UDP_PAYLOAD_MAX as usize);

/// A socket that says how much can come at once. quinn makes room for 64 segments of the largest size, which is six times as much:
/// 13 MB an endpoint, and most of a millisecond to clear them.
#[derive(Debug)]
struct Socket64K(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Socket64K {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, buffers, metas)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments().min(RECEIVED_SEGMENTS_MAX)
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The TLS configuration has no cipher suite for QUIC's first packets.
    #[error("the TLS configuration does not fit QUIC: {0}")]
    Tls(#[from] NoInitialCipherSuite),
    /// The operating system refused the socket.
    #[error("the UDP socket cannot be used: {0}")]
    Socket(#[from] io::Error),
    /// The endpoint cannot be that shard of that group.
    #[error(transparent)]
    Shard(#[from] ShardError),
}
