#!/usr/bin/env python3
"""Writes the test vectors of this directory.

An encoder of its own, written from docs/spec/message-format.md and from nothing else, so that the vectors can catch what an
implementation gets wrong. It encodes fields one by one and knows no records. Needs Python 3.8 and no package:

    python3 vectors/generate.py
"""

import hashlib
import json
import pathlib

HERE = pathlib.Path(__file__).parent

MALFORMED = 0x100
CODES = {
    "frame-too-large": 0x107,
    "message-too-large": 0x103,
    "routing-too-large": 0x10D,
    "context-too-large": 0x10C,
    "zero-frame-type": 0x108,
    "unknown-frame-type": 0x108,
}


def u8(n):
    return n.to_bytes(1, "big")


def u16(n):
    return n.to_bytes(2, "big")


def u32(n):
    return n.to_bytes(4, "big")


def u64(n):
    return n.to_bytes(8, "big")


def blob(data):
    return u32(len(data)) + data


def text(string):
    return blob(string.encode())


def sha256(data):
    return hashlib.sha256(data).digest()


def option(kind, value):
    return u8(kind) + u16(len(value)) + value


def frame(stream, kind, payload):
    return u16(stream) + u16(kind) + u32(len(payload)) + payload


def message(kind=0x10, flags=0, request=7, timestamp=0x00063F5A1C2B3D4E, priority=0x6000, ttl=0, routing=b"", context=b"", payload=b"", **lie):
    """`lie` overrides what a length field says."""
    total = 35 + len(routing) + len(context) + len(payload)
    return (
        u32(lie.get("total", total)) + u8(kind) + u16(flags) + u32(request) + u64(timestamp) + u16(priority) + u16(ttl)
        + u32(lie.get("r", len(routing))) + routing
        + u32(lie.get("c", len(context))) + context
        + u32(lie.get("p", len(payload))) + payload
    )


class Family:
    def __init__(self, name, about):
        self.name, self.about, self.vectors = name, about, []

    def add(self, record, name, section, requirement, data, outcome, **more):
        assert (record, name) not in [(v["record"], v["name"]) for v in self.vectors], name
        vector = {"name": name, "section": section, "requirement": requirement.split(), "record": record, **more, "hex": data.hex()}
        vector.update(outcome)
        self.vectors.append(vector)

    def ok(self, record, name, section, requirement, data, value, **more):
        self.add(record, name, section, requirement, data, {"value": value}, **more)

    def bad(self, record, name, section, requirement, data, error, where, offset, **more):
        inner, field = where.split(".")
        code = CODES.get(error, MALFORMED)
        self.add(record, name, section, requirement, data, {"error": {"name": error, "record": inner, "field": field, "offset": offset, "code": code}}, **more)

    def write(self):
        lines = ",\n    ".join(json.dumps(v, ensure_ascii=False) for v in self.vectors)
        head = f'{{\n  "family": {json.dumps(self.name)},\n  "about": {json.dumps(self.about)},\n  "vectors": [\n    '
        (HERE / f"{self.name}.json").write_text(head + lines + "\n  ]\n}\n", encoding="utf-8")
        print(f"{self.name}: {len(self.vectors)}")
        return len(self.vectors)


# --- frame ---------------------------------------------------------------------------------------------------------------------

F = Family("frame", "Frames, as they come from a carrier. `max_frame` is the receiver's, 65536 where it is not given.")
small = message(kind=0x02, request=0, payload=u64(0) + u64(0) + u32(0))
F.ok("frame", "message", "2", "WIRE-1 WIRE-10", frame(1, 1, small), {"stream": 1, "type": "MESSAGE", "payload": small.hex()})
F.ok("frame", "message-on-control", "2", "WIRE-10", frame(0, 1, small), {"stream": 0, "type": "MESSAGE", "payload": small.hex()})
F.ok("frame", "message-empty", "2", "WIRE-11", frame(3, 1, b""), {"stream": 3, "type": "MESSAGE", "payload": ""})
F.ok("frame", "message-then-rest", "2", "WIRE-10", frame(1, 1, b"abc") + bytes.fromhex("000200"), {"stream": 1, "type": "MESSAGE", "payload": "616263"}, rest="000200")
F.ok("frame", "part", "2", "WIRE-18", frame(5, 2, b"\x00\x01\x02"), {"stream": 5, "type": "PART", "payload": "000102"})
F.ok("frame", "part-of-one-byte", "2", "WIRE-18", frame(5, 2, b"\xff"), {"stream": 5, "type": "PART", "payload": "ff"})
F.ok("frame", "last", "2", "WIRE-19", frame(65534, 3, b"\x03"), {"stream": 65534, "type": "LAST", "payload": "03"})
F.ok("frame", "last-empty", "2", "WIRE-19", frame(6, 3, b""), {"stream": 6, "type": "LAST", "payload": ""})
F.ok("frame", "credit", "2", "WIRE-20", frame(2, 4, u64(262144)), {"stream": 2, "type": "CREDIT", "limit": "262144"})
F.ok("frame", "credit-session-max", "2", "WIRE-1 WIRE-20", frame(0, 4, u64(2**64 - 1)), {"stream": 0, "type": "CREDIT", "limit": "18446744073709551615"})
F.ok("frame", "reset", "2", "WIRE-20", frame(9, 5, u32(1)), {"stream": 9, "type": "RESET", "code": 1})
F.ok("frame", "reset-unknown-code", "2", "WIRE-8", frame(9, 5, u32(0xDEADBEEF)), {"stream": 9, "type": "RESET", "code": 0xDEADBEEF})
F.ok("frame", "stop", "2", "WIRE-20", frame(9, 6, u32(0x102)), {"stream": 9, "type": "STOP", "code": 0x102})
F.ok("frame", "reference", "2", "WIRE-20", frame(4, 7, u32(3) + u64(2**40) + u32(4096)), {"stream": 4, "type": "REFERENCE", "region": 3, "offset": "1099511627776", "length": 4096})
F.ok("frame", "ack", "2", "WIRE-20", frame(0, 8, u16(15) + u64(2**40 + 65536)), {"stream": 0, "type": "ACK", "lane": 15, "offset": str(2**40 + 65536)})
F.ok("frame", "ignorable-empty", "2", "WIRE-16", frame(1, 0x8000, b""), {"stream": 1, "type": 0x8000, "ignored": True})
F.ok("frame", "ignorable-with-payload-then-rest", "2", "WIRE-16", frame(1, 0xFFFF, b"skip me") + frame(1, 4, u64(1)), {"stream": 1, "type": 0xFFFF, "ignored": True}, canonical=False, rest=frame(1, 4, u64(1)).hex())
F.ok("frame", "payload-at-limit", "2", "WIRE-12", frame(1, 2, bytes(256)), {"stream": 1, "type": "PART", "payload": "00" * 256}, max_frame=256)
for name, data in [
    ("nothing", b""), ("header-cut", frame(1, 1, small)[:7]), ("header-only", frame(1, 4, u64(1))[:8]), ("payload-cut", frame(1, 1, small)[:-1]), ("ignorable-cut", frame(1, 0x9000, b"xyz")[:-1]),
    ("largest-of-default-announced", u16(1) + u16(2) + u32(65536)),
]:
    F.add("frame", f"incomplete-{name}", "2", "WIRE-12" if name.startswith("largest") else "WIRE-10", data, {"incomplete": True})
