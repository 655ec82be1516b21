//! A proxy for UDP and TCP that makes a good network bad: delay, jitter, loss, reordering, duplicates, a narrow link, black holes, resets.
//!
//! It listens on one port number for both protocols, so that a peer is led through it by its address alone, and passes everything on
//! to one server. Conditions hold for a protocol and a direction and change while it runs, by a [`Handle`] or by [`Command`]s as text;
//! `cargo run -p remus-testing --bin chaos -- --help` is the same by hand.
//!
//! ```no_run
//! use remus_testing::chaos::{Chance, Proxy};
//!
//! # async fn example() -> std::io::Result<()> {
//! let server = ([127, 0, 0, 1], 4433).into();
//! let proxy = Proxy::to(server).seed(7).start().await?;
//! println!("connect to {}", proxy.address());
//! proxy.handle().udp(|udp| udp.loss = Chance::percent(1));
//! proxy.handle().udp(|udp| udp.black_hole = true);
//! proxy.handle().reset_tcp();
//! proxy.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is repeated by a seed
//!
//! What happens to the n-th datagram of a direction of a flow: [`Fates`] decides it by seed, flow, direction and n, never by the clock
//! or by what happened to another. A flow is what comes from one address of a client; flows and connections count from 0 in the order
//! in which the proxy first heard of them. When a datagram leaves is up to the machine; on a stream of bytes, how it is cut into pieces
//! is too, so jitter there is as random as that.
//!
//! # What it is not
//!
//! TCP ends at the proxy on either side: the kernels repair loss and order there, so these are conditions of UDP alone, and a connection
//! is taken before the server was asked. Timers tick in milliseconds: on a fast link of limited bandwidth datagrams leave in small
//! groups. Whoever reaches its port reaches the server; it is for loopback. It changes nothing of what passes: a server that names
//! its own port in an answer leads its clients past the proxy.

mod command;
mod fate;
mod line;
mod proxy;
mod settings;
mod tcp;
mod udp;

pub use command::{Change, Command, CommandError, Setting};
pub use fate::{Fate, Fates, OVERTAKEN_BY_MAX};
pub use line::{BACKLOG_MAX, HELD_MAX, PACKET_OVERHEAD_BYTES, REORDER_HOLD, WAITING_BYTES_MAX};
pub use proxy::{BIND_ATTEMPTS, Builder, Counts, FlowCounts, Handle, Proxy, TcpCounts, UdpCounts};
pub use settings::{Chance, DELAY_MAX, Direction, Protocol, Settings, Tcp, Udp, Ways};
pub use tcp::{CHUNK_BYTES, CONNECTIONS_MAX, WINDOW_BYTES};
pub use udp::{DATAGRAM_BYTES_MAX, FLOW_IDLE, FLOWS_MAX, INBOX_PACKETS, SOCKET_BUFFER_BYTES};
