/** Calls, streams, topics, credit and the end, against an acceptor in this process. */
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import type { CarrierKind, Client, ConnectOptions } from "../src/api.js";
import { connectWith, normalise } from "../src/client.js";
import { raw } from "../src/codecs.js";
import { type ErrorCode, errorCodes, isRemusError, remusError } from "../src/errors.js";
import { Writer } from "../src/wire/bytes.js";
import * as wire from "../src/wire.js";
import { deferred, Peer, type PeerOptions } from "./peer.js";
import { collect } from "./support.js";

const open: Client[] = [];
after(() => Promise.all(open.map((client) => client.close({ graceMs: 0 }))));

let hosts = 0;

async function pair(
	peerOptions: PeerOptions = {},
	options: ConnectOptions = {},
	kinds: CarrierKind[] = ["websocket"],
): Promise<{ client: Client; peer: Peer }> {
	const peer = new Peer(peerOptions);
	const client = await connectTo(peer, options, kinds);
	return { client, peer };
}

async function connectTo(peer: Peer, options: ConnectOptions = {}, kinds: CarrierKind[] = ["websocket"]): Promise<Client> {
	const openers = Object.fromEntries(kinds.map((kind) => [kind, peer.opener(kind)]));
	const client = await connectWith({ openers, complete: (given) => given }, `https://host-${++hosts}.test`, { climb: false, ...options });
	open.push(client);
	return client;
}

function hasCode(code: ErrorCode): (error: unknown) => true {
	return (error) => {
		assert.ok(isRemusError(error), String(error));
		assert.equal(error.code, code, error.message);
		return true;
	};
}

describe("connecting", () => {
	test("takes both schemes, and port 4433 where none is named (TRANS-1, TRANS-2)", () => {
		assert.equal(normalise("remus://example.org"), "https://example.org:4433");
		assert.equal(normalise("https://example.org/some/path"), "https://example.org:4433");
		assert.equal(normalise("https://[::1]:443"), "https://[::1]:443");
	});

	test("refuses other schemes, user information, and impossible ports (TRANS-1, TRANS-3)", () => {
		for (const url of [
			"example.org",
			"http://example.org",
			"remus://",
			"https://me:secret@example.org",
			"https://h:0",
			"https://h:65536",
			"https://h:",
		]) {
			assert.throws(() => normalise(url), TypeError, url);
		}
	});

	test("the first flight leaves in order and at once, and is answered (CORE-2, CORE-3)", async () => {
		const { client, peer } = await pair();
		assert.equal(client.state, "open");
		assert.equal(client.carrier, "websocket");
		assert.equal(client.status().session, 7);
		assert.equal(client.status().version, "2.0");
		assert.equal(peer.links.length, 1);
	});

	test("a refusal is what connecting fails with (CORE-19)", async () => {
		await assert.rejects(pair({ refuse: "PERMISSION_DENIED" }), (error) => {
			hasCode("PERMISSION_DENIED")(error);
			assert.ok(isRemusError(error));
			assert.equal(error.message, "not today");
			assert.equal(error.retryAfterMs, 10);
			return true;
		});
	});

	test("a bearer token is shown, and asked for at the start", async () => {
		let asked = 0;
		const bearer = (): Promise<string> => {
			asked++;
			return Promise.resolve("let me in");
		};
		const { client } = await pair({ bearer: "let me in" }, { credentials: { bearer } });
		assert.equal(client.state, "open");
		assert.equal(asked, 1);
		await assert.rejects(pair({ bearer: "let me in" }, { credentials: { bearer: "please" } }), hasCode("UNAUTHENTICATED"));
	});

	test("without a carrier it fails at once", async () => {
		const peer = new Peer();
		peer.blocked.add("websocket");
		await assert.rejects(connectTo(peer), hasCode("UNAVAILABLE"));
	});

	test("a signal gives it up", async () => {
		const reason = new Error("no more time");
		await assert.rejects(
			pair({}, { signal: AbortSignal.abort(reason) }),
			(error) => hasCode("CANCELLED")(error) && (error as Error).cause === reason,
		);
	});
});

