//! HTTP/3 and WebTransport on quinn, client and server.
//!
//! One QUIC connection carries plain HTTP/3 requests and any number of WebTransport sessions, in the
//! dialects of WebTransport that browsers speak. Spec: RFC 9114, RFC 9204, RFC 9220, RFC 9297 and
//! draft-ietf-webtrans-http3 from draft 02 on.
//!
//! A server gives each connection to [`Connection::accept_quic`] and takes requests of both kinds from
//! [`Connection::accept`]; a client starts with [`Connection::client`] and goes on with
//! [`Connection::connect`] for a session or [`Connection::request`] for a plain request.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use remus_http3::{Config, Connection, Error, Incoming};
//! # async fn serve(incoming: quinn::Incoming) -> Result<(), Error> {
//! let config = Arc::new(Config::default());
//! let connection = Connection::accept_quic(incoming.accept()?, config).await?;
//! while let Some(incoming) = connection.accept().await {
//!     match incoming {
//!         Incoming::Session(request) => {
//!             let session = request.accept(None).await?;
//!             let (mut send, mut recv) = session.accept_bi().await?;
//!             // ...
//!         }
//!         Incoming::Request(request) => {
//!             let mut body = request.respond(http::Response::new(())).await?;
//!             body.finish().await?;
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The peer is not trusted: every table, queue and wait has a limit, which [`Config`] names, and what
//! is over it is refused with its own code. What is wrong with one stream ends that stream; the
//! connection ends only where the specifications say so.

mod budget;
mod capsule;
mod code;
mod config;
mod connection;
mod control;
mod driver;
mod error;
mod fault;
mod frame;
mod head;
mod message;
mod protocols;
mod qpack;
mod queue;
mod reader;
mod request;
mod routing;
mod session;
mod settings;
mod stream;
mod varint;

pub use self::{
    capsule::MAX_REASON_BYTES,
    code::Code,
    config::{Config, ConfigBuilder, ConfigError, MAX_FIELD_SECTION_DEFAULT_BYTES},
    connection::{Connection, Incoming},
    error::Error,
    fault::{Fault, Scope},
    head::{HeadError, Protocol},
    request::{PendingResponse, RecvBody, Request, Responder, SendBody},
    session::{ClosedBy, DatagramError, Established, Session, SessionClosed, SessionRequest},
    settings::Settings,
    stream::{ReadError, RecvStream, SendStream, WriteError},
};

/// The decoders, which do no I/O, for fuzz targets. No promise is made about them.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::{
        capsule::{Capsule, CapsuleDecoder, encode_close, encode_drain},
        control::{ControlDecoder, ControlEvent, Peer},
        frame::{FrameDecoder, FrameEvent, encode as encode_frame, frame_type, stream_type},
        head::{decode_request, decode_response, decode_trailers},
        message::{MessageDecoder, MessageError, MessageEvent},
        protocols::{chosen, offered, to_value},
        qpack::{
            DecoderStream, Encoder, EncoderStream, Field, QpackError,
            decode as decode_field_section,
        },
        settings::{default_control_preface, encode_control_preface},
        varint::{Decoder as VarintDecoder, decode as decode_varint, encode as encode_varint},
    };
}