F.bad("frame", "type-zero", "2", "WIRE-14", frame(1, 0, b"abc"), "zero-frame-type", "FRAME.type", 2)
F.bad("frame", "zeroed-buffer", "2", "WIRE-14", bytes(64), "zero-frame-type", "FRAME.type", 2)
F.bad("frame", "type-unknown", "2", "WIRE-15", frame(1, 9, b"abc"), "unknown-frame-type", "FRAME.type", 2)
F.bad("frame", "type-highest-not-ignorable", "2", "WIRE-15", frame(1, 0x7FFF, b""), "unknown-frame-type", "FRAME.type", 2)
F.bad("frame", "type-unknown-by-header-alone", "2", "WIRE-11 WIRE-15", u16(1) + u16(0x0100) + u32(2**32 - 1), "unknown-frame-type", "FRAME.type", 2)
F.bad("frame", "too-large-by-header-alone", "2", "WIRE-11 WIRE-12 WIRE-5", u16(1) + u16(1) + u32(65537), "frame-too-large", "FRAME.length", 4)
F.bad("frame", "too-large-for-stated-limit", "2", "WIRE-12", u16(1) + u16(2) + u32(257), "frame-too-large", "FRAME.length", 4, max_frame=256)
F.bad("frame", "above-16-mib", "2", "WIRE-13", u16(1) + u16(1) + u32(2**24 + 1), "frame-too-large", "FRAME.length", 4, max_frame=2**32 - 1)
F.bad("frame", "ignorable-too-large", "2", "WIRE-16 WIRE-12", u16(1) + u16(0x8001) + u32(2**32 - 1), "frame-too-large", "FRAME.length", 4)
F.bad("frame", "credit-too-large", "2", "WIRE-12", u16(1) + u16(4) + u32(65537), "frame-too-large", "FRAME.length", 4)
F.bad("frame", "part-empty", "2", "WIRE-18", frame(1, 2, b""), "truncated", "PART.bytes", 8)
F.bad("frame", "credit-empty", "2", "WIRE-20", frame(1, 4, b""), "truncated", "CREDIT.limit", 8)
F.bad("frame", "credit-short-by-header-alone", "2", "WIRE-20 WIRE-11", frame(1, 4, bytes(7))[:8], "truncated", "CREDIT.limit", 8)
F.bad("frame", "credit-long", "2", "WIRE-20 WIRE-4", frame(1, 4, bytes(9)), "trailing-bytes", "CREDIT.end", 16)
F.bad("frame", "reset-short", "2", "WIRE-20", frame(1, 5, bytes(3)), "truncated", "RESET.code", 8)
F.bad("frame", "reset-long-by-header-alone", "2", "WIRE-20 WIRE-11", frame(1, 5, bytes(5))[:8], "trailing-bytes", "RESET.end", 12)
F.bad("frame", "stop-short", "2", "WIRE-20", frame(1, 6, b""), "truncated", "STOP.code", 8)
F.bad("frame", "stop-long", "2", "WIRE-20", frame(1, 6, bytes(8)), "trailing-bytes", "STOP.end", 12)
F.bad("frame", "reference-without-region", "2", "WIRE-20", frame(1, 7, bytes(3)), "truncated", "REFERENCE.region", 8)
F.bad("frame", "reference-without-offset", "2", "WIRE-20", frame(1, 7, bytes(11)), "truncated", "REFERENCE.offset", 12)
F.bad("frame", "reference-without-length", "2", "WIRE-20", frame(1, 7, bytes(12)), "truncated", "REFERENCE.length", 20)
F.bad("frame", "reference-long", "2", "WIRE-20", frame(1, 7, bytes(17)), "trailing-bytes", "REFERENCE.end", 24)
F.bad("frame", "ack-without-lane-by-header-alone", "2", "WIRE-20 WIRE-11", frame(0, 8, bytes(1))[:8], "truncated", "ACK.lane", 8)
F.bad("frame", "ack-without-offset", "2", "WIRE-20", frame(0, 8, bytes(9)), "truncated", "ACK.offset", 10)
F.bad("frame", "ack-long", "2", "WIRE-20", frame(0, 8, bytes(11)), "trailing-bytes", "ACK.end", 18)

# --- message -------------------------------------------------------------------------------------------------------------------

M = Family("message", "Whole messages. `limits` are the receiver's in bytes: 4194304, 65536 and 8192 where they are not given.")
CART, ADD = 0x7599EE48, 0x7E023178
STAMP = str(0x00063F5A1C2B3D4E)


def msg(type=0x10, flags=0, request_id=7, timestamp=STAMP, priority=0x6000, ttl=0, routing=None, context=None, payload=""):
    return {
        "type": type, "flags": flags, "request_id": request_id, "timestamp": timestamp, "priority": priority, "ttl": ttl,
        "routing": routing or {"service_id": 0, "method_id": 0, "options": []}, "context": context or {"options": []}, "payload": payload,
    }


M.ok("message", "shortest", "3", "WIRE-21", message(), msg())
M.ok("message", "example-request", "7", "WIRE-21", bytes.fromhex(
    "00000047 10 0010 00000007 00063f5a1c2b3d4e 6000 07d0 00000008 7599ee48 7e023178 00000013 050010 6170706c69636174696f6e2f6a736f6e 00000009 7b226964223a34327d"),
    msg(flags=0x10, ttl=2000, routing={"service_id": CART, "method_id": ADD, "options": []},
        context={"options": [[5, b"application/json".hex()]], "content_type": "application/json"}, payload=b'{"id":42}'.hex()))
M.ok("message", "example-error", "7", "WIRE-21", bytes.fromhex(
    "0000003f 12 0000 00000007 00063f5a1c2b3d50 6000 0000 00000000 00000000 0000001c 00000005 ffffffff 0000000c 6e6f2073756368206974656d 00000000"),
    msg(type=0x12, timestamp=str(0x00063F5A1C2B3D50), payload="00000005ffffffff0000000c6e6f2073756368206974656d00000000"))
M.ok("message", "all-fields-at-their-highest", "3", "WIRE-1 WIRE-8 WIRE-26 WIRE-41", message(kind=0xFF, flags=0xFFFF, request=2**32 - 1, timestamp=2**64 - 1, priority=0xFFFF, ttl=0xFFFF, payload=b"\xff"),
     msg(type=0xFF, flags=0xFFFF, request_id=2**32 - 1, timestamp=str(2**64 - 1), priority=0xFFFF, ttl=0xFFFF, payload="ff"))
M.ok("message", "unknown-flag-bits-kept", "3.3", "WIRE-41", message(flags=0xF001), msg(flags=0xF001))
M.ok("message", "unknown-type-kept", "3", "WIRE-26", message(kind=0x6A), msg(type=0x6A))
for index, name in enumerate(["compressed", "requires-auth", "high-priority", "cacheable", "idempotent", "stream-end", "batch-request", "state-delta", "edge-compute", "requires-consensus", "sensitive-data", "cross-region"]):
    M.ok("message", f"flag-{name}", "3.3", "WIRE-41", message(flags=1 << index), msg(flags=1 << index), flag_name=name.upper().replace("-", "_"))
M.ok("message", "routing-only", "3.1", "WIRE-21 WIRE-31", message(routing=u32(1) + u32(2)), msg(routing={"service_id": 1, "method_id": 2, "options": []}))
M.ok("message", "routing-of-zeros", "3.1", "WIRE-31", message(routing=u32(0) + u32(0)), msg(), canonical=False)
M.ok("message", "context-only", "3.2", "WIRE-21", message(context=option(3, b"acme")), msg(context={"options": [[3, b"acme".hex()]], "tenant": "acme"}))
M.ok("message", "routing-context-payload", "3", "WIRE-21", message(routing=u32(1) + u32(2) + option(8, u8(3)), context=option(3, b"acme"), payload=b"hi"),
     msg(routing={"service_id": 1, "method_id": 2, "options": [[8, "03"]], "hop_limit": 3}, context={"options": [[3, b"acme".hex()]], "tenant": "acme"}, payload=b"hi".hex()))
