/** The HTTP link, read by long-polling or by server-sent events. Spec: carriers 3 to 6. */
import {
	aborted,
	BUFFERED_MAX,
	type Carrier,
	type CarrierEnd,
	type CarrierSink,
	CLOSE_MS,
	LINK_MESSAGE_MAX,
	type OpenCarrier,
	refusal,
	type Target,
	wholeFrames,
} from "../carrier.js";
import { errorCodes, isRemusError, type RemusError, remusError } from "../errors.js";
import { type Bytes, join } from "../wire/bytes.js";

/** How long requests are repeated that find nobody, in ms; then the link is lost. Spec: carriers 6. */
const RETRY_MS = 10_000;
/** First pause between them, in ms; doubled each time. */
const RETRY_PAUSE_MS = 100;
/** How long they are repeated before anything has come, in ms: so long may a node have no answer where a proxy lets none through. */
const FIRST_MS = 1_000;
/** How long an answer may take beyond the hold, in ms. Spec: CARR-22. */
const PATIENCE_MS = 10_000;
/** How long the first event may take, in ms; later there is a proxy in between that gathers answers. Spec: CARR-26. */
const PROBE_MS = 2_000;
/** What may be taken before it is acknowledged, in bytes, and for how long, in ms: half of CARR-29. */
const ACK_BYTES = 524_288;
const ACK_MS = 500;
/** Longest line of an event stream, in bytes: the base64 of 1 MiB, and a field's name. */
const LINE_MAX = (LINK_MESSAGE_MAX * 4) / 3 + 64;

/** The link is over: by a code, or lost. */
class LinkEnd extends Error {
	readonly end: CarrierEnd;
	/** Whether the node has said so, by the answer that is its alone. */
	readonly byNode: boolean;

	constructor(code: number | undefined, reason: string, byNode = false) {
		super(reason);
		this.end = { code, reason };
		this.byNode = byNode;
	}
}

interface Opened {
	readonly id: string;
	readonly secret: string;
	readonly hold_ms: number;
	readonly up_max: number;
}

/** Opens a link that is read by `down`. */
export const openPoll: OpenCarrier = (target, signal) => open("http-poll", target, signal);

/** Opens a link that is read by `events`; settles when the first event has come. */
export const openEvents: OpenCarrier = async (target, signal) => {
	const link = await open("http-events", target, signal);
	try {
		await link.openEvents(signal);
		return link;
	} catch (error) {
		void link.close(0, "");
		throw signal.aborted
			? aborted(signal)
			: isRemusError(error)
				? error
				: remusError("UNAVAILABLE", "events don't come through", { cause: error });
	}
};

async function open(kind: "http-poll" | "http-events", target: Target, signal: AbortSignal): Promise<HttpCarrier> {
	const url = `${target.url}/remus/v2/sessions`;
	let response: Response;
	try {
		response = await target.fetch(url, { method: "POST", signal, cache: "no-store", credentials: "omit" });
		if (response.status === 201) {
			const opened = (await response.json()) as Opened;
			if (typeof opened.id !== "string" || typeof opened.secret !== "string") throw new TypeError("the answer names no link");
			return new HttpCarrier(kind, target, `${url}/${opened.id}`, opened);
		}
	} catch (error) {
		if (signal.aborted) throw aborted(signal);
		throw remusError("UNAVAILABLE", `${url} can't be reached`, { cause: error });
	}
	throw await refusalOf(response);
}

async function problem(response: Response): Promise<{ code?: unknown; message?: unknown; error?: unknown }> {
	try {
		return ((await response.json()) ?? {}) as object;
	} catch {
		return {};
	}
}

async function refusalOf(response: Response): Promise<RemusError> {
	const { message } = await problem(response);
	return refusal(response.status, typeof message === "string" ? message : `answered with ${response.status}`);
}

/** What an answer that is none of those that are expected means for the link; `undefined`: the request is to be repeated. Spec: carriers 6. */
async function judge(response: Response): Promise<LinkEnd | undefined> {
	const { status } = response;
	if (status === 408 || status === 429 || status >= 500) return undefined;
	const { message, error } = await problem(response);
	const reason = typeof message === "string" ? message : `answered with ${status}`;
	if (status === 410) return new LinkEnd(typeof error === "number" ? error : 0, reason, true);
	if (status === 404 || status === 409) return new LinkEnd(undefined, reason);
	return new LinkEnd(errorCodes[refusal(status, reason).code], reason);
}

