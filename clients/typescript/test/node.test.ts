/**
 * Against a real node, over every carrier that Node has. REMUS_BIN names the `remus` program; without it nothing here is run.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { type CarrierKind, type Client, type ConnectOptions, connect, isRemusError, raw } from "../src/node.js";
import { deferred } from "./peer.js";
import { collect } from "./support.js";

const program = process.env.REMUS_BIN;
const kinds = ["websocket", "http-poll", "http-events"] as const;

describe("a real node", { skip: program === undefined ? "REMUS_BIN is not set" : false }, () => {
	let node: ChildProcess;
	let url = "";
	let ca = "";
	const data = mkdtempSync(join(tmpdir(), "remus-client-"));
	const open: Client[] = [];

	before(async () => {
		node = spawn(program ?? "", ["up", "--listen", "[::]:0", "--data", data], { stdio: ["ignore", "pipe", "pipe"] });
		let said = "";
		await new Promise<void>((resolve, reject) => {
			const hear = (text: Buffer): void => {
				said += text.toString();
				const found = /remus:\/\/localhost:\d+/.exec(said);
				if (!found) return;
				url = found[0];
				resolve();
			};
			node.stdout?.on("data", hear);
			node.stderr?.on("data", hear);
			node.on("exit", () => reject(new Error(`the node has ended: ${said}`)));
		});
		ca = readFileSync(join(data, "tls", "ca.pem"), "utf8");
	});

	after(async () => {
		await Promise.all(open.map((client) => client.close({ graceMs: 0 })));
		const ended = new Promise((resolve) => node.once("exit", resolve));
		node.kill();
		await ended;
		rmSync(data, { recursive: true });
	});

	async function connected(options: ConnectOptions = {}): Promise<Client> {
		const client = await connect(url, { ca, climb: false, ...options });
		open.push(client);
		return client;
	}

	test("is found over WebSocket first", async () => {
		const client = await connected();
		assert.equal(client.carrier, "websocket");
		assert.ok((await client.ping()) > 0);
	});

	test("is not trusted without its authority", async () => {
		await assert.rejects(connect(url, { connectTimeoutMs: 5000 }), (error) => isRemusError(error) && error.code === "UNAVAILABLE");
	});

	for (const kind of kinds) {
		test(`${kind}: unary calls, a server stream, errors`, async () => {
			const client = await connected({ carriers: [kind] });
			assert.equal(client.carrier, kind);
			const info = await client.call<{ name: string; cores: number }>("host.v1.Host/Info");
			assert.ok(info.name.length > 0 && info.cores > 0);
			const big = randomBytes(900_000);
			assert.ok(big.equals(await client.call("remus.v2.Bench/Echo", big, { requestCodec: raw, responseCodec: raw })));
			const calls = Array.from({ length: 300 }, (_, i) =>
				client.call("remus.v2.Bench/Echo", Buffer.from(String(i)), { requestCodec: raw, responseCodec: raw }),
			);
			assert.deepEqual(
				(await Promise.all(calls)).map((bytes) => Number(Buffer.from(bytes).toString())),
				calls.map((_, i) => i),
			);
			for await (const process of client.serverStream<{ pid: number }>("host.v1.Host/Processes")) {
				assert.ok(process.pid > 0);
				break;
			}
			await assert.rejects(client.call("no.such.v1.Service/Method"), (error) => isRemusError(error) && error.code === "UNIMPLEMENTED");
		});

		test(`${kind}: topics`, async () => {
			const client = await connected({ carriers: [kind] });
			const subscription = client.subscribe("test.*");
			await subscription.ready;
			const numbers = Array.from({ length: 50 }, (_, i) => `${kind} ${i}`);
			for (const text of numbers) await client.publish("test.numbers", text);
			const heard: string[] = [];
			for await (const { topic, text } of subscription) {
				assert.equal(topic, "test.numbers");
				if (heard.push(text()) === numbers.length) break;
			}
			assert.deepEqual(heard, numbers);
		});
	}

	test("a session goes from carrier to carrier, and nothing is lost or doubled", async () => {
		const client = await connected();
		assert.ok(client.status().resumable);
		const subscription = client.subscribe("moving.>");
		await subscription.ready;
		const heard = (async () => {
			const list: number[] = [];
			for await (const publication of subscription) {
				list.push(Number(publication.text()));
				if (list.length === 90) break;
			}
			return list;
		})();
		const blocks = Array.from({ length: 200 }, () => randomBytes(20_000));
		const digest = createHash("sha256");
		for (const block of blocks) digest.update(block);
		const proceed = Array.from({ length: 4 }, () => deferred());
		async function* upload(): AsyncGenerator<Uint8Array> {
			for (const [i, block] of blocks.entries()) {
				// held up until the carrier has changed, so that every change falls into the upload
				if (i > 0 && i % 50 === 0) await proceed[i / 50 - 1]?.promise;
				yield block;
			}
		}
		const echo = collect(
			(async function* () {
				for await (const block of upload())
					yield await client.call("remus.v2.Bench/Echo", block, { requestCodec: raw, responseCodec: raw });
			})(),
		);
		// after each cut the ladder goes back to its top, the WebSocket
		const route: CarrierKind[] = ["http-poll", "http-events", "http-poll"];
		let published = 0;
		for (const [i, kind] of route.entries()) {
			const calls = Array.from({ length: 32 }, (_, n) => client.call<number>("remus.v2.Bench/Echo", n));
			await client.switchCarrier(kind);
			assert.equal(client.carrier, kind);
			const back = new Promise<void>((resolve) => {
				const stop = client.on("state", ({ state }) => {
					if (state !== "open") return;
					stop();
					resolve();
				});
			});
			const more = Array.from({ length: 32 }, (_, n) => client.call<number>("remus.v2.Bench/Echo", n));
			client.dropCarrier();
			for (let n = 0; n < 30; n++) await client.publish("moving.numbers", String(published++));
			await back;
			assert.equal(client.carrier, "websocket");
			assert.deepEqual(
				await Promise.all([...calls, ...more]),
				Array.from({ length: 64 }, (_, n) => n % 32),
			);
			proceed[i]?.resolve();
		}
		proceed[3]?.resolve();
		const echoed = createHash("sha256");
		for (const block of await echo) echoed.update(block);
		assert.equal(echoed.digest("hex"), digest.digest("hex"));
		assert.deepEqual(
			await heard,
			Array.from({ length: 90 }, (_, i) => i),
		);
		const status = client.status();
		assert.equal(status.sessions, 1);
		assert.equal(status.resumptions, 6);
	});
});
