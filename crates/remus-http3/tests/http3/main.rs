//! The crate by its public API: against itself, against peers that others wrote, and against peers
//! that break the rules.

#[cfg(test)]
mod aioquic;
#[cfg(test)]
mod churn;
#[cfg(test)]
mod flights;
#[cfg(test)]
mod h3;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod servers;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod support;
#[cfg(test)]
mod web_transport_quinn;
