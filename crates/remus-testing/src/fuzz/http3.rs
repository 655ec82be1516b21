//! HTTP/3: frames and what stands in them, field sections, capsules. Spec: RFC 9114, RFC 9204, RFC 9297.

use std::fmt::Debug;

use bytes::{BufMut, Bytes};
use remus_http3::{
    Code, Fault, Scope, Settings,
    fuzzing::{
        Capsule, CapsuleDecoder, ControlDecoder, ControlEvent, DecoderStream, Encoder,
        EncoderStream, Field, FrameDecoder, FrameEvent, MessageDecoder, MessageError, MessageEvent,
        Peer, QpackError, VarintDecoder, chosen, decode_field_section, decode_request,
        decode_response, decode_trailers, decode_varint, encode_close, encode_drain, encode_frame,
        encode_varint, frame_type, offered, to_value,
    },
};

use super::pieces;

/// Limits of field sections and capsules, in bytes: one that most inputs meet, and one that none does.
const LIMITS: [usize; 2] = [100, 1 << 20];

/// Largest SETTINGS payload that a control stream takes, in bytes.
const MAX_SETTINGS_BYTES: usize = 1024;

/// What each field counts beyond its name and value, in bytes. Spec: RFC 9114 §4.2.2.
const FIELD_OVERHEAD_BYTES: usize = 32;

/// Runs a decoder over pieces until it fails or they are used up.
fn run<T, E>(
    pieces: &[&[u8]],
    mut decode: impl FnMut(&mut Bytes) -> Result<Option<T>, E>,
    mut take: impl FnMut(T),
) -> Result<(), E> {
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        while let Some(item) = decode(&mut input)? {
            take(item);
        }
        assert!(
            input.is_empty(),
            "wants more, but {} bytes are left",
            input.len()
        );
    }
    Ok(())
}

/// What `decode` makes of the whole, after it was found to make the same of the pieces.
fn same_in_pieces<T: Debug + PartialEq>(data: &[u8], decode: impl Fn(&[&[u8]]) -> T) -> T {
    let whole = decode(&[data]);
    assert_eq!(decode(&pieces(data)), whole, "in pieces");
    whole
}

/// A stream: its integers, its frames, and what a control stream and a request stream make of them; and the bytes as
/// the payload of SETTINGS.
pub fn h3_frame(data: &[u8]) {
    varints(data);
    frames(data);
    for peer in [Peer::Client, Peer::Server] {
        control(data, peer);
        for max in LIMITS {
            message(data, peer, max);
        }
    }
    settings(data);
}

fn varints(data: &[u8]) {
    let (values, is_empty) = same_in_pieces(data, |pieces| {
        let mut decoder = VarintDecoder::default();
        let mut values = Vec::new();
        let decode = |input: &mut Bytes| Ok::<_, ()>(decoder.decode(input));
        assert_eq!(run(pieces, decode, |value| values.push(value)), Ok(()));
        (values, decoder.is_empty())
    });
    let mut rest = data;
    for value in values {
        let Some((alone, used)) = decode_varint(rest) else {
            unreachable!("{value} is there in a stream, but not alone");
        };
        assert_eq!(alone, value);
        let mut shortest = Vec::new();
        encode_varint(value, &mut shortest);
        assert!(shortest.len() <= used);
        assert_eq!(decode_varint(&shortest), Some((value, shortest.len())));
        rest = rest.get(used..).unwrap_or_default();
    }
    assert_eq!(decode_varint(rest), None);
    assert_eq!(is_empty, rest.is_empty());
}

/// A frame with as much of its payload as came.
#[derive(Debug, PartialEq)]
struct Frame {
    ty: u64,
    len: u64,
    payload: Vec<u8>,
    is_whole: bool,
}

