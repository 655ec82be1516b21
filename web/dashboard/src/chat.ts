/** A chat on a topic: whoever can publish takes part. */
import { type Client, isRemusError } from "@remus/client";
import { addLine, byId, make, say } from "./dom.js";
import { clock } from "./format.js";
import { listen } from "./listen.js";

const TOPIC = "chat.lobby";
/** Lines that are kept on the page. */
const LINES_MAX = 200;

/** What is published: JSON of this, or any text. */
interface Said {
	readonly name: string;
	readonly text: string;
}

function read(text: string): Said {
	try {
		const value = JSON.parse(text) as Partial<Said> | null;
		if (typeof value?.text === "string") return { name: typeof value.name === "string" ? value.name : "", text: value.text };
	} catch {
		// then it is a text
	}
	return { name: "", text };
}

export async function showChat(client: Client): Promise<void> {
	const list = byId("chat");
	const name = byId<HTMLInputElement>("name");
	const text = byId<HTMLInputElement>("text");
	const unsent = byId("unsent");

	byId<HTMLFormElement>("say").addEventListener("submit", async (event) => {
		event.preventDefault();
		const words = text.value.trim();
		if (words === "") return;
		const message: Said = { name: name.value.trim() || "somebody", text: words };
		text.value = "";
		try {
			await client.publish(TOPIC, JSON.stringify(message));
			say(unsent, "");
		} catch (error) {
			// what was written is not lost
			if (text.value === "") text.value = words;
			say(unsent, `Not sent: ${isRemusError(error) ? error.message : error}`);
		}
	});

	await listen(
		client,
		TOPIC,
		(publication) => {
			const { name, text } = read(publication.text());
			const time = make("time", clock(Number(publication.timestampUs / 1000n)));
			addLine(list, make("li", time, make("b", name || "–"), text), LINES_MAX);
		},
		() => addLine(list, make("li", "The session was lost; messages may be missing here."), LINES_MAX),
	);
}
