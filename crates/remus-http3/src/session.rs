//! WebTransport sessions. Spec: draft-ietf-webtrans-http3 §3, §4.6 and §6.
//!
//! A session's CONNECT stream belongs to the connection's task (`control` here); the application
//! gives it orders through [`SessionShared`] and waits for what it reports.
//! Invariant: a session ends once; what ended it is never replaced.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode};
use slab::Slab;
use tokio::sync::Notify;

use crate::{
    Code,
    capsule::{self, Capsule, CapsuleDecoder},
    connection::{Connection, Shared},
    error::Error,
    fault::{Fault, Scope},
    frame, head,
    message::{MessageDecoder, MessageError, MessageEvent},
    protocols, qpack,
    queue::{Datagrams, Queue, lock},
    reader::{self, Reader},
    stream::{RecvHalf, RecvStream, SendHalf, SendStream},
    varint,
};

/// Informational responses that are skipped before the answer to a request.
///
/// A server sends one or two (early hints); more is a way to keep a client busy.
pub(crate) const MAX_INFORMATIONAL: usize = 8;

/// How a session was closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("code {code}, reason {reason:?}, by {side}")]
pub struct SessionClosed {
    /// The application's code; 0 when the peer ended the session without one.
    pub code: u32,
    /// The application's reason, at most 1024 bytes.
    pub reason: String,
    /// Who closed it.
    pub side: ClosedBy,
}

/// Who closed a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// This side.
    Local,
    /// The peer.
    Peer,
}

impl std::fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Local => "this side",
            Self::Peer => "the peer",
        })
    }
}

/// What the answer to a session request said.
#[derive(Clone, Debug)]
pub struct Established {
    /// The status, always a success.
    pub status: StatusCode,
    /// The fields of the answer.
    pub headers: HeaderMap,
    /// The application protocol that the server chose.
    pub protocol: Option<String>,
}

/// Why a datagram was not sent.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// It is over [`Session::max_datagram_len`], which is 0 where the peer takes none.
    #[error("datagram of {len} bytes, above the path's limit of {max}")]
    #[expect(missing_docs, reason = "the message names every field")]
    TooLarge { len: usize, max: usize },
    /// The session ended.
    #[error("session ended")]
    SessionEnded,
    /// The connection ended.
    #[error("connection ended: {0}")]
    Lost(#[from] quinn::ConnectionError),
}

/// State of a session that the connection's task and the application share.
#[derive(Debug)]
pub(crate) struct SessionShared {
    /// Stream ID of the CONNECT request.
    pub(crate) id: u64,
    quic: quinn::Connection,
    state: Mutex<State>,
    /// Wakes those who wait for the answer, for draining and for the end.
    changed: Notify,
    /// Wakes the connection's task for orders.
    work: Notify,
    bi: Queue<(SendStream, RecvStream)>,
    uni: Queue<RecvStream>,
    datagrams: Mutex<Datagrams<()>>,
    datagram_ready: Notify,
}

#[derive(Debug, Default)]
struct State {
    established: Option<Established>,
    is_draining: bool,
    orders: Orders,
    end: Option<End>,
    /// The CONNECT stream is done with: nothing is left to be delivered.
    is_finished: bool,
    sending: Slab<Arc<SendHalf>>,
    receiving: Slab<Arc<RecvHalf>>,
}

/// How a session ended.
pub(crate) type End = Result<SessionClosed, Error>;

/// What the application wants done on the CONNECT stream.
#[derive(Debug, Default)]
struct Orders {
    /// The sending half, once the application has answered, and what of the answer is unsent.
    send: Option<(quinn::SendStream, Bytes)>,
    drain: bool,
    close: Option<(u32, String)>,
}

impl SessionShared {
    pub(crate) fn new(id: u64, shared: &Shared) -> Arc<Self> {
        let config = &shared.config;
        Arc::new(Self {
            id,
            quic: shared.quic.clone(),
            state: Mutex::default(),
            changed: Notify::new(),
            work: Notify::new(),
            bi: Queue::new(config.max_session_streams),
            uni: Queue::new(config.max_session_streams),
            datagrams: Mutex::new(Datagrams::new(config.max_session_datagram_bytes)),
            datagram_ready: Notify::new(),
        })
    }

    /// Waits until `look` finds something, looking again after every change.
    async fn wait_for<T>(&self, mut look: impl FnMut(&State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look(&lock(&self.state)) {
                return found;
            }
            changed.await;
        }
    }

    /// Waits for the end of the session.
    pub(crate) async fn ended(&self) {
        self.wait_for(|state| state.end.as_ref().map(|_| ())).await;
    }

