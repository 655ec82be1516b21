/** WebTransport, as browsers have it. Spec: transport. */
import {
	aborted,
	BUFFERED_MAX,
	type Carrier,
	type CarrierEnd,
	type CarrierSink,
	CLOSE_MS,
	type OpenCarrier,
	type Target,
} from "../carrier.js";
import { remusError } from "../errors.js";
import type { Bytes } from "../wire/bytes.js";

/** Longest wait for `/.well-known/remus`, in ms: it is on this machine. */
const WELL_KNOWN_MS = 2_000;
/** Closes the carrier, and not its session. Spec: TRANS-53. */
const CARRIER_ONLY = 3_000;
/** Longest reason of a close, in bytes of UTF-8. Spec: TRANS-47. */
const REASON_MAX = 1_024;

/** The part of the interface that is used; TypeScript's DOM library doesn't have all of it. */
interface Transport {
	readonly ready: Promise<unknown>;
	readonly closed: Promise<{ readonly closeCode?: number; readonly reason?: string }>;
	createBidirectionalStream(): Promise<{ readonly readable: ReadableStream<Uint8Array>; readonly writable: WritableStream<Uint8Array> }>;
	close(info?: { closeCode: number; reason: string }): void;
}

type TransportClass = new (
	url: string,
	options: {
		serverCertificateHashes?: { algorithm: "sha-256"; value: BufferSource }[];
		protocols: string[];
		congestionControl: "low-latency";
		allowPooling: false;
	},
) => Transport;

/** Opens a WebTransport session, and its lane 0. */
export const openWebTransport: OpenCarrier = async (target, signal) => {
	const Class = (globalThis as { WebTransport?: TransportClass }).WebTransport;
	if (!Class) throw remusError("UNIMPLEMENTED", "there is no WebTransport here");
	const digests = await digestsOf(target, signal);
	if (signal.aborted) throw aborted(signal);
	const transport = new Class(`${target.url}/remus/v2`, {
		...(digests.length > 0 ? { serverCertificateHashes: digests.map((value) => ({ algorithm: "sha-256", value })) } : {}),
		protocols: ["remus.v2"],
		congestionControl: "low-latency",
		allowPooling: false,
	});
	// whoever needs to know hears it by `ready`, or by `closed` later
	transport.closed.catch(() => {});
	const abort = (): void => transport.close();
	signal.addEventListener("abort", abort, { once: true });
	try {
		await transport.ready;
		const lane = await transport.createBidirectionalStream();
		if (signal.aborted) throw aborted(signal);
		return new WebTransportCarrier(transport, lane);
	} catch (error) {
		throw signal.aborted ? aborted(signal) : remusError("UNAVAILABLE", "the WebTransport session could not be opened", { cause: error });
	} finally {
		signal.removeEventListener("abort", abort);
	}
};

/** Digests of certificates to trust. */
async function digestsOf(target: Target, signal: AbortSignal): Promise<Bytes[]> {
	const { certificateDigests } = target.options;
	if (certificateDigests)
		return (typeof certificateDigests === "function" ? await certificateDigests() : certificateDigests).map(parseDigest);
	if (!/^https:\/\/(localhost|[^/]*\.localhost|127\.\d+\.\d+\.\d+|\[::1\]):/.test(target.url)) return [];
	try {
		// readable where the browser trusts the node over TCP, or this page comes from there
		const timeout = AbortSignal.any([signal, AbortSignal.timeout(WELL_KNOWN_MS)]);
		const response = await target.fetch(`${target.url}/.well-known/remus`, { signal: timeout, cache: "no-store", credentials: "omit" });
		const { certificates = [] } = (await response.json()) as { certificates?: { algorithm?: string; base64?: string }[] };
		return certificates.flatMap(({ algorithm, base64 }) => (algorithm === "sha-256" && base64 ? [parseDigest(base64)] : []));
	} catch {
		return [];
	}
}

/** A SHA-256 in hex (colons allowed) or base64. */
export function parseDigest(text: string): Bytes {
	const hex = text.replaceAll(":", "");
	const bytes = /^[0-9a-f]{64}$/i.test(hex)
		? Uint8Array.from({ length: 32 }, (_, i) => Number.parseInt(hex.slice(i * 2, i * 2 + 2), 16))
		: Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
	if (bytes.length !== 32) throw new TypeError(`not a SHA-256: ${text}`);
	return bytes;
}

class WebTransportCarrier implements Carrier {
	readonly kind = "webtransport";
	readonly #transport: Transport;
	readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
	readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
	#sink: CarrierSink | undefined;
	#buffered = 0;

	constructor(
		transport: Transport,
		lane: { readonly readable: ReadableStream<Uint8Array>; readonly writable: WritableStream<Uint8Array> },
	) {
		this.#transport = transport;
		this.#writer = lane.writable.getWriter();
		this.#reader = lane.readable.getReader();
	}

	start(sink: CarrierSink): void {
		this.#sink = sink;
		this.#transport.closed.then(
			({ closeCode = 0, reason = "" }) => this.#end({ code: closeCode === CARRIER_ONLY ? undefined : closeCode, reason }),
			(error: unknown) => this.#end({ code: undefined, reason: String(error) }),
		);
		void this.#read();
	}

	async #read(): Promise<void> {
		try {
			for (;;) {
				const { done, value } = await this.#reader.read();
				if (done) break;
				this.#sink?.received(value);
			}
		} catch {
			// a lane that was reset: most of the time it is the session's end that resets it
		}
		// the session's own end says why; but not for ever (TRANS-39, TRANS-40)
		if (this.#sink) setTimeout(() => this.#end({ code: undefined, reason: "lane 0 has ended" }), CLOSE_MS);
	}

	#end(end: CarrierEnd): void {
		const sink = this.#sink;
		this.#sink = undefined;
		sink?.ended(end);
	}

	room(): boolean {
		return this.#buffered < BUFFERED_MAX;
	}

	write(frames: Bytes): void {
		this.#buffered += frames.length;
		this.#writer.write(frames).then(
			() => {
				const full = !this.room();
				this.#buffered -= frames.length;
				if (full) this.#sink?.drained();
			},
			// the end is told by `closed` and by the reader
			() => {},
		);
	}

	async close(code: number, reason: string): Promise<void> {
		this.#sink = undefined;
		const late = new Promise((resolve) => setTimeout(resolve, CLOSE_MS));
		await Promise.race([this.#writer.close().catch(() => {}), late]);
		this.#transport.close({ closeCode: code, reason: reason.slice(0, REASON_MAX / 4) });
	}

	drop(): void {
		this.#sink = undefined;
		this.#transport.close({ closeCode: CARRIER_ONLY, reason: "" });
	}
}
