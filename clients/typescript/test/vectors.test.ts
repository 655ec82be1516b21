/** Replays the test vectors of the specification. Spec: vectors/README.md. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { codeOfNumber, errorCodes, remusError } from "../src/errors.js";
import { Reader, Writer } from "../src/wire/bytes.js";
import { encodeOptions, encodeRouting, readContext, readRouting } from "../src/wire/message.js";
import * as wire from "../src/wire.js";
import { repository } from "./support.js";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

interface Vector {
	readonly name: string;
	readonly record: string;
	readonly hex: string;
	readonly value?: Json;
	readonly error?: {
		readonly name: string;
		readonly record: string;
		readonly field: string;
		readonly offset: number;
		readonly code: number;
	};
	readonly incomplete?: boolean;
	readonly canonical?: boolean;
	readonly rest?: string;
	readonly max_frame?: number;
	readonly limits?: Partial<wire.Limits>;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const unhex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, "hex"));

/** What a record decodes to, as vectors tell it, and back to bytes. */
interface Replay {
	readonly json: Json;
	/** Absent: the family is not encoded again. */
	readonly bytes?: Uint8Array;
}

function optionList(list: readonly wire.Option[]): Json {
	return list.map(([kind, value]) => [kind, hex(value)]);
}

function defined(object: { [key: string]: Json | undefined }): Json {
	const out: { [key: string]: Json } = {};
	for (const [key, value] of Object.entries(object)) if (value !== undefined) out[key] = value;
	return out;
}

function routingJson(message: Pick<wire.Message, "serviceId" | "methodId" | "routing">): Json {
	const v = wire.routingValues(message.routing);
	return defined({
		service_id: message.serviceId,
		method_id: message.methodId,
		options: optionList(message.routing),
		affinity_key: v.affinityKey && hex(v.affinityKey),
		target_node: v.targetNode,
		origin_region: v.originRegion,
		allowed_regions: v.allowedRegions && [...v.allowedRegions],
		hop_trail: v.hopTrail && [...v.hopTrail],
		topic: v.topic,
		version_range: v.versionRange && [...v.versionRange],
		hop_limit: v.hopLimit,
		preferred_zone: v.preferredZone,
	});
}

function authenticationJson(a: wire.Authentication): { [key: string]: Json } {
	return { method: a.method, token: hex(a.token), claims: a.claims };
}

function contextJson(list: readonly wire.Option[]): Json {
	const v = wire.contextValues(list);
	return defined({
		options: optionList(list),
		trace_context: v.traceContext && {
			trace_id: hex(v.traceContext.traceId),
			span_id: hex(v.traceContext.spanId),
			flags: v.traceContext.flags,
		},
		baggage: v.baggage,
		tenant: v.tenant,
		authentication: v.authentication && authenticationJson(v.authentication),
		content_type: v.contentType,
		idempotency_key: v.idempotencyKey && hex(v.idempotencyKey),
		causal_dots: v.causalDots?.map((dot) => [...dot]),
		service_name: v.serviceName,
		padding: v.padding,
		custom: v.custom?.map(([key, value]) => [key, hex(value)]),
	});
}

function messageJson(m: wire.Message): Json {
	return {
		type: m.type,
		flags: m.flags,
		request_id: m.requestId,
		timestamp: String(m.timestamp),
		priority: m.priority,
		ttl: m.ttl,
		routing: routingJson(m),
		context: contextJson(m.context),
		payload: hex(m.payload),
	};
}

function errorJson(e: wire.ErrorRecord): Json {
	return {
		code: e.code,
		retry_after_ms: e.retryAfterMs ?? null,
		message: e.message,
		details: e.details.map(([type, value]) => [type, hex(value)]),
	};
}

function handshakeJson(h: wire.Handshake): Json {
	switch (h.step) {
		case "offer":
		case "accept": {
			const version: { [key: string]: Json } = {
				major: h.version.major,
				minor: h.version.minor,
				features: h.version.features,
				compression: h.version.compression,
				extensions: h.version.extensions.map(([id, value]) => ({ id, value: hex(value) })),
			};
			const number = (id: number): number => id & ~wire.MUST_UNDERSTAND;
			const idle = h.version.extensions.find(([id]) => number(id) === wire.IDLE_TIMEOUT_EXTENSION);
			if (idle) version.idle_timeout_ms = Buffer.from(idle[1]).readUInt32BE();
			const window = h.version.extensions.find(([id]) => number(id) === wire.RESUME_WINDOW_EXTENSION);
			if (window) version.resume_window_ms = Buffer.from(window[1]).readUInt32BE();
			const unsupported = h.version.extensions.find(([id]) => id !== number(id) && number(id) > wire.RESUME_WINDOW_EXTENSION);
			if (unsupported) version.unsupported = unsupported[0];
			return { step: h.step, version };
		}
		case "authenticate":
			return { step: h.step, ...authenticationJson(h) };
		case "challenge":
			return { step: h.step, challenge: hex(h.challenge) };
		case "authenticated":
			return { step: h.step, session: h.session, token: hex(h.token), expires: String(h.expires), claims: h.claims };
		case "refused": {
			const spoken = h.error.details.find(([type]) => type === "remus.v2.Versions");
			const list: Json[] = [];
			if (spoken) {
				const bytes = Buffer.from(spoken[1]);
				for (let at = 0; at < bytes.length; at += 4) list.push([bytes.readUInt16BE(at), bytes.readUInt16BE(at + 2)]);
			}
			return { step: h.step, error: errorJson(h.error), ...(spoken && list.length > 0 && list.length <= 64 ? { spoken: list } : {}) };
		}
		case "resume":
			return { step: h.step, token: hex(h.token), lanes: h.counts.map(([lane, bytes]) => [lane, String(bytes)]) };
		case "resumed":
			return { step: h.step, lanes: h.counts.map(([lane, bytes]) => [lane, String(bytes)]) };
	}
}