M.ok("message", "total-at-limit", "3", "WIRE-22", message(payload=bytes(65)), msg(payload="00" * 65), limits={"message": 100})
M.bad("message", "nothing", "3", "WIRE-4", b"", "truncated", "Message.total_length", 0)
M.bad("message", "total-cut", "3", "WIRE-4", u8(0) + u16(0), "truncated", "Message.total_length", 0)
M.bad("message", "zeroed-buffer", "3", "WIRE-23", bytes(64), "length-mismatch", "Message.total_length", 0)
M.bad("message", "total-below-35", "3", "WIRE-23", message(total=34)[:34], "length-mismatch", "Message.total_length", 0)
M.bad("message", "cut-inside-header", "3", "WIRE-23", message()[:20], "length-mismatch", "Message.total_length", 0)
M.bad("message", "cut-inside-payload", "3", "WIRE-23", message(payload=b"hello")[:-1], "length-mismatch", "Message.total_length", 0)
M.bad("message", "longer-than-total", "3", "WIRE-17 WIRE-23", message() + b"\x00", "length-mismatch", "Message.total_length", 0)
M.bad("message", "total-above-limit", "3", "WIRE-22", message(payload=bytes(66)), "message-too-large", "Message.total_length", 0, limits={"message": 100})
M.bad("message", "lie-of-4-gib", "3", "WIRE-22 WIRE-5", message(total=2**32 - 1), "message-too-large", "Message.total_length", 0)
M.bad("message", "limit-judged-before-the-actual-length", "3", "WIRE-22", message(total=101)[:35], "message-too-large", "Message.total_length", 0, limits={"message": 100})
M.bad("message", "type-zero", "3", "WIRE-26", message(kind=0), "reserved", "Message.type", 4)
M.bad("message", "routing-above-limit", "3", "WIRE-24", message(routing=bytes(8193)), "routing-too-large", "Message.routing_length", 23)
M.bad("message", "routing-lie-above-limit", "3", "WIRE-24 WIRE-5", message(r=2**32 - 1), "routing-too-large", "Message.routing_length", 23)
M.bad("message", "routing-past-end", "3", "WIRE-25", message(routing=bytes(8), r=9), "length-past-end", "Message.routing_length", 23)
M.bad("message", "routing-leaves-no-room-for-lengths", "3", "WIRE-25", message(payload=bytes(8), r=12), "length-past-end", "Message.routing_length", 23)
M.bad("message", "context-above-limit", "3", "WIRE-24", message(context=bytes(65537)), "context-too-large", "Message.context_length", 27, limits={"message": 1000000})
M.bad("message", "context-past-end", "3", "WIRE-25", message(routing=bytes(8), context=b"abc", c=4), "length-past-end", "Message.context_length", 35)
M.bad("message", "payload-past-end", "3", "WIRE-25", message(payload=b"abc", p=4), "length-past-end", "Message.payload_length", 31)
M.bad("message", "payload-lie-of-4-gib", "3", "WIRE-25 WIRE-5", message(payload=b"abc", p=2**32 - 1), "length-past-end", "Message.payload_length", 31)
M.bad("message", "payload-leaves-bytes", "3", "WIRE-25 WIRE-4", message(payload=b"abc", p=2), "trailing-bytes", "Message.end", 37)
M.bad("message", "routing-of-7-bytes", "3.1", "WIRE-31", message(routing=bytes(7)), "truncated", "Routing.method_id", 31)
M.bad("message", "error-in-routing-counts-from-the-message", "1.1", "WIRE-34", message(routing=bytes(8) + option(8, u8(1)) + option(0x7F, b"")), "reserved", "Routing.option", 39)
M.bad("message", "error-in-context-counts-from-the-message", "1.1", "WIRE-37", message(routing=bytes(8), context=option(3, b"a") + option(1, bytes(24))), "wrong-length", "Context.trace_context", 43)

# --- routing -------------------------------------------------------------------------------------------------------------------

R = Family("routing", "Routing information, without the length before it.")
HEAD = u32(CART) + u32(ADD)


def route(options, **named):
    return {"service_id": CART, "method_id": ADD, "options": [[k, v.hex()] for k, v in options], **named}


def routing_ok(name, requirement, options, canonical=True, **named):
    more = {} if canonical else {"canonical": False}
    R.ok("routing", name, "3.1", requirement, HEAD + b"".join(option(k, v) for k, v in options), route(options, **named), **more)


R.ok("routing", "nothing", "3.1", "WIRE-31", b"", {"service_id": 0, "method_id": 0, "options": []})
R.ok("routing", "zeros", "3.1", "WIRE-31", bytes(8), {"service_id": 0, "method_id": 0, "options": []}, canonical=False)
R.ok("routing", "option-alone", "3.1", "WIRE-31", bytes(8) + option(8, u8(0)), {"service_id": 0, "method_id": 0, "options": [[8, "00"]], "hop_limit": 0})
routing_ok("service-and-method", "WIRE-31", [])
routing_ok("affinity", "WIRE-33", [(1, b"\x00user-7\xff")], affinity_key=b"\x00user-7\xff".hex())
routing_ok("affinity-empty", "WIRE-37", [(1, b"")], affinity_key="")
routing_ok("target-node", "WIRE-37", [(2, u32(0xA1B2C3D4))], target_node=0xA1B2C3D4)
routing_ok("origin-region", "WIRE-37", [(3, u32(49))], origin_region=49)
routing_ok("allowed-regions", "WIRE-37", [(4, u32(49) + u32(33))], allowed_regions=[49, 33])
routing_ok("hop-trail", "WIRE-37", [(5, u32(1) + u32(2) + u32(3))], hop_trail=[1, 2, 3])
routing_ok("topic", "WIRE-37", [(6, "chat.röm".encode())], topic="chat.röm")
routing_ok("version-range", "WIRE-37 WIRE-62", [(7, u8(1) + u8(2) + u16(3) + u8(2) + u8(0) + u16(0))], version_range=[0x01020003, 0x02000000])
routing_ok("hop-limit", "WIRE-37", [(8, u8(255))], hop_limit=255)
routing_ok("preferred-zone", "WIRE-37", [(9, u32(7))], preferred_zone=7)
routing_ok("several-in-any-order", "WIRE-33", [(9, u32(7)), (6, b"a.b"), (1, b"k"), (2, u32(5))], preferred_zone=7, topic="a.b", affinity_key="6b", target_node=5)
routing_ok("unknown-ignorable-kept-and-repeated", "WIRE-35 WIRE-36", [(0x80, b"x"), (8, u8(1)), (0x80, b""), (0xFF, b"\x00\x01")], hop_limit=1)
for cut, field, offset in [(1, "service_id", 0), (3, "service_id", 0), (4, "method_id", 4), (7, "method_id", 4)]:
    R.bad("routing", f"cut-at-{cut}", "3.1", "WIRE-31", HEAD[:cut], "truncated", f"Routing.{field}", offset)
