// The table of countries the atlas is made from, and the facts of one country in one language.
import { readFileSync } from "node:fs";

const regionZh = {
  Africa: "非洲",
  Asia: "亚洲",
  Europe: "欧洲",
  "North America": "北美洲",
  "South America": "南美洲",
  Oceania: "大洋洲",
};

/** The fields that are asked for. */
export const fields = ["capital", "region", "currency"];

/**
 * Reads countries.tsv: the 193 members of the United Nations and Vatican City. `name` carries its article ("the Gambia").
 * @returns {Array<{iso: string, factbook: string, currencyCode: string, en: Record<string, string>, zh: Record<string, string>}>}
 */
export function readCountries(url = new URL("countries.tsv", import.meta.url)) {
  const [head, ...lines] = readFileSync(url, "utf8").trimEnd().split("\n");
  const keys = head.split("\t");
  return lines.map((line, index) => {
    const cells = line.split("\t");
    if (cells.length !== keys.length || cells.includes("")) {
      throw new Error(
        `countries.tsv:${index + 2}: expected ${keys.length} filled cells, found ${cells.length}: ${line}`,
      );
    }
    const row = Object.fromEntries(keys.map((key, i) => [key, cells[i]]));
    if (!(row.region in regionZh)) throw new Error(`countries.tsv:${index + 2}: unknown region "${row.region}"`);
    return {
      iso: row.iso,
      factbook: row.factbook,
      currencyCode: row.currencyCode,
      en: { name: row.name, capital: row.capital, region: row.region, currency: row.currency },
      zh: { name: row.nameZh, capital: row.capitalZh, region: regionZh[row.region], currency: row.currencyZh },
    };
  });
}
