/**
 * Personal data: e-mail addresses, telephone numbers, IP addresses, and numbers that identify a person or an account. Found by their
 * shape and, where there is one, by their check digit, and replaced (as datatrove's PIIFormatter does for e-mail and IP).
 */
import { isIPv4, isIPv6 } from "node:net";
import type { Finding, Span } from "./document.js";

export const PII_KINDS = ["email", "phone", "ip", "id", "card", "iban"] as const;
export type PiiKind = (typeof PII_KINDS)[number];

/** Things of the same shape that are nobody's: RFC 2606 and 5737 names and addresses, numbers reserved for fiction, zeros. */
export const PII_REPLACEMENTS: Record<PiiKind, string> = {
  email: "email@example.com",
  phone: "+1-555-0100",
  ip: "192.0.2.1",
  id: "000000000000000000",
  card: "0000000000000000",
  iban: "XX00000000000000",
};

interface Found {
  start: number;
  end: number;
  kind: PiiKind;
}

/** Latin, Greek and Cyrillic letters. Of scripts without spaces none: an address may stand among them. */
const LETTERS = "A-Za-z\\u00c0-\\u00d6\\u00d8-\\u00f6\\u00f8-\\u024f\\u0300-\\u036f\\u0370-\\u052f";
const LOCAL = new RegExp(`[${LETTERS}0-9._%+-]`);
const DOMAIN = new RegExp(`[${LETTERS}0-9.-]`);
/** Labels, the last of letters only (RFC 1123; in letters as RFC 5890 allows them). */
const HOST = new RegExp(`^(?:[${LETTERS}0-9](?:[${LETTERS}0-9-]{0,61}[${LETTERS}0-9])?\\.)+[${LETTERS}]{2,24}$`);

/** logo@2x.png: no domain ends so. */
const PICTURE = /\.(?:png|jpe?g|gif|webp|svg|avif)$/i;

/** Grows an address to both sides of every @: a search by pattern would try each letter of a long line. */
function emails(text: string): Found[] {
  const found: Found[] = [];
  for (let at = text.indexOf("@"); at >= 0; at = text.indexOf("@", at + 1)) {
    let start = at;
    while (start > 0 && at - start < 64 && LOCAL.test(text[start - 1])) start--;
    while (start < at && text[start] === ".") start++;
    let end = at + 1;
    while (end < text.length && end - at < 254 && DOMAIN.test(text[end])) end++;
    while (end > at + 1 && /[.-]/.test(text[end - 1])) end--;
    const domain = text.slice(at + 1, end);
    if (start === at || !HOST.test(domain)) continue;
    if (PICTURE.test(domain)) continue;
    if (/^(?:[\w-]+\.)*example\.(?:com|org|net)$/i.test(domain)) continue;
    found.push({ start, end, kind: "email" });
  }
  return found;
}

/** Not private, local, reserved or for documentation (RFC 6890): those name no one. */
function isPublicIpv4(address: string): boolean {
  const [a, b, c] = address.split(".").map(Number);
  if (a === 0 || a === 10 || a === 127 || a >= 224) return false;
  if ((a === 172 && b >= 16 && b < 32) || (a === 192 && b === 168) || (a === 169 && b === 254)) return false;
  if (a === 100 && b >= 64 && b < 128) return false;
  return !(
    (a === 192 && b === 0 && (c === 0 || c === 2)) ||
    (a === 198 && b === 51 && c === 100) ||
    (a === 203 && b === 0 && c === 113)
  );
}

const IPV4 = /(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)/g;
const IPV6 = /(?<![\w:.])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:.]*[\w:])/g;

function addresses(text: string): Found[] {
  const found: Found[] = [];
  for (const m of text.matchAll(IPV4)) {
    // A version number looks the same.
    if (/(?:version|ver|v|release)[\s.:]*$/i.test(text.slice(Math.max(0, m.index - 10), m.index))) continue;
    if (isIPv4(m[0]) && isPublicIpv4(m[0])) found.push({ start: m.index, end: m.index + m[0].length, kind: "ip" });
  }
  if (text.includes("::") || /[0-9a-fA-F]:[0-9a-fA-F]{1,4}:/.test(text))
    for (const m of text.matchAll(IPV6)) {
      if (m[0].length < 6 || !isIPv6(m[0]) || /^(?:::|fe80|fc|fd|2001:db8)/i.test(m[0])) continue;
      found.push({ start: m.index, end: m.index + m[0].length, kind: "ip" });
    }
  return found;
}

/** Mod 11-2 of ISO 7064 (GB 11643-1999): the last of 18 places of a Chinese resident's number. */
function isResidentNumber(digits: string): boolean {
  const weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
  const sum = weights.reduce((s, w, i) => s + w * Number(digits[i]), 0);
  const [month, day] = [Number(digits.slice(10, 12)), Number(digits.slice(12, 14))];
  const dated = /^(?:18|19|20)/.test(digits.slice(6)) && month >= 1 && month <= 12 && day >= 1 && day <= 31;
  return dated && "10X98765432"[sum % 11] === digits[17].toUpperCase();
}

/** Luhn (ISO/IEC 7812-1). */
function isCard(digits: string): boolean {
  if (!/^(?:4|5[1-5]|2[2-7]|3[47]|6(?:011|5|2))/.test(digits) || /^(\d)\1*$/.test(digits)) return false;
  let sum = 0;
  for (let i = 0; i < digits.length; i++) {
    const d = Number(digits[digits.length - 1 - i]);
    sum += i % 2 === 0 ? d : d * 2 > 9 ? d * 2 - 9 : d * 2;
  }
  return sum % 10 === 0;
}

