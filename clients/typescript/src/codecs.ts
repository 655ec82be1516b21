/** Codecs that come with the package: JSON and raw bytes. */
import type { Codec } from "./api.js";

/** UTF-8, both ways; decoding throws on what is not UTF-8. */
export const utf8Encoder: TextEncoder = new TextEncoder();
/** Keeps a byte order mark: a text is what its bytes say (message-format 1). */
export const utf8Decoder: TextDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * JSON in UTF-8. `undefined` is sent as `{}`, the request without fields.
 *
 * JSON numbers lose what is beyond 2^53, and JSON has no `bigint`: encoding one throws a `TypeError`. Services send 64-bit
 * values as strings, or use another codec.
 */
export const json: Codec<unknown> = {
	contentType: "application/json",
	encode: (value) => utf8Encoder.encode(value === undefined ? "{}" : JSON.stringify(value)),
	decode: (bytes) => JSON.parse(utf8Decoder.decode(bytes)) as unknown,
};

/** Bytes as they are. The bytes of an answer are the application's own; nothing else refers to them. */
export const raw: Codec<Uint8Array> = {
	contentType: "",
	encode: (value) => value,
	decode: (bytes) => bytes,
};
