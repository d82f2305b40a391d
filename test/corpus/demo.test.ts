/** recipes/corpus-demo is what its script makes of the atlas as it is now. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { constants, gunzipSync } from "node:zlib";
import { afterAll, expect, it } from "vitest";

const fresh = mkdtempSync(join(tmpdir(), "lyceum-demo-"));
afterAll(() => rmSync(fresh, { recursive: true, force: true }));

/** The last record of the crawl is cut off, as that of a real one may be. */
const CUT = { finishFlush: constants.Z_SYNC_FLUSH };

it("makes the same bytes as are committed", () => {
  execFileSync(process.execPath, ["scripts/corpus-demo/make.mjs", fresh]);
  const names = (readdirSync(fresh, { recursive: true }) as string[]).filter((name) => /\.\w+$/.test(name)).sort();
  expect(names.length).toBeGreaterThan(60);
  expect(readdirSync("recipes/corpus-demo/pages").sort()).toEqual(readdirSync(join(fresh, "pages")).sort());
  for (const name of names) {
    const [made, committed] = [fresh, "recipes/corpus-demo"].map((dir) => readFileSync(join(dir, name)));
    // Another Node may pack the same records into other bytes.
    const bytes = (file: Buffer): Buffer => (name.endsWith(".gz") ? gunzipSync(file, CUT) : file);
    expect(bytes(made).equals(bytes(committed)), name).toBe(true);
  }
});
