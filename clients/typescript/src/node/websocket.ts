/**
 * A WebSocket for Node: the upgrade over `node:https`, then RFC 6455 by hand.
 *
 * Node 20 has no `WebSocket`, and the one of later versions can't be told which authorities to trust, which a node with a
 * certificate of its own needs. It is as much of the protocol as a client of Remus needs: binary messages, no extensions.
 */
import { createHash, randomBytes } from "node:crypto";
import type { ClientRequest, IncomingMessage } from "node:http";
import { request } from "node:https";
import type { Duplex } from "node:stream";
import type { WebSocketLike } from "../api.js";
import type { TlsOptions } from "./tls.js";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/** Largest message that is taken, in bytes, in whatever pieces it comes. Spec: CARR-3. */
const MESSAGE_MAX = 1_048_576;
/** How long a Close frame may stay unanswered, in ms. Spec: CARR-12. */
const CLOSE_MS = 2_000;

const opcodes = { CONTINUATION: 0, TEXT: 1, BINARY: 2, CLOSE: 8, PING: 9, PONG: 10 } as const;

type Handler<E> = ((event: E) => void) | null;

/** The class for these TLS options. */
export function webSocketOver(tls: TlsOptions): new (url: string, protocols: string[]) => WebSocketLike {
	return class extends NodeWebSocket {
		constructor(url: string, protocols: string[]) {
			super(url, protocols, tls);
		}
	};
}

class NodeWebSocket {
	binaryType = "arraybuffer";
	protocol = "";
	onopen: Handler<never> = null;
	onmessage: Handler<never> = null;
	onclose: Handler<never> = null;
	onerror: Handler<never> = null;
	readonly #request: ClientRequest;
	#socket: Duplex | undefined;
	#received: Buffer = Buffer.alloc(0);
	/** Of a message in pieces. */
	#parts: Buffer[] = [];
	#partsBytes = 0;
	#partsOpcode: number = opcodes.CONTINUATION;
	#closing = false;
	#over = false;
	#closeTimer: ReturnType<typeof setTimeout> | undefined;
	#end: { code: number; reason: string } = { code: 1006, reason: "" };

