//! Sessions against hand-written peers, most of which break a rule: each rule by itself, with its own code and bounded memory.

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod calls;
#[cfg(test)]
mod credit;
#[cfg(test)]
mod fairness;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod liveness;
#[cfg(test)]
mod resumption;
#[cfg(test)]
mod shutdown;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod support;
