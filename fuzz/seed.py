#!/usr/bin/env python3
"""Copies the bytes of every test vector into the corpus of the targets that read them, and adds streams of HTTP/3.

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


def varint(number):
    """RFC 9000 16, the shortest form."""
    for bits, length in ((6, 1), (14, 2), (30, 4), (62, 8)):
        if number < 1 << bits:
            return (number | (length.bit_length() - 1) << (8 * length - 2)).to_bytes(length, "big")
    raise ValueError(number)


def tlv(kind, payload):
    """A frame of HTTP/3, or a capsule."""
    return varint(kind) + varint(len(payload)) + payload


def section(*fields):
    """A field section of literals, none of them Huffman coded. RFC 9204 4.5.6"""

    def integer(number, bits, flags):
        most = (1 << bits) - 1
        if number < most:
            return bytes([flags | number])
        number -= most
        out = [flags | most]
        while number > 0x7F:
            out.append(0x80 | number & 0x7F)
            number >>= 7
        return bytes(out + [number])

    out = b"\0\0"
    for name, value in fields:
        out += integer(len(name), 3, 0x20) + name.encode() + integer(len(value), 7, 0) + value.encode()
    return out


REQUEST = [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/x?y")]
SESSION = [
    (":method", "CONNECT"),
    (":protocol", "webtransport"),
    (":scheme", "https"),
    (":authority", "a.example:4433"),
    (":path", "/remus/v2"),
    ("origin", "https://b.example"),
    ("wt-available-protocols", '"remus.v2", "a\\\\b";q=1;s="x,y"'),
]
RESPONSE = [(":status", "200"), ("wt-protocol", '"remus.v2"'), ("content-length", "3")]

# What RFC 9204 B.1 and B.2, and RFC 7541 C.4.1, show; then every form of a field line once.
SECTIONS = [
    bytes.fromhex("0000510b2f696e6465782e68746d6c"),
    bytes.fromhex("03811011"),
    bytes.fromhex("0000508cf1e3c2e5f23a6ba0ab90f4ff"),
    bytes.fromhex("0000d1d7"),
    bytes.fromhex("00002f008cf1e3c2e5f23a6ba0ab90f4ff"),
    section(*REQUEST),
    section(*SESSION),
    section((":method", "CONNECT"), (":authority", "a.example:1")),
    section((":method", "OPTIONS"), (":scheme", "https"), ("host", "a.example"), (":path", "*")),
    section(*REQUEST, ("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2"), ("content-length", "3")),
    section(*RESPONSE),
    section(("x-checksum", "0a1b")),
    section(*REQUEST, ("connection", "close")),
]
# Names that an HTTP library knows by heart, in one section: a corpus would need an input for each.
NAMES = """
    accept accept-charset accept-encoding accept-language accept-ranges access-control-allow-credentials
    access-control-allow-headers access-control-allow-methods access-control-allow-origin access-control-expose-headers
    access-control-max-age access-control-request-headers access-control-request-method age allow alt-svc authorization
    cache-control cache-status cdn-cache-control content-disposition content-encoding content-language content-location
    content-range content-security-policy content-security-policy-report-only content-type cookie date dnt etag expect expires
    forwarded from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified link location
    max-forwards origin pragma proxy-authenticate proxy-authorization public-key-pins public-key-pins-report-only range referer
    referrer-policy refresh retry-after sec-websocket-accept sec-websocket-extensions sec-websocket-key sec-websocket-protocol
    sec-websocket-version server set-cookie strict-transport-security trailer upgrade-insecure-requests user-agent vary via
    warning www-authenticate x-content-type-options x-dns-prefetch-control x-frame-options x-xss-protection
""".split()
SECTIONS.append(section(*((name, "v") for name in NAMES)))
SECTIONS.append(b"\0\0" + bytes(range(0xC0, 0xFF)) + b"".join(bytes([0xFF, index]) for index in range(36)))

ENCODER_STREAMS = [bytes.fromhex("2020"), bytes.fromhex("3fbd01")]
DECODER_STREAMS = [bytes.fromhex("487fff0140"), bytes.fromhex("84")]

SETTINGS = b"".join(
    varint(setting) + varint(value)
    for setting, value in [
        (0x01, 0),
        (0x06, 65536),
        (0x07, 0),
        (0x08, 1),
        (0x33, 1),
        (0xFFD277, 1),
        (0x2B603742, 1),
        (0xC671706A, 16),
        (0x14E9CD29, 1),
        (0x2C7CF000, 1),
        (0x21, 7),
    ]
)
CAPSULES = [
    tlv(0x2843, u32(7) + b"gone"),
    tlv(0x2843, u32(0)),
    tlv(0x2843, u32(1) + b"\xff"),
    tlv(0x78AE, b"") + tlv(0x2843, u32(0)),
    tlv(0x00, b"datagram") + tlv(0x21, b"grease"),
    tlv(0x2843, bytes(3)),
    tlv(0x78AE, b"x"),
]
STREAMS = [
    SETTINGS,
    varint(0x33) + varint(2),
    tlv(0x04, SETTINGS) + tlv(0x21, b"grease") + tlv(0x07, varint(8)) + tlv(0x07, varint(4)) + tlv(0x0D, varint(1)),
    tlv(0x04, b"") + tlv(0x04, b""),
    tlv(0x04, b"") + tlv(0x03, b"\0"),
    tlv(0x04, b"") + tlv(0x00, b"x"),
    tlv(0x01, section(*REQUEST)) + tlv(0x00, b"body") + tlv(0x00, b"") + tlv(0x01, section(("x", "y"))) + tlv(0x21, b""),
    tlv(0x01, section(*RESPONSE)) + tlv(0x00, b"".join(CAPSULES[:2])),
    tlv(0x00, b"too early"),
    tlv(0x05, b"\0"),
    varint(0x41) + varint(4) + b"stream of a session",
]
HTTP3 = {"qpack": SECTIONS + ENCODER_STREAMS + DECODER_STREAMS, "capsule": CAPSULES, "h3_frame": STREAMS}


def write(target, data):
    directory = FUZZ / "corpus" / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / hashlib.sha1(data).hexdigest()).write_bytes(data)


def main():
    for path in sorted(VECTORS.glob("*.json")):
        for vector in json.loads(path.read_text())["vectors"]:
            for target, data in seeds(vector["record"], bytes.fromhex(vector["hex"])):
                write(target, data)
    for target, streams in HTTP3.items():
        for data in streams:
            write(target, data)


if __name__ == "__main__":
    main()
