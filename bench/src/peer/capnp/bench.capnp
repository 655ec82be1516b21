# What the Cap'n Proto peer of the benchmark speaks.
#
# `bench_capnp.rs` beside this file is generated, and kept so that no build needs a schema compiler. To make it anew: Debian's
# packages `capnproto` and `libcapnp-dev`, `cargo install capnpc@0.27.0`, then, with CAPNPC for that crate's directory, here:
#
#     capnp compile -I /usr/include -I "$CAPNPC" -orust bench.capnp

@0xc2d8f7b3a6e19405;

using Rust = import "/rust.capnp";
$Rust.parentModule("peer::capnp");

interface Bench {
  # The object that the server of the Cap'n Proto peer offers.

  echo @0 (payload :Data) -> (payload :Data);
  # Gives the payload back.

  download @1 (size :UInt32, sink :Sink) -> ();
  # Pushes payloads of `size` bytes into `sink` until the call is cancelled.

  upload @2 () -> (sink :Sink);
  # Opens a sink that counts what it is given.
}

interface Sink {
  # Takes payloads one after the other, under the flow control that `stream` brings.

  push @0 (payload :Data) -> stream;

  done @1 () -> (byteCount :UInt64);
  # Answers when everything pushed before has been taken.
}
