/** What a run says while it works: one line that is rewritten on a terminal, plain lines elsewhere. */

export interface Progress {
  /** A line that stays. */
  note(text: string): void;
  /** Where the run is. Shown at once on a terminal; elsewhere only when `keep` is set. */
  status(text: string, keep: boolean): void;
  end(): void;
}

/** `speaks`: false in all processes of a job but the first. */
export function openProgress(stream: NodeJS.WriteStream = process.stderr, speaks = true): Progress {
  if (!speaks) return { note: () => {}, status: () => {}, end: () => {} };
  let open = false;
  const clear = (): void => {
    if (open) stream.write("\r\u001b[2K");
    open = false;
  };
  return {
    note(text) {
      clear();
      stream.write(`${text}\n`);
    },
    status(text, keep) {
      if (stream.isTTY) {
        clear();
        // Cut to the width of now: a line that wraps could not be rewritten.
        stream.write(keep ? `${text}\n` : text.slice(0, Math.max(10, (stream.columns ?? 80) - 1)));
        open = !keep;
      } else if (keep) stream.write(`${text}\n`);
    },
    end: clear,
  };
}

/** 75 -> "1m15s"; 7300 -> "2h01m". */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const two = (n: number): string => String(n).padStart(2, "0");
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${two(s % 60)}s`;
  return `${Math.floor(s / 3600)}h${two(Math.floor((s % 3600) / 60))}m`;
}

/** The largest memory that this process has held so far, in bytes. */
export const peakMemory = (): number => process.resourceUsage().maxRSS * 1024;
export const mebibytes = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
