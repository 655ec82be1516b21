/**
 * IDs of services and methods: the first four bytes of a name's SHA-256. Spec: WIRE-32.
 *
 * `crypto.subtle` is asynchronous and not there on pages that are not secure; names are short, and each is hashed once.
 */
import { utf8Encoder } from "../codecs.js";
import type { Bytes } from "./bytes.js";

// the first 32 bits of the fractional parts of the cube roots of the first 64 primes, and of the square roots of the first 8
const round: number[] = [];
const initial: number[] = [];
for (let n = 2; round.length < 64; n++) {
	let prime = true;
	for (let d = 2; d * d <= n; d++) if (n % d === 0) prime = false;
	if (!prime) continue;
	if (initial.length < 8) initial.push((Math.sqrt(n) % 1) * 2 ** 32);
	round.push((Math.cbrt(n) % 1) * 2 ** 32);
}

/** SHA-256 (FIPS 180-4) of `bytes`: 32 bytes. */
export function sha256(bytes: Uint8Array): Bytes {
	const blocks = new Uint8Array((bytes.length + 72) & ~63);
	const view = new DataView(blocks.buffer);
	blocks.set(bytes);
	blocks[bytes.length] = 0x80;
	view.setBigUint64(blocks.length - 8, BigInt(bytes.length) * 8n);
	const state = Uint32Array.from(initial);
	const w = new Uint32Array(64);
	const turn = (x: number, n: number): number => (x >>> n) | (x << (32 - n));
	const word = (i: number): number => w[i] as number;
	for (let at = 0; at < blocks.length; at += 64) {
		let [a, b, c, d, e, f, g, h] = state as unknown as [number, number, number, number, number, number, number, number];
		for (let i = 0; i < 64; i++) {
			if (i < 16) {
				w[i] = view.getUint32(at + i * 4);
			} else {
				const x = word(i - 15);
				const y = word(i - 2);
				w[i] = word(i - 16) + (turn(x, 7) ^ turn(x, 18) ^ (x >>> 3)) + word(i - 7) + (turn(y, 17) ^ turn(y, 19) ^ (y >>> 10));
			}
			const t1 = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ((round[i] as number) | 0) + word(i);
			const t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
			h = g;
			g = f;
			f = e;
			e = (d + t1) | 0;
			d = c;
			c = b;
			b = a;
			a = (t1 + t2) | 0;
		}
		for (const [i, x] of [a, b, c, d, e, f, g, h].entries()) state[i] = (state[i] as number) + x;
	}
	const out = new Uint8Array(32);
	const outView = new DataView(out.buffer);
	for (const [i, x] of state.entries()) outView.setUint32(i * 4, x);
	return out;
}

/** The ID of a service or method by its full name, such as `acme.shop.v1.Cart/Add`. */
export function idOf(name: string): number {
	return new DataView(sha256(utf8Encoder.encode(name)).buffer).getUint32(0);
}
