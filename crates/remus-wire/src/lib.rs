//! Remus on the wire: bytes to records and back.
//!
//! Owns the shape of every frame, message and record of the specification's chapter "Message Format", and
//! nothing else: no socket, no clock, no state. What may come when is the session's to know.
//!
//! - Decoding shares the input's buffer ([`bytes::Bytes`]) and copies only fields of fixed size.
//! - Nothing is allocated on the word of a length or a count, and no input makes it panic.
//! - Each [`DecodeError`] says which record, which field and which byte.
//!
//! ```
//! use bytes::{Bytes, BytesMut};
//! use remus_wire::{Frame, FrameBody, Message, MessageLimits, MessageType, RequestId, StreamId};
//!
//! let mut message = Message::new(MessageType::REQUEST, Bytes::from_static(b"{}"));
//! message.request_id = RequestId(7);
//! let mut bytes = BytesMut::new();
//! message.encode(&mut bytes);
//! let frame = Frame { stream: StreamId(1), body: FrameBody::Message(bytes.freeze()) };
//!
//! let mut wire = BytesMut::new();
//! frame.encode(&mut wire);
//!
//! let decoded = Frame::decode(&mut wire, remus_wire::DEFAULT_MAX_FRAME)?.expect("a whole frame");
//! let FrameBody::Message(bytes) = decoded.body else { unreachable!() };
//! assert_eq!(Message::decode(bytes, &MessageLimits::DEFAULT)?, message);
//! # Ok::<(), remus_wire::DecodeError>(())
//! ```
#![no_std]

extern crate alloc;

mod macros;

mod code;
mod decode_error;
mod reader;
mod text;

mod flags;
mod ids;
mod priority;
mod ttl;

mod frame;

mod context;
mod message;
mod options;
mod routing;

mod batch;
mod compression;
mod error;

mod authentication;
mod handshake;
mod version;

mod capability;
mod discovery;
mod heartbeat;
mod schema;
mod shutdown;

pub use self::{
    authentication::{AuthMethod, AuthenticationRecord},
    batch::{Batch, MAX_BATCH},
    capability::{Capabilities, Capability, Limits, MIN_MAX_FRAME, NodeType, ResourceRecord},
    code::ErrorCode,
    compression::{CompressedPayload, Compression},
    context::{Context, Dot, TraceContext},
    decode_error::{At, DecodeError, Limit},
    discovery::{
        Endpoint, Health, HealthStatus, Load, MAX_ANSWERS, MAX_ENDPOINTS, Query, QueryAnswer,
        ServiceRecord, ServiceVersion, TransportKind,
    },
    error::{ErrorDetail, ErrorRecord, MAX_ERROR_DETAILS, StreamEnd},
    flags::Flags,
    frame::{DEFAULT_MAX_FRAME, Frame, FrameBody, FrameHeader, FrameType, MAX_FRAME, MAX_LANES},
    handshake::{Authenticated, Handshake, LaneOffset, Resume, ResumeToken},
    heartbeat::Heartbeat,
    ids::{MethodId, NodeId, RegionId, RequestId, ServiceId, StreamId, Timestamp, ZoneId},
    message::{Message, MessageLimits, MessageType, PlainMessage},
    options::{MAX_OPTION_LEN, OptionTooLong},
    priority::Priority,
    reader::{Reader, put_blob, put_text},
    routing::Routing,
    schema::{MAX_SCHEMA_ENTRIES, Schema, SchemaEntry, SchemaGift},
    shutdown::Shutdown,
    text::Text,
    ttl::Ttl,
    version::{
        CompressionCaps, Extension, ExtensionId, Features, MAX_EXTENSIONS, Version, VersionRecord,
    },
};
