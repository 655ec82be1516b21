//! Options: the list of `u8` kind, `u16` length, bytes that ends the routing information and makes up the
//! context. Spec: message format §3.1.
//!
//! Knows how a list is walked, not what a kind means: that is the [`Shape`] table's of its owner.
//! Invariant of [`Options`]: `bytes` is a whole list and not empty, every known kind in it has its shape, and single-valued
//! kinds stand once. What is set through the public interface keeps it.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{At, DecodeError, Reader};

/// Bytes before an option's value: kind and length.
const OPTION_HEAD: usize = 3;

/// Option kinds from here on may be skipped by who doesn't know them.
pub(crate) const FIRST_IGNORABLE_KIND: u8 = 0x80;

/// Longest value of an option, in bytes: its length is a `u16`.
pub const MAX_OPTION_LEN: usize = u16::MAX as usize;

/// A value is longer than [`MAX_OPTION_LEN`], so it can't be an option. The caller's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {len} bytes are above the limit of {MAX_OPTION_LEN}")]
#[expect(missing_docs, reason = "the message names every field")]
pub struct OptionTooLong {
    pub option: &'static str,
    pub len: usize,
}

/// What the value of a kind has to look like.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// Any bytes.
    Opaque,
    /// UTF-8 to the end of the option.
    Text,
    /// Exactly this many bytes.
    Fixed(usize),
    /// At least one element of this many bytes.
    List(usize),
    /// A record of this name, checked by this.
    Record(&'static str, fn(&mut Reader) -> Result<(), DecodeError>),
    /// As `Record`, and the kind may stand more than once.
    Repeated(&'static str, fn(&mut Reader) -> Result<(), DecodeError>),
}

/// A list of options that was checked.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `None` where there is no option: then decoding, cloning and dropping a message cost nothing for it.
    bytes: Option<Bytes>,
}

impl Options {
    pub(crate) const fn new() -> Self {
        Self { bytes: None }
    }

    /// Checks a list of options, at least one.
    ///
    /// `shape` gives the name and shape of a known kind. `offset` is where `bytes` lies in the decoder's input.
    pub(crate) fn decode(
        record: &'static str,
        bytes: Bytes,
        offset: usize,
        shape: fn(u8) -> Option<(&'static str, Shape)>,
    ) -> Result<Self, DecodeError> {
        let mut seen: u128 = 0;
        let mut position = 0;
        let mut rest: &[u8] = &bytes;
        while let Some((&kind, after)) = rest.split_first() {
            let at = |field| At {
                record,
                field,
                offset: offset + position,
            };
            let known = shape(kind);
            let field = match known {
                Some((name, _)) => name,
                None if kind >= FIRST_IGNORABLE_KIND => "option",
                None => {
                    return Err(DecodeError::Reserved {
                        at: at("option"),
                        value: kind.into(),
                    });
                }
            };
            let Some((len, after)) = after.split_first_chunk::<2>() else {
                return Err(DecodeError::Truncated(at(field)));
            };
            let len = usize::from(u16::from_be_bytes(*len));
            let Some((value, after)) = after.split_at_checked(len) else {
                return Err(DecodeError::LengthPastEnd {
                    at: at(field),
                    len: crate::reader::length(len),
                    remaining: crate::reader::length(after.len()),
                });
            };
            if let Some((_, shape)) = known {
                if !matches!(shape, Shape::Repeated(..)) {
                    let bit = 1 << (kind & 0x7f);
                    if seen & bit != 0 {
                        return Err(DecodeError::Duplicate {
                            at: at(field),
                            value: kind.into(),
                        });
                    }
                    seen |= bit;
                }
                let right_length = match shape {
                    Shape::Opaque | Shape::Text | Shape::Record(..) | Shape::Repeated(..) => true,
                    Shape::Fixed(size) => len == size,
                    Shape::List(element) => len != 0 && len % element == 0,
                };
                if !right_length {
                    return Err(DecodeError::WrongLength {
                        at: at(field),
                        len: crate::reader::length(len),
                    });
                }
                match shape {
                    Shape::Text if core::str::from_utf8(value).is_err() => {
                        return Err(DecodeError::InvalidUtf8(at(field)));
                    }
                    Shape::Record(inner, check) | Shape::Repeated(inner, check) => {
                        let value = bytes.slice_ref(value);
                        let start = offset + position + OPTION_HEAD;
                        let mut reader = Reader::at_offset(inner, value, start);
                        check(&mut reader)?;
                        reader.finish()?;
                    }
                    _ => {}
                }
            }
            position += OPTION_HEAD + len;
            rest = after;
        }
        Ok(Self { bytes: Some(bytes) })
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_none()
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }

    /// All options in order, as kind and value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut rest = self.as_bytes();
        core::iter::from_fn(move || {
            let (&[kind, l0, l1], after) = rest.split_first_chunk::<OPTION_HEAD>()?;
            let (value, after) = after.split_at_checked(u16::from_be_bytes([l0, l1]).into())?;
            rest = after;
            Some((kind, value))
        })
    }