R.bad("routing", "option-without-length", "3.1", "WIRE-33", HEAD + u8(6) + u8(0), "truncated", "Routing.topic", 8)
R.bad("routing", "option-kind-alone", "3.1", "WIRE-33", HEAD + option(8, u8(1)) + u8(1), "truncated", "Routing.affinity_key", 12)
R.bad("routing", "option-past-end", "3.1", "WIRE-33", HEAD + u8(6) + u16(4) + b"abc", "length-past-end", "Routing.topic", 8)
R.bad("routing", "ignorable-option-past-end", "3.1", "WIRE-33 WIRE-35", HEAD + u8(0xC0) + u16(65535), "length-past-end", "Routing.option", 8)
R.bad("routing", "option-kind-zero", "3.1", "WIRE-34 WIRE-7", HEAD + bytes(3), "reserved", "Routing.option", 8)
R.bad("routing", "option-kind-unknown", "3.1", "WIRE-34", HEAD + option(10, b""), "reserved", "Routing.option", 8)
R.bad("routing", "context-option-in-routing", "3.1", "WIRE-34", HEAD + option(0x7F, text("k") + blob(b"v")), "reserved", "Routing.option", 8)
R.bad("routing", "option-twice", "3.1", "WIRE-36", HEAD + option(6, b"a") + option(8, u8(1)) + option(6, b"a"), "duplicate", "Routing.topic", 16)
R.bad("routing", "duplicate-before-shape", "3.1", "WIRE-36", HEAD + option(8, u8(1)) + option(8, u16(1)), "duplicate", "Routing.hop_limit", 12)
for kind, name, value in [(2, "target_node", bytes(3)), (3, "origin_region", bytes(5)), (4, "allowed_regions", bytes(6)), (5, "hop_trail", b""), (7, "version_range", bytes(4)), (8, "hop_limit", b""), (9, "preferred_zone", bytes(2))]:
    R.bad("routing", f"{name.replace('_', '-')}-of-{len(value)}-bytes", "3.1", "WIRE-37", HEAD + option(kind, value), "wrong-length", f"Routing.{name}", 8)
R.bad("routing", "topic-not-utf8", "3.1", "WIRE-37 WIRE-3", HEAD + option(6, b"a\xc3"), "invalid-utf8", "Routing.topic", 8)

# --- context -------------------------------------------------------------------------------------------------------------------

C = Family("context", "Context metadata, without the length before it.")


def context_ok(name, requirement, options, **named):
    C.ok("context", name, "3.2", requirement, b"".join(option(k, v) for k, v in options), {"options": [[k, v.hex()] for k, v in options], **named})


TRACE, SPAN = bytes.fromhex("0af7651916cd43dd8448eb211c80319c"), bytes.fromhex("b7ad6b7169203331")
context_ok("nothing", "WIRE-21", [])
context_ok("trace", "WIRE-37", [(1, TRACE + SPAN + u8(1))], trace_context={"trace_id": TRACE.hex(), "span_id": SPAN.hex(), "flags": 1})
context_ok("trace-id-zero-is-absent", "WIRE-38", [(1, bytes(16) + SPAN + u8(1))])
context_ok("span-id-zero-is-absent", "WIRE-38", [(1, TRACE + bytes(8) + u8(1))])
context_ok("baggage", "WIRE-37", [(2, b"userId=alice,isProduction=false")], baggage="userId=alice,isProduction=false")
context_ok("tenant", "WIRE-37", [(3, "Bäckerei".encode())], tenant="Bäckerei")
context_ok("authentication", "WIRE-39", [(4, u32(1) + blob(b"ey.J.x") + text("{}"))], authentication={"method": 1, "token": b"ey.J.x".hex(), "claims": "{}"})
context_ok("content-type", "WIRE-37", [(5, b"application/protobuf")], content_type="application/protobuf")
context_ok("idempotency-key", "WIRE-37", [(6, bytes(range(16)))], idempotency_key=bytes(range(16)).hex())
context_ok("causal-dots", "WIRE-37", [(7, u32(1) + u32(9) + u32(2) + u32(4))], causal_dots=[[1, 9], [2, 4]])
context_ok("service-name", "WIRE-37", [(8, b"acme.shop.v1.Cart")], service_name="acme.shop.v1.Cart")
context_ok("padding", "WIRE-37", [(9, bytes(61))], padding=61)
context_ok("custom", "WIRE-40", [(0x7F, text("x-request") + blob(b"\x00\xff"))], custom=[["x-request", "00ff"]])
context_ok("custom-repeated-in-order", "WIRE-40 WIRE-36", [(0x7F, text("k") + blob(b"2")), (3, b"t"), (0x7F, text("k") + blob(b"1")), (0x7F, text("") + blob(b""))], tenant="t", custom=[["k", "32"], ["k", "31"], ["", ""]])
context_ok("unknown-ignorable-kept", "WIRE-35", [(0x81, b"new"), (0x81, b"new")])
C.bad("context", "option-without-length", "3.2", "WIRE-33", u8(3), "truncated", "Context.tenant", 0)
C.bad("context", "option-past-end", "3.2", "WIRE-33", option(5, b"a/b") + u8(3) + u16(2) + b"x", "length-past-end", "Context.tenant", 6)
C.bad("context", "option-kind-zero", "3.2", "WIRE-34", bytes(3), "reserved", "Context.option", 0)
C.bad("context", "option-kind-unknown", "3.2", "WIRE-34", option(10, b"x"), "reserved", "Context.option", 0)
C.bad("context", "option-kind-0x7e", "3.2", "WIRE-34", option(0x7E, b"x"), "reserved", "Context.option", 0)
C.bad("context", "option-twice", "3.2", "WIRE-36", option(3, b"a") + option(3, b"b"), "duplicate", "Context.tenant", 4)
C.bad("context", "trace-of-26-bytes", "3.2", "WIRE-37", option(1, bytes(26)), "wrong-length", "Context.trace_context", 0)
C.bad("context", "half-a-dot", "3.2", "WIRE-37", option(7, bytes(12)), "wrong-length", "Context.causal_dots", 0)
C.bad("context", "no-dot", "3.2", "WIRE-37", option(7, b""), "wrong-length", "Context.causal_dots", 0)
C.bad("context", "baggage-overlong-utf8", "3.2", "WIRE-3 WIRE-37", option(2, b"\xc0\xaf"), "invalid-utf8", "Context.baggage", 0)
C.bad("context", "content-type-surrogate", "3.2", "WIRE-3 WIRE-37", option(5, b"\xed\xa0\x80"), "invalid-utf8", "Context.content_type", 0)
C.bad("context", "authentication-cut", "3.2", "WIRE-39", option(4, u32(1) + blob(b"t") + u16(0)), "truncated", "Authentication.claims", 12)
C.bad("context", "authentication-with-more", "3.2", "WIRE-39", option(4, u32(1) + blob(b"t") + blob(b"") + u8(0)), "trailing-bytes", "Authentication.end", 16)
C.bad("context", "authentication-token-past-end", "3.2", "WIRE-39 WIRE-2", option(4, u32(1) + u32(99) + bytes(9)), "length-past-end", "Authentication.token", 7)
C.bad("context", "custom-key-past-end", "3.2", "WIRE-40 WIRE-2", option(0x7F, u32(9) + b"k" + blob(b"")), "length-past-end", "Custom.key", 3)
C.bad("context", "custom-key-not-utf8", "3.2", "WIRE-40 WIRE-3", option(0x7F, blob(b"\xff") + blob(b"")), "invalid-utf8", "Custom.key", 3)
C.bad("context", "custom-without-value", "3.2", "WIRE-40", option(0x7F, text("k")), "truncated", "Custom.value", 8)
C.bad("context", "custom-with-more", "3.2", "WIRE-40 WIRE-4", option(0x7F, text("k") + blob(b"v") + b"!"), "trailing-bytes", "Custom.end", 13)

# --- payload forms -------------------------------------------------------------------------------------------------------------