function serviceJson(s: wire.Service): Json {
	return {
		service_id: s.serviceId,
		version: versionText(s.version),
		capabilities: s.capabilities,
		health: [...s.health],
		load: [...s.load],
		endpoints: s.endpoints.map((e) => ({ ...e })),
	};
}

const versionText = (version: number): string => `${version >>> 24}.${(version >>> 16) & 0xff}.${version & 0xffff}`;

function u64Of(bytes: Uint8Array): bigint {
	return new Reader("", bytes).u64("");
}

const replays: { readonly [record: string]: (bytes: Uint8Array, limits: wire.Limits) => Replay } = {
	message: (bytes, limits) => {
		const m = wire.decodeMessage(bytes, limits);
		return { json: messageJson(m), bytes: wire.encodeMessage(m) };
	},
	routing: (bytes) => {
		const routing = readRouting(new Reader("Routing", bytes));
		return { json: routingJson(routing), bytes: encodeRouting(routing) };
	},
	context: (bytes) => {
		const context = readContext(new Reader("Context", bytes));
		return { json: contextJson(context), bytes: encodeOptions(context, "Context") };
	},
	compressed: (bytes, limits) => {
		const c = wire.decodeCompressed(bytes, limits);
		return {
			json: { algorithm: c.algorithm, original_length: c.originalLength, bytes: hex(c.bytes) },
			bytes: wire.encodeCompressed(c),
		};
	},
	batch: (bytes, limits) => {
		const messages = wire.decodeBatch(bytes, limits);
		return { json: { messages: messages.map(messageJson) }, bytes: wire.encodeBatch(messages) };
	},
	handshake: (bytes) => {
		const h = wire.decodeHandshake(bytes);
		return { json: handshakeJson(h), bytes: wire.encodeHandshake(h) };
	},
	heartbeat: (bytes) => {
		const h = wire.decodeHeartbeat(bytes);
		return { json: { origin: String(h.origin), received: String(h.received), load: h.load }, bytes: wire.encodeHeartbeat(h) };
	},
	shutdown: (bytes) => {
		const s = wire.decodeShutdown(bytes);
		return {
			json: { code: s.code, grace_ms: s.graceMs, last_request: s.lastRequest, reason: s.reason, redirect: s.redirect },
			bytes: wire.encodeShutdown(s),
		};
	},
	schema: (bytes) => {
		const s = wire.decodeSchema(bytes);
		const entries = s.entries.map((e) =>
			defined({
				service_id: e.serviceId,
				major: e.major,
				minor: e.minor,
				digest: hex(e.digest),
				descriptor: e.descriptor && hex(e.descriptor),
				genuine: e.genuine,
			}),
		);
		return { json: { step: s.step, entries }, bytes: wire.encodeSchema(s) };
	},
	capability: (bytes) => {
		const c = wire.decodeCapability(bytes);
		return {
			json: {
				node: c.node,
				node_type: c.nodeType,
				capabilities: c.capabilities,
				max_frame: c.maxFrame,
				max_message: c.maxMessage,
				max_streams: c.maxStreams,
				max_calls: c.maxCalls,
				stream_window: c.streamWindow,
				session_window: c.sessionWindow,
				resources: { cpu: c.cpu, memory: c.memory, network: c.network, storage: c.storage },
			},
			bytes: wire.encodeCapability(c),
		};
	},
	error: (bytes) => {
		const e = wire.decodeError(bytes);
		return { json: errorJson(e), bytes: wire.encodeError(e) };
	},
	stream_end: (bytes) => {
		const e = wire.decodeStreamEnd(bytes);
		return { json: { error: e ? errorJson(e) : null }, bytes: e ? wire.encodeError(e) : new Uint8Array() };
	},
	service: (bytes) => {
		const s = wire.decodeService(bytes);
		return { json: serviceJson(s), bytes: wire.encodeService(s) };
	},
	query: (bytes) => {
		const q = wire.decodeQuery(bytes);
		return {
			json: {
				service_id: q.serviceId,
				min_version: versionText(q.minVersion),
				capabilities: q.capabilities,
				watch: q.watch,
				max_answers: q.maxAnswers,
				filter: q.filter,
			},
			bytes: wire.encodeQuery(q),
		};
	},
	query_answer: (bytes) => {
		const records = wire.decodeQueryAnswer(bytes);
		return { json: { records: records.map(serviceJson) }, bytes: wire.encodeQueryAnswer(records) };
	},
	id: (bytes) => ({ json: wire.idOf(new TextDecoder().decode(bytes)) }),
	ttl: (bytes) => {
		const ms = wire.ttlToMs(Buffer.from(bytes).readUInt16BE());
		return { json: ms === undefined ? null : String(ms) };
	},
	ttl_of: (bytes) => ({ json: wire.ttlFromMs(Number(u64Of(bytes)) / 1000) }),
	priority: (bytes) => {
		const field = Buffer.from(bytes).readUInt16BE();
		return { json: { class: field >> 13, order: field & 0x1fff } };
	},
	retry: (bytes) => {
		const e = remusError(codeOfNumber(Buffer.from(bytes).readUInt32BE()), "");
		return { json: { retryable: e.retryable, refused_before_it_ran: e.refusedBeforeItRan } };
	},
};

