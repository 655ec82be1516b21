/** WebSocket. Spec: carriers 2. */
import type { WebSocketLike } from "../api.js";
import {
	aborted,
	BUFFERED_MAX,
	type Carrier,
	type CarrierEnd,
	type CarrierSink,
	CLOSE_MS,
	LINK_MESSAGE_MAX,
	type OpenCarrier,
	wholeFrames,
} from "../carrier.js";
import { utf8Decoder, utf8Encoder } from "../codecs.js";
import { errorCodes, remusError } from "../errors.js";
import type { Bytes } from "../wire/bytes.js";

/** How often a full buffer is looked at, in ms: WebSockets don't tell when they have sent something. */
const DRAIN_POLL_MS = 4;
/** Longest reason in a Close frame, in bytes. */
const REASON_MAX = 123;
/** Close code that says nothing about the session: the link is lost. The lowest that pages may use and that has no meaning here. */
const CLOSE_LOST = 3000;

/** Opens a WebSocket. */
export const openWebSocket: OpenCarrier = (target, signal) =>
	new Promise((resolve, reject) => {
		const Class = target.options.webSocket ?? (globalThis.WebSocket as unknown as new (url: string, protocols: string[]) => WebSocketLike);
		const socket = new Class(`${target.url.replace(/^http/, "ws")}/remus/v2/ws`, ["remus.v2"]);
		socket.binaryType = "arraybuffer";
		const abort = (): void => {
			silence(socket);
			socket.close();
			reject(aborted(signal));
		};
		signal.addEventListener("abort", abort, { once: true });
		socket.onopen = () => {
			signal.removeEventListener("abort", abort);
			if (socket.protocol === "remus.v2") return resolve(new WebSocketCarrier(socket));
			silence(socket);
			socket.close();
			reject(remusError("UNIMPLEMENTED", "the WebSocket's peer doesn't speak remus.v2"));
		};
		socket.onerror = socket.onclose = (event: { readonly error?: unknown }) => {
			signal.removeEventListener("abort", abort);
			silence(socket);
			reject(remusError("UNAVAILABLE", "the WebSocket could not be opened", { cause: event.error }));
		};
	});

function silence(socket: WebSocketLike): void {
	// an error after the end of interest is nobody's
	socket.onopen = socket.onmessage = socket.onclose = null;
	socket.onerror = () => {};
}

/** How a session's end is told by a Close frame. Spec: CARR-11. */
export function closeOf(code: number, reason: string): [code: number, reason: string] {
	const text = code > 998 ? `${code}: ${reason}` : reason;
	const bytes = utf8Encoder.encode(text);
	let size = Math.min(bytes.length, REASON_MAX);
	// not within a character
	while (((bytes[size] ?? 0) & 0xc0) === 0x80) size--;
	return [code === 0 ? 1000 : code > 998 ? 4999 : 4000 + code, utf8Decoder.decode(bytes.subarray(0, size))];
}

/** What a Close frame says about the session. Spec: carriers 2.1. */
export function endOf(code: number, reason: string): CarrierEnd {
	if (code === 1000) return { code: 0, reason };
	if (code === 4999) {
		const number = Number(/^(\d{1,10}): /.exec(reason)?.[1]);
		return { code: number > 0 && number <= 0xffffffff ? number : errorCodes.INTERNAL, reason };
	}
	if (code > 4000 && code < 4999) return { code: code - 4000, reason };
	if (code === 1002 || code === 1003 || code === 1007) return { code: errorCodes.MALFORMED, reason };
	if (code === 1009) return { code: errorCodes.FRAME_TOO_LARGE, reason };
	return { code: undefined, reason: reason || `the WebSocket was closed with ${code}` };
}

class WebSocketCarrier implements Carrier {
	readonly kind = "websocket";
	readonly #socket: WebSocketLike;
	#sink: CarrierSink | undefined;
	#poll: ReturnType<typeof setTimeout> | undefined;
	/** It has ended before anybody listened. */
	#early: CarrierEnd | undefined;

	constructor(socket: WebSocketLike) {
		this.#socket = socket;
		socket.onerror = () => {};
		socket.onclose = (event: { readonly code: number; readonly reason: string }) => {
			const end = endOf(event.code, event.reason);
			if (this.#sink) this.#end(end);
			else this.#early = end;
		};
		socket.onmessage = (event: { readonly data: unknown }) => this.#receive(event.data);
	}

	start(sink: CarrierSink): void {
		this.#sink = sink;
		if (this.#early) this.#end(this.#early);
	}

	#receive(data: unknown): void {
		// pages may not close with 1003, 1007 and 1009: they use the session's code
		if (!(data instanceof ArrayBuffer)) return this.#refuse("MALFORMED", "a text message");
		const bytes = new Uint8Array(data);
		if (bytes.length > LINK_MESSAGE_MAX) return this.#refuse("FRAME_TOO_LARGE", "a message above 1 MiB");
		if (!wholeFrames(bytes)) return this.#refuse("MALFORMED", "a message that is not made of whole frames");
		if (bytes.length > 0) this.#sink?.received(bytes);
	}

	#refuse(code: "MALFORMED" | "FRAME_TOO_LARGE", reason: string): void {
		const sink = this.#sink;
		void this.close(errorCodes[code], reason);
		sink?.ended({ code: errorCodes[code], reason });
	}

	#end(end: CarrierEnd): void {
		const sink = this.#detach();
		sink?.ended(end);
	}

	#detach(): CarrierSink | undefined {
		const sink = this.#sink;
		this.#sink = undefined;
		clearTimeout(this.#poll);
		silence(this.#socket);
		return sink;
	}

	room(): boolean {
		if (this.#socket.bufferedAmount < BUFFERED_MAX) return true;
		this.#poll ??= setTimeout(() => {
			this.#poll = undefined;
			this.#sink?.drained();
		}, DRAIN_POLL_MS);
		return false;
	}

	write(frames: Bytes): void {
		this.#socket.send(frames);
	}

	async close(code: number, reason: string): Promise<void> {
		this.#detach();
		const socket = this.#socket;
		await new Promise<void>((resolve) => {
			const timer = setTimeout(resolve, CLOSE_MS);
			socket.onclose = () => {
				clearTimeout(timer);
				resolve();
			};
			socket.close(...closeOf(code, reason));
		});
	}

	drop(): void {
		this.#detach();
		this.#socket.close(CLOSE_LOST);
	}
}
