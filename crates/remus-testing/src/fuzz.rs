//! Bodies of the fuzz targets: what has to hold of any bytes that a peer can send.
//!
//! Each takes the bytes and panics where a property is broken; "does not panic" is the least of them. The targets in
//! `fuzz/` and the replay of `fuzz/corpus` in this crate's tests call the same bodies.

mod frame;
mod http3;
mod message;
mod record;
mod session;
mod session_input;

pub use self::{
    frame::frame,
    http3::{capsule, h3_frame, qpack},
    message::{batch, message},
    record::{capability, discovery, error_record, handshake, heartbeat, schema, shutdown},
    session::session,
    session_input::session_input,
};

use crate::Rng;

/// Checks what one kind of decoder makes of some bytes.
pub type Body = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz/fuzz_targets` and of its directory in `fuzz/corpus`.
pub const TARGETS: &[(&str, Body)] = &[
    ("batch", batch),
    ("capability", capability),
    ("capsule", capsule),
    ("discovery", discovery),
    ("error_record", error_record),
    ("frame", frame),
    ("h3_frame", h3_frame),
    ("handshake", handshake),
    ("heartbeat", heartbeat),
    ("message", message),
    ("qpack", qpack),
    ("schema", schema),
    ("session", session),
    ("session_input", session_input),
    ("shutdown", shutdown),
];

/// A generator that the bytes choose, so that the same bytes are always cut the same way.
fn rng_of(data: &[u8]) -> Rng {
    // FNV-1a (Fowler, Noll, Vo): any mapping that changes with every byte would do.
    let seed = data.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // A fork, because a seed that is printed on panic would repeat nothing: the bytes do.
    Rng::new(seed).fork()
}

/// Cuts the bytes as a carrier might: into single bytes, into small pieces, or into a few large ones.
fn pieces(data: &[u8]) -> Vec<&[u8]> {
    let mut rng = rng_of(data);
    let longest = rng.pick(&[1, 2, 7, 40, 1000]).copied().unwrap_or(1);
    let mut pieces = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let len = rng.index(longest.min(rest.len())).saturating_add(1);
        let (piece, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole() {
        for len in 0..200u8 {
            let data: Vec<u8> = (0..len).collect();
            let pieces = pieces(&data);
            assert!(pieces.iter().all(|piece| !piece.is_empty()));
            assert_eq!(pieces.concat(), data);
        }
    }

    #[test]
    fn names_are_sorted_and_stand_once() {
        assert!(TARGETS.is_sorted_by(|(a, _), (b, _)| a < b));
    }
}
