//! HTTP/3 and WebTransport on quinn, client and server.