describe("unary calls", () => {
	test("are answered", async () => {
		const { client } = await pair();
		assert.deepEqual(await client.call("test.v1.Test/Echo", { a: [1, "two"] }), { a: [1, "two"] });
	});

	test("many at once get each its own answer, on stream 1 (CORE-29)", async () => {
		const { client, peer } = await pair();
		const numbers = Array.from({ length: 500 }, (_, i) => i);
		assert.deepEqual(await Promise.all(numbers.map((i) => client.call("test.v1.Test/Echo", i))), numbers);
		assert.ok(peer.session.requests.every(({ stream }) => stream === 1));
	});

	test("keep to the peer's max_calls, and all get their turn (CORE-41)", async () => {
		const { client, peer } = await pair({ maxCalls: 64 });
		const stop = new AbortController();
		const hanging = Array.from({ length: 64 }, () => client.call("test.v1.Test/Hang", 0, { signal: stop.signal }));
		const last = client.call("test.v1.Test/Echo", "last");
		await peer.until(() => peer.session.requests.length === 64);
		assert.equal(client.status().calls, 64);
		assert.equal(client.status().waitingCalls, 1);
		stop.abort();
		for (const call of hanging) await assert.rejects(call, hasCode("CANCELLED"));
		assert.equal(await last, "last");
	});

	test("request IDs rise, and requests say what they are (CORE-27, WIRE-32)", async () => {
		const { client, peer } = await pair();
		await client.call("test.v1.Test/Echo", 1, {
			priority: 0xc001,
			idempotent: true,
			topic: "a.b",
			metadata: [["k", "v"]],
			timeoutMs: 1000,
		});
		await client.call("test.v1.Test/Echo", 2);
		const [first, second] = peer.session.requests.map(({ message }) => message);
		assert.ok(first && second);
		assert.deepEqual([first.requestId, second.requestId], [1, 2]);
		assert.equal(first.serviceId, wire.idOf("test.v1.Test"));
		assert.equal(first.methodId, wire.idOf("test.v1.Test/Echo"));
		assert.equal(first.priority, 0xc001);
		assert.equal(first.flags, wire.flags.IDEMPOTENT | wire.flags.HIGH_PRIORITY);
		assert.equal(wire.routingValues(first.routing).topic, "a.b");
		const context = wire.contextValues(first.context);
		assert.equal(context.contentType, "application/json");
		assert.deepEqual(
			context.custom?.map(([key, value]) => [key, new TextDecoder().decode(value)]),
			[["k", "v"]],
		);
		const ttl = wire.ttlToMs(first.ttl);
		assert.ok(ttl !== undefined && ttl > 0 && ttl <= 1000, String(ttl));
		assert.ok(second.timestamp > first.timestamp, "timestamps rise (CORE-68)");
	});

	test("errors come with code, retry and details", async () => {
		const { client } = await pair();
		await assert.rejects(client.call("test.v1.Test/Fail"), (error) => {
			hasCode("NOT_FOUND")(error);
			assert.ok(isRemusError(error));
			assert.equal(error.message, "no such item");
			assert.equal(error.number, 5);
			assert.equal(error.retryAfterMs, 250);
			assert.equal(error.retryable, false);
			assert.deepEqual(error.details, [{ type: "test.Detail", value: new Uint8Array(new TextEncoder().encode("why")) }]);
			return true;
		});
	});

	test("above 16 KiB get a stream of their own, and are cut to fit the credit (CORE-32, CORE-61)", async () => {
		const { client, peer } = await pair();
		const big = new Uint8Array(1_000_000).map((_, i) => i);
		const answer = await client.call("test.v1.Test/Echo", big, { requestCodec: raw, responseCodec: raw });
		assert.ok(Buffer.from(answer).equals(Buffer.from(big)));
		assert.equal(peer.session.requests[0]?.stream, 3);
		await peer.until(() => peer.log.includes("free 3"));
		assert.deepEqual(client.status().streams, []);
	});

	test("above the peer's limit are refused here", async () => {
		const { client } = await pair({ maxMessage: 100_000 });
		await assert.rejects(client.call("test.v1.Test/Echo", new Uint8Array(100_000), { requestCodec: raw }), hasCode("MESSAGE_TOO_LARGE"));
	});

	test("large answers come on a stream that the peer opens, which is ended by RESET with code 0 (CORE-34)", async () => {
		const { client, peer } = await pair();
		const answer = await client.call("test.v1.Test/Big", undefined, { responseCodec: raw });
		assert.equal(answer.length, 100_000);
		await peer.until(() => peer.log.includes("reset 4 0"));
	});

	test("end by themselves when their time is over, and tell the peer (CORE-37, CORE-70)", async () => {
		const { client, peer } = await pair();
		await assert.rejects(client.call("test.v1.Test/Hang", 0, { timeoutMs: 20 }), hasCode("DEADLINE_EXCEEDED"));
		await peer.until(() => peer.log.includes(`cancel ${errorCodes.DEADLINE_EXCEEDED}`));
	});

	test("end with their signal, whose reason is the cause", async () => {
		const { client, peer } = await pair();
		const stop = new AbortController();
		const call = client.call("test.v1.Test/Hang", 0, { signal: stop.signal });
		await peer.until(() => peer.session.requests.length === 1);
		stop.abort("enough");
		await assert.rejects(call, (error) => hasCode("CANCELLED")(error) && (error as Error).cause === "enough");
		await peer.until(() => peer.log.includes(`cancel ${errorCodes.CANCELLED}`));
	});

	test("that have not left are not sent when they are given up", async () => {
		const { client, peer } = await pair();
		const stop = new AbortController();
		const call = client.call("test.v1.Test/Hang", 0, { signal: stop.signal });
		stop.abort();
		await assert.rejects(call, hasCode("CANCELLED"));
		await client.call("test.v1.Test/Echo", 0);
		assert.deepEqual(
			peer.session.requests.map(({ name }) => name),
			["Echo"],
		);
	});

	test("an answer that nobody waits for is ignored (CORE-36)", async () => {
		const { client, peer } = await pair();
		peer.session.push(1, { type: wire.messageTypes.Response, requestId: 99 });
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
	});

	test("an answer that its codec can't read is DATA_LOSS", async () => {
		const { client } = await pair();
		await assert.rejects(client.call("test.v1.Test/Echo", new Uint8Array([0xff]), { requestCodec: raw }), hasCode("DATA_LOSS"));
	});

	test("misuse is a TypeError, and a request that can't be encoded fails with its own error", async () => {
		const { client } = await pair();
		await assert.rejects(client.call("Echo"), TypeError);
		await assert.rejects(client.call("test.v1.Test/Echo", 1, { timeoutMs: -1 }), TypeError);
		await assert.rejects(client.call("test.v1.Test/Echo", 1n), TypeError);
	});
});

