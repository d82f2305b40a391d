"""Golden numbers of the alignment losses, with PyTorch (float64, autograd) and Transformers.

    python test/golden/align/make.py

What TRL computes itself (DPO's family, the reward model, GRPO) is in make_trl.py. This is what it has not, or has no more: rankings of
K replies (Ouyang et al. 2022, equation 1), and PPO, written in the way of TRL's last PPO: padded batches, masks, autograd.
Made with torch 2.13, transformers 5.
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
white = (flat - flat.mean()) / torch.sqrt(flat.var() + 1e-8)
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

# ---- PPO on a batch padded as TRL pads it: prompts on the left, replies on the right, everything masked; with autograd
torch.set_default_dtype(torch.float32)
folder = here / "../llama/gqa-tied"
vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
ids = lambda k, salt: [8 + (salt * 31 + i * i * 7 + i) % (vocab - 8) for i in range(k)]  # no pad token: its embedding gets no gradient there
rows = [(ids(5, 1), ids(6, 2)), (ids(8, 4), ids(1, 5)), (ids(3, 7), ids(4, 8)), (ids(2, 3), ids(3, 6))]
B, P, W = len(rows), max(len(p) for p, _ in rows), max(len(r) for _, r in rows)
input_ids = torch.tensor([[0] * (P - len(p)) + p + r + [0] * (W - len(r)) for p, r in rows])
attention = torch.tensor([[0] * (P - len(p)) + [1] * (len(p) + len(r)) + [0] * (W - len(r)) for p, r in rows])
positions = (attention.cumsum(1) - 1).clamp(min=0)
lengths = torch.tensor([len(r) for _, r in rows])
reply = torch.arange(W)[None] < lengths[:, None]  # the tokens of a reply
reach = torch.arange(W)[None] <= lengths[:, None]  # and one place after them, where there is one
temperature, gamma, lam, beta, vf, entropy_coef = 0.7, 0.99, 0.9, 0.3, 0.1, 0.02
actor = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
critic = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1, pad_token_id=None)
with torch.no_grad():
    critic.score.weight.copy_(torch.sin(torch.arange(critic.config.hidden_size, dtype=torch.float32)).view(1, -1) * 0.3)
logits = actor(input_ids=input_ids, attention_mask=attention, position_ids=positions).logits[:, P - 1 : -1] / temperature
now = F.log_softmax(logits, -1).gather(-1, input_ids[:, P:, None]).squeeze(-1)
V = critic.score(critic.model(input_ids=input_ids, attention_mask=attention, position_ids=positions).last_hidden_state).squeeze(-1)[:, P - 1 : -1]
generator = torch.Generator().manual_seed(5)
old = now.detach() + torch.randn(B, W, generator=generator) * 0.3
ref = now.detach() + torch.randn(B, W, generator=generator) * 0.5
before = V.detach() + torch.randn(B, W, generator=generator) * 0.3
scores = torch.tensor([1.5, -0.5, 0.7, 2.0])
masked_mean = lambda x, mask: (x * mask).sum() / mask.sum()
def masked_whiten(x, mask, shift_mean=True):
    mean = masked_mean(x, mask)
    var = masked_mean((x - mean) ** 2, mask) * mask.sum() / (mask.sum() - 1)
    return (x - mean) * torch.rsqrt(var + 1e-8) + (0 if shift_mean else mean)
def summary(named):
    dot = lambda g: (g.double().flatten() * torch.cos(torch.arange(g.numel(), dtype=torch.float64))).sum().item()
    return {k: dict(norm=p.grad.double().norm().item(), dot=dot(p.grad)) for k, p in named if p.grad is not None and ("layers.0" in k or "embed" in k or "score" in k)}
cut = lambda x, mask: [x[i][mask[i]].tolist() for i in range(B)]
out["ppo"] = dict(
    replies=[dict(ids=p + r, start=len(p)) for p, r in rows], scores=scores.tolist(), old=cut(old, reply), ref=cut(ref, reply), values=cut(before, reach),
    options=dict(temperature=temperature, gamma=gamma, klCoef=beta, vfCoef=vf, entropyCoef=entropy_coef, maxTokens=W, **{"lambda": lam}), runs=[],
)
for position, whiten_rewards, kind in [("last", False, "k1"), ("trl", False, "k1"), ("trl", True, "k3"), ("last", True, "k3")]:
    mask = reach if position == "trl" else reply
    values = before * mask
    logr = (ref - old) * reply
    rewards = -beta * (-logr if kind == "k1" else logr.exp() - 1 - logr)
    place = lengths.clamp(max=W - 1) if position == "trl" else lengths - 1
    rewards[torch.arange(B), place] += scores
    if whiten_rewards: rewards = masked_whiten(rewards, mask, shift_mean=False) * mask
    last, reversed_advantages = 0, []
    for t in reversed(range(W)):
        following = values[:, t + 1] if t < W - 1 else 0.0
        last = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * last
        reversed_advantages.append(last)
    advantages = torch.stack(reversed_advantages[::-1], 1)
    returns = advantages + values
    advantages = masked_whiten(advantages, reply) * reply
    for m in (actor, critic): m.zero_grad()
    rho = torch.exp((now - old) * reply)
    policy = masked_mean(torch.max(-advantages * rho, -advantages * rho.clamp(0.8, 1.2)), reply)
    entropy = masked_mean(torch.logsumexp(logits, -1) - (F.softmax(logits, -1) * logits).sum(-1), reply)
    (policy - entropy_coef * entropy).backward(retain_graph=True)
    near = torch.clamp(V, values - 0.2, values + 0.2)
    value = 0.5 * masked_mean(torch.max((V - returns) ** 2, (near - returns) ** 2), mask)
    (vf * value).backward(retain_graph=True)
    out["ppo"]["runs"].append(dict(
        options=dict(scorePosition=position, whitenRewards=whiten_rewards, klEstimator=kind), advantages=cut(advantages, reply), returns=cut(returns, mask),
        policy=policy.item(), entropy=entropy.item(), value=value.item(), approxkl=0.5 * masked_mean((now - old) ** 2, reply).item(),
        actor=summary(actor.named_parameters()), critic=summary(critic.named_parameters()),
    ))
(here / "golden.json").write_text(json.dumps(out, indent=1) + "\n")
