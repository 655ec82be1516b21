//! From a method's name to the IDs that stand for it on the wire.
//!
//! An ID is a digest of the name, which costs more than all the rest of a small call. A program calls few methods, so each
//! thread remembers those that it called last.

use std::cell::RefCell;
use std::hash::Hasher;

use remus_wire::{MethodId, ServiceId};
use rustc_hash::FxHasher;

/// Names that one thread remembers. Each has one place, by its hash; a newcomer takes the place of who was there.
const PLACES: usize = 64;

struct Known {
    name: Box<str>,
    service: ServiceId,
    method: MethodId,
}

thread_local! {
    static KNOWN: RefCell<[Option<Known>; PLACES]> = const { RefCell::new([const { None }; PLACES]) };
}

/// The IDs of service and method of a full name, such as `greet.v1.Greeter/Hello`.
pub(crate) fn ids_of(name: &str) -> (ServiceId, MethodId) {
    let mut hasher = FxHasher::default();
    hasher.write(name.as_bytes());
    let place = usize::try_from(hasher.finish() >> 32).unwrap_or(0) % PLACES;
    KNOWN.with_borrow_mut(|known| {
        let Some(slot) = known.get_mut(place) else {
            return digest(name);
        };
        if let Some(known) = slot
            && *known.name == *name
        {
            return (known.service, known.method);
        }
        let (service, method) = digest(name);
        *slot = Some(Known {
            name: name.into(),
            service,
            method,
        });
        (service, method)
    })
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
