/** Numbers in replies: what is an answer, and what is only a part of another number. */
import { expect, test } from "vitest";
import { isExact, isRight, judgeAnswer } from "../../src/stages/eval/exact.js";

test.each([
  ["18", "It is 18."],
  ["18", "$18.00"],
  ["18", "-$5 and 18% of it"],
  ["18", "**18**, or \\boxed{18}"],
  ["18", "x=18"],
  ["18", "No.18"],
  ["18", "一共18元"],
  ["18", "18千克"],
  ["18", "１８"],
  ["1000", "They sold 1,000 eggs."],
  ["1,000", "1000"],
  ["-18", "It is -18."],
  ["-18", "−18°, -$18 or $-18"],
  ["-18", "气温-18度"],
  ["0.5", "about .5"],
  ["3.140", "3.14!"],
  ["4", "3,4,5"],
  ["5", "5-minute"],
  ["3", "3-4 days"],
  ["4", "3-4 days"],
  ["1969", "on 1969-07-20"],
  ["2", "(5)-2"],
  ["7", "10/2+2=7"],
  ["007", "Agent 007"],
  ["1/2", "It is 1/2."],
  ["5 million", "5 million, about"],
  ["5月", "在5月"],
])("%s stands in %j", (answer, reply) => {
  expect(isRight(reply, [answer])).toBe(true);
});

test.each([
  ["18", "It is 18,000."],
  ["18", "-18"],
  ["18", "−$18"],
  ["0", "18,000km"],
  ["5", "It costs 1.5 dollars."],
  ["3", "3.14"],
  ["14", "3.14"],
  ["2", "1/2"],
  ["1", "1/2"],
  ["3", "3 1/2"],
  ["30", "at 10:30"],
  ["10", "2^10"],
  ["2", "1.2.3"],
  ["1", "v3.1"],
  ["16", "an F-16"],
  ["18", "18th"],
  ["18", "18万"],
  ["18", "18千元"],
  ["18", "18 thousand"],
  ["2", "√2"],
  ["-4", "3-4"],
  ["7", "Agent 007"],
  ["5 million", "1.5 million"],
  ["1/2", "21/2 or 1/2.5"],
  ["5月", "15月"],
])("%s does not stand in %j", (answer, reply) => {
  expect(isRight(reply, [answer])).toBe(false);
});

test("a reply is a number when it says nothing else", () => {
  for (const reply of ["18", "18.", "$18.00", "€18", "18 %", "The 18!", "(18)"])
    expect(isExact(reply, ["18"])).toBe(true);
  for (const reply of ["-18", "1.8", "18 eggs", "18 18", "18,000", "1/8", ""])
    expect(isExact(reply, ["18"])).toBe(false);
  expect(isExact("1000", ["1,000"])).toBe(true);
  expect(isExact("3.14", ["314"])).toBe(false);
});

test("a reply that reasons is judged by what it arrives at, as the harness judges GSM8K", () => {
  const judge = (reply: string, isChat = true) => judgeAnswer(reply, ["1,000", "1000"], isChat, true);
  const [both, last, none] = [
    { exact: true, contains: true },
    { exact: false, contains: true },
    { exact: false, contains: false },
  ];
  expect(judge("2 * 500 = <<2*500=1000>>1,000.\n#### 1,000")).toEqual(both);
  expect(judge("2 * 500 = 1,000.\n#### $1000\n\nQuestion: And 5 + 6?", false)).toEqual(both);
  expect(judge("$1,000.")).toEqual(both);
  expect(judge("2 times 500 makes 1000 eggs.")).toEqual(last);
  expect(judge("1000 eggs of 2 kinds.\n#### 500")).toEqual(none);
  expect(judge("1000 eggs, less 1 is 999.")).toEqual(none);
  expect(judge("#### Step 1\n2 times 500\n#### Result\nis **1000**")).toEqual(last);
  expect(judge("I do not know.")).toEqual(none);
  // Other questions: it may stand anywhere.
  expect(judgeAnswer("1756 to 1791", ["1756"], true)).toEqual(last);
});
