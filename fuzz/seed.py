#!/usr/bin/env python3
"""Copies the bytes of every test vector into the corpus of the targets that read them.

    python3 fuzz/seed.py

Afterwards `cargo fuzz cmin` drops what reaches nothing new. Needs Python 3.8 and no package.
"""

import hashlib
import json
import pathlib

FUZZ = pathlib.Path(__file__).resolve().parent
VECTORS = FUZZ.parent / "vectors"


def u32(number):
    return number.to_bytes(4, "big")


def message(routing=b"", context=b"", payload=b"", flags=0):
    """A message that holds these parts, for vectors of parts that only a message carries."""
    rest = b"".join(u32(len(part)) + part for part in (routing, context, payload))
    fixed = b"\x10" + flags.to_bytes(2, "big") + bytes([0, 0, 0, 7]) + bytes(8) + b"\x60\x00\x00\x00"
    return u32(4 + len(fixed) + len(rest)) + fixed + rest


def seeds(record, data):
    """The targets that read a vector's bytes, each with what it gets."""
    if record in ("frame", "message", "handshake", "heartbeat", "shutdown", "schema", "capability", "batch"):
        yield record, data
    elif record in ("service", "query", "query_answer"):
        yield "discovery", data
    elif record in ("error", "stream_end"):
        yield "error_record", data
    elif record == "routing":
        yield "message", message(routing=data)
    elif record == "context":
        yield "message", message(context=data)
    elif record == "compressed":
        yield "message", message(payload=data, flags=1)


def main():
    for path in sorted(VECTORS.glob("*.json")):
        for vector in json.loads(path.read_text())["vectors"]:
            for target, data in seeds(vector["record"], bytes.fromhex(vector["hex"])):
                directory = FUZZ / "corpus" / target
                directory.mkdir(parents=True, exist_ok=True)
                (directory / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    main()
