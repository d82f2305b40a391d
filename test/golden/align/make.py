"""Golden numbers of the alignment losses, with PyTorch (float64, autograd) and Transformers.

    python test/golden/align/make.py

The formulas are TRL's (1.13; PPO's: its last, 1.12) where TRL is right, the papers' where it differs: TRL's sigmoid loss
ignores label smoothing, and its KTO takes its reference point from other prompts. Made with torch 2.13, transformers 5.
"""
import json, math, pathlib
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
here = pathlib.Path(__file__).parent
out = {}

# ---- rankings
def ranking(groups, margin=0.0, centering=0.0):
    losses = []
    for r in groups:
        pairs = [(i, j) for i in range(len(r)) for j in range(i + 1, len(r))]
        losses.append(torch.stack([-F.logsigmoid(r[i] - r[j] - margin) + centering * (r[i] + r[j]) ** 2 for i, j in pairs]).mean())
    return torch.stack(losses).mean()

out["ranking"] = []
for sizes, margin, centering in [([2, 2, 2], 0, 0), ([2, 2], 0.5, 0.01), ([4, 2, 3], 0, 0), ([5], 0.2, 0.1), ([2], 0, 0)]:
    groups = [torch.randn(k).mul(3).requires_grad_() for k in sizes]
    loss = ranking(groups, margin, centering)
    loss.backward()
    out["ranking"].append(dict(groups=[g.tolist() for g in groups], margin=margin, centering=centering, loss=loss.item(), gradients=[g.grad.tolist() for g in groups]))

# ---- the DPO family
n = 5
data = dict(
    chosen=(-torch.rand(n) * 30 - 1), rejected=(-torch.rand(n) * 30 - 1), refChosen=(-torch.rand(n) * 30 - 1), refRejected=(-torch.rand(n) * 30 - 1),
)
tokens = dict(chosenTokens=torch.tensor([7, 12, 3, 20, 1]), rejectedTokens=torch.tensor([9, 4, 16, 20, 2]))
out["pairs"] = [dict(**{k: v[i].item() for k, v in data.items()}, **{k: v[i].item() for k, v in tokens.items()}) for i in range(n)]
ls = F.logsigmoid
def family(kind, c, r, o):
    b, s = o["beta"], o["labelSmoothing"]
    rc, rr = (0, 0) if o["referenceFree"] else (data["refChosen"], data["refRejected"])
    d = (c - rc) - (r - rr)
    nc, nr = tokens["chosenTokens"], tokens["rejectedTokens"]
    if kind == "sigmoid": return -(1 - s) * ls(b * d) - s * ls(-b * d)
    if kind == "robust": return (-(1 - s) * ls(b * d) + s * ls(-b * d)) / (1 - 2 * s)
    if kind == "hinge": return torch.relu(1 - b * d)
    if kind == "ipo":
        d = (c - rc) / nc - (r - rr) / nr if o["lengthAverage"] else d
        return (d - 1 / (2 * b)) ** 2
    if kind == "simpo": return -ls(b * (c / nc - r / nr) - o["gamma"])
    if kind == "orpo":
        a, z = c / nc, r / nr
        odds = (a - z) - (torch.log1p(-torch.exp(a)) - torch.log1p(-torch.exp(z)))
        return -a - b * ls(odds)
    if kind == "kto":
        zc = (c - rc).mean().clamp(min=0).detach(); zr = (r - rr).mean().clamp(min=0).detach()
        return ((1 - torch.sigmoid(b * ((c - rc) - zr))) + (1 - torch.sigmoid(b * (zc - (r - rr))))) / 2
default = dict(beta=0.1, labelSmoothing=0.0, referenceFree=False, lengthAverage=False, gamma=0.5)
out["family"] = []
for kind, changes in [("sigmoid", {}), ("sigmoid", dict(labelSmoothing=0.2)), ("sigmoid", dict(referenceFree=True, beta=0.3)), ("robust", dict(labelSmoothing=0.1)),
                      ("ipo", {}), ("ipo", dict(lengthAverage=True, beta=0.5)), ("hinge", {}), ("simpo", dict(beta=2.0)), ("orpo", {}), ("kto", {}), ("kto", dict(beta=0.5))]:
    o = {**default, **changes, "loss": kind}
    c, r = data["chosen"].clone().requires_grad_(), data["rejected"].clone().requires_grad_()
    loss = family(kind, c, r, o).mean()
    loss.backward()
    zero = [0.0] * n
    out["family"].append(dict(options=o, loss=loss.item(), dChosen=c.grad.tolist(), dRejected=r.grad.tolist()))

# ---- PPO
def gae(rewards, values, gamma, lam):
    last, adv = 0, []
    for t in reversed(range(len(rewards))):
        nxt = values[t + 1] if t + 1 < len(rewards) else 0.0
        last = rewards[t] + gamma * nxt - values[t] + gamma * lam * last
        adv.insert(0, last)
    return torch.stack(adv)
out["gae"] = []
for length, gamma, lam in [(1, 1, 0.95), (7, 1, 0.95), (9, 0.9, 0.8), (5, 1, 0), (5, 1, 1)]:
    rewards, values = torch.randn(length), torch.randn(length)
    adv = gae(rewards, values, gamma, lam)
    out["gae"].append(dict(rewards=rewards.tolist(), values=values.tolist(), gamma=gamma, **{"lambda": lam}, advantages=adv.tolist(), returns=(adv + values).tolist()))
