/**
 * A session, as a client has it: handshake, calls, streams, credit, heartbeats, its end, and resumption. Spec: core.
 *
 * Knows nothing of URLs, and of carriers no more than that they take and give bytes. What happens between sessions, and on which
 * carrier, is for the client.
 */
import { type Carrier, type CarrierEnd, type CarrierSink, CHUNK_MAX } from "./carrier.js";
import { nowUs } from "./clock.js";
import { utf8Encoder } from "./codecs.js";
import { codeOfNumber, type ErrorCode, errorCodes, isRemusError, type RemusError, remusError } from "./errors.js";
import { type Bytes, DecodeError, join, Reader, Writer } from "./wire/bytes.js";
import {
	decodeFrame,
	encodeFrame,
	FRAME_HEADER,
	FRAME_PAYLOAD_MAX,
	frameTypes,
	judgeFrame,
	type RawFrame,
	writeFrameHeader,
} from "./wire/frame.js";
import {
	decodeMessage,
	defaultLimits,
	encodeMessage,
	flags,
	judgeMessage,
	type Message,
	messageTypes,
	type Option,
	ttlFromMs,
} from "./wire/message.js";
import {
	type Capability,
	decodeAnswer,
	decodeCapability,
	decodeError,
	decodeHeartbeat,
	decodeShutdown,
	decodeStreamEnd,
	encodeCapability,
	encodeError,
	encodeHeartbeat,
	encodeRequest,
	encodeShutdown,
	errorOfRecord,
	errorRecord,
	features,
	IDLE_TIMEOUT_EXTENSION,
	MUST_UNDERSTAND,
	RESUME_WINDOW_EXTENSION,
} from "./wire/records.js";

/** Largest frame payload that is taken, in bytes: as large as a peer may send before it knows. */
const MAX_FRAME = 65_536;
/** Largest message that is taken, in bytes: the chapter's limit, and what a broker publishes at most. */
const MAX_MESSAGE = defaultLimits.message;
/** Streams that the peer may have open, for answers above 16 KiB. */
const MAX_STREAMS = 64;
/** Credit of a stream, in bytes: 100 Mbit/s over 80 ms of round trip. */
const STREAM_WINDOW = 1_048_576;
/** Credit of a session, in bytes: several streams at their full speed; bounds what waits for an application that doesn't read. */
const SESSION_WINDOW = 8_388_608;
/** Bytes of messages that are half here, together, by the lengths that their headers announce. Spec: CORE-64. */
const HALF_RECEIVED_MAX = 67_108_864;
/** Calls that wait for their turn; one beyond fails with QUEUE_FULL. More only move the queue from the caller to here. */
export const WAITING_MAX = 4_096;
/** Requests up to this size, header included, go on the shared stream. Spec: CORE-32. */
const SHARED_MAX = 16_384;
/** Bytes that a stream sends in its turn. Spec: CORE-67. */
const TURN_MAX = 16_384;
/** Bytes of elements that may wait on a stream before its requests are pulled no further. */
const QUEUED_MAX = 65_536;
/** Idle timeout that is stated, in ms; the peer's holds where it is lower. Browsers slow the timers of pages that nobody sees. */
const IDLE_TIMEOUT_MS = 30_000;
/** Shortest idle timeout, in ms. Spec: CORE-13. */
const IDLE_TIMEOUT_MIN_MS = 500;
/** How long a session may take until it is active, in ms. Spec: CORE-8. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
/** Control traffic that a peer may send at once, and each second. Spec: CORE-76. */
const CONTROL_BURST = 1_024;
const CONTROL_RATE = 256;
/** Bytes of control frames that may wait for a peer that doesn't read. Spec: CORE-77. */
const CONTROL_QUEUED_MAX = 1_048_576;
/** Round trips of which the smallest counts. */
const RTT_SAMPLES = 8;
/** Longest delay that `setTimeout` takes, in ms. */
const TIMER_MAX_MS = 2_147_483_647;
/** Farthest ahead of our clock that a peer's timestamp is believed, in µs. Spec: CORE-69. */
const CLOCK_AHEAD_US = 60_000_000n;
/** Bytes taken in after which the peer is told, so that it can let go of them: 18 bytes for each 64 KiB. */
const ACK_EVERY = 65_536;
/** Bytes that are kept until the peer has acknowledged them; streams then wait. 8 MiB keep 640 Mbit/s going at 100 ms. */
const RETAINED_MAX = 8_388_608;
/** Bytes of control traffic that may be kept beyond. Spec: CORE-96. */
const CONTROL_RETAINED_MAX = 4_194_304;
/** How long an answer to a request to resume may take before the carrier is given up, in ms. */
const RESUME_TIMEOUT_MS = 5_000;
/** Largest request ID. */
const ID_MAX = 0xffffffff;

/** What the peer takes until it has said so. Spec: core 3.2. */
const initialLimits = {
	maxFrame: 16_448,
	maxMessage: 65_536,
	maxStreams: 0,
	maxCalls: 64,
	streamWindow: 65_536,
	sessionWindow: 65_536,
};

/** One call, as the session sees it. */
export interface CallSpec {
	/** Full name. */
	readonly method: string;
	readonly serviceId: number;
	readonly methodId: number;
	/** One request, one answer. */
	readonly unary: boolean;
	/** `undefined`: elements follow. */
	readonly payload: Uint8Array | undefined;
	readonly flags: number;
	readonly priority: number;
	readonly routing: readonly Option[];
	readonly context: readonly Option[];
	/** When it is over, by `performance.now()`. */
	readonly deadline: number | undefined;
}

/** Whom a call tells. */
export interface CallSink {
	/** The Request is on its way: elements may be sent. */
	opened?(): void;
	/** One element arrived. `taken` is called when the application has it. */
	element?(payload: Uint8Array, message: Message, taken: () => void): void;
	/** The last thing that is heard; `payload` where there was a Response. */
	end(error: RemusError | undefined, payload?: Uint8Array): void;
}

/** A call of ours. */
export interface Call {
	readonly spec: CallSpec;
	readonly sink: CallSink;
	/** 0 while it waits for its turn. */
	id: number;
	stream: Stream | undefined;
	done: boolean;
	timer: ReturnType<typeof setTimeout> | undefined;
}

/** A message that waits to be sent. */
export interface Outgoing {
	readonly bytes: Bytes;
	/** Its direction of the stream ends with it. */
	readonly ends: boolean;
	readonly deadline: number | undefined;
	readonly id: number;
}

/** A stream, as the session keeps it; others read it only. */
export interface Stream {
	readonly id: number;
	/** Whether the present use has begun. */
	inUse: boolean;
	call: Call | undefined;
	queue: Outgoing[];
	queuedBytes: number;
	/** Bytes of `queue[0]` that were sent. */
	cut: number;
	/** Something of this use was sent. */
	opened: boolean;
	sendOffset: number;
	sendLimit: number;
	sendEnded: boolean;
	roomWaiters: (() => void)[];
	receiveOffset: number;
	receiveLimit: number;
	taken: number;
	receiveEnded: boolean;
	/** What arrives is dropped. */
	discarding: boolean;
	/** Of a message that is dropped: its first bytes, up to the flags. */
	head: number[];
	/** A message that is half here. `total` 0: not known yet. */
	partial: { chunks: Uint8Array[]; size: number; total: number } | undefined;
	resets: number;
	stops: number;
}

