/** `fetch` over `node:https`, as far as the carriers use it: the global one can't be told which authorities to trust. */
import { Agent, request } from "node:https";
import { Readable } from "node:stream";
import type { TlsOptions } from "./tls.js";

/** A `fetch` with these TLS options. Takes URLs as strings and bodies as bytes; follows no redirects. */
export function fetchOver(tls: TlsOptions): typeof globalThis.fetch {
	const agent = new Agent({ ...tls.connection, keepAlive: true });
	return (input, init = {}) =>
		new Promise((resolve, reject) => {
			const signal = init.signal ?? undefined;
			const body = init.body as Uint8Array | undefined;
			const headers: { [name: string]: string } = {
				...(init.headers as { [name: string]: string }),
				"content-length": String(body?.length ?? 0),
			};
			const outgoing = request(
				String(input),
				{ method: init.method ?? "GET", agent, headers, ...(signal ? { signal } : {}) },
				(incoming) => {
					const fields = new Headers();
					for (const [name, value] of Object.entries(incoming.headers)) if (value !== undefined) fields.set(name, String(value));
					const status = incoming.statusCode ?? 0;
					const empty = status === 204 || status === 304;
					if (empty) incoming.resume();
					const stream = empty ? null : (Readable.toWeb(incoming) as ReadableStream<Uint8Array>);
					resolve(new Response(stream, { status, headers: fields }));
				},
			);
			outgoing.on("error", reject);
			outgoing.end(body);
		});
}