    /// Whether the session ended.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.state).end.is_some()
    }

    /// What ended the session, as an error of an operation that needs it open.
    fn end_error(&self) -> Option<Error> {
        lock(&self.state).end.as_ref().map(to_error)
    }

    /// Ends the session: resets its streams, empties its queues, wakes everyone. The first end wins.
    pub(crate) fn end(&self, end: End) {
        let (sending, receiving) = {
            let mut state = lock(&self.state);
            if state.end.is_some() {
                return;
            }
            state.end = Some(end);
            (
                std::mem::take(&mut state.sending),
                std::mem::take(&mut state.receiving),
            )
        };
        for (_, half) in &sending {
            half.end_with_session();
        }
        for (_, half) in &receiving {
            half.end_with_session();
        }
        drop(self.bi.close());
        drop(self.uni.close());
        lock(&self.datagrams).clear();
        self.datagram_ready.notify_waiters();
        self.changed.notify_waiters();
        self.work.notify_one();
    }

    /// Closes the session from this side; the connection's task tells the peer.
    fn order_close(&self, code: u32, reason: &str) {
        let reason = capsule::truncate(reason, capsule::MAX_REASON_BYTES).to_owned();
        {
            let mut state = lock(&self.state);
            if state.end.is_some() {
                return;
            }
            state.orders.close = Some((code, reason.clone()));
        }
        self.end(Ok(SessionClosed {
            code,
            reason,
            side: ClosedBy::Local,
        }));
    }

    /// Marks the CONNECT stream as done with.
    pub(crate) fn finished(&self) {
        let late_answer = {
            let mut state = lock(&self.state);
            state.is_finished = true;
            state.orders.send.take()
        };
        if let Some((send, unsent)) = late_answer {
            end_late_answer(send, &unsent);
        }
        self.changed.notify_waiters();
    }

    /// Notes that the peer, or its connection, wants the session to end soon.
    pub(crate) fn drained_by_peer(&self) {
        lock(&self.state).is_draining = true;
        self.changed.notify_waiters();
    }

    fn establish(&self, established: Established) {
        lock(&self.state).established = Some(established);
        self.changed.notify_waiters();
    }

    /// Registers a sending stream; `None`, and the stream reset, if the session ended.
    fn adopt_send(self: &Arc<Self>, mut quic: quinn::SendStream) -> Option<SendStream> {
        let mut state = lock(&self.state);
        if state.end.is_some() {
            drop(state);
            reader::reset(&mut quic, Code::WT_SESSION_GONE);
            return None;
        }
        let id = quic.id();
        let entry = state.sending.vacant_entry();
        let half = SendHalf::new(self.clone(), entry.key(), id, quic, Bytes::new());
        entry.insert(half.clone());
        Some(SendStream::new(half))
    }

    /// Registers a receiving stream; `None`, and the stream stopped, if the session ended.
    fn adopt_recv(self: &Arc<Self>, mut reader: Reader) -> Option<RecvStream> {
        let mut state = lock(&self.state);
        if state.end.is_some() {
            drop(state);
            reader.stop(Code::WT_SESSION_GONE);
            return None;
        }
        let id = reader.recv.id();
        let entry = state.receiving.vacant_entry();
        let half = RecvHalf::new(self.clone(), entry.key(), id, reader.recv, reader.input);
        entry.insert(half.clone());
        Some(RecvStream::new(half))
    }

    /// Takes a sending stream out of the registry, as its owner is gone.
    pub(crate) fn forget_send(&self, slot: usize) {
        let forgotten = lock(&self.state).sending.try_remove(slot);
        drop(forgotten);
    }

    /// Takes a receiving stream out of the registry, as its owner is gone.
    pub(crate) fn forget_recv(&self, slot: usize) {
        let forgotten = lock(&self.state).receiving.try_remove(slot);
        drop(forgotten);
    }

    /// Gives the session a stream that the peer opened; false if there was no room for it.
    pub(crate) fn deliver(
        self: &Arc<Self>,
        send: Option<quinn::SendStream>,
        reader: Reader,
    ) -> bool {
        const REFUSED: Code = Code::WT_BUFFERED_STREAM_REJECTED;
        let refuse = |recv: RecvStream| {
            recv.refuse(REFUSED);
            false
        };
        match send {
            Some(send) => {
                let send = self.adopt_send(send);
                let recv = self.adopt_recv(reader);
                let (Some(send), Some(recv)) = (send, recv) else {
                    return true; // the session ended, and the stream with it
                };
                match self.bi.push((send, recv)) {
                    Ok(()) => true,
                    Err((send, recv)) => {
                        send.refuse(REFUSED);
                        refuse(recv)
                    }
                }
            }
            None => match self.adopt_recv(reader).map(|recv| self.uni.push(recv)) {
                None | Some(Ok(())) => true,
                Some(Err(recv)) => refuse(recv),
            },
        }
    }

    /// Gives the session a datagram; without room, the oldest is lost.
    pub(crate) fn deliver_datagram(&self, payload: Bytes) {
        lock(&self.datagrams).push((), payload);
        self.datagram_ready.notify_one();
    }

    /// The orders, and whether the session has ended: both at once, as closing sets one after the
    /// other.
    fn take_orders(&self) -> (Orders, bool) {
        let mut state = lock(&self.state);
        (std::mem::take(&mut state.orders), state.end.is_some())
    }

    /// Answers the request: hands the sending half over to the connection's task.
    fn answer(&self, send: quinn::SendStream, unsent: Bytes, established: Established) {
        {
            let mut state = lock(&self.state);
            if state.is_finished {
                drop(state);
                end_late_answer(send, &unsent);
                return;
            }
            state.orders.send = Some((send, unsent));
            state.established = Some(established);
        }
        self.changed.notify_waiters();
        self.work.notify_one();
    }
}

