/** What arrives, as an async iterable. */

/** A queue with one reader. What the reader has not taken counts against the credit, so the sender bounds it. */
export class Inbox<T> implements AsyncIterator<T, undefined> {
	readonly #items: { readonly value: T; readonly taken: () => void }[] = [];
	#waiter: { readonly resolve: (result: IteratorResult<T, undefined>) => void; readonly reject: (error: unknown) => void } | undefined;
	#ended = false;
	#error: unknown;
	/** Called once, when the reader leaves before the end. */
	readonly #left: () => void;

	constructor(left: () => void) {
		this.#left = left;
	}

	/** Adds a value; `taken` is called when the reader has it, or nobody wants it any more. */
	push(value: T, taken: () => void): void {
		if (this.#ended) return taken();
		if (!this.#waiter) {
			this.#items.push({ value, taken });
			return;
		}
		const { resolve } = this.#waiter;
		this.#waiter = undefined;
		taken();
		resolve({ done: false, value });
	}

	/** Nothing comes any more; what is here is still read. */
	end(error?: unknown): void {
		if (this.#ended) return;
		this.#ended = true;
		this.#error = error;
		const waiter = this.#waiter;
		this.#waiter = undefined;
		if (waiter) this.#last(waiter.resolve, waiter.reject);
	}

	#last(resolve: (result: IteratorResult<T, undefined>) => void, reject: (error: unknown) => void): void {
		const error = this.#error;
		this.#error = undefined;
		if (error === undefined) resolve({ done: true, value: undefined });
		else reject(error);
	}

	next(): Promise<IteratorResult<T, undefined>> {
		return new Promise((resolve, reject) => {
			const item = this.#items.shift();
			if (item) {
				item.taken();
				resolve({ done: false, value: item.value });
			} else if (this.#ended) {
				this.#last(resolve, reject);
			} else if (this.#waiter) {
				reject(new TypeError("next() was called before the last one had settled"));
			} else {
				this.#waiter = { resolve, reject };
			}
		});
	}

	return(): Promise<IteratorResult<T, undefined>> {
		for (const item of this.#items.splice(0)) item.taken();
		if (!this.#ended) {
			this.end();
			this.#left();
		}
		this.#error = undefined;
		return Promise.resolve({ done: true, value: undefined });
	}
}
