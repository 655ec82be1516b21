/** WebSocket: what closes mean, and Node's own, frame by frame. Spec: carriers 2, RFC 6455. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { type AddressInfo, connect as connectSocket, type Socket } from "node:net";
import { describe, test } from "node:test";
import { closeOf, endOf } from "../src/carriers/websocket.js";
import { errorCodes } from "../src/errors.js";
import type { TlsOptions } from "../src/node/tls.js";
import { webSocketOver } from "../src/node/websocket.js";
import { deferred } from "./peer.js";

describe("closes", () => {
	test("say the session's code (CARR-11)", () => {
		assert.deepEqual(closeOf(0, ""), [1000, ""]);
		assert.deepEqual(closeOf(errorCodes.LOSS_OF_SESSION, "gone"), [4262, "gone"]);
		assert.deepEqual(closeOf(998, "x"), [4998, "x"]);
		assert.deepEqual(closeOf(70_000, "x"), [4999, "70000: x"]);
	});

	test("have a reason of at most 123 bytes, not cut within a character", () => {
		for (const reason of [
			"a".repeat(200),
			"é".repeat(100),
			`a${"é".repeat(100)}`,
			"€".repeat(60),
			"🙂".repeat(40),
			`abc${"🙂".repeat(40)}`,
		]) {
			const [, cut] = closeOf(1, reason);
			assert.ok(reason.startsWith(cut), cut);
			const size = Buffer.byteLength(cut);
			assert.ok(size <= 123 && size > 119, String(size));
		}
	});

	test("are read back (carriers 2.1)", () => {
		assert.equal(endOf(1000, "").code, 0);
		assert.equal(endOf(4262, "").code, errorCodes.LOSS_OF_SESSION);
		assert.equal(endOf(4999, "70000: x").code, 70_000);
		assert.equal(endOf(4999, "what").code, errorCodes.INTERNAL);
		for (const code of [1002, 1003, 1007]) assert.equal(endOf(code, "").code, errorCodes.MALFORMED);
		assert.equal(endOf(1009, "").code, errorCodes.FRAME_TOO_LARGE);
		for (const code of [1001, 1005, 1006, 1011, 3000, 4000]) assert.equal(endOf(code, "").code, undefined);
	});
});

interface Frame {
	readonly first: number;
	readonly payload: Buffer;
}

/** A server that takes the upgrade, and then speaks by hand. */
class Server {
	readonly #server = createServer();
	#socket: Socket | undefined;
	readonly #frames: Frame[] = [];
	#arrived = deferred();
	readonly ended = deferred();

	static async listen(accept = true, head: Buffer = Buffer.alloc(0)): Promise<Server> {
		const server = new Server();
		server.#server.on("upgrade", (request, socket: Socket) => {
			server.#socket = socket;
			const key = createHash("sha1").update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
			socket.write(
				`HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: ${accept ? key : "wrong"}\r\nsec-websocket-protocol: remus.v2\r\n\r\n`,
			);
			if (head.length > 0) socket.write(head);
			let bytes = Buffer.alloc(0);
			socket.on("data", (data: Buffer) => {
				bytes = Buffer.concat([bytes, data]);
				for (;;) {
					const frame = unmask(bytes);
					if (!frame) break;
					bytes = bytes.subarray(frame.size);
					server.#frames.push(frame);
					server.#arrived.resolve();
					server.#arrived = deferred();
				}
			});
			socket.on("error", () => {});
			socket.on("end", () => server.ended.resolve());
		});
		server.#server.on("request", (_request, response) => response.writeHead(426).end());
		await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", resolve));
		return server;
	}

	/** As if there were TLS. */
	get tls(): TlsOptions {
		const { port } = this.#server.address() as AddressInfo;
		const createConnection = (): Socket => connectSocket(port, "127.0.0.1");
		return { connection: { createConnection } as TlsOptions["connection"] };
	}

	send(...parts: (Buffer | number[])[]): void {
		this.#socket?.write(Buffer.concat(parts.map((part) => Buffer.from(part))));
	}

	async next(): Promise<Frame> {
		for (;;) {
			const frame = this.#frames.shift();
			if (frame) return frame;
			await this.#arrived.promise;
		}
	}

	cut(): void {
		this.#socket?.destroy();
	}

	close(): void {
		this.#socket?.destroy();
		this.#server.close();
	}
}

function unmask(bytes: Buffer): (Frame & { readonly size: number }) | undefined {
	if (bytes.length < 2) return undefined;
	const second = bytes.readUInt8(1);
	assert.ok(second & 0x80, "a client masks");
	let size = second & 0x7f;
	let at = 2;
	if (size === 126) {
		if (bytes.length < 4) return undefined;
		size = bytes.readUInt16BE(2);
		at = 4;
	} else if (size === 127) {
		if (bytes.length < 10) return undefined;
		size = Number(bytes.readBigUInt64BE(2));
		at = 10;
	}
	if (bytes.length < at + 4 + size) return undefined;
	const mask = bytes.subarray(at, at + 4);
	const payload = Buffer.from(bytes.subarray(at + 4, at + 4 + size)).map((byte, i) => byte ^ (mask[i & 3] as number));
	return { first: bytes.readUInt8(0), payload: Buffer.from(payload), size: at + 4 + size };
}

interface Heard {
	readonly socket: InstanceType<ReturnType<typeof webSocketOver>>;
	readonly messages: Buffer[];
	readonly opened: Promise<void>;
	readonly closed: Promise<{ code: number; reason: string }>;
	message(count: number): Promise<void>;
}