/// Ends the sending half of a session that was over before it was answered.
fn end_late_answer(mut send: quinn::SendStream, unsent: &[u8]) {
    if unsent.is_empty() {
        let _ = send.finish(); // an error: the client stopped it
    } else {
        reader::reset(&mut send, Code::WT_SESSION_GONE);
    }
}

fn to_error(end: &End) -> Error {
    match end {
        Ok(closed) => Error::SessionClosed(closed.clone()),
        Err(error) => error.clone(),
    }
}

/// A WebTransport session. Cheap to clone; dropping the last clone closes it with code 0.
///
/// Its streams do not keep it open. Dropping it while the peer has not acknowledged what was sent on
/// them loses that; [`SendStream::stopped`] waits for it.
#[derive(Clone, Debug)]
pub struct Session {
    handle: Arc<Handle>,
}

/// What all clones of a [`Session`] share.
#[derive(Debug)]
struct Handle {
    session: Arc<SessionShared>,
    connection: Connection,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.session.order_close(0, "");
    }
}

impl Session {
    pub(crate) fn new(session: Arc<SessionShared>, connection: Connection) -> Self {
        let handle = Arc::new(Handle {
            session,
            connection,
        });
        Self { handle }
    }

    fn shared(&self) -> &Arc<SessionShared> {
        &self.handle.session
    }

