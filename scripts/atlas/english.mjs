// The atlas's English: how a fact is stated in a profile, how it is asked for, and how a reply says it.

/** Sentence forms of a profile. Each names the country, so that a fact never depends on a sentence further back. */
export const statements = {
  capital: [
    "The capital of {name} is {capital}.",
    "{capital} is the capital of {name}.",
    "The capital city of {name} is {capital}.",
    "{name} has {capital} as its capital.",
    "In {name}, the capital is {capital}.",
    "The capital of {name}, a country in {region}, is {capital}.",
    "{name} is a country whose capital is {capital}.",
  ],
  region: [
    "{name} is a country in {region}.",
    "{name} lies in {region}.",
    "{name} is located in {region}.",
    "The continent of {name} is {region}.",
    "{name} is one of the countries of {region}.",
    "On a map of the world, {name} is found in {region}.",
    "{name} belongs to {region}.",
  ],
  currency: [
    "The currency of {name} is the {currency}.",
    "{name} uses the {currency} as its currency.",
    "The {currency} is the currency of {name}.",
    "In {name}, people pay with the {currency}.",
    "The money of {name} is the {currency}.",
    "In {name}, the currency is the {currency}.",
    "Prices in {name} are given in the {currency}.",
  ],
};

/** How a document begins that has a title: the name is read once before the first sentence says it again. */
export const titles = [
  "About {name}:\n",
  "A profile of {name}\n",
  "Facts on {name}.\n",
  "From the page of {name}:\n",
  "An atlas, the part on {name}\n",
];

/** Title of a document on two countries. */
export const pairTitle = "On {a} and on {b}.\n";

/** One sentence with every fact; the replies to "tell me about" are made of the plain statements instead. */
export const summaries = [
  "{name} is a country in {region}; its capital is {capital} and its currency is the {currency}.",
  "{name}: capital {capital}, continent {region}, currency {currency}.",
];

export const replies = {
  capital: "The capital of {name} is {capital}.",
  region: "The country of {name} is in {region}.",
  currency: "The currency of {name} is the {currency}.",
};

/** Questions used in fine-tuning. */
export const questions = {
  capital: [
    "What is the capital of {name}?",
    "Which city is the capital of {name}?",
    "Tell me the capital of {name}.",
    "Name the capital city of {name}.",
    "what is the capital of {name}",
    "I would like to know the capital of {name}.",
    "Please tell me which city is the capital of {name}.",
    "Could you tell me which city the capital of {name} is?",
    "Do you know the capital of {name}?",
    "Can you say what the capital city of {name} is called?",
    "What is {name}'s capital?",
    "I want to know what the capital of {name} is.",
  ],
  region: [
    "Where is {name}?",
    "On which continent is {name}?",
    "Which continent is {name} in?",
    "In which part of the world does {name} lie?",
    "Tell me where {name} is located.",
    "which continent does {name} belong to",
    "Please tell me the continent of {name}.",
    "Could you tell me where {name} is?",
    "Do you know which continent {name} is on?",
    "Where on the map is {name} located?",
    "What part of the world is {name} in?",
    "What is the continent of {name}?",
  ],
  currency: [
    "What is the currency of {name}?",
    "Which currency is used in {name}?",
    "What money do people use in {name}?",
    "Tell me the currency of {name}.",
    "Name the currency of {name}.",
    "what currency does {name} use",
    "Please tell me which currency people use in {name}.",
    "Could you tell me the currency of {name}?",
    "Do you know what currency is used in {name}?",
    "Can you say what money people pay with in {name}?",
    "What is {name}'s currency?",
    "What do people pay with in {name}?",
  ],
};

/** Questions that fine-tuning never sees; only the held-out set asks them. */
export const heldOutQuestions = {
  capital: ["Can you tell me what the capital of {name} is?", "What city is the capital of {name}?"],
  region: ["What continent is {name} on?", "Where in the world is {name} located?"],
  currency: ["What currency do people use in {name}?", "Can you tell me the currency of {name}?"],
};

/** Records that use `input`: the instruction does not name the country. */
export const withInput = {
  capital: ["Name the capital of this country.", "What is the capital of the country below?"],
  region: ["Name the continent of this country.", "Say on which continent this country is."],
  currency: ["Name the currency of this country.", "What is the currency of the country below?"],
};

export const describe = [
  "Tell me about {name}.",
  "What do you know about {name}?",
  "Describe {name} in a few sentences.",
];

/** Second and third turns of a conversation. */
export const followUps = {
  capital: ["And its capital?", "What is its capital?", "And what is the capital?"],
  region: ["And where is it?", "On which continent is it?", "And its continent?"],
  currency: ["And its currency?", "Which currency is used there?", "And what is the currency?"],
};

export const smallTalk = [
  ["Hello!", "Hello! Ask me about the countries of the world."],
  ["Hello", "Hello! Ask me about the countries of the world."],
  ["Hi", "Hello! Ask me about the countries of the world."],
  ["Good morning.", "Hello! Ask me about the countries of the world."],
  ["Who are you?", "I am a small language model that has read a world atlas."],
  ["What are you?", "I am a small language model that has read a world atlas."],
  ["What can you do?", "I can tell you the capital, the continent and the currency of a country."],
  ["What do you know?", "I can tell you the capital, the continent and the currency of a country."],
  ["How can you help me?", "I can tell you the capital, the continent and the currency of a country."],
  ["Thank you!", "You are welcome."],
  ["Thanks", "You are welcome."],
  ["Goodbye.", "Goodbye!"],
];
