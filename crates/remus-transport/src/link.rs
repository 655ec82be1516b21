//! What a session needs of a carrier: lanes, perhaps datagrams, and an end with a reason. Spec: transport §2, carriers §1.
//!
//! Enums and not trait objects: each byte of the first carrier passes through here.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use remus_http3::{ClosedBy, RecvStream, SendStream};
use remus_session::{CarrierInfo, LANES_MAX};
use remus_wire::ErrorCode;

use self::framed::{Framed, FramedReader, FramedWriter, Runner};

use crate::{web, webtransport};

pub(crate) mod framed;

/// A datagram must hold a heartbeat: frame header, message header and payload.
const DATAGRAM_MIN: usize = 8 + 35 + 20;

/// The code by which a WebTransport session is closed and the Remus session on it is not. Spec: TRANS-53.
const CARRIER_ONLY: u32 = 3000;

/// Bytes taken from a lane at once.
const READ_MAX: usize = 64 * 1024;

/// A way for the frames of a session, in the order of preference. Spec: transport, carriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Carrier {
    /// WebTransport over HTTP/3: up to sixteen lanes, and datagrams.
    WebTransport,
    /// A WebSocket: one lane.
    WebSocket,
    /// HTTP requests that wait for their answers: one lane.
    LongPoll,
    /// HTTP requests one way, one endless answer the other: one lane.
    ServerSentEvents,
}

impl Carrier {
    /// All of them, the preferred one first.
    pub const ALL: [Self; 4] = [
        Self::WebTransport,
        Self::WebSocket,
        Self::LongPoll,
        Self::ServerSentEvents,
    ];

    /// Its name in `/.well-known/remus`. Spec: carriers §9.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WebTransport => "webtransport",
            Self::WebSocket => "websocket",
            Self::LongPoll => "http-poll",
            Self::ServerSentEvents => "http-events",
        }
    }

    /// The path at which an acceptor takes it.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::WebTransport => webtransport::PATH,
            Self::WebSocket => web::WEBSOCKET_PATH,
            Self::LongPoll | Self::ServerSentEvents => web::SESSIONS_PATH,
        }
    }

    /// The carrier of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|carrier| carrier.name() == name)
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One use of a carrier by one session. All clones are the same link.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    WebTransport(remus_http3::Session),
    Framed(Framed),
}

/// How a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// The peer closed it, and with it the session.
    Peer { code: ErrorCode, reason: String },
    /// The peer broke the carrier's rules, and the session ends for it.
    Broken { code: ErrorCode, reason: String },
    /// This side closed it.
    Local,
    /// The acceptor did not take it.
    Refused { status: StatusCode },
    /// It broke; the session may go on over another.
    Lost { reason: String },
}

/// What comes on a lane.
#[derive(Debug)]
pub(crate) enum LaneReader {
    WebTransport(RecvStream),
    Framed(FramedReader),
}

/// What leaves on a lane.
#[derive(Debug)]
pub(crate) enum LaneWriter {
    WebTransport(SendStream),
    Framed(FramedWriter),
}

/// Why a lane cannot be read or written any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    #[error(transparent)]
    Read(#[from] remus_http3::ReadError),
    #[error(transparent)]
    Write(#[from] remus_http3::WriteError),
    /// The link has ended, and with it its one lane.
    #[error("the link has ended")]
    Ended,
}

impl Link {
    pub(crate) fn carrier(&self) -> Carrier {
        match self {
            Self::WebTransport(_) => Carrier::WebTransport,
            Self::Framed(framed) => framed.carrier(),
        }
    }

    /// What has to run for it, if anything, beside the driver; the first time.
    pub(crate) fn take_runner(&self) -> Option<Runner> {
        match self {
            Self::WebTransport(_) => None,
            Self::Framed(framed) => framed.take_runner(),
        }
    }

    /// How many lanes it can have.
    pub(crate) fn lanes(&self) -> u16 {
        match self {
            Self::WebTransport(_) => LANES_MAX,
            Self::Framed(_) => 1,
        }
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::WebTransport(session) => session.remote_address(),
            Self::Framed(framed) => framed.remote_address(),
        }
    }

    /// The smallest round trip that the carrier has measured, if it measures any.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match self {
            Self::WebTransport(session) => Some(session.quic().min_rtt()),
            Self::Framed(_) => None,
        }
    }

    /// Bytes that a datagram can hold; 0 where there are none.
    pub(crate) fn max_datagram_len(&self) -> usize {
        match self {
            Self::WebTransport(session) => session.max_datagram_len(),
            Self::Framed(_) => 0,
        }
    }

    /// False where it was not sent, for now or for ever: datagrams may be lost.
    pub(crate) fn send_datagram(&self, datagram: &[u8]) -> bool {
        match self {
            Self::WebTransport(session) => session.send_datagram(datagram).is_ok(),
            Self::Framed(_) => false,
        }
    }

    /// The next datagram; `None` once the link has ended. Waits for ever where there are none. Cancel safe.
    pub(crate) async fn read_datagram(&self) -> Option<Bytes> {
        match self {
            Self::WebTransport(session) => session.read_datagram().await.ok(),
            Self::Framed(_) => std::future::pending().await,
        }
    }

    /// Opens the next lane; `None` where the link has ended, or has no more of them.
    pub(crate) async fn open_lane(&self) -> Option<(LaneReader, LaneWriter)> {
        match self {
            Self::WebTransport(session) => session.open_bi().await.ok().map(lane),
            Self::Framed(framed) => framed.take_lane().map(framed_lane),
        }
    }

    /// Waits for the next lane of the peer's; `None` once the link has ended. Waits for ever where no more can come. Cancel safe.
    pub(crate) async fn accept_lane(&self) -> Option<(LaneReader, LaneWriter)> {
        match self {
            Self::WebTransport(session) => session.accept_bi().await.ok().map(lane),
            Self::Framed(framed) => match framed.take_lane() {
                Some(one) => Some(framed_lane(one)),
                None => std::future::pending().await,
            },
        }
    }

    /// Waits for its end. Cancel safe.
    pub(crate) async fn closed(&self) -> LinkEnd {
        match self {
            Self::WebTransport(session) => session.closed().await.into(),
            Self::Framed(framed) => framed.closed().await,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::WebTransport(session) => session.end().is_some(),
            Self::Framed(framed) => framed.end().is_some(),
        }
    }

    /// What the session has to know of it.
    pub(crate) fn info(&self) -> CarrierInfo {
        CarrierInfo {
            lanes: self.lanes(),
            datagrams: self.max_datagram_len() >= DATAGRAM_MIN,
        }
    }

    /// Lets go of it, and not of the session: the peer sees a carrier that is lost. What shares the connection with it goes on.
    pub(crate) fn abandon(&self, reason: &str) {
        match self {
            Self::WebTransport(session) => {
                // The first poll closes it; nobody needs to wait until the peer has heard.
                let closing = std::pin::pin!(session.close(CARRIER_ONLY, reason));
                let _ = closing.poll(&mut Context::from_waker(Waker::noop()));
            }
            Self::Framed(framed) => framed.lose(reason),
        }
    }

    /// Closes it with the session's code and reason, and waits until the peer can have heard of it.
    pub(crate) async fn close(&self, code: ErrorCode, reason: &str) {
        match self {
            Self::WebTransport(session) => session.close(code.0, reason).await,
            Self::Framed(framed) => framed.close(code, reason).await,
        }
    }
}

