//! Plain HTTP/3 requests, both sides. Spec: RFC 9114 §4.
//!
//! Bodies stream: what is not read stays in QUIC's window, and so holds the peer back.
//! Invariant: a body that is cut off never looks whole, as its stream is reset.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode};

use crate::{
    Code,
    connection::Connection,
    error::Error,
    fault::Fault,
    frame::{self, frame_type},
    head,
    message::{MessageDecoder, MessageError, MessageEvent},
    qpack,
    reader::{self, Reader},
    session::{MAX_INFORMATIONAL, TOO_MANY_INFORMATIONAL},
};

/// One of the requests that a connection handles at a time; dropped, it makes room for another.
#[derive(Debug)]
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// Takes a permit, unless `max` are taken.
    pub(crate) fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Arc<Self>> {
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < max).then_some(taken.saturating_add(1))
            })
            .ok()?;
        Some(Arc::new(Self(count.clone())))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that a client made, with its body still to come.
#[derive(Debug)]
pub struct Request {
    head: http::Request<()>,
    body: RecvBody,
    responder: Responder,
}

impl Request {
    pub(crate) fn new(
        head: http::Request<()>,
        connection: &Connection,
        reader: Reader,
        decoder: MessageDecoder,
        send: quinn::SendStream,
        permit: Arc<Permit>,
    ) -> Self {
        let length = head::content_length(head.headers()).ok().flatten();
        let body = RecvBody {
            connection: connection.clone(),
            reader,
            decoder,
            left: length,
            trailers: None,
            phase: BodyPhase::Open,
            abandon: Code::H3_NO_ERROR,
            _permit: Some(permit.clone()),
        };
        let responder = Responder {
            is_head: *head.method() == Method::HEAD,
            send: SendBody::new(connection, send, Code::H3_INTERNAL_ERROR, Some(permit)),
        };
        Self {
            head,
            body,
            responder,
        }
    }

    /// The head. Cookies that were sent apart are joined.
    #[must_use]
    pub fn head(&self) -> &http::Request<()> {
        &self.head
    }

    /// The body.
    pub fn body_mut(&mut self) -> &mut RecvBody {
        &mut self.body
    }

    /// Whether the request came in 0-RTT data, which an attacker can send again.
    ///
    /// Never, unless the server's TLS configuration allows early data.
    #[must_use]
    pub fn is_early_data(&self) -> bool {
        self.body.reader.recv.is_0rtt()
    }

    /// The client's current address.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.body.connection.quic().remote_address()
    }

    /// Head, body, and the means to answer, which may be used in any order.
    #[must_use]
    pub fn into_parts(self) -> (http::Request<()>, RecvBody, Responder) {
        (self.head, self.body, self.responder)
    }

    /// Answers, leaving what is unread of the request's body.
    ///
    /// # Errors
    ///
    /// As [`Responder::respond`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes, the request is reset.
    pub async fn respond(self, head: Response<()>) -> Result<SendBody, Error> {
        self.responder.respond(head).await
    }
}

/// The means to answer a request, once. Dropped without an answer, it resets the stream with
/// `H3_INTERNAL_ERROR`.
#[derive(Debug)]
pub struct Responder {
    is_head: bool,
    send: SendBody,
}

impl Responder {
    /// Sends the head of the answer; its body follows through what this returns.
    ///
    /// Fields that belong to a connection are left out. An answer to HEAD has no body: what is given
    /// to it is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] when the head is over the client's limit; [`Error::Stopped`] when the client
    /// wants no answer; [`Error::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes, the request is reset.
    pub async fn respond(mut self, head: Response<()>) -> Result<SendBody, Error> {
        let encoded = self.send.connection.encode_response(&head)?;
        self.send.discards = self.is_head;
        self.send.queue(encoded, Bytes::new()).await?;
        Ok(self.send)
    }

    /// Sends an informational answer, such as 103; the final one is still to come.
    ///
    /// # Errors
    ///
    /// As [`respond`](Self::respond).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what is unsent goes before the answer.
    pub async fn inform(&mut self, head: Response<()>) -> Result<(), Error> {
        let encoded = self.send.connection.encode_response(&head)?;
        self.send.queue(encoded, Bytes::new()).await
    }
}

