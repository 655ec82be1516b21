/** The session and its carrier: how it is, and buttons that disturb it. */
import { type CarrierKind, type Client, type ClientStatus, isRemusError, type StreamStatus } from "@remus/client";
import { addLine, byId, make, say } from "./dom.js";
import { bytes, clock, milliseconds, since } from "./format.js";

/** How often the figures are drawn, in ms. */
const DRAW_MS = 500;
/** Lines of what happened that are kept. */
const EVENTS_MAX = 100;

const names: { readonly [K in CarrierKind]: string } = {
	webtransport: "WebTransport",
	websocket: "WebSocket",
	"http-poll": "Long-polling",
	"http-events": "Server-sent events",
};
const kinds = Object.keys(names) as readonly CarrierKind[];

/** What the node says of the TLS connection that it was asked on. */
interface TlsFacts {
	readonly http: string;
	readonly tls: string | null;
	readonly key_exchange: string | null;
}

const nameOf = (kind: CarrierKind | undefined): string => (kind ? names[kind] : "no carrier");

export function showConnection(client: Client): void {
	const tls = new Tls();
	showButtons(client);
	showEvents(client, tls);
	const facts = new Facts();
	const draw = (): void => {
		const status = client.status();
		byId("carrier").dataset.carrier = status.carrier ?? "";
		say(byId("carrier"), nameOf(status.carrier));
		facts.show(factsOf(status, tls));
		showStreams(status);
	};
	client.on("carrier", draw);
	draw();
	const timer = setInterval(draw, DRAW_MS);
	void client.closed.then(() => {
		clearInterval(timer);
		draw();
	});
}

/** TLS of this page's connection to the node, asked for again when the carrier changes. */
class Tls {
	#facts: TlsFacts | undefined;

	constructor() {
		void this.ask();
	}

	async ask(): Promise<void> {
		try {
			const response = await fetch("/connection", { cache: "no-store" });
			if (response.ok) this.#facts = (await response.json()) as TlsFacts;
		} catch {
			// the node can't be reached at the moment; what was known stays
		}
	}

	version(carrier: CarrierKind | undefined): string {
		// QUIC has no other
		if (carrier === "webtransport") return "TLS 1.3, in QUIC";
		return this.#facts?.tls ? `${this.#facts.tls}, on TCP` : "–";
	}

	keyExchange(carrier: CarrierKind | undefined): string {
		const known = this.#facts?.key_exchange;
		if (!known) return "not known";
		// neither browser nor node can tell it of a QUIC connection; both have the same rules for it there
		return carrier === "webtransport" ? `${known} (this page’s)` : known;
	}
}

function factsOf(status: ClientStatus, tls: Tls): readonly (readonly [string, string])[] {
	const credit = (direction: ClientStatus["send"]): string => bytes(direction.limit - direction.offset);
	return [
		["Encryption", tls.version(status.carrier)],
		["Key exchange", tls.keyExchange(status.carrier)],
		["Round trip", milliseconds(status.rttMs)],
		["Best round trip", milliseconds(status.minRttMs)],
		["On this carrier for", status.carrierSince === undefined ? "–" : since(status.carrierSince)],
		["Session", `${status.session ?? "–"}${status.resumable ? ", can be resumed" : ""}`],
		["Resumed", `${status.resumptions} × in ${status.sessions} ${status.sessions === 1 ? "session" : "sessions"}`],
		["Credit to send", credit(status.send)],
		["Credit to receive", credit(status.receive)],
		["Sent", bytes(status.bytesSent)],
		["Received", bytes(status.bytesReceived)],
		["Calls", `${status.calls} open, ${status.waitingCalls} waiting`],
		["Kept to resume", bytes(status.retainedBytes)],
	];
}

/** A list of terms whose texts change. */
class Facts {
	readonly #values = new Map<string, HTMLElement>();

	show(facts: readonly (readonly [string, string])[]): void {
		for (const [term, value] of facts) {
			let element = this.#values.get(term);
			if (!element) {
				element = make("dd");
				this.#values.set(term, element);
				byId("facts").append(make("div", make("dt", term), element));
			}
			say(element, value);
		}
	}
}

function showButtons(client: Client): void {
	const refused = byId("refused");
	const buttons = kinds.map((kind) => {
		const button = make("button", names[kind]);
		button.type = "button";
		button.dataset.carrier = kind;
		button.addEventListener("click", async () => {
			say(refused, "");
			button.setAttribute("aria-busy", "true");
			try {
				await client.switchCarrier(kind);
			} catch (error) {
				say(refused, `Not on ${names[kind]}: ${isRemusError(error) ? error.message : error}`);
			} finally {
				button.removeAttribute("aria-busy");
			}
		});
		return [kind, button] as const;
	});
	byId("carriers").replaceChildren(...buttons.map(([, button]) => button));
	const drop = byId<HTMLButtonElement>("drop");
	drop.addEventListener("click", () => {
		say(refused, "");
		client.dropCarrier();
	});
	const mark = (): void => {
		for (const [kind, button] of buttons) button.setAttribute("aria-pressed", String(client.carrier === kind));
	};
	client.on("carrier", mark);
	mark();
}

function showEvents(client: Client, tls: Tls): void {
	const list = byId("events");
	const tell = (text: string): void => addLine(list, make("li", make("time", clock(Date.now())), text), EVENTS_MAX);
	const state = byId("state");
	const mark = (): void => {
		state.dataset.state = client.state;
		say(state, client.state);
	};
	client.on("state", mark);
	mark();
	tell(`${nameOf(client.carrier)}: connected`);
	client.on("carrier", ({ carrier, previous, reason, gapMs }) => {
		if (!carrier) return tell(`${nameOf(previous)} is gone: ${reason}`);
		const gap = gapMs > 0 ? `, ${gapMs.toFixed(0)} ms without a carrier` : ", without a break";
		tell(reason === "connected" ? `${nameOf(carrier)}: connected` : `${nameOf(carrier)}: ${reason}${gap}`);
		void tls.ask();
	});
	client.on("sessionlost", ({ error }) => tell(`The session was lost: ${error.message}`));
	client.on("closed", ({ error }) => tell(`Over: ${error?.message ?? "closed"}`));
}

function showStreams({ streams, send, receive }: ClientStatus): void {
	say(
		byId("credit"),
		`Session: ${bytes(send.offset)} of ${bytes(send.limit)} sent, ${bytes(receive.offset)} of ${bytes(receive.limit)} received.`,
	);
	const row = (stream: StreamStatus): HTMLElement => {
		const name = make("th", `${stream.id} ${stream.method ?? "shared by calls"}`);
		name.scope = "row";
		const numbers = [stream.receive.offset, stream.receive.limit - stream.receive.offset, BigInt(stream.unreadBytes)];
		const cells = numbers.map((value) => {
			const cell = make("td", bytes(value));
			cell.className = "number";
			return cell;
		});
		return make("tr", name, make("td", String(stream.lane)), ...cells);
	};
	byId("streams").replaceChildren(...streams.map(row));
}
