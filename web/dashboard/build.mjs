/**
 * Builds the dashboard into the crate that embeds it. With --check it writes nothing, and fails where what is committed is not what these
 * sources give.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const target = here("../../crates/remus-node/src/web/dashboard/");

const { outputFiles } = await build({
	entryPoints: { app: here("src/main.ts"), style: here("src/style.css") },
	alias: { "@remus/client": here("../../clients/typescript/src/index.ts") },
	absWorkingDir: here("."),
	outdir: target,
	bundle: true,
	minify: true,
	format: "esm",
	target: ["chrome115", "firefox115", "safari17"],
	charset: "utf8",
	legalComments: "none",
	write: false,
});
const files = new Map(outputFiles.map(({ path, contents }) => [path.slice(target.length), Buffer.from(contents)]));
for (const name of ["index.html", "icon.svg"]) files.set(name, readFileSync(here(`src/${name}`)));

const different = [];
mkdirSync(target, { recursive: true });
for (const [name, contents] of files) {
	let committed;
	try {
		committed = readFileSync(target + name);
	} catch {
		// it is not there yet
	}
	if (committed?.equals(contents)) continue;
	different.push(name);
	if (!process.argv.includes("--check")) writeFileSync(target + name, contents);
}
if (process.argv.includes("--check") && different.length > 0) {
	console.error(`not what the sources give: ${different.join(", ")}; run npm run build in web/dashboard and commit it`);
	process.exit(1);
}
for (const [name, contents] of files) console.log(`${name.padEnd(12)} ${contents.length} bytes`);
