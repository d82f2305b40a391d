/**
 * Regular expressions of tokenizer.json as JavaScript's. They are written for Oniguruma (Ruby syntax), where \s, ^, $ and
 * letters mean other things, quantifiers can be possessive and parts case-insensitive. What cannot be said is refused.
 */
import { UserError } from "../run/errors.js";
import { LETTER, NUMBER, SPACE } from "./unicode.js";

/** `source` with the flags g and v; the same matches as in Oniguruma. Throws a UserError that names what is not known. */
export function toRegExp(source: string): RegExp {
  const out = new Translator(source).translate();
  try {
    return new RegExp(out, "gv");
  } catch (error) {
    throw new UserError(`the expression ${source} cannot be read: ${(error as Error).message}`);
  }
}

/** How tokenizer.json names what is sought: an expression, or a text. */
export interface Pattern {
  Regex?: string;
  String?: string;
}
/** Throws a UserError that names the file, `path`. */
export function expressionOf(pattern: Pattern, path: string): RegExp {
  try {
    return toRegExp(sourceOf(pattern));
  } catch (error) {
    throw new UserError(`${path}: ${(error as Error).message}.`);
  }
}
/** As an expression, with what has a meaning there escaped. */
export const sourceOf = ({ Regex, String: literal }: Pattern): string =>
  Regex ?? literal!.replace(/[^\p{L}\p{N}\s]/gu, "\\$&");

/** Oniguruma counts six superscripts and fractions of Latin-1 as parts of words. */
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xB2\\xB3\\xB9\\xBC-\\xBE";
/** Escapes that stand for a set of characters, in a class or alone. */
const SETS: Record<string, string> = {
  s: `[${SPACE}]`,
  S: `[^${SPACE}]`,
  d: "\\p{Nd}",
  D: "\\P{Nd}",
  w: `[${WORD}]`,
  W: `[^${WORD}]`,
  h: "[0-9a-fA-F]",
  H: "[^0-9a-fA-F]",
};
const CONTROLS: Record<string, string> = { n: "\\n", r: "\\r", t: "\\t", f: "\\f", v: "\\v", a: "\\x07", e: "\\x1b" };
/** Places: start and end of the text. */
const PLACES: Record<string, string> = { A: "(?<![^])", z: "(?![^])", Z: "(?!\\n?[^])" };
/** Characters beyond A-Z that are case variants of a letter a-z. */
const VARIANTS: Record<string, string> = { s: "\\u017f", k: "\\u212a" };

class Translator {
  private at = 0;
  private insensitive = false;
  private atomics = 0;

  constructor(private readonly source: string) {}

  translate(): string {
    const out = this.alternatives();
    if (this.at < this.source.length) this.refuse("a closing bracket without an opening one");
    return out;
  }

  private refuse(what: string): never {
    throw new UserError(
      `the expression ${this.source} has ${what} (at character ${this.at + 1}), which is not known here`,
    );
  }
  private take(text: string): boolean {
    if (!this.source.startsWith(text, this.at)) return false;
    this.at += text.length;
    return true;
  }
  private match(sticky: RegExp): RegExpExecArray | null {
    sticky.lastIndex = this.at;
    const found = sticky.exec(this.source);
    if (found) this.at += found[0].length;
    return found;
  }

  private alternatives(): string {
    let out = "";
    while (this.at < this.source.length && this.source[this.at] !== ")") {
      if (this.take("|")) out += "|";
      else out += this.quantified(this.atom());
    }
    return out;
  }

  private quantified(atom: string): string {
    let out = atom;
    for (;;) {
      const found = this.match(/[?*+]|\{(\d*)(,?)(\d*)\}/y);
      if (!found) return out;
      const [all, least, comma, most] = found;
      const isRange = all.length > 1;
      if (isRange && !least && !most) this.refuse(`"${all}"`);
      const times = isRange ? `{${least || 0}${comma}${most}}` : all;
      if (this.take("?")) out = `(?:${out}${times}?)`;
      else if (!isRange && this.take("+")) out = this.atomic(out + times);
      else out = `(?:${out}${times})`;
    }
  }

  /** What matched is never given back: a lookahead is not entered twice. */
  private atomic(inside: string): string {
    const name = `atomic${++this.atomics}`;
    return `(?:(?=(?<${name}>${inside}))\\k<${name}>)`;
  }

