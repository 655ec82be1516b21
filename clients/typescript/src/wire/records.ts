/** Records of control and error messages that every client needs. Spec: message-format 4. */
import { codeOfNumber, type ErrorExtra, errorCodes, type RemusError, remusError } from "../errors.js";
import { type Bytes, decodeRecord, type Reader, Writer } from "./bytes.js";
import { type Authentication, readAuthentication } from "./message.js";

/** Bits of the version record. Spec: message-format 6.6. */
export const features = { DATAGRAMS: 0x1, PUB_SUB: 0x2, RESUMPTION: 0x40, BATCH: 0x80, LANES: 0x800 } as const;

/** An error record. Spec: WIRE-59, WIRE-60. */
export interface ErrorRecord {
	readonly code: number;
	/** ms; `undefined`: don't try again. */
	readonly retryAfterMs: number | undefined;
	readonly message: string;
	readonly details: readonly (readonly [type: string, value: Uint8Array])[];
}

const NO_RETRY = 0xffffffff;

/** Reads an error record. */
export function readError(reader: Reader): ErrorRecord {
	return reader.within("Error", () => {
		const start = reader.at;
		const code = reader.u32("code");
		if (code === 0) reader.fail("reserved", "code", start);
		const retry = reader.u32("retry_after");
		const message = reader.text("message");
		const details: [string, Uint8Array][] = [];
		for (let n = reader.count("detail_count", 32); n > 0; n--) details.push([reader.text("detail_type"), reader.blob("detail_value")]);
		return { code, retryAfterMs: retry === NO_RETRY ? undefined : retry, message, details };
	});
}

/** Encodes an error record. */
export function encodeError(error: ErrorRecord): Bytes {
	const out = new Writer()
		.u32(error.code)
		.u32(error.retryAfterMs ?? NO_RETRY)
		.text(error.message)
		.u32(error.details.length);
	for (const [type, value] of error.details) out.text(type).blob(value);
	return out.done();
}

/** Decodes an error record, which is all of `bytes`. */
export function decodeError(bytes: Uint8Array): ErrorRecord {
	return decodeRecord("Error", bytes, readError);
}

/** Decodes the payload of a StreamEnd. Spec: WIRE-61. */
export function decodeStreamEnd(bytes: Uint8Array): ErrorRecord | undefined {
	return bytes.length === 0 ? undefined : decodeError(bytes);
}

/** The error that a record says. */
export function errorOfRecord(record: ErrorRecord): RemusError {
	const extra: ErrorExtra = {
		number: record.code,
		retryAfterMs: record.retryAfterMs,
		details: record.details.map(([type, value]) => ({ type, value })),
	};
	return remusError(codeOfNumber(record.code), record.message, extra);
}

/** An error record of a code and a message. */
export function errorRecord(code: keyof typeof errorCodes, message: string): ErrorRecord {
	return { code: errorCodes[code], retryAfterMs: undefined, message, details: [] };
}

/** A version record. Spec: WIRE-47 to WIRE-49. */
export interface Version {
	readonly major: number;
	readonly minor: number;
	readonly features: number;
	readonly compression: number;
	readonly extensions: readonly (readonly [id: number, value: Uint8Array])[];
}

/** Extension by which the idle timeout is stated, `u32` ms. */
export const IDLE_TIMEOUT_EXTENSION = 1;
/** Extension by which the resume window is stated, `u32` ms. */
export const RESUME_WINDOW_EXTENSION = 2;
/** Lanes of a session, lane 0 included. Spec: TRANS-32. */
export const LANES_MAX = 16;
/** Bit of an extension ID that says that it must be understood. */
export const MUST_UNDERSTAND = 0x8000;

/** Resumption: how much was taken in, by lane. */
export type Counts = readonly (readonly [lane: number, bytes: bigint])[];

