//! Fixtures for tests: vectors, a deterministic generator, fuzz bodies.
