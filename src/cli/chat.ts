/** `lyceum chat MODEL`: a conversation on the terminal. */
import { createInterface } from "node:readline/promises";
import { DialogueEncoder } from "../dialogue/mask.js";
import type { Message } from "../dialogue/templates.js";
import { generateAsync } from "../generate/generate.js";
import { openModel, type SamplingFlags, samplingOf } from "./generate.js";

const HELP = `/reset          forget the conversation
/system TEXT    begin again with a system message
/help           this
/exit           leave (or Ctrl-D)`;

export async function command(dir: string, flags: SamplingFlags & { system?: string }): Promise<void> {
  const options = samplingOf(flags);
  const { model, tokenizer, stop, weights } = openModel(dir, flags, true);
  const encoder = new DialogueEncoder(tokenizer);
  let system = flags.system;
  let history: Message[] = [];
  const start = (): Message[] => (system ? [{ role: "system", content: system }] : []);
  history = start();
  const terminal = process.stdin.isTTY === true;
  const lines = createInterface({ input: process.stdin, ...(terminal && { output: process.stdout }), prompt: "> " });
  if (terminal) console.log(`${dir}. /help tells the commands.`);
  // At the prompt Ctrl-C leaves; during a reply it ends that.
  let replying = false;
  let interrupted = false;
  lines.on("SIGINT", () => {
    if (replying) interrupted = true;
    else lines.close();
  });
  let ended = false; // its input may end during a reply
  lines.on("close", () => {
    ended = true;
  });
  lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    if (text === "/exit") break;
    if (text === "/help") console.log(HELP);
    else if (text === "/reset") history = start();
    else if (text === "/system" || text.startsWith("/system ")) {
      system = text.slice(8).trim();
      history = start();
    } else if (text.startsWith("/")) console.log(`There is no command ${text.split(" ")[0]}.\n${HELP}`);
    else if (text !== "") {
      history.push({ role: "user", content: text });
      history = await reply(history);
    }
    if (!ended) lines.prompt();
  }
  lines.close();

  /**
   * Streams the reply; returns the conversation with it, less its oldest turns where the context is full, or without its last message, where
   * this alone is too long.
   */
  async function reply(messages: Message[]): Promise<Message[]> {
    let kept = messages;
    let ids = encoder.prompt(kept);
    const context = model.config.maxPositionEmbeddings;
    const room = context - Math.min(options.maxTokens, context >> 2);
    const head = kept[0]?.role === "system" ? 1 : 0;
    while (ids.length > room && kept.length > head + 1) {
      kept = [...kept.slice(0, head), ...kept.slice(head + 2)];
      ids = encoder.prompt(kept);
    }
    if (ids.length >= context) {
      console.log(
        `(with this message there are ${ids.length} tokens, and the model's context of ${context} leaves no room for a reply: it is left out)`,
      );
      return messages.slice(0, -1);
    }
    const left = (messages.length - kept.length) / 2;
    if (left > 0)
      console.log(
        `(the ${left === 1 ? "oldest turn no longer fits" : `${left} oldest turns no longer fit`} the context)`,
      );
    const decoder = tokenizer.stream();
    let said = "";
    const say = (piece: string): void => {
      said += piece;
      process.stdout.write(piece);
    };
    const onToken = (_: number, id: number): boolean => {
      if (!stop.includes(id)) say(decoder.push(id));
      return !interrupted;
    };
    [replying, interrupted] = [true, false];
    await generateAsync(model, [ids], { ...options, stop, ...(weights && { weights }), onToken });
    replying = false;
    say(decoder.end());
    process.stdout.write("\n");
    return [...kept, { role: "assistant", content: said }];
  }
}