/** A step of the handshake. Spec: message-format 4.1. */
export type Handshake =
	| { readonly step: "offer" | "accept"; readonly version: Version }
	| ({ readonly step: "authenticate" } & Authentication)
	| { readonly step: "challenge"; readonly challenge: Uint8Array }
	| {
			readonly step: "authenticated";
			readonly session: number;
			readonly token: Uint8Array;
			readonly expires: bigint;
			readonly claims: string;
	  }
	| { readonly step: "refused"; readonly error: ErrorRecord }
	| { readonly step: "resume"; readonly token: Uint8Array; readonly counts: Counts }
	| { readonly step: "resumed"; readonly counts: Counts };

const steps = ["offer", "accept", "authenticate", "challenge", "authenticated", "refused", "resume", "resumed"] as const;

function readVersion(reader: Reader): Version {
	return reader.within("Version", () => {
		const fixed = {
			major: reader.u16("major"),
			minor: reader.u16("minor"),
			features: reader.u32("features"),
			compression: reader.u32("compression"),
		};
		const extensions: [number, Uint8Array][] = [];
		for (let n = reader.count("extension_count", 64); n > 0; n--) {
			const start = reader.at;
			const id = reader.u16("extension_id");
			if (extensions.some(([other]) => ((other ^ id) & ~MUST_UNDERSTAND) === 0)) reader.fail("duplicate", "extension_id", start);
			const at = reader.at;
			const value = reader.blob("extension_value");
			const known = (id & ~MUST_UNDERSTAND) === IDLE_TIMEOUT_EXTENSION || (id & ~MUST_UNDERSTAND) === RESUME_WINDOW_EXTENSION;
			if (known && value.length !== 4) reader.fail("wrong-length", "extension_value", at);
			extensions.push([id, value]);
		}
		return { ...fixed, extensions };
	});
}

function readCounts(reader: Reader): Counts {
	const list: [number, bigint][] = [];
	const seen = new Set<number>();
	for (let n = reader.count("lane_count", LANES_MAX); n > 0; n--) {
		const start = reader.at;
		const lane = reader.u16("lane");
		if (lane >= LANES_MAX) reader.fail("reserved", "lane", start);
		if (seen.has(lane)) reader.fail("duplicate", "lane", start);
		seen.add(lane);
		list.push([lane, reader.u64("offset")]);
	}
	return list;
}

/** Decodes a Handshake's payload of those steps that an acceptor sends; for the others `other` is asked. */
export function decodeAnswer(bytes: Uint8Array, other: (step: Handshake["step"], reader: Reader) => Handshake): Handshake {
	return decodeRecord("Handshake", bytes, (reader): Handshake => {
		const step = steps[reader.u8("step") - 1] ?? reader.fail("reserved", "step", 0);
		switch (step) {
			case "accept":
				return { step, version: readVersion(reader) };
			case "challenge":
				return { step, challenge: reader.blob("challenge") };
			case "authenticated":
				return {
					step,
					session: reader.u32("session"),
					token: reader.fixed(32, "token"),
					expires: reader.u64("expires"),
					claims: reader.text("claims"),
				};
			case "refused":
				return { step, error: readError(reader) };
			case "resumed":
				return { step, counts: readCounts(reader) };
			default:
				return other(step, reader);
		}
	});
}

/** Decodes a Handshake's payload. */
export function decodeHandshake(bytes: Uint8Array): Handshake {
	return decodeAnswer(bytes, (step, reader): Handshake => {
		if (step === "offer") return { step, version: readVersion(reader) };
		if (step === "authenticate") return { step, ...reader.within("Authentication", readAuthentication) };
		return { step: "resume", token: reader.fixed(32, "token"), counts: readCounts(reader) };
	});
}

/** Encodes a Handshake's payload of those steps that a client sends. */
export function encodeRequest(handshake: Extract<Handshake, { step: "offer" | "accept" | "authenticate" | "resume" }>): Bytes {
	const out = new Writer().u8(steps.indexOf(handshake.step) + 1);
	if (handshake.step === "authenticate") {
		out.u32(handshake.method).blob(handshake.token).text(handshake.claims);
	} else if (handshake.step === "resume") {
		out.fixed(handshake.token);
		writeCounts(out, handshake.counts);
	} else {
		const { major, minor, features, compression, extensions } = handshake.version;
		out.u16(major).u16(minor).u32(features).u32(compression).u32(extensions.length);
		for (const [id, value] of extensions) out.u16(id).blob(value);
	}
	return out.done();
}

