/**
 * The interface of this package: what an application sees. `connect` makes a {@link Client}.
 *
 * 64-bit values are `bigint`. Times that people choose are in ms; timestamps of the protocol are in µs.
 */
import type { RemusError } from "./errors.js";

/** A way to reach the other end, as `/.well-known/remus` names them. */
export type CarrierKind = "webtransport" | "websocket" | "http-poll" | "http-events";

/**
 * How values become bytes and back. `json` and `raw` are there; others are a few lines.
 */
export interface Codec<T> {
	/** Media type that goes along with each request; none is sent where it is empty. */
	readonly contentType: string;
	/** May throw; the call then fails with that error, before anything was sent. */
	encode(value: T): Uint8Array;
	/** May throw; the call then fails with `DATA_LOSS`. */
	decode(bytes: Uint8Array): T;
}

/** An entry of the application's own that travels with a request or an answer; a key may stand more than once. */
export type MetadataEntry = readonly [key: string, value: string | Uint8Array];

/** What can be said about one call. */
export interface CallOptions<In = unknown, Out = unknown> {
	/**
	 * Gives the call up: the other side is told to stop. The error is `CANCELLED`, with the signal's reason as its cause.
	 */
	readonly signal?: AbortSignal | undefined;
	/**
	 * How long all of the call may take, in ms, from 1 on; then it ends with `DEADLINE_EXCEEDED` on both sides. It goes along with the
	 * request, so clocks don't matter. Default: `timeoutMs` of {@link ConnectOptions} for calls with one answer, none for calls
	 * that stream their answers. `0`: none.
	 */
	readonly timeoutMs?: number | undefined;
	/** How requests become bytes. Default `json`. */
	readonly requestCodec?: Codec<In> | undefined;
	/** How answers are read. Default `json`. */
	readonly responseCodec?: Codec<Out> | undefined;
	/** Goes along with the request. */
	readonly metadata?: readonly MetadataEntry[] | undefined;
	/** 0 to 65,535, higher is more urgent; the top 3 bits are the class. Default 0x6000, ordinary. */
	readonly priority?: number | undefined;
	/**
	 * Says that it does no harm if the call runs twice. Only then it is made again by itself, and only a unary call: when its
	 * session was lost (`LOSS_OF_SESSION`), once more on the next session, within its time.
	 */
	readonly idempotent?: boolean | undefined;
	/** Topic name in the routing information, for services that go by topics. */
	readonly topic?: string | undefined;
}

/** What arrives, one after the other, of a call that streams its answers. Can be iterated once. */
export interface Answers<Out> extends AsyncIterable<Out> {
	/** Gives the call up, as leaving a `for await` does. Does nothing where it has ended. */
	cancel(): void;
}

/** What was published. */
export interface Publication {
	readonly topic: string;
	readonly payload: Uint8Array;
	/** When the broker sent it on, by its clock, in µs since the Unix epoch. */
	readonly timestampUs: bigint;
	/** The payload as UTF-8. */
	text(): string;
	/** The payload as JSON. Throws a `SyntaxError` where it is none. */
	json(): unknown;
}

/** What happens at the broker when a subscription is full. Spec: CORE-89. */
export type Overflow = "wait" | "drop-oldest" | "drop-newest" | "end";

/** What can be said about a subscription. */
export interface SubscribeOptions {
	/** Ends the subscription. */
	readonly signal?: AbortSignal | undefined;
	/** Default `drop-oldest`. */
	readonly overflow?: Overflow | undefined;
	/** Publications that may wait at the broker: 1 to 65,536. Default 1,024. */
	readonly capacity?: number | undefined;
	/** Subscriptions with the same group share what matches: each publication goes to one of them. */
	readonly queueGroup?: string | undefined;
}

/**
 * A subscription. Iterate it once; leaving the iteration ends it. What is not iterated stays at the broker, beyond
 * the session's credit, and counts against the capacity.
 *
 * It survives a change of carrier without a gap. When the session is lost the iteration throws `LOSS_OF_SESSION`: publications
 * may have been missed, and only the application knows what to do about it.
 */
export interface Subscription extends AsyncIterable<Publication> {
	/** Settles when the subscription stands: what is published from then on is delivered. Rejects where it is refused. */
	readonly ready: Promise<void>;
	/** Ends the subscription; the iteration then ends without an error. */
	close(): void;
}

/** Where a client is. */
export type ClientState =
	/** No session yet, or the last one was lost: connecting. */
	| "connecting"
	/** A session on a carrier. */
	| "open"
	/** The carrier was lost; calls and streams go on existing while the session is resumed on another. */
	| "suspended"
	/** Announced its end, waits for what is open. */
	| "closing"
	/** Over. */
	| "closed";