describe("streams", () => {
	test("a server stream gives every element in order, then ends (CORE-65)", async () => {
		const { client, peer } = await pair();
		const items = await collect(client.serverStream<{ i: number }>("test.v1.Test/Count", { n: 1000 }));
		assert.deepEqual(
			items.map(({ i }) => i),
			Array.from({ length: 1000 }, (_, i) => i),
		);
		await peer.until(() => peer.log.includes("free 3"));
	});

	test("a Response ends a stream as well (CORE-26)", async () => {
		const { client } = await pair();
		assert.equal((await collect(client.serverStream("test.v1.Test/Count", { n: 2, response: true }))).length, 2);
	});

	test("nothing is sent before the iteration, and nothing beyond the credit while nobody reads (CORE-60)", async () => {
		const { client, peer } = await pair();
		const stream = client.serverStream<{ i: number }>("test.v1.Test/Count", { n: 300, size: 10_000 });
		await client.call("test.v1.Test/Echo", 0);
		assert.deepEqual(
			peer.session.requests.map(({ name }) => name),
			["Echo"],
		);
		const reader = stream[Symbol.asyncIterator]();
		assert.equal((await reader.next()).value?.i, 0);
		await peer.until(() => peer.session.requests.length === 2);
		// 3 MB wait at the peer; a window of 1 MiB is all that may come
		while ((await client.call("test.v1.Test/Echo", 0)) === 0) {
			const status = client.status().streams.find(({ id }) => id === 3);
			assert.ok(status);
			assert.equal(status.method, "test.v1.Test/Count");
			if (status.receive.offset < status.receive.limit) continue;
			assert.ok(status.unreadBytes <= 1_048_576 && status.unreadBytes > 1_000_000, String(status.unreadBytes));
			break;
		}
		let next = 1;
		for (;;) {
			const { done, value } = await reader.next();
			if (done) break;
			assert.equal(value.i, next++);
		}
		assert.equal(next, 300);
	});

	test("leaving the iteration gives the call up, and its stream is used again (CORE-37, CORE-51)", async () => {
		const { client, peer } = await pair();
		for (let round = 0; round < 40; round++) {
			for await (const item of client.serverStream<{ i: number }>("test.v1.Test/Count", { n: 100, size: 50_000 })) if (item.i === 3) break;
		}
		await peer.until(() => peer.log.filter((line) => line === "free 3").length > 0);
		assert.ok(peer.log.includes(`stop 3 ${errorCodes.CANCELLED}`));
		assert.ok(peer.session.requests.every(({ stream }) => stream <= 2 * 32 + 1));
		assert.deepEqual(await client.call("test.v1.Test/Echo", 1), 1);
	});

	test("cancel() before the iteration, and iterating twice", async () => {
		const { client } = await pair();
		const given = client.serverStream("test.v1.Test/Count", { n: 1 });
		given.cancel();
		await assert.rejects(collect(given), hasCode("CANCELLED"));
		assert.throws(() => given[Symbol.asyncIterator](), TypeError);
	});

	test("a client stream is pulled as there is credit, and answered once", async () => {
		const { client } = await pair();
		const sum = await client.clientStream(
			"test.v1.Test/Sum",
			Array.from({ length: 20_000 }, (_, i) => i),
		);
		assert.equal(sum, (20_000 * 19_999) / 2);
	});

	test("an answer before the end of the requests stops them (CORE-35, CORE-53)", async () => {
		const { client, peer } = await pair();
		const returned = deferred();
		async function* forever(): AsyncGenerator<number> {
			try {
				for (let i = 0; ; i++) yield i;
			} finally {
				returned.resolve();
			}
		}
		assert.equal(await client.clientStream("test.v1.Test/Early", forever()), "enough");
		await returned.promise;
		await peer.until(() => peer.log.includes("free 3"));
		assert.ok(peer.log.includes("reset 3 0"));
	});

	test("requests that throw fail the call with their error, and give it up", async () => {
		const { client, peer } = await pair();
		const broken = new Error("out of numbers");
		function* few(): Generator<number> {
			yield 1;
			throw broken;
		}
		await assert.rejects(client.clientStream("test.v1.Test/Sum", few()), (error) => error === broken);
		await peer.until(() => peer.log.includes(`reset 3 ${errorCodes.CANCELLED}`));
	});

	test("both ways at the same time", async () => {
		const { client } = await pair();
		const turns: number[] = [];
		const turn = [deferred<void>()];
		async function* requests(): AsyncGenerator<number> {
			for (let i = 0; i < 5; i++) {
				yield i;
				// the next one only when the answer to this one is here
				await turn[i]?.promise;
			}
		}
		for await (const answer of client.bidi<number, number>("test.v1.Test/Chat", requests())) {
			turns.push(answer);
			turn.push(deferred<void>());
			turn[answer]?.resolve();
		}
		assert.deepEqual(turns, [0, 1, 2, 3, 4]);
	});

	test("a stream's time holds for all of it", async () => {
		const { client } = await pair();
		const never = deferred<number>();
		async function* requests(): AsyncGenerator<number> {
			yield 1;
			yield await never.promise;
		}
		const got: number[] = [];
		await assert.rejects(async () => {
			for await (const answer of client.bidi<number, number>("test.v1.Test/Chat", requests(), { timeoutMs: 50 })) got.push(answer);
		}, hasCode("DEADLINE_EXCEEDED"));
		assert.deepEqual(got, [1]);
		never.resolve(0);
	});

	test("streams take turns: a small call is not held up by a large one (CORE-67)", async () => {
		const { client, peer } = await pair();
		const big = client.call("test.v1.Test/Echo", new Uint8Array(3_000_000), { requestCodec: raw, responseCodec: raw });
		assert.equal(await client.call("test.v1.Test/Echo", "small"), "small");
		assert.equal(peer.session.requests[0]?.message.payload.length, 7);
		assert.equal((await big).length, 3_000_000);
	});

	test("requests of the peer are refused: there are no services here", async () => {
		const { client, peer } = await pair();
		peer.session.push(2, { type: wire.messageTypes.Request, requestId: 1 });
		await peer.until(() => peer.log.includes(`answer ${errorCodes.UNIMPLEMENTED}`));
		peer.session.push(6, { type: wire.messageTypes.Request, requestId: 2 });
		await peer.until(() => peer.log.includes(`stop 6 0`));
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
	});

	test("streams beyond max_streams are refused alone (CORE-48)", async () => {
		const { client, peer } = await pair();
		peer.session.push(60_000, { type: wire.messageTypes.Request, requestId: 1 });
		await peer.until(() => peer.log.includes(`stop 60000 ${errorCodes.TOO_MANY_STREAMS}`));
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
	});
});