fn split(mut decoder: FrameDecoder, pieces: &[&[u8]]) -> (Vec<Frame>, bool) {
    let mut frames: Vec<Frame> = Vec::new();
    let decode = |input: &mut Bytes| Ok::<_, ()>(decoder.decode(input));
    let result = run(pieces, decode, |event| match (event, frames.last_mut()) {
        (FrameEvent::Begin { ty, len }, last) => {
            assert!(
                last.is_none_or(|frame| frame.is_whole),
                "a frame inside a frame"
            );
            frames.push(Frame {
                ty,
                len,
                payload: Vec::new(),
                is_whole: len == 0,
            });
        }
        (FrameEvent::Payload { bytes, last }, Some(frame)) => {
            assert!(!bytes.is_empty() && !frame.is_whole);
            frame.payload.extend_from_slice(&bytes);
            frame.is_whole = u64::try_from(frame.payload.len()) == Ok(frame.len);
            assert_eq!(last, frame.is_whole);
        }
        (FrameEvent::Payload { .. }, None) => unreachable!("payload before a frame"),
    });
    assert_eq!(result, Ok(()));
    (frames, decoder.is_between_frames())
}

fn frames(data: &[u8]) {
    let whole = same_in_pieces(data, |pieces| split(FrameDecoder::default(), pieces));
    if let Some((ty, used)) = decode_varint(data) {
        let rest = data.get(used..).unwrap_or_default();
        let after = split(FrameDecoder::after_type(ty), &[rest]);
        assert_eq!(after, whole, "with the type taken off before");
    }
    let mut encoded = Vec::new();
    let sent = || whole.0.iter().filter(|frame| frame.is_whole);
    for frame in sent() {
        encode_frame(frame.ty, &frame.payload, &mut encoded);
    }
    let (frames, is_between) = split(FrameDecoder::default(), &[&encoded]);
    assert!(is_between);
    assert!(frames.iter().eq(sent()), "encoded again");
}

fn control(data: &[u8], peer: Peer) {
    let (events, result) = same_in_pieces(data, |pieces| {
        let mut decoder = ControlDecoder::new(peer);
        let mut events = Vec::new();
        let result = run(
            pieces,
            |input| decoder.decode(input),
            |event| events.push(event),
        );
        (events, result)
    });
    if let Err(fault) = result {
        assert_eq!(fault.scope, Scope::Connection, "{fault}");
    }
    let mut last_goaway = u64::MAX;
    for (at, event) in events.iter().enumerate() {
        let is_settings = matches!(event, ControlEvent::Settings(_));
        assert_eq!(is_settings, at == 0, "SETTINGS are the first, and the only");
        if let ControlEvent::Goaway(id) = *event {
            assert!(id <= last_goaway, "GOAWAY grows");
            assert!(
                peer == Peer::Client || id.is_multiple_of(4),
                "no request stream"
            );
            last_goaway = id;
        }
    }
}

fn settings(data: &[u8]) {
    let settings = Settings::decode(Bytes::copy_from_slice(data));
    if data.len() <= MAX_SETTINGS_BYTES {
        let mut frame = Vec::new();
        encode_frame(frame_type::SETTINGS, data, &mut frame);
        let mut input = Bytes::from(frame);
        let event = ControlDecoder::new(Peer::Client).decode(&mut input);
        assert_eq!(
            event,
            settings.map(|settings| Some(ControlEvent::Settings(settings)))
        );
    }
    match settings {
        Ok(settings) => {
            assert!(settings.connect_token().starts_with("webtransport"));
            assert!(settings.max_sessions() != Some(0));
        }
        Err(fault) => {
            assert_eq!(fault.scope, Scope::Connection);
            assert!(
                matches!(fault.code, Code::H3_FRAME_ERROR | Code::H3_SETTINGS_ERROR),
                "{fault}"
            );
        }
    }
}