/** Whom a session tells. */
export interface SessionHooks {
	/** Calls flow. */
	active(): void;
	/** The carrier is gone, and the session waits for another. */
	suspended(reason: string): void;
	/** It goes on, on another carrier. */
	resumed(): void;
	/** It is over; its calls have heard. `refused`: it never was active, and nothing ran. */
	ended(error: RemusError, refused: boolean): void;
}

/** Where a session is, by what it has heard; in the lobby nothing was sent yet. Spec: core 2. */
type Phase = "lobby" | "version" | "capability" | "authentication" | "discovery" | "schema" | "active" | "shutdown" | "closed";

/** See the top of the file. */
export class Session implements CarrierSink {
	readonly #hooks: SessionHooks;
	#phase: Phase = "lobby";
	#carrier: Carrier | undefined;
	#flushing = false;
	/** Frames that have left on the last carrier and have to leave again. */
	#replay: Bytes[] = [];
	/** Frames that go before those of streams. */
	#control: Bytes[] = [];
	#controlBytes = 0;
	/** Streams that have something to send, in the order of their turns. */
	readonly #ready = new Set<Stream>();
	/** Bytes of frames that are not all here, and how many it takes until something can be done. */
	#pending: Uint8Array[] = [];
	#pendingSize = 0;
	#need = FRAME_HEADER;
	/** Whether both sides can resume the session, and with what. */
	#resumable = false;
	#token: Uint8Array | undefined;
	#windowMs: number;
	/** What has left in this epoch and was not acknowledged, and from which offset. */
	#log: Bytes[] = [];
	#logStart = 0;
	#sent = 0;
	/** Bytes of whole frames that were taken in since the epoch began, and of which the peer was told. */
	#takenIn = 0;
	#told = 0;
	/** Something came since then that the peer should hear of: more than ACK and Heartbeat. */
	#untold = false;
	/** The peer was asked for an acknowledgement, because no more may be kept. */
	#asked = false;
	/** On the carrier that there is, it was asked to go on; then the answer is here, but for the token. */
	#resuming: "asked" | "answered" | undefined;
	/** Context of a request to resume: who this client is. Spec: CORE-107. */
	#identity: Option[] = [];
	#resumeTimer: ReturnType<typeof setTimeout> | undefined;
	#windowTimer: ReturnType<typeof setTimeout> | undefined;
	readonly #streams = new Map<number, Stream>();
	readonly #calls = new Map<number, Call>();
	readonly #waiting = new Set<Call>();
	readonly #freeIds: number[] = [];
	#nextStreamId = 3;
	#lastRequestId = 0;
	#peer = initialLimits;
	#sendOffset = 0;
	#sendLimit: number = initialLimits.sessionWindow;
	#receiveOffset = 0;
	#receiveLimit = SESSION_WINDOW;
	#taken = 0;
	/** Lengths of the messages of streams from 3 on that are half here. */
	#halfReceived = 0;
	#latestUs = 0n;
	#idleMs = IDLE_TIMEOUT_MS;
	#heardAt = performance.now();
	#heartbeatTimer: ReturnType<typeof setInterval> | undefined;
	#endTimer: ReturnType<typeof setTimeout> | undefined;
	/** The peer's latest Heartbeat: its timestamp, and when it came. */
	#peerBeat: readonly [sent: bigint, arrived: bigint] = [0n, 0n];
	#lastOrigin = 0n;
	readonly #pings = new Map<bigint, { readonly answered: (rttMs: number) => void; readonly failed: (error: RemusError) => void }>();
	/** The last round trips on this carrier, with the peer's clock minus ours, in ms. */
	readonly rtts: (readonly [rttMs: number, offsetMs: number])[] = [];
	#controlLevel = CONTROL_BURST;
	#controlAt = performance.now();
	#drained: (() => void) | undefined;

	session: number | undefined;
	version: string | undefined;
	bytesSent = 0n;
	bytesReceived = 0n;

	/** Until it begins, a session is where calls wait for it. */
	constructor(hooks: SessionHooks, resumeWindowMs: number) {
		this.#hooks = hooks;
		this.#windowMs = resumeWindowMs;
	}