describe("topics", () => {
	test("what is published arrives, with topic and time (CORE-87, CORE-88)", async () => {
		const { client, peer } = await pair();
		const subscription = client.subscribe("chat.*", { capacity: 7, overflow: "end", queueGroup: "g" });
		await subscription.ready;
		assert.ok(peer.log.includes("subscribe chat.* 3 7 g"));
		await client.publish("chat.room", JSON.stringify({ text: "hi" }));
		await client.publish("chat.hall", new Uint8Array([104, 105]));
		const reader = subscription[Symbol.asyncIterator]();
		const first = (await reader.next()).value;
		assert.ok(first);
		assert.equal(first.topic, "chat.room");
		assert.equal(first.timestampUs, 1_700_000_000_000_123n);
		assert.deepEqual(first.json(), { text: "hi" });
		assert.equal((await reader.next()).value?.text(), "hi");
		subscription.close();
		assert.equal((await reader.next()).done, true);
		await peer.until(() => peer.subscriptions.size === 0);
	});

	test("leaving the iteration ends the subscription", async () => {
		const { client, peer } = await pair();
		const subscription = client.subscribe("a");
		await subscription.ready;
		await client.publish("a", "1");
		for await (const publication of subscription) {
			assert.equal(publication.text(), "1");
			break;
		}
		await peer.until(() => peer.subscriptions.size === 0);
	});

	test("a refused subscription says so twice: ready, and the iteration", async () => {
		const { client, peer } = await pair();
		const subscription = client.subscribe("a", { signal: AbortSignal.abort() });
		await assert.rejects(subscription.ready, hasCode("CANCELLED"));
		await assert.rejects(collect(subscription), hasCode("CANCELLED"));
		assert.equal(peer.subscriptions.size, 0);
	});
});

