/** What lies around the text of a page and is not of it: by what an element is, what it is called, and how much of the page's prose it holds. */
import { type Facts, HEADINGS } from "./measure.js";
import type { PageKind } from "./page-kind.js";
import type { Element } from "./tree.js";

const UNTOUCHED = new Set(["body", "html", "#root"]);
const NEVER = new Set(["nav", "footer", "aside", "menu", "figcaption"]);
const NEVER_ROLES = new Set(
  "navigation banner contentinfo complementary search dialog alert alertdialog menu menubar toolbar tablist".split(" "),
);

export const linkDensity = (f: Facts): number => (f.length === 0 ? 0 : f.links / f.length);

/** Whether an element is hidden, or its kind or name says that it lies around the text. */
export function liesAround({ tag, hidden, role }: Element, names: Facts["names"]): boolean {
  if (tag === "a" || tag === "br" || UNTOUCHED.has(tag)) return false;
  if (hidden !== "" || NEVER.has(tag) || (role !== "" && NEVER_ROLES.has(role))) return true;
  if (tag === "article" || tag === "main" || HEADINGS.has(tag) || names.inside) return false;
  return names.around || names.beside;
}

/** Names of a surrounding that stand on so many elements that half of all prose is in them: the name of a card, say. */
export function misleadingNames(elements: readonly Element[], of: (e: Element) => Facts): Set<string> {
  const sums = new Map<string, number>();
  for (const element of elements) {
    const f = of(element);
    if (f.prose === 0 || !(f.names.around || f.names.beside)) continue;
    if (element.parent && of(element.parent).called === f.called) continue;
    sums.set(f.called, (sums.get(f.called) ?? 0) + f.prose);
  }
  const half = of(elements[0]).prose / 2;
  return new Set([...sums].flatMap(([called, prose]) => (prose > half ? [called] : [])));
}

/** Around the text, and not of it; unless half of all prose is in there, for then the name misleads. */
export function isAround(element: Element, f: Facts, all: Facts, strict: boolean, kind: PageKind): Facts["out"] {
  const { tag, hidden, role } = element;
  if (tag === "a" || tag === "br" || UNTOUCHED.has(tag)) return false;
  if (hidden === "attribute" || (f.names.gutter && f.others === 0)) return true;
  const unfolds = f.names.folded && !kind.article;
  if (hidden === "style" && !unfolds) return strict || f.prose < all.prose / 2;
  const named = strict && tag !== "article" && tag !== "main" && !HEADINGS.has(tag);
  if (named && f.names.comments && !kind.forum && all.prose - f.prose > 10) return true;
  if (f.prose > all.prose / 2) return false;
  if (NEVER.has(tag) || (hidden === "aria" && !unfolds) || (role !== "" && NEVER_ROLES.has(role))) return true;
  if (!named || f.names.inside) return false;
  if (f.names.around || (f.names.signature && !kind.reference)) return true;
  // A box of prose without links is a note when it stands inside the text.
  if (f.names.note && linkDensity(f) < 0.3) return "doubtful";
  return f.names.beside && ((f.prose > 5 || kind.reference) && linkDensity(f) < 0.15 ? "doubtful" : true);
}