	/** Begins on an open carrier, with the first flight. */
	begin(carrier: Carrier, bearer: string | undefined): void {
		this.#phase = "version";
		this.#endTimer = setTimeout(() => this.#close("HANDSHAKE_TIMEOUT", "the handshake took too long"), HANDSHAKE_TIMEOUT_MS);
		const handshake = messageTypes.Handshake;
		const idle = new Writer(4).u32(IDLE_TIMEOUT_MS).done();
		const version = {
			major: 2,
			minor: 0,
			features: features.PUB_SUB | features.RESUMPTION,
			compression: 0,
			extensions: [
				[IDLE_TIMEOUT_EXTENSION, idle],
				[RESUME_WINDOW_EXTENSION, new Writer(4).u32(this.#windowMs).done()],
			] as const,
		};
		const capability = {
			nodeType: 1,
			maxFrame: MAX_FRAME,
			maxMessage: MAX_MESSAGE,
			maxStreams: MAX_STREAMS,
			maxCalls: initialLimits.maxCalls,
			streamWindow: STREAM_WINDOW,
			sessionWindow: SESSION_WINDOW,
		};
		const token = utf8Encoder.encode(bearer ?? "");
		this.#sendControl(handshake, encodeRequest({ step: "offer", version }));
		this.#sendControl(messageTypes.Capability, encodeCapability(capability));
		const who = encodeRequest({ step: "authenticate", method: bearer === undefined ? 0 : 1, token, claims: "" });
		if (bearer !== undefined) this.#identity = [[4, who.subarray(1)]];
		this.#sendControl(handshake, who);
		// a Query for nothing in particular, with room for one answer, and an offer of no schemas (CORE-2)
		const query = new Uint8Array(21);
		query[16] = 1;
		this.#sendControl(messageTypes.Query, query, 1);
		this.#sendControl(messageTypes.Schema, Uint8Array.of(1, 0, 0, 0, 0));
		this.#admit();
		this.#attach(carrier);
	}

	get active(): boolean {
		return this.#phase === "active" || this.#phase === "shutdown";
	}

	get closed(): boolean {
		return this.#phase === "closed";
	}

	get openCalls(): number {
		return this.#calls.size;
	}

	get waitingCalls(): number {
		return this.#waiting.size;
	}

	/** Whether it would outlive its carrier. */
	get resumable(): boolean {
		return this.#resumable && this.#phase === "active";
	}

	/** Whether it has no carrier, or waits for the answer on one. */
	get suspended(): boolean {
		return this.active && (this.#carrier === undefined || this.#resuming !== undefined);
	}

	get retained(): number {
		return this.#sent - this.#logStart;
	}

	get credit(): { readonly send: readonly [offset: number, limit: number]; readonly receive: readonly [offset: number, limit: number] } {
		return { send: [this.#sendOffset, this.#sendLimit], receive: [this.#receiveOffset, this.#receiveLimit] };
	}

	/** Streams that are in use. */
	get streams(): readonly Stream[] {
		return [...this.#streams.values()].filter((stream) => stream.inUse);
	}

	// ---- carrier ---------------------------------------------------------------------------------

	#attach(carrier: Carrier): void {
		this.#carrier = carrier;
		this.#heardAt = performance.now();
		this.#pending = [];
		this.#pendingSize = 0;
		this.#need = FRAME_HEADER;
		carrier.start(this);
		this.#flush();
	}

	received(bytes: Uint8Array): void {
		if (!this.#carrier) return;
		this.#heardAt = performance.now();
		this.bytesReceived += BigInt(bytes.length);
		this.#pending.push(bytes);
		this.#pendingSize += bytes.length;
		if (this.#pendingSize < this.#need) return;
		const all = join(this.#pending, this.#pendingSize);
		const carrier = this.#carrier;
		let at = 0;
		try {
			for (;;) {
				const frame = decodeFrame(all, at, MAX_FRAME);
				if (!frame) break;
				const size = FRAME_HEADER + frame.payload.length;
				at += size;
				if (this.#resuming) {
					this.#handleResumed(frame);
				} else {
					this.#takenIn += size;
					if (outlivesCarrier(frame.stream, frame.type, frame.payload[4])) this.#untold = true;
					this.#handleFrame(frame.stream, frame.type, frame.payload);
				}
				if (this.#carrier !== carrier) return;
			}
			this.#need = FRAME_HEADER + (judgeFrame(all, at, MAX_FRAME) ?? 0);
		} catch (error) {
			this.#broken(error);
			return;
		}
		this.#pending = at < all.length ? [all.subarray(at)] : [];
		this.#pendingSize = all.length - at;
		if (this.#takenIn - this.#told >= ACK_EVERY) {
			this.#untold = true;
			this.#acknowledge();
		}
	}

	drained(): void {
		this.#flush();
	}

	ended(end: CarrierEnd): void {
		this.#carrier = undefined;
		const { code, reason } = end;
		if (code === undefined) this.#suspend(`the carrier was lost: ${reason}`);
		else this.#end(errorOfCode(code || errorCodes.LOSS_OF_SESSION, reason || "the peer ended the session"));
	}

	// ---- resumption ------------------------------------------------------------------------------

	/** Goes on without a carrier, for as long as the window lasts; or ends. The carrier was let go of. */
	#suspend(reason: string): void {
		this.#carrier = undefined;
		this.#resuming = undefined;
		clearTimeout(this.#resumeTimer);
		clearInterval(this.#heartbeatTimer);
		const error = remusError("LOSS_OF_SESSION", reason);
		for (const { failed } of [...this.#pings.values()]) failed(error);
		if (!this.resumable) return this.#end(error);
		// an attempt that failed doesn't prolong the window
		this.#windowTimer ??= setTimeout(() => this.#end(error), this.#windowMs);
		this.#hooks.suspended(reason);
	}

	/** Lets go of the carrier, and suspends the session. */
	dropCarrier(reason: string): void {
		this.#carrier?.drop();
		this.#suspend(reason);
	}

	/** Goes on with another carrier, whether or not there still is one. `resumed` or `suspended` follows, or the end. */
	resume(carrier: Carrier): void {
		this.#carrier?.drop();
		clearInterval(this.#heartbeatTimer);
		this.#resuming = "asked";
		const counts = [[0, BigInt(this.#takenIn)]] as const;
		const payload = encodeRequest({ step: "resume", token: this.#token ?? new Uint8Array(32), counts });
		this.#resumeTimer = setTimeout(() => this.dropCarrier("no answer to Resume"), RESUME_TIMEOUT_MS);
		this.#attach(carrier);
		carrier.write(
			encodeFrame(
				0,
				frameTypes.MESSAGE,
				encodeMessage({ type: messageTypes.Handshake, payload, context: this.#identity, timestamp: this.#timestamp() }),
			),
		);
	}

	/** Steps 8 and 5, or 6, which belong to no epoch. */
	#handleResumed(frame: RawFrame): void {
		if (frame.stream !== 0 || frame.type !== frameTypes.MESSAGE) unexpected("no answer to Resume");
		const message = decodeMessage(frame.payload);
		this.#see(message.timestamp);
		if (message.type !== messageTypes.Handshake) unexpected("no answer to Resume");
		const handshake = decodeAnswer(message.payload, notForClients);
		if (handshake.step === "refused") {
			this.#refused(errorOfRecord(handshake.error));
		} else if (handshake.step === "resumed" && this.#resuming === "asked") {
			this.#trim(Number(handshake.counts.find(([lane]) => lane === 0)?.[1] ?? 0n));
			this.#resuming = "answered";
		} else if (handshake.step === "authenticated" && this.#resuming === "answered") {
			this.#token = handshake.token;
			this.#beginEpoch();
		} else {
			unexpected(`handshake step ${handshake.step}`);
		}
	}

	/** What the peer has not taken in leaves again, before all else. */
	#beginEpoch(): void {
		clearTimeout(this.#resumeTimer);
		clearTimeout(this.#windowTimer);
		this.#windowTimer = this.#resuming = undefined;
		this.#replay = [...this.#log.flatMap(framesOf), ...this.#replay].filter(leavesAgain);
		this.#control = this.#control.filter(leavesAgain);
		this.#controlBytes = this.#control.reduce((sum, frame) => sum + frame.length, 0);
		this.#log = [];
		this.#logStart = this.#sent = this.#takenIn = this.#told = 0;
		this.#untold = this.#asked = false;
		this.rtts.length = 0;
		this.#startHeart();
		this.#hooks.resumed();
	}

	/** Lets go of what the peer has taken in. */
	#trim(offset: number): void {
		if (offset > this.#sent || offset < this.#logStart) throw remusError("FLOW_CONTROL", `${offset} of ${this.#sent} bytes were taken in`);
		for (;;) {
			const chunk = this.#log[0];
			const drop = offset - this.#logStart;
			if (!chunk || drop === 0) return;
			if (chunk.length <= drop) this.#log.shift();
			else this.#log[0] = chunk.subarray(drop);
			this.#logStart += Math.min(chunk.length, drop);
		}
	}

	#acknowledge(): void {
		if (!this.resumable || !this.#untold) return;
		this.#untold = false;
		this.#told = this.#takenIn;
		this.#sendFrame(encodeFrame(0, frameTypes.ACK, new Writer(10).u16(0).u64(BigInt(this.#takenIn)).done()));
	}

	// ---- sending ---------------------------------------------------------------------------------

	#wake(): void {
		if (this.#flushing) return;
		this.#flushing = true;
		// what the rest of this turn adds leaves in the same chunk
		queueMicrotask(() => {
			this.#flushing = false;
			this.#flush();
		});
	}

	#flush(): void {
		while (!this.#resuming && this.#carrier?.room()) {
			const chunk = this.#assemble();
			if (!chunk) break;
			this.bytesSent += BigInt(chunk.length);
			this.#sent += chunk.length;
			if (this.#resumable || !this.active) this.#log.push(chunk);
			else this.#logStart = this.#sent;
			this.#carrier.write(chunk);
		}
		if (this.#drained && this.#idle()) this.#drained();
	}

	#idle(): boolean {
		return this.#calls.size + this.#replay.length + this.#control.length + this.#ready.size === 0;
	}

	#assemble(): Bytes | undefined {
		const parts: Uint8Array[] = [];
		let size = 0;
		for (const queue of [this.#replay, this.#control]) {
			for (;;) {
				const frame = queue[0];
				if (!frame) break;
				if (size + frame.length > CHUNK_MAX) return join(parts, size);
				queue.shift();
				if (queue === this.#control) this.#controlBytes -= frame.length;
				parts.push(frame);
				size += frame.length;
			}
		}
		// what acknowledges goes on: otherwise two that are both full would wait for each other
		if (this.retained >= RETAINED_MAX) {
			if (this.retained >= RETAINED_MAX + CONTROL_RETAINED_MAX) this.#close("CONTROL_FLOOD", "nothing is acknowledged");
			else if (this.#ready.size > 0 && !this.#asked) {
				this.#asked = true;
				this.#sendHeartbeat(1);
			}
		} else {
			for (const stream of this.#ready) {
				// a frame's header is added to what a turn takes, and a turn may end with one that is just begun
				if (size + TURN_MAX / 4 > CHUNK_MAX) break;
				const budget = Math.min(TURN_MAX, CHUNK_MAX - size - FRAME_HEADER);
				this.#ready.delete(stream);
				const [bytes, more] = this.#takeTurn(stream, budget, parts);
				size += bytes;
				if (more) this.#ready.add(stream);
			}
		}
		return size > 0 ? join(parts, size) : undefined;
	}

	/** Moves up to `budget` bytes of a stream to `parts`. Returns their number, and whether the stream has more that may go. */
	#takeTurn(stream: Stream, budget: number, parts: Uint8Array[]): [bytes: number, more: boolean] {
		let size = 0;
		const counted = stream.id > 2;
		for (;;) {
			const message = stream.queue[0];
			if (!message) break;
			const { bytes } = message;
			const left = bytes.length - stream.cut;
			const credit = Math.min(
				stream.sendLimit - stream.sendOffset,
				counted ? this.#sendLimit - this.#sendOffset : Number.POSITIVE_INFINITY,
			);
			if (credit <= 0) return [size, false];
			const room = budget - size - FRAME_HEADER;
			// small messages are not cut for the sake of a turn
			if (room <= 0 || (size > 0 && left > room && left <= TURN_MAX)) return [size, true];
			const n = Math.min(left, credit, room, this.#peer.maxFrame);
			if (stream.cut === 0) this.#stamp(message);
			const header = new Uint8Array(FRAME_HEADER);
			const whole = stream.cut === 0 && n === left;
			writeFrameHeader(header, 0, stream.id, whole ? frameTypes.MESSAGE : n === left ? frameTypes.LAST : frameTypes.PART, n);
			parts.push(header, bytes.subarray(stream.cut, stream.cut + n));
			size += FRAME_HEADER + n;
			stream.opened = true;
			stream.cut += n;
			stream.sendOffset += n;
			stream.queuedBytes -= n;
			if (counted) this.#sendOffset += n;
			if (n < left) continue;
			stream.queue.shift();
			stream.cut = 0;
			if (message.ends) {
				this.#endSending(stream);
				break;
			}
			if (stream.queuedBytes < QUEUED_MAX) for (const waiter of stream.roomWaiters.splice(0)) waiter();
		}
		return [size, false];
	}

	/** Writes what a message says about the moment when it is sent. */
	#stamp(message: Outgoing): void {
		const view = new DataView(message.bytes.buffer, message.bytes.byteOffset);
		view.setBigUint64(11, this.#timestamp());
		if (message.deadline !== undefined) view.setUint16(21, ttlFromMs(message.deadline - performance.now()));
	}

	/** The hybrid clock. Spec: CORE-68. */
	#timestamp(): bigint {
		const now = nowUs();
		this.#latestUs = now > this.#latestUs ? now : this.#latestUs + 1n;
		return this.#latestUs;
	}

	// ---- control ---------------------------------------------------------------------------------

	#sendControl(type: number, payload: Uint8Array, requestId = 0, timestamp: bigint = this.#timestamp()): void {
		this.#sendFrame(encodeFrame(0, frameTypes.MESSAGE, encodeMessage({ type, payload, requestId, timestamp })));
	}

	/** A frame that goes before those of streams. */
	#sendFrame(frame: Bytes): void {
		this.#control.push(frame);
		this.#controlBytes += frame.length;
		if (this.#controlBytes > CONTROL_QUEUED_MAX) this.#close("CONTROL_FLOOD", "control frames are not read");
		this.#wake();
	}

	/** Takes one from the bucket of control traffic. Spec: CORE-76. */
	#charge(): void {
		const now = performance.now();
		this.#controlLevel = Math.min(CONTROL_BURST, this.#controlLevel + ((now - this.#controlAt) / 1000) * CONTROL_RATE);
		this.#controlAt = now;
		if (this.#controlLevel < 1) throw remusError("CONTROL_FLOOD", "too much control traffic");
		this.#controlLevel -= 1;
	}

	#handleFrame(id: number, type: number, payload: Uint8Array): void {
		switch (type) {
			case frameTypes.MESSAGE:
			case frameTypes.PART:
			case frameTypes.LAST:
				if (id === 0) {
					if (type !== frameTypes.MESSAGE) unexpected("a control message in parts");
					this.#charge();
					this.#handleControl(decodeMessage(payload));
				} else {
					this.#handleData(id, type, payload);
				}
				return;
			case frameTypes.CREDIT:
				return this.#handleCredit(id, Number(new Reader("CREDIT", payload).u64("limit")));
			case frameTypes.RESET:
			case frameTypes.STOP: {
				if (id < 3) unexpected("RESET or STOP on a shared stream");
				const stream = this.#streams.get(id);
				const reset = type === frameTypes.RESET;
				if (!stream?.inUse || (reset ? stream.resets++ : stream.stops++) > 0) this.#charge();
				if (!stream?.inUse) return;
				const code = new Reader("", payload).u32("code");
				return reset ? this.#handleReset(stream, code) : this.#handleStop(stream, code);
			}
			case frameTypes.REFERENCE:
				throw remusError("UNIMPLEMENTED", "no regions are shared");
			case frameTypes.ACK: {
				if (!this.#resumable) throw remusError("UNIMPLEMENTED", "an ACK without feature 6");
				if (id !== 0 || !this.active) unexpected("an early ACK");
				const reader = new Reader("ACK", payload);
				if (reader.u16("lane") !== 0) throw remusError("FLOW_CONTROL", "an ACK of an unused lane");
				const offset = Number(reader.u64("offset"));
				if (offset <= this.#logStart) return this.#charge();
				this.#trim(offset);
				return this.#wake();
			}
			default:
				this.#charge();
		}
	}

	#handleControl(message: Message): void {
		const { type, payload } = message;
		if (type === messageTypes.Heartbeat) {
			if (!this.active) unexpected("an early Heartbeat");
			this.#handleHeartbeat(message);
			return;
		}
		this.#see(message.timestamp);
		switch (type) {
			case messageTypes.Handshake:
				return this.#handleHandshake(payload);
			case messageTypes.Capability: {
				if (this.#phase !== "capability") unexpected("a second Capability");
				this.#phase = "authentication";
				return this.#setPeerLimits(decodeCapability(payload));
			}
			case messageTypes.Response:
				if (this.#phase === "discovery" && message.requestId === 1) this.#phase = "schema";
				else if (!this.active) unexpected("an early Response");
				return;
			case messageTypes.Query:
				if (!this.active) unexpected("an early Query");
				// this client has no services
				return this.#sendControl(messageTypes.Response, new Uint8Array(4), message.requestId);
			case messageTypes.Schema:
				return this.#handleSchema(payload);
			case messageTypes.Shutdown:
				if (!this.active) unexpected("an early Shutdown");
				return this.#handleShutdown(payload);
			default:
				misplaced(type, 0);
		}
	}

	#handleHandshake(payload: Uint8Array): void {
		const handshake = decodeAnswer(payload, notForClients);
		const { step } = handshake;
		if (step === "accept" && this.#phase === "version") {
			const { major, minor, features: agreed, extensions } = handshake.version;
			if (major !== 2 || minor > 0) throw remusError("UNSUPPORTED_VERSION", `the peer speaks ${major}.${minor}`);
			this.#phase = "capability";
			this.#resumable = (agreed & features.RESUMPTION) !== 0;
			this.version = `${major}.${minor}`;
			for (const [id, value] of extensions) {
				const number = id & ~MUST_UNDERSTAND;
				const ms = (): number => new Reader("", value).u32("");
				if (number === IDLE_TIMEOUT_EXTENSION) {
					this.#idleMs = Math.min(this.#idleMs, Math.max(IDLE_TIMEOUT_MIN_MS, ms()));
				} else if (number === RESUME_WINDOW_EXTENSION) {
					this.#windowMs = Math.min(this.#windowMs, ms());
				} else if (id & MUST_UNDERSTAND) {
					throw remusError("UNSUPPORTED_EXTENSION", `extension ${number} is not known`);
				}
			}
		} else if (step === "authenticated" && this.#phase === "authentication") {
			this.#phase = "discovery";
			this.session = handshake.session;
			this.#token = handshake.token;
			if (this.#token.every((byte) => byte === 0)) this.#resumable = false;
		} else if (step === "challenge" && this.#phase === "authentication") {
			throw remusError("UNAUTHENTICATED", "a challenge, which a bearer token can't answer");
		} else if (step === "refused") {
			this.#refused(errorOfRecord(handshake.error));
		} else {
			unexpected(`handshake step ${step}`);
		}
	}

	/** Step 6 ends the session for both sides. */
	#refused(error: RemusError): void {
		const carrier = this.#carrier;
		this.#carrier = undefined;
		void carrier?.close(0, "");
		this.#end(error);
	}

	#handleSchema(payload: Uint8Array): void {
		const reader = new Reader("Schema", payload);
		const step = reader.u8("step");
		const entries = reader.u32("entry_count");
		if (step === 2 && this.#phase === "schema") {
			if (entries > 0) throw remusError("UNIMPLEMENTED", "a schema that was not offered");
			this.#activate();
		} else if (!this.active) {
			unexpected("an early Schema");
		} else if (step === 1) {
			this.#sendControl(messageTypes.Schema, Uint8Array.of(2, 0, 0, 0, 0));
		} else if (entries > 0) {
			throw remusError("UNIMPLEMENTED", "a schema that was not offered");
		}
	}

	#activate(): void {
		clearTimeout(this.#endTimer);
		this.#phase = "active";
		if (!this.#resumable) {
			this.#log = [];
			this.#logStart = this.#sent;
		}
		this.#startHeart();
		this.#hooks.active();
		this.#admit();
	}

	#setPeerLimits(limits: Capability): void {
		for (const key of Object.keys(initialLimits) as (keyof typeof initialLimits)[]) {
			if (limits[key] < initialLimits[key]) throw remusError("MALFORMED", `${key} of ${limits[key]} is below the initial one`);
		}
		this.#peer = limits;
		this.#sendLimit = Math.max(this.#sendLimit, limits.sessionWindow);
		for (const stream of this.#streams.values()) {
			stream.sendLimit = Math.max(stream.sendLimit, limits.streamWindow);
			this.#makeReady(stream);
		}
	}

	// ---- heartbeats ------------------------------------------------------------------------------

	#startHeart(): void {
		this.#heartbeatTimer = setInterval(() => this.#beat(), this.#idleMs / 3);
		this.#beat();
	}

	#beat(): void {
		if (performance.now() - this.#heardAt < this.#idleMs) {
			this.#sendHeartbeat(1);
			return;
		}
		const reason = `nothing was heard for ${this.#idleMs} ms`;
		if (this.resumable) this.dropCarrier(reason);
		else this.#close("IDLE_TIMEOUT", reason);
	}

	#sendHeartbeat(requestId: number): bigint {
		const [origin, received] = this.#peerBeat;
		const sent = nowUs();
		this.#acknowledge();
		this.#sendControl(messageTypes.Heartbeat, encodeHeartbeat({ origin, received, load: 0 }), requestId, sent);
		return sent;
	}

	/** Sends a probe, and tells the round trip in ms when it is answered. Returns how to stop waiting. */
	ping(answered: (rttMs: number) => void, failed: (error: RemusError) => void): () => void {
		const sent = this.#sendHeartbeat(1);
		this.#pings.set(sent, { answered, failed });
		return () => this.#pings.delete(sent);
	}

	#handleHeartbeat(message: Message): void {
		const now = nowUs();
		const { origin, received } = decodeHeartbeat(message.payload);
		const sent = message.timestamp;
		this.#peerBeat = [sent, now];
		if (origin > this.#lastOrigin && origin <= now) {
			this.#lastOrigin = origin;
			const rttMs = Number(now - origin - (sent - received)) / 1000;
			const offsetMs = Number((received - origin + (sent - now)) / 2n) / 1000;
			if (rttMs >= 0) {
				this.rtts.push([rttMs, offsetMs]);
				if (this.rtts.length > RTT_SAMPLES) this.rtts.shift();
			}
			for (const [at, { answered }] of this.#pings) {
				if (at > origin) continue;
				this.#pings.delete(at);
				answered(Number(now - at) / 1000);
			}
		}
		if (message.requestId !== 0) this.#sendHeartbeat(0);
	}

	/** Takes a peer's timestamp into the hybrid clock. Spec: CORE-68, CORE-69. */
	#see(timestamp: bigint): void {
		const limit = nowUs() + CLOCK_AHEAD_US;
		const seen = timestamp > limit ? limit : timestamp;
		if (seen > this.#latestUs) this.#latestUs = seen;
	}

	// ---- data ------------------------------------------------------------------------------------

	#stream(id: number): Stream {
		let stream = this.#streams.get(id);
		if (!stream) {
			stream = newStream(id, this.#peer.streamWindow);
			this.#streams.set(id, stream);
		}
		return stream;
	}

	#use(stream: Stream): void {
		stream.inUse = true;
		stream.opened = stream.sendEnded = stream.receiveEnded = stream.discarding = false;
		stream.resets = stream.stops = 0;
	}

	#handleData(id: number, type: number, payload: Uint8Array): void {
		const stream = this.#stream(id);
		if (!stream.inUse) {
			if (id & 1) throw remusError("STREAM_STATE", `stream ${id} is not in use`);
			this.#use(stream);
			if (id > 2 * MAX_STREAMS + 2) {
				this.#charge();
				this.#refuse(stream, "TOO_MANY_STREAMS");
			}
		} else if (stream.receiveEnded) {
			throw remusError("STREAM_STATE", `data after the end on stream ${id}`);
		}
		const size = payload.length;
		stream.receiveOffset += size;
		if (id > 2) this.#receiveOffset += size;
		if (stream.receiveOffset > stream.receiveLimit || this.#receiveOffset > this.#receiveLimit) {
			throw remusError("FLOW_CONTROL", `more than the credit on stream ${id}`);
		}
		if (stream.discarding) {
			this.#take(stream, size);
			this.#drop(stream, payload, type);
			return;
		}
		const partial = stream.partial;
		if (type === frameTypes.MESSAGE) {
			if (partial) throw remusError("MALFORMED", "a message inside a message");
			this.#handleMessage(stream, decodeMessage(payload), size);
			return;
		}
		if (!partial && type === frameTypes.LAST) unexpected("LAST without PART");
		this.#handlePart(stream, partial ?? this.#beginPartial(stream), type, payload);
	}

	#beginPartial(stream: Stream): NonNullable<Stream["partial"]> {
		stream.partial = { chunks: [], size: 0, total: 0 };
		return stream.partial;
	}

	#handlePart(stream: Stream, partial: NonNullable<Stream["partial"]>, type: number, payload: Uint8Array): void {
		partial.chunks.push(payload);
		partial.size += payload.length;
		if (partial.total === 0) {
			// judged by as much of the header as is here
			const total = judgeMessage(join(partial.chunks, partial.size), defaultLimits);
			if (total > 0 && partial.size >= 27) {
				partial.total = total;
				if (stream.id > 2) this.#halfReceived += total;
				if (this.#halfReceived > HALF_RECEIVED_MAX && stream.id > 2) return this.#giveUpHalf(stream);
				this.#grant(stream);
			}
		}
		const last = type === frameTypes.LAST;
		if (last ? partial.size !== (partial.total || partial.size) : partial.total > 0 && partial.size >= partial.total) {
			throw remusError("MALFORMED", "parts that don't add up");
		}
		if (!last) return;
		this.#dropPartial(stream);
		this.#handleMessage(stream, decodeMessage(join(partial.chunks, partial.size)), partial.size);
	}

	/** Forgets a message that is half here. Returns how many bytes of it had come. */
	#dropPartial(stream: Stream): number {
		const partial = stream.partial;
		if (!partial) return 0;
		if (stream.id > 2) this.#halfReceived -= partial.total;
		stream.partial = undefined;
		return partial.size;
	}

	/** There is no room for the message that begins here. Spec: CORE-64. */
	#giveUpHalf(stream: Stream): void {
		const call = stream.call;
		if (call) this.cancel(call, remusError("RESOURCE_EXHAUSTED", "too much is half-received"));
		else this.#refuse(stream, "RESOURCE_EXHAUSTED");
	}

	/** STOP and RESET on a stream that the peer has opened. */
	#refuse(stream: Stream, code: ErrorCode): void {
		this.#discard(stream);
		this.#sendCode(stream, frameTypes.STOP, errorCodes[code]);
		this.#reset(stream, errorCodes[code]);
	}

	/** What is dropped may hold the end of its direction: its flags tell. */
	#drop(stream: Stream, payload: Uint8Array, type: number): void {
		const { head } = stream;
		head.push(...payload.subarray(0, Math.max(0, 7 - head.length)));
		if (type === frameTypes.PART) return;
		const message = { type: head[4] ?? 0, flags: head[6] ?? 0 };
		stream.head = [];
		if (endsDirection(message)) this.#endReceiving(stream);
	}

	/** Drops what arrives on a stream from now on, and what is half here. */
	#discard(stream: Stream): void {
		const { partial } = stream;
		stream.discarding = true;
		if (partial) stream.head = [...join(partial.chunks, partial.size).subarray(0, 7)];
		this.#take(stream, this.#dropPartial(stream));
	}

	#take(stream: Stream, size: number): void {
		stream.taken += size;
		if (stream.id > 2) this.#taken += size;
		this.#grant(stream);
	}

	/** States more credit where half a window is not stated yet. Spec: CORE-60, CORE-63. */
	#grant(stream: Stream): void {
		const limit = stream.taken + STREAM_WINDOW + (stream.partial?.total ?? 0);
		if (limit - stream.receiveLimit >= STREAM_WINDOW / 2) {
			stream.receiveLimit = limit;
			this.#sendCredit(stream.id, limit);
		}
		const session = this.#taken + SESSION_WINDOW + this.#halfReceived;
		if (session - this.#receiveLimit >= SESSION_WINDOW / 2) {
			this.#receiveLimit = session;
			this.#sendCredit(0, session);
		}
	}

	#sendCredit(id: number, limit: number): void {
		if (this.#phase !== "closed") this.#sendFrame(encodeFrame(id, frameTypes.CREDIT, new Writer(8).u64(BigInt(limit)).done()));
	}

	#handleCredit(id: number, limit: number): void {
		if (id === 0) {
			if (limit <= this.#sendLimit) return this.#charge();
			this.#sendLimit = limit;
			for (const stream of this.#streams.values()) this.#makeReady(stream);
			return;
		}
		if (id > 2 && id > 2 * (id & 1 ? this.#peer.maxStreams : MAX_STREAMS) + 2) throw remusError("STREAM_STATE", `credit for stream ${id}`);
		const stream = this.#stream(id);
		if (limit <= stream.sendLimit) return this.#charge();
		stream.sendLimit = limit;
		this.#makeReady(stream);
	}

	#makeReady(stream: Stream): void {
		if (stream.queue.length === 0) return;
		this.#ready.add(stream);
		this.#wake();
	}

	#queue(stream: Stream, bytes: Bytes, ends: boolean, call?: Call): void {
		stream.queue.push({ bytes, ends, deadline: call?.spec.deadline, id: call?.id ?? 0 });
		stream.queuedBytes += bytes.length;
		this.#makeReady(stream);
	}

	#sendCode(stream: Stream, type: number, code: number): void {
		this.#sendFrame(encodeFrame(stream.id, type, new Writer(4).u32(code).done()));
	}

	/** Abandons our direction of a stream. */
	#reset(stream: Stream, code: number): void {
		if (stream.sendEnded) return;
		stream.queue = [];
		stream.cut = stream.queuedBytes = 0;
		this.#ready.delete(stream);
		this.#sendCode(stream, frameTypes.RESET, code);
		this.#endSending(stream);
	}

	#endSending(stream: Stream): void {
		stream.sendEnded = true;
		for (const waiter of stream.roomWaiters.splice(0)) waiter();
		this.#release(stream);
	}

	#endReceiving(stream: Stream): void {
		stream.receiveEnded = true;
		stream.head = [];
		this.#take(stream, this.#dropPartial(stream));
		this.#release(stream);
	}

	/** A stream of which both directions have ended is free. */
	#release(stream: Stream): void {
		if (!stream.inUse || !stream.sendEnded || !stream.receiveEnded) return;
		stream.inUse = false;
		stream.call = undefined;
		if (stream.id & 1) this.#freeIds.push(stream.id);
		this.#admit();
	}