function listen(server: Server): Heard {
	const Class = webSocketOver(server.tls);
	const socket = new Class("wss://localhost/remus/v2/ws", ["remus.v2"]);
	const messages: Buffer[] = [];
	const opened = deferred();
	const closed = deferred<{ code: number; reason: string }>();
	let arrived = deferred();
	socket.onopen = () => opened.resolve();
	socket.onerror = () => {};
	socket.onclose = (event: { code: number; reason: string }) => closed.resolve({ code: event.code, reason: event.reason });
	socket.onmessage = (event: { data: ArrayBuffer }) => {
		messages.push(Buffer.from(event.data));
		arrived.resolve();
		arrived = deferred();
	};
	return {
		socket,
		messages,
		opened: opened.promise,
		closed: closed.promise,
		async message(count) {
			while (messages.length < count) await arrived.promise;
		},
	};
}

describe("Node's WebSocket", () => {
	test("sends binary messages of every length, masked", async () => {
		const server = await Server.listen();
		const { socket, opened } = listen(server);
		await opened;
		assert.equal(socket.protocol, "remus.v2");
		for (const size of [0, 1, 125, 126, 65_535, 65_536, 300_000]) {
			const data = new Uint8Array(size).map((_, i) => i);
			socket.send(data);
			const frame = await server.next();
			assert.equal(frame.first, 0x82);
			assert.ok(frame.payload.equals(Buffer.from(data)), String(size));
		}
		server.close();
	});

	test("takes messages of every length, in pieces, with pings between, wherever the bytes are cut", async () => {
		const server = await Server.listen();
		const { opened, messages, message } = listen(server);
		await opened;
		const long = Buffer.alloc(70_000, 7);
		const length = Buffer.alloc(8);
		length.writeBigUInt64BE(70_000n);
		server.send([0x82, 0], [0x82, 3, 1, 2, 3]);
		server.send([0x02, 2, 1, 2], [0x89, 1, 9], [0x00, 1, 3], [0x80, 1, 4]);
		server.send([0x82, 127], length, long);
		await message(4);
		assert.deepEqual([messages[0]?.length, [...(messages[1] ?? [])], [...(messages[2] ?? [])]], [0, [1, 2, 3], [1, 2, 3, 4]]);
		assert.ok(messages[3]?.equals(long));
		const pong = await server.next();
		assert.equal(pong.first, 0x8a);
		assert.deepEqual([...pong.payload], [9]);
		server.close();
	});

	test("reads what comes along with the answer to the upgrade", async () => {
		const server = await Server.listen(true, Buffer.from([0x82, 1, 5]));
		const { message, messages } = listen(server);
		await message(1);
		assert.deepEqual([...(messages[0] ?? [])], [5]);
		server.close();
	});

	test("answers a close, and tells it", async () => {
		const server = await Server.listen();
		const { opened, closed } = listen(server);
		await opened;
		server.send([0x88, 4, 0x10, 0xa6, 0x68, 0x69]);
		assert.deepEqual([...(await server.next()).payload], [0x10, 0xa6]);
		await server.ended.promise;
		server.close();
		assert.deepEqual(await closed, { code: 4262, reason: "hi" });
	});

	test("closes, and waits for the answer", async () => {
		const server = await Server.listen();
		const { socket, opened, closed } = listen(server);
		await opened;
		socket.close(4001, "why");
		const frame = await server.next();
		assert.equal(frame.first, 0x88);
		assert.equal(frame.payload.readUInt16BE(0), 4001);
		assert.equal(frame.payload.subarray(2).toString(), "why");
		server.send([0x88, 2, 0x0f, 0xa1]);
		await server.ended.promise;
		server.close();
		assert.equal((await closed).code, 4001);
	});

	test("tells a connection that breaks as 1006", async () => {
		const server = await Server.listen();
		const { opened, closed } = listen(server);
		await opened;
		server.cut();
		assert.equal((await closed).code, 1006);
		server.close();
	});

	const broken: { readonly [what: string]: [number, number[]] } = {
		"a text message": [1003, [0x81, 1, 65]],
		"a masked frame": [1002, [0x82, 0x81, 0, 0, 0, 0, 1]],
		"a reserved bit": [1002, [0xc2, 0]],
		"an unknown opcode": [1002, [0x83, 0]],
		"a ping in pieces": [1002, [0x09, 0]],
		"a continuation of nothing": [1002, [0x80, 0]],
		"a message inside a message": [1002, [0x02, 0, 0x82, 0]],
		"a message above 1 MiB, by its length alone": [1009, [0x82, 127, 0, 0, 0, 0, 0, 16, 0, 1]],
		"a message above 1 MiB, in pieces": [1009, [0x02, 1, 1, 0x80, 127, 0, 0, 0, 0, 0, 16, 0, 0]],
	};
	for (const [what, [code, bytes]] of Object.entries(broken)) {
		test(`refuses ${what} with ${code} (CARR-9)`, async () => {
			const server = await Server.listen();
			const { opened, closed } = listen(server);
			await opened;
			server.send(bytes);
			const frame = await server.next();
			assert.equal(frame.first, 0x88);
			assert.equal(frame.payload.readUInt16BE(0), code);
			assert.equal((await closed).code, code);
			server.close();
		});
	}

	test("does not open where the upgrade is answered wrongly", async () => {
		const server = await Server.listen(false);
		const { closed } = listen(server);
		assert.equal((await closed).code, 1006);
		server.close();
	});

	test("can be closed before it is open", async () => {
		const server = await Server.listen();
		const { socket, closed } = listen(server);
		socket.close();
		assert.equal((await closed).code, 1006);
		server.close();
	});
});