P = Family("payload", "Compressed payloads and batches. `limits` as for messages.")
P.ok("compressed", "zstd", "3.3", "WIRE-42", u8(1) + u32(1000) + b"zzz", {"algorithm": 1, "original_length": 1000, "bytes": b"zzz".hex()})
P.ok("compressed", "dictionary-empty", "3.3", "WIRE-42", u8(5) + u32(0), {"algorithm": 5, "original_length": 0, "bytes": ""})
P.ok("compressed", "original-at-limit", "3.3", "WIRE-42", u8(2) + u32(4194304) + b"z", {"algorithm": 2, "original_length": 4194304, "bytes": "7a"})
P.bad("compressed", "nothing", "3.3", "WIRE-4", b"", "truncated", "Compressed.algorithm", 0)
P.bad("compressed", "algorithm-zero", "3.3", "WIRE-42", u8(0) + u32(1) + b"z", "reserved", "Compressed.algorithm", 0)
P.bad("compressed", "algorithm-unknown", "3.3", "WIRE-42", u8(6) + u32(1) + b"z", "reserved", "Compressed.algorithm", 0)
P.bad("compressed", "bomb-refused-before-inflating", "3.3", "WIRE-42", u8(1) + u32(2**32 - 1) + b"z", "message-too-large", "Compressed.original_length", 1)
P.bad("compressed", "original-length-cut", "3.3", "WIRE-4", u8(1) + u16(0), "truncated", "Compressed.original_length", 1)
P.ok("batch", "empty", "3.3", "WIRE-43", u32(0), {"messages": []})
one, two = message(request=1, payload=b"a"), message(request=2, routing=u32(1) + u32(2))
P.ok("batch", "of-two", "3.3", "WIRE-43", u32(2) + one + two, {"messages": [msg(request_id=1, payload="61"), msg(request_id=2, routing={"service_id": 1, "method_id": 2, "options": []})]})
P.bad("batch", "count-cut", "3.3", "WIRE-4", u16(0), "truncated", "Batch.message_count", 0)
P.bad("batch", "count-above-limit", "3.3", "WIRE-6", u32(1025), "too-many", "Batch.message_count", 0)
P.bad("batch", "count-lies", "3.3", "WIRE-43 WIRE-5", u32(2) + one, "truncated", "Batch.message", 40)
P.bad("batch", "message-past-end", "3.3", "WIRE-43", u32(2) + one + two[:-1], "length-past-end", "Batch.message", 40)
P.bad("batch", "message-malformed", "3.3", "WIRE-43", u32(2) + one + message(kind=0), "reserved", "Message.type", 44)
P.bad("batch", "message-above-limit", "3.3", "WIRE-43 WIRE-22", u32(1) + message(payload=bytes(66)), "message-too-large", "Message.total_length", 4, limits={"message": 100})
P.bad("batch", "routing-error-counts-from-the-batch", "3.3", "WIRE-43", u32(2) + one + message(routing=bytes(8) + option(8, b"")), "wrong-length", "Routing.hop_limit", 40 + 27 + 8)
P.bad("batch", "nested", "3.3", "WIRE-44", u32(2) + one + message(flags=0x40, payload=u32(0)), "nested-batch", "Batch.message", 40)
P.bad("batch", "bytes-after-the-last", "3.3", "WIRE-4", u32(1) + one + b"\x00", "trailing-bytes", "Batch.end", 40)

# --- handshake -----------------------------------------------------------------------------------------------------------------

H = Family("handshake", "Payloads of Handshake (0x01).")


def version(major=2, minor=0, features=0, compression=0, extensions=(), count=None):
    body = b"".join(u16(i) + blob(v) for i, v in extensions)
    return u16(major) + u16(minor) + u32(features) + u32(compression) + u32(len(extensions) if count is None else count) + body


def version_json(major=2, minor=0, features=0, compression=0, extensions=(), **more):
    return {"major": major, "minor": minor, "features": features, "compression": compression, "extensions": [{"id": i, "value": v.hex()} for i, v in extensions], **more}


TOKEN = bytes(range(32))
H.ok("handshake", "offer", "4.1", "WIRE-46", u8(1) + version(features=0x0FFF, compression=0x3E), {"step": "offer", "version": version_json(features=0x0FFF, compression=0x3E)})
H.ok("handshake", "accept", "4.1", "WIRE-46", u8(2) + version(minor=1, features=0x12), {"step": "accept", "version": version_json(minor=1, features=0x12)})
H.ok("handshake", "offer-unknown-bits-kept", "4.1", "WIRE-8", u8(1) + version(major=3, minor=9, features=0x80000000, compression=1), {"step": "offer", "version": version_json(major=3, minor=9, features=0x80000000, compression=1)})
H.ok("handshake", "offer-idle-timeout", "4.1", "WIRE-49", u8(1) + version(extensions=[(1, u32(30000))]), {"step": "offer", "version": version_json(extensions=[(1, u32(30000))], idle_timeout_ms=30000)})
H.ok("handshake", "offer-idle-timeout-must-be-understood", "4.1", "WIRE-48 WIRE-49", u8(1) + version(extensions=[(0x8001, u32(1))]), {"step": "offer", "version": version_json(extensions=[(0x8001, u32(1))], idle_timeout_ms=1)})
H.ok("handshake", "offer-unknown-extension-ignored", "4.1", "WIRE-48", u8(1) + version(extensions=[(0x0700, b"new"), (0x0701, b"")]), {"step": "offer", "version": version_json(extensions=[(0x0700, b"new"), (0x0701, b"")])})
H.ok("handshake", "offer-unsupported-extension", "4.1", "WIRE-48", u8(1) + version(extensions=[(0x0700, b""), (0x8702, b"x")]), {"step": "offer", "version": version_json(extensions=[(0x0700, b""), (0x8702, b"x")], unsupported=0x8702)})
H.ok("handshake", "offer-resume-window", "4.1", "WIRE-49", u8(1) + version(features=0x40, extensions=[(2, u32(60000))]), {"step": "offer", "version": version_json(features=0x40, extensions=[(2, u32(60000))], resume_window_ms=60000)})
H.ok("handshake", "offer-64-extensions", "4.1", "WIRE-6", u8(1) + version(extensions=[(16 + i, b"") for i in range(64)]), {"step": "offer", "version": version_json(extensions=[(16 + i, b"") for i in range(64)])})
H.ok("handshake", "authenticate", "4.1", "WIRE-51", u8(3) + u32(1) + blob(b"a.b.c") + text('{"role":"reader"}'), {"step": "authenticate", "method": 1, "token": b"a.b.c".hex(), "claims": '{"role":"reader"}'})
H.ok("handshake", "authenticate-none", "4.1", "WIRE-51", u8(3) + bytes(12), {"step": "authenticate", "method": 0, "token": "", "claims": ""})
H.ok("handshake", "authenticate-unknown-method-kept", "4.1", "WIRE-8", u8(3) + u32(77) + blob(b"\xff") + text(""), {"step": "authenticate", "method": 77, "token": "ff", "claims": ""})
H.ok("handshake", "challenge", "4.1", "WIRE-46", u8(4) + blob(bytes(range(8))), {"step": "challenge", "challenge": bytes(range(8)).hex()})
H.ok("handshake", "authenticated", "4.1", "WIRE-46", u8(5) + u32(12) + TOKEN + u64(1764000000000000) + text('{"sub":"a"}'), {"step": "authenticated", "session": 12, "token": TOKEN.hex(), "expires": "1764000000000000", "claims": '{"sub":"a"}'})
H.ok("handshake", "refused", "4.1", "WIRE-46 WIRE-50", u8(6) + u32(0x101) + u32(2**32 - 1) + text("no shared version") + u32(1) + text("remus.v2.Versions") + blob(u16(2) + u16(1) + u16(3) + u16(0)),
     {"step": "refused", "error": {"code": 0x101, "retry_after_ms": None, "message": "no shared version", "details": [["remus.v2.Versions", "0002000100030000"]]}, "spoken": [[2, 1], [3, 0]]})
