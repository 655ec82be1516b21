/** Records that a client can do without: schemas, discovery, batches, compressed payloads, options by name. Spec: message-format 3, 4. */
import { utf8Decoder } from "../codecs.js";
import { type Bytes, decodeRecord, Reader, Writer } from "./bytes.js";
import { sha256 } from "./id.js";
import {
	type Authentication,
	encodeMessage,
	flags,
	type Limits,
	type Message,
	type Option,
	readAuthentication,
	readCustom,
	readMessage,
} from "./message.js";

/** An entry of a Schema message. */
export interface SchemaEntry {
	readonly serviceId: number;
	readonly major: number;
	readonly minor: number;
	readonly digest: Uint8Array;
	/** In a give alone. */
	readonly descriptor?: Uint8Array;
	/** In a give: whether the digest is that of the descriptor. Another descriptor must not be used. Spec: WIRE-56. */
	readonly genuine?: boolean;
}

/** A Schema message. Spec: WIRE-55. */
export interface Schema {
	readonly step: "offer" | "want" | "give";
	readonly entries: readonly SchemaEntry[];
}

const schemaSteps = ["offer", "want", "give"] as const;

/** Decodes a Schema's payload. */
export function decodeSchema(bytes: Uint8Array): Schema {
	return decodeRecord("Schema", bytes, (reader) => {
		const step = schemaSteps[reader.u8("step") - 1] ?? reader.fail("reserved", "step", 0);
		const entries: SchemaEntry[] = [];
		for (let n = reader.count("entry_count", 4096); n > 0; n--) {
			const entry = {
				serviceId: reader.u32("service_id"),
				major: reader.u16("major"),
				minor: reader.u16("minor"),
				digest: reader.fixed(32, "digest"),
			};
			if (step === "give") {
				const descriptor = reader.blob("descriptor");
				const digest = sha256(descriptor);
				entries.push({ ...entry, descriptor, genuine: digest.every((byte, i) => byte === entry.digest[i]) });
			} else {
				entries.push(entry);
			}
		}
		return { step, entries };
	});
}

/** Encodes a Schema's payload. */
export function encodeSchema(schema: Schema): Bytes {
	const out = new Writer().u8(schemaSteps.indexOf(schema.step) + 1).u32(schema.entries.length);
	for (const entry of schema.entries) {
		out.u32(entry.serviceId).u16(entry.major).u16(entry.minor).fixed(entry.digest);
		if (schema.step === "give") out.blob(entry.descriptor ?? new Uint8Array());
	}
	return out.done();
}

/** Four values of a byte each, as health and load have them. */
export type Quad = readonly [number, number, number, number];

/** An endpoint of a service. */
export interface Endpoint {
	readonly node: number;
	readonly region: number;
	readonly zone: number;
	readonly transport: number;
	readonly weight: number;
	readonly cost: number;
	readonly url: string;
}

/** A service record. Spec: WIRE-62. */
export interface Service {
	readonly serviceId: number;
	readonly version: number;
	readonly capabilities: number;
	readonly health: Quad;
	readonly load: Quad;
	readonly endpoints: readonly Endpoint[];
}

function readQuad(reader: Reader, field: string): Quad {
	const bytes = reader.fixed(4, field);
	return [bytes[0] ?? 0, bytes[1] ?? 0, bytes[2] ?? 0, bytes[3] ?? 0];
}

function readService(reader: Reader): Service {
	return reader.within("Service", () => {
		const fixed = {
			serviceId: reader.u32("service_id"),
			version: reader.u32("version"),
			capabilities: reader.u32("capabilities"),
			health: readQuad(reader, "health"),
			load: readQuad(reader, "load"),
		};
		const endpoints: Endpoint[] = [];
		for (let n = reader.count("endpoint_count", 256); n > 0; n--) {
			endpoints.push(
				reader.within("Endpoint", () => ({
					node: reader.u32("node"),
					region: reader.u32("region"),
					zone: reader.u32("zone"),
					transport: reader.u16("transport"),
					weight: reader.u16("weight"),
					cost: reader.u32("cost"),
					url: reader.text("url"),
				})),
			);
		}
		return { ...fixed, endpoints };
	});
}

