/** What a session needs of a carrier, and what the carriers share. Spec: carriers 1, transport 2. */
import type { CarrierKind, ConnectOptions } from "./api.js";
import { type RemusError, remusError } from "./errors.js";
import type { Bytes } from "./wire/bytes.js";

/** How a carrier came to its end. */
export interface CarrierEnd {
	/** The session's error code, by which the peer closed: the session ends with it. `undefined`: the carrier was lost. */
	readonly code: number | undefined;
	/** For people. */
	readonly reason: string;
}

/** What a carrier tells its session. */
export interface CarrierSink {
	/** Bytes of lane 0, in order; where they are cut means nothing. The session keeps no reference to them but in payloads. */
	received(bytes: Uint8Array): void;
	/** There is room again. May come when nothing waits for it. */
	drained(): void;
	/** Nothing comes after it. Doesn't come after `close` or `drop`. */
	ended(end: CarrierEnd): void;
}

/** A link to the peer, open. This client uses lane 0 alone, as every peer may (TRANS-29, TRANS-31). */
export interface Carrier {
	readonly kind: CarrierKind;
	/** Tells from now on what arrives. Called once, before anything is written. */
	start(sink: CarrierSink): void;
	/** Whether more may be written: less than {@link BUFFERED_MAX} waits. */
	room(): boolean;
	/** Writes whole frames, at most {@link CHUNK_MAX} bytes. They stay unchanged, and may be kept by both sides. */
	write(frames: Bytes): void;
	/** Ends the session: lets out what stands ready, but not for longer than {@link CLOSE_MS}, then says why. Settles when that is done. */
	close(code: number, reason: string): Promise<void>;
	/** Lets go of the carrier without a word: as if the network had broken. The session isn't ended by it. */
	drop(): void;
}

/** Where to connect, and with what. */
export interface Target {
	/** `https://host:port`. */
	readonly url: string;
	readonly options: ConnectOptions;
	readonly fetch: typeof globalThis.fetch;
}

/** Opens a carrier. Rejects with a {@link RemusError}; once the signal is aborted nothing of it is left behind. */
export type OpenCarrier = (target: Target, signal: AbortSignal) => Promise<Carrier>;

/**
 * Bytes that may wait in a carrier's buffers before nothing more is written: what a 100 Mbit/s link with 20 ms of round
 * trip has in flight. More would let a small call wait behind what stands ready already.
 */
export const BUFFERED_MAX = 262_144;
/** Largest chunk that is written at once, in bytes: amortises the cost of a write, and goes into a message of any link (CARR-3). */
export const CHUNK_MAX = 65_536;
/** Longest wait for what stands ready to leave before a close, in ms. Spec: TRANS-49, CARR-12, CARR-32. */
export const CLOSE_MS = 2_000;

/** The error that an answer to the request for a session says. Spec: TRANS-25. */
export function refusal(status: number, message: string): RemusError {
	const code =
		status === 403
			? "PERMISSION_DENIED"
			: status === 401
				? "UNAUTHENTICATED"
				: status === 429 || status === 408 || status >= 500
					? "UNAVAILABLE"
					: "UNIMPLEMENTED";
	return remusError(code, message);
}

/** The error of an aborted signal, for what is being opened. */
export function aborted(signal: AbortSignal): RemusError {
	return remusError("CANCELLED", "connecting was given up", { cause: signal.reason });
}

/** Longest message of a link that is no WebTransport, in bytes. Spec: CARR-3. */
export const LINK_MESSAGE_MAX = 1_048_576;

/** Whether bytes are made of whole frames. Spec: CARR-2, CARR-10. */
export function wholeFrames(bytes: Uint8Array): boolean {
	const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	let at = 0;
	while (at + 8 <= bytes.length) at += 8 + view.getUint32(at + 4);
	return at === bytes.length;
}
