/**
 * Errors, as one union that is told apart by `code`. Spec: message-format 6.9 and WIRE-59 to WIRE-65.
 *
 * Every failure of this package that is not a misuse (a `TypeError`) is a {@link RemusError}.
 */

/** Error codes with the numbers that they have on the wire. */
export const errorCodes = {
	CANCELLED: 1,
	UNKNOWN: 2,
	INVALID_ARGUMENT: 3,
	DEADLINE_EXCEEDED: 4,
	NOT_FOUND: 5,
	ALREADY_EXISTS: 6,
	PERMISSION_DENIED: 7,
	RESOURCE_EXHAUSTED: 8,
	FAILED_PRECONDITION: 9,
	ABORTED: 10,
	OUT_OF_RANGE: 11,
	UNIMPLEMENTED: 12,
	INTERNAL: 13,
	UNAVAILABLE: 14,
	DATA_LOSS: 15,
	UNAUTHENTICATED: 16,
	MALFORMED: 0x100,
	UNSUPPORTED_VERSION: 0x101,
	FLOW_CONTROL: 0x102,
	MESSAGE_TOO_LARGE: 0x103,
	LOOP_DETECTED: 0x104,
	WRONG_REGION: 0x105,
	LOSS_OF_SESSION: 0x106,
	FRAME_TOO_LARGE: 0x107,
	UNKNOWN_FRAME: 0x108,
	STREAM_STATE: 0x109,
	TOO_MANY_CALLS: 0x10a,
	TOO_MANY_STREAMS: 0x10b,
	CONTEXT_TOO_LARGE: 0x10c,
	ROUTING_TOO_LARGE: 0x10d,
	QUEUE_FULL: 0x10e,
	UNEXPECTED_MESSAGE: 0x10f,
	SHUTTING_DOWN: 0x110,
	CONTROL_FLOOD: 0x111,
	IDLE_TIMEOUT: 0x112,
	HANDSHAKE_TIMEOUT: 0x113,
	UNSUPPORTED_EXTENSION: 0x114,
	DUPLICATE_REQUEST: 0x115,
} as const;

/** The name of an error code. */
export type ErrorCode = keyof typeof errorCodes;

/** One detail of an error, for programs: what `type` says about the bytes of `value`. */
export interface ErrorDetail {
	readonly type: string;
	readonly value: Uint8Array;
}

/** What an error is made of besides its code and message. */
export interface ErrorExtra {
	/** The number on the wire; differs from `code` only where the code is unknown here (`UNKNOWN`). */
	readonly number?: number;
	/** How long to wait before trying again, in ms. Absent: don't try again because of this. */
	readonly retryAfterMs?: number | undefined;
	/** For programs. */
	readonly details?: readonly ErrorDetail[];
	/** What caused it here, if anything did. */
	readonly cause?: unknown;
}

/** An error with one code. Use the union {@link RemusError}, which narrows by `code`. */
class CodedError<C extends ErrorCode = ErrorCode> extends Error {
	/** What went wrong, by name. */
	readonly code: C;
	/** The number of the code on the wire. An unknown number has the code `UNKNOWN`. */
	readonly number: number;
	/** How long the peer asks to wait before another try, in ms; `undefined`: it asks for none. */
	readonly retryAfterMs: number | undefined;
	/** Details, for programs. */
	readonly details: readonly ErrorDetail[];

	constructor(code: C, message: string, extra: ErrorExtra = {}) {
		super(message, extra.cause === undefined ? undefined : { cause: extra.cause });
		this.name = "RemusError";
		this.code = code;
		this.number = extra.number ?? errorCodes[code];
		this.retryAfterMs = extra.retryAfterMs;
		this.details = extra.details ?? [];
	}

	/** Nothing of the request ran: it can be made again, here later or elsewhere now. Spec: WIRE-65. */
	get refusedBeforeItRan(): boolean {
		return (
			this.code === "SHUTTING_DOWN" || this.code === "TOO_MANY_CALLS" || this.code === "TOO_MANY_STREAMS" || this.code === "QUEUE_FULL"
		);
	}

	/** Trying again can help. Unless {@link refusedBeforeItRan}, the request may have run. Spec: WIRE-65. */
	get retryable(): boolean {
		return this.refusedBeforeItRan || this.code === "UNAVAILABLE" || this.code === "LOSS_OF_SESSION";
	}
}

/** An error of Remus. `switch (error.code)` tells which; see {@link ErrorCode}. */
export type RemusError = { [C in ErrorCode]: CodedError<C> }[ErrorCode];

/** Makes a {@link RemusError}. */
export function remusError<C extends ErrorCode>(code: C, message: string, extra?: ErrorExtra): RemusError & { readonly code: C } {
	return new CodedError(code, message, extra) as unknown as RemusError & { readonly code: C };
}

/** Whether `value`, from a `catch` for example, is an error of Remus. */
export function isRemusError(value: unknown): value is RemusError {
	return value instanceof CodedError;
}

const namesByNumber = new Map<number, ErrorCode>();
for (const [name, number] of Object.entries(errorCodes)) namesByNumber.set(number, name as ErrorCode);

/** The name of a number on the wire: `UNKNOWN` for one without a name. Spec: message-format 6.9. */
export function codeOfNumber(number: number): ErrorCode {
	return namesByNumber.get(number) ?? "UNKNOWN";
}
