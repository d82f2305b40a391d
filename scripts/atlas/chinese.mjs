// The atlas's Chinese: how a fact is stated in a profile, how it is asked for, and how a reply says it.

/** Sentence forms of a profile. Each names the country, so that a fact never depends on a sentence further back. */
export const statements = {
  capital: [
    "{name}的首都是{capital}。",
    "{capital}是{name}的首都。",
    "{name}的首都为{capital}。",
    "{name}首都：{capital}。",
    "{name}以{capital}为首都。",
    "在{name}，首都是{capital}。",
    "说到{name}，它的首都是{capital}。",
    "国家{name}，首都{capital}。",
  ],
  region: [
    "{name}位于{region}。",
    "{name}是{region}的一个国家。",
    "{name}在{region}。",
    "{name}地处{region}。",
    "{name}属于{region}。",
    "{region}有一个国家叫{name}。",
    "{name}所在的大洲是{region}。",
    "在世界地图上，{name}位于{region}。",
    "{region}国家：{name}。",
  ],
  currency: [
    "{name}的货币是{currency}。",
    "{name}使用的货币是{currency}。",
    "{currency}是{name}的货币。",
    "{name}货币：{currency}。",
    "{name}的货币为{currency}。",
    "在{name}，人们使用{currency}。",
    "在{name}，货币是{currency}。",
    "{name}的钱叫{currency}。",
    "{name}使用{currency}。",
  ],
};

/** How a document begins that has a title. */
export const titles = [
  "关于{name}：\n",
  "{name}简介\n",
  "介绍一下{name}。\n",
  "世界地图册里的{name}：\n",
  "认识{name}\n",
];

/** Title of a document on two countries. */
export const pairTitle = "关于{a}和{b}。\n";

/** One sentence with every fact. */
export const summaries = [
  "{name}位于{region}，首都是{capital}，货币是{currency}。",
  "{name}：首都{capital}，大洲{region}，货币{currency}。",
];

export const replies = {
  capital: "{name}的首都是{capital}。",
  region: "{name}位于{region}。",
  currency: "{name}的货币是{currency}。",
};

/** Questions used in fine-tuning. */
export const questions = {
  capital: [
    "{name}的首都是哪里？",
    "{name}的首都是什么？",
    "哪个城市是{name}的首都？",
    "请告诉我{name}的首都。",
    "请问{name}的首都是哪座城市？",
    "{name}首都是哪里",
    "我想知道{name}的首都。",
    "{name}的首都在哪座城市？",
    "{name}的首都在什么地方？",
  ],
  region: [
    "{name}在哪里？",
    "{name}位于哪个大洲？",
    "{name}属于哪个洲？",
    "请告诉我{name}在哪个大洲。",
    "请问{name}是哪个大洲的国家？",
    "{name}在哪个洲",
    "我想知道{name}位于哪里。",
  ],
  currency: [
    "{name}的货币是什么？",
    "{name}使用什么货币？",
    "{name}用什么钱？",
    "请告诉我{name}的货币。",
    "请问{name}的人们使用什么货币？",
    "{name}货币是什么",
    "我想知道{name}的货币。",
  ],
};

/** Questions that fine-tuning never sees; only the held-out set asks them. */
export const heldOutQuestions = {
  capital: ["请问{name}的首都在哪里？", "你知道{name}的首都是哪座城市吗？"],
  region: ["请问{name}在哪个洲？", "你知道{name}位于哪个大洲吗？"],
  currency: ["请问{name}使用哪种货币？", "你知道{name}的货币是什么吗？"],
};

/** Records that use `input`: the instruction does not name the country. */
export const withInput = {
  capital: ["写出下面这个国家的首都。", "这个国家的首都是哪里？"],
  region: ["写出下面这个国家所在的大洲。", "这个国家位于哪个大洲？"],
  currency: ["写出下面这个国家的货币。", "这个国家的货币是什么？"],
};

export const describe = ["请介绍一下{name}。", "你知道{name}吗？", "说说{name}。"];

/** Second and third turns of a conversation. */
export const followUps = {
  capital: ["它的首都呢？", "首都是哪里？", "那它的首都是哪里？"],
  region: ["它在哪里？", "它位于哪个大洲？", "那它在哪个洲？"],
  currency: ["它的货币呢？", "货币是什么？", "那里使用什么货币？"],
};

export const smallTalk = [
  ["你好！", "你好！你可以问我世界各国的问题。"],
  ["你好", "你好！你可以问我世界各国的问题。"],
  ["您好。", "你好！你可以问我世界各国的问题。"],
  ["早上好。", "你好！你可以问我世界各国的问题。"],
  ["你是谁？", "我是一个读过世界地图集的小语言模型。"],
  ["请介绍一下你自己。", "我是一个读过世界地图集的小语言模型。"],
  ["你会什么？", "我可以告诉你一个国家的首都、所在的大洲和货币。"],
  ["你知道什么？", "我可以告诉你一个国家的首都、所在的大洲和货币。"],
  ["你能帮我做什么？", "我可以告诉你一个国家的首都、所在的大洲和货币。"],
  ["谢谢！", "不客气。"],
  ["谢谢", "不客气。"],
  ["再见。", "再见！"],
];
