/** The client: one session after the other, on the best carrier that there is. */

import { Inbox } from "./answers.js";
import type {
	Answers,
	CallOptions,
	CarrierEvent,
	CarrierKind,
	Client,
	ClientEvents,
	ClientState,
	ClientStatus,
	Codec,
	ConnectOptions,
	Publication,
	SubscribeOptions,
	Subscription,
} from "./api.js";
import type { Carrier, Target } from "./carrier.js";
import { json, raw, utf8Decoder, utf8Encoder } from "./codecs.js";
import { isRemusError, type RemusError, remusError } from "./errors.js";
import { ladder, memory, type Openers, race } from "./ladder.js";
import { type Call, type CallSink, type CallSpec, Session } from "./session.js";
import { Writer } from "./wire/bytes.js";
import { idOf } from "./wire/id.js";
import { flags, type Message, type Option, options as optionKinds, PRIORITY_ORDINARY } from "./wire/message.js";

/** Head start of a carrier, in ms: longer than a good path needs, shorter than people notice. */
const HEAD_START_MS = 400;
/** How long the first session may take, in ms. */
const CONNECT_TIMEOUT_MS = 10_000;
/** How long a call with one answer may take, in ms. */
const CALL_TIMEOUT_MS = 30_000;
/** Pauses between tries to connect, in ms: doubled from the first to the last. */
const BACKOFF_MS = 50;
const BACKOFF_MAX_MS = 5_000;
/** How long a session without a carrier is kept, in ms. */
const RESUME_WINDOW_MS = 60_000;
/** Pauses before better carriers are tried, in ms: doubled from the first to the last. */
const CLIMB_MS = 5_000;
const CLIMB_MAX_MS = 300_000;
/** How long open calls may take when the client is closed, in ms. */
const GRACE_MS = 5_000;
/** UDP and TCP port where the URL names none. Spec: TRANS-2. */
const DEFAULT_PORT = "4433";
/** Codes of refusals that trying again doesn't help against. */
const PERMANENT = new Set([
	"UNAUTHENTICATED",
	"PERMISSION_DENIED",
	"UNSUPPORTED_VERSION",
	"UNSUPPORTED_EXTENSION",
	"UNIMPLEMENTED",
	"MALFORMED",
]);

/** What differs between browsers and Node. */
export interface Platform {
	readonly openers: Openers;
	/** Options as this platform completes them. */
	complete(options: ConnectOptions): ConnectOptions;
}

