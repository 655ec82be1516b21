/**
 * Reading and writing records. Spec: message-format 1.
 *
 * A reader never sets memory aside on the word of a length: what it returns lies in the bytes that it was given.
 */
import { utf8Decoder, utf8Encoder } from "../codecs.js";
import { type ErrorCode, errorCodes } from "../errors.js";

/** Bytes over an `ArrayBuffer`, as all of them are here. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** What can be wrong with bytes. Spec: message-format 1.1. */
export type DecodeErrorName =
	| "truncated"
	| "trailing-bytes"
	| "length-past-end"
	| "length-mismatch"
	| "wrong-length"
	| "reserved"
	| "duplicate"
	| "invalid-utf8"
	| "too-many"
	| "nested-batch"
	| "frame-too-large"
	| "message-too-large"
	| "routing-too-large"
	| "context-too-large"
	| "zero-frame-type"
	| "unknown-frame-type";

/** Bytes from a peer that can't be decoded, and where. Always the peer's fault. Spec: WIRE-9. */
export class DecodeError extends Error {
	/** What is wrong. */
	readonly kind: DecodeErrorName;
	/** The innermost record that has a name. */
	readonly record: string;
	/** The field, with `_` for a space. */
	readonly field: string;
	/** Offset of the field's first byte in the bytes that were given. */
	readonly offset: number;

	constructor(kind: DecodeErrorName, record: string, field: string, offset: number) {
		super(`${record}.${field} at byte ${offset}: ${kind}`);
		this.name = "DecodeError";
		this.kind = kind;
		this.record = record;
		this.field = field;
		this.offset = offset;
	}

	/** The error code for the peer. */
	get code(): ErrorCode {
		if (this.kind.endsWith("frame-type")) return "UNKNOWN_FRAME";
		const name = this.kind.toUpperCase().replaceAll("-", "_");
		return name in errorCodes ? (name as ErrorCode) : "MALFORMED";
	}
}

/** Reads the fields of a record in order; the first thing that is wrong is thrown as a {@link DecodeError}. */
export class Reader {
	readonly bytes: Uint8Array;
	readonly #view: DataView;
	/** Where the next field begins. */
	at: number;
	/** Where the record ends, exclusive. */
	readonly end: number;
	/** Name of the record, for errors. */
	record: string;

	constructor(record: string, bytes: Uint8Array, at = 0, end: number = bytes.length) {
		this.bytes = bytes;
		this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
		this.at = at;
		this.end = end;
		this.record = record;
	}

	get left(): number {
		return this.end - this.at;
	}

	/** Throws the error `kind` of `field`, which begins at `offset`. */
	fail(kind: DecodeErrorName, field: string, offset: number = this.at): never {
		throw new DecodeError(kind, this.record, field, offset);
	}

	#step(size: number, field: string): number {
		if (this.left < size) this.fail("truncated", field);
		const at = this.at;
		this.at += size;
		return at;
	}

	u8(field: string): number {
		return this.#view.getUint8(this.#step(1, field));
	}

	u16(field: string): number {
		return this.#view.getUint16(this.#step(2, field));
	}

	u32(field: string): number {
		return this.#view.getUint32(this.#step(4, field));
	}

	u64(field: string): bigint {
		return this.#view.getBigUint64(this.#step(8, field));
	}

	/** Bytes of a fixed number. */
	fixed(size: number, field: string): Uint8Array {
		const at = this.#step(size, field);
		return this.bytes.subarray(at, at + size);
	}

	/** What is left. */
	rest(): Uint8Array {
		const at = this.at;
		this.at = this.end;
		return this.bytes.subarray(at, this.end);
	}

	blob(field: string): Uint8Array {
		const start = this.at;
		const size = this.u32(field);
		if (size > this.left) this.fail("length-past-end", field, start);
		return this.fixed(size, field);
	}

	text(field: string): string {
		const start = this.at;
		return this.utf8(this.blob(field), field, start);
	}

	/** `bytes`, of the field that begins at `offset`, as a text. */
	utf8(bytes: Uint8Array, field: string, offset: number): string {
		try {
			return utf8Decoder.decode(bytes);
		} catch {
			return this.fail("invalid-utf8", field, offset);
		}
	}

	/** A count, judged before the first element is read. */
	count(field: string, limit: number): number {
		const start = this.at;
		const count = this.u32(field);
		if (count > limit) this.fail("too-many", field, start);
		return count;
	}

	/** What `read` makes of the record `record` that lies within this one. */
	within<T>(record: string, read: (reader: this) => T): T {
		const outer = this.record;
		this.record = record;
		const value = read(this);
		this.record = outer;
		return value;
	}

	/** The record ends here. */
	finish(): void {
		if (this.left > 0) this.fail("trailing-bytes", "end");
	}
}

/** Decodes all of `bytes` as one record. */
export function decodeRecord<T>(record: string, bytes: Uint8Array, read: (reader: Reader) => T): T {
	const reader = new Reader(record, bytes);
	const value = read(reader);
	reader.finish();
	return value;
}

/** Writes fields one after the other. */
export class Writer {
	#bytes: Bytes;
	#view: DataView;
	#size = 0;

	constructor(capacity = 128) {
		this.#bytes = new Uint8Array(capacity);
		this.#view = new DataView(this.#bytes.buffer);
	}

	#step(size: number): number {
		const at = this.#size;
		this.#size += size;
		if (this.#size > this.#bytes.length) {
			const bytes = new Uint8Array(Math.max(this.#size, this.#bytes.length * 2));
			bytes.set(this.#bytes);
			this.#bytes = bytes;
			this.#view = new DataView(bytes.buffer);
		}
		return at;
	}

	u8(value: number): this {
		const at = this.#step(1);
		this.#view.setUint8(at, value);
		return this;
	}

	u16(value: number): this {
		const at = this.#step(2);
		this.#view.setUint16(at, value);
		return this;
	}

	u32(value: number): this {
		const at = this.#step(4);
		this.#view.setUint32(at, value);
		return this;
	}

	u64(value: bigint): this {
		const at = this.#step(8);
		this.#view.setBigUint64(at, value);
		return this;
	}

	fixed(value: Uint8Array): this {
		const at = this.#step(value.length);
		this.#bytes.set(value, at);
		return this;
	}

	blob(value: Uint8Array): this {
		return this.u32(value.length).fixed(value);
	}

	text(value: string): this {
		return this.blob(utf8Encoder.encode(value));
	}

	/** What was written; the writer is not used any more. */
	done(): Bytes {
		return this.#bytes.subarray(0, this.#size);
	}
}

/** All parts in one; the part itself where there is one. */
export function join(parts: readonly Uint8Array[], size: number): Bytes {
	const first = parts[0];
	if (parts.length === 1 && first) return first as Bytes;
	const all = new Uint8Array(size);
	let at = 0;
	for (const part of parts) {
		all.set(part, at);
		at += part.length;
	}
	return all;
}
