/** What a page has to load. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** Bytes of a module with all that it needs, minified and compressed. */
async function size(module: string): Promise<number> {
	const entry = fileURLToPath(new URL(`../src/${module}.js`, import.meta.url));
	const result = await build({
		entryPoints: [entry],
		bundle: true,
		minify: true,
		format: "esm",
		target: "es2022",
		platform: "browser",
		write: false,
		logLevel: "silent",
	});
	const bytes = result.outputFiles[0]?.contents;
	assert.ok(bytes && bytes.length > 0);
	return gzipSync(bytes, { level: 9 }).length;
}

test("the core, which is the session with its codec, has at most 12 KiB compressed", async () => {
	const bytes = await size("session");
	assert.ok(bytes <= 12 * 1024, `${bytes} bytes`);
});

test("all of it, with every carrier, has at most 24 KiB compressed, and imports nothing", async () => {
	const bytes = await size("index");
	assert.ok(bytes <= 24 * 1024, `${bytes} bytes`);
});
