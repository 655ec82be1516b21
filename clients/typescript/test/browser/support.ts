/** A real node, a bad network before it, and real browsers: what the tests with browsers share. */
import { type ChildProcess, spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { createServer as createHttpsServer, request as httpsRequest } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { connect as tlsConnect } from "node:tls";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import puppeteer from "puppeteer-core";

/** Something that runs until the tests are over. */
export interface Running {
	close(): Promise<void>;
}

/** A program's first line, which says that it is ready. */
async function firstLine(child: ChildProcess, what: string): Promise<string> {
	const errors: string[] = [];
	child.stderr?.on("data", (text: Buffer) => errors.push(text.toString()));
	if (!child.stdout) throw new Error(`${what} has no output`);
	for await (const line of createInterface(child.stdout)) return line;
	throw new Error(`${what} has ended: ${errors.join("")}`);
}

async function ended(child: ChildProcess): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return;
	const exit = once(child, "exit");
	child.kill();
	await exit;
}

// ---- the node --------------------------------------------------------------------------------------

/** What `remus up` says of itself. */
export interface Node extends Running {
	readonly url: string;
	readonly port: number;
	readonly digest: string;
	readonly data: string;
}

/** Starts a node that takes pages of `origin`. */
export async function startNode(program: string, origin: string): Promise<Node> {
	const data = mkdtempSync(join(tmpdir(), "remus-browser-"));
	const child = spawn(program, ["-o", "json", "up", "--listen", "127.0.0.1:0", "--data", data], {
		env: { ...process.env, REMUS_ALLOWED_ORIGINS: origin, REMUS_GRACE_MS: "0" },
		stdio: ["ignore", "pipe", "pipe"],
	});
	const close = async (): Promise<void> => {
		await ended(child);
		rmSync(data, { recursive: true, force: true });
	};
	try {
		const said = JSON.parse(await firstLine(child, "the node")) as { address: string; certificate_sha256: string };
		child.stdout?.resume();
		return {
			url: `https://${said.address}`,
			port: Number(new URL(`https://${said.address}`).port),
			digest: said.certificate_sha256,
			data,
			close,
		};
	} catch (error) {
		await close();
		throw error;
	}
}

// ---- bad networks ----------------------------------------------------------------------------------

/** A way to the node that differs from the direct one. */
export interface Detour extends Running {
	readonly url: string;
}

/** The proxy of remus-testing, which swallows all of UDP. */
export async function startChaos(program: string, node: Node): Promise<Detour> {
	const child = spawn(program, ["--to", `127.0.0.1:${node.port}`, "--set", "udp blackhole on"], { stdio: ["pipe", "pipe", "pipe"] });
	const address = /^\S+/.exec(await firstLine(child, "chaos"))?.[0];
	child.stdout?.resume();
	return { url: `https://${address}`, close: () => ended(child) };
}

/** What a proxy that reads HTTP doesn't let through. */
export type Refusal = "websocket" | "http-poll";

