/** Sessions that outlive their carriers. Spec: core 3.5. */
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import type { CarrierKind, Client, ConnectOptions } from "../src/api.js";
import { connectWith } from "../src/client.js";
import { raw } from "../src/codecs.js";
import { errorCodes, isRemusError } from "../src/errors.js";
import { Writer } from "../src/wire/bytes.js";
import * as wire from "../src/wire.js";
import { deferred, Peer } from "./peer.js";
import { collect } from "./support.js";

const open: Client[] = [];
after(() => Promise.all(open.map((client) => client.close({ graceMs: 0 }))));

let hosts = 0;

async function pair(
	options: ConnectOptions = {},
	kinds: CarrierKind[] = ["webtransport", "websocket"],
	peer: Peer = new Peer({ resumable: true }),
): Promise<{ client: Client; peer: Peer }> {
	const openers = Object.fromEntries(kinds.map((kind) => [kind, peer.opener(kind)]));
	const client = await connectWith({ openers, complete: (given) => given }, `https://resumed-${++hosts}.test`, {
		climb: false,
		...options,
	});
	open.push(client);
	return { client, peer };
}

function next(client: Client, state: string): Promise<void> {
	const { promise, resolve } = deferred();
	const stop = client.on("state", (event) => {
		if (event.state !== state) return;
		stop();
		resolve();
	});
	return promise;
}