	constructor(url: string, protocols: string[], tls: TlsOptions) {
		const key = randomBytes(16).toString("base64");
		this.#request = request(url.replace(/^ws/, "http"), {
			...tls.connection,
			headers: {
				connection: "Upgrade",
				upgrade: "websocket",
				"sec-websocket-version": "13",
				"sec-websocket-key": key,
				"sec-websocket-protocol": protocols.join(", "),
			},
		});
		this.#request.on("error", (error) => this.#fail(error));
		this.#request.on("response", (response) => {
			response.resume();
			this.#request.destroy();
			this.#fail(new Error(`the upgrade was answered with ${response.statusCode}`));
		});
		this.#request.on("upgrade", (response, socket, head) => this.#upgraded(response, socket, head, key));
		this.#request.end();
	}

	get bufferedAmount(): number {
		return this.#socket?.writableLength ?? 0;
	}

	#upgraded(response: IncomingMessage, socket: Duplex, head: Buffer, key: string): void {
		const accept = createHash("sha1")
			.update(key + GUID)
			.digest("base64");
		socket.on("error", (error) => this.#fail(error));
		if (
			this.#over ||
			this.#closing ||
			response.headers["sec-websocket-accept"] !== accept ||
			response.headers["sec-websocket-extensions"]
		) {
			socket.destroy();
			this.#fail(new Error("the upgrade was answered wrongly"));
			return;
		}
		this.#socket = socket;
		this.protocol = String(response.headers["sec-websocket-protocol"] ?? "");
		socket.on("close", () => this.#finish());
		socket.on("end", () => socket.end());
		this.onopen?.({} as never);
		// what came along with the answer may hold whole messages
		if (head.length > 0) this.#take(head);
		socket.on("data", (data: Buffer) => this.#take(data));
	}

	#fail(error: Error): void {
		if (this.#over) return;
		this.onerror?.({ error } as never);
		this.#socket?.destroy();
		this.#finish();
	}

	#finish(): void {
		if (this.#over) return;
		this.#over = true;
		clearTimeout(this.#closeTimer);
		this.onclose?.(this.#end as never);
	}

	#take(data: Buffer): void {
		this.#received = this.#received.length > 0 ? Buffer.concat([this.#received, data]) : data;
		while (!this.#over && this.#frame());
	}

	/** Takes a frame from what was received; `false` where there is none. */
	#frame(): boolean {
		const bytes = this.#received;
		if (bytes.length < 2) return false;
		const first = bytes.readUInt8(0);
		const second = bytes.readUInt8(1);
		const opcode = first & 0x0f;
		let size = second & 0x7f;
		let at = 2;
		if (size === 126) {
			if (bytes.length < 4) return false;
			size = bytes.readUInt16BE(2);
			at = 4;
		} else if (size === 127) {
			if (bytes.length < 10) return false;
			size = Number(bytes.readBigUInt64BE(2));
			at = 10;
		}
		const control = opcode >= opcodes.CLOSE;
		const known = opcode <= opcodes.BINARY || (opcode >= opcodes.CLOSE && opcode <= opcodes.PONG);
		const continues = opcode === opcodes.CONTINUATION;
		const inside = this.#partsOpcode !== opcodes.CONTINUATION;
		if (first & 0x70 || second & 0x80 || !known || (control && (size > 125 || !(first & 0x80))) || (!control && continues !== inside)) {
			this.#refuse(1002, "a broken frame");
			return false;
		}
		if (!control && this.#partsBytes + size > MESSAGE_MAX) {
			this.#refuse(1009, "a message above 1 MiB");
			return false;
		}
		if (bytes.length < at + size) return false;
		const payload = bytes.subarray(at, at + size);
		this.#received = bytes.subarray(at + size);
		if (control) this.#control(opcode, payload);
		else this.#data(opcode, payload, (first & 0x80) !== 0);
		return true;
	}

	#data(opcode: number, payload: Buffer, last: boolean): void {
		if (opcode !== opcodes.CONTINUATION) this.#partsOpcode = opcode;
		this.#parts.push(payload);
		this.#partsBytes += payload.length;
		if (!last) return;
		const whole = new Uint8Array(this.#partsBytes);
		let at = 0;
		for (const part of this.#parts) {
			whole.set(part, at);
			at += part.length;
		}
		const text = this.#partsOpcode === opcodes.TEXT;
		this.#parts = [];
		this.#partsBytes = 0;
		this.#partsOpcode = opcodes.CONTINUATION;
		if (text) this.#refuse(1003, "a text message");
		else if (!this.#closing) this.onmessage?.({ data: whole.buffer } as never);
	}

	#control(opcode: number, payload: Buffer): void {
		if (opcode === opcodes.PING) this.#write(opcodes.PONG, payload);
		if (opcode !== opcodes.CLOSE) return;
		this.#end = { code: payload.length >= 2 ? payload.readUInt16BE(0) : 1005, reason: payload.subarray(2).toString() };
		if (!this.#closing) {
			this.#closing = true;
			this.#write(opcodes.CLOSE, payload.subarray(0, 2));
		}
		this.#socket?.end();
	}

	/** The peer broke a rule: says so, and reads no more. */
	#refuse(code: number, reason: string): void {
		this.#end = { code, reason };
		this.#sendClose(code, reason);
		this.#socket?.end();
		this.#finish();
	}

	#sendClose(code: number, reason: string): void {
		if (this.#closing) return;
		this.#closing = true;
		const text = Buffer.from(reason);
		const payload = Buffer.alloc(2 + text.length);
		payload.writeUInt16BE(code, 0);
		text.copy(payload, 2);
		this.#write(opcodes.CLOSE, payload);
	}

	#write(opcode: number, payload: Uint8Array): void {
		const socket = this.#socket;
		if (!socket || socket.destroyed || socket.writableEnded) return;
		const size = payload.length;
		const extra = size < 126 ? 0 : size < 65_536 ? 2 : 8;
		const frame = Buffer.allocUnsafe(6 + extra + size);
		frame.writeUInt8(0x80 | opcode, 0);
		frame.writeUInt8(0x80 | (extra === 0 ? size : extra === 2 ? 126 : 127), 1);
		if (extra === 2) frame.writeUInt16BE(size, 2);
		if (extra === 8) frame.writeBigUInt64BE(BigInt(size), 2);
		const mask = randomBytes(4);
		const start = 6 + extra;
		mask.copy(frame, 2 + extra);
		for (let i = 0; i < size; i++) frame[start + i] = (payload[i] as number) ^ (mask[i & 3] as number);
		socket.write(frame);
	}

	send(data: Uint8Array): void {
		if (!this.#closing) this.#write(opcodes.BINARY, data);
	}

	close(code = 1000, reason = ""): void {
		if (this.#over) return;
		if (!this.#socket) {
			this.#closing = true;
			this.#request.destroy();
			return;
		}
		this.#sendClose(code, reason);
		this.#closeTimer ??= setTimeout(() => this.#socket?.destroy(), CLOSE_MS);
	}
}
