import { type Client, isRemusError, type Publication } from "@remus/client";

/** Subscribes for as long as the client lives. When a session is lost it subscribes again, after `missed` was told. */
export async function listen(
	client: Client,
	pattern: string,
	take: (publication: Publication) => void,
	missed?: () => void,
): Promise<void> {
	while (client.state !== "closed") {
		try {
			for await (const publication of client.subscribe(pattern)) {
				try {
					take(publication);
				} catch (error) {
					// what somebody else has published need not be what is expected
					console.warn(`${publication.topic}:`, error);
				}
			}
			return;
		} catch (error) {
			if (!isRemusError(error) || !error.retryable) throw error;
			missed?.();
			await opened(client);
		}
	}
}

/** Settles when the client has a session, or is over. */
function opened(client: Client): Promise<void> {
	return new Promise((resolve) => {
		const look = (): void => {
			if (client.state !== "open" && client.state !== "closed") return;
			stop();
			resolve();
		};
		const stop = client.on("state", look);
		look();
	});
}
