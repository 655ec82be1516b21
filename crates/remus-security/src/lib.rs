//! TLS policy and identities: what is offered, what is trusted, and the local CA.