describe("heartbeats", () => {
	test("a ping is answered, and measures (CORE-71, CORE-72)", async () => {
		const { client } = await pair();
		const rtt = await client.ping();
		assert.ok(rtt >= 0);
		const status = client.status();
		assert.ok(status.minRttMs !== undefined && status.rttMs !== undefined && status.clockOffsetMs !== undefined);
		assert.ok(status.minRttMs <= status.rttMs);
	});

	test("silence ends a session that can't be resumed, and a new one is begun (CORE-75)", async () => {
		const { client, peer } = await pair({ idleMs: 500 });
		const lost = deferred<string>();
		client.on("sessionlost", ({ error }) => lost.resolve(error.code));
		peer.link.heldBack = true;
		assert.equal(await lost.promise, "IDLE_TIMEOUT");
		assert.equal(peer.links[0]?.closedByClient?.code, errorCodes.IDLE_TIMEOUT);
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
		assert.equal(client.status().sessions, 2);
	});

	test("a flood of control traffic ends the session (CORE-76)", async () => {
		const { client, peer } = await pair();
		const lost = deferred<string>();
		client.on("sessionlost", ({ error }) => lost.resolve(error.code));
		for (let i = 0; i < 2000; i++) peer.session.frame(0, wire.frameTypes.CREDIT, new Writer(8).u64(1n).done());
		assert.equal(await lost.promise, "CONTROL_FLOOD");
	});
});

