/** Frames. Spec: message-format 2. */
import { type Bytes, DecodeError, Reader } from "./bytes.js";

/** Codes of frame types. */
export const frameTypes = { MESSAGE: 1, PART: 2, LAST: 3, CREDIT: 4, RESET: 5, STOP: 6, REFERENCE: 7, ACK: 8 } as const;

/** Bytes of a frame's header. */
export const FRAME_HEADER = 8;
/** Largest payload that a receiver may ever take, in bytes. Spec: WIRE-13. */
export const FRAME_PAYLOAD_MAX = 16_777_216;
/** Types from here on are skipped where they are not known. Spec: WIRE-16. */
const IGNORABLE = 0x8000;

/** A frame as it lies in the bytes that were given. */
export interface RawFrame {
	readonly stream: number;
	/** One of {@link frameTypes}, or an ignorable type. */
	readonly type: number;
	readonly payload: Uint8Array;
}

/** Frames whose payload has one length only: record, fields with their ends. Spec: WIRE-20. */
const fixedFrames: { readonly [type: number]: readonly [record: string, ...fields: (readonly [name: string, end: number])[]] } = {
	[frameTypes.CREDIT]: ["CREDIT", ["limit", 8]],
	[frameTypes.RESET]: ["RESET", ["code", 4]],
	[frameTypes.STOP]: ["STOP", ["code", 4]],
	[frameTypes.REFERENCE]: ["REFERENCE", ["region", 4], ["offset", 12], ["length", 16]],
	[frameTypes.ACK]: ["ACK", ["lane", 2], ["offset", 10]],
};

/**
 * Payload length of the frame that begins at `at`, judged by its header alone; `undefined` where the header is not all there.
 * Throws a {@link DecodeError} whose offsets count from `at`. Spec: WIRE-10 to WIRE-20.
 */
export function judgeFrame(bytes: Uint8Array, at: number, maxFrame: number): number | undefined {
	if (bytes.length - at < FRAME_HEADER) return undefined;
	const view = new DataView(bytes.buffer, bytes.byteOffset + at, FRAME_HEADER);
	const type = view.getUint16(2);
	const length = view.getUint32(4);
	if (type === 0) throw new DecodeError("zero-frame-type", "FRAME", "type", 2);
	if (type > frameTypes.ACK && type < IGNORABLE) throw new DecodeError("unknown-frame-type", "FRAME", "type", 2);
	if (length > Math.min(maxFrame, FRAME_PAYLOAD_MAX)) throw new DecodeError("frame-too-large", "FRAME", "length", 4);
	if (type === frameTypes.PART && length === 0) throw new DecodeError("truncated", "PART", "bytes", FRAME_HEADER);
	const fixed = fixedFrames[type];
	if (fixed) {
		const [record, ...fields] = fixed;
		let start = FRAME_HEADER;
		for (const [name, end] of fields) {
			if (length < end) throw new DecodeError("truncated", record, name, start);
			start = FRAME_HEADER + end;
		}
		if (FRAME_HEADER + length > start) throw new DecodeError("trailing-bytes", record, "end", start);
	}
	return length;
}

/** The frame that begins at `at`; `undefined` where it is not all there. Takes `FRAME_HEADER + payload.length` bytes. */
export function decodeFrame(bytes: Uint8Array, at = 0, maxFrame = 65_536): RawFrame | undefined {
	const length = judgeFrame(bytes, at, maxFrame);
	const start = at + FRAME_HEADER;
	if (length === undefined || bytes.length - start < length) return undefined;
	const reader = new Reader("FRAME", bytes, at);
	return { stream: reader.u16("stream"), type: reader.u16("type"), payload: bytes.subarray(start, start + length) };
}

/** Encodes a frame. */
export function encodeFrame(stream: number, type: number, payload: Uint8Array): Bytes {
	const bytes = new Uint8Array(FRAME_HEADER + payload.length);
	writeFrameHeader(bytes, 0, stream, type, payload.length);
	bytes.set(payload, FRAME_HEADER);
	return bytes;
}

/** Writes a frame's header to `bytes` at `at`. */
export function writeFrameHeader(bytes: Bytes, at: number, stream: number, type: number, length: number): void {
	const view = new DataView(bytes.buffer, bytes.byteOffset + at, FRAME_HEADER);
	view.setUint16(0, stream);
	view.setUint16(2, type);
	view.setUint32(4, length);
}
