//! The `remus` command.
fn main() {}