/** Encodes a Handshake's payload. */
export function encodeHandshake(handshake: Handshake): Bytes {
	const out = new Writer().u8(steps.indexOf(handshake.step) + 1);
	switch (handshake.step) {
		case "challenge":
			out.blob(handshake.challenge);
			break;
		case "authenticated":
			out.u32(handshake.session).fixed(handshake.token).u64(handshake.expires).text(handshake.claims);
			break;
		case "refused":
			out.fixed(encodeError(handshake.error));
			break;
		case "resumed":
			writeCounts(out, handshake.counts);
			break;
		default:
			return encodeRequest(handshake);
	}
	return out.done();
}

function writeCounts(out: Writer, counts: Counts): void {
	out.u32(counts.length);
	for (const [lane, bytes] of counts) out.u16(lane).u64(bytes);
}

/** A Heartbeat. Spec: WIRE-53. */
export interface Heartbeat {
	readonly origin: bigint;
	readonly received: bigint;
	readonly load: number;
}

/** Decodes a Heartbeat's payload. */
export function decodeHeartbeat(bytes: Uint8Array): Heartbeat {
	return decodeRecord("Heartbeat", bytes, (reader) => ({
		origin: reader.u64("origin"),
		received: reader.u64("received"),
		load: reader.u32("load"),
	}));
}

/** Encodes a Heartbeat's payload. */
export function encodeHeartbeat(heartbeat: Heartbeat): Bytes {
	return new Writer(20).u64(heartbeat.origin).u64(heartbeat.received).u32(heartbeat.load).done();
}

/** A Shutdown. Spec: WIRE-54. */
export interface Shutdown {
	readonly code: number;
	readonly graceMs: number;
	readonly lastRequest: number;
	readonly reason: string;
	readonly redirect: string;
}

/** Decodes a Shutdown's payload. */
export function decodeShutdown(bytes: Uint8Array): Shutdown {
	return decodeRecord("Shutdown", bytes, (reader) => ({
		code: reader.u32("code"),
		graceMs: reader.u32("grace"),
		lastRequest: reader.u32("last_request"),
		reason: reader.text("reason"),
		redirect: reader.text("redirect"),
	}));
}

/** Encodes a Shutdown's payload. */
export function encodeShutdown(shutdown: Shutdown): Bytes {
	return new Writer()
		.u32(shutdown.code)
		.u32(shutdown.graceMs)
		.u32(shutdown.lastRequest)
		.text(shutdown.reason)
		.text(shutdown.redirect)
		.done();
}

const capabilityFields = [
	"node",
	"nodeType",
	"capabilities",
	"maxFrame",
	"maxMessage",
	"maxStreams",
	"maxCalls",
	"streamWindow",
	"sessionWindow",
] as const;
const resourceFields = ["cpu", "memory", "network", "storage"] as const;

/** A Capability; all numbers are `u32`. Spec: WIRE-57, WIRE-58. */
export type Capability = { readonly [K in (typeof capabilityFields)[number] | (typeof resourceFields)[number]]: number };

/** Decodes a Capability's payload. */
export function decodeCapability(bytes: Uint8Array): Capability {
	return decodeRecord("Capability", bytes, (reader) => {
		const value: Record<string, number> = {};
		for (const key of capabilityFields) {
			const field = key.replace(/[A-Z]/, (letter) => `_${letter.toLowerCase()}`);
			const start = reader.at;
			const number = reader.u32(field);
			if (key === "maxFrame" && number < 256) reader.fail("reserved", field, start);
			if (key === "maxFrame" && number > 16_777_216) reader.fail("too-many", field, start);
			value[key] = number;
		}
		reader.within("Resources", () => {
			for (const key of resourceFields) value[key] = reader.u32(key);
		});
		return value as Capability;
	});
}

/** Encodes a Capability's payload; what is left out is 0. */
export function encodeCapability(capability: Partial<Capability>): Bytes {
	const out = new Writer(52);
	for (const key of [...capabilityFields, ...resourceFields]) out.u32(capability[key] ?? 0);
	return out.done();
}