	#handleReset(stream: Stream, code: number): void {
		if (stream.receiveEnded) return;
		const call = stream.call;
		this.#endReceiving(stream);
		this.#reset(stream, code);
		if (call) this.#finish(call, errorOfCode(code || errorCodes.CANCELLED, "the peer gave the call up"));
	}

	#handleStop(stream: Stream, code: number): void {
		this.#reset(stream, code);
	}

	#handleMessage(stream: Stream, message: Message, size: number): void {
		this.#see(message.timestamp);
		if (message.flags & flags.COMPRESSED) throw remusError("UNIMPLEMENTED", "no compression was agreed on");
		const { id } = stream;
		const answer = message.type === messageTypes.Response || message.type === messageTypes.Error;
		if (id === 1) {
			if (!answer) misplaced(message.type, 1);
			this.#take(stream, size);
			this.#handleAnswer(this.#calls.get(message.requestId), message);
		} else if (id === 2) {
			this.#take(stream, size);
			if (message.type === messageTypes.Request) this.#refuseRequest(stream, message);
			else if (message.type !== messageTypes.Error) misplaced(message.type, 2);
		} else if (id & 1) {
			this.#handleOwn(stream, message, size);
		} else {
			this.#take(stream, size);
			if (!answer && message.type !== messageTypes.Request) misplaced(message.type, id);
			if (answer) {
				this.#endReceiving(stream);
				this.#reset(stream, 0);
				this.#handleAnswer(this.#calls.get(message.requestId), message);
			} else {
				this.#refuseRequest(stream, message);
			}
		}
	}

	/** This client has no services. */
	#refuseRequest(stream: Stream, message: Message): void {
		if (!this.active) unexpected("an early Request");
		const own = stream.id > 2;
		if (own && message.flags & flags.STREAM_END) {
			stream.receiveEnded = true;
		} else if (own) {
			this.#discard(stream);
			this.#sendCode(stream, frameTypes.STOP, 0);
		} else if (message.requestId === 0) {
			return;
		}
		const payload = encodeError(errorRecord("UNIMPLEMENTED", "this client has no services"));
		this.#queue(stream, encodeMessage({ type: messageTypes.Error, requestId: message.requestId, payload }), own);
	}

	/** A Response or an Error ends its call. One that nobody waits for has crossed a cancel (CORE-36). */
	#handleAnswer(call: Call | undefined, message: Message): void {
		if (!call || call.stream) return;
		if (message.type === messageTypes.Error) this.#finish(call, errorOfRecord(decodeError(message.payload)));
		else this.#finish(call, undefined, message.payload);
	}

	#handleOwn(stream: Stream, message: Message, size: number): void {
		const call = stream.call;
		const { type, payload } = message;
		if (type === messageTypes.Stream) {
			let left = size;
			const taken = (): void => {
				const now = left;
				left = 0;
				if (now > 0 && !this.closed) this.#take(stream, now);
			};
			if (call?.sink.element) call.sink.element(payload, message, taken);
			else taken();
		} else {
			this.#take(stream, size);
		}
		if (!endsDirection(message)) {
			if (type !== messageTypes.Stream) misplaced(type, stream.id);
			return;
		}
		this.#endReceiving(stream);
		// nobody reads what would still come from us; the peer has said so by STOP before this (CORE-35)
		this.#reset(stream, 0);
		if (!call) return;
		if (type === messageTypes.Response) return this.#finish(call, undefined, payload);
		const error =
			type === messageTypes.Error ? decodeError(payload) : type === messageTypes.StreamEnd ? decodeStreamEnd(payload) : undefined;
		this.#finish(call, error && errorOfRecord(error));
	}

	// ---- calls -----------------------------------------------------------------------------------

	/** Makes a call, when its turn comes. */
	call(spec: CallSpec, sink: CallSink): Call {
		const call: Call = { spec, sink, id: 0, stream: undefined, done: false, timer: undefined };
		this.adopt(call);
		return call;
	}

	/** Takes a call over that has not begun. After a Shutdown it waits, for the client to make it on the next session. */
	adopt(call: Call): void {
		if (this.#waiting.size >= WAITING_MAX) {
			call.done = true;
			call.sink.end(remusError("QUEUE_FULL", `${WAITING_MAX} calls are waiting`));
			return;
		}
		this.#waiting.add(call);
		this.#watch(call);
		this.#admit();
	}

	#watch(call: Call): void {
		const { deadline } = call.spec;
		if (deadline === undefined) return;
		clearTimeout(call.timer);
		const left = deadline - performance.now();
		call.timer = setTimeout(
			() => {
				if (left > TIMER_MAX_MS) this.#watch(call);
				else this.cancel(call, remusError("DEADLINE_EXCEEDED", "no answer in time"));
			},
			Math.min(Math.max(0, left), TIMER_MAX_MS),
		);
	}

	/** Begins calls whose turn it is. */
	#admit(): void {
		if (this.#phase === "lobby") return;
		for (const call of this.#waiting) {
			if (this.#calls.size >= this.#peer.maxCalls || this.#phase === "shutdown" || this.#phase === "closed") return;
			const { spec } = call;
			const bytes = this.#request(call);
			const limit = this.#peer.maxMessage;
			if (bytes.length > limit && this.active) {
				this.#waiting.delete(call);
				this.#finish(call, tooLarge(bytes.length, limit));
				continue;
			}
			const shared = spec.unary && (bytes.length <= SHARED_MAX || (this.active && this.#peer.maxStreams === 0));
			// before the session is active nothing but small requests on stream 1 may leave (CORE-5)
			if (!this.active && !shared) continue;
			const stream = shared ? this.#stream(1) : this.#freeStream();
			if (!stream) continue;
			this.#waiting.delete(call);
			this.#begin(call, stream, shared, bytes);
		}
	}

	#request(call: Call): Bytes {
		return encodeMessage({ ...call.spec, type: messageTypes.Request });
	}

	#begin(call: Call, stream: Stream, shared: boolean, bytes: Bytes): void {
		do {
			this.#lastRequestId = this.#lastRequestId === ID_MAX ? 1 : this.#lastRequestId + 1;
		} while (this.#calls.has(this.#lastRequestId));
		call.id = this.#lastRequestId;
		this.#calls.set(call.id, call);
		const view = new DataView(bytes.buffer, bytes.byteOffset);
		view.setUint32(7, call.id);
		const ends = !shared && call.spec.payload !== undefined;
		if (ends) view.setUint16(5, call.spec.flags | flags.STREAM_END);
		if (!shared) {
			this.#use(stream);
			call.stream = stream;
			stream.call = call;
		}
		this.#queue(stream, bytes, ends, call);
		call.sink.opened?.();
	}

	#freeStream(): Stream | undefined {
		const highest = 2 * this.#peer.maxStreams + 1;
		let id = this.#freeIds.pop();
		if (id === undefined && this.#nextStreamId <= highest) {
			id = this.#nextStreamId;
			this.#nextStreamId += 2;
		}
		return id === undefined ? undefined : this.#stream(id);
	}

	/** Sends an element. Settles when there is room for the next: `false` where none is wanted any more. */
	async element(call: Call, payload: Uint8Array): Promise<boolean> {
		const stream = call.stream;
		if (call.done || !stream || stream.sendEnded) return false;
		const { id, spec } = call;
		const bytes = encodeMessage({ type: messageTypes.Stream, requestId: id, priority: spec.priority, payload });
		if (bytes.length > this.#peer.maxMessage) {
			this.cancel(call, tooLarge(bytes.length, this.#peer.maxMessage));
			return false;
		}
		this.#queue(stream, bytes, false);
		if (stream.queuedBytes >= QUEUED_MAX) await new Promise<void>((resolve) => stream.roomWaiters.push(resolve));
		return !call.done && !stream.sendEnded;
	}

	/** Ends the elements of a call. */
	endElements(call: Call): void {
		const stream = call.stream;
		if (call.done || !stream || stream.sendEnded) return;
		this.#queue(stream, encodeMessage({ type: messageTypes.StreamEnd, requestId: call.id, priority: call.spec.priority }), true);
	}

	/** Gives a call up, with the error that its caller gets. Spec: CORE-37. */
	cancel(call: Call, error: RemusError): void {
		if (call.done) return;
		const { id, stream } = call;
		this.#waiting.delete(call);
		this.#finish(call, error);
		if (this.closed || id === 0) return;
		if (!stream) {
			const shared = this.#stream(1);
			const at = shared.queue.findIndex((message) => message.id === id);
			const queued = shared.queue[at];
			if (queued && (at > 0 || shared.cut === 0)) {
				shared.queue.splice(at, 1);
				shared.queuedBytes -= queued.bytes.length;
			} else {
				this.#queue(
					shared,
					encodeMessage({ type: messageTypes.Error, requestId: id, payload: encodeError(errorRecord(error.code, error.message)) }),
					false,
				);
			}
			return;
		}
		stream.call = undefined;
		if (!stream.opened) {
			// nothing of it has left: the ID is free again
			stream.queue = [];
			stream.queuedBytes = 0;
			this.#ready.delete(stream);
			stream.receiveEnded = true;
			this.#endSending(stream);
			return;
		}
		if (!stream.receiveEnded) {
			this.#discard(stream);
			this.#sendCode(stream, frameTypes.STOP, errorCodes[error.code]);
		}
		this.#reset(stream, errorCodes[error.code]);
	}

	#finish(call: Call, error: RemusError | undefined, payload?: Uint8Array): void {
		if (call.done) return;
		call.done = true;
		clearTimeout(call.timer);
		if (this.#calls.delete(call.id)) this.#wake();
		call.sink.end(error, payload);
		this.#admit();
	}

	/** Hands over the calls of which nothing has left, to another session. */
	takeWaiting(): Call[] {
		const calls = [...this.#waiting];
		this.#waiting.clear();
		for (const call of calls) clearTimeout(call.timer);
		return calls;
	}

	// ---- the end ---------------------------------------------------------------------------------

	#handleShutdown(payload: Uint8Array): void {
		const shutdown = decodeShutdown(payload);
		this.#phase = "shutdown";
		const refused = remusError("SHUTTING_DOWN", shutdown.reason || "the peer is shutting down");
		for (const call of [...this.#calls.values()]) {
			const ahead = (call.id - shutdown.lastRequest) >>> 0;
			if (shutdown.lastRequest === 0 || (ahead > 0 && ahead < 0x7fffffff)) this.cancel(call, refused);
		}
		clearTimeout(this.#endTimer);
		this.#endTimer = setTimeout(() => this.#close("SHUTTING_DOWN", "the grace is over"), Math.min(shutdown.graceMs, TIMER_MAX_MS));
	}

	/** Announces the end, waits for what is open, and closes in good order. */
	async shutDown(graceMs: number): Promise<void> {
		if (this.#phase === "closed") return;
		const error = remusError("CANCELLED", "the client was closed");
		for (const call of this.takeWaiting()) {
			call.done = true;
			call.sink.end(error);
		}
		if (this.active && this.#carrier) {
			this.#sendControl(messageTypes.Shutdown, encodeShutdown({ code: 0, graceMs, lastRequest: 0, reason: "", redirect: "" }));
			this.#phase = "shutdown";
			await new Promise<void>((resolve) => {
				this.#drained = resolve;
				clearTimeout(this.#endTimer);
				this.#endTimer = setTimeout(resolve, graceMs);
				this.#wake();
			});
		}
		const carrier = this.#carrier;
		this.#carrier = undefined;
		this.#end(error);
		await carrier?.close(0, "");
	}

	/** Ends the session here, without a word to the peer. */
	abandon(error: RemusError): void {
		this.#carrier = undefined;
		this.#end(error);
	}

	#broken(error: unknown): void {
		if (error instanceof DecodeError) this.#close(error.code, error.message);
		else if (isRemusError(error)) this.#close(error.code, error.message);
		else {
			this.#close("INTERNAL", "an error of the client");
			throw error;
		}
	}

	/** Ends the session: the peer broke a rule, or is silent. */
	#close(code: ErrorCode, reason: string): void {
		if (this.#phase === "closed") return;
		const carrier = this.#carrier;
		this.#carrier = undefined;
		void carrier?.close(errorCodes[code], reason);
		this.#end(remusError(code, reason));
	}

	#end(error: RemusError): void {
		if (this.#phase === "closed") return;
		const refused = !this.active;
		this.#phase = "closed";
		clearTimeout(this.#endTimer);
		clearInterval(this.#heartbeatTimer);
		clearTimeout(this.#windowTimer);
		clearTimeout(this.#resumeTimer);
		this.#log = [];
		this.#replay = [];
		this.#logStart = this.#sent;
		for (const { failed } of [...this.#pings.values()]) failed(error);
		// a code that promises that nothing ran would be a lie for what is open (CORE-84)
		const kept = error.refusedBeforeItRan || error.code === "IDLE_TIMEOUT" || error.code === "CANCELLED";
		const forCalls = refused ? error : kept ? remusError("LOSS_OF_SESSION", error.message, { cause: error }) : error;
		for (const call of [...this.#calls.values()]) this.#finish(call, forCalls);
		for (const stream of this.#streams.values()) for (const waiter of stream.roomWaiters.splice(0)) waiter();
		this.#drained?.();
		this.#hooks.ended(error, refused);
	}
}

function errorOfCode(number: number, message: string): RemusError {
	return remusError(codeOfNumber(number), message, { number });
}

function tooLarge(size: number, limit: number): RemusError {
	return remusError("MESSAGE_TOO_LARGE", `${size} bytes are above the peer's limit of ${limit}`);
}

function misplaced(type: number, stream: number): never {
	unexpected(`message type ${type} on stream ${stream}`);
}

function notForClients(): never {
	unexpected("a client's step");
}

function unexpected(what: string): never {
	throw remusError("UNEXPECTED_MESSAGE", what);
}

/** Whether a message on an own stream ends its direction. */
function endsDirection(message: Pick<Message, "type" | "flags">): boolean {
	const { type } = message;
	return (
		type === messageTypes.Response ||
		type === messageTypes.Error ||
		type === messageTypes.StreamEnd ||
		(type === messageTypes.Stream && (message.flags & flags.STREAM_END) !== 0)
	);
}

/** The frames of a chunk. */
function framesOf(chunk: Bytes): Bytes[] {
	const list: Bytes[] = [];
	for (let at = 0; at < chunk.length; ) {
		const size = FRAME_HEADER + (judgeFrame(chunk, at, FRAME_PAYLOAD_MAX) ?? 0);
		list.push(chunk.subarray(at, at + size));
		at += size;
	}
	return list;
}

/** Whether a frame means something beyond its carrier: acknowledgements count the bytes of one, heartbeats measure it. */
function outlivesCarrier(stream: number, type: number | undefined, messageType: number | undefined): boolean {
	return type !== frameTypes.ACK && !(stream === 0 && type === frameTypes.MESSAGE && messageType === messageTypes.Heartbeat);
}

function leavesAgain(frame: Bytes): boolean {
	return outlivesCarrier((frame[0] as number) | (frame[1] as number), frame[3], frame[FRAME_HEADER + 4]);
}

function newStream(id: number, sendLimit: number): Stream {
	return {
		id,
		// streams 1 and 2 are there from the start, and have no end
		inUse: id < 3,
		call: undefined,
		queue: [],
		queuedBytes: 0,
		cut: 0,
		opened: false,
		sendOffset: 0,
		sendLimit,
		sendEnded: false,
		roomWaiters: [],
		receiveOffset: 0,
		receiveLimit: STREAM_WINDOW,
		taken: 0,
		receiveEnded: false,
		discarding: false,
		head: [],
		partial: undefined,
		resets: 0,
		stops: 0,
	};
}