/// The body of a message to the peer. Dropped before [`finish`](Self::finish), its stream is reset, so
/// that the peer never takes a part for the whole.
#[derive(Debug)]
pub struct SendBody {
    connection: Connection,
    send: quinn::SendStream,
    /// A frame that is written in part: header and payload. Nothing else may be written before.
    unsent: [Bytes; 2],
    /// Drops data, as the answer to HEAD has none.
    discards: bool,
    is_finished: bool,
    /// The peer stopped the message, and that was counted.
    is_stopped: bool,
    /// The code of the reset when this is dropped.
    abandon: Code,
    _permit: Option<Arc<Permit>>,
}

impl SendBody {
    pub(crate) fn new(
        connection: &Connection,
        send: quinn::SendStream,
        abandon: Code,
        permit: Option<Arc<Permit>>,
    ) -> Self {
        Self {
            connection: connection.clone(),
            send,
            unsent: [Bytes::new(), Bytes::new()],
            discards: false,
            is_finished: false,
            is_stopped: false,
            abandon,
            _permit: permit,
        }
    }

    /// Polls until nothing is unsent.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.unsent.iter().any(|part| !part.is_empty()) {
            let skip = usize::from(self.unsent.first().is_some_and(Bytes::is_empty));
            let parts = self.unsent.get_mut(skip..).unwrap_or_default();
            let written = ready!(pin!(self.send.write_chunks(parts)).poll(cx));
            if let Err(error) = written {
                let is_stop = matches!(error, quinn::WriteError::Stopped(_));
                if is_stop && !std::mem::replace(&mut self.is_stopped, true) {
                    self.connection.request_cancelled();
                }
                return Poll::Ready(Err(error.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `first` and `second`, after what is unsent.
    pub(crate) async fn queue(&mut self, first: Bytes, second: Bytes) -> Result<(), Error> {
        if self.is_finished {
            return Err(Error::BodyFinished);
        }
        poll_fn(|cx| self.poll_flush(cx)).await?;
        self.unsent = [first, second];
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Sends a piece of the body without copying it, waiting while the peer takes no more.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] when the peer wants no more; [`Error::Lost`]; [`Error::BodyFinished`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe as to `data`: dropped before it completes, none of it or all of it goes before
    /// the next piece.
    pub async fn send_data(&mut self, data: Bytes) -> Result<(), Error> {
        if data.is_empty() || self.discards {
            return Ok(());
        }
        let mut header = BytesMut::with_capacity(16);
        frame::encode_header(frame_type::DATA, data.len(), &mut header);
        self.queue(header.freeze(), data).await
    }

    /// Sends trailers and ends the message.
    ///
    /// # Errors
    ///
    /// As [`send_data`](Self::send_data), and [`Error::Head`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes, the message is to be given up: the rest of the stream cannot be
    /// told from trailers.
    pub async fn send_trailers(&mut self, trailers: &HeaderMap) -> Result<(), Error> {
        if !self.discards {
            let mut section = BytesMut::new();
            head::encode_trailers(trailers, self.connection.peer_field_limit(), &mut section)?;
            let section = section.freeze();
            let mut header = BytesMut::with_capacity(16);
            frame::encode_header(frame_type::HEADERS, section.len(), &mut header);
            self.queue(header.freeze(), section).await?;
        }
        self.finish().await
    }

    /// Ends the message; what was sent is still delivered.
    ///
    /// # Errors
    ///
    /// As [`send_data`](Self::send_data).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: may be called again.
    pub async fn finish(&mut self) -> Result<(), Error> {
        if self.is_finished {
            return Err(Error::BodyFinished);
        }
        poll_fn(|cx| self.poll_flush(cx)).await?;
        self.is_finished = true;
        let _ = self.send.finish(); // an error says that the stream is closed already
        Ok(())
    }

    /// Abandons the message with an HTTP/3 `code`.
    pub fn reset(&mut self, code: Code) {
        self.is_finished = true;
        reader::reset(&mut self.send, code);
    }

    /// Waits until the peer stops the message (`Some`), or has acknowledged all of a finished one
    /// (`None`).
    ///
    /// # Errors
    ///
    /// [`Error::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stopped(&self) -> Result<Option<Code>, Error> {
        match self.send.stopped().await {
            Ok(code) => Ok(code.map(Into::into)),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(error.into()),
            Err(quinn::StoppedError::ZeroRttRejected) => {
                Err(Error::Lost(quinn::ConnectionError::Reset))
            }
        }
    }

    /// Sets the priority against the other streams of the connection; higher goes first, strictly.
    pub fn set_priority(&self, priority: i32) {
        let _ = self.send.set_priority(priority); // an error says that the stream is closed already
    }
}

impl Drop for SendBody {
    fn drop(&mut self) {
        if !self.is_finished {
            reader::reset(&mut self.send, self.abandon);
        }
    }
}

#[derive(Clone, Debug)]
enum BodyPhase {
    Open,
    Ended,
    /// Failed with an error that every later read repeats.
    Failed(Error),
}

/// The body of a message from the peer. Dropped before its end, its stream is stopped.
#[derive(Debug)]
pub struct RecvBody {
    connection: Connection,
    reader: Reader,
    decoder: MessageDecoder,
    /// Bytes that Content-Length says are still to come.
    left: Option<u64>,
    trailers: Option<HeaderMap>,
    phase: BodyPhase,
    /// The code of the stop when this is dropped.
    abandon: Code,
    _permit: Option<Arc<Permit>>,
}

impl RecvBody {
    /// Polls for the next piece; `None` at the end.
    ///
    /// # Errors
    ///
    /// As [`data`](Self::data).
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        match &self.phase {
            BodyPhase::Open => {}
            BodyPhase::Ended => return Poll::Ready(Ok(None)),
            BodyPhase::Failed(error) => return Poll::Ready(Err(error.clone())),
        }
        let data = ready!(self.poll_open(cx));
        match &data {
            Ok(Some(_)) => {}
            Ok(None) => self.phase = BodyPhase::Ended,
            Err(error) => {
                self.phase = BodyPhase::Failed(error.clone());
                match error {
                    Error::Peer(fault) => {
                        self.reader.stop(fault.code);
                        self.connection.report(*fault);
                    }
                    Error::Reset(_) => self.connection.request_cancelled(),
                    _ => {}
                }
            }
        }
        Poll::Ready(data)
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            let event = match self.decoder.decode(&mut self.reader.input) {
                Ok(event) => event,
                Err(MessageError::Fault(fault)) => return Poll::Ready(Err(fault.into())),
                Err(MessageError::TooLarge) => return Poll::Ready(Err(TRAILERS_TOO_LARGE.into())),
            };
            match event {
                Some(MessageEvent::Data(data)) => {
                    let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    if let Some(left) = &mut self.left {
                        *left = left.checked_sub(len).ok_or(Error::Peer(WRONG_LENGTH))?;
                    }
                    return Poll::Ready(Ok(Some(data)));
                }
                // The first HEADERS was taken off before, so the decoder has only trailers left.
                Some(MessageEvent::Head(section) | MessageEvent::Trailers(section)) => {
                    self.trailers = Some(self.decode_trailers(section)?);
                }
                Some(MessageEvent::Skipped) => self.connection.charge()?,
                None => {
                    if !ready!(self.reader.poll_fill(cx))? {
                        self.decoder.finish()?;
                        if self.left.is_some_and(|left| left > 0) {
                            return Poll::Ready(Err(WRONG_LENGTH.into()));
                        }
                        return Poll::Ready(Ok(None));
                    }
                }
            }
        }
    }

    fn decode_trailers(&self, section: Bytes) -> Result<HeaderMap, Error> {
        let fields = match qpack::decode(section, self.connection.max_field_section()) {
            Ok(fields) => fields,
            Err(qpack::QpackError::Fault(fault)) => return Err(fault.into()),
            Err(qpack::QpackError::TooLarge) => return Err(TRAILERS_TOO_LARGE.into()),
        };
        Ok(head::decode_trailers(fields)?)
    }

    /// Waits for the next piece of the body, without copying it; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Reset`] when the peer gave up; [`Error::Peer`] when the body breaks a rule, such as
    /// being longer than its Content-Length; [`Error::Lost`]. Later calls repeat it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a piece is only taken by the poll that returns it.
    pub async fn data(&mut self) -> Result<Option<Bytes>, Error> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Reads the rest of the body, at most `max` bytes.
    ///
    /// `None` when there is more; the rest is then stopped.
    ///
    /// # Errors
    ///
    /// As [`data`](Self::data).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: what was read is lost with the future.
    pub async fn collect(&mut self, max: usize) -> Result<Option<Bytes>, Error> {
        let mut body = BytesMut::new();
        while let Some(data) = self.data().await? {
            if body.len().saturating_add(data.len()) > max {
                self.reader.stop(self.abandon);
                self.phase = BodyPhase::Ended;
                return Ok(None);
            }
            body.extend_from_slice(&data);
        }
        Ok(Some(body.freeze()))
    }

    /// The trailers, once the end was read.
    #[must_use]
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Bytes still to come, where Content-Length says so.
    #[must_use]
    pub fn content_length_left(&self) -> Option<u64> {
        self.left
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        if matches!(self.phase, BodyPhase::Open) {
            self.reader.stop(self.abandon);
        }
    }
}

impl http_body::Body for RecvBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.poll_data(cx)) {
            Ok(Some(data)) => Some(Ok(http_body::Frame::data(data))),
            Ok(None) => this
                .trailers
                .take()
                .map(|trailers| Ok(http_body::Frame::trailers(trailers))),
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.phase, BodyPhase::Ended) && self.trailers.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.left {
            Some(left) => http_body::SizeHint::with_exact(left),
            None => http_body::SizeHint::default(),
        }
    }
}

