/** The page's elements. Text only ever becomes text: nothing that comes from the network is read as HTML. */

export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
	const element = document.getElementById(id);
	if (!element) throw new Error(`the page has no #${id}`);
	return element as T;
}

/** Makes an element with text, or other elements, in it. */
export function make<K extends keyof HTMLElementTagNameMap>(tag: K, ...content: readonly (Node | string)[]): HTMLElementTagNameMap[K] {
	const element = document.createElement(tag);
	element.append(...content);
	return element;
}

/** Sets a text where it has changed, so that nobody is told again what they know. */
export function say(element: Element, text: string): void {
	if (element.textContent !== text) element.textContent = text;
}

/** Adds a line to a list and drops the oldest beyond `max`; the list stays at its end if that is where its reader is. */
export function addLine(list: HTMLElement, line: HTMLElement, max: number): void {
	const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 8;
	list.append(line);
	while (list.childElementCount > max) list.firstElementChild?.remove();
	if (atEnd) list.scrollTop = list.scrollHeight;
}