function writeService(out: Writer, service: Service): void {
	out.u32(service.serviceId).u32(service.version).u32(service.capabilities);
	out.fixed(Uint8Array.from(service.health)).fixed(Uint8Array.from(service.load)).u32(service.endpoints.length);
	for (const e of service.endpoints) {
		out.u32(e.node).u32(e.region).u32(e.zone).u16(e.transport).u16(e.weight).u32(e.cost).text(e.url);
	}
}

/** Decodes a service record. */
export function decodeService(bytes: Uint8Array): Service {
	return decodeRecord("Service", bytes, readService);
}

/** Encodes a service record. */
export function encodeService(service: Service): Bytes {
	const out = new Writer();
	writeService(out, service);
	return out.done();
}

/** Decodes the answer to a Query. Spec: WIRE-64. */
export function decodeQueryAnswer(bytes: Uint8Array): readonly Service[] {
	return decodeRecord("QueryAnswer", bytes, (reader) => {
		const records: Service[] = [];
		for (let n = reader.count("record_count", 1024); n > 0; n--) records.push(readService(reader));
		return records;
	});
}

/** Encodes the answer to a Query. */
export function encodeQueryAnswer(records: readonly Service[]): Bytes {
	const out = new Writer().u32(records.length);
	for (const record of records) writeService(out, record);
	return out.done();
}

/** A Query. Spec: WIRE-63. */
export interface Query {
	readonly serviceId: number;
	readonly minVersion: number;
	readonly capabilities: number;
	readonly watch: boolean;
	readonly maxAnswers: number;
	readonly filter: string;
}

/** Decodes a Query's payload. */
export function decodeQuery(bytes: Uint8Array): Query {
	return decodeRecord("Query", bytes, (reader) => {
		const fixed = { serviceId: reader.u32("service_id"), minVersion: reader.u32("min_version"), capabilities: reader.u32("capabilities") };
		const start = reader.at;
		const watch = reader.u8("watch");
		if (watch > 1) reader.fail("reserved", "watch", start);
		return { ...fixed, watch: watch === 1, maxAnswers: reader.u32("max_answers"), filter: reader.text("filter") };
	});
}

/** Encodes a Query's payload. */
export function encodeQuery(query: Query): Bytes {
	const out = new Writer().u32(query.serviceId).u32(query.minVersion).u32(query.capabilities);
	return out
		.u8(query.watch ? 1 : 0)
		.u32(query.maxAnswers)
		.text(query.filter)
		.done();
}

/** A compressed payload. Spec: WIRE-42. */
export interface Compressed {
	/** 1 zstd, 2 lz4 block, 3 brotli, 4 deflate, 5 zstd with the session's dictionary. */
	readonly algorithm: number;
	readonly originalLength: number;
	readonly bytes: Uint8Array;
}

/** Decodes a compressed payload; nothing is inflated. */
export function decodeCompressed(bytes: Uint8Array, limits: Limits): Compressed {
	return decodeRecord("Compressed", bytes, (reader) => {
		const algorithm = reader.u8("algorithm");
		if (algorithm < 1 || algorithm > 5) reader.fail("reserved", "algorithm", 0);
		const originalLength = reader.u32("original_length");
		if (originalLength > limits.message) reader.fail("message-too-large", "original_length", 1);
		return { algorithm, originalLength, bytes: reader.rest() };
	});
}

/** Encodes a compressed payload. */
export function encodeCompressed(compressed: Compressed): Bytes {
	return new Writer().u8(compressed.algorithm).u32(compressed.originalLength).fixed(compressed.bytes).done();
}

/** Decodes a batch. Spec: WIRE-43, WIRE-44. */
export function decodeBatch(bytes: Uint8Array, limits: Limits): readonly Message[] {
	return decodeRecord("Batch", bytes, (reader) => {
		const messages: Message[] = [];
		for (let n = reader.count("message_count", 1024); n > 0; n--) {
			const start = reader.at;
			const total = reader.u32("message");
			if (total <= limits.message && total - 4 > reader.left) reader.fail("length-past-end", "message", start);
			const message = readMessage(new Reader("Message", bytes, start, Math.min(start + total, reader.end)), limits);
			if (message.flags & flags.BATCH_REQUEST) reader.fail("nested-batch", "message", start);
			messages.push(message);
			reader.at = start + total;
		}
		return messages;
	});
}

