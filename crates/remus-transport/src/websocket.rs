//! Sessions over WebSocket, both sides. Spec: carriers §2.
//!
//! Owns the handshake, the task that carries whole frames in binary messages, and what close codes mean. The framing below is
//! `tokio-tungstenite`'s.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Sink as _, Stream as _, StreamExt as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use remus_wire::ErrorCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::link::framed::{CLOSE_MAX, Framed, Outgoing, UNIT_MAX, are_whole_frames};
use crate::link::{Carrier, Link, LinkEnd};
use crate::tcp::AtWork;
use crate::web::{Body, Refusal, empty};
use crate::webtransport::{Acceptor, PROTOCOL, open};

/// How long the connection may take to become a WebSocket after it was answered: hyper hands it over at once, or never.
const UPGRADE_MAX: Duration = Duration::from_secs(10);

/// Bytes that are read at once: as much as TLS decrypts into one record, and some.
const READ_BUFFER: usize = 32 * 1024;

/// Bytes of written messages that are gathered before they go to the socket. None: each message is a batch already.
const WRITE_BUFFER: usize = 0;

/// Longest text of a close frame, in bytes. RFC 6455 §5.5: 125 with the code.
const REASON_MAX: usize = 123;

/// From here on a close code is an error code of the session. Spec: CARR-11.
const ERRORS_FROM: u16 = 4000;

/// Close code of an error code that has no close code of its own.
const OTHER_ERROR: u16 = 4999;

/// Answers a request for a WebSocket, and opens the session that it carries.
pub(crate) fn accept(
    acceptor: &Arc<dyn Acceptor>,
    remote: SocketAddr,
    mut request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let is_http2 = request.version() == Version::HTTP_2;
    let asks = if is_http2 {
        *request.method() == Method::CONNECT
            && request
                .extensions()
                .get::<hyper::ext::Protocol>()
                .is_some_and(|protocol| protocol.as_str() == "websocket")
    } else {
        *request.method() == Method::GET
            && lists(request.headers(), &CONNECTION, "upgrade")
            && lists(request.headers(), &UPGRADE, "websocket")
    };
    let headers = request.headers();
    let is_13 = headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_some_and(|version| version == "13");
    // Over HTTP/2 nothing is to be proved by a key. RFC 8441 §5.
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let accepted = key.map(derive_accept_key);
    if !asks || !is_13 || (accepted.is_none() && !is_http2) {
        return Err(Refusal::UpgradeRequired);
    }
    if !lists(headers, &SEC_WEBSOCKET_PROTOCOL, PROTOCOL) {
        return Err(Refusal::SubprotocolRequired);
    }
    if acceptor.is_stopping() {
        return Err(Refusal::Stopping);
    }
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Refusal::UpgradeRequired);
    };
    let at_work = request.extensions_mut().remove::<AtWork>();

    let link = Framed::new(Carrier::WebSocket, remote);
    let carried = link.clone();
    link.set_runner(async move {
        let _at_work = at_work;
        match timeout(UPGRADE_MAX, upgrade).await {
            Ok(Ok(io)) => {
                let io = TokioIo::new(io);
                let socket =
                    WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
                carry(socket, carried).await;
            }
            Ok(Err(error)) => carried.lose(&error.to_string()),
            Err(_) => carried.lose("the connection did not become a WebSocket"),
        }
    });
    open(Link::Framed(link), acceptor);

    let mut response = Response::new(empty());
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    if !is_http2 {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Some(accepted) = accepted.and_then(|key| HeaderValue::try_from(key).ok()) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
        }
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    }
    Ok(response)
}

/// Whether a field that is a list holds `wanted`, in any case of letters.
fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(wanted))
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        // One message, and the answers to pings and closes beside it.
        .max_write_buffer_size(UNIT_MAX.saturating_mul(2))
        .max_message_size(Some(UNIT_MAX))
        .max_frame_size(Some(UNIT_MAX))
}

/// Asks for a WebSocket on `stream`, and gives the link that it carries.
pub(crate) async fn connect<S>(
    stream: S,
    authority: &str,
    remote: SocketAddr,
) -> Result<Link, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::builder()
        .uri(format!("wss://{authority}{}", crate::web::WEBSOCKET_PATH))
        .header(http::header::HOST, authority)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(
            SEC_WEBSOCKET_KEY,
            tokio_tungstenite::tungstenite::handshake::client::generate_key(),
        )
        .header(SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(())?;
    // That the answer names the subprotocol is checked there too. Spec: CARR-7.
    let (socket, _) =
        tokio_tungstenite::client_async_with_config(request, stream, Some(config())).await?;
    let link = Framed::new(Carrier::WebSocket, remote);
    link.set_runner(carry(socket, link.clone()));
    Ok(Link::Framed(link))
}

