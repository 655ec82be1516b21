/**
 * An acceptor for tests, in this process: sessions, a few services, topics, and resumption, made of the codec and nothing else of the
 * client. It states the smallest windows that there may be, so that whatever is larger than 64 KiB has to wait for credit.
 */
import assert from "node:assert/strict";
import type { CarrierKind } from "../src/api.js";
import type { Carrier, CarrierSink, OpenCarrier } from "../src/carrier.js";
import { errorCodes, remusError } from "../src/errors.js";
import { Reader, Writer } from "../src/wire/bytes.js";
import * as wire from "../src/wire.js";

const { frameTypes, messageTypes, flags } = wire;
const WINDOW = 65_536;
const encoder = new TextEncoder();

/** Makes a promise that others settle. */
export function deferred<T = void>(): { promise: Promise<T>; resolve: (value: T) => void } {
	let resolve: (value: T) => void = () => {};
	const promise = new Promise<T>((r) => {
		resolve = r;
	});
	return { promise, resolve };
}

/** One link: both ends of a carrier. */
export class Link {
	readonly kind: CarrierKind;
	/** What the client has written, and the acceptor has not seen yet. */
	#toPeer: wire.Bytes[] = [];
	#toClient: wire.Bytes[] = [];
	#sink: CarrierSink | undefined;
	#pumping = false;
	/** Nothing arrives any more, in either direction. */
	dead = false;
	/** Nothing goes to the client while it is set; it is kept. */
	heldBack = false;
	session: PeerSession | undefined;
	/** How the client closed. */
	closedByClient: { code: number; reason: string } | undefined;
	readonly closed: Promise<void>;
	#resolveClosed: () => void;
	readonly #peer: Peer;

	constructor(kind: CarrierKind, peer: Peer) {
		this.kind = kind;
		this.#peer = peer;
		const { promise, resolve } = deferred();
		this.closed = promise;
		this.#resolveClosed = () => resolve();
	}

	/** The client's end. */
	get carrier(): Carrier {
		return {
			kind: this.kind,
			start: (sink) => {
				this.#sink = sink;
			},
			room: () => !this.dead,
			write: (frames) => {
				this.#toPeer.push(frames.slice());
				this.#wake();
			},
			close: (code, reason) => {
				// what stands ready leaves first
				this.#deliverToPeer();
				this.closedByClient = { code, reason };
				this.dead = true;
				this.session?.linkEnded(this, code);
				this.#resolveClosed();
				return Promise.resolve();
			},
			drop: () => {
				this.dead = true;
				this.#resolveClosed();
			},
		};
	}

