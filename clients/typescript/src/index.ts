/** `@remus/client` for browsers, and wherever there are `WebSocket` and `fetch`. */
import type { Client, ConnectOptions } from "./api.js";
import { openEvents, openPoll } from "./carriers/http.js";
import { openWebSocket } from "./carriers/websocket.js";
import { openWebTransport } from "./carriers/webtransport.js";
import { connectWith, type Platform } from "./client.js";

export type * from "./api.js";
export { json, raw } from "./codecs.js";
export {
	codeOfNumber,
	type ErrorCode,
	type ErrorDetail,
	type ErrorExtra,
	errorCodes,
	isRemusError,
	type RemusError,
	remusError,
} from "./errors.js";

const platform: Platform = {
	openers: {
		...("WebTransport" in globalThis ? { webtransport: openWebTransport } : {}),
		websocket: openWebSocket,
		"http-poll": openPoll,
		"http-events": openEvents,
	},
	complete: (options) => options,
};

/**
 * Connects to a node: `https://host[:port]` or `remus://host[:port]`, port 4433 where none is given. Settles when the first session
 * is open.
 *
 * Rejects with a `RemusError`: `UNAVAILABLE` where no carrier could be opened, `DEADLINE_EXCEEDED` after `connectTimeoutMs`,
 * `CANCELLED` by the signal, or with what the node refused the session with. Throws a `TypeError` for what is no such URL.
 */
export function connect(url: string, options: ConnectOptions = {}): Promise<Client> {
	return connectWith(platform, url, options);
}
