/**
 * Which script a text is written in, and which languages of lid.176 use it. A model of letter sequences errs on short and on
 * capital text, even across scripts (Lao taken for English); the script never does.
 */

interface Script {
  pattern: RegExp;
  /** Codes as lid.176 has them; the first is by far the most frequent. */
  languages: ReadonlySet<string>;
}

const script = (name: string, languages: string): [string, Script] => [
  name,
  { pattern: new RegExp(`\\p{Script=${name}}`, "u"), languages: new Set(languages.split(" ")) },
];

const SCRIPTS = new Map<string, Script>([
  script("Han", "zh yue wuu"),
  script("Hangul", "ko"),
  script(
    "Cyrillic",
    "ru uk bg sr be mk kk mn ky tg tt ba ce cv os kv myv mhr mrj sah av krc xal lez tyv bxr rue sh bs",
  ),
  script("Arabic", "ar fa ur ps ckb sd ug azb mzn pnb arz ku uz"),
  script("Devanagari", "hi mr ne sa new mai bh gom dty"),
  script("Bengali", "bn as bpy"),
  script("Hebrew", "he yi"),
  script("Greek", "el"),
  script("Armenian", "hy"),
  script("Georgian", "ka xmf"),
  script("Thai", "th"),
  script("Lao", "lo"),
  script("Khmer", "km"),
  script("Myanmar", "my"),
  script("Tibetan", "bo"),
  script("Ethiopic", "am"),
  script("Tamil", "ta"),
  script("Telugu", "te"),
  script("Kannada", "kn"),
  script("Malayalam", "ml"),
  script("Gujarati", "gu"),
  script("Gurmukhi", "pa"),
  script("Oriya", "or"),
  script("Sinhala", "si"),
  script("Thaana", "dv"),
]);
const JAPANESE = new Set(["ja"]);
const ELSEWHERE = new Set([...SCRIPTS.values()].flatMap((s) => [...s.languages]).concat("ja"));
/** Languages of another script that are written in Latin letters too. */
for (const both of ["uz", "tt", "ku", "sh", "bs", "sr", "kk", "tg", "av", "ug"]) ELSEWHERE.delete(both);

/** What the identifier can answer: the labels of lid.176, and none of them. */
const LABELS = `
  af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de
  diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo
  io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms
  mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn
  sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf
  yi yo yue zh und`;
export const LANGUAGES: ReadonlySet<string> = new Set(LABELS.trim().split(/\s+/));

/** Number of each UTF-16 unit's script: 0 no letter, 1 Latin and all others, 2 kana, 3 and on as in SCRIPTS. */
let table: Uint8Array | undefined;
const names = [...SCRIPTS.keys()];

function scripts(): Uint8Array {
  if (table) return table;
  table = new Uint8Array(65536);
  for (let unit = 0; unit < 65536; unit++) {
    if (unit >= 0xd800 && unit < 0xe000) continue;
    const char = String.fromCharCode(unit);
    if (!/\p{L}/u.test(char)) continue;
    const found = names.findIndex((name) => SCRIPTS.get(name)!.pattern.test(char));
    table[unit] = /[\p{Script=Hiragana}\p{Script=Katakana}]/u.test(char) ? 2 : found < 0 ? 1 : found + 3;
  }
  return table;
}

export interface Written {
  /** Share of the letters that are in the script, 0 to 1. */
  share: number;
  /** The language to take when no prediction fits; undefined for Latin and scripts that are not listed. */
  usual: string | undefined;
  fits(language: string): boolean;
}

/** The script of most letters of a text; undefined when there is no letter. Kana among Chinese characters is Japanese. */
export function scriptOf(text: string): Written | undefined {
  const of = scripts();
  const counts = new Uint32Array(names.length + 3);
  for (let i = 0; i < text.length; i++) counts[of[text.charCodeAt(i)]]++;
  counts[0] = 0;
  const letters = counts.reduce((sum, n) => sum + n, 0);
  if (letters === 0) return undefined;
  const [kana, han] = [counts[2], counts[3]];
  if (kana * 20 > han && kana + han > letters / 2)
    return { share: (kana + han) / letters, usual: "ja", fits: (l) => JAPANESE.has(l) };
  const most = counts.indexOf(Math.max(...counts));
  const share = counts[most] / letters;
  if (most < 3) return { share, usual: undefined, fits: (l) => !ELSEWHERE.has(l) };
  // A word or two of Chinese characters may be either.
  const { languages } = SCRIPTS.get(names[most - 3])!;
  return {
    share,
    usual: languages.values().next().value,
    fits: (l) => languages.has(l) || (most === 3 && han < 4 && l === "ja"),
  };
}
