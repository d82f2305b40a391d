/** The engine itself: instruction sets, the thread pool, memory and mapped files. */
import { spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test, vi } from "vitest";
import { EngineError, offeredIsas, openCpu } from "../../src/device/cpu.js";
import { F32 } from "../../src/device/device.js";
import { openTextKernels } from "../../src/device/text.js";

test("portable is always offered, last, and every offered engine says its own name", () => {
  const isas = offeredIsas();
  expect(isas.at(-1)).toBe("portable");
  for (const isa of isas) expect(openCpu({ isa }).isa).toBe(isa);
});

test("an instruction set that is not offered is refused by name, with those that are", () => {
  expect(() => openCpu({ isa: "vax" })).toThrow(EngineError);
  expect(() => openCpu({ isa: "vax" })).toThrow(/"vax" is not offered.*portable/);
});

test("LYCEUM_ISA is read alike by the engine and by the text kernels", () => {
  try {
    vi.stubEnv("LYCEUM_ISA", "vax");
    for (const open of [openCpu, openTextKernels]) expect(() => open()).toThrow(/"vax" is not offered.*portable/);
    vi.stubEnv("LYCEUM_ISA", "");
    for (const open of [openCpu, openTextKernels]) open();
  } finally {
    vi.unstubAllEnvs();
  }
});

test("the pool can be started again with another number of threads, many times", () => {
  const n = 100_000;
  for (const threads of [1, 4, 2, 7, 1, 3, 3]) {
    const device = openCpu({ isa: "portable", threads });
    expect(device.threads).toBe(threads);
    const p = device.alloc(n * 4);
    for (let i = 0; i < 20; i++) {
      device.fill(p, i, n, F32);
      expect(device.sumSquares(p, n, F32)).toBe(i * i * n);
    }
    device.free(p, n * 4);
  }
});

test("each piece of work is done once, whatever the number of threads; also of more pieces than a part can count", () => {
  for (const [V, threads] of [
    [2 ** 20 + 3, 3],
    [2 ** 20 - 1, 2],
    [7, 5],
  ]) {
    const device = openCpu({ isa: "portable", threads });
    const [ids, dout, sum] = [device.alloc(V * 4), device.alloc(V * 4), device.alloc(V * 4)];
    device.i32(ids, V).set(Int32Array.from({ length: V }, (_, i) => i));
    device.fill(dout, 1, V, F32);
    for (let round = 1; round <= 3; round++) {
      device.embeddingBackward(ids, dout, sum, V, 1, V, F32); // adds a row of dout to a row of the sum, row by row
      expect(device.f32(sum, V).every((x) => x === round)).toBe(true);
    }
    for (const p of [ids, dout, sum]) device.free(p, V * 4);
  }
});

test("two instruction sets side by side have pools of their own", () => {
  const [n, isas] = [50_000, offeredIsas()];
  const [a, b] = [openCpu({ isa: isas[0], threads: 2 }), openCpu({ isa: "portable", threads: 3 })];
  const [p, q] = [a.alloc(n * 4), b.alloc(n * 4)];
  for (let i = 1; i < 10; i++) {
    a.fill(p, i, n, F32);
    b.add(p, p, q, n, F32);
    expect(a.sumSquares(q, n, F32)).toBe(4 * i * i * n);
  }
  a.free(p, n * 4);
  b.free(q, n * 4);
});

test("memory comes zeroed and on a cache line; more than there is, is refused with what to do", () => {
  const device = openCpu();
  for (const bytes of [1, 100, 5 << 20]) {
    const p = device.alloc(bytes);
    expect(p % 64).toBe(0);
    expect(device.bytes(p, bytes).every((x) => x === 0)).toBe(true);
    device.free(p, bytes);
  }
  expect(() => device.alloc(2 ** 52)).toThrow(/MiB could not be allocated; this machine has \d+. Use a smaller/);
  expect(() => device.alloc(4 * totalmem())).toThrow(/could not be allocated/); // which the system would promise
});

test("a mapped file is its bytes; one that is missing or empty is refused by name", () => {
  const dir = mkdtempSync(join(tmpdir(), "lyceum-engine-"));
  try {
    const device = openCpu();
    const path = join(dir, "values 值.bin");
    writeFileSync(path, "seven bytes, or more");
    const { ptr, bytes } = device.mapFile(path);
    expect(Buffer.from(device.bytes(ptr, bytes)).toString()).toBe("seven bytes, or more");
    device.unmapFile(ptr, bytes);
    writeFileSync(path, "");
    expect(() => device.mapFile(path)).toThrow(/values 值.bin cannot be opened, or is empty/);
    expect(() => device.mapFile(join(dir, "missing"))).toThrow(/missing cannot be opened/);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test.skipIf(process.arch !== "x64")(
  "the build tells why a library is left out, and leaves none of older sources; a name that is none is refused",
  () => {
    const dir = mkdtempSync(join(tmpdir(), "lyceum-build-"));
    const native = fileURLToPath(new URL("../../native/", import.meta.url));
    mkdirSync(`${dir}/native/text`, { recursive: true });
    mkdirSync(`${dir}/native/build`);
    copyFileSync(`${native}build.mjs`, `${dir}/native/build.mjs`);
    writeFileSync(`${dir}/native/engine.c`, "");
    // A compiler that offers all instruction sets but AMX, fails with AVX2, and makes no file for plain AVX-512.
    writeFileSync(
      `${dir}/cc`,
      `#!/bin/sh
case "$*" in *mamx-tile*fsyntax-only*) exit 1;; *fsyntax-only*) exit 0;; *LY_ISA_AVX2*) echo "oh dear" >&2; exit 3;; *LY_ISA_AVX512=*) exit 0;; esac
while [ $# -gt 1 ]; do if [ "$1" = -o ]; then echo library > "$2"; fi; shift; done
`,
      { mode: 0o755 },
    );
    const old = ["avx2", "avx512", "amx"].map((isa) => `${dir}/native/build/lyceum-${isa}.so`);
    for (const path of old) {
      writeFileSync(path, "of older sources");
      utimesSync(path, 1, 1);
    }
    const build = (only: string) =>
      spawnSync(process.execPath, [`${dir}/native/build.mjs`], {
        encoding: "utf8",
        env: { ...process.env, CC: `${dir}/cc`, LYCEUM_ISA_BUILD: only },
      });
    const mistaken = build("prtable");
    expect(mistaken.status).toBe(2);
    expect(mistaken.stderr).toMatch(/LYCEUM_ISA_BUILD names "prtable"; for this processor there are portable/);
    expect(existsSync(old[0])).toBe(true);
    if (process.arch === "x64") {
      const { stderr, status } = build("");
      expect(status).toBe(0);
      expect(stderr).toContain("oh dear");
      expect(stderr).toMatch(/Left out: avx2 \(\S+ ended with 3; its messages stand above\)/);
      expect(stderr).toMatch(/Left out: avx512 \(\S+ made no file\)/);
      expect(stderr).toMatch(/Left out: amx \(\S+ does not offer it\)/);
      const built = ["lyceum-avx512bf16.so", "lyceum-portable.so"];
      expect(readdirSync(`${dir}/native/build`).sort()).toEqual(built);
      utimesSync(`${dir}/native/build/${built[0]}`, 1, 1);
      expect(build("portable").status).toBe(0);
      expect(readdirSync(`${dir}/native/build`)).toEqual([built[1]]);
    }
    rmSync(dir, { recursive: true });
  },
);