/// How carrying ended.
enum Ending {
    /// The session wants it closed.
    Close(CloseFrame),
    /// The peer did what is not allowed.
    Broken(CloseFrame),
    /// The peer's close.
    Peer(CloseFrame),
    Lost(String),
    /// The session gave the link up.
    Abandoned,
}

/// Carries frames both ways until the link ends.
async fn carry<S>(mut socket: WebSocketStream<S>, link: Framed)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // However this task ends, the session hears of it.
    let _lost = LoseOnDrop(link.clone());
    let mut needs_flush = false;
    let ending = poll_fn(|cx| poll_carry(&mut socket, &link, &mut needs_flush, cx)).await;
    // What the session hears now, what it hears when the socket is closed, and what the peer is told.
    let (now, then, farewell) = match ending {
        Ending::Close(frame) => (None, LinkEnd::Local, Some(frame)),
        Ending::Broken(frame) => (
            Some(LinkEnd::Broken {
                code: meaning(&frame).unwrap_or(ErrorCode::MALFORMED),
                reason: frame.reason.as_str().to_owned(),
            }),
            LinkEnd::Local,
            Some(frame),
        ),
        Ending::Peer(frame) => (Some(end_of(&frame)), LinkEnd::Local, None),
        Ending::Lost(reason) => return link.lose(&reason),
        Ending::Abandoned => return,
    };
    if let Some(end) = now {
        link.set_end(end);
    }
    // The peer's answer to our close, or ours to the peer's, which the socket makes by itself.
    let closing = async {
        if farewell.is_some() && socket.close(farewell).await.is_err() {
            return;
        }
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = timeout(CLOSE_MAX, closing).await;
    link.set_end(then);
}

struct LoseOnDrop(Framed);

impl Drop for LoseOnDrop {
    fn drop(&mut self) {
        self.0.lose("nobody carries the link any more");
    }
}

fn poll_carry<S>(
    socket: &mut WebSocketStream<S>,
    link: &Framed,
    needs_flush: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Ending>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let writing = poll_write(socket, link, needs_flush, cx);
        if let Poll::Ready(Some(ending)) = writing {
            return Poll::Ready(ending);
        }
        let reading = if link.poll_room(cx).is_ready() {
            poll_read(socket, link, cx)
        } else {
            Poll::Pending
        };
        if let Poll::Ready(Some(ending)) = reading {
            return Poll::Ready(ending);
        }
        if writing.is_pending() && reading.is_pending() {
            return Poll::Pending;
        }
    }
}

/// Sends one message, if there is one and the socket takes it. `Ready(None)`: perhaps there is more.
fn poll_write<S>(
    socket: &mut WebSocketStream<S>,
    link: &Framed,
    needs_flush: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Ending>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut socket = Pin::new(socket);
    match socket.as_mut().poll_ready(cx) {
        Poll::Ready(Ok(())) => {}
        // It ended in order, and what the peer said by that is still to be read.
        Poll::Ready(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => return Poll::Pending,
        Poll::Ready(Err(error)) => return Poll::Ready(Some(Ending::Lost(error.to_string()))),
        Poll::Pending => return Poll::Pending,
    }
    match link.poll_outgoing(cx, UNIT_MAX) {
        Poll::Ready(Outgoing::Frames { chunks, len }) => {
            let message = Message::Binary(join(chunks, len));
            *needs_flush = true;
            match socket.start_send(message) {
                Ok(()) => Poll::Ready(None),
                Err(error) => Poll::Ready(Some(Ending::Lost(error.to_string()))),
            }
        }
        Poll::Ready(Outgoing::Close { code, reason }) => {
            Poll::Ready(Some(Ending::Close(close_frame(code, &reason))))
        }
        Poll::Ready(Outgoing::Ended) => Poll::Ready(Some(Ending::Abandoned)),
        Poll::Pending => {
            if *needs_flush {
                match socket.poll_flush(cx) {
                    Poll::Ready(Ok(())) => *needs_flush = false,
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Some(Ending::Lost(error.to_string())));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            link.note_delivered();
            Poll::Pending
        }
    }
}

/// Takes one message, if there is one. `Ready(None)`: perhaps there is more.
fn poll_read<S>(
    socket: &mut WebSocketStream<S>,
    link: &Framed,
    cx: &mut Context<'_>,
) -> Poll<Option<Ending>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ended = || Poll::Ready(Some(Ending::Lost("the connection ended".to_owned())));
    let broken = |code, reason: &str| {
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        Poll::Ready(Some(Ending::Broken(frame)))
    };
    match Pin::new(socket).poll_next(cx) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Some(Ok(Message::Binary(frames)))) => {
            if are_whole_frames(&frames) {
                link.put_incoming(frames);
                Poll::Ready(None)
            } else {
                let frame = close_frame(
                    ErrorCode::MALFORMED,
                    "a WebSocket message is not made of whole frames",
                );
                Poll::Ready(Some(Ending::Broken(frame)))
            }
        }
        Poll::Ready(Some(Ok(Message::Text(_)))) => {
            broken(CloseCode::Unsupported, "frames travel in binary messages")
        }
        Poll::Ready(Some(Ok(Message::Close(Some(frame))))) => {
            Poll::Ready(Some(Ending::Peer(frame)))
        }
        Poll::Ready(Some(Ok(Message::Close(None))) | None) => ended(),
        // Pings are answered below.
        Poll::Ready(Some(Ok(_))) => Poll::Ready(None),
        Poll::Ready(Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. })))) => {
            broken(CloseCode::Size, "a message is above 1 MiB")
        }
        Poll::Ready(Some(Err(Error::Protocol(error)))) => {
            use tokio_tungstenite::tungstenite::error::ProtocolError;
            if matches!(error, ProtocolError::ResetWithoutClosingHandshake) {
                ended()
            } else {
                broken(CloseCode::Protocol, "the rules of WebSocket are broken")
            }
        }
        Poll::Ready(Some(Err(Error::Utf8(_)))) => broken(CloseCode::Invalid, "a text is not UTF-8"),
        Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Ending::Lost(error.to_string()))),
    }
}