fn message(data: &[u8], peer: Peer, max: usize) {
    let (events, result, end) = same_in_pieces(data, |pieces| {
        let limit = u64::try_from(max).unwrap_or(u64::MAX);
        let mut decoder = MessageDecoder::new(peer, limit);
        let mut events: Vec<MessageEvent> = Vec::new();
        let decode = |input: &mut Bytes| decoder.decode(input);
        let result = run(pieces, decode, |event| match (events.last_mut(), event) {
            // The boundaries of a body mean nothing.
            (Some(MessageEvent::Data(body)), MessageEvent::Data(more)) => {
                *body = [&body[..], &more].concat().into();
            }
            (_, event) => events.push(event),
        });
        let end = result.is_ok().then(|| decoder.finish());
        (events, result, end)
    });
    let mut is_trailed = false;
    for (at, event) in events
        .iter()
        .filter(|event| **event != MessageEvent::Skipped)
        .enumerate()
    {
        assert!(!is_trailed, "something after the trailers");
        match event {
            MessageEvent::Head(section) => assert!(at == 0 && section.len() <= max),
            MessageEvent::Data(body) => assert!(at > 0 && !body.is_empty()),
            MessageEvent::Trailers(section) => {
                assert!(at > 0 && section.len() <= max);
                is_trailed = true;
            }
            MessageEvent::Skipped => {}
        }
    }
    if let Err(MessageError::Fault(fault)) = result {
        assert_eq!(fault.scope, Scope::Connection, "{fault}");
    }
    if end == Some(Ok(())) {
        assert!(
            events
                .iter()
                .any(|event| matches!(event, MessageEvent::Head(_)))
        );
    }
}

/// A field section, the heads that its fields make, and the bytes as the peer's QPACK streams.
pub fn qpack(data: &[u8]) {
    field_section(data);
    let feed = |pieces: &[&[u8]], feed: &mut dyn FnMut(&[u8]) -> Result<(), Fault>| {
        pieces.iter().try_for_each(|piece| feed(piece))
    };
    let encoder = same_in_pieces(data, |pieces| {
        let mut stream = EncoderStream::default();
        feed(pieces, &mut |piece| stream.feed(piece))
    });
    let decoder = same_in_pieces(data, |pieces| {
        let mut stream = DecoderStream::default();
        feed(pieces, &mut |piece| stream.feed(piece))
    });
    for (result, code) in [
        (encoder, Code::QPACK_ENCODER_STREAM_ERROR),
        (decoder, Code::QPACK_DECODER_STREAM_ERROR),
    ] {
        if let Err(fault) = result {
            assert_eq!((fault.code, fault.scope), (code, Scope::Connection));
        }
    }
}

fn field_section(data: &[u8]) {
    let section = Bytes::copy_from_slice(data);
    let decode = |max| decode_field_section(section.clone(), max);
    let fields = match decode(usize::MAX) {
        Ok(fields) => fields,
        Err(QpackError::TooLarge) => unreachable!("above no limit"),
        Err(QpackError::Fault(fault)) => {
            let found = (fault.code, fault.scope);
            assert_eq!(found, (Code::QPACK_DECOMPRESSION_FAILED, Scope::Connection));
            for max in LIMITS {
                let limited = decode(max);
                assert!(
                    limited == Err(fault.into()) || limited == Err(QpackError::TooLarge),
                    "{limited:?}"
                );
            }
            return;
        }
    };
    let size: usize = fields
        .iter()
        .map(|field| {
            FIELD_OVERHEAD_BYTES
                .saturating_add(field.name.len())
                .saturating_add(field.value.len())
        })
        .sum();
    assert_eq!(decode(size).as_ref(), Ok(&fields), "at the limit");
    if let Some(below) = size.checked_sub(1) {
        assert_eq!(
            decode(below),
            Err(QpackError::TooLarge),
            "a byte above the limit"
        );
    }

    let names: Option<Vec<&str>> = fields
        .iter()
        .map(|field| std::str::from_utf8(&field.name).ok())
        .collect();
    if let Some(names) = names {
        let mut encoded = Vec::new();
        let mut encoder = Encoder::new(&mut encoded);
        for (name, field) in names.into_iter().zip(&fields) {
            encoder.field(name, &field.value);
        }
        assert_eq!(encoder.size(), size);
        assert_eq!(
            decode_field_section(encoded.into(), size).as_ref(),
            Ok(&fields),
            "encoded again"
        );
    }
    heads(&fields);
}