/** Encodes a batch. */
export function encodeBatch(messages: readonly Message[]): Bytes {
	const out = new Writer().u32(messages.length);
	for (const message of messages) out.fixed(encodeMessage(message));
	return out.done();
}

/** Options of the routing information, by name. */
export interface RoutingValues {
	affinityKey?: Uint8Array;
	targetNode?: number;
	originRegion?: number;
	allowedRegions?: readonly number[];
	hopTrail?: readonly number[];
	topic?: string;
	versionRange?: readonly [lowest: number, highest: number];
	hopLimit?: number;
	preferredZone?: number;
}

/** W3C trace context. */
export interface TraceContext {
	readonly traceId: Uint8Array;
	readonly spanId: Uint8Array;
	readonly flags: number;
}

/** Options of the context, by name. */
export interface ContextValues {
	traceContext?: TraceContext;
	baggage?: string;
	tenant?: string;
	authentication?: Authentication;
	contentType?: string;
	idempotencyKey?: Uint8Array;
	causalDots?: readonly (readonly [replica: number, counter: number])[];
	serviceName?: string;
	/** Number of bytes. */
	padding?: number;
	custom?: readonly (readonly [key: string, value: Uint8Array])[];
}

function u32s(value: Uint8Array): number[] {
	const view = new DataView(value.buffer, value.byteOffset, value.byteLength);
	return Array.from({ length: value.length / 4 }, (_, i) => view.getUint32(i * 4));
}

/** Reads the options of a decoded message's routing information. */
export function routingValues(list: readonly Option[]): RoutingValues {
	const values: RoutingValues = {};
	for (const [kind, value] of list) {
		const [first = 0, second = 0] = kind === 2 || kind === 3 || kind === 7 || kind === 9 ? u32s(value) : [];
		if (kind === 1) values.affinityKey = value;
		if (kind === 2) values.targetNode = first;
		if (kind === 3) values.originRegion = first;
		if (kind === 4) values.allowedRegions = u32s(value);
		if (kind === 5) values.hopTrail = u32s(value);
		if (kind === 6) values.topic = utf8Decoder.decode(value);
		if (kind === 7) values.versionRange = [first, second];
		if (kind === 8) values.hopLimit = value[0] ?? 0;
		if (kind === 9) values.preferredZone = first;
	}
	return values;
}

/** Reads the options of a decoded message's context. A trace context of zeros counts as absent. Spec: WIRE-38. */
export function contextValues(list: readonly Option[]): ContextValues {
	const values: ContextValues = {};
	const custom: (readonly [string, Uint8Array])[] = [];
	for (const [kind, value] of list) {
		if (kind === 1) {
			const trace = { traceId: value.subarray(0, 16), spanId: value.subarray(16, 24), flags: value[24] ?? 0 };
			const set = (bytes: Uint8Array): boolean => bytes.some((byte) => byte !== 0);
			if (set(trace.traceId) && set(trace.spanId)) values.traceContext = trace;
		}
		if (kind === 2) values.baggage = utf8Decoder.decode(value);
		if (kind === 3) values.tenant = utf8Decoder.decode(value);
		if (kind === 4) values.authentication = readAuthentication(new Reader("Authentication", value));
		if (kind === 5) values.contentType = utf8Decoder.decode(value);
		if (kind === 6) values.idempotencyKey = value;
		if (kind === 7) {
			const numbers = u32s(value);
			values.causalDots = Array.from({ length: numbers.length / 2 }, (_, i) => [numbers[i * 2] ?? 0, numbers[i * 2 + 1] ?? 0] as const);
		}
		if (kind === 8) values.serviceName = utf8Decoder.decode(value);
		if (kind === 9) values.padding = value.length;
		if (kind === 0x7f) custom.push(readCustom(new Reader("Custom", value)));
	}
	if (custom.length > 0) values.custom = custom;
	return values;
}