/// One run of bytes; without a copy where it is one already.
pub(crate) fn join(mut chunks: VecDeque<Bytes>, len: usize) -> Bytes {
    if chunks.len() == 1
        && let Some(only) = chunks.pop_front()
    {
        return only;
    }
    let mut joined = BytesMut::with_capacity(len);
    for chunk in chunks {
        joined.extend_from_slice(&chunk);
    }
    joined.freeze()
}

/// How a session's end is told. Spec: CARR-11.
fn close_frame(code: ErrorCode, reason: &str) -> CloseFrame {
    let (close_code, text) = match u16::try_from(code.0) {
        Ok(0) => (CloseCode::Normal, reason.to_owned()),
        Ok(number @ 1..=998) => (
            CloseCode::from(ERRORS_FROM.saturating_add(number)),
            reason.to_owned(),
        ),
        _ => (
            CloseCode::from(OTHER_ERROR),
            format!("{}: {reason}", code.0),
        ),
    };
    let text = text
        .get(..text.floor_char_boundary(REASON_MAX))
        .unwrap_or_default();
    CloseFrame {
        code: close_code,
        reason: text.into(),
    }
}

/// The error code of a close; `None` where it tells of no end of the session.
fn meaning(frame: &CloseFrame) -> Option<ErrorCode> {
    match u16::from(frame.code) {
        1000 => Some(ErrorCode::OK),
        1002 | 1003 | 1007 => Some(ErrorCode::MALFORMED),
        1009 => Some(ErrorCode::FRAME_TOO_LARGE),
        number @ 4001..=4998 => Some(ErrorCode(u32::from(number.saturating_sub(ERRORS_FROM)))),
        OTHER_ERROR => {
            let number = frame.reason.as_str().split(':').next();
            let code = number.and_then(|number| number.parse().ok());
            Some(code.map_or(ErrorCode::INTERNAL, ErrorCode))
        }
        _ => None,
    }
}

fn end_of(frame: &CloseFrame) -> LinkEnd {
    match meaning(frame) {
        Some(code) => LinkEnd::Peer {
            code,
            reason: frame.reason.as_str().to_owned(),
        },
        None => LinkEnd::Lost {
            reason: format!("the WebSocket was closed: {frame}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec: CARR-11
    #[test]
    fn error_codes_go_through_close_codes_and_back() {
        let long = "ü".repeat(100);
        for (code, reason, close_code, text) in [
            (0, "bye", 1000, "bye"),
            (16, "who are you", 4016, "who are you"),
            (0x106, "gone", 4262, "gone"),
            (998, "", 4998, ""),
            (999, "far", 4999, "999: far"),
            (u32::MAX, "x", 4999, "4294967295: x"),
            (1, &long, 4001, &"ü".repeat(61)),
        ] {
            let frame = close_frame(ErrorCode(code), reason);
            assert_eq!(u16::from(frame.code), close_code, "{code}");
            assert_eq!(frame.reason.as_str(), text);
            assert_eq!(meaning(&frame), Some(ErrorCode(code)));
        }
    }

    #[test]
    fn other_close_codes_mean_what_the_table_says() {
        for (close_code, reason, code) in [
            (1002, "", Some(ErrorCode::MALFORMED)),
            (1003, "", Some(ErrorCode::MALFORMED)),
            (1007, "", Some(ErrorCode::MALFORMED)),
            (1009, "", Some(ErrorCode::FRAME_TOO_LARGE)),
            (4999, "no number", Some(ErrorCode::INTERNAL)),
            (1001, "going away", None),
            (1011, "", None),
            (3000, "", None),
            (4000, "", None),
        ] {
            let frame = CloseFrame {
                code: CloseCode::from(close_code),
                reason: reason.into(),
            };
            assert_eq!(meaning(&frame), code, "{close_code}");
        }
    }
}
