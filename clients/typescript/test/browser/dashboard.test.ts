/** The dashboard that a node serves, in real browsers. What the tests need is as in browsers.test.ts. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { CarrierKind } from "../../src/api.js";
import { type Browser, chromiumKind, firefoxKind, type Node, type Page, reasonToSkip, startNode } from "./support.js";

const kinds: readonly CarrierKind[] = ["webtransport", "websocket", "http-poll", "http-events"];

for (const kind of [chromiumKind, firefoxKind]) {
	describe(`the dashboard in ${kind.name}`, { skip: reasonToSkip(kind) }, () => {
		let node: Node;
		let browser: Browser;
		let page: Page;

		before(async () => {
			node = await startNode(process.env.REMUS_BIN ?? "", "https://nobody.test");
			browser = await kind.start({ anyCertificate: true });
			page = await browser.open(`${node.url}/`);
		});

		after(async () => {
			await browser?.close();
			await node?.close();
		});

		/** Waits until an expression is true in the page, which looks at it whenever the page changes. */
		async function until(expression: string): Promise<void> {
			await page.run(`new Promise((resolve) => {
				const look = () => { if (${expression}) { observer.disconnect(); resolve(true); } };
				const observer = new MutationObserver(look);
				observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
				look();
			})`);
		}

		const text = (selector: string): Promise<string> => page.run(`document.querySelector(${JSON.stringify(selector)}).textContent`);

		test("is a client of its node, on the best carrier", async () => {
			await until('document.querySelector("#state").dataset.state === "open"');
			assert.equal(await page.run('document.querySelector("#carrier").dataset.carrier'), "webtransport");
			await until('document.querySelector("#facts").textContent.includes("X25519")');
			assert.match(await text("#facts"), /TLS 1\.3, in QUIC/);
		});

		test("draws the host", async () => {
			for (const title of ["Processor", "Memory", "Disk", "Network"]) {
				await until(`document.querySelector('#charts svg[aria-label^="${title}, the last two minutes; now "] path[d^="M"]')`);
			}
		});

		test("goes to each carrier by its button, and back when it is cut", async () => {
			for (const carrier of [...kinds].reverse()) {
				await page.run(`document.querySelector('#carriers button[data-carrier="${carrier}"]').click()`);
				await until(`document.querySelector("#carrier").dataset.carrier === "${carrier}"`);
				await until(`document.querySelector('#carriers button[data-carrier="${carrier}"]').ariaPressed === "true"`);
				assert.equal(await page.run("document.querySelectorAll('#carriers [aria-pressed=true]').length"), 1);
			}
			await page.run('document.querySelector("#drop").click()');
			await until('/resumed, \\d+ ms without a carrier/.test(document.querySelector("#events").textContent)');
			await until('document.querySelector("#state").dataset.state === "open"');
			assert.match(await text("#events"), /WebTransport is gone: dropped by the application/);
			assert.equal(await text("#refused"), "");
		});

		test("chats, and takes what others say for text", async () => {
			const other = await browser.open(`${node.url}/`);
			try {
				await other.run(`new Promise((resolve) => {
					const look = () => { if (document.querySelector("#state").dataset.state === "open") { observer.disconnect(); resolve(true); } };
					const observer = new MutationObserver(look);
					observer.observe(document, { subtree: true, childList: true, attributes: true });
					look();
				})`);
				await other.run(`{
					document.querySelector("#name").value = "Ada";
					document.querySelector("#text").value = "<img src=x onerror=alert(1)> hello";
					document.querySelector("#say").requestSubmit();
				}`);
				await until('document.querySelector("#chat").textContent.includes("hello")');
				assert.match(await text("#chat li"), /Ada<img src=x onerror=alert\(1\)> hello$/);
				assert.equal(await page.run("document.querySelectorAll('#chat img').length"), 0);
			} finally {
				await other.close();
			}
		});

		test("can be used by keyboard, and names everything for screen readers", async () => {
			const nameless = await page.run<
				string[]
			>(`[...document.querySelectorAll("button, input, [role=img], [role=log], [role=group], section, [role=region]")]
				.filter((element) => !(element.ariaLabel || element.getAttribute("aria-labelledby") || element.labels?.length || element.textContent.trim()))
				.map((element) => element.outerHTML)`);
			assert.deepEqual(nameless, []);
			const dangling = await page.run<string[]>(`[...document.querySelectorAll("[aria-labelledby]")]
				.map((element) => element.getAttribute("aria-labelledby")).filter((id) => !document.getElementById(id))`);
			assert.deepEqual(dangling, []);
			// from the top of the page by the tabulator to what can be done here, and through it with the space bar
			await page.run("{ document.activeElement.blur(); scrollTo(0, 0); }");
			const seen: string[] = [];
			for (let i = 0; i < 20; i++) {
				await page.press("Tab");
				const id = await page.run<string>(
					"document.activeElement.id || document.activeElement.dataset.carrier || document.activeElement.className",
				);
				seen.push(id);
				if (id === "websocket") {
					await page.press(" ");
					await until('document.querySelector("#carrier").dataset.carrier === "websocket"');
				}
				if (id === "text") break;
			}
			for (const id of [...kinds, "drop", "events", "scroll", "chat", "name", "text"])
				assert.ok(seen.includes(id), `${id}: ${seen.join(" ")}`);
		});

		test("keeps to its policy: nothing was blocked, and nothing else may be loaded", async () => {
			assert.deepEqual(page.problems(), []);
			const directive = await page.run<string>(`new Promise((resolve) => {
				addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective), { once: true });
				fetch("https://elsewhere.test/").catch(() => {});
			})`);
			assert.equal(directive, "connect-src");
		});
	});
}
