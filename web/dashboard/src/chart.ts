/** A chart of the last two minutes: one or two lines, with the latest values as text beside them. */
import { make, say } from "./dom.js";

/** Samples that are shown: one a second. */
const SAMPLES_MAX = 120;
/** Size of the drawing, in its own units; it is stretched to the room that there is. */
const WIDTH = SAMPLES_MAX - 1;
const HEIGHT = 100;
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
	readonly element: HTMLElement;
	readonly #title: string;
	/** The highest value that can be; `undefined`: the highest that is shown. */
	readonly #max: number | undefined;
	readonly #lines: { readonly path: SVGPathElement; readonly values: number[] }[];
	readonly #svg: SVGSVGElement;
	readonly #value = make("b", "–");
	readonly #detail = make("p", "\u00a0");

	constructor(title: string, lines: 1 | 2, max?: number) {
		this.#title = title;
		this.#max = max;
		this.#svg = document.createElementNS(SVG, "svg");
		this.#svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
		this.#svg.setAttribute("preserveAspectRatio", "none");
		this.#svg.setAttribute("role", "img");
		this.#svg.setAttribute("aria-label", `${title}: no samples yet`);
		this.#lines = Array.from({ length: lines }, (_, i) => {
			const path = document.createElementNS(SVG, "path");
			if (i > 0) path.classList.add("second");
			this.#svg.append(path);
			return { path, values: [] };
		});
		this.element = make("figure", make("figcaption", make("span", title), this.#value), this.#svg, this.#detail);
	}

	/** Adds a sample: a value for each line, and what to write. */
	add(values: readonly number[], value: string, detail: string): void {
		for (const [i, line] of this.#lines.entries()) {
			line.values.push(values[i] ?? 0);
			if (line.values.length > SAMPLES_MAX) line.values.shift();
		}
		const top = this.#max ?? Math.max(1, ...this.#lines.flatMap((line) => line.values));
		for (const { path, values } of this.#lines) {
			const from = SAMPLES_MAX - values.length;
			const y = (value: number): string => (HEIGHT - 2 - (Math.min(value, top) / top) * (HEIGHT - 4)).toFixed(1);
			path.setAttribute("d", values.map((value, i) => `${i === 0 ? "M" : "L"}${from + i} ${y(value)}`).join(""));
		}
		say(this.#value, value);
		say(this.#detail, detail);
		this.#svg.setAttribute("aria-label", `${this.#title}, the last two minutes; now ${value}; ${detail}`);
	}
}