class HttpCarrier implements Carrier {
	readonly kind: "http-poll" | "http-events";
	readonly #target: Target;
	readonly #url: string;
	readonly #opened: Opened;
	#sink: CarrierSink | undefined;
	/** Aborted when the link is over here. */
	readonly #stop = new AbortController();
	#queue: Bytes[] = [];
	#queuedBytes = 0;
	/** The number of the last `up`. */
	#sequence = 0;
	#sending: Promise<void> | undefined;
	/** The highest number that was taken, and that the peer was told of. */
	#taken = 0;
	#acknowledged = 0;
	#unacknowledgedBytes = 0;
	#ackTimer: ReturnType<typeof setTimeout> | undefined;
	#events: AsyncIterator<SseEvent> | undefined;
	#early: CarrierEnd | undefined;

	constructor(kind: "http-poll" | "http-events", target: Target, url: string, opened: Opened) {
		this.kind = kind;
		this.#target = target;
		this.#url = url;
		this.#opened = opened;
	}

	start(sink: CarrierSink): void {
		this.#sink = sink;
		if (this.#early) this.#end(this.#early);
		else void this.#guard(this.kind === "http-poll" ? this.#poll() : this.#readEvents());
	}

	/** Ends the link when what runs fails. */
	async #guard(running: Promise<void>): Promise<void> {
		try {
			await running;
		} catch (error) {
			if (this.#stop.signal.aborted) return;
			this.#end(error instanceof LinkEnd ? error.end : { code: undefined, reason: String(error) });
		}
	}

	#end(end: CarrierEnd): void {
		const sink = this.#sink;
		this.#detach();
		if (sink) sink.ended(end);
		else this.#early = end;
	}

	#detach(): void {
		this.#sink = undefined;
		clearTimeout(this.#ackTimer);
		this.#stop.abort();
	}

