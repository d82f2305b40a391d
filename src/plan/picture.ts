/** A plan as an SVG picture: a bar of memory for each strategy against what a device has, and its speed beside it. */
import type { Report } from "./report.js";

const PARTS = [
  ["parameters", "#3b6fb6", "parameters"],
  ["gradients", "#e08a2e", "gradients"],
  ["optimizer", "#4c9a5f", "optimizer"],
  ["activations", "#b5495b", "activations or key-value cache"],
  ["buffers", "#8a8a8a", "buffers"],
] as const;
const [LEFT, BAR, RIGHT, ROW, TOP] = [150, 560, 250, 30, 92];

const escaped = (text: string): string => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const one = (x: number): string => x.toFixed(1);

export function reportSvg({ workload: w, cluster: c, plan }: Report): string {
  const rows = plan.planned;
  // Strategies that need many times what there is would press all others flat: their bars are cut.
  const widest = Math.min(3 * c.memory, Math.max(1.1 * c.memory, ...rows.map((p) => p.memory.total)));
  const x = (bytes: number): number => (Math.min(bytes, widest) / widest) * BAR;
  const height = TOP + rows.length * ROW + 40;
  const width = LEFT + BAR + RIGHT;
  const title = `${w.stage} of ${w.shape.name} on ${c.devices} x ${c.name}: memory of the fullest device`;
  const out = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="sans-serif" font-size="13" role="img">`,
    `<title>${escaped(title)}</title>`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    `<text x="16" y="28" font-size="16" font-weight="bold">${escaped(title)}</text>`,
  ];
  PARTS.forEach(([, colour, label], i) => {
    const at = 16 + [0, 110, 205, 300, 515][i];
    out.push(`<rect x="${at}" y="44" width="12" height="12" fill="${colour}"/>`);
    out.push(`<text x="${at + 18}" y="55">${label}</text>`);
  });
  rows.forEach((p, i) => {
    const y = TOP + i * ROW;
    const weight = p === plan.chosen ? ` font-weight="bold"` : "";
    out.push(`<text x="${LEFT - 10}" y="${y + 15}" text-anchor="end"${weight}>${escaped(p.strategy)}</text>`);
    let from = 0;
    for (const [key, colour] of PARTS) {
      const bytes = key === "activations" ? Math.max(p.memory.activations, p.memory.kvCache) : p.memory[key];
      const [a, b] = [x(from), x(from + bytes)];
      if (b > a)
        out.push(
          `<rect x="${one(LEFT + a)}" y="${y}" width="${one(b - a)}" height="20" fill="${colour}"><title>${key} ${one(bytes / 1e9)} GB</title></rect>`,
        );
      from += bytes;
    }
    const cut = from > widest ? " (cut)" : "";
    const speed = p.fits
      ? `${one(p.memory.total / 1e9)} GB, ${Math.round(p.time.tokensPerSecond)} tokens/s`
      : `${one(p.memory.total / 1e9)} GB, does not fit${cut}`;
    out.push(`<text x="${LEFT + BAR + 12}" y="${y + 15}"${weight} fill="${p.fits ? "#000" : "#a33"}">${speed}</text>`);
  });
  const limit = LEFT + x(c.memory);
  const bottom = TOP + rows.length * ROW;
  out.push(
    `<line x1="${one(limit)}" y1="${TOP - 8}" x2="${one(limit)}" y2="${bottom}" stroke="#000" stroke-dasharray="4 3"/>`,
    `<text x="${one(limit)}" y="${TOP - 12}" text-anchor="middle">${one(c.memory / 1e9)} GB</text>`,
    `<text x="${LEFT}" y="${bottom + 22}" fill="#555">bold: the cheapest that fits; batch ${w.globalBatch} x ${w.contextLength} tokens</text>`,
    "</svg>",
  );
  return `${out.join("\n")}\n`;
}