H.ok("handshake", "resume", "4.1", "WIRE-67", u8(7) + TOKEN + u32(2) + u16(2) + u64(2**40) + u16(0) + u64(5), {"step": "resume", "token": TOKEN.hex(), "lanes": [[2, str(2**40)], [0, "5"]]})
H.ok("handshake", "resume-without-lanes", "4.1", "WIRE-67", u8(7) + TOKEN + u32(0), {"step": "resume", "token": TOKEN.hex(), "lanes": []})
H.ok("handshake", "resume-all-lanes", "4.1", "WIRE-6 WIRE-67", u8(7) + TOKEN + u32(16) + b"".join(u16(15 - n) + u64(n) for n in range(16)), {"step": "resume", "token": TOKEN.hex(), "lanes": [[15 - n, str(n)] for n in range(16)]})
H.ok("handshake", "resumed", "4.1", "WIRE-67", u8(8) + u32(1) + u16(15) + u64(0), {"step": "resumed", "lanes": [[15, "0"]]})
H.bad("handshake", "nothing", "4.1", "WIRE-4", b"", "truncated", "Handshake.step", 0)
H.bad("handshake", "step-zero", "4.1", "WIRE-45 WIRE-7", u8(0), "reserved", "Handshake.step", 0)
H.bad("handshake", "step-nine", "4.1", "WIRE-45", u8(9) + bytes(40), "reserved", "Handshake.step", 0)
OFFER = u8(1) + version(extensions=[(1, u32(9))])
for cut, field, offset in [(2, "major", 1), (3, "minor", 3), (8, "features", 5), (12, "compression", 9), (16, "extension_count", 13), (18, "extension_id", 17), (21, "extension_value", 19)]:
    H.bad("handshake", f"offer-cut-at-{cut}", "4.1", "WIRE-4 WIRE-46", OFFER[:cut], "truncated", f"Version.{field}", offset)
H.bad("handshake", "offer-extension-past-end", "4.1", "WIRE-2", OFFER[:26], "length-past-end", "Version.extension_value", 19)
H.bad("handshake", "offer-with-more", "4.1", "WIRE-4", OFFER + b"\x00", "trailing-bytes", "Handshake.end", 27)
H.bad("handshake", "offer-65-extensions", "4.1", "WIRE-6", u8(1) + version(extensions=[(2 + i, b"") for i in range(65)]), "too-many", "Version.extension_count", 13)
H.bad("handshake", "offer-4-billion-extensions", "4.1", "WIRE-5 WIRE-6", u8(1) + version(count=2**32 - 1), "too-many", "Version.extension_count", 13)
H.bad("handshake", "offer-extension-twice", "4.1", "WIRE-47", u8(1) + version(extensions=[(5, b"a"), (5, b"a")]), "duplicate", "Version.extension_id", 24)
H.bad("handshake", "offer-extension-twice-but-for-the-top-bit", "4.1", "WIRE-47", u8(1) + version(extensions=[(5, b"a"), (0x8005, b"a")]), "duplicate", "Version.extension_id", 24)
H.bad("handshake", "offer-idle-timeout-of-2-bytes", "4.1", "WIRE-49", u8(1) + version(extensions=[(1, u16(30))]), "wrong-length", "Version.extension_value", 19)
H.bad("handshake", "accept-idle-timeout-of-8-bytes", "4.1", "WIRE-49", u8(2) + version(extensions=[(0x8001, u64(30))]), "wrong-length", "Version.extension_value", 19)
H.bad("handshake", "authenticate-claims-not-utf8", "4.1", "WIRE-51 WIRE-3", u8(3) + u32(1) + blob(b"") + blob(b"\x80"), "invalid-utf8", "Authentication.claims", 9)
H.bad("handshake", "authenticate-token-past-end", "4.1", "WIRE-51 WIRE-2", u8(3) + u32(1) + u32(1), "length-past-end", "Authentication.token", 5)
H.bad("handshake", "challenge-past-end", "4.1", "WIRE-2", u8(4) + u32(8) + bytes(7), "length-past-end", "Handshake.challenge", 1)
H.bad("handshake", "authenticated-token-cut", "4.1", "WIRE-46", u8(5) + u32(12) + TOKEN[:31], "truncated", "Handshake.token", 5)
H.bad("handshake", "authenticated-expires-cut", "4.1", "WIRE-46", u8(5) + u32(12) + TOKEN + u32(0), "truncated", "Handshake.expires", 37)
H.bad("handshake", "refused-with-ok", "4.1", "WIRE-59", u8(6) + u32(0) + u32(0) + text("") + u32(0), "reserved", "Error.code", 1)
H.bad("handshake", "resume-count-lies", "4.1", "WIRE-5 WIRE-67", u8(7) + TOKEN + u32(16), "truncated", "Handshake.lane", 37)
H.bad("handshake", "resume-count-above-limit", "4.1", "WIRE-6", u8(7) + TOKEN + u32(17), "too-many", "Handshake.lane_count", 33)
H.bad("handshake", "resume-lane-above-15", "4.1", "WIRE-67 WIRE-66", u8(7) + TOKEN + u32(1) + u16(16) + u64(5), "reserved", "Handshake.lane", 37)
H.bad("handshake", "resumed-lane-twice", "4.1", "WIRE-67", u8(8) + u32(3) + u16(9) + u64(5) + u16(0) + u64(5) + u16(9) + u64(6), "duplicate", "Handshake.lane", 25)
H.bad("handshake", "resumed-offset-cut", "4.1", "WIRE-67", u8(8) + u32(1) + u16(9) + u32(0), "truncated", "Handshake.offset", 7)

# --- other control records -----------------------------------------------------------------------------------------------------