describe("broken rules end the session with their code (CORE-83)", () => {
	const cases: { readonly [what: string]: [ErrorCode, (peer: Peer) => void] } = {
		"an unknown frame": ["UNKNOWN_FRAME", (peer) => peer.link.send(wire.encodeFrame(1, 9, new Uint8Array(1)))],
		"a frame that is too large": ["FRAME_TOO_LARGE", (peer) => peer.link.send(wire.encodeFrame(1, 2, new Uint8Array(65_537)))],
		"bytes that are no message": ["MALFORMED", (peer) => peer.session.frame(1, 1, new Uint8Array(35))],
		"LAST without PART": ["UNEXPECTED_MESSAGE", (peer) => peer.session.frame(1, 3, new Uint8Array(35))],
		"a REFERENCE": ["UNIMPLEMENTED", (peer) => peer.session.frame(1, 7, new Uint8Array(16))],
		"a RESET of a shared stream": ["UNEXPECTED_MESSAGE", (peer) => peer.session.frame(1, 5, new Uint8Array(4))],
		"data on a stream that is not in use": ["STREAM_STATE", (peer) => peer.session.push(9, { type: wire.messageTypes.Response })],
		"credit for an impossible stream": ["STREAM_STATE", (peer) => peer.session.frame(60_001, 4, new Uint8Array(8))],
		"a request on stream 1": ["UNEXPECTED_MESSAGE", (peer) => peer.session.push(1, { type: wire.messageTypes.Request, requestId: 1 })],
		"an element that opens a stream": ["UNEXPECTED_MESSAGE", (peer) => peer.session.push(4, { type: wire.messageTypes.Stream })],
		"an accept out of turn": [
			"UNEXPECTED_MESSAGE",
			(peer) => {
				const version = { major: 2, minor: 0, features: 0, compression: 0, extensions: [] };
				const payload = wire.encodeHandshake({ step: "accept", version });
				peer.session.frame(0, 1, wire.encodeMessage({ type: wire.messageTypes.Handshake, payload }));
			},
		],
		"compression that was not agreed on": ["UNIMPLEMENTED", (peer) => peer.session.push(1, { type: wire.messageTypes.Response, flags: 1 })],
		"a message inside a message": [
			"MALFORMED",
			(peer) => {
				const message = wire.encodeMessage({ type: wire.messageTypes.Response });
				peer.session.frame(1, 2, message.subarray(0, 30));
				peer.session.frame(1, 1, message);
			},
		],
		"parts that don't add up": [
			"MALFORMED",
			(peer) => {
				const message = wire.encodeMessage({ type: wire.messageTypes.Response });
				peer.session.frame(1, 2, message.subarray(0, 30));
				peer.session.frame(1, 3, message.subarray(0, 30));
			},
		],
	};
	for (const [what, [code, act]] of Object.entries(cases)) {
		test(what, async () => {
			const { client, peer } = await pair();
			const lost = deferred<string>();
			client.on("sessionlost", ({ error }) => lost.resolve(error.code));
			act(peer);
			assert.equal(await lost.promise, code);
			assert.equal(peer.links[0]?.closedByClient?.code, errorCodes[code]);
		});
	}

	test("more than the credit (CORE-57)", async () => {
		const { client, peer } = await pair();
		const lost = deferred<string>();
		client.on("sessionlost", ({ error }) => lost.resolve(error.code));
		const subscription = client.subscribe("a");
		await subscription.ready;
		const element = wire.encodeMessage({ type: wire.messageTypes.Stream, payload: new Uint8Array(60_000) });
		const stream = peer.session.requests.at(-1)?.stream ?? 0;
		for (let i = 0; i < 20; i++) peer.session.frame(stream, wire.frameTypes.MESSAGE, element);
		assert.equal(await lost.promise, "FLOW_CONTROL");
	});

	test("an ignorable frame does not (WIRE-16)", async () => {
		const { client, peer } = await pair();
		peer.session.frame(1, 0x8001, new Uint8Array(10));
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
	});
});