/** `https://host:port` of a URL. Spec: TRANS-1 to TRANS-3. */
export function normalise(text: string): string {
	const scheme = /^(remus|https):\/\//i.exec(text);
	if (!scheme) throw new TypeError(`not a URL of Remus: ${text}; it begins with remus:// or https://`);
	const rest = text.slice(scheme[0].length);
	const authority = /^[^/?#]*/.exec(rest)?.[0] ?? "";
	if (authority.includes("@")) throw new TypeError("a URL must not hold user information: it ends up in logs");
	const port = /:(\d*)$/.exec(authority)?.[1];
	if (port !== undefined && (port === "" || Number(port) === 0)) throw new TypeError(`not a port: ${text}`);
	const url = new URL(`https://${authority}`);
	if (url.search || url.hash || !url.hostname) throw new TypeError(`not a URL of Remus: ${text}`);
	return `https://${url.hostname}:${port === undefined ? DEFAULT_PORT : Number(port)}`;
}

/** Connects; settles when the first session is open. */
export async function connectWith(platform: Platform, url: string, options: ConnectOptions): Promise<Client> {
	const client = new RemusClient(platform, normalise(url), platform.complete(options));
	await client.first();
	return client;
}

const ids = new Map<string, number>();
/** Names of which the ID is kept; programs call few methods. */
const IDS_MAX = 1_000;

function cachedId(name: string): number {
	let id = ids.get(name);
	if (id === undefined) {
		if (ids.size >= IDS_MAX) ids.clear();
		id = idOf(name);
		ids.set(name, id);
	}
	return id;
}

type Listener<K extends keyof ClientEvents> = (event: ClientEvents[K]) => void;

const overflows = ["wait", "drop-oldest", "drop-newest", "end"] as const;

class RemusClient implements Client {
	readonly url: string;
	readonly closed: Promise<RemusError | undefined>;
	readonly #openers: Openers;
	readonly #options: ConnectOptions;
	readonly #target: Target;
	readonly #listeners: { [K in keyof ClientEvents]: Set<Listener<K>> } = {
		carrier: new Set(),
		state: new Set(),
		sessionlost: new Set(),
		closed: new Set(),
	};
	#state: ClientState = "connecting";
	#session: Session;
	#carrier: Carrier | undefined;
	#carrierSince: number | undefined;
	#carrierLostAt: number | undefined;
	#previousCarrier: CarrierKind | undefined;
	#sessions = 0;
	#bytesSent = 0n;
	#bytesReceived = 0n;
	/** Aborted when the client is over. */
	readonly #stop = new AbortController();
	#resolveClosed: (error: RemusError | undefined) => void = () => {};
	#first: { resolve(): void; reject(error: unknown): void } | undefined;
	#failures = 0;
	#resumptions = 0;
	/** Carriers that could be opened, and lost their session before it began. */
	readonly #unfit = new Set<CarrierKind>();
	/** Why the next carrier is taken into use. */
	#reason = "";
	/** A carrier that was asked to take the session on, and who waits for it. */
	#coming: { readonly carrier: Carrier; readonly resolve: () => void; readonly reject: (error: RemusError) => void } | undefined;
	#connectTimer: ReturnType<typeof setTimeout> | undefined;
	#climbTimer: ReturnType<typeof setTimeout> | undefined;

	constructor(platform: Platform, url: string, options: ConnectOptions) {
		this.url = url;
		this.#openers = platform.openers;
		this.#options = options;
		this.#target = { url, options, fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)) };
		this.closed = new Promise((resolve) => {
			this.#resolveClosed = resolve;
		});
		this.#session = this.#newSession();
	}

	get state(): ClientState {
		return this.#state;
	}

	get carrier(): CarrierKind | undefined {
		return this.#carrier?.kind;
	}

	// ---- sessions --------------------------------------------------------------------------------

	/** Opens the first session. */
	async first(): Promise<void> {
		const { signal, connectTimeoutMs = CONNECT_TIMEOUT_MS } = this.#options;
		const fail = (error: RemusError): void => this.#over(error);
		const abort = (): void => fail(remusError("CANCELLED", "connecting was given up", { cause: signal?.reason }));
		const timer = setTimeout(() => fail(remusError("DEADLINE_EXCEEDED", `no session within ${connectTimeoutMs} ms`)), connectTimeoutMs);
		signal?.addEventListener("abort", abort);
		try {
			await new Promise<void>((resolve, reject) => {
				this.#first = { resolve, reject };
				if (signal?.aborted) abort();
				else void this.#connect();
			});
		} finally {
			this.#first = undefined;
			clearTimeout(timer);
			signal?.removeEventListener("abort", abort);
		}
	}

	#newSession(): Session {
		const session: Session = new Session(
			{
				active: () => {
					this.#sessions++;
					if (this.#carrier) this.#remember(this.#carrier.kind);
					this.#failures = 0;
					this.#setState("open");
					this.#first?.resolve();
					this.#climb(CLIMB_MS);
				},
				suspended: (reason) => {
					this.#failComing(reason);
					this.#useCarrier(undefined, reason);
					if (this.#state === "open") this.#setState("suspended");
					if (!this.#stop.signal.aborted) this.#connectLater();
				},
				resumed: () => {
					const coming = this.#coming;
					if (!coming) return;
					this.#coming = undefined;
					this.#resumptions++;
					this.#failures = 0;
					// what the application has chosen is no winner
					if (this.#reason !== "switched") this.#remember(coming.carrier.kind);
					this.#useCarrier(coming.carrier, this.#reason);
					this.#setState("open");
					coming.resolve();
					this.#climb(CLIMB_MS);
				},
				ended: (error, refused) => this.#sessionEnded(session, error, refused),
			},
			this.#options.resumeWindowMs ?? RESUME_WINDOW_MS,
		);
		return session;
	}

	/** Finds a carrier: for the session that was lost, or for a new one. */
	async #connect(): Promise<void> {
		const signal = this.#stop.signal;
		try {
			const early = this.#session.suspended ? undefined : this.#bearer();
			early?.catch(() => {});
			const carrier = await race(this.#kinds(), this.#openers, this.#target, this.#options.headStartMs ?? HEAD_START_MS, signal);
			// while carriers raced, the session may have got another, or have ended
			if (this.#session.suspended && !this.#coming && !signal.aborted) {
				this.#resumeOn(carrier, "resumed").catch(() => {});
				return;
			}
			const token = await (early ?? this.#bearer());
			if (signal.aborted || this.#coming || this.#carrier) return carrier.drop();
			this.#useCarrier(carrier, "connected");
			this.#session.begin(carrier, token);
		} catch (error) {
			const failure = isRemusError(error) ? error : remusError("UNAUTHENTICATED", "the credentials could not be had", { cause: error });
			if (signal.aborted) return;
			if (this.#first || PERMANENT.has(failure.code)) this.#over(failure);
			else this.#connectLater();
		}
	}

	async #bearer(): Promise<string | undefined> {
		const bearer = this.#options.credentials?.bearer;
		return typeof bearer === "function" ? await bearer() : bearer;
	}

	/** Asks on a carrier to go on with the session. Settles when it does; where it doesn't, the session is suspended or over. */
	#resumeOn(carrier: Carrier, reason: string): Promise<void> {
		return new Promise((resolve, reject) => {
			this.#reason = reason;
			this.#coming = { carrier, resolve, reject };
			this.#session.resume(carrier);
		});
	}

	#failComing(reason: string): void {
		const coming = this.#coming;
		this.#coming = undefined;
		coming?.reject(remusError("UNAVAILABLE", reason));
	}

	/** Remembers who has won a race. */
	#remember(kind: CarrierKind): void {
		if (this.#kinds().length > 1) memory.set(this.url, kind);
	}

	/** Kinds to try: the one that won last time first, those that don't work here last. */
	#kinds(): CarrierKind[] {
		const kinds = (this.#options.carriers ?? ladder).filter((kind) => this.#openers[kind]);
		const last = memory.get(this.url);
		const rank = (kind: CarrierKind): number => (this.#unfit.has(kind) ? 2 : kind === last ? 0 : 1);
		return kinds.sort((a, b) => rank(a) - rank(b));
	}

	#connectLater(): void {
		clearTimeout(this.#connectTimer);
		clearTimeout(this.#climbTimer);
		// the first try is made at once
		const pause = this.#failures === 0 ? 0 : Math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** (this.#failures - 1));
		this.#failures++;
		this.#connectTimer = setTimeout(() => void this.#connect(), pause * (0.5 + Math.random() / 2));
	}

	/** Looks in the background whether a better carrier can be had, and moves there. */
	#climb(pauseMs: number): void {
		clearTimeout(this.#climbTimer);
		const kinds = (this.#options.carriers ?? ladder).filter((kind) => this.#openers[kind]);
		const better = kinds.slice(0, this.carrier ? kinds.indexOf(this.carrier) : 0).filter((kind) => !this.#unfit.has(kind));
		if (better.length === 0 || this.#options.climb === false || !this.#session.resumable) return;
		this.#climbTimer = setTimeout(async () => {
			for (const kind of better) {
				try {
					await this.#move(kind, "climbed");
					return;
				} catch {
					// not now
				}
			}
			if (this.#state === "open") this.#climb(Math.min(pauseMs * 2, CLIMB_MAX_MS));
		}, pauseMs);
	}

	async #move(kind: CarrierKind, reason: string): Promise<void> {
		const open = this.#openers[kind];
		if (!open) throw remusError("UNIMPLEMENTED", `there is no ${kind} here`);
		const session = this.#session;
		const signal = AbortSignal.any([this.#stop.signal, AbortSignal.timeout(CONNECT_TIMEOUT_MS)]);
		const carrier = await open(this.#target, signal);
		if (session !== this.#session || !session.resumable || this.#coming) {
			carrier.drop();
			throw remusError("UNAVAILABLE", "the session has changed meanwhile");
		}
		await this.#resumeOn(carrier, reason);
	}

	#useCarrier(carrier: Carrier | undefined, reason: string): void {
		if (!carrier && !this.#carrier) return;
		const previous = this.#carrier?.kind ?? this.#previousCarrier;
		const gapMs = carrier && this.#carrierLostAt !== undefined ? performance.now() - this.#carrierLostAt : 0;
		this.#carrier = carrier;
		this.#previousCarrier = carrier?.kind ?? previous;
		this.#carrierSince = carrier && Date.now();
		this.#carrierLostAt = carrier ? undefined : performance.now();
		this.#emit("carrier", { carrier: carrier?.kind, previous, reason, gapMs } satisfies CarrierEvent);
	}

	#sessionEnded(session: Session, error: RemusError, refused: boolean): void {
		if (session !== this.#session) return;
		const kind = this.carrier;
		// it opened, and then carried nothing: something in between lets only the beginning through
		const isUnfit = refused && kind !== undefined && error.code === "LOSS_OF_SESSION";
		if (isUnfit) this.#unfit.add(kind);
		this.#bytesSent += session.bytesSent;
		this.#bytesReceived += session.bytesReceived;
		this.#useCarrier(undefined, error.message);
		this.#failComing(error.message);
		if (this.#state === "closing") return;
		if (this.#stop.signal.aborted) return;
		const goesOn = isUnfit && this.#kinds().some((other) => !this.#unfit.has(other));
		if ((this.#first && !goesOn) || (refused && PERMANENT.has(error.code))) {
			this.#over(error);
			return;
		}
		const waiting = session.takeWaiting();
		this.#session = this.#newSession();
		for (const call of waiting) this.#session.adopt(call);
		this.#setState("connecting");
		if (!refused) this.#emit("sessionlost", { error });
		this.#connectLater();
	}

	/** The end of the client. */
	#over(error: RemusError | undefined): void {
		if (this.#state === "closed") return;
		this.#setState("closed");
		this.#stop.abort();
		clearTimeout(this.#connectTimer);
		clearTimeout(this.#climbTimer);
		const session = this.#session;
		const carrier = this.#carrier;
		const forCalls = error ?? remusError("CANCELLED", "the client was closed");
		for (const call of session.takeWaiting()) {
			call.done = true;
			call.sink.end(forCalls);
		}
		session.abandon(forCalls);
		carrier?.drop();
		this.#useCarrier(undefined, forCalls.message);
		this.#first?.reject(error);
		this.#resolveClosed(error);
		this.#emit("closed", { error });
	}

	async close(options: { readonly graceMs?: number } = {}): Promise<void> {
		if (this.#state === "closing" || this.#state === "closed") {
			await this.closed;
			return;
		}
		this.#setState("closing");
		this.#stop.abort();
		clearTimeout(this.#connectTimer);
		clearTimeout(this.#climbTimer);
		await this.#session.shutDown(options.graceMs ?? GRACE_MS);
		this.#over(undefined);
	}

	dropCarrier(): void {
		if (this.#carrier) this.#session.dropCarrier("dropped by the application");
	}

	async switchCarrier(kind: CarrierKind): Promise<void> {
		if (this.carrier === kind) return;
		if (this.#session.active && !this.#session.resumable) {
			throw remusError("UNIMPLEMENTED", `this session can't be moved to ${kind}: its peer doesn't resume sessions`);
		}
		await this.#move(kind, "switched");
	}

	// ---- events ----------------------------------------------------------------------------------

	on<K extends keyof ClientEvents>(event: K, listener: Listener<K>): () => void {
		const mine: Listener<K> = (value) => listener(value);
		this.#listeners[event].add(mine);
		return () => this.#listeners[event].delete(mine);
	}

	#emit<K extends keyof ClientEvents>(event: K, value: ClientEvents[K]): void {
		for (const listener of this.#listeners[event]) {
			try {
				listener(value);
			} catch (error) {
				queueMicrotask(() => {
					throw error;
				});
			}
		}
	}

	#setState(state: ClientState): void {
		const previous = this.#state;
		if (state === previous) return;
		this.#state = state;
		this.#emit("state", { state, previous });
	}

	status(): ClientStatus {
		const session = this.#session;
		const credit = ([offset, limit]: readonly [number, number]): { offset: bigint; limit: bigint } => ({
			offset: BigInt(offset),
			limit: BigInt(limit),
		});
		const ended = session.closed;
		let best = session.rtts[0];
		for (const sample of session.rtts) if (best && sample[0] < best[0]) best = sample;
		return {
			state: this.#state,
			url: this.url,
			carrier: this.carrier,
			carrierSince: this.#carrierSince,
			session: session.session,
			version: session.version,
			resumable: session.resumable,
			resumptions: this.#resumptions,
			sessions: this.#sessions,
			rttMs: session.rtts.at(-1)?.[0],
			minRttMs: best?.[0],
			clockOffsetMs: best?.[1],
			calls: session.openCalls,
			waitingCalls: session.waitingCalls,
			lanes: 1,
			streams: session.streams.map((stream) => ({
				id: stream.id,
				method: stream.call?.spec.method,
				lane: 0,
				send: credit([stream.sendOffset, stream.sendLimit]),
				receive: credit([stream.receiveOffset, stream.receiveLimit]),
				queuedBytes: stream.queuedBytes,
				unreadBytes: stream.receiveOffset - stream.taken,
			})),
			send: credit(session.credit.send),
			receive: credit(session.credit.receive),
			bytesSent: this.#bytesSent + (ended ? 0n : session.bytesSent),
			bytesReceived: this.#bytesReceived + (ended ? 0n : session.bytesReceived),
			retainedBytes: session.retained,
		};
	}

	ping(options: Pick<CallOptions, "signal" | "timeoutMs"> = {}): Promise<number> {
		const { signal, timeoutMs = this.#options.timeoutMs ?? CALL_TIMEOUT_MS } = options;
		return new Promise((resolve, reject) => {
			if (signal?.aborted) return reject(cancelled(signal));
			if (!this.#session.active) return reject(remusError("UNAVAILABLE", "there is no session at the moment"));
			const settle = (act: () => void): void => {
				clearTimeout(timer);
				signal?.removeEventListener("abort", abort);
				stop();
				act();
			};
			const abort = (): void => settle(() => reject(cancelled(signal)));
			const stop = this.#session.ping(
				(rttMs) => settle(() => resolve(rttMs)),
				(error) => settle(() => reject(error)),
			);
			const timer =
				timeoutMs > 0 ? setTimeout(() => settle(() => reject(remusError("DEADLINE_EXCEEDED", "no answer in time"))), timeoutMs) : undefined;
			signal?.addEventListener("abort", abort);
		});
	}

	// ---- calls -----------------------------------------------------------------------------------

	#spec<In, Out>(
		method: string,
		payload: Uint8Array | undefined,
		single: boolean,
		unary: boolean,
		contentType: string,
		options: CallOptions<In, Out>,
	): CallSpec {
		const slash = method.lastIndexOf("/");
		if (slash < 1) throw new TypeError(`not the full name of a method: ${method}; it is like acme.shop.v1.Cart/Add`);
		const {
			timeoutMs = single ? (this.#options.timeoutMs ?? CALL_TIMEOUT_MS) : 0,
			priority = PRIORITY_ORDINARY,
			metadata = [],
			topic,
			idempotent,
		} = options;
		if (!(timeoutMs >= 0)) throw new TypeError(`not a time: ${timeoutMs}`);
		if (!(priority >= 0 && priority <= 0xffff)) throw new TypeError(`not a priority: ${priority}`);
		const context: Option[] = [];
		if (contentType) context.push([optionKinds.CONTENT_TYPE, utf8Encoder.encode(contentType)]);
		for (const [key, value] of metadata) {
			const entry = new Writer()
				.text(key)
				.blob(typeof value === "string" ? utf8Encoder.encode(value) : value)
				.done();
			context.push([optionKinds.CUSTOM, entry]);
		}
		return {
			method,
			serviceId: cachedId(method.slice(0, slash)),
			methodId: cachedId(method),
			unary,
			payload,
			flags: (idempotent ? flags.IDEMPOTENT : 0) | (priority >= 0xc000 ? flags.HIGH_PRIORITY : 0),
			priority,
			routing: topic === undefined ? [] : [[optionKinds.TOPIC, utf8Encoder.encode(topic)]],
			context,
			deadline: timeoutMs > 0 ? performance.now() + timeoutMs : undefined,
		};
	}

	/** Makes a call that ends with its signal. */
	#start(spec: CallSpec, sink: CallSink, signal: AbortSignal | undefined): Call {
		const abort = (): void => this.#session.cancel(call, cancelled(signal));
		const call = this.#session.call(spec, {
			...sink,
			end: (error, payload) => {
				signal?.removeEventListener("abort", abort);
				sink.end(error, payload);
			},
		});
		if (!call.done) signal?.addEventListener("abort", abort);
		return call;
	}

	/** Why no call can be made now, if none can. */
	#refusal(signal: AbortSignal | undefined): RemusError | undefined {
		if (signal?.aborted) return cancelled(signal);
		return this.#state === "closing" || this.#state === "closed" ? remusError("CANCELLED", "the client was closed") : undefined;
	}

	call<Out = unknown, In = unknown>(method: string, request?: In, options: CallOptions<In, Out> = {}): Promise<Out> {
		return this.#single(options, (codec) => this.#spec(method, codec.encode(request as In), true, true, codec.contentType, options));
	}

	clientStream<Out = unknown, In = unknown>(
		method: string,
		requests: Iterable<In> | AsyncIterable<In>,
		options: CallOptions<In, Out> = {},
	): Promise<Out> {
		return this.#single(options, (codec) => this.#spec(method, undefined, true, false, codec.contentType, options), requests);
	}

	/** A call with one answer. */
	async #single<In, Out>(
		options: CallOptions<In, Out>,
		specOf: (codec: Codec<unknown>) => CallSpec,
		requests?: Iterable<unknown> | AsyncIterable<unknown>,
	): Promise<Out> {
		const { signal } = options;
		const requestCodec = (options.requestCodec ?? json) as Codec<unknown>;
		const spec = specOf(requestCodec);
		const attempt = (): Promise<Uint8Array> =>
			new Promise((resolve, reject) => {
				const refusal = this.#refusal(signal);
				if (refusal) return reject(refusal);
				const call: Call = this.#start(
					spec,
					{
						opened: () => {
							if (requests) queueMicrotask(() => void this.#pump(call, requests, requestCodec, reject));
						},
						end: (error, payload) => (error ? reject(error) : resolve(payload ?? new Uint8Array())),
					},
					signal,
				);
			});
		let payload: Uint8Array;
		try {
			payload = await attempt();
		} catch (error) {
			if (!options.idempotent || requests || !isRemusError(error) || error.code !== "LOSS_OF_SESSION") throw error;
			payload = await attempt();
		}
		return decode((options.responseCodec ?? json) as Codec<Out>, payload);
	}

	/** Sends requests as fast as there is room for them. */
	async #pump(
		call: Call,
		requests: Iterable<unknown> | AsyncIterable<unknown>,
		codec: Codec<unknown>,
		failed: (error: unknown) => void,
	): Promise<void> {
		try {
			for await (const request of requests) {
				if (!(await this.#session.element(call, codec.encode(request)))) return;
			}
			this.#session.endElements(call);
		} catch (error) {
			failed(error);
			this.#session.cancel(call, remusError("CANCELLED", "the caller's requests failed", { cause: error }));
		}
	}

	serverStream<Out = unknown, In = unknown>(method: string, request?: In, options: CallOptions<In, Out> = {}): Answers<Out> {
		return this.#many(options, (codec) => this.#spec(method, codec.encode(request as In), false, false, codec.contentType, options));
	}

	bidi<Out = unknown, In = unknown>(
		method: string,
		requests: Iterable<In> | AsyncIterable<In>,
		options: CallOptions<In, Out> = {},
	): Answers<Out> {
		return this.#many(options, (codec) => this.#spec(method, undefined, false, false, codec.contentType, options), requests);
	}

	#many<In, Out>(
		options: CallOptions<In, Out>,
		specOf: (codec: Codec<unknown>) => CallSpec,
		requests?: Iterable<unknown> | AsyncIterable<unknown>,
	): Answers<Out> {
		const requestCodec = (options.requestCodec ?? json) as Codec<unknown>;
		const codec = (options.responseCodec ?? json) as Codec<Out>;
		let call: Call | undefined;
		let iterated = false;
		let given = false;
		const giveUp = (error: RemusError): void => {
			if (call) this.#session.cancel(call, error);
		};
		const inbox: Inbox<Out> = new Inbox(() => giveUp(remusError("CANCELLED", "the reader left")));
		const begin = (): void => {
			const refusal = given ? remusError("CANCELLED", "the call was given up") : this.#refusal(options.signal);
			if (refusal) return inbox.end(refusal);
			call = this.#start(
				specOf(requestCodec),
				{
					opened: () => {
						if (!requests) return;
						queueMicrotask(() => call && void this.#pump(call, requests, requestCodec, (error) => inbox.end(error)));
					},
					element: (payload, _message, taken) => {
						let value: Out;
						try {
							value = decode(codec, payload);
						} catch (error) {
							taken();
							inbox.end(error);
							return giveUp(error as RemusError);
						}
						inbox.push(value, taken);
					},
					end: (error) => inbox.end(error),
				},
				options.signal,
			);
		};
		return {
			cancel: () => {
				given = true;
				giveUp(remusError("CANCELLED", "the call was given up"));
			},
			[Symbol.asyncIterator]: () => {
				if (iterated) throw new TypeError("answers can be iterated once");
				iterated = true;
				begin();
				return inbox;
			},
		};
	}

	// ---- topics ----------------------------------------------------------------------------------

	async publish(
		topic: string,
		payload: Uint8Array | string,
		options: Pick<CallOptions, "signal" | "timeoutMs" | "priority"> = {},
	): Promise<void> {
		const bytes = typeof payload === "string" ? utf8Encoder.encode(payload) : payload;
		await this.call("remus.v2.Topics/Publish", bytes, { ...options, requestCodec: raw, responseCodec: raw, topic });
	}

	subscribe(pattern: string, options: SubscribeOptions = {}): Subscription {
		const { overflow = "drop-oldest", capacity = 0, queueGroup = "", signal } = options;
		const policy = overflows.indexOf(overflow);
		if (policy < 0) throw new TypeError(`not a policy: ${overflow}`);
		const payload = new Writer().u8(policy).u32(capacity).text(queueGroup).done();
		let stands = false;
		let closed = false;
		let iterated = false;
		let settle: { resolve(): void; reject(error: unknown): void } | undefined;
		const ready = new Promise<void>((resolve, reject) => {
			settle = { resolve, reject };
		});
		// who doesn't wait for it hears by the iteration
		ready.catch(() => {});
		const close = (): void => {
			closed = true;
			if (call) this.#session.cancel(call, remusError("CANCELLED", "the subscription was closed"));
			inbox.end();
		};
		const inbox: Inbox<Publication> = new Inbox(close);
		const sink: CallSink = {
			element: (bytes, message, taken) => {
				if (!stands) {
					stands = true;
					taken();
					settle?.resolve();
					return;
				}
				inbox.push(publication(bytes, message), taken);
			},
			end: (error) => {
				settle?.reject(error ?? remusError("UNAVAILABLE", "the subscription ended before it stood"));
				inbox.end(closed ? undefined : error);
			},
		};
		const refusal = this.#refusal(signal);
		let call: Call | undefined;
		if (refusal) sink.end(refusal);
		else call = this.#start(this.#spec("remus.v2.Topics/Subscribe", payload, false, false, "", { topic: pattern }), sink, signal);
		return {
			ready,
			close,
			[Symbol.asyncIterator]: () => {
				if (iterated) throw new TypeError("a subscription can be iterated once");
				iterated = true;
				return inbox;
			},
		};
	}
}

function publication(payload: Uint8Array, message: Message): Publication {
	const topic = message.routing.find(([kind]) => kind === optionKinds.TOPIC)?.[1];
	const text = (): string => utf8Decoder.decode(payload);
	return {
		topic: utf8Decoder.decode(topic),
		payload,
		timestampUs: message.timestamp,
		text,
		json: () => JSON.parse(text()) as unknown,
	};
}

function decode<Out>(codec: Codec<Out>, payload: Uint8Array): Out {
	try {
		return codec.decode(payload);
	} catch (error) {
		throw remusError("DATA_LOSS", "the answer can't be read by its codec", { cause: error });
	}
}

function cancelled(signal: AbortSignal | undefined): RemusError {
	return remusError("CANCELLED", "the call was given up", { cause: signal?.reason });
}