	#wake(): void {
		if (this.#pumping) return;
		this.#pumping = true;
		setImmediate(() => {
			this.#pumping = false;
			this.#deliverToPeer();
			if (this.heldBack) return;
			for (const bytes of this.#toClient.splice(0)) if (!this.dead) this.#sink?.received(bytes);
		});
	}

	#deliverToPeer(): void {
		for (const bytes of this.#toPeer.splice(0)) if (!this.dead) this.#peer.receive(this, bytes);
	}

	/** The acceptor sends. */
	send(bytes: wire.Bytes): void {
		this.#toClient.push(bytes.slice());
		this.#wake();
	}

	/** Lets go what was held back. */
	letGo(): void {
		this.heldBack = false;
		this.#wake();
	}

	/** The network breaks: what is on its way is lost. */
	cut(): void {
		if (this.dead) return;
		this.dead = true;
		this.#sink?.ended({ code: undefined, reason: "the network broke" });
		this.#resolveClosed();
	}

	/** The acceptor closes. */
	close(code: number, reason: string): void {
		setImmediate(() => {
			if (this.dead) return;
			for (const bytes of this.#toClient.splice(0)) this.#sink?.received(bytes);
			if (this.dead) return;
			this.dead = true;
			this.#sink?.ended({ code, reason });
			this.#resolveClosed();
		});
	}
}

interface PeerStream {
	readonly id: number;
	sent: number;
	limit: number;
	session: boolean;
	queue: { bytes: wire.Bytes; cut: number; ends: boolean }[];
	taken: number;
	granted: number;
	parts: Uint8Array[];
	request: wire.Message | undefined;
	sendEnded: boolean;
	receiveEnded: boolean;
	/** Elements of the call that is open. */
	elements: Uint8Array[];
	stopped: boolean;
}

export interface PeerOptions {
	readonly resumable?: boolean;
	readonly maxCalls?: number;
	readonly maxStreams?: number;
	readonly maxMessage?: number;
	readonly idleMs?: number;
	/** Refuses sessions with this code. */
	readonly refuse?: keyof typeof errorCodes;
	/** Calls are not answered until it is let go. */
	readonly bearer?: string;
}

/** The acceptor. */
export class Peer {
	readonly links: Link[] = [];
	readonly sessions: PeerSession[] = [];
	readonly options: PeerOptions;
	/** Kinds that can't be opened at the moment. */
	readonly blocked: Set<CarrierKind> = new Set();
	/** Requests for a carrier, in order. */
	readonly asked: CarrierKind[] = [];
	#waiters: { readonly test: () => boolean; readonly resolve: (value: undefined) => void }[] = [];
	/** Names by method ID. */
	readonly names: Map<number, string> = new Map();
	readonly log: string[] = [];
	/** Link number: the acceptor's answer to a Resume on it is lost. */
	loseResumed = 0;
	readonly subscriptions: Set<{ pattern: string; publish: (topic: string, payload: Uint8Array) => void }> = new Set();

	constructor(options: PeerOptions = {}) {
		this.options = options;
		for (const name of ["Echo", "Fail", "Hang", "Count", "Sum", "Chat", "Early", "Big", "Drop"])
			this.names.set(wire.idOf(`test.v1.Test/${name}`), name);
		for (const name of ["Publish", "Subscribe"]) this.names.set(wire.idOf(`remus.v2.Topics/${name}`), name);
	}

	/** Opens carriers of a kind. */
	opener(kind: CarrierKind): OpenCarrier {
		return (_target, signal) => {
			this.asked.push(kind);
			this.changed();
			if (this.blocked.has(kind)) return Promise.reject(remusError("UNAVAILABLE", `${kind} is blocked`));
			if (signal.aborted) return Promise.reject(remusError("CANCELLED", "given up"));
			const link = new Link(kind, this);
			this.links.push(link);
			return Promise.resolve(link.carrier);
		};
	}

	get link(): Link {
		const link = this.links.at(-1);
		assert.ok(link, "there is a link");
		return link;
	}

	get session(): PeerSession {
		const session = this.sessions.at(-1);
		assert.ok(session, "there is a session");
		return session;
	}

	note(line: string): void {
		this.log.push(line);
		this.changed();
	}

	changed(): void {
		for (const waiter of [...this.#waiters]) {
			if (!waiter.test()) continue;
			this.#waiters = this.#waiters.filter((other) => other !== waiter);
			waiter.resolve(undefined);
		}
	}

	/** Waits until something is so; looked at whenever something has happened here. */
	until(test: () => boolean): Promise<undefined> {
		if (test()) return Promise.resolve(undefined);
		return new Promise((resolve) => this.#waiters.push({ test, resolve }));
	}

	receive(link: Link, bytes: wire.Bytes): void {
		let from = 0;
		if (!link.session) {
			const frame = wire.decodeFrame(bytes);
			assert.ok(frame, "a first frame");
			const first = wire.decodeMessage(frame.payload);
			const handshake = wire.decodeHandshake(first.payload);
			if (handshake.step === "resume") {
				from = wire.FRAME_HEADER + frame.payload.length;
				assert.equal(from, bytes.length, "nothing follows a Resume before its answer");
				this.#resume(link, handshake.token, handshake.counts, first.context);
				return;
			}
			link.session = new PeerSession(this, link);
			this.sessions.push(link.session);
		}
		link.session.receive(bytes);
		this.changed();
	}

	#resume(link: Link, token: Uint8Array, counts: wire.Counts, context: readonly wire.Option[]): void {
		const session = this.sessions.find((s) => s.knows(token) && s.belongsTo(context));
		if (!session) {
			const error = { code: errorCodes.LOSS_OF_SESSION, retryAfterMs: undefined, message: "no such session", details: [] };
			link.send(control(messageTypes.Handshake, wire.encodeHandshake({ step: "refused", error })));
			link.close(errorCodes.LOSS_OF_SESSION, "no such session");
			return;
		}
		link.session = session;
		session.resume(link, token, counts);
	}
}

function control(type: number, payload: Uint8Array, requestId = 0, timestamp?: bigint): wire.Bytes {
	const message = wire.encodeMessage({ type, payload, requestId, timestamp: timestamp ?? BigInt(Date.now()) * 1000n });
	return wire.encodeFrame(0, frameTypes.MESSAGE, message);
}

const equal = (a: Uint8Array, b: Uint8Array): boolean => Buffer.from(a).equals(Buffer.from(b));

/** The acceptor's half of a session. */
export class PeerSession {
	readonly #peer: Peer;
	link: Link;
	#pending = new Uint8Array();
	readonly #streams = new Map<number, PeerStream>();
	/** Credit of the session. */
	#sent = 0;
	#limit = 8_388_608;
	#taken = 0;
	#granted = WINDOW;
	#calls = 0;
	/** The authentication record that its client presented. */
	identity: Uint8Array = new Uint8Array(12);
	ended: number | undefined;
	shutdown: wire.Shutdown | undefined;
	token: Uint8Array = Buffer.alloc(32, 1);
	#epoch = 1;
	#oldToken: Uint8Array | undefined;
	#answeredCounts: wire.Counts = [];
	/** Bytes of whole frames taken in since the epoch began. */
	#count = 0;
	#acked = 0;
	/** Frames of this epoch that the client has not acknowledged, and where they begin. */
	#log: wire.Bytes[] = [];
	#logStart = 0;
	#logEnd = 0;
	offered = 0;
	readonly acksSeen: bigint[] = [];
	readonly requests: { name: string; message: wire.Message; stream: number }[] = [];

	constructor(peer: Peer, link: Link) {
		this.#peer = peer;
		this.link = link;
	}

	knows(token: Uint8Array): boolean {
		return (this.ended === undefined && equal(token, this.token)) || (this.#oldToken !== undefined && equal(token, this.#oldToken));
	}

	/** Whether a message says the same about who sends it as the session's client did. */
	belongsTo(context: readonly wire.Option[]): boolean {
		const record = context.find(([kind]) => kind === 4)?.[1] ?? new Uint8Array(12);
		return equal(record, this.identity);
	}

	linkEnded(link: Link, code: number): void {
		if (link !== this.link) return;
		this.ended = code;
		this.#peer.changed();
	}

	get retained(): number {
		return this.#logEnd - this.#logStart;
	}

	// ---- resumption ----

	resume(link: Link, token: Uint8Array, counts: wire.Counts): void {
		const lost = this.#peer.loseResumed > 0;
		if (lost) this.#peer.loseResumed--;
		const old = this.link;
		if (old !== link) old.dead = true;
		this.link = link;
		this.#pending = new Uint8Array();
		if (this.#oldToken && equal(token, this.#oldToken)) {
			// the client has not heard: the same answer again, and all of the epoch again
			assert.equal(this.#count, 0, "nothing of an epoch comes from who does not know of it");
		} else {
			const taken = Number(counts.find(([lane]) => lane === 0)?.[1] ?? 0n);
			this.#acknowledged(taken);
			this.#answeredCounts = [[0, BigInt(this.#count)]];
			this.#oldToken = this.token;
			this.token = Buffer.alloc(32, ++this.#epoch);
			this.#count = 0;
			this.#acked = 0;
			// acknowledgements were about the old epoch
			this.#log = this.#log.filter((frame) => frame[3] !== frameTypes.ACK);
			this.#logStart = 0;
			this.#logEnd = this.#log.reduce((sum, frame) => sum + frame.length, 0);
		}
		this.#peer.note(`resume ${this.#epoch}`);
		const answer = control(messageTypes.Handshake, wire.encodeHandshake({ step: "resumed", counts: this.#answeredCounts }));
		const granted = control(
			messageTypes.Handshake,
			wire.encodeHandshake({ step: "authenticated", session: 7, token: this.token, expires: 0n, claims: "" }),
		);
		if (lost) {
			setImmediate(() => link.cut());
			return;
		}
		link.send(answer);
		link.send(granted);
		for (const frame of this.#log) link.send(frame);
	}

	#acknowledged(offset: number): void {
		assert.ok(offset <= this.#logEnd, `the client acknowledges ${offset} of ${this.#logEnd}`);
		while (this.#log[0] && this.#logStart + this.#log[0].length <= offset) this.#logStart += (this.#log.shift() as Uint8Array).length;
		assert.equal(this.#logStart, offset, "counts stand between frames");
	}

	#out(frame: wire.Bytes): void {
		this.#log.push(frame);
		this.#logEnd += frame.length;
		if (!this.link.dead) this.link.send(frame);
	}

	// ---- frames ----

	receive(bytes: wire.Bytes): void {
		const all = Buffer.concat([this.#pending, bytes]);
		let at = 0;
		for (;;) {
			const frame = wire.decodeFrame(all, at);
			if (!frame) break;
			const size = wire.FRAME_HEADER + frame.payload.length;
			at += size;
			this.#count += size;
			this.#oldToken = undefined;
			this.#frame(frame);
		}
		this.#pending = Uint8Array.from(all.subarray(at));
		if (this.offered & wire.features.RESUMPTION && this.#peer.options.resumable && this.#count - this.#acked >= WINDOW) {
			this.acknowledge();
		}
	}

	/** It says nothing of what it has taken in. */
	mute = false;

	/** Says what it has taken in. */
	acknowledge(): void {
		if (this.mute) return;
		this.#acked = this.#count;
		this.link.send(this.#keep(wire.encodeFrame(0, frameTypes.ACK, new Writer(10).u16(0).u64(BigInt(this.#count)).done())));
	}

	/** An ACK counts in its lane like every frame. */
	#keep(frame: wire.Bytes): wire.Bytes {
		this.#log.push(frame);
		this.#logEnd += frame.length;
		return frame;
	}

	#frame(frame: wire.RawFrame): void {
		const reader = new Reader("", frame.payload);
		switch (frame.type) {
			case frameTypes.CREDIT: {
				const limit = Number(reader.u64(""));
				if (frame.stream === 0) this.#limit = limit;
				else this.#stream(frame.stream).limit = limit;
				for (const stream of this.#streams.values()) this.#pump(stream);
				break;
			}
			case frameTypes.ACK:
				assert.equal(reader.u16(""), 0);
				this.acksSeen.push(reader.u64(""));
				this.#acknowledged(Number(this.acksSeen.at(-1)));
				break;
			case frameTypes.RESET:
				this.#reset(this.#stream(frame.stream), reader.u32(""));
				break;
			case frameTypes.STOP:
				this.#stop(this.#stream(frame.stream), reader.u32(""));
				break;
			default:
				this.#data(frame);
		}
		this.#peer.changed();
	}

	#stream(id: number): PeerStream {
		let stream = this.#streams.get(id);
		if (!stream) {
			stream = {
				id,
				sent: 0,
				limit: 1_048_576,
				session: id > 2,
				queue: [],
				taken: 0,
				granted: WINDOW,
				parts: [],
				request: undefined,
				sendEnded: false,
				receiveEnded: false,
				elements: [],
				stopped: false,
			};
			this.#streams.set(id, stream);
		}
		return stream;
	}

	#data(frame: wire.RawFrame): void {
		if (frame.stream === 0) {
			this.#control(wire.decodeMessage(frame.payload));
			return;
		}
		const stream = this.#stream(frame.stream);
		stream.taken += frame.payload.length;
		assert.ok(stream.taken <= stream.granted, `stream ${stream.id} keeps to its credit`);
		if (stream.session) {
			this.#taken += frame.payload.length;
			assert.ok(this.#taken <= this.#granted, "the session's credit is kept to");
		}
		stream.parts.push(frame.payload);
		const head = Buffer.concat(stream.parts);
		const half = frame.type === frameTypes.PART && head.length >= 4 ? head.readUInt32BE(0) : 0;
		this.#grant(stream, half);
		if (frame.type === frameTypes.PART) return;
		const message = wire.decodeMessage(Uint8Array.from(Buffer.concat(stream.parts)));
		stream.parts = [];
		this.#message(stream, message);
	}

	#grant(stream: PeerStream, half: number): void {
		const limit = stream.taken + WINDOW + half;
		if (limit - stream.granted >= WINDOW / 2) {
			stream.granted = limit;
			this.#out(wire.encodeFrame(stream.id, frameTypes.CREDIT, new Writer(8).u64(BigInt(limit)).done()));
		}
		const session = this.#taken + WINDOW + half;
		if (session - this.#granted >= WINDOW / 2) {
			this.#granted = session;
			this.#out(wire.encodeFrame(0, frameTypes.CREDIT, new Writer(8).u64(BigInt(session)).done()));
		}
	}

	#control(message: wire.Message): void {
		const { payload } = message;
		const { options } = this.#peer;
		switch (message.type) {
			case messageTypes.Handshake: {
				const handshake = wire.decodeHandshake(payload);
				if (handshake.step === "offer") {
					this.offered = handshake.version.features;
					if (options.refuse) {
						const error = { code: errorCodes[options.refuse], retryAfterMs: 10, message: "not today", details: [] };
						this.link.send(control(messageTypes.Handshake, wire.encodeHandshake({ step: "refused", error })));
						return;
					}
					const spoken = wire.features.PUB_SUB | (options.resumable ? wire.features.RESUMPTION : 0);
					const extensions: (readonly [number, Uint8Array])[] = [];
					if (options.idleMs !== undefined) extensions.push([wire.IDLE_TIMEOUT_EXTENSION, new Writer(4).u32(options.idleMs).done()]);
					if (options.resumable) extensions.push([wire.RESUME_WINDOW_EXTENSION, new Writer(4).u32(60_000).done()]);
					const version = { major: 2, minor: 0, features: this.offered & spoken, compression: 0, extensions };
					this.#out(control(messageTypes.Handshake, wire.encodeHandshake({ step: "accept", version })));
				} else {
					assert.equal(handshake.step, "authenticate");
					if (handshake.step !== "authenticate") return;
					this.identity = payload.slice(1);
					const token = new TextDecoder().decode(handshake.token);
					if (options.bearer !== undefined && token !== options.bearer) {
						const error = { code: errorCodes.UNAUTHENTICATED, retryAfterMs: undefined, message: "who are you?", details: [] };
						this.link.send(control(messageTypes.Handshake, wire.encodeHandshake({ step: "refused", error })));
						return;
					}
					const step = "authenticated";
					this.#out(
						control(messageTypes.Handshake, wire.encodeHandshake({ step, session: 7, token: this.token, expires: 0n, claims: "" })),
					);
				}
				break;
			}
			case messageTypes.Capability: {
				const theirs = wire.decodeCapability(payload);
				const { maxCalls = 64, maxStreams = 32, maxMessage = 4_194_304 } = options;
				const limits = { maxFrame: 16_448, maxMessage, maxStreams, maxCalls, streamWindow: WINDOW, sessionWindow: WINDOW };
				this.#out(control(messageTypes.Capability, wire.encodeCapability({ ...theirs, nodeType: 2, ...limits })));
				break;
			}
			case messageTypes.Query:
				this.#out(control(messageTypes.Response, wire.encodeQueryAnswer([]), message.requestId));
				break;
			case messageTypes.Schema:
				this.#out(control(messageTypes.Schema, wire.encodeSchema({ step: "want", entries: [] })));
				break;
			case messageTypes.Heartbeat: {
				if (this.mute && this.#count > 8_388_608) this.#peer.note("asked at the limit");
				const beat = wire.encodeHeartbeat({ origin: message.timestamp, received: BigInt(Date.now()) * 1000n, load: 0 });
				if (message.requestId !== 0) this.#out(control(messageTypes.Heartbeat, beat, 0));
				break;
			}
			case messageTypes.Shutdown:
				this.shutdown = wire.decodeShutdown(payload);
				break;
			default:
				assert.fail(`message type ${message.type} on stream 0`);
		}
	}

	// ---- calls ----

	/** Sends a message on a stream, as far as there is credit. */
	push(id: number, message: Partial<wire.Message> & Pick<wire.Message, "type">, ends = false): void {
		const stream = this.#stream(id);
		const timestamp = BigInt(Date.now()) * 1000n;
		stream.queue.push({ bytes: wire.encodeMessage({ timestamp, ...message }), cut: 0, ends });
		this.#pump(stream);
	}

	/** Sends a frame as it is. */
	frame(stream: number, type: number, payload: Uint8Array): void {
		this.#out(wire.encodeFrame(stream, type, payload));
	}

	#pump(stream: PeerStream): void {
		for (;;) {
			const next = stream.queue[0];
			if (!next) return;
			const left = next.bytes.length - next.cut;
			const credit = Math.min(stream.limit - stream.sent, stream.session ? this.#limit - this.#sent : Number.POSITIVE_INFINITY);
			const n = Math.min(left, credit, 16_384);
			if (n <= 0) return;
			const type = n < left ? frameTypes.PART : next.cut === 0 ? frameTypes.MESSAGE : frameTypes.LAST;
			this.#out(wire.encodeFrame(stream.id, type, next.bytes.subarray(next.cut, next.cut + n)));
			next.cut += n;
			stream.sent += n;
			if (stream.session) this.#sent += n;
			if (n < left) continue;
			stream.queue.shift();
			if (next.ends) {
				stream.sendEnded = true;
				this.#release(stream);
			}
		}
	}

	#release(stream: PeerStream): void {
		if (!stream.sendEnded || !stream.receiveEnded) return;
		stream.sendEnded = stream.receiveEnded = stream.stopped = false;
		stream.request = undefined;
		stream.elements = [];
		if (stream.id & 1) this.#calls--;
		this.#peer.note(`free ${stream.id}`);
	}

	#reset(stream: PeerStream, code: number): void {
		this.#peer.note(`reset ${stream.id} ${code}`);
		stream.receiveEnded = true;
		stream.parts = [];
		if (!stream.sendEnded) this.abandon(stream.id, code);
		else this.#release(stream);
	}

	/** Ends our direction of a stream by RESET. */
	abandon(id: number, code: number): void {
		const stream = this.#stream(id);
		stream.queue = [];
		stream.sendEnded = true;
		this.frame(id, frameTypes.RESET, new Writer(4).u32(code).done());
		this.#release(stream);
	}

	#stop(stream: PeerStream, code: number): void {
		this.#peer.note(`stop ${stream.id} ${code}`);
		for (const subscription of this.#peer.subscriptions)
			if ((subscription as { stream?: number }).stream === stream.id) this.#peer.subscriptions.delete(subscription);
		if (!stream.sendEnded) this.abandon(stream.id, code);
	}

	#message(stream: PeerStream, message: wire.Message): void {
		if (stream.id === 1) {
			if (message.type === messageTypes.Error) this.#peer.note(`cancel ${wire.decodeError(message.payload).code}`);
			else this.#unary(1, message);
			return;
		}
		if (message.type === messageTypes.Request) {
			assert.equal(stream.request, undefined, `stream ${stream.id} is free`);
			stream.request = message;
			this.#calls++;
			assert.ok(this.#calls <= (this.#peer.options.maxStreams ?? 32), "no more streams than were stated");
			if (message.flags & flags.STREAM_END) stream.receiveEnded = true;
			this.#begin(stream, message);
		} else if (message.type === messageTypes.Stream) {
			this.#element(stream, message);
			if (message.flags & flags.STREAM_END) this.#endOfElements(stream);
		} else if (message.type === messageTypes.StreamEnd) {
			this.#endOfElements(stream);
		} else if (message.type === messageTypes.Error && stream.id === 2) {
			this.#peer.note(`answer ${wire.decodeError(message.payload).code}`);
		} else if (!(stream.id & 1) && message.type === messageTypes.Error) {
			this.#peer.note(`answer ${wire.decodeError(message.payload).code}`);
			stream.receiveEnded = true;
			this.#release(stream);
		} else {
			assert.fail(`message type ${message.type} on stream ${stream.id}`);
		}
	}

	#name(message: wire.Message, stream: number): string {
		const name = this.#peer.names.get(message.methodId) ?? "";
		this.requests.push({ name, message, stream });
		this.#peer.changed();
		return name;
	}

	#unary(id: number, message: wire.Message): void {
		const { requestId } = message;
		const own = id !== 1;
		const answer = (payload: Uint8Array): void => this.push(id, { type: messageTypes.Response, requestId, payload }, own);
		const fail = (code: keyof typeof errorCodes, text: string, details: wire.ErrorRecord["details"] = []): void =>
			this.push(
				id,
				{
					type: messageTypes.Error,
					requestId,
					payload: wire.encodeError({ code: errorCodes[code], retryAfterMs: 250, message: text, details }),
				},
				own,
			);
		switch (this.#name(message, id)) {
			case "Echo":
				return answer(message.payload);
			case "Fail":
				return fail("NOT_FOUND", "no such item", [["test.Detail", encoder.encode("why")]]);
			case "Hang":
				return;
			case "Big": {
				// on a stream of the acceptor's own
				this.push(4, { type: messageTypes.Response, requestId, payload: new Uint8Array(100_000).fill(5), flags: flags.STREAM_END }, true);
				return;
			}
			case "Drop":
				this.link.cut();
				return;
			case "Publish": {
				const topic = wire.routingValues(message.routing).topic ?? "";
				for (const subscription of this.#peer.subscriptions) subscription.publish(topic, message.payload);
				return answer(new Uint8Array());
			}
			default:
				return fail("UNIMPLEMENTED", "no such method");
		}
	}

	#begin(stream: PeerStream, message: wire.Message): void {
		const { requestId } = message;
		const { id } = stream;
		switch (this.#peer.names.get(message.methodId)) {
			case "Count": {
				this.#name(message, id);
				const {
					n,
					size = 0,
					response,
				} = JSON.parse(new TextDecoder().decode(message.payload)) as { n: number; size?: number; response?: boolean };
				const fill = "x".repeat(size);
				for (let i = 0; i < n; i++)
					this.push(id, { type: messageTypes.Stream, requestId, payload: encoder.encode(JSON.stringify({ i, fill })) });
				if (response) this.push(id, { type: messageTypes.Response, requestId, payload: encoder.encode('"done"') }, true);
				else this.push(id, { type: messageTypes.StreamEnd, requestId }, true);
				return;
			}
			case "Early":
				// answers before the elements have ended
				this.#name(message, id);
				this.frame(id, frameTypes.STOP, new Writer(4).u32(0).done());
				this.push(id, { type: messageTypes.Response, requestId, payload: encoder.encode('"enough"') }, true);
				return;
			case "Subscribe": {
				this.#name(message, id);
				const pattern = wire.routingValues(message.routing).topic ?? "";
				const options = new Reader("", message.payload);
				this.#peer.note(`subscribe ${pattern} ${options.u8("")} ${options.u32("")} ${options.text("")}`);
				this.push(id, { type: messageTypes.Stream, requestId });
				const publish = (topic: string, payload: Uint8Array): void => {
					const routing: wire.Option[] = [[wire.options.TOPIC, encoder.encode(topic)]];
					this.push(id, { type: messageTypes.Stream, requestId, payload, routing, timestamp: 1_700_000_000_000_123n });
				};
				this.#peer.subscriptions.add(Object.assign({ pattern, publish }, { stream: id }));
				return;
			}
			case "Sum":
			case "Chat":
				this.#name(message, id);
				return;
			default:
				if (message.flags & flags.STREAM_END) this.#unary(id, message);
				else this.#name(message, id);
		}
	}

	#element(stream: PeerStream, message: wire.Message): void {
		assert.ok(stream.request, "elements follow a request");
		stream.elements.push(message.payload);
		if (this.#peer.names.get(stream.request.methodId) === "Chat") {
			this.push(stream.id, { type: messageTypes.Stream, requestId: stream.request.requestId, payload: message.payload });
		}
		this.#peer.note(`element ${stream.id}`);
	}

	#endOfElements(stream: PeerStream): void {
		stream.receiveEnded = true;
		const requestId = stream.request?.requestId ?? 0;
		const name = this.#peer.names.get(stream.request?.methodId ?? 0);
		if (name === "Sum") {
			const sum = stream.elements.map((bytes) => Number(JSON.parse(new TextDecoder().decode(bytes)))).reduce((a, b) => a + b, 0);
			this.push(stream.id, { type: messageTypes.Response, requestId, payload: encoder.encode(String(sum)) }, true);
		} else if (name === "Chat") {
			this.push(stream.id, { type: messageTypes.StreamEnd, requestId }, true);
		}
		this.#release(stream);
	}

	/** Announces the end. */
	shutDown(lastRequest: number, graceMs: number): void {
		const payload = wire.encodeShutdown({ code: errorCodes.SHUTTING_DOWN, graceMs, lastRequest, reason: "maintenance", redirect: "" });
		this.#out(control(messageTypes.Shutdown, payload));
	}

	/** Asks for a heartbeat. */
	probe(): void {
		this.#out(control(messageTypes.Heartbeat, wire.encodeHeartbeat({ origin: 0n, received: 0n, load: 0 }), 9));
	}
}
