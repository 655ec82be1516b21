//! The Remus session, sans-IO: lifecycle, streams, credit, priorities, clock.
