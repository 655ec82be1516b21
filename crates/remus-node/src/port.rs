//! Takes the node's port on TCP and UDP, and says who has it if it is taken.
//!
//! The QUIC sockets share their port among themselves, and so would share it with a stranger of the same user: whether the
//! port is free is therefore asked with a socket that shares nothing. The TCP listener is taken first and held; while it is,
//! no other node can take the same port.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

mod holder;

pub use holder::Holder;

/// Connections that TLS has not looked at yet, which the kernel holds; beyond it they are tried again by their clients.
const BACKLOG: i32 = 1024;

/// Ports to try where any will do, and each may be free on TCP and taken on UDP. With half of all ports taken, one of 16 is
/// free on both with a chance of 99 %.
const FREE_PORT_ATTEMPTS: usize = 16;

/// What listens on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2.
    Tcp,
    /// QUIC: HTTP/3 and WebTransport.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A port that is ours on TCP and was free on UDP, where that was asked for.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    /// The address with the port's real number.
    pub(crate) address: SocketAddr,
}

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// Somebody listens there already.
    #[error(
        "{address} ({protocol}) is taken by {}: stop it, or choose another with --listen",
        holder::describe(holders)
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    Taken {
        address: SocketAddr,
        protocol: Protocol,
        holders: Vec<Holder>,
    },
    /// The operating system keeps the port for the privileged.
    #[error(
        "{address} ({protocol}) needs more rights than this user has: choose a port from 1024 on with --listen, or grant \
         the right to bind low ports"
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    Forbidden {
        address: SocketAddr,
        protocol: Protocol,
    },
    /// No interface has the address.
    #[error(
        "{address} is not an address of this machine: choose one of its own, or [::] for all, with --listen"
    )]
    #[expect(missing_docs, reason = "the message names every field")]
    NotLocal { address: SocketAddr },
    /// Anything else.
    #[error("cannot listen on {address} ({protocol}): {source}")]
    #[expect(missing_docs, reason = "the message names every field")]
    Other {
        address: SocketAddr,
        protocol: Protocol,
        source: io::Error,
    },
}

/// Takes `address` on TCP, and checks that it is free on UDP unless it `is_tcp_only`. Port 0 takes any that is free on both.
///
/// `[::]` means all addresses; where the machine has no IPv6, all are those of IPv4.
pub(crate) fn take(address: SocketAddr, is_tcp_only: bool) -> Result<Port, PortError> {
    let address = if address.ip() == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) && !has_ipv6() {
        (Ipv4Addr::UNSPECIFIED, address.port()).into()
    } else {
        address
    };
    let mut attempts = if address.port() == 0 {
        FREE_PORT_ATTEMPTS
    } else {
        1
    };
    loop {
        attempts = attempts.saturating_sub(1);
        let listener = listen(address).map_err(|source| explain(address, Protocol::Tcp, source))?;
        let address = listener
            .local_addr()
            .map_err(|source| explain(address, Protocol::Tcp, source))?;
        if is_tcp_only {
            return Ok(Port { listener, address });
        }
        match probe(address) {
            Ok(()) => return Ok(Port { listener, address }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
            Err(source) => return Err(explain(address, Protocol::Udp, source)),
        }
    }
}

fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::DGRAM, Some(SocketProtocol::UDP)).is_ok()
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(SocketProtocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // On Unix: take a port whose last connections are still in TIME_WAIT, but never one that is listened on. On Windows the
    // same option would take a port from under another process.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether nobody has `address` on UDP, shared or not.
fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(SocketProtocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())
}

/// The typed reason behind an error of the operating system.
pub(crate) fn explain(address: SocketAddr, protocol: Protocol, source: io::Error) -> PortError {
    match source.kind() {
        io::ErrorKind::AddrInUse => PortError::Taken {
            address,
            protocol,
            holders: holder::find(address, protocol),
        },
        io::ErrorKind::PermissionDenied => PortError::Forbidden { address, protocol },
        io::ErrorKind::AddrNotAvailable => PortError::NotLocal { address },
        _ => PortError::Other {
            address,
            protocol,
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, UdpSocket};

    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn port_zero_takes_one_that_is_free_on_both() {
        let port = take(loopback(0), false).unwrap();
        assert_ne!(port.address.port(), 0);
        UdpSocket::bind(port.address).unwrap();
    }

    #[test]
    fn a_port_that_listens_on_tcp_is_taken_by_this_process() {
        let holder = TcpListener::bind(loopback(0)).unwrap();
        let address = holder.local_addr().unwrap();
        assert_taken(take(address, false), address, Protocol::Tcp);
        // All addresses include the taken one.
        let all = (Ipv6Addr::UNSPECIFIED, address.port()).into();
        assert_taken(take(all, false), all, Protocol::Tcp);
    }

    #[test]
    fn a_udp_port_is_taken_though_its_holder_shares_it() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&loopback(0).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        assert_taken(take(address, false), address, Protocol::Udp);
        // Whoever leaves UDP alone does not mind.
        take(address, true).unwrap();
        drop(socket);
        take(address, false).unwrap();
    }

    #[track_caller]
    fn assert_taken(result: Result<Port, PortError>, expected: SocketAddr, on: Protocol) {
        let error = result.unwrap_err();
        let text = error.to_string();
        let PortError::Taken {
            address,
            protocol,
            holders,
        } = error
        else {
            panic!("{text}")
        };
        assert_eq!((address, protocol), (expected, on));
        if cfg!(target_os = "linux") {
            let pids: Vec<_> = holders.iter().filter_map(|holder| holder.pid).collect();
            assert_eq!(pids, [std::process::id()]);
            let start = format!(
                "{expected} ({on}) is taken by process {} (",
                std::process::id()
            );
            assert!(text.starts_with(&start), "{text}");
            assert!(
                text.ends_with("): stop it, or choose another with --listen"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_address_of_another_machine_is_refused_as_such() {
        // 192.0.2.0/24 is for documentation, so no machine has it. RFC 5737.
        let error = take("192.0.2.7:0".parse().unwrap(), false).unwrap_err();
        assert!(matches!(error, PortError::NotLocal { .. }), "{error}");
    }
}
