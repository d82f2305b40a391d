/** Values of flags that several commands have: each is read, or told with the flag, what was given, and what it must be. */
import { UserError } from "../run/errors.js";

/** The engine counts in 32 bits. */
const MOST = 2 ** 31 - 1;

/** The number of a flag. Throws UserError (exit code 2) for anything else. */
export function number(flag: string, text: string, low: number, high = Number.POSITIVE_INFINITY): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value) || value < low || value > high)
    throw new UserError(`${flag} is "${text}"; it must be a number ${range(low, high, value)}.`, 2);
  return value;
}

/** The same of whole numbers. */
export function whole(flag: string, text: string, low: number, high = MOST): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < low || value > high)
    throw new UserError(`${flag} is "${text}"; it must be a whole number ${range(low, high, value)}.`, 2);
  return value;
}

/** A limit that is only the engine's, or there for the digits of a double, is of interest only to whoever went beyond it. */
const range = (low: number, high: number, value: number): string =>
  `from ${low} ${Number.isFinite(high) && (high < MOST || value > high) ? `to ${high}` : "up"}`;

export function precision(text: string): "fp32" | "bf16" {
  if (text !== "fp32" && text !== "bf16") throw new UserError(`--precision is "${text}"; it must be fp32 or bf16.`, 2);
  return text;
}