  private atom(): string {
    if (this.take("(")) return this.group();
    if (this.take("[")) return this.characterClass();
    if (this.take(".")) return "[^\\n]";
    if (this.take("^")) return "(?<![^\\n])";
    if (this.take("$")) return "(?![^\\n])";
    if (this.take("\\")) return this.escape(false);
    return this.literal(this.character(), false);
  }

  private group(): string {
    const opening = this.match(/\?(?:[:=!>]|<[=!]|i:|-i:)/y)?.[0] ?? "";
    if (opening === "" && this.source[this.at] === "?")
      this.refuse(`the group "(${this.source.slice(this.at, this.at + 3)}"`);
    const before = this.insensitive;
    if (opening.endsWith("i:")) this.insensitive = opening === "?i:";
    const inside = this.alternatives();
    this.insensitive = before;
    if (!this.take(")")) this.refuse("a group without its end");
    if (opening === "?>") return this.atomic(inside);
    return ["", "?i:", "?-i:"].includes(opening) ? `(?:${inside})` : `(${opening}${inside})`;
  }

  private character(): string {
    const c = String.fromCodePoint(this.source.codePointAt(this.at)!);
    this.at += c.length;
    return c;
  }

  /** A character by its number, with its case variants where case does not matter. */
  private literal(c: string, inClass: boolean): string {
    const number = (x: string): string => `\\u{${x.codePointAt(0)!.toString(16)}}`;
    if (!this.insensitive || c.toLowerCase() === c.toUpperCase()) return number(c);
    if (!/^[a-zA-Z]$/.test(c)) this.refuse(`"${c}" in any case`);
    const lower = c.toLowerCase();
    const all = number(lower) + number(c.toUpperCase()) + (VARIANTS[lower] ?? "");
    return inClass ? all : `[${all}]`;
  }

  private escape(inClass: boolean): string {
    const property = this.match(/([pP])(?:\{(\^?)([\w =]+)\}|([A-Z]))/y);
    if (property) return this.property(property[3] ?? property[4], (property[1] === "P") !== (property[2] === "^"));
    const code = this.match(/x\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})/y);
    if (code) return this.literal(String.fromCodePoint(Number.parseInt(code[1] ?? code[2] ?? code[3], 16)), inClass);
    const c = this.character();
    if (SETS[c]) return SETS[c];
    if (CONTROLS[c]) return CONTROLS[c];
    if (!inClass && PLACES[c]) return PLACES[c];
    if (/[\p{L}\p{N}]/u.test(c)) this.refuse(`"\\${c}"`);
    return this.literal(c, inClass);
  }

  private property(name: string, negated: boolean): string {
    const known: Record<string, string> = { L: LETTER, Letter: LETTER, N: NUMBER, Number: NUMBER };
    if (known[name]) return `[${negated ? "^" : ""}${known[name]}]`;
    for (const spelled of [name, `Script=${name}`])
      try {
        const out = `\\${negated ? "P" : "p"}{${spelled}}`;
        new RegExp(out, "v");
        return out;
      } catch {}
    return this.refuse(`the property "${name}"`);
  }

  private characterClass(): string {
    let out = this.take("^") ? "[^" : "[";
    for (let first = true; ; first = false) {
      if (this.at >= this.source.length) this.refuse("a class without its end");
      if (!first && this.take("]")) return `${out}]`;
      if (this.match(/\[:/y)) this.refuse('a "[:name:]"');
      if (this.take("[")) out += this.characterClass();
      else if (this.take("&&")) out += "&&";
      else out += this.classItem();
    }
  }

  /** One character, one set, or a range. */
  private classItem(): string {
    const start = this.at;
    const from = this.take("\\") ? this.escape(true) : this.literal(this.character(), true);
    if (!this.match(/-(?=[^\]])/y)) return from;
    if (!/^\\(u\{[0-9a-f]+\}|[nrtfv]|x[0-9a-f]{2})$/.test(from)) {
      if (!this.insensitive || !/^[a-zA-Z]-[a-zA-Z]/.test(this.source.slice(start))) return `${from}\\-`;
      // Any case: letters one by one.
      const last = this.character();
      const span = [...Array(last.charCodeAt(0) - this.source.charCodeAt(start) + 1).keys()];
      return span.map((i) => this.literal(String.fromCharCode(this.source.charCodeAt(start) + i), true)).join("");
    }
    return `${from}-${this.take("\\") ? this.escape(true) : this.literal(this.character(), true)}`;
  }
}