rows = [torch.randn(k) * 2 + 1 for k in (3, 1, 6)]
flat = torch.cat(rows)
white = (flat - flat.mean()) / torch.sqrt(flat.var(unbiased=False) + 1e-8)
out["whiten"] = dict(rows=[r.tolist() for r in rows], white=white.tolist(), kept=(white + flat.mean()).tolist())
out["policy"] = []
for logp, old, a, dual in [(-1.0, -1.0, 2.0, 0), (-0.5, -1.0, 2.0, 0), (-0.5, -1.0, -2.0, 0), (-2.0, -1.0, 2.0, 0), (-2.0, -1.0, -2.0, 0), (1.0, -1.0, -1.0, 3.0), (-0.9, -1.0, 0.7, 3.0)]:
    x = torch.tensor(logp, requires_grad=True)
    rho = torch.exp(x - old)
    loss = torch.max(-a * rho, -a * torch.clamp(rho, 0.8, 1.2))
    if dual and a < 0: loss = torch.min(loss, torch.tensor(-a * dual))
    loss.backward()
    out["policy"].append(dict(logp=logp, old=old, advantage=a, dualClip=dual, loss=loss.item(), slope=x.grad.item()))
out["value"] = []
for v, old, target in [(1.0, 1.0, 2.0), (1.5, 1.0, 2.0), (0.5, 1.0, 2.0), (1.1, 1.0, 0.0), (3.0, 1.0, 0.0), (-3.0, 1.0, 0.9)]:
    x = torch.tensor(v, requires_grad=True)
    near = torch.clamp(x, old - 0.2, old + 0.2)
    loss = 0.5 * torch.max((x - target) ** 2, (near - target) ** 2)
    loss.backward()
    out["value"].append(dict(value=v, old=old, target=target, loss=loss.item(), slope=x.grad.item()))
out["kl"] = [dict(logRatio=d, k1=d, k3=math.expm1(-d) + d) for d in (-1.5, -0.1, 0.0, 0.2, 2.0)]
out["grpo"] = []
scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0])
g = scores.view(2, 4)
out["groups"] = dict(scores=scores.tolist(), size=4, scaled=((g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 1e-4)).flatten().tolist(), centered=(g - g.mean(1, keepdim=True)).flatten().tolist())
for logp, old, ref, a in [(-1.0, -1.0, -1.2, 1.0), (-0.7, -1.0, -0.2, 1.0), (-1.6, -1.0, -1.0, -0.5)]:
    x = torch.tensor(logp, requires_grad=True)
    rho = torch.exp(x - old)
    kl = torch.exp(ref - x) - (ref - x) - 1
    loss = torch.max(-a * rho, -a * torch.clamp(rho, 0.8, 1.2)) + 0.04 * kl
    loss.backward()
    out["grpo"].append(dict(logp=logp, old=old, ref=ref, advantage=a, loss=loss.item(), slope=x.grad.item(), kl=kl.item()))

# ---- end to end from the weights of test/golden/llama, in fp32
torch.set_default_dtype(torch.float32)
folder = here / "../llama/gqa-tied"
vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
ids = lambda k, salt: [8 + (salt * 31 + i * i * 7 + i) % (vocab - 8) for i in range(k)]  # no pad token: its embedding gets no gradient there
replies = [dict(ids=ids(12, 1), start=5), dict(ids=ids(9, 2), start=5), dict(ids=ids(17, 3), start=8), dict(ids=ids(14, 4), start=8)]
refs = [-20.0, -18.0, -30.0, -29.0]
def summary(named):
    return {k: dict(norm=p.grad.double().norm().item(), dot=(p.grad.double().flatten() * torch.cos(torch.arange(p.numel(), dtype=torch.float64))).sum().item()) for k, p in named if p.grad is not None and ("layers.0" in k or "embed" in k or "score" in k)}
model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
sums = []
for r in replies:
    logp = F.log_softmax(model(torch.tensor([r["ids"]])).logits[0, :-1], -1)
    target = torch.tensor(r["ids"][1:])
    sums.append(logp[torch.arange(len(target)), target][r["start"] - 1:].sum())
d = torch.stack([(sums[0] - refs[0]) - (sums[1] - refs[1]), (sums[2] - refs[2]) - (sums[3] - refs[3])])
loss = -F.logsigmoid(0.1 * d).mean()
loss.backward()
out["endToEnd"] = dict(replies=replies, refs=refs, dpo=dict(sums=[s.item() for s in sums], loss=loss.item(), grads=summary(model.named_parameters())))
rm = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1, pad_token_id=None)
d_model = rm.config.hidden_size
with torch.no_grad(): rm.score.weight.copy_(torch.sin(torch.arange(d_model, dtype=torch.float32)).view(1, -1) * 0.3)
rewards = [rm(torch.tensor([r["ids"]])).logits[0, 0] for r in replies]
loss = ranking([torch.stack(rewards[:2]), torch.stack(rewards[2:])])
loss.backward()
out["endToEnd"]["reward"] = dict(rewards=[r.item() for r in rewards], loss=loss.item(), grads=summary(rm.named_parameters()))
(here / "golden.json").write_text(json.dumps(out, indent=1) + "\n")