    /// Waits for the server's answer. On the server it is there from the start.
    ///
    /// Streams and datagrams need not wait for it: what is sent before goes with the request.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the server refused; otherwise what ended the session.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn established(&self) -> Result<Established, Error> {
        self.shared()
            .wait_for(|state| match (&state.established, &state.end) {
                (Some(established), _) => Some(Ok(established.clone())),
                (None, Some(end)) => Some(Err(to_error(end))),
                (None, None) => None,
            })
            .await
    }

    /// The application protocol that was negotiated, once the session is established.
    #[must_use]
    pub fn protocol(&self) -> Option<String> {
        let state = lock(&self.shared().state);
        state.established.as_ref()?.protocol.clone()
    }

    /// Opens a bidirectional stream and sends its header, so that the peer sees it at once.
    ///
    /// Waits while the peer allows no further stream.
    ///
    /// # Errors
    ///
    /// What ended the session.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a stream that was opened is reset when the future is dropped.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), Error> {
        let session = self.shared();
        let (send, recv) = tokio::select! {
            biased;
            opened = session.quic.open_bi() => opened?,
            () = session.ended() => return Err(self.end_error()),
        };
        let send = session.adopt_send(send).ok_or_else(|| self.end_error());
        let recv = session.adopt_recv(Reader::new(recv));
        let (mut send, recv) = (send?, recv.ok_or_else(|| self.end_error())?);
        self.begin(&mut send, frame::frame_type::WEBTRANSPORT_STREAM)
            .await?;
        Ok((send, recv))
    }

    /// Opens a unidirectional stream and sends its header, so that the peer sees it at once.
    ///
    /// Waits while the peer allows no further stream.
    ///
    /// # Errors
    ///
    /// What ended the session.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a stream that was opened is reset when the future is dropped.
    pub async fn open_uni(&self) -> Result<SendStream, Error> {
        let session = self.shared();
        let send = tokio::select! {
            biased;
            opened = session.quic.open_uni() => opened?,
            () = session.ended() => return Err(self.end_error()),
        };
        let mut send = session.adopt_send(send).ok_or_else(|| self.end_error())?;
        self.begin(&mut send, frame::stream_type::WEBTRANSPORT)
            .await?;
        Ok(send)
    }

    /// Writes the header of a stream.
    async fn begin(&self, send: &mut SendStream, ty: u64) -> Result<(), Error> {
        let mut header = [0; 2 * varint::MAX_LEN];
        let mut rest = &mut header[..];
        varint::encode(ty, &mut rest);
        varint::encode(self.shared().id, &mut rest);
        let unused = rest.len();
        let used = header.len().saturating_sub(unused);
        let header = header.get(..used).unwrap_or_default();
        match send.write_all(header).await {
            Ok(()) => Ok(()),
            // The peer may refuse a stream at once; its owner learns that by the first write.
            Err(crate::WriteError::Stopped(_)) => Ok(()),
            Err(crate::WriteError::Lost(error)) => Err(error.into()),
            Err(_) => Err(self.end_error()),
        }
    }

    /// What ended the session, for an operation that found it ended.
    fn end_error(&self) -> Error {
        let lost = || Error::Lost(quinn::ConnectionError::LocallyClosed);
        self.shared().end_error().unwrap_or_else(lost)
    }

    /// Waits for the next bidirectional stream that the peer opens.
    ///
    /// # Errors
    ///
    /// What ended the session.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a stream is only taken by the poll that returns it.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Error> {
        let accepted = self.shared().bi.pop().await;
        accepted.ok_or_else(|| self.end_error())
    }

    /// Waits for the next unidirectional stream that the peer opens.
    ///
    /// # Errors
    ///
    /// What ended the session.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a stream is only taken by the poll that returns it.
    pub async fn accept_uni(&self) -> Result<RecvStream, Error> {
        let accepted = self.shared().uni.pop().await;
        accepted.ok_or_else(|| self.end_error())
    }

    /// Sends a datagram, which may be lost, and overtakes what streams have queued.
    ///
    /// Copies `payload` behind its header. Where datagrams are sent faster than they leave, the oldest
    /// unsent ones are lost, beyond what QUIC's datagram send buffer holds.
    ///
    /// # Errors
    ///
    /// [`DatagramError`].
    pub fn send_datagram(&self, payload: &[u8]) -> Result<(), DatagramError> {
        let datagram = self.datagram(payload)?;
        self.shared()
            .quic
            .send_datagram(datagram)
            .map_err(|error| self.datagram_error(error, payload.len()))
    }

    /// Sends a datagram, waiting for room in QUIC's send buffer instead of displacing older ones.
    ///
    /// # Errors
    ///
    /// [`DatagramError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a future dropped before it completes has sent nothing.
    pub async fn send_datagram_wait(&self, payload: &[u8]) -> Result<(), DatagramError> {
        let datagram = self.datagram(payload)?;
        tokio::select! {
            biased;
            sent = self.shared().quic.send_datagram_wait(datagram) => {
                sent.map_err(|error| self.datagram_error(error, payload.len()))
            }
            () = self.shared().ended() => Err(DatagramError::SessionEnded),
        }
    }

    fn datagram(&self, payload: &[u8]) -> Result<Bytes, DatagramError> {
        if self.shared().has_ended() {
            return Err(DatagramError::SessionEnded);
        }
        let (len, max) = (payload.len(), self.max_datagram_len());
        if len > max {
            return Err(DatagramError::TooLarge { len, max });
        }
        let quarter = self.shared().id / 4;
        let mut datagram = BytesMut::with_capacity(varint::MAX_LEN.saturating_add(len));
        varint::encode(quarter, &mut datagram);
        datagram.extend_from_slice(payload);
        Ok(datagram.freeze())
    }

    fn datagram_error(&self, error: quinn::SendDatagramError, len: usize) -> DatagramError {
        match error {
            quinn::SendDatagramError::ConnectionLost(error) => DatagramError::Lost(error),
            // The path can have shrunk since its limit was looked at.
            quinn::SendDatagramError::TooLarge
            | quinn::SendDatagramError::Disabled
            | quinn::SendDatagramError::UnsupportedByPeer => DatagramError::TooLarge {
                len,
                max: self.max_datagram_len(),
            },
        }
    }

    /// Waits for the next datagram, in the order of arrival.
    ///
    /// # Errors
    ///
    /// What ended the session.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a datagram is only taken by the poll that returns it.
    pub async fn read_datagram(&self) -> Result<Bytes, Error> {
        let session = self.shared();
        loop {
            let ready = session.datagram_ready.notified();
            if let Some(error) = session.end_error() {
                return Err(error);
            }
            if let Some(datagram) = lock(&session.datagrams).pop() {
                return Ok(datagram);
            }
            ready.await;
        }
    }

    /// Largest datagram that can be sent now, in bytes; 0 where the peer takes none.
    ///
    /// Changes with the path's MTU.
    #[must_use]
    pub fn max_datagram_len(&self) -> usize {
        let header = varint::encoded_len(self.shared().id / 4);
        if !self.handle.connection.peer_takes_datagrams() {
            return 0;
        }
        let max = self.shared().quic.max_datagram_size().unwrap_or(0);
        max.saturating_sub(header)
    }

    /// Closes the session: resets its streams, tells the peer `code` and `reason`, and waits until the
    /// peer has acknowledged it or [`close_timeout`](crate::ConfigBuilder::close_timeout) has passed.
    ///
    /// A reason over 1024 bytes is cut. A session that ended keeps its end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: once polled, the session closes all the same.
    pub async fn close(&self, code: u32, reason: &str) {
        self.shared().order_close(code, reason);
        let is_finished = |state: &State| state.is_finished.then_some(());
        self.shared().wait_for(is_finished).await;
    }

    /// Waits for the end of the session: how it was closed.
    ///
    /// # Errors
    ///
    /// What else ended it: a refusal, a fault of the peer, the loss of the connection.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn closed(&self) -> Result<SessionClosed, Error> {
        self.shared().wait_for(|state| state.end.clone()).await
    }

    /// How the session ended, if it did.
    #[must_use]
    pub fn end(&self) -> Option<Result<SessionClosed, Error>> {
        lock(&self.shared().state).end.clone()
    }

    /// Tells the peer that the session should end soon. Everything goes on working.
    pub fn drain(&self) {
        lock(&self.shared().state).orders.drain = true;
        self.shared().work.notify_one();
    }

    /// Waits until the peer asks for the session to end soon, by a DRAIN capsule or by going away
    /// with its whole connection.
    ///
    /// # Errors
    ///
    /// What ended the session before.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn draining(&self) -> Result<(), Error> {
        self.shared()
            .wait_for(|state| match (&state.end, state.is_draining) {
                (Some(end), _) => Some(Err(to_error(end))),
                (None, true) => Some(Ok(())),
                (None, false) => None,
            })
            .await
    }

    /// The session ID: the QUIC stream ID of its CONNECT request.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared().id
    }

    /// The peer's current address.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.shared().quic.remote_address()
    }

    /// QUIC's current estimate of the round trip.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.shared().quic.rtt()
    }

    /// The QUIC connection, for its statistics. Its streams and datagrams are not to be touched.
    #[must_use]
    pub fn quic(&self) -> &quinn::Connection {
        &self.shared().quic
    }

    /// The HTTP/3 connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.handle.connection
    }
}