describe("the end", () => {
	test("close() announces it, lets calls finish, and closes in good order (CORE-81)", async () => {
		const { client, peer } = await pair();
		const states: string[] = [];
		client.on("state", ({ state }) => states.push(state));
		const answers = collect(client.serverStream("test.v1.Test/Count", { n: 50 }));
		await client.close();
		assert.equal((await answers).length, 50);
		assert.equal(await client.closed, undefined);
		assert.deepEqual(states, ["closing", "closed"]);
		assert.equal(peer.session.shutdown?.code, 0);
		assert.equal(peer.link.closedByClient?.code, 0);
		await assert.rejects(client.call("test.v1.Test/Echo", 1), hasCode("CANCELLED"));
		await client.close();
	});

	test("what is open when the grace is over ends with LOSS_OF_SESSION (CORE-84)", async () => {
		const { client } = await pair();
		const call = client.call("test.v1.Test/Hang", 0);
		await client.close({ graceMs: 1 });
		await assert.rejects(call, hasCode("LOSS_OF_SESSION"));
	});

	test("a lost carrier loses a session that can't be resumed: its calls fail, and the next session serves", async () => {
		const { client, peer } = await pair();
		const call = client.call("test.v1.Test/Hang", 0);
		await peer.until(() => peer.session.requests.length === 1);
		const events: (string | undefined)[] = [];
		client.on("carrier", ({ carrier }) => events.push(carrier));
		peer.link.cut();
		await assert.rejects(call, hasCode("LOSS_OF_SESSION"));
		assert.equal(await client.call("test.v1.Test/Echo", "again"), "again");
		assert.deepEqual(events, [undefined, "websocket"]);
		assert.equal(peer.sessions.length, 2);
	});

	test("an idempotent call is made once more, and others are not", async () => {
		const { client, peer } = await pair();
		const once = client.call("test.v1.Test/Hang", 0, { idempotent: true });
		await peer.until(() => peer.session.requests.length === 1);
		peer.link.cut();
		await peer.until(() => peer.sessions.length === 2 && peer.session.requests.length === 1);
		peer.link.cut();
		await assert.rejects(once, hasCode("LOSS_OF_SESSION"));
		assert.equal(peer.sessions.filter(({ requests }) => requests.length > 0).length, 2);
	});

	test("a Shutdown refuses later calls, and those that wait go to the next session (CORE-79)", async () => {
		const { client, peer } = await pair();
		const first = client.call("test.v1.Test/Hang", 0);
		await peer.until(() => peer.session.requests.length === 1);
		const second = client.call("test.v1.Test/Hang", 0);
		await peer.until(() => peer.session.requests.length === 2);
		peer.session.shutDown(1, 10_000);
		await assert.rejects(second, (error) => hasCode("SHUTTING_DOWN")(error) && isRemusError(error) && error.refusedBeforeItRan);
		const third = client.call("test.v1.Test/Echo", 3);
		peer.link.close(errorCodes.SHUTTING_DOWN, "maintenance");
		await assert.rejects(first, hasCode("LOSS_OF_SESSION"));
		assert.equal(await third, 3);
	});

	test("listeners that throw disturb nothing, and can be taken away", async () => {
		const { client } = await pair();
		let heard = 0;
		const stop = client.on("state", () => {
			heard++;
		});
		stop();
		await client.close();
		assert.equal(heard, 0);
	});
});

test("errors of Remus are told from others, and unknown codes are UNKNOWN", () => {
	assert.equal(isRemusError(new Error("x")), false);
	assert.equal(isRemusError(remusError("ABORTED", "x")), true);
	const unknown = remusError("UNKNOWN", "x", { number: 0x7777 });
	assert.equal(unknown.number, 0x7777);
});
