/** Messages, with their routing information and context. Spec: message-format 3. */
import { type Bytes, DecodeError, Reader, Writer } from "./bytes.js";

/** Codes of message types. Spec: message-format 6.2. */
export const messageTypes = {
	Handshake: 0x01,
	Heartbeat: 0x02,
	Shutdown: 0x03,
	Schema: 0x04,
	Capability: 0x05,
	Request: 0x10,
	Response: 0x11,
	Error: 0x12,
	Stream: 0x13,
	StreamEnd: 0x14,
	Query: 0x41,
} as const;

/** Flags of messages that this package uses. Spec: message-format 3.3. */
export const flags = {
	COMPRESSED: 0x0001,
	HIGH_PRIORITY: 0x0004,
	IDEMPOTENT: 0x0010,
	STREAM_END: 0x0020,
	BATCH_REQUEST: 0x0040,
} as const;

/** Bytes of the shortest message. */
export const MESSAGE_HEADER = 35;
/** Ordinary priority. Spec: WIRE-27. */
export const PRIORITY_ORDINARY = 0x6000;

/** An option of the routing information or of the context. */
export type Option = readonly [kind: number, value: Uint8Array];

/** A message. */
export interface Message {
	readonly type: number;
	readonly flags: number;
	readonly requestId: number;
	/** µs since the Unix epoch, by a hybrid logical clock. */
	readonly timestamp: bigint;
	readonly priority: number;
	/** The field; {@link ttlToMs} reads it. */
	readonly ttl: number;
	/** 0: none. */
	readonly serviceId: number;
	/** 0: none. */
	readonly methodId: number;
	/** Options of the routing information, checked. */
	readonly routing: readonly Option[];
	/** Options of the context, checked. */
	readonly context: readonly Option[];
	readonly payload: Uint8Array;
}

/** What a receiver takes, in bytes. */
export interface Limits {
	readonly message: number;
	readonly context: number;
	readonly routing: number;
}

/** Limits of message-format 5. */
export const defaultLimits: Limits = { message: 4_194_304, context: 65_536, routing: 8_192 };

/** Kinds of options that this package uses. */
export const options = { TOPIC: 6, CONTENT_TYPE: 5, CUSTOM: 0x7f } as const;

/** Shape of an option: `"utf8"`; a size in bytes; `-n` for one or more of n bytes; 0 for anything; or a record with its name. */
type Shape = "utf8" | number | readonly [record: string, read: (reader: Reader) => unknown];
type OptionTable = { readonly [kind: number]: readonly [name: string, shape: Shape] };

const routingOptions: OptionTable = {
	1: ["affinity_key", 0],
	2: ["target_node", 4],
	3: ["origin_region", 4],
	4: ["allowed_regions", -4],
	5: ["hop_trail", -4],
	6: ["topic", "utf8"],
	7: ["version_range", 8],
	8: ["hop_limit", 1],
	9: ["preferred_zone", 4],
};

const contextOptions: OptionTable = {
	1: ["trace_context", 25],
	2: ["baggage", "utf8"],
	3: ["tenant", "utf8"],
	4: ["authentication", ["Authentication", readAuthentication]],
	5: ["content_type", "utf8"],
	6: ["idempotency_key", 0],
	7: ["causal_dots", -8],
	8: ["service_name", "utf8"],
	9: ["padding", 0],
	[options.CUSTOM]: ["custom", ["Custom", readCustom]],
};

/** An authentication record. Spec: WIRE-51. */
export interface Authentication {
	readonly method: number;
	readonly token: Uint8Array;
	readonly claims: string;
}

/** Reads an authentication record. */
export function readAuthentication(reader: Reader): Authentication {
	return { method: reader.u32("method"), token: reader.blob("token"), claims: reader.text("claims") };
}

/** Reads the value of a custom option. */
export function readCustom(reader: Reader): readonly [key: string, value: Uint8Array] {
	return [reader.text("key"), reader.blob("value")];
}

function readOptions(reader: Reader, table: OptionTable): Option[] {
	const list: Option[] = [];
	const seen = new Set<number>();
	while (reader.left > 0) {
		const start = reader.at;
		const kind = reader.u8("option");
		const [name, shape] = table[kind] ?? ["option", 0];
		if (name === "option" && kind < 0x80) reader.fail("reserved", name, start);
		if (reader.left < 2) reader.fail("truncated", name, start);
		const size = reader.u16(name);
		if (size > reader.left) reader.fail("length-past-end", name, start);
		if (name !== "option" && kind !== options.CUSTOM) {
			if (seen.has(kind)) reader.fail("duplicate", name, start);
			seen.add(kind);
		}
		if (typeof shape === "number" && (shape < 0 ? size === 0 || size % shape !== 0 : shape > 0 && size !== shape)) {
			reader.fail("wrong-length", name, start);
		}
		const at = reader.at;
		const value = reader.fixed(size, name);
		if (shape === "utf8") reader.utf8(value, name, start);
		if (typeof shape === "object") {
			const inner = new Reader(shape[0], reader.bytes, at, at + size);
			shape[1](inner);
			inner.finish();
		}
		list.push([kind, value]);
	}
	return list;
}

/** Reads routing information, to the end of `reader`. Spec: WIRE-31 to WIRE-37. */
export function readRouting(reader: Reader): Pick<Message, "serviceId" | "methodId" | "routing"> {
	if (reader.left === 0) return { serviceId: 0, methodId: 0, routing: [] };
	return { serviceId: reader.u32("service_id"), methodId: reader.u32("method_id"), routing: readOptions(reader, routingOptions) };
}

