//! Remus on the wire: bytes to records and back.
