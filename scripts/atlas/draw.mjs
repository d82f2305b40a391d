// Seeded choices for the atlas: each is a function of its key alone, so adding a country moves no other country's draw.

/** FNV-1a over UTF-16 units, then the finalizer of MurmurHash3 so that near keys land far apart; 32 bits, unsigned. */
export function hash(key) {
  let h = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) h = Math.imul(h ^ key.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** The items in an order drawn from `key`; `nameOf` gives the text by which an item is known. */
export function shuffled(items, key, nameOf = JSON.stringify) {
  return items
    .map((item, index) => ({ item, index, rank: hash(`${key}/${nameOf(item)}`) }))
    .sort((a, b) => a.rank - b.rank || a.index - b.index)
    .map((entry) => entry.item);
}