K = Family("control", "Payloads of Heartbeat (0x02), Shutdown (0x03), Schema (0x04) and Capability (0x05).")
K.ok("heartbeat", "first", "4.2", "WIRE-53", bytes(20), {"origin": "0", "received": "0", "load": 0})
K.ok("heartbeat", "later", "4.2", "WIRE-53 WIRE-1", u64(1764000000000001) + u64(1764000000000777) + u8(10) + u8(20) + u8(30) + u8(40), {"origin": "1764000000000001", "received": "1764000000000777", "load": 0x0A141E28})
K.bad("heartbeat", "short", "4.2", "WIRE-53", bytes(19), "truncated", "Heartbeat.load", 16)
K.bad("heartbeat", "cut-at-received", "4.2", "WIRE-53", bytes(15), "truncated", "Heartbeat.received", 8)
K.bad("heartbeat", "long", "4.2", "WIRE-53 WIRE-4", bytes(21), "trailing-bytes", "Heartbeat.end", 20)
K.ok("shutdown", "in-order", "4.2", "WIRE-54", u32(0) + u32(5000) + u32(41) + text("deploy") + text("https://b.example/"), {"code": 0, "grace_ms": 5000, "last_request": 41, "reason": "deploy", "redirect": "https://b.example/"})
K.ok("shutdown", "for-flood", "4.2", "WIRE-54", u32(0x111) + u32(0) + u32(0) + text("") + text(""), {"code": 0x111, "grace_ms": 0, "last_request": 0, "reason": "", "redirect": ""})
K.bad("shutdown", "without-redirect", "4.2", "WIRE-54", u32(0) + u32(0) + u32(0) + text("x"), "truncated", "Shutdown.redirect", 17)
K.bad("shutdown", "reason-not-utf8", "4.2", "WIRE-54 WIRE-3", bytes(12) + blob(b"\xfe") + text(""), "invalid-utf8", "Shutdown.reason", 12)
K.bad("shutdown", "redirect-past-end", "4.2", "WIRE-54 WIRE-2", bytes(16) + u32(1), "length-past-end", "Shutdown.redirect", 16)
K.bad("shutdown", "with-more", "4.2", "WIRE-54 WIRE-4", bytes(21), "trailing-bytes", "Shutdown.end", 20)
DESCRIPTOR = b"\x0a\x03a.b"
ENTRY = u32(CART) + u16(1) + u16(2) + sha256(DESCRIPTOR)
ENTRY_JSON = {"service_id": CART, "major": 1, "minor": 2, "digest": sha256(DESCRIPTOR).hex()}
K.ok("schema", "offer-empty", "4.2", "WIRE-55", u8(1) + u32(0), {"step": "offer", "entries": []})
K.ok("schema", "offer", "4.2", "WIRE-56", u8(1) + u32(2) + ENTRY + u32(1) + u16(0) + u16(0) + bytes(32), {"step": "offer", "entries": [ENTRY_JSON, {"service_id": 1, "major": 0, "minor": 0, "digest": "00" * 32}]})
K.ok("schema", "want", "4.2", "WIRE-55", u8(2) + u32(1) + ENTRY, {"step": "want", "entries": [ENTRY_JSON]})
K.ok("schema", "give", "4.2", "WIRE-56", u8(3) + u32(1) + ENTRY + blob(DESCRIPTOR), {"step": "give", "entries": [{**ENTRY_JSON, "descriptor": DESCRIPTOR.hex(), "genuine": True}]})
K.ok("schema", "give-of-another-digest", "4.2", "WIRE-56", u8(3) + u32(1) + ENTRY + blob(b"forged"), {"step": "give", "entries": [{**ENTRY_JSON, "descriptor": b"forged".hex(), "genuine": False}]})
K.bad("schema", "step-zero", "4.2", "WIRE-55", u8(0) + u32(0), "reserved", "Schema.step", 0)
K.bad("schema", "step-four", "4.2", "WIRE-55", u8(4) + u32(0), "reserved", "Schema.step", 0)
K.bad("schema", "count-above-limit", "4.2", "WIRE-6", u8(1) + u32(4097), "too-many", "Schema.entry_count", 1)
K.bad("schema", "count-lies", "4.2", "WIRE-5", u8(1) + u32(4096) + ENTRY, "truncated", "Schema.service_id", 45)
K.bad("schema", "digest-cut", "4.2", "WIRE-4", u8(2) + u32(1) + ENTRY[:-1], "truncated", "Schema.digest", 13)
K.bad("schema", "give-past-end", "4.2", "WIRE-2", u8(3) + u32(1) + ENTRY + u32(7) + DESCRIPTOR, "length-past-end", "Schema.descriptor", 45)
K.bad("schema", "want-with-more", "4.2", "WIRE-4", u8(2) + u32(0) + b"\x00", "trailing-bytes", "Schema.end", 5)


def capability(max_frame=65536):
    return u32(0xA1) + u32(2) + u32(0) + u32(max_frame) + u32(4194304) + u32(256) + u32(1024) + u32(262144) + u32(1048576) + u32(2000) + u32(4194304) + u32(125000) + u32(0)


def capability_json(max_frame=65536):
    return {"node": 0xA1, "node_type": 2, "capabilities": 0, "max_frame": max_frame, "max_message": 4194304, "max_streams": 256, "max_calls": 1024, "stream_window": 262144,
            "session_window": 1048576, "resources": {"cpu": 2000, "memory": 4194304, "network": 125000, "storage": 0}}


K.ok("capability", "usual", "4.2", "WIRE-57", capability(), capability_json())
K.ok("capability", "smallest-frame", "4.2", "WIRE-58", capability(256), capability_json(256))
K.ok("capability", "largest-frame", "4.2", "WIRE-58 WIRE-13", capability(16777216), capability_json(16777216))
K.ok("capability", "unknown-node-type-kept", "4.2", "WIRE-8", u32(1) + u32(99) + u32(0xFFFFFFFF) + u32(65536) + bytes(36), {"node": 1, "node_type": 99, "capabilities": 0xFFFFFFFF, "max_frame": 65536, "max_message": 0, "max_streams": 0, "max_calls": 0,
     "stream_window": 0, "session_window": 0, "resources": {"cpu": 0, "memory": 0, "network": 0, "storage": 0}})
K.bad("capability", "frame-too-small", "4.2", "WIRE-58", capability(255), "reserved", "Capability.max_frame", 12)
K.bad("capability", "frame-too-large", "4.2", "WIRE-58", capability(16777217), "too-many", "Capability.max_frame", 12)
K.bad("capability", "without-session-window", "4.2", "WIRE-57", capability()[:35], "truncated", "Capability.session_window", 32)
K.bad("capability", "without-storage", "4.2", "WIRE-57", capability()[:51], "truncated", "Resources.storage", 48)
K.bad("capability", "with-more", "4.2", "WIRE-57 WIRE-4", capability() + b"\x00", "trailing-bytes", "Capability.end", 52)

# --- data operations -----------------------------------------------------------------------------------------------------------

D = Family("data", "Payloads of Error (0x12) and StreamEnd (0x14).")


def error(code, retry, message, details=(), count=None):
    return u32(code) + u32(retry) + text(message) + u32(len(details) if count is None else count) + b"".join(text(t) + blob(v) for t, v in details)


def error_json(code, retry, message, details=()):
    return {"code": code, "retry_after_ms": retry, "message": message, "details": [[t, v.hex()] for t, v in details]}


NEVER = 2**32 - 1
D.ok("error", "not-found", "4.3", "WIRE-59 WIRE-60", error(5, NEVER, "no such item"), error_json(5, None, "no such item"))
D.ok("error", "retry-at-once", "4.3", "WIRE-60", error(14, 0, ""), error_json(14, 0, ""))
D.ok("error", "retry-latest", "4.3", "WIRE-60", error(14, NEVER - 1, ""), error_json(14, NEVER - 1, ""))
D.ok("error", "details", "4.3", "WIRE-59", error(0x10E, 250, "Schlange voll", [("acme.Queue", b"\x01"), ("", b""), ("acme.Queue", b"\x02")]), error_json(0x10E, 250, "Schlange voll", [("acme.Queue", b"\x01"), ("", b""), ("acme.Queue", b"\x02")]))
D.ok("error", "unknown-code-kept", "4.3", "WIRE-8", error(0xABCDEF01, NEVER, "?"), error_json(0xABCDEF01, None, "?"))
D.ok("error", "32-details", "4.3", "WIRE-6", error(2, NEVER, "", [("t", b"")] * 32), error_json(2, None, "", [("t", b"")] * 32))
D.bad("error", "nothing", "4.3", "WIRE-4", b"", "truncated", "Error.code", 0)
D.bad("error", "code-ok", "4.3", "WIRE-59", error(0, NEVER, ""), "reserved", "Error.code", 0)
D.bad("error", "33-details", "4.3", "WIRE-6", error(2, NEVER, "", [("t", b"")] * 33), "too-many", "Error.detail_count", 12)
D.bad("error", "detail-count-lies", "4.3", "WIRE-5 WIRE-59", error(2, NEVER, "", [("t", b"")], count=2), "truncated", "Error.detail_type", 25)
D.bad("error", "message-past-end", "4.3", "WIRE-2", u32(2) + u32(0) + u32(2**32 - 1) + b"x", "length-past-end", "Error.message", 8)
D.bad("error", "message-not-utf8", "4.3", "WIRE-3", u32(2) + u32(0) + blob(b"\xf5") + u32(0), "invalid-utf8", "Error.message", 8)
D.bad("error", "detail-value-cut", "4.3", "WIRE-4", error(2, 0, "", [("t", b"")])[:-1], "truncated", "Error.detail_value", 21)
D.bad("error", "with-more", "4.3", "WIRE-4", error(2, 0, "") + b"\x00", "trailing-bytes", "Error.end", 16)
D.ok("stream_end", "well", "4.3", "WIRE-61", b"", {"error": None})
D.ok("stream_end", "failed", "4.3", "WIRE-61", error(1, NEVER, "gone"), {"error": error_json(1, None, "gone")})
D.bad("stream_end", "one-byte", "4.3", "WIRE-61", b"\x00", "truncated", "Error.code", 0)
D.bad("stream_end", "with-more", "4.3", "WIRE-61 WIRE-4", error(1, NEVER, "gone") + b"!", "trailing-bytes", "Error.end", 20)