/** A proxy such as companies have: it ends TLS, swallows UDP, and refuses what it doesn't know. */
export async function startMiddlebox(node: Node, refused: readonly Refusal[]): Promise<Detour> {
	const tls = { key: readFileSync(join(node.data, "tls/node.key")), cert: readFileSync(join(node.data, "tls/node.pem")) };
	const ca = readFileSync(join(node.data, "tls/ca.pem"));
	const there = { host: "127.0.0.1", port: node.port, ca };
	const server = createHttpsServer(tls, (request, response) => {
		if (refused.includes("http-poll") && request.url?.endsWith("/down")) {
			request.socket.destroy();
			return;
		}
		const { method, url: path, headers } = request;
		const onward = httpsRequest({ ...there, method, path, headers }, (answer) => {
			response.writeHead(answer.statusCode ?? 502, answer.headers);
			response.flushHeaders();
			answer.pipe(response);
		});
		onward.on("error", () => response.destroy());
		response.on("close", () => onward.destroy());
		request.pipe(onward);
	});
	const sockets = new Set<Socket>();
	server.on("connection", (socket: Socket) => {
		sockets.add(socket);
		socket.on("close", () => sockets.delete(socket));
	});
	server.on("upgrade", (request, socket, head) => {
		if (refused.includes("websocket")) {
			socket.end("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
			return;
		}
		const onward = tlsConnect({ ...there, ALPNProtocols: ["http/1.1"] }, () => {
			const lines = request.rawHeaders.map((text, i) => (i % 2 === 0 ? `${text}: ` : `${text}\r\n`)).join("");
			onward.write(`GET ${request.url} HTTP/1.1\r\n${lines}\r\n`);
			onward.write(head);
			socket.pipe(onward).pipe(socket);
		});
		onward.on("error", () => socket.destroy());
		socket.on("error", () => onward.destroy());
	});
	server.listen(0, "127.0.0.1");
	await once(server, "listening");
	const { port } = server.address() as AddressInfo;
	const hole = createSocket("udp4");
	hole.bind(port, "127.0.0.1");
	await once(hole, "listening");
	return {
		url: `https://127.0.0.1:${port}`,
		close: async () => {
			hole.close();
			const closed = once(server, "close");
			server.close();
			for (const socket of sockets) socket.destroy();
			await closed;
		},
	};
}

// ---- the page --------------------------------------------------------------------------------------

/** An origin with one empty page that has `remusTest`. */
export interface Site extends Running {
	readonly origin: string;
}

export async function startSite(): Promise<Site> {
	const bundled = await build({
		entryPoints: [fileURLToPath(new URL("page.js", import.meta.url))],
		bundle: true,
		format: "iife",
		globalName: "remusTest",
		target: "es2022",
		platform: "browser",
		write: false,
		logLevel: "silent",
	});
	const script = bundled.outputFiles[0]?.contents;
	const server = createHttpServer((request, response) => {
		if (request.url === "/page.js") response.writeHead(200, { "content-type": "text/javascript; charset=utf-8" }).end(script);
		else if (request.url === "/") response.writeHead(200, { "content-type": "text/html; charset=utf-8" }).end(html);
		else response.writeHead(404).end();
	});
	server.listen(0, "127.0.0.1");
	await once(server, "listening");
	const { port } = server.address() as AddressInfo;
	return {
		origin: `http://127.0.0.1:${port}`,
		close: async () => {
			const closed = once(server, "close");
			server.close();
			server.closeAllConnections();
			await closed;
		},
	};
}

const html = '<!doctype html><html lang="en"><title>Tests of @remus/client</title><script src="/page.js"></script>';

// ---- browsers --------------------------------------------------------------------------------------

/** An open page. */
export interface Page extends Running {
	/** Evaluates an expression; its value goes through JSON. */
	run<T>(expression: string): Promise<T>;
	/** Presses a key, as a person does. */
	press(key: "Tab" | " "): Promise<void>;
	/** Errors that nobody caught, and what the browser has complained of on the console. */
	problems(): readonly string[];
}

export interface Browser extends Running {
	readonly version: string;
	/** Opens a page with a store of its own. */
	open(url: string): Promise<Page>;
}

/** Whom a browser believes. */
export interface Trust {
	/** Whether it accepts certificates that nobody signed whom it knows, which people do by a click. */
	readonly anyCertificate: boolean;
}

/** A way to start a browser. */
export interface Kind {
	readonly name: string;
	readonly program: string | undefined;
	start(trust: Trust): Promise<Browser>;
}

function found(variable: string, ...paths: readonly string[]): string | undefined {
	return process.env[variable] ?? paths.find(existsSync);
}

// the browsers' own sandboxes refuse to run as root, as containers do
const isRoot = process.getuid?.() === 0;

const chromiumProgram = found("REMUS_CHROMIUM", "/usr/bin/chromium");
const firefoxProgram = found("REMUS_FIREFOX", "/usr/bin/firefox-esr", "/usr/bin/firefox");

/** Why a browser can't be tried here; REMUS_BROWSERS=all takes that for an error. */
export function reasonToSkip(kind: Kind): string | false {
	const missing = ["REMUS_BIN", "REMUS_CHAOS"].filter((variable) => process.env[variable] === undefined);
	if (!kind.program) missing.push(kind.name);
	if (missing.length === 0) return false;
	const reason = `not there: ${missing.join(", ")}`;
	if (process.env.REMUS_BROWSERS === "all") throw new Error(reason);
	return reason;
}

export const chromiumKind: Kind = {
	name: "Chromium",
	program: chromiumProgram,
	async start({ anyCertificate }) {
		const browser = await chromium.launch({
			executablePath: chromiumProgram ?? "chromium",
			args: isRoot ? ["--no-sandbox"] : [],
		});
		return {
			version: `Chromium ${browser.version()}`,
			async open(url) {
				const context = await browser.newContext({ ignoreHTTPSErrors: anyCertificate });
				const page = await context.newPage();
				const problems: string[] = [];
				page.on("pageerror", (error) => problems.push(String(error)));
				page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
				await page.goto(url);
				return {
					run: (expression) => page.evaluate(expression),
					press: (key) => page.keyboard.press(key),
					problems: () => problems,
					close: () => context.close(),
				};
			},
			close: () => browser.close(),
		};
	},
};

export const firefoxKind: Kind = {
	name: "Firefox",
	program: firefoxProgram,
	async start({ anyCertificate }) {
		const browser = await puppeteer.launch({
			browser: "firefox",
			executablePath: firefoxProgram ?? "firefox",
			headless: true,
			acceptInsecureCerts: anyCertificate,
		});
		return {
			version: await browser.version(),
			async open(url) {
				const context = await browser.createBrowserContext();
				const page = await context.newPage();
				const problems: string[] = [];
				page.on("pageerror", (error) => problems.push(String(error)));
				page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
				await page.goto(url);
				return {
					run: async <T>(expression: string) => (await page.evaluate(expression)) as T,
					press: (key) => page.keyboard.press(key),
					problems: () => problems,
					close: () => context.close(),
				};
			},
			close: () => browser.close(),
		};
	},
};
