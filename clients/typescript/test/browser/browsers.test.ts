/**
 * Real browsers against a real node, over every carrier. REMUS_BIN names the `remus` program, REMUS_CHAOS the proxy of remus-testing;
 * REMUS_CHROMIUM and REMUS_FIREFOX name browsers where they are not where Debian puts them. What is not there is skipped, unless
 * REMUS_BROWSERS=all asks for all of it.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { CarrierKind, ConnectOptions } from "../../src/api.js";
import type { climbDown, Exercised, Moved } from "./page.js";
import {
	type Browser,
	chromiumKind,
	firefoxKind,
	type Node,
	type Page,
	type Running,
	reasonToSkip,
	startChaos,
	startMiddlebox,
	startNode,
	startSite,
} from "./support.js";

const program = process.env.REMUS_BIN;
const chaosProgram = process.env.REMUS_CHAOS;
const kinds: readonly CarrierKind[] = ["webtransport", "websocket", "http-poll", "http-events"];

/** What is waited for at most, in ms, where the figure itself is printed: a loaded machine is slow. */
const GENEROUS_MS = 5_000;
/** Moves of the session that is moved. */
const MOVES = 20;

for (const kind of [chromiumKind, firefoxKind]) {
	describe(kind.name, { skip: reasonToSkip(kind) }, () => {
		const running: Running[] = [];
		let node: Node;
		let browser: Browser;
		let origin = "";

		function keep<T extends Running>(started: T): T {
			running.push(started);
			return started;
		}

		before(async () => {
			({ origin } = keep(await startSite()));
			node = keep(await startNode(program ?? "", origin));
			browser = keep(await kind.start({ anyCertificate: true }));
		});

		after(async () => {
			for (const started of running.reverse()) await started.close();
		});

		/** Calls a function of page.ts in a page of its own. */
		async function inPage<T>(call: keyof typeof import("./page.js"), ...parameters: readonly unknown[]): Promise<T> {
			return await on(await browser.open(origin), call, ...parameters);
		}

		async function on<T>(page: Page, call: keyof typeof import("./page.js"), ...parameters: readonly unknown[]): Promise<T> {
			try {
				return await page.run<T>(`remusTest.${call}(${parameters.map((value) => JSON.stringify(value)).join(", ")})`);
			} finally {
				await page.close();
			}
		}

		function assertExercised(got: Exercised, carrier: CarrierKind): void {
			assert.equal(got.carrier, carrier);
			assert.ok(got.host.length > 0);
			assert.ok(got.echoed);
			assert.deepEqual(got.elements, Array(20).fill(50_000));
			assert.deepEqual(got.taken, { elements: 20, bytes: 1_000_000 });
			assert.deepEqual(
				got.heard,
				Array.from({ length: 20 }, (_, i) => `message ${i}`),
			);
		}

		for (const carrier of kinds) {
			test(`${carrier}: a call, streams both ways, a topic`, async () => {
				const options: ConnectOptions = { carriers: [carrier], climb: false };
				assertExercised(await inPage("exercise", node.url, options), carrier);
			});
		}

		test("WebTransport takes the digest of the certificate, in a browser that trusts nobody", async (context) => {
			const strict = await kind.start({ anyCertificate: false });
			try {
				context.diagnostic(strict.version);
				const options: ConnectOptions = { carriers: ["webtransport"], certificateDigests: [node.digest] };
				assertExercised(await on(await strict.open(origin), "exercise", node.url, options), "webtransport");
				const wrong: ConnectOptions = { carriers: ["webtransport"], certificateDigests: ["00".repeat(32)] };
				await assert.rejects(on(await strict.open(origin), "exercise", node.url, wrong), /UNAVAILABLE|could not be opened/);
			} finally {
				await strict.close();
			}
		});

		test("where UDP is swallowed, the session is on WebSocket", async (context) => {
			const chaos = await startChaos(chaosProgram ?? "", node);
			try {
				const options: ConnectOptions = { certificateDigests: [node.digest] };
				const got = await inPage<Awaited<ReturnType<typeof climbDown>>>("climbDown", chaos.url, options);
				context.diagnostic(`${got.carrier} after ${got.ms} ms`);
				assert.equal(got.carrier, "websocket");
				assert.ok(got.echoed);
				assert.ok(got.ms < GENEROUS_MS, `${got.ms} ms`);
			} finally {
				await chaos.close();
			}
		});

		test("where WebSocket is refused as well, it is on long-polling", async (context) => {
			const box = await startMiddlebox(node, ["websocket"]);
			try {
				const got = await inPage<Awaited<ReturnType<typeof climbDown>>>("climbDown", box.url, { certificateDigests: [node.digest] });
				context.diagnostic(`${got.carrier} after ${got.ms} ms`);
				assert.equal(got.carrier, "http-poll");
				assert.ok(got.echoed);
			} finally {
				await box.close();
			}
		});

		test("where answers to polls are cut off too, it is on server-sent events", async (context) => {
			const box = await startMiddlebox(node, ["websocket", "http-poll"]);
			try {
				const got = await inPage<Awaited<ReturnType<typeof climbDown>>>("climbDown", box.url, { certificateDigests: [node.digest] });
				context.diagnostic(`${got.carrier} after ${got.ms} ms`);
				assert.equal(got.carrier, "http-events");
				assert.ok(got.echoed);
			} finally {
				await box.close();
			}
		});

		test(`a session that is cut or moved ${MOVES} times loses nothing and doubles nothing`, async (context) => {
			const seed = Number(process.env.REMUS_SEED ?? Math.floor(Math.random() * 2 ** 31));
			context.diagnostic(`seed ${seed} (REMUS_SEED)`);
			const got = await inPage<Moved>("move", node.url, { certificateDigests: [node.digest], climb: false }, MOVES, seed);
			context.diagnostic(got.route.join("; "));
			assert.equal(got.answered, got.calls);
			assert.deepEqual(
				got.heard,
				Array.from({ length: got.published }, (_, i) => i),
			);
			assert.deepEqual(got.taken, got.sent);
			assert.equal(got.received, got.asked);
			assert.equal(got.sessions, 1);
			assert.equal(got.resumptions, MOVES);
		});
	});
}
