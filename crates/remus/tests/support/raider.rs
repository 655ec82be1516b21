//! A peer that plays by its own rules, a service for it to play with, and a bystander's call.

#![allow(
    unreachable_pub,
    dead_code,
    reason = "each test file uses a part of it"
)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use remus::{Client, ErrorCode, Raw, Request, Response, Router, Service, TlsPolicy};
use remus_http3::{ClosedBy, RecvStream, SendStream};
use remus_session::{Event, LaneId, Session, SessionConfig};
use remus_transport::{Clock, quic};
use remus_wire::{
    Flags, FrameHeader, FrameType, Message, MessageType, MethodId, RequestId, Routing, ServiceId,
    StreamId,
};

use crate::support::Host;

/// Bytes of an element of the method `Endless`.
pub const ELEMENT_BYTES: usize = 8192;

/// A service that answers, one that never reads, and one that never ends.
pub fn echo() -> Router {
    Router::new().service(
        Service::new("test.v1.Echo")
            .unary("Echo", Raw, |request: Request<Bytes>| async move {
                Ok(Response::new(request.into_inner()))
            })
            .client_stream("Unread", Raw, |_: Request<remus::Streaming<Bytes>>| {
                std::future::pending::<Result<Response<Bytes>, remus::Error>>()
            })
            .server_stream("Endless", Raw, |_: Request<Bytes>| async move {
                // Each element is allocated, so that one that waits somewhere costs what it would cost an application.
                Ok(Response::new(futures_util::stream::repeat_with(|| {
                    Ok(Bytes::from(vec![7; ELEMENT_BYTES]))
                })))
            }),
    )
}

/// A peer with a link and lane 0 in its hands.
pub struct Raider {
    pub link: remus_http3::Session,
    pub send: SendStream,
    pub recv: RecvStream,
    pub session: Session,
    pub clock: Clock,
    _endpoint: quinn::Endpoint,
}

impl Raider {
    /// Opens link and lane 0, and says nothing yet.
    pub async fn new(host: &Host) -> Self {
        Self::with(host, SessionConfig::client()).await
    }

    /// As [`Raider::new`], with a session of these settings.
    pub async fn with(host: &Host, config: SessionConfig) -> Self {
        let tls = remus_security::client_config(
            TlsPolicy::RequirePostQuantum,
            &host.trust,
            remus_security::alpn::QUIC,
        )
        .unwrap();
        let endpoint = quic::client_endpoint(tls).unwrap();
        let address: SocketAddr = host.url.trim_start_matches("remus://").parse().unwrap();
        let quic = endpoint
            .connect(address, "127.0.0.1")
            .unwrap()
            .await
            .unwrap();
        let http3 = remus_http3::Connection::client(quic, Arc::new(remus_http3::Config::default()))
            .await
            .unwrap();
        let request = http::Request::builder()
            .uri(format!("https://{address}/remus/v2"))
            .body(())
            .unwrap();
        let link = http3.connect(request, &["remus.v2"]).await.unwrap();
        let (send, recv) = link.open_bi().await.unwrap();
        let clock = Clock::new();
        let session = Session::client(config, clock.now()).unwrap();
        Self {
            link,
            send,
            recv,
            session,
            clock,
            _endpoint: endpoint,
        }
    }

    /// Goes through the lifecycle like everybody else.
    pub async fn active(host: &Host) -> Self {
        Self::active_with(host, SessionConfig::client()).await
    }

    /// As [`Raider::active`], with a session of these settings.
    pub async fn active_with(host: &Host, config: SessionConfig) -> Self {
        let mut raider = Self::with(host, config).await;
        let mut out = VecDeque::new();
        raider.session.poll_transmit(LaneId::ZERO, &mut out);
        for chunk in out {
            raider.send.write_all(&chunk).await.unwrap();
        }
        loop {
            let mut chunk = raider.recv.read_chunk(65_536).await.unwrap().unwrap();
            raider
                .session
                .handle_input(raider.clock.now(), LaneId::ZERO, &mut chunk)
                .unwrap();
            while let Some(event) = raider.session.poll_event(raider.clock.now()) {
                if let Event::Active(_) = event {
                    return raider;
                }
            }
        }
    }

    /// What the server says when it closes.
    pub async fn verdict(&self) -> (ErrorCode, String) {
        let closed = self.link.closed().await.unwrap();
        assert_eq!(closed.side, ClosedBy::Peer);
        (ErrorCode(closed.code), closed.reason)
    }

    pub async fn sends(mut self, bytes: &[u8]) -> (ErrorCode, String) {
        // The server may close while we still write.
        let _ = self.send.write_all(bytes).await;
        self.verdict().await
    }
}

pub fn frame(stream: u16, kind: FrameType, payload: &[u8]) -> Vec<u8> {
    let mut bytes = FrameHeader {
        stream: StreamId(stream),
        kind,
        len: payload.len() as u32,
    }
    .encode()
    .to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

pub fn request(id: u32, method: &str, flags: Flags, payload: Bytes) -> Vec<u8> {
    let mut message = Message::new(MessageType::REQUEST, payload);
    message.request_id = RequestId(id);
    message.flags = flags;
    message.routing = Routing::to(ServiceId::of("test.v1.Echo"), MethodId::of(method));
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    bytes.to_vec()
}

/// The bystander's call: whatever happens to others, it is answered.
pub async fn is_served(bystander: &Client) {
    let answer = bystander
        .method("test.v1.Echo/Echo")
        .unary::<Bytes, Bytes>(Raw, &Bytes::from_static(b"still here"))
        .await
        .unwrap();
    assert_eq!(answer.into_inner(), "still here");
}