impl From<Result<remus_http3::SessionClosed, remus_http3::Error>> for LinkEnd {
    fn from(end: Result<remus_http3::SessionClosed, remus_http3::Error>) -> Self {
        match end {
            Ok(closed) if closed.code == CARRIER_ONLY => Self::Lost {
                reason: format!("{} dropped the carrier: {}", closed.side, closed.reason),
            },
            Ok(closed) if closed.side == ClosedBy::Peer => Self::Peer {
                code: ErrorCode(closed.code),
                reason: closed.reason,
            },
            Ok(_) => Self::Local,
            Err(remus_http3::Error::Refused { status, .. }) => Self::Refused { status },
            Err(error) => Self::Lost {
                reason: error.to_string(),
            },
        }
    }
}

fn lane((send, recv): (SendStream, RecvStream)) -> (LaneReader, LaneWriter) {
    (
        LaneReader::WebTransport(recv),
        LaneWriter::WebTransport(send),
    )
}

fn framed_lane((reader, writer): (FramedReader, FramedWriter)) -> (LaneReader, LaneWriter) {
    (LaneReader::Framed(reader), LaneWriter::Framed(writer))
}

impl LaneReader {
    /// Gathers what has come, at least one chunk and about [`READ_MAX`] bytes at most: a chunk is what one packet brought, and locks
    /// and wakers are better shared by several. The end of the lane, if it is there.
    pub(crate) fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Poll<Option<Result<(), LaneError>>> {
        let recv = match self {
            Self::WebTransport(recv) => recv,
            Self::Framed(reader) => return reader.poll_chunks(cx, chunks),
        };
        let mut len = 0_usize;
        while len < READ_MAX {
            match recv.poll_read_chunk(cx, READ_MAX) {
                Poll::Ready(Ok(Some(chunk))) => {
                    len = len.saturating_add(chunk.len());
                    chunks.push_back(chunk);
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(Some(Ok(()))),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Pending if len == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(None)
    }

    /// Takes nothing more.
    pub(crate) fn stop(&mut self) {
        match self {
            Self::WebTransport(recv) => recv.stop(0),
            Self::Framed(reader) => reader.stop(),
        }
    }
}

impl LaneWriter {
    /// Lets this lane's bytes leave before those of others. Lane 0 is: small calls and control are on it, and nothing long.
    pub(crate) fn hurry(&self) {
        if let Self::WebTransport(send) = self {
            send.set_priority(1);
        }
    }

    /// Writes `chunks`, which together are whole frames, and waits while there is no room. They are empty then.
    pub(crate) async fn write(&mut self, chunks: &mut VecDeque<Bytes>) -> Result<(), LaneError> {
        match self {
            Self::WebTransport(send) => {
                send.write_chunks(chunks.make_contiguous()).await?;
                chunks.clear();
                Ok(())
            }
            Self::Framed(writer) => writer.write(chunks).await,
        }
    }

    /// Ends the lane, and waits until the peer has all of it, or wants no more, or is gone.
    pub(crate) async fn finish(&mut self) {
        match self {
            Self::WebTransport(send) => {
                if send.finish().is_ok() {
                    let _ = send.stopped().await;
                }
            }
            Self::Framed(writer) => writer.finish().await,
        }
    }
}
