/** The race of carriers, and climbing. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { CarrierKind } from "../src/api.js";
import type { Carrier, OpenCarrier } from "../src/carrier.js";
import { parseDigest } from "../src/carriers/webtransport.js";
import { connectWith } from "../src/client.js";
import { isRemusError, remusError } from "../src/errors.js";
import { ladder, memory, type Openers, race } from "../src/ladder.js";
import { deferred, Peer } from "./peer.js";

const target = { url: "https://ladder.test:4433", options: {}, fetch };

/** Openers that settle when they are told to. */
function manual(): {
	openers: Openers;
	begun: CarrierKind[];
	dropped: CarrierKind[];
	aborted: CarrierKind[];
	open(kind: CarrierKind): void;
	fail(kind: CarrierKind): void;
} {
	const begun: CarrierKind[] = [];
	const dropped: CarrierKind[] = [];
	const aborted: CarrierKind[] = [];
	const settle = new Map<CarrierKind, { resolve(carrier: Carrier): void; reject(error: unknown): void }>();
	const opener =
		(kind: CarrierKind): OpenCarrier =>
		(_target, signal) =>
			new Promise((resolve, reject) => {
				begun.push(kind);
				settle.set(kind, { resolve, reject });
				signal.addEventListener("abort", () => aborted.push(kind));
			});
	const carrier = (kind: CarrierKind): Carrier => ({
		kind,
		start: () => {},
		room: () => true,
		write: () => {},
		close: () => Promise.resolve(),
		drop: () => dropped.push(kind),
	});
	return {
		openers: Object.fromEntries(ladder.map((kind) => [kind, opener(kind)])),
		begun,
		dropped,
		aborted,
		open: (kind) => settle.get(kind)?.resolve(carrier(kind)),
		fail: (kind) => settle.get(kind)?.reject(remusError("UNAVAILABLE", `${kind} failed`)),
	};
}

const live = new AbortController().signal;

describe("the race", () => {
	test("the first that is open wins; those behind never begin", async () => {
		const { openers, begun, open } = manual();
		const winner = race(ladder, openers, target, 60_000, live);
		open("webtransport");
		assert.equal((await winner).kind, "webtransport");
		assert.deepEqual(begun, ["webtransport"]);
	});

	test("the next begins after the head start, or at once when the one before has failed", async (context) => {
		context.mock.timers.enable({ apis: ["setTimeout"] });
		const { openers, begun, open, fail, aborted } = manual();
		const winner = race(ladder, openers, target, 400, live);
		context.mock.timers.tick(399);
		assert.deepEqual(begun, ["webtransport"]);
		context.mock.timers.tick(1);
		assert.deepEqual(begun, ["webtransport", "websocket"]);
		fail("websocket");
		await new Promise((resolve) => setImmediate(resolve));
		assert.deepEqual(begun, ["webtransport", "websocket", "http-poll"]);
		open("http-poll");
		assert.equal((await winner).kind, "http-poll");
		assert.deepEqual(aborted, ["webtransport", "websocket", "http-poll"]);
	});

	test("a carrier that is open too late is dropped", async (context) => {
		context.mock.timers.enable({ apis: ["setTimeout"] });
		const { openers, open, dropped } = manual();
		const winner = race(ladder, openers, target, 400, live);
		context.mock.timers.tick(400);
		open("websocket");
		await winner;
		open("webtransport");
		await new Promise((resolve) => setImmediate(resolve));
		assert.deepEqual(dropped, ["webtransport"]);
	});

	test("when all have failed, the error names them", async () => {
		const { openers, fail, begun } = manual();
		const loser = race(["webtransport", "websocket"], openers, target, 60_000, live);
		fail("webtransport");
		await new Promise((resolve) => setImmediate(resolve));
		assert.deepEqual(begun, ["webtransport", "websocket"]);
		fail("websocket");
		await assert.rejects(
			loser,
			(error) => isRemusError(error) && error.code === "UNAVAILABLE" && error.message.includes("websocket failed"),
		);
	});

	test("a signal ends it", async () => {
		const { openers, aborted } = manual();
		const stop = new AbortController();
		const loser = race(ladder, openers, target, 60_000, stop.signal);
		stop.abort();
		assert.deepEqual(aborted, ["webtransport"]);
		await assert.rejects(loser, (error) => isRemusError(error) && error.code === "CANCELLED");
		await assert.rejects(race(ladder, openers, target, 60_000, stop.signal), (error) => isRemusError(error) && error.code === "CANCELLED");
	});

	test("without any carrier it fails", async () => {
		await assert.rejects(race(ladder, {}, target, 1, live), (error) => isRemusError(error) && error.code === "UNIMPLEMENTED");
	});
});

test("the winner is remembered by server", () => {
	memory.set("https://a.test", "http-poll");
	assert.equal(memory.get("https://a.test"), "http-poll");
	assert.equal(memory.get("https://b.test"), undefined);
});

test("the carrier that won last is tried first, and a better one is climbed to without a break", async (context) => {
	const peer = new Peer({ resumable: true });
	const openers = { webtransport: peer.opener("webtransport"), websocket: peer.opener("websocket") };
	const platform = { openers, complete: <T>(given: T): T => given };
	const url = "https://climb.test:4433";
	memory.set(url, "websocket");
	context.mock.timers.enable({ apis: ["setTimeout"] });
	const client = await connectWith(platform, url, {});
	assert.equal(client.carrier, "websocket");
	assert.deepEqual(peer.asked, ["websocket"]);
	peer.blocked.add("webtransport");
	context.mock.timers.tick(5_000);
	await peer.until(() => peer.asked.length === 2);
	await new Promise((resolve) => setImmediate(resolve));
	peer.blocked.clear();
	const climbed = deferred<string>();
	client.on("carrier", ({ carrier, reason, gapMs }) => climbed.resolve(`${carrier} ${reason} ${gapMs}`));
	context.mock.timers.tick(9_999);
	assert.equal(peer.asked.length, 2);
	context.mock.timers.tick(1);
	assert.equal(await climbed.promise, "webtransport climbed 0");
	assert.equal(client.status().resumptions, 1);
	assert.equal(memory.get(url), "webtransport");
	context.mock.timers.reset();
	await client.close();
});

test("a carrier that was forced, or that the application has chosen, is not remembered", async () => {
	const peer = new Peer({ resumable: true });
	const openers = { webtransport: peer.opener("webtransport"), websocket: peer.opener("websocket") };
	const platform = { openers, complete: <T>(given: T): T => given };
	const url = "https://forced.test:4433";
	const forced = await connectWith(platform, url, { carriers: ["websocket"] });
	assert.equal(memory.get(url), undefined);
	await forced.close();
	const client = await connectWith(platform, url, { climb: false });
	assert.equal(memory.get(url), "webtransport");
	await client.switchCarrier("websocket");
	assert.equal(memory.get(url), "webtransport");
	await client.close();
});

test("digests are taken in hex, with colons, and in base64", () => {
	const hex = "1cd636ad9b54d10a04cee79e9dac56886d9db6bb38b64377bd3cee86c80c2ee9";
	const bytes = Uint8Array.from(Buffer.from(hex, "hex"));
	assert.deepEqual(parseDigest(hex), bytes);
	assert.deepEqual(parseDigest(hex.toUpperCase().replace(/..(?=.)/g, "$&:")), bytes);
	assert.deepEqual(parseDigest("HNY2rZtU0QoEzueenaxWiG2dtrs4tkN3vTzuhsgMLuk="), bytes);
	assert.throws(() => parseDigest("HNY2"), TypeError);
});
