/** The HTTP link, against a server in this process that goes by the sequence rules. Spec: carriers 3 to 6. */
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import type { CarrierKind, Client, ConnectOptions } from "../src/api.js";
import type { Carrier } from "../src/carrier.js";
import { wholeFrames } from "../src/carrier.js";
import { eventsOf, openEvents, openPoll } from "../src/carriers/http.js";
import { connectWith } from "../src/client.js";
import { raw } from "../src/codecs.js";
import { errorCodes, isRemusError } from "../src/errors.js";
import { deferred, Peer, type PeerOptions } from "./peer.js";
import { collect } from "./support.js";

const open: Client[] = [];
after(() => Promise.all(open.map((client) => client.close({ graceMs: 0 }))));

/** A server of HTTP links, as `fetch` sees it. */
class Server {
	readonly peer: Peer;
	#carrier: Carrier | undefined;
	#last = 0;
	#acknowledged = 0;
	/** Frames by number, from `#acknowledged + 1` on. */
	readonly #kept: Map<number, Uint8Array> = new Map<number, Uint8Array>();
	#sent = 0;
	#waiting: Uint8Array[] = [];
	#wake = deferred();
	gone = false;
	readonly requests: string[] = [];
	/** What happens to the next request to a path: it is lost, its answer is lost, or it is answered with a status. */
	readonly faults: { path: string; fault: "lost" | "answer lost" | number; body?: object }[] = [];
	probe = true;
	ended: { error: number; message: string } | undefined;
	closedWith: string | undefined;
	readonly ups: number[] = [];

	constructor(peer: Peer) {
		this.peer = peer;
	}

	readonly fetch: typeof globalThis.fetch = async (input, init = {}) => {
		const path = String(input).replace(/^.*\/remus\/v2\/sessions/, "");
		const headers = new Headers(init.headers);
		const what = path.replace(/^\/[^/]*/, "");
		const name = path === "" ? "open" : what === "" ? "close" : what;
		this.requests.push(name);
		init.signal?.throwIfAborted();
		const at = this.faults.findIndex((fault) => fault.path === name);
		const fault = at >= 0 ? this.faults.splice(at, 1)[0] : undefined;
		if (fault?.fault === "lost") throw new TypeError("network error");
		if (typeof fault?.fault === "number")
			return Response.json(fault.body ?? { code: "TEST", message: "on purpose" }, { status: fault.fault });
		const response = await this.#answer(name, headers, init);
		if (fault?.fault === "answer lost") throw new TypeError("network error");
		return response;
	};