/** Reads context metadata, to the end of `reader`. Spec: WIRE-33 to WIRE-40. */
export function readContext(reader: Reader): Option[] {
	return readOptions(reader, contextOptions);
}

/**
 * Judges the beginning of a message: total length, type and routing length, as far as they are there. Returns the total length,
 * or 0 where not even that is there. Spec: WIRE-19.
 */
export function judgeMessage(bytes: Uint8Array, limits: Limits): number {
	const reader = new Reader("Message", bytes);
	if (reader.left < 4) return 0;
	const total = reader.u32("total_length");
	if (total > limits.message) reader.fail("message-too-large", "total_length", 0);
	if (total < MESSAGE_HEADER) reader.fail("length-mismatch", "total_length", 0);
	if (reader.left > 0 && reader.u8("type") === 0) reader.fail("reserved", "type", 4);
	if (bytes.length >= 27) {
		reader.at = 23;
		judgeLength(reader, "routing", total - MESSAGE_HEADER, limits.routing);
	}
	return total;
}

function judgeLength(reader: Reader, what: "routing" | "context" | "payload", room: number, limit: number): number {
	const start = reader.at;
	const size = reader.u32(`${what}_length`);
	if (size > limit) reader.fail(what === "context" ? "context-too-large" : "routing-too-large", `${what}_length`, start);
	if (size > room) reader.fail("length-past-end", `${what}_length`, start);
	return size;
}

/** Reads a message that takes up all of `reader`. Spec: WIRE-21 to WIRE-26. */
export function readMessage(reader: Reader, limits: Limits): Message {
	const start = reader.at;
	const size = reader.left;
	const total = reader.u32("total_length");
	if (total > limits.message) reader.fail("message-too-large", "total_length", start);
	if (total < MESSAGE_HEADER || total !== size) reader.fail("length-mismatch", "total_length", start);
	const type = reader.u8("type");
	if (type === 0) reader.fail("reserved", "type", start + 4);
	const header = {
		type,
		flags: reader.u16("flags"),
		requestId: reader.u32("request_id"),
		timestamp: reader.u64("timestamp"),
		priority: reader.u16("priority"),
		ttl: reader.u16("ttl"),
	};
	const routingSize = judgeLength(reader, "routing", reader.left - 12, limits.routing);
	const routing = readRouting(new Reader("Routing", reader.bytes, reader.at, reader.at + routingSize));
	reader.at += routingSize;
	const contextSize = judgeLength(reader, "context", reader.left - 8, limits.context);
	const context = readContext(new Reader("Context", reader.bytes, reader.at, reader.at + contextSize));
	reader.at += contextSize;
	const payloadSize = judgeLength(reader, "payload", reader.left - 4, Number.POSITIVE_INFINITY);
	const payload = reader.fixed(payloadSize, "payload");
	reader.finish();
	return { ...header, ...routing, context, payload };
}

/** Decodes a message, which is all of `bytes`. */
export function decodeMessage(bytes: Uint8Array, limits: Limits = defaultLimits): Message {
	return readMessage(new Reader("Message", bytes), limits);
}

/** Encodes options. Throws a {@link DecodeError} of a value that is too long. */
export function encodeOptions(list: readonly Option[], record: string): Bytes {
	const out = new Writer();
	for (const [kind, value] of list) {
		if (value.length > 0xffff) throw new DecodeError("too-many", record, "option", 0);
		out.u8(kind).u16(value.length).fixed(value);
	}
	return out.done();
}

/** Encodes routing information. */
export function encodeRouting(message: Pick<Message, "serviceId" | "methodId" | "routing">): Bytes {
	const list = encodeOptions(message.routing, "Routing");
	if (!message.serviceId && !message.methodId && list.length === 0) return list;
	return new Writer(8 + list.length).u32(message.serviceId).u32(message.methodId).fixed(list).done();
}

/** Encodes a message. What is left out is 0, empty, or of ordinary priority. */
export function encodeMessage(
	message: Partial<Omit<Message, "payload">> & { readonly type: number; readonly payload?: Uint8Array | undefined },
): Bytes {
	const routing = encodeRouting({ serviceId: 0, methodId: 0, routing: [], ...message });
	const context = encodeOptions(message.context ?? [], "Context");
	const payload = message.payload ?? new Uint8Array();
	const total = MESSAGE_HEADER + routing.length + context.length + payload.length;
	return new Writer(total)
		.u32(total)
		.u8(message.type)
		.u16(message.flags ?? 0)
		.u32(message.requestId ?? 0)
		.u64(message.timestamp ?? 0n)
		.u16(message.priority ?? PRIORITY_ORDINARY)
		.u16(message.ttl ?? 0)
		.blob(routing)
		.blob(context)
		.blob(payload)
		.done();
}

const ttlUnitsMs = [1, 100, 1_000, 60_000];

/** The budget that a TTL field states, in ms; `undefined`: no limit. Spec: WIRE-28, WIRE-29. */
export function ttlToMs(field: number): number | undefined {
	return field === 0 ? undefined : (field & 0x3fff) * (ttlUnitsMs[field >> 14] ?? 0);
}

/** The TTL field that states a budget in ms, rounded up, in the finest unit that holds it. Spec: WIRE-29, WIRE-30. */
export function ttlFromMs(ms: number): number {
	if (ms <= 0) return 0x4000;
	for (const [unit, size] of ttlUnitsMs.entries()) {
		const value = Math.ceil(ms / size);
		if (value <= 0x3fff) return (unit << 14) | value;
	}
	return 0xffff;
}
