// Judges replies to questions on capitals against the atlas's table: what alignment is asked to improve, and its
// independent judge. Right capital +1, wrong -1; a true word on where the country lies +1, a false one -1.
import { readCountries } from "../../scripts/atlas/table.mjs";

const countries = readCountries();
const regions = {
  en: [...new Set(countries.map((c) => c.en.region))],
  zh: [...new Set(countries.map((c) => c.zh.region))],
};

/** The country that a question names: the longest name in it ("Guinea-Bissau", not "Guinea"). */
function find(question) {
  let best;
  for (const country of countries)
    for (const language of ["en", "zh"]) {
      const name = country[language].name.replace(/^the /, "");
      if (question.includes(name) && name.length > (best?.name.length ?? 0)) best = { country, language, name };
    }
  return best;
}

export default function judge(question, reply) {
  const found = find(question);
  if (!found) throw new Error(`no country of the atlas is named in "${question}"`);
  const { capital, region } = found.country[found.language];
  // "South Africa" says nothing of where it lies, nor does "Central African Republic".
  const told = reply.replaceAll(found.name, "");
  const said = regions[found.language].filter((r) => told.includes(r));
  // "North America" is also in "South America and North America": only one region, and the right one, is true.
  const place = said.length === 0 ? 0 : said.length === 1 && said[0] === region ? 1 : -1;
  return (reply.includes(capital) ? 1 : -1) + place;
}
