//! Links over carriers, the listener, and the driver that joins a link to a session.
