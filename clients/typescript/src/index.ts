/** `@remus/client` for browsers, and wherever there are `WebSocket` and `fetch`. */
export type * from "./api.js";
export { json, raw } from "./codecs.js";
export {
	codeOfNumber,
	type ErrorCode,
	type ErrorDetail,
	type ErrorExtra,
	errorCodes,
	isRemusError,
	type RemusError,
	remusError,
} from "./errors.js";