    /// The value of the first option of this kind.
    pub(crate) fn value(&self, kind: u8) -> Option<&[u8]> {
        self.iter()
            .find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The value of the first option of this kind, if it has this length.
    pub(crate) fn array<const N: usize>(&self, kind: u8) -> Option<[u8; N]> {
        self.value(kind).and_then(|value| value.try_into().ok())
    }

    /// The value of the first option of this kind, as text.
    pub(crate) fn text(&self, kind: u8) -> Option<&str> {
        self.value(kind)
            .and_then(|value| core::str::from_utf8(value).ok())
    }

    /// The value of the first option of this kind, as a list of arrays.
    pub(crate) fn list<const N: usize>(&self, kind: u8) -> impl Iterator<Item = [u8; N]> {
        let (elements, _) = self.value(kind).unwrap_or_default().as_chunks::<N>();
        elements.iter().copied()
    }

    /// The value of the first option of this kind, sharing the buffer.
    pub(crate) fn bytes(&self, kind: u8) -> Option<Bytes> {
        Some(self.bytes.as_ref()?.slice_ref(self.value(kind)?))
    }

    /// Takes every option of this kind out.
    pub(crate) fn remove(&mut self, kind: u8) {
        if self.value(kind).is_none() {
            return;
        }
        let mut kept = BytesMut::with_capacity(self.as_bytes().len());
        for (other, value) in self.iter() {
            if other != kind {
                put_head(&mut kept, other, value.len());
                kept.put_slice(value);
            }
        }
        self.bytes = (!kept.is_empty()).then(|| kept.freeze());
    }

    /// Puts an option in the place of those of this kind. The value must have the kind's shape.
    pub(crate) fn set(
        &mut self,
        name: &'static str,
        kind: u8,
        value: &[u8],
    ) -> Result<(), OptionTooLong> {
        check_len(name, value.len())?;
        self.remove(kind);
        self.append(kind, value.len(), |out| out.put_slice(value));
        Ok(())
    }

    /// Appends an option whose value `write` writes, exactly `len` bytes that fit an option.
    pub(crate) fn append(&mut self, kind: u8, len: usize, write: impl FnOnce(&mut BytesMut)) {
        // Appends in place where nobody shares the buffer.
        let mut bytes = self.bytes.take().map_or_else(BytesMut::new, |bytes| {
            bytes
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&shared[..]))
        });
        bytes.reserve(OPTION_HEAD + len);
        put_head(&mut bytes, kind, len);
        write(&mut bytes);
        self.bytes = Some(bytes.freeze());
    }
}

/// Whether a value of this length can be an option.
pub(crate) fn check_len(option: &'static str, len: usize) -> Result<(), OptionTooLong> {
    if len > MAX_OPTION_LEN {
        return Err(OptionTooLong { option, len });
    }
    Ok(())
}

fn put_head(out: &mut BytesMut, kind: u8, len: usize) {
    out.put_u8(kind);
    out.put_u16(u16::try_from(len).unwrap_or(u16::MAX)); // checked by `check_len`
}
