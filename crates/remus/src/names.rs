//! From the names of methods and topics to what stands for them on the wire.
//!
//! An ID is a digest of the name, and a topic has to be checked and encoded: each costs as much as all the rest of a small call. A
//! program uses few names often, so each thread remembers those that it used last.

use std::cell::RefCell;
use std::hash::Hasher;

use remus_wire::{MethodId, Routing, ServiceId};
use rustc_hash::FxHasher;

use crate::Error;

/// Names that one thread remembers of each kind.
const PLACES: usize = 64;

/// What was found for the names used last. Each name has one place, by its hash; a newcomer takes the place of who was there.
struct Memory<V>([Option<(Box<str>, V)>; PLACES]);

impl<V: Clone> Memory<V> {
    const fn new() -> Self {
        Self([const { None }; PLACES])
    }

    /// What `find` finds for the name, or found for it before.
    fn recall<E>(&mut self, name: &str, find: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        let mut hasher = FxHasher::default();
        hasher.write(name.as_bytes());
        let place = usize::try_from(hasher.finish() >> 32).unwrap_or(0) % PLACES;
        let Some(slot) = self.0.get_mut(place) else {
            return find();
        };
        if let Some((known, value)) = slot
            && **known == *name
        {
            return Ok(value.clone());
        }
        let value = find()?;
        *slot = Some((name.into(), value.clone()));
        Ok(value)
    }
}

thread_local! {
    static METHODS: RefCell<Memory<(ServiceId, MethodId)>> = const { RefCell::new(Memory::new()) };
    static TOPICS: RefCell<Memory<Routing>> = const { RefCell::new(Memory::new()) };
}

/// The IDs of service and method of a full name, such as `greet.v1.Greeter/Hello`.
pub(crate) fn ids_of(name: &str) -> (ServiceId, MethodId) {
    let found =
        METHODS.with_borrow_mut(|known| known.recall(name, || Ok::<_, Error>(digest(name))));
    found.unwrap_or_else(|_| digest(name))
}

/// Where a publication to `topic` goes, which `find` checks and puts together.
///
/// # Errors
///
/// That of `find`.
pub(crate) fn publication(
    topic: &str,
    find: impl FnOnce() -> Result<Routing, Error>,
) -> Result<Routing, Error> {
    TOPICS.with_borrow_mut(|known| known.recall(topic, find))
}

fn digest(name: &str) -> (ServiceId, MethodId) {
    let service = name.split_once('/').map_or(name, |(service, _)| service);
    (ServiceId::of(service), MethodId::of(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_share_a_place_do_not_take_each_others_ids() {
        for _ in 0..2 {
            for n in 0..4 * PLACES {
                let name = format!("test.v1.S{}/M{n}", n % 7);
                assert_eq!(ids_of(&name), digest(&name), "{name}");
                assert_eq!(ids_of(&name), digest(&name), "{name}, remembered");
            }
        }
    }
}