	async #answer(name: string, headers: Headers, init: RequestInit): Promise<Response> {
		if (name === "open") {
			assert.equal(init.method, "POST");
			this.#last = this.#acknowledged = this.#sent = 0;
			this.#kept.clear();
			this.#waiting = [];
			this.#carrier = undefined;
			const carrier = await this.peer.opener("http-poll")({ url: "", options: {}, fetch: this.fetch }, new AbortController().signal);
			this.#carrier = carrier;
			carrier.start({
				received: (bytes) => {
					// a link that is gone has no reader
					if (this.#carrier !== carrier) return;
					this.#waiting.push(bytes);
					this.#wake.resolve();
				},
				drained: () => {},
				ended: ({ code = 0, reason }) => {
					if (this.#carrier !== carrier) return;
					this.ended = { error: code, message: reason };
					this.#wake.resolve();
				},
			});
			return Response.json(
				{ id: "AAAAAAAAAAAAAAAAAAAAAA", secret: "s3cret", hold_ms: 200, idle_ms: 60_000, up_max: 100_000 },
				{ status: 201 },
			);
		}
		if (this.gone) return Response.json({ code: "NOT_FOUND", message: "no such link" }, { status: 404 });
		assert.equal(headers.get("authorization"), "Bearer s3cret");
		const acknowledge = headers.get("remus-acknowledge");
		if (acknowledge !== null) {
			assert.ok(Number(acknowledge) <= this.#sent, "what was sent is acknowledged");
			for (; this.#acknowledged < Number(acknowledge); this.#acknowledged++) this.#kept.delete(this.#acknowledged + 1);
		}
		switch (name) {
			case "/up":
				return this.#up(headers, init.body as Uint8Array | undefined);
			case "/down":
				return this.#down(Number(acknowledge), init.signal);
			case "/events":
				return this.#events(Number(acknowledge), init.signal);
			default:
				assert.equal(init.method, "DELETE");
				this.closedWith = headers.get("remus-close") ?? undefined;
				this.gone = true;
				return new Response(null, { status: 204 });
		}
	}

	#up(headers: Headers, body: Uint8Array | undefined): Response {
		const field = headers.get("remus-sequence");
		if (field !== null) {
			const number = Number(field);
			this.ups.push(number);
			assert.ok(body && body.length > 0 && body.length <= 100_000 && wholeFrames(body));
			assert.equal(headers.get("content-type"), "application/remus-frames");
			assert.ok(number <= this.#last + 1, "no gaps");
			if (number === this.#last + 1) {
				this.#last = number;
				this.#carrier?.write(Uint8Array.from(body));
			}
		}
		return new Response(null, { status: 204, headers: { "remus-acknowledge": String(this.#last) } });
	}

	/** The frames with the number behind `taken`, once there are any; `undefined` after the hold. */
	async #next(taken: number, signal: AbortSignal | null | undefined): Promise<Uint8Array | undefined> {
		assert.ok(taken >= this.#acknowledged, "acknowledgements don't fall back");
		const hold = deferred();
		const timer = setTimeout(() => hold.resolve(), 200);
		const abort = (): void => hold.resolve();
		signal?.addEventListener("abort", abort, { once: true });
		try {
			return await this.#wait(taken, hold.promise);
		} finally {
			clearTimeout(timer);
			signal?.removeEventListener("abort", abort);
		}
	}

	async #wait(taken: number, hold: Promise<void>): Promise<Uint8Array | undefined> {
		for (;;) {
			const kept = this.#kept.get(taken + 1);
			if (kept) return kept;
			if (this.#waiting.length > 0) {
				const bytes = Buffer.concat(this.#waiting.splice(0, 8));
				this.#kept.set(++this.#sent, bytes);
				continue;
			}
			if (this.ended) return undefined;
			this.#wake = deferred();
			const woken = await Promise.race([this.#wake.promise.then(() => true), hold.then(() => false)]);
			if (!woken) return undefined;
		}
	}

	async #down(taken: number, signal: AbortSignal | null | undefined): Promise<Response> {
		const bytes = await this.#next(taken, signal);
		signal?.throwIfAborted();
		if (bytes) return new Response(Uint8Array.from(bytes), { headers: { "remus-sequence": String(taken + 1) } });
		if (this.ended) return Response.json({ code: "ENDED", ...this.ended }, { status: 410 });
		return new Response(null, { status: 204 });
	}

	#events(taken: number, signal: AbortSignal | null | undefined): Response {
		const encoder = new TextEncoder();
		let next = taken;
		let lost = false;
		const body = new ReadableStream<Uint8Array>({
			start: (controller) => {
				if (this.probe) controller.enqueue(encoder.encode('event: probe\ndata: {"hold_ms":200}\n\n'));
				signal?.addEventListener("abort", () => {
					lost = true;
					controller.error(new Error("aborted"));
				});
			},
			pull: async (controller) => {
				const bytes = await this.#next(next, signal);
				if (lost) return;
				if (bytes) {
					next++;
					const text = `id: ${next}\nevent: frames\ndata: ${Buffer.from(bytes).toString("base64")}\n\n`;
					// in two pieces, so that lines are cut
					controller.enqueue(encoder.encode(text.slice(0, 9)));
					controller.enqueue(encoder.encode(text.slice(9)));
				} else if (this.ended) {
					controller.enqueue(encoder.encode(`event: end\ndata: ${JSON.stringify({ code: "ENDED", ...this.ended })}\n\n`));
					controller.close();
				} else {
					controller.enqueue(encoder.encode(": keep-alive\n\n"));
				}
			},
		});
		return new Response(body, { headers: { "content-type": "text/event-stream" } });
	}
}

let hosts = 0;

async function connectTo(
	kind: CarrierKind,
	peerOptions: PeerOptions = {},
	prepare: (server: Server) => void = () => {},
	options: ConnectOptions = {},
): Promise<{ client: Client; server: Server; peer: Peer }> {
	const peer = new Peer(peerOptions);
	const server = new Server(peer);
	prepare(server);
	const openers = { "http-poll": openPoll, "http-events": openEvents };
	const platform = { openers, complete: (given: ConnectOptions) => ({ ...given, fetch: server.fetch }) };
	const client = await connectWith(platform, `https://http-${++hosts}.test`, { carriers: [kind], climb: false, ...options });
	open.push(client);
	return { client, server, peer };
}

for (const kind of ["http-poll", "http-events"] as const) {
	const down = kind === "http-poll" ? "/down" : "/events";
	describe(kind, () => {
		test("carries calls and streams", async () => {
			const { client } = await connectTo(kind);
			assert.equal(client.carrier, kind);
			assert.equal(await client.call("test.v1.Test/Echo", "over HTTP"), "over HTTP");
			const numbers = Array.from({ length: 100 }, (_, i) => i);
			assert.deepEqual(await Promise.all(numbers.map((i) => client.call("test.v1.Test/Echo", i))), numbers);
			const big = new Uint8Array(700_000).map((_, i) => i);
			assert.ok(
				Buffer.from(await client.call("test.v1.Test/Echo", big, { requestCodec: raw, responseCodec: raw })).equals(Buffer.from(big)),
			);
			assert.equal((await collect(client.serverStream("test.v1.Test/Count", { n: 500, size: 3000 }))).length, 500);
		});

		test("what goes up is numbered without gaps, one at a time (CARR-20, CARR-21)", async () => {
			const { client, server } = await connectTo(kind);
			await client.call("test.v1.Test/Echo", new Uint8Array(400_000), { requestCodec: raw, responseCodec: raw });
			assert.deepEqual(
				server.ups,
				server.ups.map((_, i) => i + 1),
			);
			assert.ok(server.ups.length > 4);
		});

		test("a request that was lost, and one whose answer was lost, is sent again with its number (CARR-20)", async () => {
			const { client, server, peer } = await connectTo(kind);
			server.faults.push({ path: "/up", fault: "lost" });
			assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
			server.faults.push({ path: "/up", fault: "answer lost" });
			assert.equal(await client.call("test.v1.Test/Echo", 2), 2);
			server.faults.push({ path: "/up", fault: 503 });
			assert.equal(await client.call("test.v1.Test/Echo", 3), 3);
			assert.equal(peer.session.requests.length, 3);
		});

		test("an answer that was lost on its way down comes again (CARR-17)", async () => {
			const { client, server, peer } = await connectTo(kind);
			server.faults.push({ path: down, fault: "answer lost" }, { path: down, fault: 502 });
			for (let i = 0; i < 5; i++) assert.equal(await client.call("test.v1.Test/Echo", i), i);
			assert.equal(peer.sessions.length, 1);
		});

		test("a link that is gone is lost, and the session resumed on another (CARR-15)", async () => {
			const { client, server, peer } = await connectTo(kind, { resumable: true });
			server.faults.push({ path: "/up", fault: 404 });
			assert.equal(await client.call("test.v1.Test/Echo", "moved"), "moved");
			assert.equal(client.status().resumptions, 1);
			assert.equal(peer.sessions.length, 1);
			assert.equal(peer.links.length, 2);
		});

		test("the acceptor's end is told with its code (CARR-32)", async () => {
			const { client, peer } = await connectTo(kind);
			const lost = deferred<string>();
			client.on("sessionlost", ({ error }) => lost.resolve(`${error.code}: ${error.message}`));
			peer.link.close(errorCodes.SHUTTING_DOWN, "maintenance");
			assert.equal(await lost.promise, "SHUTTING_DOWN: maintenance");
		});

		test("close() lets out what is ready, then ends the link with its code (CARR-31)", async () => {
			const { client, server, peer } = await connectTo(kind);
			await client.close();
			assert.equal(server.closedWith, "0");
			await peer.until(() => peer.session.shutdown !== undefined);
			assert.equal(peer.session.shutdown?.code, 0);
		});

		test("a refusal that repeating doesn't help against is told", async () => {
			const refused = connectTo(kind, {}, (server) => server.faults.push({ path: "open", fault: 403 }));
			await assert.rejects(refused, (error) => isRemusError(error) && error.code === "PERMISSION_DENIED");
		});
	});
}

describe("server-sent events", () => {
	test("what came is acknowledged by itself, so that the acceptor can let go of it (CARR-29)", async () => {
		const { client, server } = await connectTo("http-events");
		await collect(client.serverStream("test.v1.Test/Count", { n: 200, size: 10_000 }));
		assert.ok(server.requests.filter((name) => name === "/up").length > server.ups.length, "an up for the acknowledgement alone");
	});

	test("a proxy that gathers the answer is found out (CARR-26)", async () => {
		const refused = connectTo("http-events", {}, (server) => {
			server.probe = false;
		});
		await assert.rejects(refused, (error) => isRemusError(error) && error.code === "UNAVAILABLE");
	});

	test("are read whatever their lines end with, and wherever they are cut", async () => {
		const text = ": comment\r\nevent: a\r\ndata: 1\r\n\r\nid: 7\ndata:2\ndata: 3\n\nevent: none\n\n";
		for (const size of [1, 2, 3, 7, 100]) {
			const bytes = new TextEncoder().encode(text);
			const body = new ReadableStream<Uint8Array>({
				start(controller) {
					for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.subarray(at, at + size));
					controller.close();
				},
			});
			assert.deepEqual(await collect(eventsOf(body)), [
				{ event: "a", data: "1", id: "" },
				{ event: "message", data: "2\n3", id: "7" },
			]);
		}
	});
});
