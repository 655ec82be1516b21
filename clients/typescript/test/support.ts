/** What tests share. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** A path in this repository. The tests run compiled, in `clients/typescript/.test/test`. */
export function repository(...parts: readonly string[]): string {
	return join(fileURLToPath(new URL("../../../..", import.meta.url)), ...parts);
}

/** Collects what is iterated. */
export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
	const list: T[] = [];
	for await (const item of items) list.push(item);
	return list;
}
