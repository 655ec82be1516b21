/** The dashboard: a client of the node that has served this page. */
import { connect, isRemusError } from "@remus/client";
import { showChat } from "./chat.js";
import { showConnection } from "./connection.js";
import { byId, say } from "./dom.js";
import { showHost } from "./host.js";

const port = location.port || "443";

async function main(): Promise<void> {
	const client = await connect(`https://${location.hostname}:${port}`);
	addEventListener("pagehide", (event) => {
		// a page that may come back keeps its session, as long as the node does
		if (!event.persisted) void client.close({ graceMs: 0 });
	});
	showConnection(client);
	say(byId("footer"), `Session of ${location.host}, Remus ${client.status().version ?? ""}`);
	await Promise.all([showHost(client), showChat(client)]);
}

main().catch((error: unknown) => {
	const state = byId("state");
	state.dataset.state = "closed";
	say(state, isRemusError(error) ? `${error.code}: ${error.message}` : String(error));
});
