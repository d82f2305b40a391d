/** Mixtures of instruction types: in which shares they are drawn, deterministically, and what was drawn. */
import { UserError } from "../run/errors.js";
import { shuffled, visited } from "../run/order.js";

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
  /** Share that the weights ask for; 0 for a type that they do not name: its records are left out. */
  wanted: number;
  /** Share of the epoch's draws. More than wanted where another type has no records. */
  drawn: number;
  /** Different records of this type, and how often the average one was drawn. */
  records: number;
  repeats: number;
}

/**
 * Record numbers of an epoch of types.length draws: type by its weight, record within its type by a shuffle, both
 * functions of (seed, epoch). A type's records are all drawn before any is drawn again, over epochs as well. Weights of
 * types that no record has fall to the others; records whose type has no weight are left out: the report tells both.
 * Throws UserError when a weight is not a number, is negative or names an unknown type, or when nothing would be drawn.
 */
export function drawMixture(
  types: readonly string[],
  weights: Readonly<Record<string, number>>,
  seed: number,
  epoch: number,
): { order: number[]; report: MixtureRow[] } {
  const byType = new Map<string, number[]>();
  for (const [i, type] of types.entries()) {
    const own = byType.get(type);
    if (own) own.push(i);
    else byType.set(type, [i]);
  }
  checkWeights(weights, byType);
  const total = Object.values(weights).reduce((n, w) => n + w, 0);
  const present = Object.entries(weights).filter(([type, w]) => w > 0 && byType.has(type));
  const presentTotal = present.reduce((n, [, w]) => n + w, 0);
  if (presentTotal === 0)
    throw new UserError(
      `data.mixture gives weights to ${Object.keys(weights).join(", ")}, but the records' types are ${[...byType.keys()].join(", ")}.`,
      2,
    );
  const counts = largestRemainder(
    present.map(([type, w]) => [type, (w / presentTotal) * types.length]),
    types.length,
  );
  const draws = [...counts].flatMap(([type, count]) => {
    const own = byType.get(type)!;
    return Array.from({ length: count }, (_, i) => own[visited(epoch * count + i, own.length, seed)]);
  });
  const order = draws.map((_, i) => draws[shuffled(i, draws.length, seed + 1, epoch)]);
  const all = new Set([...Object.keys(weights), ...byType.keys()]);
  const report = [...all].map((type): MixtureRow => {
    const records = byType.get(type)?.length ?? 0;
    const count = counts.get(type) ?? 0;
    const wanted = Object.hasOwn(weights, type) ? weights[type] / total : 0;
    return { type, wanted, drawn: count / types.length, records, repeats: records > 0 ? count / records : 0 };
  });
  return { order, report };
}

/** Whole counts with the given sum, each within one of its exact value (Hamilton's method; ties to the first). */
export function largestRemainder(exact: readonly [type: string, count: number][], sum: number): Map<string, number> {
  const counts = new Map(exact.map(([type, count]) => [type, Math.floor(count)]));
  let left = sum - [...counts.values()].reduce((n, c) => n + c, 0);
  const fraction = ([, count]: readonly [string, number]): number => count - Math.floor(count);
  for (const [type] of [...exact].sort((a, b) => fraction(b) - fraction(a)))
    if (left-- > 0) counts.set(type, counts.get(type)! + 1);
  return counts;
}

function checkWeights(weights: Readonly<Record<string, number>>, present: ReadonlyMap<string, unknown>): void {
  for (const [type, weight] of Object.entries(weights)) {
    if (!Number.isFinite(weight) || weight < 0)
      throw new UserError(`data.mixture: the weight of ${type} is ${weight}; it must be a number of at least 0.`, 2);
    if (present.has(type) || Object.hasOwn(INSTRUCTGPT, type)) continue;
    const own = [...present.keys()].filter((t) => !Object.hasOwn(INSTRUCTGPT, t));
    throw new UserError(
      `data.mixture: no record has the type "${type}". Known are ${Object.keys(INSTRUCTGPT).join(", ")}` +
        `${own.length > 0 ? `, and of these records ${own.join(", ")}` : ""}.`,
      2,
    );
  }
}

const ENGLISH = new Map(Object.entries(INSTRUCTGPT).map(([key, { chinese }]) => [chinese, key]));

/** Weights from the config: the preset, or a table whose keys may be spelled as records may spell their types. */
export function mixtureWeights(setting: "instructgpt" | Readonly<Record<string, number>>): Record<string, number> {
  if (setting === "instructgpt")
    return Object.fromEntries(Object.entries(INSTRUCTGPT).map(([key, { share }]) => [key, share]));
  const weights = new Map<string, number>();
  for (const [key, weight] of Object.entries(setting)) {
    const type = canonicalType(key);
    if (weights.has(type)) throw new UserError(`data.mixture names ${type} twice, once as "${key}".`, 2);
    weights.set(type, weight);
  }
  return Object.fromEntries(weights);
}

/** A record's type under the name that weights use: 开放域问答, Open QA and open-qa are open_qa; none is `other`. */
export function canonicalType(type: string | undefined): string {
  const name = (type ?? "").trim();
  if (name === "") return "other";
  const plain = name.toLowerCase().replace(/[\s-]+/g, "_");
  return ENGLISH.get(name) ?? (Object.hasOwn(INSTRUCTGPT, plain) ? plain : name);
}