/** The carrier changed. */
export interface CarrierEvent {
	/** The one in use from now on; `undefined`: none at the moment. */
	readonly carrier: CarrierKind | undefined;
	/** The one before. */
	readonly previous: CarrierKind | undefined;
	/** For people: "connected", "switched", "resumed", or why the carrier was lost. */
	readonly reason: string;
	/** How long the session had no carrier before this one, in ms; 0 where it was switched without a break. */
	readonly gapMs: number;
}

/** What a client tells about itself. */
export interface ClientEvents {
	carrier: CarrierEvent;
	state: { readonly state: ClientState; readonly previous: ClientState };
	/** A session was lost and can't be resumed; a new one is begun. Its calls and subscriptions have got `error`. */
	sessionlost: { readonly error: RemusError };
	/** Nothing comes after it. */
	closed: { readonly error: RemusError | undefined };
}

/** Credit in one direction: payload bytes since the session began. Spec: core 5.3. */
export interface CreditStatus {
	/** Sent, or received, so far. */
	readonly offset: bigint;
	/** How far the sender may go. */
	readonly limit: bigint;
}

/** One stream that is in use. */
export interface StreamStatus {
	readonly id: number;
	/** Full name of the method; `undefined` for a stream that many calls share, or one that the peer opened. */
	readonly method: string | undefined;
	/** On which lane of the carrier. */
	readonly lane: number;
	readonly send: CreditStatus;
	readonly receive: CreditStatus;
	/** Bytes that wait to be sent. */
	readonly queuedBytes: number;
	/** Bytes that arrived and were not taken by the application. */
	readonly unreadBytes: number;
}

/** A snapshot of a client, for dashboards. Costs about as much as the number of streams; nothing is measured for it. */
export interface ClientStatus {
	readonly state: ClientState;
	readonly url: string;
	readonly carrier: CarrierKind | undefined;
	/** When this carrier was taken into use, in ms since the Unix epoch. */
	readonly carrierSince: number | undefined;
	/** Number of the session at the acceptor. */
	readonly session: number | undefined;
	/** Version that was agreed on, as "2.0". */
	readonly version: string | undefined;
	/** Whether the session can be resumed on another carrier. */
	readonly resumable: boolean;
	/** How often a session of this client was resumed. */
	readonly resumptions: number;
	/** How many sessions this client has had. */
	readonly sessions: number;
	/** Latest round trip, in ms, measured by heartbeats on this carrier. */
	readonly rttMs: number | undefined;
	/** Smallest of the last round trips, in ms. */
	readonly minRttMs: number | undefined;
	/** The peer's clock minus ours, in ms, from the exchange with the smallest round trip. */
	readonly clockOffsetMs: number | undefined;
	/** Calls that are open. */
	readonly calls: number;
	/** Calls that wait for their turn: for a session, for one of the peer's calls or streams. */
	readonly waitingCalls: number;
	readonly lanes: number;
	readonly streams: readonly StreamStatus[];
	/** Credit of the session as a whole. Spec: CORE-57 to CORE-60. */
	readonly send: CreditStatus;
	readonly receive: CreditStatus;
	/** Bytes of frames that were sent and received since the client was made, over all carriers. */
	readonly bytesSent: bigint;
	readonly bytesReceived: bigint;
	/** Bytes that are kept until the peer has acknowledged them. */
	readonly retainedBytes: number;
}

/** Who the client says it is. */
export interface Credentials {
	/** A bearer token (JWT). A function is asked at the start of each session. */
	readonly bearer: string | (() => string | Promise<string>);
}

/** The part of `WebSocket` that is used. */
export interface WebSocketLike {
	binaryType: string;
	readonly bufferedAmount: number;
	readonly protocol: string;
	onopen: ((event: never) => void) | null;
	onmessage: ((event: never) => void) | null;
	onclose: ((event: never) => void) | null;
	onerror: ((event: never) => void) | null;
	send(data: Uint8Array<ArrayBuffer>): void;
	close(code?: number, reason?: string): void;
}