const TRAILERS_TOO_LARGE: Fault =
    Fault::stream(Code::H3_EXCESSIVE_LOAD, "trailers above the limit");
const HEAD_TOO_LARGE: Fault = Fault::stream(Code::H3_EXCESSIVE_LOAD, "a head above the limit");
const WRONG_LENGTH: Fault = Fault::stream(
    Code::H3_MESSAGE_ERROR,
    "the body is not as long as Content-Length says",
);

/// The answer to a request, to be waited for. Dropped, it cancels the request.
#[derive(Debug)]
pub struct PendingResponse {
    /// Reads ahead of the head too.
    body: RecvBody,
    is_head: bool,
    informational: usize,
}

impl PendingResponse {
    pub(crate) fn new(
        connection: &Connection,
        reader: Reader,
        decoder: MessageDecoder,
        method: &Method,
    ) -> Self {
        Self {
            body: RecvBody {
                connection: connection.clone(),
                reader,
                decoder,
                left: None,
                trailers: None,
                phase: BodyPhase::Open,
                abandon: Code::H3_REQUEST_CANCELLED,
                _permit: None,
            },
            is_head: *method == Method::HEAD,
            informational: 0,
        }
    }

    /// Waits for the head of the answer. Informational answers are skipped, up to eight.
    ///
    /// # Errors
    ///
    /// [`Error::Reset`] when the server gave up, with [`Code::H3_REQUEST_REJECTED`] if it did nothing
    /// and the request may be sent again; [`Error::Peer`]; [`Error::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes, the request is cancelled.
    pub async fn response(mut self) -> Result<Response<RecvBody>, Error> {
        match self.read_head().await {
            Ok(head) => {
                let has_body = !self.is_head
                    && head.status() != StatusCode::NO_CONTENT
                    && head.status() != StatusCode::NOT_MODIFIED;
                if has_body {
                    self.body.left = head::content_length(head.headers())?;
                }
                Ok(head.map(|()| self.body))
            }
            Err(error) => {
                if let Error::Peer(fault) = &error {
                    self.body.reader.stop(fault.code);
                    self.body.connection.report(*fault);
                }
                Err(error)
            }
        }
    }

