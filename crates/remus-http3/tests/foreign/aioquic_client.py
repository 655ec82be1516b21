"""Drives aioquic's HTTP/3 and WebTransport client against the server under test.

Reads the port on the first line of standard input and the server's certificate (PEM) from the rest.
Prints one line for each thing that was checked; the Rust test compares them. Any failure raises.
"""

import asyncio
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.h3.connection import FrameType, H3Connection
from aioquic.h3.events import (
    DataReceived,
    DatagramReceived,
    HeadersReceived,
    WebTransportStreamDataReceived,
)
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamReset

CLOSE = 0x2843
DRAIN = 0x78AE


class Client(QuicConnectionProtocol):
    """Keeps what arrives, and wakes who waits for it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.events = []
        self.changed = asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, StreamReset):
            self.events.append(event)
        self.events.extend(self.http.handle_event(event))
        self.changed.set()

    async def until(self, look):
        """Waits until `look` finds something among the events."""
        while True:
            found = look()
            if found is not None:
                return found
            self.changed.clear()
            await self.changed.wait()

    def on(self, kind, stream_id):
        return [e for e in self.events if isinstance(e, kind) and e.stream_id == stream_id]

    async def headers(self, stream_id):
        found = await self.until(lambda: next(iter(self.on(HeadersReceived, stream_id)), None))
        return dict(found.headers)

    async def body(self, stream_id, kind=DataReceived):
        """All data of a stream, once it has ended."""

        def whole():
            events = self.on(kind, stream_id) + self.on(HeadersReceived, stream_id)
            if not any(e.stream_ended for e in events):
                return None
            return b"".join(e.data for e in self.on(kind, stream_id))

        return await self.until(whole)

    def request(self, method, path, *more, end_stream=False):
        stream_id = self._quic.get_next_available_stream_id()
        head = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path),
        ]
        self.http.send_headers(stream_id, head + list(more), end_stream)
        return stream_id

    async def session(self, path, protocol=b"webtransport"):
        stream_id = self.request(b"CONNECT", path, (b":protocol", protocol))
        self.transmit()
        return stream_id, await self.headers(stream_id)

    def open_bi(self, session_id):
        stream_id = self.http.create_webtransport_stream(session_id)
        # aioquic does not note that replies on this stream are WebTransport's, not frames.
        with self.http._get_or_create_stream(stream_id) as stream:
            stream.frame_type = FrameType.WEBTRANSPORT_STREAM
            stream.session_id = session_id
        return stream_id


def capsules(data):
    """The capsules in the body of a CONNECT stream: type and value."""
    buffer = Buffer(data=data)
    found = []
    while not buffer.eof():
        kind, length = buffer.pull_uint_var(), buffer.pull_uint_var()
        found.append((kind, buffer.pull_bytes(length)))
    return found


def capsule(kind, value):
    return encode_uint_var(kind) + encode_uint_var(len(value)) + value


async def check(client):
    settings = await client.until(lambda: client.http.received_settings)
    print("settings", " ".join(f"{int(k):#x}={v}" for k, v in sorted(settings.items())))

    stream_id = client.request(b"GET", b"/", end_stream=True)
    client.transmit()
    head, body = await client.headers(stream_id), await client.body(stream_id)
    print("get", head[b":status"].decode(), head[b"x-method"].decode(), body.decode())

    sent = bytes(range(256)) * 2000
    stream_id = client.request(b"POST", b"/")
    client.http.send_data(stream_id, sent, end_stream=True)
    client.transmit()
    body = await client.body(stream_id)
    trailers = dict(client.on(HeadersReceived, stream_id)[-1].headers)
    print("post", body == sent, trailers[b"x-end"].decode())

    session_id, head = await client.session(b"/echo")
    print("session", head[b":status"].decode())

    stream_id = client.open_bi(session_id)
    client._quic.send_stream_data(stream_id, b"both ways", end_stream=True)
    client.transmit()
    print("bi", (await client.body(stream_id, WebTransportStreamDataReceived)).decode())

    stream_id = client.http.create_webtransport_stream(session_id, is_unidirectional=True)
    client._quic.send_stream_data(stream_id, b"one way", end_stream=True)
    client.transmit()
    answer = await client.until(
        lambda: next(
            (
                e.stream_id
                for e in client.events
                if isinstance(e, WebTransportStreamDataReceived) and e.stream_id % 4 == 3
            ),
            None,
        )
    )
    print("uni", (await client.body(answer, WebTransportStreamDataReceived)).decode())

    client.http.send_datagram(session_id, b"datagram")
    client.transmit()
    answer = await client.until(lambda: next(iter(client.on(DatagramReceived, session_id)), None))
    print("datagram", answer.data.decode())

    # A GREASE capsule, then CLOSE in two DATA frames, then the end of the stream.
    closing = capsule(0x1F * 9 + 0x17, b"grease")
    closing += capsule(CLOSE, (42).to_bytes(4, "big") + b"from aioquic")
    client.http.send_data(session_id, closing[:15], end_stream=False)
    client.http.send_data(session_id, closing[15:], end_stream=True)
    client.transmit()
    await client.body(session_id)
    print("closed", "the server ends the CONNECT stream too")

    session_id, head = await client.session(b"/close", b"webtransport-h3")
    client.http.send_datagram(session_id, b"now")
    client.transmit()
    ((kind, value),) = capsules(await client.body(session_id))
    print("close", kind == CLOSE, int.from_bytes(value[:4], "big"), value[4:].decode())

    session_id, head = await client.session(b"/drain")
    body = await client.until(
        lambda: b"".join(e.data for e in client.on(DataReceived, session_id)) or None
    )
    print("drain", capsules(body) == [(DRAIN, b"")])

    _, head = await client.session(b"/refuse")
    print("refused", head[b":status"].decode())


async def main():
    port, pem = int(sys.stdin.readline()), sys.stdin.read()
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3"],
        cadata=pem.encode(),
        verify_mode=ssl.CERT_REQUIRED,
        server_name="localhost",
        max_datagram_frame_size=65536,
    )
    async with connect(
        "127.0.0.1", port, configuration=configuration, create_protocol=Client
    ) as client:
        await asyncio.wait_for(check(client), 60)


asyncio.run(main())