# --- discovery -----------------------------------------------------------------------------------------------------------------

S = Family("discovery", "Payloads of Announce (0x40) and Update (0x42): `service`; of Query (0x41); and of the answer to it.")


def endpoint(url="https://a.example:4433/remus/v2"):
    return u32(0xA1) + u32(49) + u32(3) + u16(1) + u16(100) + u32(25) + text(url)


def endpoint_json(url="https://a.example:4433/remus/v2"):
    return {"node": 0xA1, "region": 49, "zone": 3, "transport": 1, "weight": 100, "cost": 25, "url": url}


def service(endpoints=(), count=None):
    return u32(CART) + u8(1) + u8(4) + u16(700) + u32(5) + bytes([1, 2, 3, 4]) + bytes([9, 8, 7, 6]) + u32(len(endpoints) if count is None else count) + b"".join(endpoints)


def service_json(endpoints=()):
    return {"service_id": CART, "version": "1.4.700", "capabilities": 5, "health": [1, 2, 3, 4], "load": [9, 8, 7, 6], "endpoints": list(endpoints)}


S.ok("service", "without-endpoint", "4.4", "WIRE-62", service(), service_json())
S.ok("service", "two-endpoints", "4.4", "WIRE-62", service([endpoint(), endpoint("")]), service_json([endpoint_json(), endpoint_json("")]))
S.ok("service", "unknown-health-kept", "4.4", "WIRE-8 WIRE-62", u32(1) + u32(0) + u32(0) + bytes([0, 5, 255, 1]) + u32(0) + u32(0), {"service_id": 1, "version": "0.0.0", "capabilities": 0, "health": [0, 5, 255, 1], "load": [0, 0, 0, 0], "endpoints": []})
S.bad("service", "health-cut", "4.4", "WIRE-62", service()[:15], "truncated", "Service.health", 12)
S.bad("service", "257-endpoints", "4.4", "WIRE-6", service(count=257), "too-many", "Service.endpoint_count", 20)
S.bad("service", "endpoint-count-lies", "4.4", "WIRE-5", service([endpoint("")], count=256), "truncated", "Endpoint.node", 48)
S.bad("service", "endpoint-url-past-end", "4.4", "WIRE-2", service([endpoint("abc")])[:-1], "length-past-end", "Endpoint.url", 44)
S.bad("service", "endpoint-url-not-utf8", "4.4", "WIRE-3", service([endpoint("")[:-4] + blob(b"\xc3\x28")]), "invalid-utf8", "Endpoint.url", 44)
S.bad("service", "with-more", "4.4", "WIRE-4", service() + b"\x00", "trailing-bytes", "Service.end", 24)


def query(watch=0, filter=""):
    return u32(CART) + u8(1) + u8(0) + u16(0) + u32(1) + u8(watch) + u32(10) + text(filter)


S.ok("query", "one-service", "4.4", "WIRE-63", query(), {"service_id": CART, "min_version": "1.0.0", "capabilities": 1, "watch": False, "max_answers": 10, "filter": ""})
S.ok("query", "watch-with-filter", "4.4", "WIRE-63", query(1, "load.cpu < 128"), {"service_id": CART, "min_version": "1.0.0", "capabilities": 1, "watch": True, "max_answers": 10, "filter": "load.cpu < 128"})
S.ok("query", "everything", "4.4", "WIRE-63", bytes(21), {"service_id": 0, "min_version": "0.0.0", "capabilities": 0, "watch": False, "max_answers": 0, "filter": ""})
S.bad("query", "watch-of-two", "4.4", "WIRE-63 WIRE-7", query(2), "reserved", "Query.watch", 12)
S.bad("query", "without-filter", "4.4", "WIRE-63", query()[:-1], "truncated", "Query.filter", 17)
S.bad("query", "with-more", "4.4", "WIRE-63 WIRE-4", query() + b"\x00", "trailing-bytes", "Query.end", 21)
S.ok("query_answer", "nothing-found", "4.4", "WIRE-64", u32(0), {"records": []})
S.ok("query_answer", "two-found", "4.4", "WIRE-64", u32(2) + service([endpoint()]) + service(), {"records": [service_json([endpoint_json()]), service_json()]})
S.bad("query_answer", "1025-records", "4.4", "WIRE-6", u32(1025), "too-many", "QueryAnswer.record_count", 0)
S.bad("query_answer", "count-lies", "4.4", "WIRE-5 WIRE-64", u32(2) + service(), "truncated", "Service.service_id", 28)
S.bad("query_answer", "with-more", "4.4", "WIRE-64 WIRE-4", u32(0) + b"\x00", "trailing-bytes", "QueryAnswer.end", 4)

# --- values --------------------------------------------------------------------------------------------------------------------

V = Family("values", "Fields that mean more than the number they are. `id`: hex is the name in UTF-8. `ttl`, `priority`: hex is the field. `retry`: hex is an error code.")
for name in ["acme.shop.v1.Cart", "acme.shop.v1.Cart/Add", "remus.v2.Topics", "chat.room", "höhe.über.null", ""]:
    V.ok("id", f"id-of-{name or 'nothing'}", "3.1", "WIRE-32", name.encode(), int.from_bytes(sha256(name.encode())[:4], "big"))
for wire, ms in [(0x0000, None), (0x0001, 1), (0x3FFF, 16383), (0x4001, 100), (0x40A4, 16400), (0x7FFF, 1638300), (0x8001, 1000), (0xBFFF, 16383000), (0xC001, 60000), (0xFFFF, 982980000)]:
    V.ok("ttl", f"ttl-{wire:04x}", "3", "WIRE-28" if wire else "WIRE-29", u16(wire), None if ms is None else str(ms))
for wire in (0x4000, 0x8000, 0xC000):
    V.ok("ttl", f"ttl-spent-{wire:04x}", "3", "WIRE-29", u16(wire), "0")
for micros, wire in [(0, 0x4000), (1, 0x0001), (1000, 0x0001), (1001, 0x0002), (16383000, 0x3FFF), (16383001, 0x40A4), (16384000, 0x40A4), (1638300000, 0x7FFF), (1638300001, 0x8667), (16383000000, 0xBFFF), (16383000001, 0xC112), (982980000000, 0xFFFF), (10**15, 0xFFFF)]:
    V.ok("ttl_of", f"ttl-of-{micros}-us", "3", "WIRE-30" if micros else "WIRE-29", u64(micros), wire)
for wire, level, order in [(0, 0, 0), (0x6000, 3, 0), (0x6001, 3, 1), (0xC000, 6, 0), (0xFFFF, 7, 8191)]:
    V.ok("priority", f"priority-{wire:04x}", "3", "WIRE-27", u16(wire), {"class": level, "order": order})
RETRYABLE = {14: False, 0x106: False, 0x10A: True, 0x10B: True, 0x10E: True, 0x110: True}
for code in list(range(0, 17)) + list(range(0x100, 0x116)) + [0x7777]:
    V.ok("retry", f"retry-{code:#x}", "6.9", "WIRE-65", u32(code), {"retryable": code in RETRYABLE, "refused_before_it_ran": RETRYABLE.get(code, False)})

total = sum(family.write() for family in [F, M, R, C, P, H, K, D, S, V])
print(f"total: {total}")
