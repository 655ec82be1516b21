/** The clock of timestamps: µs since the Unix epoch, as fine as the platform tells. */
export function nowUs(): bigint {
	return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000));
}
