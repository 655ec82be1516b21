//! Context metadata: what travels with a message beside its payload. Spec: message format §3.2.

use core::fmt;

use bytes::{BufMut, Bytes};

use crate::{
    AuthenticationRecord, DecodeError, OptionTooLong,
    options::{Options, Shape, check_len},
    reader::{put_blob, put_text},
};

const TRACE: u8 = 1;
const BAGGAGE: u8 = 2;
const TENANT: u8 = 3;
const AUTHENTICATION: u8 = 4;
const CONTENT_TYPE: u8 = 5;
const IDEMPOTENCY_KEY: u8 = 6;
const CAUSAL_DOTS: u8 = 7;
const SERVICE_NAME: u8 = 8;
const PADDING: u8 = 9;
const CUSTOM: u8 = 0x7f;

fn shape(kind: u8) -> Option<(&'static str, Shape)> {
    Some(match kind {
        TRACE => ("trace_context", Shape::Fixed(TraceContext::LEN)),
        BAGGAGE => ("baggage", Shape::Text),
        TENANT => ("tenant", Shape::Text),
        AUTHENTICATION => (
            "authentication",
            Shape::Record("Authentication", |reader| {
                AuthenticationRecord::read(reader).map(drop)
            }),
        ),
        CONTENT_TYPE => ("content_type", Shape::Text),
        IDEMPOTENCY_KEY => ("idempotency_key", Shape::Opaque),
        CAUSAL_DOTS => ("causal_dots", Shape::List(Dot::LEN)),
        SERVICE_NAME => ("service_name", Shape::Text),
        PADDING => ("padding", Shape::Opaque),
        CUSTOM => (
            "custom",
            Shape::Repeated("Custom", |reader| {
                reader.text("key")?;
                reader.blob("value").map(drop)
            }),
        ),
        _ => return None,
    })
}

/// The trace that a message belongs to, as W3C Trace Context has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The whole trace. All zero is not valid.
    pub trace_id: [u8; 16],
    /// The sender's span, the parent of what the receiver does. All zero is not valid.
    pub span_id: [u8; 8],
    /// W3C trace flags; bit 0 says that the trace is recorded.
    pub flags: u8,
}

impl TraceContext {
    const LEN: usize = 25;

    /// Whether neither ID is all zero, which W3C calls invalid.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.span_id != [0; 8]
    }
}

/// One event of one replica: a point in the causal order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// The replica.
    pub replica: u32,
    /// The event's number at that replica.
    pub counter: u32,
}

impl Dot {
    const LEN: usize = 8;
}

/// What travels with a message beside its payload. The default says nothing, and takes no bytes.
///
/// Options that are not known here, from kind 0x80 on, are kept and forwarded. `Debug` leaves out the values,
/// because tokens are among them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Context {
    options: Options,
}

