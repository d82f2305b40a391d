/** Mixtures of instruction types: in which shares they are drawn, deterministically, and what was drawn. */
import { shuffled } from "../corpus/shards.js";
import { UserError } from "../run/errors.js";

/** The shares of InstructGPT's prompts (Ouyang et al. 2022, table 1), as the notes give them; in percent. */
export const INSTRUCTGPT: Record<string, { share: number; chinese: string }> = {
  generation: { share: 45.6, chinese: "文本生成" },
  open_qa: { share: 12.4, chinese: "开放域问答" },
  brainstorming: { share: 11.2, chinese: "头脑风暴" },
  chat: { share: 8.4, chinese: "聊天" },
  rewrite: { share: 6.6, chinese: "文本转写" },
  summarization: { share: 4.2, chinese: "文本总结" },
  classification: { share: 3.5, chinese: "文本分类" },
  other: { share: 3.5, chinese: "其他" },
  closed_qa: { share: 2.6, chinese: "特定域问答" },
  extract: { share: 1.9, chinese: "文本抽取" },
};

export interface MixtureRow {
  type: string;
  wanted: number;
  drawn: number;
  /** Different records of this type, and how often the average one was drawn. */
  records: number;
  repeats: number;
}

/**
 * Record numbers of an epoch of types.length draws: type by its weight, record within its type by a shuffle, both
 * functions of (seed, epoch). Types without a weight are left out; weights of types that no record has are shared by the others.
 */
export function drawMixture(
  types: readonly string[],
  weights: Readonly<Record<string, number>>,
  seed: number,
  epoch: number,
): { order: number[]; report: MixtureRow[] } {
  const byType = new Map<string, number[]>();
  types.forEach((type, i) => {
    byType.set(type, [...(byType.get(type) ?? []), i]);
  });
  const present = Object.entries(weights).filter(([type, w]) => w > 0 && byType.has(type));
  const total = present.reduce((n, [, w]) => n + w, 0);
  if (total === 0)
    throw new UserError(
      `data.mixture gives weights to ${Object.keys(weights).join(", ")}, but the records' types are ${[...byType.keys()].join(", ")}.`,
      2,
    );
  // Largest remainder: the counts of an epoch are exact, not only in expectation.
  const exact = present.map(([type, w]) => ({
    type,
    wanted: w / total,
    count: Math.floor((w / total) * types.length),
  }));
  let left = types.length - exact.reduce((n, e) => n + e.count, 0);
  const byRemainder = [...exact].sort((a, b) => fraction(b.wanted * types.length) - fraction(a.wanted * types.length));
  for (const entry of byRemainder) if (left-- > 0) entry.count++;
  const draws = exact.flatMap(({ type, count }) => {
    const own = byType.get(type)!;
    return Array.from(
      { length: count },
      (_, i) => own[shuffled(i % own.length, own.length, seed, epoch * 1000 + Math.floor(i / own.length))],
    );
  });
  const order = draws.map((_, i) => draws[shuffled(i, draws.length, seed + 1, epoch)]);
  const report = exact.map(({ type, wanted, count }): MixtureRow => {
    const records = byType.get(type)!.length;
    return { type, wanted, drawn: count / types.length, records, repeats: count / records };
  });
  return { order, report };
}
const fraction = (x: number): number => x - Math.floor(x);

/** Weights from the config: the preset, or a table whose keys may also be the Chinese names of the notes. */
export function mixtureWeights(setting: "instructgpt" | Readonly<Record<string, number>>): Record<string, number> {
  const english = new Map(Object.entries(INSTRUCTGPT).map(([key, { chinese }]) => [chinese, key]));
  if (setting === "instructgpt")
    return Object.fromEntries(Object.entries(INSTRUCTGPT).map(([key, { share }]) => [key, share]));
  return Object.fromEntries(Object.entries(setting).map(([key, w]) => [english.get(key) ?? key, w]));
}
/** A record's type under the name that weights use. */
export function canonicalType(type: string | undefined): string {
  const found = Object.entries(INSTRUCTGPT).find(([, { chinese }]) => chinese === type);
  return found?.[0] ?? type ?? "other";
}