/// A client's request for a session, to be answered. Dropped, it is refused with
/// `H3_REQUEST_REJECTED`.
#[derive(Debug)]
pub struct SessionRequest {
    pub(crate) head: http::Request<()>,
    pub(crate) protocols: Vec<String>,
    pub(crate) session: Arc<SessionShared>,
    pub(crate) connection: Connection,
    pub(crate) is_early_data: bool,
    /// Taken when the request is answered.
    pub(crate) send: Option<quinn::SendStream>,
}

impl SessionRequest {
    /// The head: authority, path and fields, of which browsers' `origin` is to be checked.
    #[must_use]
    pub fn head(&self) -> &http::Request<()> {
        &self.head
    }

    /// The application protocols that the client offers, best first, at most 32.
    #[must_use]
    pub fn protocols(&self) -> &[String] {
        &self.protocols
    }

    /// Whether the request came in 0-RTT data, which an attacker can send again.
    ///
    /// Never, unless the server's TLS configuration allows early data.
    #[must_use]
    pub fn is_early_data(&self) -> bool {
        self.is_early_data
    }

    /// The client's current address.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.session.quic.remote_address()
    }

    /// The QUIC connection, for the client's certificate and the path's statistics.
    #[must_use]
    pub fn quic(&self) -> &quinn::Connection {
        &self.session.quic
    }

    /// Opens the session, choosing `protocol`, which should be one of those offered.
    ///
    /// What the client sent ahead of the answer is there at once.
    ///
    /// # Errors
    ///
    /// What ended the session or its connection meanwhile; [`Error::ProtocolName`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: does not wait, so once polled it has answered.
    pub async fn accept(mut self, protocol: Option<&str>) -> Result<Session, Error> {
        let mut response = Response::new(());
        if let Some(protocol) = protocol {
            let value = protocols::to_value(&[protocol]).ok_or(Error::ProtocolName)?;
            response.headers_mut().insert(protocols::CHOSEN, value);
        }
        if let Some(error) = self.session.end_error() {
            return Err(error);
        }
        let encoded = self.connection.encode_response(&response)?;
        let Some(mut send) = self.send.take() else {
            return Err(Error::BodyFinished); // unreachable: only answers take it, and they consume self
        };
        let written = match reader::try_write(&mut send, &encoded).await {
            Ok(written) => written,
            // A client that closes at once wants no answer. How it closed is still to be read.
            Err(quinn::WriteError::Stopped(_)) => encoded.len(),
            Err(error) => {
                let error = Error::from(error);
                self.session.end(Err(error.clone()));
                return Err(error);
            }
        };
        let established = Established {
            status: response.status(),
            headers: std::mem::take(response.headers_mut()),
            protocol: protocol.map(str::to_owned),
        };
        self.session.answer(
            send,
            encoded.slice(written.min(encoded.len())..),
            established,
        );
        Ok(Session::new(self.session.clone(), self.connection.clone()))
    }

    /// Refuses the session with `status`.
    ///
    /// # Errors
    ///
    /// The connection was lost, or the client gave up, before the answer was written.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may leave the request refused with `H3_REQUEST_REJECTED` instead.
    pub async fn reject(mut self, status: StatusCode) -> Result<(), Error> {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let encoded = self.connection.encode_response(&response)?;
        if let Some(send) = &mut self.send {
            let mut rest = &encoded[..];
            while !rest.is_empty() {
                let written = send.write(rest).await?;
                rest = rest.get(written..).unwrap_or_default();
            }
        }
        if let Some(mut send) = self.send.take() {
            let _ = send.finish(); // an error: the client stopped it, and has no use for the answer
        }
        self.session.end(Err(Error::Refused {
            status,
            headers: Box::default(),
        }));
        Ok(())
    }
}

