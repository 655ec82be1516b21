//! Typed calls, streams and topics over one connection: Client, Server, Router.
