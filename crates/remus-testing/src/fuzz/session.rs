//! Two honest sessions over a bad carrier, with operations that the bytes spell. Spec: core.

use crate::sim::{ByteChoices, Features, World};

/// Most operations of one input: what goes wrong needs few, and more only slow the search down.
const MAX_OPERATIONS: usize = 2_000;

/// Runs the world that the bytes choose: each decision takes as few of them as it needs, and the world comes to rest when they end.
/// Where the last of them is odd, the sessions outlive their carriers.
///
/// # Panics
///
/// If a call does not end exactly once, ends otherwise than its two applications made it, or if anything is left behind.
pub fn session(data: &[u8]) {
    let features = Features {
        endings: true,
        deadlines: true,
        carriers: data.last().is_some_and(|last| last % 2 == 1),
    };
    World::new(ByteChoices(data), features).run(MAX_OPERATIONS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_each_seed;

    #[test]
    fn any_bytes_make_a_world() {
        session(&[]);
        for_each_seed(200, |rng| {
            let len = rng.index(3_000);
            session(&rng.bytes(len));
        });
    }
}
