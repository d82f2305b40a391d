/** Advertisements and link farms: the share of a text that is links, and how thick promotion stands in it. */
import type { Finding } from "./document.js";
import { countOf, ratio } from "./heuristics/measure.js";
import { judge, type Rule, type Signals, type Thresholds } from "./heuristics/rules.js";
import { characters, SYMBOL, splitWords } from "./words.js";

/** Thresholds of this project; no paper gives any. */
export const ADS: Rule[] = [
  { name: "ads.maxUrlChars", signal: "ads.urlChars", kind: "max", threshold: 0.2 },
  { name: "ads.maxLinksPer100Words", signal: "ads.linksPer100Words", kind: "max", threshold: 10 },
  { name: "ads.maxPhrasesPer100Words", signal: "ads.phrasesPer100Words", kind: "max", threshold: 3 },
  { name: "ads.maxContactLines", signal: "ads.contactLines", kind: "max", threshold: 0.3 },
];

/** What sells, and what spam sells, in the two languages of this project's readers. Lower case. */
const PHRASES = [
  ..."buy now|order now|shop now|click here|sign up now|subscribe now|call now|act now|add to cart|free shipping|limited time|limited offer|special offer|best price|lowest price|money back|discount code|promo code|coupon code|100% free|risk free|no credit check|earn money|make money|work from home|extra cash|cheap flights|payday loan|online casino|casino bonus|free spins|slot machine|sports betting|weight loss pill|viagra|cialis|replica watches|hot singles|adult dating|escort service|seo services|guest post|backlinks".split(
    "|",
  ),
  ..."立即购买|点击购买|马上抢购|限时抢购|限时优惠|全场包邮|免费领取|优惠券|加微信|微信号|扫码关注|扫描二维码|咨询热线|联系客服|在线客服|代开发票|代办证件|办理贷款|无抵押贷款|信用卡套现|日赚|兼职刷单|澳门赌场|娱乐城|时时彩|棋牌游戏|彩票投注|博彩|百家乐|六合彩|外围投注|成人用品|私服|外挂|网站优化|关键词排名|友情链接".split(
    "|",
  ),
];

const URL =
  /(?:https?:\/\/|www\.)[^\s<>"'）】，。]{3,2000}|\b[a-z0-9-]{2,63}\.(?:com|net|org|cn|ru|info|biz|shop|xyz|top|vip|cc)\b(?:\/[^\s<>"'）】，。]{0,2000})?/gi;
const CONTACT =
  /(?:qq|微信|wechat|whatsapp|telegram|v信|vx|tel|phone|电话|热线|手机)\s*[:：号]?\s*[+\d(][\d\s()+-]{5,}/i;

/** Measures and judges. Never throws; a text without words has no density. */
export function evaluateAds(text: string, thresholds: Thresholds = {}): { signals: Signals; findings: Finding[] } {
  const words = splitWords(text);
  let units = 0;
  for (let i = 0; i < words.count; i++) if (words.kinds[i] !== SYMBOL) units++;
  let urls = 0;
  let urlChars = 0;
  for (const match of text.matchAll(URL)) {
    urls++;
    urlChars += match[0].length;
  }
  const lower = text.toLowerCase();
  const phrases = PHRASES.filter((phrase) => lower.includes(phrase));
  let hits = 0;
  for (const phrase of phrases) hits += countOf(lower, phrase);
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  // A page with one line is no list of contacts.
  const contacts = lines.length < 3 ? 0 : lines.filter((line) => CONTACT.test(line.slice(0, 2000))).length;
  const signals: Signals = {
    "ads.urlChars": ratio(urlChars, characters(text)),
    "ads.linksPer100Words": ratio(100 * urls, units),
    "ads.phrasesPer100Words": ratio(100 * hits, units),
    "ads.contactLines": ratio(contacts, lines.length),
  };
  const findings = judge(ADS, signals, thresholds).map((f) => ({ ...f, stage: "ads" }));
  const phraseFinding = findings.find((f) => f.rule === "ads.maxPhrasesPer100Words");
  if (phraseFinding && hits > 0) phraseFinding.detail = phrases.slice(0, 5).join(", ");
  return { signals, findings };
}