impl Drop for SessionRequest {
    fn drop(&mut self) {
        if let Some(mut send) = self.send.take() {
            reader::reset(&mut send, Code::H3_REQUEST_REJECTED);
            self.session
                .end(Err(Error::Reset(Code::H3_REQUEST_REJECTED)));
        }
    }
}

/// The connection's side of a session: its CONNECT stream.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session: Arc<SessionShared>,
    pub(crate) reader: Reader,
    pub(crate) decoder: MessageDecoder,
    capsules: CapsuleDecoder,
    send: Option<quinn::SendStream>,
    /// Bytes to be written: the answer or request, and capsules. At most one of each, as a session
    /// drains and closes once.
    outbox: BytesMut,
    has_drained: bool,
    informational: usize,
    /// The protocols that were offered, on the client.
    offered: Vec<String>,
}

/// Why the control stream is no longer read.
enum Stop {
    /// This side closes: the capsule is in the outbox.
    Closing,
    /// The session ended without this side's CONNECT stream having to say so.
    Ended,
    /// The peer closed.
    ClosedByPeer(SessionClosed),
    /// The server refused.
    Refused(StatusCode, Box<HeaderMap>),
    /// The peer reset the stream.
    Reset(Code),
    /// The peer broke a rule; the session ends.
    Fault(Fault),
    /// The connection is gone.
    Lost(quinn::ConnectionError),
}

impl Control {
    pub(crate) fn new(
        shared: Arc<Shared>,
        session: Arc<SessionShared>,
        reader: Reader,
        decoder: MessageDecoder,
    ) -> Self {
        let capsules = CapsuleDecoder::new(shared.config.max_capsule_bytes);
        Self {
            shared,
            session,
            reader,
            decoder,
            capsules,
            send: None,
            outbox: BytesMut::new(),
            has_drained: false,
            informational: 0,
            offered: Vec::new(),
        }
    }

    /// With the sending half, what is unsent of the request, and the protocols it offers, on the
    /// client.
    pub(crate) fn with_request(
        mut self,
        send: quinn::SendStream,
        unsent: &[u8],
        offered: &[&str],
    ) -> Self {
        self.send = Some(send);
        self.offered = offered.iter().map(|name| (*name).to_owned()).collect();
        self.outbox.extend_from_slice(unsent);
        self
    }

    /// Runs the session until it ended and the peer knows.
    ///
    /// # Errors
    ///
    /// A fault that ends the connection.
    pub(crate) async fn run(mut self) -> Result<u64, Fault> {
        let result = self.read().await;
        let id = self.session.id;
        let stop = match result {
            Ok(stop) => stop,
            Err(fault) if fault.scope == Scope::Stream => Stop::Fault(fault),
            Err(fault) => {
                self.session.end(Err(Error::Peer(fault)));
                self.session.finished();
                return Err(fault);
            }
        };
        let charge = self.stop(stop).await;
        self.session.finished();
        charge?;
        Ok(id)
    }