describe("resumption", () => {
	test("a client says on each carrier who it is", async () => {
		const peer = new Peer({ resumable: true, bearer: "it's me" });
		const { client } = await pair({ credentials: { bearer: "it's me" } }, ["webtransport", "websocket"], peer);
		for (const kind of ["websocket", "webtransport"] as const) {
			await client.switchCarrier(kind);
			assert.equal(await client.call("test.v1.Test/Echo", kind), kind);
		}
		assert.equal(peer.sessions.length, 1);
		assert.equal(client.status().resumptions, 2);
		// somebody else in the client's place is told nothing but that there is no session
		peer.session.identity = Uint8Array.of(...new Uint8Array(12), 1);
		await assert.rejects(client.switchCarrier("websocket"));
		assert.equal(peer.session.ended, undefined);
	});

	test("a call in flight is answered once, on the next carrier", async () => {
		const { client, peer } = await pair();
		assert.equal(client.status().resumable, true);
		const events: string[] = [];
		client.on("carrier", ({ carrier, previous }) => events.push(`${previous} -> ${carrier}`));
		client.on("state", ({ state }) => events.push(state));
		// the answer is lost with the carrier
		peer.link.heldBack = true;
		const call = client.call("test.v1.Test/Echo", "once");
		await peer.until(() => peer.session.requests.length === 1);
		peer.blocked.add("webtransport");
		peer.link.cut();
		assert.equal(await call, "once");
		assert.equal(peer.session.requests.length, 1);
		assert.equal(peer.sessions.length, 1);
		assert.deepEqual(events, ["webtransport -> undefined", "suspended", "webtransport -> websocket", "open"]);
		assert.equal(client.status().resumptions, 1);
		assert.equal(client.carrier, "websocket");
	});

	test("a request that was lost with the carrier arrives once", async () => {
		const { client, peer } = await pair();
		const call = client.call("test.v1.Test/Echo", 1);
		// it has left, and has not arrived
		await Promise.resolve();
		peer.link.cut();
		assert.equal(await call, 1);
		assert.equal(peer.session.requests.length, 1);
	});

	test("calls that are made without a carrier wait for the next one", async () => {
		const { client, peer } = await pair();
		peer.blocked.add("webtransport").add("websocket");
		const suspended = next(client, "suspended");
		client.dropCarrier();
		await suspended;
		assert.equal(client.carrier, undefined);
		const call = client.call("test.v1.Test/Echo", 2);
		await peer.until(() => peer.asked.length > 4);
		peer.blocked.clear();
		assert.equal(await call, 2);
		assert.equal(peer.sessions.length, 1);
	});

	test("streams in both directions go on, with nothing lost or doubled, over 60 cuts", async () => {
		const { client, peer } = await pair();
		const elements = 3000;
		const down = collect(client.serverStream<{ i: number }>("test.v1.Test/Count", { n: elements, size: 500 }));
		const up = client.clientStream(
			"test.v1.Test/Sum",
			Array.from({ length: elements }, (_, i) => i),
		);
		const subscription = client.subscribe("n");
		await subscription.ready;
		const big = new Uint8Array(2_000_000).map((_, i) => i * 7);
		const echo = client.call("test.v1.Test/Echo", big, { requestCodec: raw, responseCodec: raw });
		const numbers = subscription[Symbol.asyncIterator]();
		for (let cut = 0; cut < 60; cut++) {
			const resumed = next(client, "open");
			if (cut % 3 === 0) {
				// what the acceptor says is lost for a while before the cut
				peer.link.heldBack = true;
				const call = client.call("test.v1.Test/Echo", cut);
				const seen = peer.session.requests.length;
				await peer.until(() => peer.session.requests.length > seen);
				peer.link.cut();
				assert.equal(await call, cut);
			} else {
				if (cut % 3 === 1) await client.publish("n", String(cut));
				peer.link.cut();
			}
			await resumed;
			if (cut % 3 === 1) assert.equal((await numbers.next()).value?.text(), String(cut));
		}
		assert.deepEqual(
			(await down).map(({ i }) => i),
			Array.from({ length: elements }, (_, i) => i),
		);
		assert.equal(await up, (elements * (elements - 1)) / 2);
		assert.ok(Buffer.from(await echo).equals(Buffer.from(big)));
		assert.equal(peer.sessions.length, 1);
		assert.equal(client.status().resumptions, 60);
		subscription.close();
	});

	test("the answer to Resume may be lost, several times", async () => {
		const { client, peer } = await pair();
		peer.link.heldBack = true;
		const call = client.call("test.v1.Test/Echo", "still");
		await peer.until(() => peer.session.requests.length === 1);
		peer.loseResumed = 3;
		peer.link.cut();
		assert.equal(await call, "still");
		assert.equal(peer.log.filter((line) => line === "resume 2").length, 4);
		assert.equal(peer.session.requests.length, 1);
	});

	test("switchCarrier opens the other carrier first, and there is no gap", async () => {
		const { client, peer } = await pair();
		const gaps: number[] = [];
		client.on("carrier", ({ gapMs, reason }) => gaps.push(reason === "switched" ? gapMs : -1));
		const answers = collect(client.serverStream("test.v1.Test/Count", { n: 500, size: 2000 }));
		await client.switchCarrier("websocket");
		assert.equal(client.carrier, "websocket");
		await client.switchCarrier("webtransport");
		assert.equal(client.carrier, "webtransport");
		assert.equal((await answers).length, 500);
		assert.deepEqual(gaps, [0, 0]);
		assert.equal(client.state, "open");
		assert.equal(peer.links.length, 3);
	});

	test("where the other carrier can't be opened, the old one goes on", async () => {
		const { client, peer } = await pair();
		peer.blocked.add("websocket");
		await assert.rejects(client.switchCarrier("websocket"), (error) => isRemusError(error) && error.code === "UNAVAILABLE");
		await assert.rejects(client.switchCarrier("http-poll"), (error) => isRemusError(error) && error.code === "UNIMPLEMENTED");
		assert.equal(client.carrier, "webtransport");
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
		assert.equal(client.status().resumptions, 0);
	});

	test("a session that the acceptor doesn't know any more is lost, and a new one is begun", async () => {
		const { client, peer } = await pair();
		const lost = deferred<string>();
		client.on("sessionlost", ({ error }) => lost.resolve(error.code));
		const call = client.call("test.v1.Test/Hang");
		const subscription = collect(client.subscribe("a"));
		await peer.until(() => peer.session.requests.length === 2);
		peer.session.ended = 0;
		peer.link.cut();
		assert.equal(await lost.promise, "LOSS_OF_SESSION");
		await assert.rejects(call, (error) => isRemusError(error) && error.code === "LOSS_OF_SESSION");
		await assert.rejects(subscription, (error) => isRemusError(error) && error.code === "LOSS_OF_SESSION");
		assert.equal(await client.call("test.v1.Test/Echo", 3), 3);
		assert.equal(peer.sessions.length, 2);
	});

	test("the window ends a session that finds no carrier", async () => {
		const { client, peer } = await pair({ resumeWindowMs: 30 });
		peer.blocked.add("webtransport").add("websocket");
		const call = client.call("test.v1.Test/Hang");
		await peer.until(() => peer.session.requests.length === 1);
		peer.link.cut();
		await assert.rejects(call, (error) => isRemusError(error) && error.code === "LOSS_OF_SESSION");
		assert.equal(client.state, "connecting");
	});

	test("deadlines go on without a carrier", async () => {
		const { client, peer } = await pair();
		peer.blocked.add("webtransport").add("websocket");
		peer.link.cut();
		await assert.rejects(
			client.call("test.v1.Test/Echo", 1, { timeoutMs: 20 }),
			(error) => isRemusError(error) && error.code === "DEADLINE_EXCEEDED",
		);
	});

	test("silence suspends the session and looks for another carrier", async () => {
		const { client, peer } = await pair({}, ["webtransport", "websocket"], new Peer({ resumable: true, idleMs: 500 }));
		const resumed = next(client, "open");
		peer.blocked.add("webtransport");
		peer.link.heldBack = true;
		await resumed;
		assert.equal(client.carrier, "websocket");
		assert.equal(peer.sessions.length, 1);
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
	});

	test("what was taken in is acknowledged each 64 KiB, and what was acknowledged is let go", async () => {
		const { client, peer } = await pair();
		await collect(client.serverStream("test.v1.Test/Count", { n: 100, size: 5000 }));
		await client.call("test.v1.Test/Echo", 1);
		assert.ok(peer.session.acksSeen.length >= 6, String(peer.session.acksSeen.length));
		assert.ok(peer.session.retained < 2 * 65_536, String(peer.session.retained));
		await client.call("test.v1.Test/Echo", new Uint8Array(500_000), { requestCodec: raw, responseCodec: raw });
		await client.call("test.v1.Test/Echo", 1);
		assert.ok(client.status().retainedBytes < 2 * 65_536, String(client.status().retainedBytes));
	});

	test("a Heartbeat goes along with what was not acknowledged yet (CORE-95)", async () => {
		const { client, peer } = await pair();
		await client.call("test.v1.Test/Echo", 1);
		const seen = peer.session.acksSeen.length;
		peer.session.probe();
		await peer.until(() => peer.session.acksSeen.length > seen);
		assert.ok(peer.session.retained < 200, String(peer.session.retained));
	});

	test("no more than 8 MiB are kept: streams then wait for an acknowledgement, and calls go on when it comes (CORE-96)", async () => {
		const { client, peer } = await pair();
		peer.session.mute = true;
		async function* blocks(): AsyncGenerator<string> {
			for (let i = 0; i < 120; i++) yield "x".repeat(100_000);
		}
		const answer = collect(client.bidi("test.v1.Test/Chat", blocks()));
		await peer.until(() => peer.log.includes("asked at the limit"));
		const { retainedBytes } = client.status();
		assert.ok(retainedBytes >= 8_388_608 && retainedBytes < 8_388_608 + 100_000, String(retainedBytes));
		peer.session.mute = false;
		peer.session.acknowledge();
		assert.equal((await answer).length, 120);
	});

	test("an acknowledgement of what was never sent ends the session", async () => {
		const { client, peer } = await pair();
		const lost = deferred<string>();
		client.on("sessionlost", ({ error }) => lost.resolve(error.code));
		peer.session.frame(0, wire.frameTypes.ACK, new Writer(10).u16(0).u64(1_000_000n).done());
		assert.equal(await lost.promise, "FLOW_CONTROL");
	});

	test("a session that was closed in order is not resumed", async () => {
		const { client, peer } = await pair();
		const lost = deferred<string>();
		client.on("sessionlost", ({ error }) => lost.resolve(error.code));
		peer.link.close(errorCodes.SHUTTING_DOWN, "maintenance");
		assert.equal(await lost.promise, "SHUTTING_DOWN");
		assert.equal(await client.call("test.v1.Test/Echo", 1), 1);
		assert.equal(peer.sessions.length, 2);
	});

	test("close() ends a session that has no carrier", async () => {
		const { client, peer } = await pair();
		peer.blocked.add("webtransport").add("websocket");
		const suspended = next(client, "suspended");
		peer.link.cut();
		await suspended;
		await client.close();
		assert.equal(client.state, "closed");
	});
});
