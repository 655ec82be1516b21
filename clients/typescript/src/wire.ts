/** The codec of frames, messages and records, for tools and tests. Spec: docs/spec/message-format.md. */
export { type Bytes, DecodeError, type DecodeErrorName } from "./wire/bytes.js";
export { decodeFrame, encodeFrame, FRAME_HEADER, FRAME_PAYLOAD_MAX, frameTypes, judgeFrame, type RawFrame } from "./wire/frame.js";
export { idOf, sha256 } from "./wire/id.js";
export {
	type Authentication,
	decodeMessage,
	defaultLimits,
	encodeMessage,
	flags,
	judgeMessage,
	type Limits,
	MESSAGE_HEADER,
	type Message,
	messageTypes,
	type Option,
	options,
	PRIORITY_ORDINARY,
	ttlFromMs,
	ttlToMs,
} from "./wire/message.js";
export * from "./wire/more.js";
export * from "./wire/records.js";