/// What leaves the decoders of heads is well-formed, and what does not is the fault of one message.
fn heads(fields: &[Field]) {
    let request = decode_request(fields.to_vec());
    let response = decode_response(fields.to_vec());
    let trailers = decode_trailers(fields.to_vec());
    assert!(
        request.is_err() || response.is_err(),
        "a request and a response at once"
    );
    let mut headers = Vec::new();
    let faults = [
        request.as_ref().err(),
        response.as_ref().err(),
        trailers.as_ref().err(),
    ];
    for fault in faults.into_iter().flatten() {
        assert_eq!(
            (fault.code, fault.scope),
            (Code::H3_MESSAGE_ERROR, Scope::Stream)
        );
    }
    if let Ok(request) = &request {
        let protocol = request.extensions().get::<remus_http3::Protocol>();
        let is_connect = request.method().as_str() == "CONNECT";
        assert!(protocol.is_none() || is_connect, "{request:?}");
        let uri = request.uri();
        assert!(uri.authority().is_some(), "{uri}");
        if is_connect && protocol.is_none() {
            assert_eq!((uri.scheme(), uri.path_and_query()), (None, None), "{uri}");
        } else {
            assert!(
                uri.scheme().is_some() && (uri.path().starts_with('/') || uri.path() == "*"),
                "{uri}"
            );
        }
        headers.push(request.headers());
    }
    if let Ok(response) = &response {
        assert!(response.status().as_u16() != 101);
        headers.push(response.headers());
    }
    headers.extend(&trailers);
    for headers in headers {
        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "transfer-encoding",
            "upgrade",
        ] {
            assert!(!headers.contains_key(name), "{name}");
        }
        let offered_protocols = offered(headers);
        let chosen_protocol = chosen(headers);
        let borrowed: Vec<&str> = offered_protocols.iter().map(String::as_str).collect();
        let mut again = http::HeaderMap::new();
        let Some(value) = to_value(&borrowed) else {
            unreachable!("read, but cannot be written: {offered_protocols:?}");
        };
        again.insert("wt-available-protocols", value);
        if let Some(value) = chosen_protocol
            .as_deref()
            .and_then(|chosen| to_value(&[chosen]))
        {
            again.insert("wt-protocol", value);
        }
        assert_eq!(offered(&again), offered_protocols);
        assert_eq!(chosen(&again), chosen_protocol);
    }
}

/// The capsules of a session's CONNECT stream.
pub fn capsule(data: &[u8]) {
    for max in LIMITS {
        let limit = u64::try_from(max).unwrap_or(u64::MAX);
        let (capsules, result, _) = same_in_pieces(data, |pieces| capsules(pieces, limit));
        if let Err(fault) = result {
            assert_eq!(fault.scope, Scope::Stream, "{fault}");
            assert!(
                matches!(fault.code, Code::H3_MESSAGE_ERROR | Code::H3_EXCESSIVE_LOAD),
                "{fault}"
            );
        }
        for capsule in capsules {
            let encoded = match &capsule {
                Capsule::Close { code, reason } => {
                    assert!(reason.len() <= remus_http3::MAX_REASON_BYTES);
                    let mut frame = Vec::new();
                    encode_close(*code, reason, &mut frame);
                    body(&frame)
                }
                Capsule::Drain => {
                    let mut frame = Vec::new();
                    encode_drain(&mut frame);
                    body(&frame)
                }
                Capsule::Datagram(bytes) => {
                    assert!(bytes.len() <= max);
                    let mut encoded = Vec::new();
                    encode_varint(0, &mut encoded);
                    encode_varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX), &mut encoded);
                    encoded.put_slice(bytes);
                    encoded
                }
                Capsule::Skipped => continue,
            };
            let again = self::capsules(&[&encoded], limit);
            assert_eq!(again, (vec![capsule], Ok(()), true), "encoded again");
        }
    }
}

fn capsules(pieces: &[&[u8]], max: u64) -> (Vec<Capsule>, Result<(), Fault>, bool) {
    let mut decoder = CapsuleDecoder::new(max);
    let mut capsules = Vec::new();
    let result = run(
        pieces,
        |input| decoder.decode(input),
        |capsule| capsules.push(capsule),
    );
    (capsules, result, decoder.is_between_capsules())
}

/// The payload of the one DATA frame that `frame` is.
fn body(frame: &[u8]) -> Vec<u8> {
    let (frames, is_between) = split(FrameDecoder::default(), &[frame]);
    assert!(is_between);
    let mut frames = frames.into_iter();
    match (frames.next(), frames.next()) {
        (Some(frame), None) => {
            assert_eq!(frame.ty, frame_type::DATA);
            frame.payload
        }
        frames => unreachable!("not one frame: {frames:?}"),
    }
}
