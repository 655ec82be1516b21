/** What the tests do inside a page. Bundled for browsers as `remusTest`; what a function returns goes through JSON. */
import { type CarrierKind, type Client, type ConnectOptions, connect, raw } from "../../src/index.js";

/** What became of one connection that used every shape of call that a node has. */
export interface Exercised {
	readonly carrier: CarrierKind | undefined;
	readonly host: string;
	readonly echoed: boolean;
	readonly elements: readonly number[];
	readonly taken: { readonly elements: number; readonly bytes: number };
	readonly heard: readonly string[];
	readonly session: number | undefined;
}

/** A unary call, a large one, a stream each way, and a topic. */
export async function exercise(url: string, options: ConnectOptions): Promise<Exercised> {
	const client = await connect(url, options);
	try {
		const { name } = await client.call<{ name: string }>("host.v1.Host/Info");
		const elements: number[] = [];
		for await (const element of client.serverStream("remus.v2.Bench/Down", { size: 50_000, count: 20 }, { responseCodec: raw }))
			elements.push(element.length);
		const taken = await client.clientStream<Exercised["taken"], Uint8Array>("remus.v2.Bench/Up", blocks(20, 50_000), {
			requestCodec: raw,
		});
		const topic = `exercise.${crypto.randomUUID()}`;
		const subscription = client.subscribe(topic, { overflow: "wait" });
		await subscription.ready;
		for (let i = 0; i < 20; i++) await client.publish(topic, `message ${i}`);
		const heard: string[] = [];
		for await (const publication of subscription) if (heard.push(publication.text()) === 20) break;
		return {
			carrier: client.carrier,
			host: name,
			echoed: await echoes(client),
			elements,
			taken,
			heard,
			session: client.status().session,
		};
	} finally {
		await client.close({ graceMs: 0 });
	}
}

function* blocks(count: number, size: number): Generator<Uint8Array> {
	for (let i = 0; i < count; i++) yield new Uint8Array(size).fill(i);
}

async function echoes(client: Client): Promise<boolean> {
	const sent = new Uint8Array(300_000);
	for (let i = 0; i < sent.length; i += 65_536) crypto.getRandomValues(sent.subarray(i, i + 65_536));
	const back = await client.call("remus.v2.Bench/Echo", sent, { requestCodec: raw, responseCodec: raw });
	return back.length === sent.length && back.every((byte, i) => byte === sent[i]);
}

/** Which carrier the ladder finds, after how long, and that it works. */
export async function climbDown(
	url: string,
	options: ConnectOptions,
): Promise<{ carrier: CarrierKind | undefined; ms: number; echoed: boolean }> {
	const begin = performance.now();
	const client = await connect(url, options);
	const ms = Math.round(performance.now() - begin);
	try {
		return { carrier: client.carrier, ms, echoed: await echoes(client) };
	} finally {
		await client.close({ graceMs: 0 });
	}
}

/** What became of a session that was moved and cut. */
export interface Moved {
	readonly route: readonly string[];
	/** Calls that were made, and that got their own answer. */
	readonly calls: number;
	readonly answered: number;
	/** What the subscription got; what was published is 0, 1, 2 and so on. */
	readonly published: number;
	readonly heard: readonly number[];
	/** What the upload sent, and what the node took. */
	readonly sent: { readonly elements: number; readonly bytes: number };
	readonly taken: { readonly elements: number; readonly bytes: number };
	/** What the download was to bring, and what it brought. */
	readonly asked: number;
	readonly received: number;
	readonly sessions: number;
	readonly resumptions: number;
}

/** Cuts and moves a session `count` times, by chance, while calls, an upload, a download and a subscription go on. */
export async function move(url: string, options: ConnectOptions, count: number, seed: number): Promise<Moved> {
	const random = dice(seed);
	const client = await connect(url, options);
	const kinds: readonly CarrierKind[] = ["webtransport", "websocket", "http-poll", "http-events"];
	const subscription = client.subscribe("moved.>", { overflow: "wait" });
	await subscription.ready;
	const perMove = { calls: 16, publications: 5, uploads: 4, downloads: 10 };
	const heard: number[] = [];
	const hearing = (async () => {
		for await (const publication of subscription) if (heard.push(Number(publication.text())) >= count * perMove.publications) break;
	})();
	// the upload goes on by some blocks with each move, and the download as far as its reader reads
	const gates = Array.from({ length: count }, gate);
	const sent = { elements: 0, bytes: 0 };
	async function* uploads(): AsyncGenerator<Uint8Array> {
		for (const { promise } of gates) {
			await promise;
			for (const block of blocks(perMove.uploads, 10_000 + random(20_000))) {
				sent.elements++;
				sent.bytes += block.length;
				yield block;
			}
		}
	}
	const upload = client.clientStream<Moved["taken"], Uint8Array>("remus.v2.Bench/Up", uploads(), { requestCodec: raw, timeoutMs: 0 });
	const asked = count * perMove.downloads;
	let received = 0;
	const download = (async () => {
		for await (const _ of client.serverStream("remus.v2.Bench/Down", { size: 100_000, count: asked }, { responseCodec: raw })) {
			received++;
			const held = gates[Math.floor(received / perMove.downloads)];
			await held?.promise;
		}
	})();
	const route: string[] = [];
	const calls: Promise<boolean>[] = [];
	let published = 0;
	for (let i = 0; i < count; i++) {
		for (let n = 0; n < perMove.calls; n++) {
			const number = i * perMove.calls + n;
			calls.push(client.call<number>("remus.v2.Bench/Echo", number).then((answer) => answer === number));
		}
		gates[i]?.resolve();
		const others = kinds.filter((kind) => kind !== client.carrier);
		const publishing: Promise<void>[] = [];
		const publish = (): void => {
			for (let n = 0; n < perMove.publications; n++) publishing.push(client.publish("moved.numbers", String(published++)));
		};
		const to = random(2) === 0 ? others[random(others.length)] : undefined;
		if (to) {
			publish();
			await client.switchCarrier(to);
			route.push(to);
		} else {
			const back = new Promise<void>((resolve) => {
				const stop = client.on("state", ({ state }) => {
					if (state !== "open") return;
					stop();
					resolve();
				});
			});
			publish();
			client.dropCarrier();
			await back;
			route.push(`cut, ${client.carrier}`);
		}
		await Promise.all(publishing);
	}
	const answered = (await Promise.all(calls)).filter(Boolean).length;
	await download;
	const taken = await upload;
	await hearing;
	const { sessions, resumptions } = client.status();
	await client.close({ graceMs: 0 });
	return { route, calls: calls.length, answered, published, heard, sent, taken, asked, received, sessions, resumptions };
}

function gate(): { readonly promise: Promise<void>; readonly resolve: () => void } {
	let resolve = (): void => {};
	const promise = new Promise<void>((settle) => {
		resolve = settle;
	});
	return { promise, resolve };
}

/** Numbers below a limit, always the same ones for a seed: xorshift. */
function dice(seed: number): (limit: number) => number {
	let state = seed | 1;
	return (limit) => {
		state ^= state << 13;
		state ^= state >>> 17;
		state ^= state << 5;
		return (state >>> 0) % limit;
	};
}
