/** Numbers as people read them. */

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** Bytes, with three significant digits. */
export function bytes(value: number | bigint): string {
	let rest = Number(value);
	let unit = 0;
	while (rest >= 1000 && unit < units.length - 1) {
		rest /= 1024;
		unit++;
	}
	const digits = unit === 0 || rest >= 100 ? 0 : rest >= 10 ? 1 : 2;
	return `${rest.toFixed(digits)} ${units[unit]}`;
}

export function milliseconds(value: number | undefined): string {
	if (value === undefined) return "–";
	return value < 10 ? `${value.toFixed(2)} ms` : `${value.toFixed(0)} ms`;
}

export function percent(value: number): string {
	return `${value.toFixed(0)} %`;
}

/** Hour, minute and second of a time in ms since the Unix epoch. */
export function clock(at: number): string {
	return new Date(at).toLocaleTimeString(undefined, { hour12: false });
}

/** How long ago, in the largest unit that fits. */
export function since(at: number): string {
	const seconds = Math.max(0, Math.floor((Date.now() - at) / 1000));
	if (seconds < 60) return `${seconds} s`;
	if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
	return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