	/** One request, repeated until it is answered with what is expected. Spec: carriers 6. */
	async #request(
		path: string,
		init: RequestInit,
		headers: { [name: string]: string },
		expected: readonly number[],
		patienceMs: number,
		retryMs: number = RETRY_MS + patienceMs,
	): Promise<Response> {
		const until = performance.now() + retryMs;
		let pause = RETRY_PAUSE_MS;
		for (;;) {
			const patience = AbortSignal.timeout(patienceMs);
			try {
				const response = await this.#fetch(path, init, headers, AbortSignal.any([this.#stop.signal, patience]));
				if (expected.includes(response.status)) return response;
				const end = await judge(response);
				if (end) throw end;
			} catch (error) {
				if (error instanceof LinkEnd || this.#stop.signal.aborted) throw error;
			}
			if (performance.now() + pause > until) throw new LinkEnd(undefined, `${path || "the link"} finds nobody`);
			await this.#pause(pause);
			pause *= 2;
		}
	}

	#fetch(path: string, init: RequestInit, headers: { [name: string]: string }, signal: AbortSignal): Promise<Response> {
		const authorization = `Bearer ${this.#opened.secret}`;
		return this.#target.fetch(this.#url + path, {
			...init,
			headers: { authorization, ...headers },
			signal,
			cache: "no-store",
			credentials: "omit",
		});
	}

	#pause(ms: number): Promise<void> {
		return new Promise((resolve, reject) => {
			const { signal } = this.#stop;
			const timer = setTimeout(() => {
				signal.removeEventListener("abort", stop);
				resolve();
			}, ms);
			const stop = (): void => {
				clearTimeout(timer);
				reject(new LinkEnd(undefined, "closed"));
			};
			signal.addEventListener("abort", stop, { once: true });
		});
	}

	// ---- up --------------------------------------------------------------------------------------

	room(): boolean {
		return this.#queuedBytes < BUFFERED_MAX;
	}

	write(frames: Bytes): void {
		this.#queue.push(frames);
		this.#queuedBytes += frames.length;
		this.#sending ??= this.#guard(this.#sendAll());
	}

	async #sendAll(): Promise<void> {
		try {
			// what is written in this turn leaves in one body
			await Promise.resolve();
			while (this.#queue.length > 0) {
				const parts: Bytes[] = [];
				let size = 0;
				for (;;) {
					const next = this.#queue[0];
					if (!next || (size > 0 && size + next.length > Math.min(this.#opened.up_max, LINK_MESSAGE_MAX))) break;
					this.#queue.shift();
					parts.push(next);
					size += next.length;
				}
				await this.#up(join(parts, size), ++this.#sequence);
				this.#queuedBytes -= size;
				this.#sink?.drained();
			}
		} finally {
			this.#sending = undefined;
		}
	}

	async #up(body: Bytes, sequence: number): Promise<void> {
		const headers = {
			"content-type": "application/remus-frames",
			"remus-sequence": String(sequence),
			"remus-acknowledge": String(this.#taken),
		};
		this.#noteAcknowledged();
		const response = await this.#request("/up", { method: "POST", body }, headers, [204], this.#opened.hold_ms + PATIENCE_MS);
		const answer = response.headers.get("remus-acknowledge");
		if (answer !== String(sequence)) throw new LinkEnd(undefined, `number ${sequence} was answered with ${answer}`);
	}

	#noteAcknowledged(): void {
		this.#acknowledged = this.#taken;
		this.#unacknowledgedBytes = 0;
		clearTimeout(this.#ackTimer);
		this.#ackTimer = undefined;
	}

	/** Acknowledges what events have brought. An `up` that leaves does it as well. */
	async #acknowledge(): Promise<void> {
		if (this.#acknowledged === this.#taken) return;
		const headers = { "remus-acknowledge": String(this.#taken) };
		this.#noteAcknowledged();
		await this.#request("/up", { method: "POST" }, headers, [204], PATIENCE_MS);
	}

	// ---- down ------------------------------------------------------------------------------------

	/** Takes what came under a number. */
	#take(sequence: number, bytes: Uint8Array): void {
		if (sequence <= this.#taken) return;
		if (sequence !== this.#taken + 1) throw new LinkEnd(undefined, `number ${sequence} follows ${this.#taken}`);
		if (bytes.length > LINK_MESSAGE_MAX) throw new LinkEnd(errorCodes.FRAME_TOO_LARGE, "more than 1 MiB at once");
		if (!wholeFrames(bytes)) throw new LinkEnd(errorCodes.MALFORMED, "what came is not made of whole frames");
		this.#taken = sequence;
		if (bytes.length > 0) this.#sink?.received(bytes);
	}

	async #poll(): Promise<void> {
		while (!this.#stop.signal.aborted) {
			const headers = { "remus-acknowledge": String(this.#taken) };
			const patience = this.#opened.hold_ms + PATIENCE_MS;
			const response = await this.#down(headers, patience);
			if (response.status === 204) continue;
			let bytes: Uint8Array;
			try {
				bytes = new Uint8Array(await response.arrayBuffer());
			} catch {
				// it broke on its way: the next one brings it again
				await this.#pause(RETRY_PAUSE_MS);
				continue;
			}
			this.#take(Number(response.headers.get("remus-sequence")), bytes);
		}
	}

	/** One `down`. While nothing has come yet, whatever refuses it is taken for a proxy that doesn't let it through. */
	async #down(headers: { [name: string]: string }, patienceMs: number): Promise<Response> {
		const isFirst = this.#taken === 0;
		try {
			return await this.#request("/down", { method: "GET" }, headers, [200, 204], patienceMs, isFirst ? FIRST_MS : undefined);
		} catch (error) {
			// what the node itself refuses the session with, it says by ending the link
			if (isFirst && error instanceof LinkEnd && !error.byNode) throw new LinkEnd(undefined, error.message);
			throw error;
		}
	}

	/** Opens the stream of events, and waits for the first. */
	async openEvents(signal: AbortSignal): Promise<void> {
		const late = AbortSignal.timeout(PROBE_MS);
		const first = AbortSignal.any([signal, late, this.#stop.signal]);
		const stop = new AbortController();
		const abort = (): void => stop.abort();
		first.addEventListener("abort", abort);
		this.#stop.signal.addEventListener("abort", abort, { once: true });
		try {
			const headers = { accept: "text/event-stream", "remus-acknowledge": String(this.#taken) };
			const response = await this.#fetch("/events", { method: "GET" }, headers, stop.signal);
			if (response.status !== 200 || !response.body) throw (await judge(response)) ?? new Error(`answered with ${response.status}`);
			this.#noteAcknowledged();
			const events = eventsOf(response.body);
			const probe = await events.next();
			if (probe.done || probe.value.event !== "probe") throw new Error("no probe came");
			this.#events = events;
		} finally {
			first.removeEventListener("abort", abort);
		}
	}

	async #readEvents(): Promise<void> {
		let failingSince: number | undefined;
		let pause = RETRY_PAUSE_MS;
		for (;;) {
			try {
				if (!this.#events) await this.openEvents(this.#stop.signal);
				const events = this.#events;
				for (;;) {
					const item = await events?.next();
					if (!item || item.done) break;
					failingSince = undefined;
					pause = RETRY_PAUSE_MS;
					this.#handleEvent(item.value);
				}
			} catch (error) {
				if (error instanceof LinkEnd || this.#stop.signal.aborted) throw error;
			}
			this.#events = undefined;
			const now = performance.now();
			failingSince ??= now;
			if (now - failingSince > RETRY_MS) throw new LinkEnd(undefined, "events don't come any more");
			await this.#pause(pause);
			pause *= 2;
		}
	}

	#handleEvent(item: SseEvent): void {
		if (item.event === "end") {
			const { error, message } = JSON.parse(item.data) as { error?: unknown; message?: unknown };
			throw new LinkEnd(typeof error === "number" ? error : 0, String(message ?? ""));
		}
		if (item.event !== "frames") return;
		let bytes: Bytes;
		try {
			bytes = Uint8Array.from(atob(item.data), (char) => char.charCodeAt(0));
		} catch {
			throw new LinkEnd(errorCodes.MALFORMED, "an event that is not base64");
		}
		this.#take(Number(item.id), bytes);
		this.#unacknowledgedBytes += bytes.length;
		if (this.#unacknowledgedBytes >= ACK_BYTES) void this.#guard(this.#acknowledge());
		else this.#ackTimer ??= setTimeout(() => void this.#guard(this.#acknowledge()), ACK_MS);
	}

	// ---- the end ---------------------------------------------------------------------------------

	async close(code: number, _reason: string): Promise<void> {
		this.#sink = undefined;
		const late = AbortSignal.timeout(CLOSE_MS);
		await Promise.race([this.#sending, new Promise((resolve) => late.addEventListener("abort", resolve, { once: true }))]);
		this.#detach();
		try {
			await this.#fetch("", { method: "DELETE", keepalive: true }, { "remus-close": String(code) }, AbortSignal.timeout(CLOSE_MS));
		} catch {
			// it is gone by itself after its silence
		}
	}

	drop(): void {
		this.#detach();
	}
}

/** One event of a stream. */
export interface SseEvent {
	readonly event: string;
	readonly data: string;
	readonly id: string;
}

/** Reads a stream of events, as WHATWG HTML 9.2 has it, as far as Remus uses it. */
export async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<SseEvent, undefined> {
	const reader = body.getReader();
	const decoder = new TextDecoder();
	let text = "";
	let fields: { [name: string]: string } = {};
	try {
		for (;;) {
			const { done, value } = await reader.read();
			if (done) return undefined;
			text += decoder.decode(value, { stream: true });
			for (;;) {
				const end = /\r\n|\n|\r(?!$)/.exec(text);
				if (!end) break;
				const line = text.slice(0, end.index);
				text = text.slice(end.index + end[0].length);
				if (line === "") {
					if (fields.data !== undefined) yield { event: fields.event ?? "message", data: fields.data, id: fields.id ?? "" };
					fields = {};
					continue;
				}
				const [, name = "", field = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
				fields[name] = name === "data" && fields.data !== undefined ? `${fields.data}\n${field}` : field;
			}
			if (text.length > LINE_MAX) throw new LinkEnd(errorCodes.FRAME_TOO_LARGE, "an event above 1 MiB");
		}
	} finally {
		// also when nobody reads on
		reader.cancel().catch(() => {});
	}
}
