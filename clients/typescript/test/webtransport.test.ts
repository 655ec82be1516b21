/** WebTransport, against a class of the tests with the browsers' interface. Spec: transport. */
import assert from "node:assert/strict";
import { afterEach, describe, test } from "node:test";
import type { ConnectOptions } from "../src/api.js";
import type { Carrier, CarrierEnd, Target } from "../src/carrier.js";
import { openWebTransport } from "../src/carriers/webtransport.js";
import { errorCodes, isRemusError } from "../src/errors.js";
import { deferred } from "./peer.js";

interface Options {
	readonly serverCertificateHashes?: readonly { readonly algorithm: string; readonly value: Uint8Array }[];
	readonly protocols: readonly string[];
}

/** The last one that was made. */
let made: FakeTransport | undefined;
let fails = false;
/** It opens never. */
let slow = false;

class FakeTransport {
	readonly url: string;
	readonly options: Options;
	readonly ready: Promise<void>;
	readonly closed: Promise<{ closeCode?: number; reason?: string }>;
	settleClosed: (info: { closeCode?: number; reason?: string }) => void = () => {};
	breakClosed: (error: Error) => void = () => {};
	closedWith: { closeCode: number; reason: string } | "nothing" | undefined;
	readonly sent: Uint8Array[] = [];
	finished = false;
	aborted = false;
	cancelled = false;
	lane: ReadableStreamDefaultController<Uint8Array> | undefined;
	/** Writes wait for it. */
	gate: Promise<void> = Promise.resolve();
	#stopOpening: (error: Error) => void = () => {};

	constructor(url: string, options: Options) {
		made = this;
		this.url = url;
		this.options = options;
		this.ready = new Promise((resolve, reject) => {
			this.#stopOpening = reject;
			if (fails) reject(new Error("no UDP"));
			else if (!slow) resolve();
		});
		this.closed = new Promise((resolve, reject) => {
			this.settleClosed = resolve;
			this.breakClosed = reject;
		});
	}

	createBidirectionalStream(): Promise<{ readable: ReadableStream<Uint8Array>; writable: WritableStream<Uint8Array> }> {
		const readable = new ReadableStream<Uint8Array>({
			start: (controller) => {
				this.lane = controller;
			},
			cancel: () => {
				this.cancelled = true;
			},
		});
		const writable = new WritableStream<Uint8Array>({
			write: async (chunk) => {
				await this.gate;
				this.sent.push(chunk);
			},
			close: () => {
				this.finished = true;
			},
			abort: () => {
				this.aborted = true;
			},
		});
		return Promise.resolve({ readable, writable });
	}

	close(info?: { closeCode: number; reason: string }): void {
		this.closedWith = info ?? "nothing";
		this.#stopOpening(new Error("closed"));
	}
}

(globalThis as { WebTransport?: unknown }).WebTransport = FakeTransport;
afterEach(() => {
	fails = slow = false;
	made = undefined;
});

const digest = Buffer.alloc(32, 9);

function target(url: string, options: ConnectOptions = {}, asked: string[] = []): Target {
	const fetch: typeof globalThis.fetch = (input) => {
		asked.push(String(input));
		const certificates = [
			{ algorithm: "sha-256", base64: digest.toString("base64") },
			{ algorithm: "sha-512", base64: "AAAA" },
		];
		return Promise.resolve(Response.json({ certificates }));
	};
	return { url, options, fetch };
}

const live = new AbortController().signal;

async function opened(): Promise<{
	carrier: Carrier;
	transport: FakeTransport;
	ends: CarrierEnd[];
	ended: Promise<void>;
	received: string[];
}> {
	const carrier = await openWebTransport(target("https://node.test:4433"), live);
	assert.ok(made);
	const ends: CarrierEnd[] = [];
	const received: string[] = [];
	const { promise, resolve } = deferred();
	carrier.start({
		received: (bytes) => received.push(Buffer.from(bytes).toString()),
		drained: () => received.push("drained"),
		ended: (end) => {
			ends.push(end);
			resolve();
		},
	});
	return { carrier, transport: made, ends, ended: promise, received };
}