    /// Carries out orders and reads capsules until there is a reason to stop.
    async fn read(&mut self) -> Result<Stop, Fault> {
        loop {
            let (orders, has_ended) = self.session.take_orders();
            if let Some((send, unsent)) = orders.send {
                self.send = Some(send);
                self.outbox.extend_from_slice(&unsent);
            }
            if orders.drain && !self.has_drained {
                self.has_drained = true;
                capsule::encode_drain(&mut self.outbox);
            }
            if let Some((code, reason)) = orders.close {
                capsule::encode_close(code, &reason, &mut self.outbox);
                return Ok(Stop::Closing);
            }
            if has_ended {
                return Ok(Stop::Ended);
            }
            if let Some(stop) = self.decode()? {
                return Ok(stop);
            }
            let is_writing = !self.outbox.is_empty();
            tokio::select! {
                () = self.session.work.notified() => {}
                written = write(self.send.as_mut(), &self.outbox), if is_writing => match written {
                    Ok(written) => self.outbox.advance(written.min(self.outbox.len())),
                    // The peer does not listen to capsules; it may still send them.
                    Err(quinn::WriteError::Stopped(_) | quinn::WriteError::ClosedStream) => {
                        self.send = None;
                    }
                    Err(quinn::WriteError::ConnectionLost(error)) => return Ok(Stop::Lost(error)),
                    Err(quinn::WriteError::ZeroRttRejected) => {
                        return Ok(Stop::Lost(quinn::ConnectionError::Reset));
                    }
                },
                filled = self.reader.fill() => match filled {
                    Ok(true) => {}
                    Ok(false) => return self.finish_reading(),
                    Err(quinn::ReadError::Reset(code)) => return Ok(Stop::Reset(code.into())),
                    Err(quinn::ReadError::ConnectionLost(error)) => return Ok(Stop::Lost(error)),
                    Err(_) => return Ok(Stop::Reset(Code::H3_REQUEST_CANCELLED)),
                },
            }
        }
    }

    /// Judges the end of the stream: a session ends by it.
    fn finish_reading(&mut self) -> Result<Stop, Fault> {
        self.decoder.finish()?;
        if !self.capsules.is_between_capsules() {
            return Err(Fault::stream(
                Code::H3_MESSAGE_ERROR,
                "the stream ends inside a capsule",
            ));
        }
        Ok(Stop::ClosedByPeer(SessionClosed {
            code: 0,
            reason: String::new(),
            side: ClosedBy::Peer,
        }))
    }

