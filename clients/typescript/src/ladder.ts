/** The ladder: carriers race, the preferred ones with a head start; the winner is remembered. */
import type { CarrierKind } from "./api.js";
import { aborted, type Carrier, type OpenCarrier, type Target } from "./carrier.js";
import { isRemusError, type RemusError, remusError } from "./errors.js";

/** All carriers, the preferred first. */
export const ladder: readonly CarrierKind[] = ["webtransport", "websocket", "http-poll", "http-events"];

/** Those that there are here. */
export type Openers = { readonly [K in CarrierKind]?: OpenCarrier };

/** Opens the carriers one after the other, each `headStartMs` after the one before or when that has failed; the first that is open wins. */
export async function race(
	kinds: readonly CarrierKind[],
	openers: Openers,
	target: Target,
	headStartMs: number,
	signal: AbortSignal,
): Promise<Carrier> {
	const failed: RemusError[] = [];
	const stop = new AbortController();
	let giveUp = (): void => {};
	const abort = (): void => {
		stop.abort(signal.reason);
		giveUp();
	};
	signal.addEventListener("abort", abort);
	try {
		if (signal.aborted) throw aborted(signal);
		return await new Promise<Carrier>((resolve, reject) => {
			let next = 0;
			let running = 0;
			let won = false;
			giveUp = () => {
				won = true;
				reject(aborted(signal));
			};
			const begin = (): void => {
				const kind = kinds[next++];
				const open = kind && openers[kind];
				if (!open || stop.signal.aborted) return;
				running++;
				const timer = setTimeout(begin, headStartMs);
				stop.signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
				const mine = next;
				open(target, stop.signal).then(
					(carrier) => {
						clearTimeout(timer);
						if (won) return carrier.drop();
						won = true;
						resolve(carrier);
						stop.abort();
					},
					(error: unknown) => {
						clearTimeout(timer);
						running--;
						failed.push(isRemusError(error) ? error : remusError("UNAVAILABLE", `${kind} failed`, { cause: error }));
						if (won) return;
						if (mine === next && next < kinds.length && !stop.signal.aborted) begin();
						else if (running === 0) reject(worst(kinds, failed));
					},
				);
			};
			begin();
			if (running === 0) reject(remusError("UNIMPLEMENTED", "none of the carriers is there"));
		});
	} finally {
		signal.removeEventListener("abort", abort);
		stop.abort();
	}
}

/** What to tell when all have failed: a refusal says more than silence. */
function worst(kinds: readonly CarrierKind[], failed: readonly RemusError[]): RemusError {
	const refusal = failed.find((error) => error.code !== "UNAVAILABLE" && error.code !== "UNIMPLEMENTED");
	if (refusal) return refusal;
	return remusError("UNAVAILABLE", `no carrier could be opened (${kinds.join(", ")}): ${failed.map((error) => error.message).join("; ")}`, {
		cause: failed.at(-1),
	});
}

/** Which carrier won last, by server. */
export interface Memory {
	get(url: string): CarrierKind | undefined;
	set(url: string, kind: CarrierKind): void;
}

const remembered = new Map<string, CarrierKind>();

/** Remembers in the page's `localStorage` where there is one, and for as long as the program runs elsewhere. */
export const memory: Memory = {
	get(url) {
		const kind = remembered.get(url) ?? storage()?.getItem(`remus ${url}`);
		return ladder.find((known) => known === kind);
	},
	set(url, kind) {
		remembered.set(url, kind);
		try {
			storage()?.setItem(`remus ${url}`, kind);
		} catch {
			// full or forbidden: it is a hint
		}
	},
};

function storage(): Storage | undefined {
	try {
		return typeof document === "undefined" ? undefined : globalThis.localStorage;
	} catch {
		return undefined;
	}
}
