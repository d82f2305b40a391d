/** Lists of tasks: what is asked for can be read again, in the ways that teachers really write it, and half a task is none. */
import { expect, test } from "vitest";
import { INSTRUCTGPT } from "../../src/dialogue/mixture.js";
import { readTaskList, type Task, taskPrompt } from "../../src/dialogue/task-list.js";

const capital: Task = { type: "open_qa", instruction: "Name the capital of Peru.", input: "", output: "Lima." };
const shorter: Task = {
  type: "summarization",
  instruction: "Sum this up in one sentence.",
  input: "Bees dance.\n\nThe dance tells where flowers are.",
  output: "Bees tell each other by a dance where flowers are.",
};
const tasks = (reply: string, wanted: string[] = [], cut = false): Task[] =>
  readTaskList(reply, wanted, cut).flatMap((l) => (l.task && !l.reason ? [l.task] : []));
const reasons = (reply: string, cut = false): (string | undefined)[] =>
  readTaskList(reply, [], cut).map((l) => l.reason);

test.each(["en", "zh"] as const)(
  "the examples of a prompt are in the form in which replies are read: %s",
  (language) => {
    const prompt = taskPrompt(language, [capital, shorter], Object.keys(INSTRUCTGPT));
    const [, , list] = prompt.split(/\n\n(?=Examples:|示例：|1\. )/);
    expect(tasks(list.slice(0, list.search(/\n\n(?:Write|请按)/)))).toEqual([capital, shorter]);
    for (const [type, { chinese }] of Object.entries(INSTRUCTGPT))
      expect(prompt).toMatch(new RegExp(`^\\d+\\. ${language === "zh" ? chinese : type} [(]\\S`, "m"));
  },
);

const list = `1. Type: open_qa
1. Instruction: Name the capital of Peru.
1. Input: <none>
1. Output: Lima.

2. Type: summarization
2. Instruction: Sum this up in one sentence.
2. Input: Bees dance.

The dance tells where flowers are.
2. Output: Bees tell each other by a dance where flowers are.`;
test.each([
  ["as asked for", list],
  [
    "with a preface, rules and carriage returns",
    `Sure!\r\n\r\n${list.replace("\n\n2.", "\n\n---\n\n2.").replaceAll("\n", "\r\n")}\n###\n`,
  ],
  ["only the first field numbered", list.replace(/^\d\. (?!Type)/gm, "")],
  ["only the first field numbered, indented", list.replace(/^\d\. (?!Type)/gm, "   ")],
  ["headings", list.replace(/^(\d)\. Type/gm, "### Task $1\nType").replace(/^\d\. /gm, "")],
  ["bold labels", list.replace(/^(\d\. \w+:)/gm, "**$1**")],
  ["numbers alone on their lines", list.replace(/^(\d)\. Type/gm, "$1.\nType").replace(/^\d\. (?=.)/gm, "")],
  ["in a code fence", `\`\`\`\n${list}\n\`\`\``],
  ["every task numbered 1", list.replace(/^2\./gm, "1.")],
  [
    "Chinese labels",
    list
      .replace(/Type:/g, "类型：")
      .replace(/Instruction:/g, "指令：")
      .replace(/Input:/g, "输入：")
      .replace(/Output:/g, "输出：")
      .replace("<none>", "无")
      .replace("open_qa", "开放域问答"),
  ],
  ["after thoughts", `<think>\n1. Type: chat\n1. Instruction: no, not this one\n</think>\n${list}`],
])("a list is read: %s", (_, reply) => {
  expect(tasks(reply)).toEqual([capital, shorter]);
});

test("an output may hold lists, numbers, code and lines that look like unnumbered labels", () => {
  const output = "1.\nCount to 2.\n2.\n```\nInput: 3\nOutput: 4\n```\n# 3\n---\nThat is all.";
  const reply = `1. Type: other\n1. Instruction: Show a format.\n1. Output: ${output}\n\n2. Type: chat\n2. Instruction: Hi!\n2. Output: 42`;
  expect(tasks(reply).map((t) => t.output)).toEqual([output, "42"]);
});

test("a type that is missing or unknown is the one that was asked for", () => {
  const reply =
    "1. Instruction: A\n1. Output: a\n2. Type: Poem\n2. Instruction: B\n2. Output: b\n3. Type: Closed QA (text)\n3. Instruction: C\n3. Output: c\n4. Instruction: D\n4. Output: d";
  expect(tasks(reply, ["chat", "generation", "chat"]).map((t) => t.type)).toEqual([
    "chat",
    "generation",
    "closed_qa",
    "other",
  ]);
});

test("what is no task has a reason", () => {
  expect(reasons("  \n")).toEqual(["the reply is empty"]);
  expect(reasons("I cannot help with that.")).toEqual(["no task in the reply"]);
  expect(readTaskList("I cannot help with that.", [])[0].text).toBe("I cannot help with that.");
  expect(reasons("1. Instruction: A\n1. Input: x\n2. Type: chat\n2. Output: b")).toEqual([
    "no output",
    "no instruction",
  ]);
  expect(reasons("1. Type: chat\n1. Instruction: A\n1. Output: a\n1. Output: b")).toEqual(['two fields "output"']);
  expect(reasons(list, true)).toEqual([undefined, "cut off at the token limit"]);
  expect(reasons("<think>let me", true)).toEqual(["cut off at the token limit"]);
});