impl Context {
    /// Nothing said.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            options: Options::new(),
        }
    }

    /// Whether it says nothing, and so takes no bytes.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.options.is_empty()
    }

    /// The trace that this belongs to. One that W3C calls invalid counts as absent.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        let value: [u8; TraceContext::LEN] = self.options.array(TRACE)?;
        let (&trace_id, rest) = value.split_first_chunk()?;
        let (&span_id, rest) = rest.split_first_chunk()?;
        let &flags = rest.first()?;
        Some(TraceContext {
            trace_id,
            span_id,
            flags,
        })
        .filter(TraceContext::is_valid)
    }

    /// Sets [`trace`](Self::trace).
    pub fn set_trace(&mut self, trace: TraceContext) {
        self.options.remove(TRACE);
        self.options.append(TRACE, TraceContext::LEN, |out| {
            out.put_slice(&trace.trace_id);
            out.put_slice(&trace.span_id);
            out.put_u8(trace.flags);
        });
    }

    /// W3C baggage, as the header of that name spells it.
    #[must_use]
    pub fn baggage(&self) -> Option<&str> {
        self.options.text(BAGGAGE)
    }

    /// Sets [`baggage`](Self::baggage).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_baggage(&mut self, baggage: &str) -> Result<(), OptionTooLong> {
        self.options.set("baggage", BAGGAGE, baggage.as_bytes())
    }

    /// The tenant that this is done for.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.options.text(TENANT)
    }

    /// Sets [`tenant`](Self::tenant).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_tenant(&mut self, tenant: &str) -> Result<(), OptionTooLong> {
        self.options.set("tenant", TENANT, tenant.as_bytes())
    }

    /// Who sends this one message, where it is not who opened the session.
    #[must_use]
    pub fn authentication(&self) -> Option<AuthenticationRecord> {
        AuthenticationRecord::decode(self.options.bytes(AUTHENTICATION)?).ok()
    }

    /// Sets [`authentication`](Self::authentication).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_authentication(
        &mut self,
        record: &AuthenticationRecord,
    ) -> Result<(), OptionTooLong> {
        let len = record.encoded_len();
        check_len("authentication", len)?;
        self.options.remove(AUTHENTICATION);
        self.options
            .append(AUTHENTICATION, len, |out| record.encode(out));
        Ok(())
    }

    /// What the payload is, as a media type.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.options.text(CONTENT_TYPE)
    }

    /// Sets [`content_type`](Self::content_type).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_content_type(&mut self, media_type: &str) -> Result<(), OptionTooLong> {
        self.options
            .set("content type", CONTENT_TYPE, media_type.as_bytes())
    }

    /// What attempts of the same request share, so that it runs once.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&[u8]> {
        self.options.value(IDEMPOTENCY_KEY)
    }

    /// Sets [`idempotency_key`](Self::idempotency_key).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_idempotency_key(&mut self, key: &[u8]) -> Result<(), OptionTooLong> {
        self.options.set("idempotency key", IDEMPOTENCY_KEY, key)
    }

    /// The events that this message comes after.
    pub fn causal_dots(&self) -> impl Iterator<Item = Dot> {
        self.options
            .list(CAUSAL_DOTS)
            .map(|[a, b, c, d, e, f, g, h]| Dot {
                replica: u32::from_be_bytes([a, b, c, d]),
                counter: u32::from_be_bytes([e, f, g, h]),
            })
    }

    /// Sets [`causal_dots`](Self::causal_dots); an empty list takes the option away.
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`]: more than 8191.
    pub fn set_causal_dots(&mut self, dots: &[Dot]) -> Result<(), OptionTooLong> {
        let len = dots.len().saturating_mul(Dot::LEN);
        check_len("causal dots", len)?;
        self.options.remove(CAUSAL_DOTS);
        if len != 0 {
            self.options.append(CAUSAL_DOTS, len, |out| {
                for dot in dots {
                    out.put_u32(dot.replica);
                    out.put_u32(dot.counter);
                }
            });
        }
        Ok(())
    }

    /// The service's full name, where its ID alone does not do.
    #[must_use]
    pub fn service_name(&self) -> Option<&str> {
        self.options.text(SERVICE_NAME)
    }

    /// Sets [`service_name`](Self::service_name).
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_service_name(&mut self, name: &str) -> Result<(), OptionTooLong> {
        self.options
            .set("service name", SERVICE_NAME, name.as_bytes())
    }

    /// Bytes that stand only to align the payload, or `None`.
    #[must_use]
    pub fn padding_len(&self) -> Option<usize> {
        self.options.value(PADDING).map(<[u8]>::len)
    }

    /// Sets that many bytes of padding. Only in shared regions, never on networks.
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`].
    pub fn set_padding(&mut self, len: usize) -> Result<(), OptionTooLong> {
        check_len("padding", len)?;
        self.options.remove(PADDING);
        self.options
            .append(PADDING, len, |out| out.put_bytes(0, len));
        Ok(())
    }

    /// The application's own entries, in order. A key may stand more than once.
    pub fn custom(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.options
            .iter()
            .filter(|(kind, _)| *kind == CUSTOM)
            .filter_map(|(_, entry)| {
                let (len, rest) = entry.split_first_chunk::<4>()?;
                let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
                let (key, rest) = rest.split_at_checked(len)?;
                let (_, value) = rest.split_first_chunk::<4>()?;
                Some((core::str::from_utf8(key).ok()?, value))
            })
    }

    /// Appends an entry of the application's own.
    ///
    /// # Errors
    ///
    /// [`OptionTooLong`]: key and value together above 65527 bytes.
    pub fn add_custom(&mut self, key: &str, value: &[u8]) -> Result<(), OptionTooLong> {
        let len = key.len().saturating_add(value.len()).saturating_add(8);
        check_len("custom entry", len)?;
        self.options.append(CUSTOM, len, |out| {
            put_text(out, key);
            put_blob(out, value);
        });
        Ok(())
    }

    /// All options in order, as kind and value, also those that are not known here.
    pub fn options(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.options.iter()
    }

    /// Length of the encoded context, in bytes; 0 where it says nothing.
    #[must_use]
    #[inline]
    pub fn encoded_len(&self) -> usize {
        self.options.as_bytes().len()
    }

    /// Writes it, without the length before it.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(self.options.as_bytes());
    }

    /// Reads it from exactly these bytes; none of them says nothing.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`], [`DecodeError::LengthPastEnd`], [`DecodeError::WrongLength`],
    /// [`DecodeError::InvalidUtf8`], [`DecodeError::Duplicate`], [`DecodeError::TrailingBytes`] inside an option that
    /// is a record, and [`DecodeError::Reserved`] for an unknown kind below 0x80.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Self::decode_at(bytes, 0)
    }

    pub(crate) fn decode_at(bytes: Bytes, offset: usize) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self::new());
        }
        Ok(Self {
            options: Options::decode("Context", bytes, offset, shape)?,
        })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.options.iter().map(|(kind, value)| {
                    (shape(kind).map_or("option", |(name, _)| name), value.len())
                }),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use super::*;
    use crate::{AuthMethod, MAX_OPTION_LEN, Text};

    #[test]
    fn setting_an_option_again_replaces_it_and_leaves_the_others() {
        let mut context = Context::new();
        context.set_tenant("first").unwrap();
        context.add_custom("k", b"1").unwrap();
        context.set_tenant("second").unwrap();
        context.add_custom("k", b"2").unwrap();
        assert_eq!(context.tenant(), Some("second"));
        assert_eq!(
            context.custom().collect::<vec::Vec<_>>(),
            [("k", &b"1"[..]), ("k", b"2")]
        );
        let mut bytes = vec![];
        context.encode(&mut bytes);
        assert_eq!(Context::decode(bytes.into()), Ok(context));
    }

    #[test]
    fn a_value_that_is_too_long_changes_nothing() {
        let mut context = Context::new();
        context
            .set_idempotency_key(&vec![7; MAX_OPTION_LEN])
            .unwrap();
        let before = context.clone();
        let error = context
            .set_idempotency_key(&vec![7; MAX_OPTION_LEN + 1])
            .unwrap_err();
        assert_eq!(error.len, MAX_OPTION_LEN + 1);
        assert!(context.set_padding(MAX_OPTION_LEN + 1).is_err());
        assert!(
            context
                .add_custom("", &vec![0; MAX_OPTION_LEN - 7])
                .is_err()
        );
        assert!(
            context
                .set_causal_dots(
                    &[Dot {
                        replica: 1,
                        counter: 1
                    }; 8192]
                )
                .is_err()
        );
        assert_eq!(context, before);
    }

    #[test]
    fn taking_the_last_option_away_leaves_nothing() {
        let mut context = Context::new();
        context
            .set_causal_dots(&[Dot {
                replica: 1,
                counter: 2,
            }])
            .unwrap();
        context.set_causal_dots(&[]).unwrap();
        assert_eq!(context, Context::new());
        assert!(context.is_empty());
        assert_eq!(context.encoded_len(), 0);
    }

    #[test]
    fn debug_leaves_tokens_out() {
        let record = AuthenticationRecord {
            method: AuthMethod::BEARER_JWT,
            token: Bytes::from_static(b"secret"),
            claims: Text::new(),
        };
        let mut context = Context::new();
        context.set_authentication(&record).unwrap();
        context.add_custom("cookie", b"secret").unwrap();
        for text in [format!("{context:?}"), format!("{record:?}")] {
            assert!(
                !text.contains("secret") && !text.contains("115, 101"),
                "{text}"
            );
        }
    }
}
