//! The peer's QPACK encoder and decoder streams. Spec: RFC 9204 §4.3 and §4.4.
//!
//! With a dynamic table of 0 bytes almost nothing may stand on them; both are read so that what may
//! stand there is skipped and the rest is noticed.

use super::integer::Partial;
use crate::{Code, fault::Fault};

/// Reads the peer's encoder stream: only "set capacity to 0" is possible.
#[derive(Debug, Default)]
pub struct EncoderStream {
    capacity: Option<Partial>,
}

impl EncoderStream {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    ///
    /// `QPACK_ENCODER_STREAM_ERROR`, which ends the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        const REFUSED: Fault = Fault::connection(
            Code::QPACK_ENCODER_STREAM_ERROR,
            "an instruction that needs a dynamic table, which has 0 bytes",
        );
        for byte in bytes {
            match &mut self.capacity {
                Some(capacity) => capacity.byte(*byte).map_err(|_| REFUSED)?,
                // 001xxxxx sets the capacity; every other instruction inserts or duplicates.
                None if byte & 0xe0 == 0x20 => self.capacity = Some(Partial::new(*byte, 5)),
                None => return Err(REFUSED),
            }
            match self.capacity.and_then(|capacity| capacity.value()) {
                Some(0) => self.capacity = None,
                Some(_) => return Err(REFUSED),
                None => {}
            }
        }
        Ok(())
    }
}

/// Reads the peer's decoder stream: only cancelled streams may be reported.
#[derive(Debug, Default)]
pub struct DecoderStream {
    cancelled: Option<Partial>,
}

impl DecoderStream {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    ///
    /// `QPACK_DECODER_STREAM_ERROR`, which ends the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        const REFUSED: Fault = Fault::connection(
            Code::QPACK_DECODER_STREAM_ERROR,
            "an acknowledgement of something that was never sent",
        );
        for byte in bytes {
            match &mut self.cancelled {
                Some(stream) => stream.byte(*byte).map_err(|_| REFUSED)?,
                // 01xxxxxx cancels a stream; the others acknowledge a section or an insertion.
                None if byte & 0xc0 == 0x40 => self.cancelled = Some(Partial::new(*byte, 6)),
                None => return Err(REFUSED),
            }
            if self
                .cancelled
                .is_some_and(|stream| stream.value().is_some())
            {
                self.cancelled = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoder_stream_takes_only_a_capacity_of_zero() {
        assert_eq!(EncoderStream::default().feed(&[0x20, 0x20]), Ok(()));
        let refused: [&[u8]; 5] = [
            &[0x3f, 0xbd, 0x01], // capacity 220, RFC 9204 §B.2
            &[0xc0, 0x00],       // insert with a name of the static table
            &[0x41, b'a', 0x00], // insert with a literal name
            &[0x00],             // duplicate
            &[
                0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
        ];
        for bytes in refused {
            let mut stream = EncoderStream::default();
            let fault = bytes.chunks(1).find_map(|byte| stream.feed(byte).err());
            let code = fault.map(|fault| fault.code);
            assert_eq!(code, Some(Code::QPACK_ENCODER_STREAM_ERROR), "{bytes:x?}");
        }
    }

    #[test]
    fn decoder_stream_takes_only_cancellations() {
        let mut stream = DecoderStream::default();
        for byte in [0x48, 0x7f, 0xff, 0x01, 0x40] {
            assert_eq!(stream.feed(&[byte]), Ok(()));
        }
        for byte in [0x84, 0x01] {
            let fault = DecoderStream::default().feed(&[byte]).unwrap_err();
            assert_eq!(fault.code, Code::QPACK_DECODER_STREAM_ERROR);
        }
    }
}
