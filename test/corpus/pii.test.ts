/** Personal data: what is found by shape and check digit, what looks like it and stays. */
import { describe, expect, it } from "vitest";
import { applySpans } from "../../src/corpus/document.js";
import { evaluatePii } from "../../src/corpus/pii.js";

const found = (text: string): string[] =>
  evaluatePii(text).spans.map((s) => `${s.reason.slice(4)} ${text.slice(s.start, s.end)}`);

describe("is found", () => {
  const cases: [string, string[]][] = [
    ["Write to <jane.doe+news@mail.uni-bonn.de>.", ["email jane.doe+news@mail.uni-bonn.de"]],
    ["a@b.co,x_y@sub.domain.org;", ["email a@b.co", "email x_y@sub.domain.org"]],
    ["from 8.8.8.8 to 151.101.1.69.", ["ip 8.8.8.8", "ip 151.101.1.69"]],
    ["see 2a00:1450:4001:81b::200e today", ["ip 2a00:1450:4001:81b::200e"]],
    ["Call +49 30 901820 or +86-10-12345678", ["phone +49 30 901820", "phone +86-10-12345678"]],
    ["(212) 736-5000, 415.555.2671", ["phone (212) 736-5000", "phone 415.555.2671"]],
    ["手机：13812345678，座机 010-12345678。", ["phone 13812345678", "phone 010-12345678"]],
    ["身份证11010519491231002X，", ["id 11010519491231002X"]],
    ["SSN 078-05-1120", ["id 078-05-1120"]],
    ["card 4111 1111 1111 1111, 378282246310005", ["card 4111 1111 1111 1111", "card 378282246310005"]],
    ["IBAN DE89 3704 0044 0532 0130 00.", ["iban DE89 3704 0044 0532 0130 00"]],
    ["ES91 2100 0418 4502 0005 1332 BIC CAIXESBB", ["iban ES91 2100 0418 4502 0005 1332"]],
    ["BE68 5390 0754 7034 BIC X, AT611904300234573201 AND", ["iban BE68 5390 0754 7034", "iban AT611904300234573201"]],
    ["MA72 0071 1111 1111 1111 1111 1111 AND", ["iban MA72 0071 1111 1111 1111 1111 1111"]],
    ["from 192.0.78.24, not 192.0.2.1 or 192.0.0.8", ["ip 192.0.78.24"]],
    [
      "anna@müller.de, jürgen.groß@web.de, анна@почта.рф",
      ["email anna@müller.de", "email jürgen.groß@web.de", "email анна@почта.рф"],
    ],
    ["邮箱anna@mail.com或者", ["email anna@mail.com"]],
  ];
  for (const [text, expected] of cases) it(text, () => expect(found(text)).toEqual(expected));
});

describe("stays", () => {
  for (const text of [
    "on 2024-01-02 10:11:12, pages 100-200",
    "email@example.com, me@localhost, @user, a@b",
    "logo@2x.png, icons/menu@3x.JPG",
    "192.168.0.1, 127.0.0.1, 10.1.2.3, 256.1.1.1, version 1.2.3.4, v4.0.30319.1",
    "12:30:45, fe80::1, ::1, std::vector, a::b::c",
    "3.14159265358979, 1,234,567,890, 1000000000000",
    "order 4111 1111 1111 1112 and ISBN 978-3-16-148410-0",
    "id 110105194912310021 (wrong check digit)",
    "000-12-3456, 666-12-3456, 912-34-5678",
    "DE89 3704 0044 0532 0130 01",
    "sha 0123456789abcdef0123456789abcdef, 555-1234",
    "人口 1412360000，面积9600000",
  ])
    it(text, () => expect(found(text)).toEqual([]));
});

it("is replaced, and what replaces it is not found again", () => {
  const text = "a@b.org 8.8.8.8 +4930901820 078-05-1120 4111111111111111 DE89370400440532013000";
  const { spans, findings } = evaluatePii(text);
  const clean = applySpans(text, spans);
  expect(clean).toBe("email@example.com 192.0.2.1 +1-555-0100 000000000000000000 0000000000000000 XX00000000000000");
  expect(findings.map((f) => [f.rule, f.value, f.verdict])).toEqual(
    ["email", "phone", "ip", "id", "card", "iban"].map((k) => [`pii.${k}`, 1, "edit"]),
  );
  expect(applySpans(text, evaluatePii(text, ["email"], { email: "<mail>" }).spans).startsWith("<mail> 8.8.8.8")).toBe(
    true,
  );
  // The telephone number reserved for fiction has the shape of one: replacing again changes nothing.
  expect(applySpans(clean, evaluatePii(clean).spans)).toBe(clean);
});

it("takes hostile text in time", () => {
  const start = performance.now();
  for (const text of [
    "",
    "\0\ud800",
    "@".repeat(300_000),
    "1".repeat(2_000_000),
    "1-".repeat(500_000),
    "a.".repeat(500_000),
    "::".repeat(300_000),
    `${"x".repeat(2_000_000)}@`,
  ])
    evaluatePii(text);
  expect(performance.now() - start).toBeLessThan(20_000);
});