function frameJson(frame: wire.RawFrame): Json {
	const { stream, type, payload } = frame;
	const reader = new Reader("", payload);
	const name = Object.entries(wire.frameTypes).find(([, code]) => code === type)?.[0];
	switch (name) {
		case "MESSAGE":
		case "PART":
		case "LAST":
			return { stream, type: name, payload: hex(payload) };
		case "CREDIT":
			return { stream, type: name, limit: String(reader.u64("")) };
		case "RESET":
		case "STOP":
			return { stream, type: name, code: reader.u32("") };
		case "REFERENCE":
			return { stream, type: name, region: reader.u32(""), offset: String(reader.u64("")), length: reader.u32("") };
		case "ACK":
			return { stream, type: name, lane: reader.u16(""), offset: String(reader.u64("")) };
		default:
			return { stream, type, ignored: true };
	}
}

function replayFrame(v: Vector): void {
	const frame = wire.decodeFrame(unhex(v.hex), 0, v.max_frame);
	if (v.incomplete) {
		assert.equal(frame, undefined, "takes nothing and waits");
		return;
	}
	assert.ok(frame, "a whole frame");
	assert.deepEqual(frameJson(frame), v.value);
	const encoded = hex(wire.encodeFrame(frame.stream, frame.type, frame.payload));
	assert.equal(encoded + (v.rest ?? ""), v.hex);
}

function replay(v: Vector): void {
	if (v.record === "frame") {
		replayFrame(v);
		return;
	}
	const decode = replays[v.record];
	assert.ok(decode, `record ${v.record} is known`);
	const { json, bytes } = decode(unhex(v.hex), { ...wire.defaultLimits, ...v.limits });
	assert.deepEqual(json, v.value);
	if (bytes && v.canonical !== false) assert.equal(hex(bytes), v.hex);
}

const files = readdirSync(repository("vectors")).filter((name) => name.endsWith(".json"));

for (const file of files) {
	const family = JSON.parse(readFileSync(repository("vectors", file), "utf8")) as { readonly vectors: readonly Vector[] };
	describe(`vectors/${file}`, () => {
		assert.ok(family.vectors.length > 0);
		for (const v of family.vectors) {
			test(`${v.record}: ${v.name}`, () => {
				const error = v.error;
				if (!error) {
					replay(v);
					return;
				}
				assert.throws(
					() => replay({ ...v, value: null }),
					(thrown) => {
						assert.ok(thrown instanceof wire.DecodeError, String(thrown));
						const { kind: name, record, field, offset, code } = thrown;
						assert.deepEqual({ name, record, field, offset, code: errorCodes[code] }, error);
						return true;
					},
				);
			});
		}
	});
}

test("no beginning of a valid record is taken for the same value", () => {
	for (const file of files) {
		const family = JSON.parse(readFileSync(repository("vectors", file), "utf8")) as { readonly vectors: readonly Vector[] };
		for (const v of family.vectors) {
			const decode = replays[v.record];
			if (v.value === undefined || !decode || v.canonical === false || file === "values.json" || v.hex.length > 4000) continue;
			const whole = unhex(v.hex);
			for (let size = 0; size < whole.length; size++) {
				try {
					assert.notDeepEqual(
						decode(whole.subarray(0, size), { ...wire.defaultLimits, ...v.limits }).json,
						v.value,
						`${v.name} cut at ${size}`,
					);
				} catch (error) {
					if (!(error instanceof wire.DecodeError)) throw error;
				}
			}
		}
	}
});

test("a writer grows", () => {
	const bytes = new Writer(1).u8(1).text("two").u64(3n).done();
	assert.equal(hex(bytes), "010000000374776f0000000000000003");
});