/**
 * Length of an IBAN by its first two letters (SWIFT's registry of ISO 13616, then countries that write such numbers and are not in it):
 * what follows one may look like more of it.
 */
const IBAN_LENGTHS = new Map(
  (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 " +
    "FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 " +
    "LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 " +
    "RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30 " +
    "AO25 BF28 BJ28 CF27 CG27 CI28 CM27 CV25 DZ26 GA27 GQ27 GW25 IR26 KM27 MA28 MG27 ML28 MZ25 NE28 SN28 TD27 TG28"
  )
    .split(" ")
    .map((entry) => [entry.slice(0, 2), Number(entry.slice(2))]),
);

/** Mod 97 (ISO 13616). */
function isIban(compact: string): boolean {
  let rest = 0;
  for (const c of compact.slice(4) + compact.slice(0, 4)) {
    const value = Number.parseInt(c, 36);
    rest = (rest * (value > 9 ? 100 : 10) + value) % 97;
  }
  return rest === 1;
}

/** A row of digits in groups, as numbers are written, also several with a space between; it may begin with + or a bracket. */
const NUMBER = /(?<![\w.+@/-])(?:\+|\()?\d(?:[ .()+\-\u2010-\u2015]{0,2}\d){6,60}[Xx]?(?![\w@]|[.-]\d)/g;
const IBAN = /(?<![A-Za-z0-9])([A-Z]{2})\d{2}(?= ?[A-Z0-9])/g;

/** Where the IBAN that begins at `start` ends, written together or in groups of four; -1 if none does. */
function endOfIban(text: string, start: number, length: number): number {
  let compact = "";
  let at = start;
  for (; compact.length < length; at++) {
    if (compact.length % 4 === 0 && text[at] === " " && text[at - 1] !== " ") continue;
    if (at >= text.length || !/[A-Z0-9]/.test(text[at])) return -1;
    compact += text[at];
  }
  return !/[A-Za-z0-9]/.test(text[at] ?? "") && isIban(compact) ? at : -1;
}

function kindOf(written: string): PiiKind | undefined {
  const digits = written.replace(/[^\dXx]/g, "");
  if (/^\d{17}[\dXx]$/.test(written) && isResidentNumber(written)) return "id";
  // Social security number: no area 000, 666 or 900 and above, no group 00, no serial 0000.
  if (/^(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}$/.test(written)) return "id";
  if (/^\d{4}[ -]?\d{4,6}[ -]?\d{4,5}(?:[ -]?\d{3,4})?$/.test(written) && digits.length >= 13 && isCard(digits))
    return "card";
  if (/^\+[1-9]/.test(written)) return digits.length >= 8 && digits.length <= 15 ? "phone" : undefined;
  if (/^(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}$/.test(written)) return "phone";
  // Chinese mobile and landline numbers.
  if (/^1[3-9]\d[ -]?\d{4}[ -]?\d{4}$/.test(written)) return "phone";
  if (/^\(?0\d{2,3}[)-] ?\d{7,8}$/.test(written)) return "phone";
  return undefined;
}

function numbers(text: string): Found[] {
  const found: Found[] = [];
  for (const m of text.matchAll(NUMBER)) {
    // Groups of one number and several numbers look the same: the longest row of groups that is a number counts.
    const groups = [...m[0].matchAll(/\S+/g)];
    for (let i = 0; i < groups.length; i++)
      for (let j = Math.min(groups.length, i + 8) - 1; j >= i; j--) {
        const end = groups[j].index + groups[j][0].length;
        const kind = kindOf(m[0].slice(groups[i].index, end));
        if (!kind) continue;
        found.push({ start: m.index + groups[i].index, end: m.index + end, kind });
        i = j;
        break;
      }
  }
  for (const { 1: country, index } of text.matchAll(IBAN)) {
    const length = IBAN_LENGTHS.get(country);
    const end = length === undefined ? -1 : endOfIban(text, index, length);
    if (end >= 0) found.push({ start: index, end, kind: "iban" });
  }
  return found;
}

/**
 * Spans to replace, and one finding (verdict edit) for every kind. `kinds` chooses; `replacements` overrides what is put in.
 * Offsets are UTF-16 units. Never throws.
 */
export function evaluatePii(
  text: string,
  kinds: readonly PiiKind[] = PII_KINDS,
  replacements: Partial<Record<PiiKind, string>> = {},
): { findings: Finding[]; spans: Span[] } {
  const found = [...emails(text), ...addresses(text), ...numbers(text)]
    .filter((f) => kinds.includes(f.kind))
    .sort((a, b) => a.start - b.start || b.end - a.end);
  const spans: Span[] = [];
  const counts = new Map<PiiKind, number>();
  for (const { start, end, kind } of found) {
    if (spans.length > 0 && start < spans[spans.length - 1].end) continue;
    spans.push({ start, end, reason: `pii.${kind}`, replacement: replacements[kind] ?? PII_REPLACEMENTS[kind] });
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  const findings = kinds.map((kind): Finding => {
    const value = counts.get(kind) ?? 0;
    return { stage: "pii", rule: `pii.${kind}`, value, threshold: 0, verdict: value > 0 ? "edit" : "pass" };
  });
  return { findings, spans };
}
