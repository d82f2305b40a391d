#!/bin/sh
# Makes the golden models with the original fastText 0.9.2 (Debian package fasttext) and records what it predicts.
# usage: sh test/golden/fasttext/make.sh
set -eu
cd "$(dirname "$0")"
: "${FASTTEXT:=fasttext}"
awk 'BEGIN {
  split("cat dog bird fish maus katze 猫 狗 naïve été", a, " ");
  split("stock bond yield price kurs aktie 股票 价格 coöp marché", b, " ");
  split("goal match team score tor spiel 比赛 进球 équipe blé", c, " ");
  srand(7);
  for (i = 0; i < 300; i++) {
    k = i % 3; line = "__label__" (k == 0 ? "tiere" : k == 1 ? "geld" : "sport");
    for (j = 0; j < 8; j++) { w = int(rand() * 10) + 1; m = rand() < 0.8 ? k : int(rand() * 3);
      line = line " " (m == 0 ? a[w] : m == 1 ? b[w] : c[w]); }
    print line;
  }
}' > train.txt
cat > texts.txt <<'TEXTS'
cat dog and a bird
股票 价格 kurs unknown-word
the match was a goal for the équipe
猫 狗 naïve été stock
never seen at all
x
TEXTS
for model in "softmax -wordNgrams 2" "hs -minn 2 -maxn 4 -wordNgrams 3" "ova -minn 1 -maxn 3"; do
  set -- $model; loss=$1; shift
  "$FASTTEXT" supervised -input train.txt -output "$loss" -loss "$loss" -dim 4 -bucket 97 -epoch 5 -lr 0.5 -thread 1 "$@" >/dev/null 2>&1
  "$FASTTEXT" predict-prob "$loss.bin" texts.txt 3 > "$loss.expected"
  rm -f "$loss.vec"
done