    async fn read_head(&mut self) -> Result<Response<()>, Error> {
        let body = &mut self.body;
        loop {
            let event = match body.decoder.decode(&mut body.reader.input) {
                Ok(event) => event,
                Err(MessageError::Fault(fault)) => return Err(fault.into()),
                Err(MessageError::TooLarge) => return Err(HEAD_TOO_LARGE.into()),
            };
            match event {
                Some(MessageEvent::Head(section)) => {
                    let fields = match qpack::decode(section, body.connection.max_field_section()) {
                        Ok(fields) => fields,
                        Err(qpack::QpackError::Fault(fault)) => return Err(fault.into()),
                        Err(qpack::QpackError::TooLarge) => return Err(HEAD_TOO_LARGE.into()),
                    };
                    let head = head::decode_response(fields)?;
                    if !head.status().is_informational() {
                        return Ok(head);
                    }
                    self.informational = self.informational.saturating_add(1);
                    if self.informational > MAX_INFORMATIONAL {
                        return Err(TOO_MANY_INFORMATIONAL.into());
                    }
                    body.decoder.expect_another_head();
                }
                // The decoder gives nothing else before a head.
                Some(MessageEvent::Data(_) | MessageEvent::Trailers(_) | MessageEvent::Skipped) => {
                    body.connection.charge()?;
                }
                None => {
                    if !body.reader.fill().await? {
                        body.decoder.finish()?;
                    }
                }
            }
        }
    }
}