/** How to connect. Each default is what most programs want. */
export interface ConnectOptions {
	/**
	 * Which carriers may be used, the preferred first. Default: all that there are here, `webtransport`, `websocket`, `http-poll`,
	 * `http-events`. One alone forces it.
	 */
	readonly carriers?: readonly CarrierKind[] | undefined;
	/** Head start of a carrier before the next joins the race, in ms. Default 400. */
	readonly headStartMs?: number | undefined;
	/** How long the first session may take, in ms; `connect` then rejects. Default 10,000. */
	readonly connectTimeoutMs?: number | undefined;
	/** How long a call with one answer may take where it doesn't say, in ms. Default 30,000. `0`: for ever. */
	readonly timeoutMs?: number | undefined;
	/** How long a session without a carrier is kept, in ms. The acceptor's limit holds as well. Default 60,000. */
	readonly resumeWindowMs?: number | undefined;
	/**
	 * Whether higher rungs of the ladder are tried again in the background and switched to, first after 5 s, then doubling up to 5 min.
	 * Default `true`.
	 */
	readonly climb?: boolean | undefined;
	readonly credentials?: Credentials | undefined;
	/** Gives connecting up. Once connected it has no meaning. */
	readonly signal?: AbortSignal | undefined;
	/**
	 * SHA-256 of certificates to trust for WebTransport, in hex or base64. Default: for `localhost`, `127.0.0.1` and `[::1]`
	 * what the node's `/.well-known/remus` says, where that can be read; nothing otherwise, which leaves it to the browser's authorities.
	 */
	readonly certificateDigests?: readonly string[] | (() => Promise<readonly string[]>) | undefined;
	/** Node only: authorities to trust, in PEM, instead of the system's; for example a node's `tls/ca.pem`. */
	readonly ca?: string | undefined;
	/** A class to use instead of the platform's WebSocket. */
	readonly webSocket?: (new (url: string, protocols: string[]) => WebSocketLike) | undefined;
	/** A function to use instead of the platform's `fetch`. */
	readonly fetch?: typeof globalThis.fetch | undefined;
}

/** One connection to a node: one session at a time, on one carrier at a time. */
export interface Client {
	/** The URL that was given to `connect`, as `https://host:port`. */
	readonly url: string;
	readonly state: ClientState;
	/** The carrier in use; `undefined` while there is none. */
	readonly carrier: CarrierKind | undefined;
	/** Settles when the client is over, with the error that ended it, or `undefined` after {@link close}. Never rejects. */
	readonly closed: Promise<RemusError | undefined>;

	/** One request, one answer. `method` is the full name, such as `"host.v1.Host/Info"`. Rejects with a {@link RemusError}. */
	call<Out = unknown, In = unknown>(method: string, request?: In, options?: CallOptions<In, Out>): Promise<Out>;
	/** One request, any number of answers. Nothing is sent before the iteration begins. */
	serverStream<Out = unknown, In = unknown>(method: string, request?: In, options?: CallOptions<In, Out>): Answers<Out>;
	/** Any number of requests, one answer. `requests` is pulled as fast as the peer gives credit, and no faster. */
	clientStream<Out = unknown, In = unknown>(
		method: string,
		requests: Iterable<In> | AsyncIterable<In>,
		options?: CallOptions<In, Out>,
	): Promise<Out>;
	/** Any number of both, at the same time. Nothing is sent before the iteration of the answers begins. */
	bidi<Out = unknown, In = unknown>(
		method: string,
		requests: Iterable<In> | AsyncIterable<In>,
		options?: CallOptions<In, Out>,
	): Answers<Out>;

	/** Publishes bytes, or a string as UTF-8, to a topic; settles when the broker has taken it. JSON: `JSON.stringify` it. */
	publish(topic: string, payload: Uint8Array | string, options?: Pick<CallOptions, "signal" | "timeoutMs" | "priority">): Promise<void>;
	/** Subscribes to a pattern: `*` stands for one token, `>` at the end for one or more. Sent at once, not at the first iteration. */
	subscribe(pattern: string, options?: SubscribeOptions): Subscription;

	/** Listens; what is returned stops it. A listener that throws is reported as an uncaught error and disturbs nothing. */
	on<K extends keyof ClientEvents>(event: K, listener: (event: ClientEvents[K]) => void): () => void;
	/** How things are now. */
	status(): ClientStatus;
	/** Sends a heartbeat and waits for its answer. Returns the round trip in ms. */
	ping(options?: Pick<CallOptions, "signal" | "timeoutMs">): Promise<number>;

	/**
	 * Cuts the carrier, as a broken network would. The session is suspended and resumed by the ladder; calls and streams go on.
	 * Where the session can't be resumed it is lost. Does nothing without a carrier.
	 */
	dropCarrier(): void;
	/**
	 * Moves the session to a carrier of this kind: opens it first, then switches. Settles when it is in use. Where it can't be
	 * opened this rejects, and the old carrier goes on.
	 */
	switchCarrier(kind: CarrierKind): Promise<void>;

	/** Announces the end, lets open calls finish for at most `graceMs` (default 5,000), and closes. Settles when it is over. */
	close(options?: { readonly graceMs?: number }): Promise<void>;
}