describe("WebTransport", () => {
	test("asks for /remus/v2 and offers remus.v2 (TRANS-19, TRANS-21)", async () => {
		const { transport } = await opened();
		assert.equal(transport.url, "https://node.test:4433/remus/v2");
		assert.deepEqual(transport.options.protocols, ["remus.v2"]);
		assert.equal(transport.options.serverCertificateHashes, undefined);
	});

	test("takes the digests of localhost from /.well-known/remus by itself", async () => {
		for (const host of ["localhost", "127.0.0.1", "[::1]", "a.localhost"]) {
			const asked: string[] = [];
			await openWebTransport(target(`https://${host}:4433`, {}, asked), live);
			assert.deepEqual(asked, [`https://${host}:4433/.well-known/remus`]);
			assert.deepEqual(made?.options.serverCertificateHashes, [{ algorithm: "sha-256", value: new Uint8Array(digest) }]);
		}
	});

	test("asks nobody else, and leaves it to the browser where the page can't read them", async () => {
		const asked: string[] = [];
		await openWebTransport(target("https://localhost.example.org:4433", {}, asked), live);
		assert.deepEqual(asked, []);
		const unreadable = { ...target("https://localhost:4433"), fetch: () => Promise.reject(new TypeError("blocked")) };
		await openWebTransport(unreadable, live);
		assert.equal(made?.options.serverCertificateHashes, undefined);
	});

	test("takes digests that are given, or come from a function", async () => {
		for (const certificateDigests of [[digest.toString("hex")], () => Promise.resolve([digest.toString("hex")])]) {
			const asked: string[] = [];
			await openWebTransport(target("https://localhost:4433", { certificateDigests }, asked), live);
			assert.deepEqual(asked, []);
			assert.deepEqual(made?.options.serverCertificateHashes?.[0]?.value, new Uint8Array(digest));
		}
	});

	test("that can't be opened is UNAVAILABLE", async () => {
		fails = true;
		await assert.rejects(
			openWebTransport(target("https://node.test:4433"), live),
			(error) => isRemusError(error) && error.code === "UNAVAILABLE",
		);
	});

	test("that is given up while it opens is closed", async () => {
		slow = true;
		const stop = new AbortController();
		const opening = openWebTransport(target("https://node.test:4433"), stop.signal);
		await new Promise((resolve) => setImmediate(resolve));
		stop.abort();
		await assert.rejects(opening, (error) => isRemusError(error) && error.code === "CANCELLED");
		assert.equal(made?.closedWith, "nothing");
		made = undefined;
		await assert.rejects(openWebTransport(target("https://node.test:4433"), AbortSignal.abort()));
		assert.equal(made, undefined);
	});

	test("carries bytes both ways, and tells when there is room again", async () => {
		const { carrier, transport, received } = await opened();
		transport.lane?.enqueue(new TextEncoder().encode("hello"));
		const gate = deferred();
		transport.gate = gate.promise;
		carrier.write(new Uint8Array(200_000));
		assert.equal(carrier.room(), true);
		carrier.write(new Uint8Array(100_000));
		assert.equal(carrier.room(), false);
		gate.resolve();
		await new Promise((resolve) => setImmediate(resolve));
		assert.equal(carrier.room(), true);
		assert.deepEqual(received, ["hello", "drained"]);
		assert.deepEqual(
			transport.sent.map(({ length }) => length),
			[200_000, 100_000],
		);
	});

	test("a close by the peer says the session's code (TRANS-47)", async () => {
		const { transport, ends, ended } = await opened();
		transport.settleClosed({ closeCode: errorCodes.UNKNOWN_FRAME, reason: "bye" });
		await ended;
		assert.deepEqual(ends, [{ code: errorCodes.UNKNOWN_FRAME, reason: "bye" }]);
	});

	test("a connection that breaks is a lost carrier", async () => {
		const { transport, ends, ended } = await opened();
		transport.breakClosed(new Error("connection lost"));
		await ended;
		assert.equal(ends[0]?.code, undefined);
	});

	test("a lane that is reset waits for the session's own end, but not for ever (TRANS-39)", async (context) => {
		context.mock.timers.enable({ apis: ["setTimeout"] });
		const first = await opened();
		first.transport.lane?.error(new Error("reset"));
		await new Promise((resolve) => setImmediate(resolve));
		first.transport.settleClosed({ closeCode: 5, reason: "" });
		await first.ended;
		assert.equal(first.ends[0]?.code, 5);
		const second = await opened();
		second.transport.lane?.error(new Error("reset"));
		await new Promise((resolve) => setImmediate(resolve));
		assert.equal(second.ends.length, 0);
		context.mock.timers.tick(2_000);
		await second.ended;
		assert.equal(second.ends[0]?.code, undefined);
	});

	test("close() ends the lane first, then says the code (TRANS-49)", async () => {
		const { carrier, transport } = await opened();
		carrier.write(new Uint8Array(3));
		await carrier.close(errorCodes.MALFORMED, "why");
		assert.equal(transport.sent.length, 1);
		assert.equal(transport.finished, true);
		assert.deepEqual(transport.closedWith, { closeCode: errorCodes.MALFORMED, reason: "why" });
	});

	test("drop() closes the carrier and not its session (TRANS-53)", async () => {
		const { carrier, transport, ends } = await opened();
		carrier.drop();
		await new Promise((resolve) => setImmediate(resolve));
		assert.deepEqual(transport.closedWith, { closeCode: 3000, reason: "" });
		assert.deepEqual(ends, []);
	});

	test("a close that is the carrier's alone is a lost carrier (TRANS-53)", async () => {
		const { transport, ends, ended } = await opened();
		transport.settleClosed({ closeCode: 3000, reason: "elsewhere" });
		await ended;
		assert.deepEqual(ends, [{ code: undefined, reason: "elsewhere" }]);
	});

	test("drop() before anything was begun closes at once", async () => {
		const carrier = await openWebTransport(target("https://node.test:4433"), live);
		carrier.drop();
		assert.deepEqual(made?.closedWith, { closeCode: 3000, reason: "" });
	});
});