    /// Decodes what was read.
    fn decode(&mut self) -> Result<Option<Stop>, Fault> {
        loop {
            let event = match self.decoder.decode(&mut self.reader.input) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(None),
                Err(MessageError::Fault(fault)) => return Err(fault),
                Err(MessageError::TooLarge) => return Err(HEAD_TOO_LARGE),
            };
            let stop = match event {
                MessageEvent::Head(section) => self.answered(section)?,
                MessageEvent::Data(data) => self.capsules(data)?,
                MessageEvent::Trailers(_) => {
                    return Err(Fault::stream(
                        Code::H3_MESSAGE_ERROR,
                        "trailers on the stream of a session",
                    ));
                }
                MessageEvent::Skipped => {
                    self.shared.charge()?;
                    None
                }
            };
            if stop.is_some() {
                return Ok(stop);
            }
        }
    }

    /// Handles the server's answer.
    fn answered(&mut self, section: Bytes) -> Result<Option<Stop>, Fault> {
        let fields = match qpack::decode(section, self.shared.max_field_section()) {
            Ok(fields) => fields,
            Err(qpack::QpackError::Fault(fault)) => return Err(fault),
            Err(qpack::QpackError::TooLarge) => return Err(HEAD_TOO_LARGE),
        };
        let (head, ()) = head::decode_response(fields)?.into_parts();
        if head.status.is_informational() {
            self.informational = self.informational.saturating_add(1);
            if self.informational > MAX_INFORMATIONAL {
                return Err(TOO_MANY_INFORMATIONAL);
            }
            self.decoder.expect_another_head();
            return Ok(None);
        }
        if !head.status.is_success() {
            return Ok(Some(Stop::Refused(head.status, Box::new(head.headers))));
        }
        let protocol = protocols::chosen(&head.headers);
        if protocol
            .as_ref()
            .is_some_and(|name| !self.offered.contains(name))
        {
            return Err(Fault::stream(
                Code::WT_ALPN_ERROR,
                "a protocol that was not offered",
            ));
        }
        self.session.establish(Established {
            status: head.status,
            protocol,
            headers: head.headers,
        });
        Ok(None)
    }

    fn capsules(&mut self, mut data: Bytes) -> Result<Option<Stop>, Fault> {
        while let Some(capsule) = self.capsules.decode(&mut data)? {
            match capsule {
                Capsule::Close { code, reason } => {
                    if !data.is_empty() {
                        return Err(AFTER_CLOSE);
                    }
                    return Ok(Some(Stop::ClosedByPeer(SessionClosed {
                        code,
                        reason,
                        side: ClosedBy::Peer,
                    })));
                }
                Capsule::Drain => self.session.drained_by_peer(),
                Capsule::Datagram(payload) => self.session.deliver_datagram(payload),
                Capsule::Skipped => self.shared.charge()?,
            }
        }
        Ok(None)
    }

    /// Ends the session and both directions of its CONNECT stream.
    ///
    /// # Errors
    ///
    /// The peer caused more faults than it may.
    async fn stop(&mut self, stop: Stop) -> Result<(), Fault> {
        match stop {
            Stop::Closing => {
                self.flush_and_finish().await;
                self.reader.stop(Code::WT_SESSION_GONE);
            }
            Stop::Ended => {
                self.abandon_sending(Code::WT_SESSION_GONE);
                self.reader.stop(Code::H3_NO_ERROR);
            }
            Stop::ClosedByPeer(closed) => {
                self.session.end(Ok(closed));
                self.finish_sending();
                self.expect_end().await;
            }
            Stop::Refused(status, headers) => {
                self.session.end(Err(Error::Refused { status, headers }));
                self.abandon_sending(Code::H3_REQUEST_CANCELLED);
                self.reader.stop(Code::H3_NO_ERROR);
            }
            Stop::Reset(code) => {
                self.session.end(Err(Error::Reset(code)));
                self.abandon_sending(Code::H3_REQUEST_CANCELLED);
            }
            Stop::Fault(fault) => {
                tracing::debug!(session = self.session.id, %fault, "session ends");
                self.session.end(Err(Error::Peer(fault)));
                self.abandon_sending(fault.code);
                self.reader.stop(fault.code);
                return self.shared.charge();
            }
            Stop::Lost(error) => self.session.end(Err(self.shared.end_or(error))),
        }
        Ok(())
    }

    /// Writes the outbox, ends the stream and waits for the peer to have all of it.
    async fn flush_and_finish(&mut self) {
        let Some(mut send) = self.send.take() else {
            return;
        };
        let outbox = std::mem::take(&mut self.outbox);
        let flush = async {
            send.write_all(&outbox).await.ok()?;
            send.finish().ok()?;
            send.stopped().await.ok()
        };
        let flushed = tokio::time::timeout(self.shared.config.close_timeout, flush).await;
        if !matches!(flushed, Ok(Some(_))) {
            reader::reset(&mut send, Code::WT_SESSION_GONE);
        }
    }

    /// Ends the sending direction, if nothing is left to be written; otherwise resets it.
    fn finish_sending(&mut self) {
        match self.send.take() {
            Some(mut send) if self.outbox.is_empty() => {
                let _ = send.finish(); // an error: the peer stopped it, or it is closed already
            }
            Some(mut send) => reader::reset(&mut send, Code::WT_SESSION_GONE),
            None => {}
        }
    }

    fn abandon_sending(&mut self, code: Code) {
        if let Some(mut send) = self.send.take() {
            reader::reset(&mut send, code);
        }
    }

    /// Waits for the end of the stream, which must follow a CLOSE capsule at once.
    async fn expect_end(&mut self) {
        let end = tokio::time::timeout(self.shared.config.close_timeout, self.reader.fill()).await;
        match end {
            Ok(Ok(false) | Err(_)) => {}
            Ok(Ok(true)) => self.reader.stop(AFTER_CLOSE.code),
            Err(_) => self.reader.stop(Code::WT_SESSION_GONE),
        }
    }
}

const HEAD_TOO_LARGE: Fault =
    Fault::stream(Code::H3_EXCESSIVE_LOAD, "a field section above the limit");
const AFTER_CLOSE: Fault = Fault::stream(Code::H3_MESSAGE_ERROR, "data after a CLOSE capsule");
/// A server keeps a client waiting with informational responses.
pub(crate) const TOO_MANY_INFORMATIONAL: Fault =
    Fault::stream(Code::H3_EXCESSIVE_LOAD, "too many informational responses");

/// Writes the front of `data`; waits for ever without a stream, as orders bring one.
async fn write(
    send: Option<&mut quinn::SendStream>,
    data: &[u8],
) -> Result<usize, quinn::WriteError> {
    match send {
        Some(send) => send.write(data).await,
        None => std::future::pending().await,
    }
}
