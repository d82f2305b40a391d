/** What differs between two texts, line by line: a shortest edit script (Myers 1986, "An O(ND) difference algorithm"). */

export interface Change {
  /** "-": only in the first text, "+": only in the second; "=": how many lines are the same in between. */
  kind: "-" | "+" | "=";
  text: string;
}

/** Texts that differ in more than this are told apart by what only one of them has, out of order. */
const MAX_EDITS = 1000;

export function diffLines(first: string, second: string): Change[] {
  const [a, b] = [first.split("\n"), second.split("\n")];
  const trace: Int32Array[] = [];
  const v = new Int32Array(2 * MAX_EDITS + 3);
  const middle = MAX_EDITS + 1;
  for (let d = 0; d <= MAX_EDITS; d++) {
    trace.push(v.slice(middle - d - 1, middle + d + 2));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && v[middle + k - 1] < v[middle + k + 1]);
      let x = down ? v[middle + k + 1] : v[middle + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      v[middle + k] = x;
      if (x >= a.length && x - k >= b.length) return compact(backtrack(a, b, trace));
    }
  }
  const [inA, inB] = [new Set(a), new Set(b)];
  return compact([
    ...a.filter((l) => !inB.has(l)).map((text) => ({ kind: "-" as const, text })),
    ...b.filter((l) => !inA.has(l)).map((text) => ({ kind: "+" as const, text })),
  ]);
}

function backtrack(a: readonly string[], b: readonly string[], trace: readonly Int32Array[]): Change[] {
  const changes: Change[] = [];
  let x = a.length;
  let y = b.length;
  for (let d = trace.length - 1; d >= 0; d--) {
    // trace[d] holds diagonals -d-1 .. d+1 as they were before step d.
    const at = (k: number): number => trace[d][k + d + 1];
    const k = x - y;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const before = down ? k + 1 : k - 1;
    const startX = d === 0 ? 0 : at(before);
    const startY = d === 0 ? 0 : startX - before;
    while (x > startX && y > startY && a[x - 1] === b[y - 1]) {
      changes.push({ kind: "=", text: a[--x] });
      y--;
    }
    if (d === 0) break;
    if (down) changes.push({ kind: "+", text: b[--y] });
    else changes.push({ kind: "-", text: a[--x] });
  }
  return changes.reverse();
}

/** Runs of equal lines become their number. */
function compact(changes: readonly Change[]): Change[] {
  const out: Change[] = [];
  let same = 0;
  const flush = (): void => {
    if (same > 0) out.push({ kind: "=", text: String(same) });
    same = 0;
  };
  for (const change of changes) {
    if (change.kind === "=") same++;
    else {
      flush();
      out.push(change);
    }
  }
  flush();
  return out;
}
