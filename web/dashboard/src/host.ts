/** The machine under the node, from the topics `host.>`. */
import type { Client } from "@remus/client";
import { Chart } from "./chart.js";
import { byId, say } from "./dom.js";
import { bytes, percent } from "./format.js";
import { listen } from "./listen.js";

interface Cpu {
	readonly usage_percent: number;
	readonly cores_percent: readonly number[];
	readonly load_average: readonly [number, number, number];
}

interface Memory {
	readonly total_bytes: number;
	readonly used_bytes: number;
	readonly available_bytes: number;
	readonly swap_total_bytes: number;
	readonly swap_used_bytes: number;
}

interface Disk {
	readonly disks: readonly {
		readonly mount: string;
		readonly device: string;
		readonly total_bytes: number;
		readonly available_bytes: number;
		readonly read_bytes_per_s: number;
		readonly written_bytes_per_s: number;
	}[];
}

interface Net {
	readonly networks: readonly { readonly name: string; readonly received_bytes_per_s: number; readonly transmitted_bytes_per_s: number }[];
}

interface HostInfo {
	readonly name: string;
	readonly topic_name: string;
	readonly os: string;
	readonly architecture: string;
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
	return items.reduce((total, item) => total + value(item), 0);
}

/** Draws what the node's machine does, for as long as the client lives. */
export async function showHost(client: Client): Promise<void> {
	const cpu = new Chart("Processor", 1, 100);
	const memory = new Chart("Memory", 1, 1);
	const disk = new Chart("Disk", 2);
	const net = new Chart("Network", 2);
	byId("charts").replaceChildren(cpu.element, memory.element, disk.element, net.element);

	const draw: { readonly [what: string]: (sample: unknown) => void } = {
		cpu(sample) {
			const { usage_percent, cores_percent, load_average } = sample as Cpu;
			const cores = `${cores_percent.length} ${cores_percent.length === 1 ? "core" : "cores"}`;
			cpu.add([usage_percent], percent(usage_percent), `${cores}, load ${load_average.map((load) => load.toFixed(2)).join(" ")}`);
		},
		memory(sample) {
			const { total_bytes, used_bytes, available_bytes, swap_total_bytes, swap_used_bytes } = sample as Memory;
			const swap = swap_total_bytes > 0 ? `, swap ${bytes(swap_used_bytes)} of ${bytes(swap_total_bytes)}` : "";
			memory.add([used_bytes / total_bytes], `${bytes(used_bytes)} of ${bytes(total_bytes)}`, `${bytes(available_bytes)} available${swap}`);
		},
		disk(sample) {
			const { disks } = sample as Disk;
			const read = sum(disks, (one) => one.read_bytes_per_s);
			const written = sum(disks, (one) => one.written_bytes_per_s);
			const root = disks.find((one) => one.mount === "/") ?? disks[0];
			const free = root ? `${bytes(root.available_bytes)} free on ${root.mount}` : "no disks";
			disk.add([read, written], `${bytes(read)}/s read`, `${bytes(written)}/s written (dashed), ${free}`);
		},
		net(sample) {
			// what this machine says to itself goes over no network
			const networks = (sample as Net).networks.filter(({ name }) => name !== "lo");
			const received = sum(networks, (one) => one.received_bytes_per_s);
			const sent = sum(networks, (one) => one.transmitted_bytes_per_s);
			net.add([received, sent], `${bytes(received)}/s in`, `${bytes(sent)}/s out (dashed), without loopback`);
		},
	};

	const info = await client.call<HostInfo>("host.v1.Host/Info", undefined, { idempotent: true });
	say(byId("node"), info.name);
	say(byId("host"), `${info.os}, ${info.architecture}`);
	document.title = `${info.name} · Remus`;
	await listen(client, `host.${info.topic_name}.>`, (publication) => {
		const what = publication.topic.slice(publication.topic.lastIndexOf(".") + 1);
		draw[what]?.(publication.json());
	});
}
