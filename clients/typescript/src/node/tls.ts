/** TLS of connections from Node. Spec: transport 1.2. */
import type { ConnectionOptions } from "node:tls";

/** How to connect by TLS. */
export interface TlsOptions {
	readonly connection: ConnectionOptions;
}

/**
 * Version 1.3 and nothing below. Hybrid post-quantum key exchange where this Node's OpenSSL has it (3.5, Node 24), X25519
 * where it has not.
 */
export function tlsOptions(ca: string | undefined): TlsOptions {
	const [major = 0, minor = 0] = (process.versions.openssl ?? "").split(".").map(Number);
	const hybrid = major > 3 || (major === 3 && minor >= 5);
	return {
		connection: {
			minVersion: "TLSv1.3",
			ecdhCurve: hybrid ? "X25519MLKEM768:X25519" : "X25519",
			...(ca === undefined ? {} : { ca }),
		},
	};
}
