"""Golden numbers of the alignment losses made by TRL's own code, with autograd's gradients.

    python test/golden/align/make_trl.py

Every loss here is the method of a trainer of TRL (1.13), called on a stand-in that holds the trainer's settings:
DPOTrainer, KTOTrainer, RewardTrainer, GRPOTrainer, CPOTrainer (SimPO), ORPOTrainer. What TRL has not, or has wrong, is in make.py.
Made with torch 2.13, transformers 5, trl 1.13.
"""
import json, os, pathlib
from collections import defaultdict
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import nanstd

here = pathlib.Path(__file__).parent
out = {}
same = lambda x, *a, **k: x
accelerator = SimpleNamespace(gather=same, gather_for_metrics=same, reduce=same, device=torch.device("cpu"), num_processes=1, sync_gradients=True)


def trainer(**settings):
    """What a trainer's loss reads of the trainer."""
    usual = dict(
        accelerator=accelerator, aux_loss_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", use_weighting=False, ld_alpha=None, loss_weights=[1.0], label_smoothing=0.0,
        model=SimpleNamespace(training=True),
    )
    return SimpleNamespace(**{**usual, **settings})


class Given(torch.nn.Module):
    """A model of two words whose replies have the given sums of log p: row i is a prompt token and tokens[i] of word 0."""

    def __init__(self, sums, tokens):
        super().__init__()
        self.sums, self.tokens = sums, tokens

    def inputs(self):
        width = int(self.tokens.max()) + 1
        at = torch.arange(width)[None, :]
        mask = at <= self.tokens[:, None]
        return dict(input_ids=torch.zeros(len(self.tokens), width, dtype=torch.long), attention_mask=mask.long(), completion_mask=(mask & (at > 0)).long())

    def forward(self, input_ids, **_):
        each = (self.sums / self.tokens)[:, None].expand(input_ids.shape)
        return SimpleNamespace(logits=torch.stack([each, torch.log(-torch.expm1(each))], -1))


# ---- the DPO family from given log-probabilities, in float64
torch.set_default_dtype(torch.float64)
torch.manual_seed(1)
n = 5
names = ["chosen", "rejected", "refChosen", "refRejected", "other", "refOther"]
data = {name: -torch.rand(n) * 30 - 1 for name in names}
data["other"] = data["refOther"] + torch.tensor([3.0, 5.0, 8.0, -2.0, 4.0])
counts = dict(chosenTokens=torch.tensor([7, 12, 3, 20, 1]), rejectedTokens=torch.tensor([9, 4, 16, 20, 2]))
out["pairs"] = [{k: v[i].item() for k, v in {**data, **counts}.items()} for i in range(n)]
default = dict(beta=0.1, labelSmoothing=0.0, referenceFree=False, lengthAverage=False, gamma=0.5)


def dpo(kind, model, inputs, refs, o):
    refs = {k: torch.zeros_like(v) if o["referenceFree"] else v for k, v in refs.items()}
    self = trainer(beta=o["beta"], loss_types=[kind], label_smoothing=o["labelSmoothing"])
    return DPOTrainer._compute_loss(self, model, {**inputs, **refs}, False)


def kto(model, inputs, other_model, other_inputs, refs, ref_other, o):
    # KTOTrainer asks the model twice: for the replies, and for those under other prompts.
    both = lambda input_ids, **k: other_model(input_ids, **k) if input_ids is other_inputs["input_ids"] else model(input_ids, **k)
    k = inputs["input_ids"].shape[0] // 2
    batch = dict(inputs, label=torch.tensor([True] * k + [False] * k), ref_logps=refs, ref_KL_logps=ref_other)
    batch |= dict(KL_input_ids=other_inputs["input_ids"], KL_attention_mask=other_inputs["attention_mask"], KL_completion_mask=other_inputs["completion_mask"])
    self = trainer(beta=o["beta"], loss_type="kto", calculate_KL=True, use_liger_kernel=False, desirable_weight=1.0, undesirable_weight=1.0)
    self._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(self, model, batch)
    return KTOTrainer._compute_loss(self, both, batch, False)


out["family"] = []
for kind, trl_kind, changes in [
    ("sigmoid", "sigmoid", {}), ("sigmoid", "sigmoid", dict(referenceFree=True, beta=0.3)), ("sigmoid", "cpo", dict(labelSmoothing=0.2)),
    ("robust", "robust", dict(labelSmoothing=0.1)), ("hinge", "hinge", {}), ("ipo", "ipo", dict(lengthAverage=True, beta=0.5)), ("ipo", "cpo", {}),
    ("simpo", "cpo", dict(beta=2.0)), ("orpo", "orpo", {}), ("kto", "kto", {}), ("kto", "kto", dict(beta=0.5)),
]:
    o = {**default, **changes, "loss": kind}
    c, r = data["chosen"].clone().requires_grad_(), data["rejected"].clone().requires_grad_()
    nc, nr = counts["chosenTokens"], counts["rejectedTokens"]
    model = Given(torch.cat([c, r]), torch.cat([nc, nr]))
    if trl_kind == "cpo":
        # CPOTrainer's formulas are those of conservative DPO and of summed IPO when they are given the log-ratios.
        self = trainer(beta=o["beta"], loss_type=kind, label_smoothing=o["labelSmoothing"], simpo_gamma=o["gamma"], alpha=0.0)
        args = (c / nc, r / nr) if kind == "simpo" else (c - data["refChosen"], r - data["refRejected"])
        loss = CPOTrainer.cpo_loss(self, *args)[0].mean()
    elif trl_kind == "orpo":
        # TRL's ORPO adds the likelihood of prompt and reply; the paper's is the reply's, which is added here.
        self = trainer(beta=o["beta"])
        loss = (-c / nc).mean() - ORPOTrainer.odds_ratio_loss(self, c / nc, r / nr)[0].mean()
    elif trl_kind == "kto":
        other = Given(data["other"], nc)
        loss = kto(model, model.inputs(), other, other.inputs(), torch.cat([data["refChosen"], data["refRejected"]]), data["refOther"], o)
    else:
        loss = dpo(trl_kind, model, model.inputs(), dict(ref_chosen_logps=data["refChosen"], ref_rejected_logps=data["refRejected"]), o)
    loss.backward()
    out["family"].append(dict(options=o, loss=loss.item(), dChosen=c.grad.tolist(), dRejected=r.grad.tolist()))

# ---- the reward model's loss from given rewards
out["ranking"] = []
for k, margin, centering in [(4, 0.0, None), (3, 0.5, None), (3, 0.2, 0.01)]:
    rewards = (torch.randn(2 * k) * 3).requires_grad_()
    given = lambda **_: SimpleNamespace(logits=rewards[:, None])
    self = trainer(args=SimpleNamespace(center_rewards_coefficient=centering))
    inputs = dict(input_ids=None, attention_mask=torch.ones(2 * k, 1)) | (dict(margin=torch.full((k,), margin)) if margin else {})
    loss = RewardTrainer.compute_loss(self, given, inputs)
    loss.backward()
    pairs = lambda x: [[x[i].item(), x[k + i].item()] for i in range(k)]
    out["ranking"].append(dict(groups=pairs(rewards), margin=margin, centering=centering or 0, loss=loss.item(), gradients=pairs(rewards.grad)))

# ---- GRPO: advantages, and the loss of replies with padding behind them
scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 0.5, -3.0, 2.0, 0.1])
centered = scores - torch.nanmean(scores.view(-1, 4), dim=1).repeat_interleave(4)
scaled = centered / (nanstd(scores.view(-1, 4), dim=1).repeat_interleave(4) + 1e-4)
out["groups"] = dict(scores=scores.tolist(), size=4, scaled=scaled.tolist(), centered=centered.tolist())
lengths = torch.tensor([4, 1, 6, 3])
B, T = len(lengths), int(lengths.max())
mask = torch.arange(T)[None] < lengths[:, None]
old, ref = -torch.rand(B, T) * 3 - 0.1, -torch.rand(B, T) * 3 - 0.1
advantages = torch.tensor([1.2, -0.7, 0.3, -1.5])
out["grpo"] = []
for kind in ["bnpo", "grpo", "dr_grpo"]:
    now = (old + torch.randn(B, T, generator=torch.Generator().manual_seed(3)) * 0.3).requires_grad_()
    self = trainer(
        _get_per_token_logps_and_entropies=lambda *a, **k: (now, torch.zeros_like(now), None), top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", beta=0.04, epsilon_low=0.2, epsilon_high=0.2, loss_type=kind, use_vllm=False, vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1, max_completion_length=10, _entropy_bonus_enabled=False, args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
    )
    zeros = torch.zeros(B, 1, dtype=torch.long)
    inputs = dict(prompt_ids=zeros, prompt_mask=zeros + 1, completion_ids=zeros.expand(B, T), completion_mask=mask.long(), advantages=advantages, old_per_token_logps=old, ref_per_token_logps=ref)
    loss = GRPOTrainer._compute_loss(self, None, inputs)
    loss.backward()
    rows = lambda x: [x[i, : lengths[i]].tolist() for i in range(B)]
    out["grpo"].append(dict(kind=kind, maxTokens=10, logp=rows(now.detach()), old=rows(old), ref=rows(ref), advantages=advantages.tolist(), loss=loss.item(), slopes=rows(now.grad),
                            kl=self._metrics["train"]["kl"][0], clipRatio=self._metrics["train"]["clip_ratio/region_mean"][0]))

# ---- end to end from the weights of test/golden/llama, in fp32, in one padded batch
torch.set_default_dtype(torch.float32)
folder = here / "../llama/gqa-tied"
vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
ids = lambda k, salt: [8 + (salt * 31 + i * i * 7 + i) % (vocab - 8) for i in range(k)]
pairs = [  # prompt, chosen, rejected
    (ids(5, 1), ids(7, 2), ids(4, 3)),
    (ids(8, 4), ids(9, 5), ids(6, 6)),
    (ids(3, 7), ids(2, 8), ids(11, 9)),
]
refs = dict(ref_chosen_logps=torch.tensor([-30.0, -40.0, -9.0]), ref_rejected_logps=torch.tensor([-18.0, -26.0, -50.0]))
ref_other = torch.tensor([-39.0, -12.0, -16.0])
others = [(pairs[i][0], pairs[(i + 1) % 3][1 + i % 2]) for i in range(3)]


def padded(rows):
    width = max(len(p) + len(r) for p, r in rows)
    row = lambda p, r, *values: [values[0]] * len(p) + [values[1]] * len(r) + [0] * (width - len(p) - len(r))
    return dict(
        input_ids=torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in rows]),
        attention_mask=torch.tensor([row(p, r, 1, 1) for p, r in rows]), completion_mask=torch.tensor([row(p, r, 0, 1) for p, r in rows]),
    )


def summary(named):
    """Norm, and product with a fixed vector, of each parameter's gradient."""
    dot = lambda g: (g.double().flatten() * torch.cos(torch.arange(g.numel(), dtype=torch.float64))).sum().item()
    return {k: dict(norm=p.grad.double().norm().item(), dot=dot(p.grad)) for k, p in named if p.grad is not None and ("layers.0" in k or "embed" in k or "score" in k)}


chosen, rejected = [(p, c) for p, c, _ in pairs], [(p, r) for p, _, r in pairs]
encoded = lambda rows: [dict(ids=p + r, start=len(p)) for p, r in rows]
out["endToEnd"] = dict(chosen=encoded(chosen), rejected=encoded(rejected), others=encoded(others), refs={k: v.tolist() for k, v in refs.items()}, refOther=ref_other.tolist(), runs=[])
for kind, changes in [("sigmoid", {}), ("robust", dict(labelSmoothing=0.1)), ("hinge", {}), ("ipo", dict(lengthAverage=True, beta=0.5)), ("kto", dict(beta=0.2))]:
    o = {**default, **changes, "loss": kind}
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = padded(chosen + rejected)
    if kind == "kto":
        loss = kto(model, inputs, model, padded(others), torch.cat([*refs.values()]), ref_other, o)
    else:
        loss = dpo(kind, model, inputs, refs, o)
    loss.backward()
    out["endToEnd"]["runs"].append(dict(options=o, loss=loss.item(), grads=summary(model.named_parameters())))
model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1, pad_token_id=0)
with torch.no_grad():
    model.score.weight.copy_(torch.sin(torch.arange(model.config.hidden_size, dtype=torch.float32)).view(1, -1) * 0.3)
inputs = padded(chosen + rejected)
del inputs["completion_mask"]
loss = RewardTrainer.compute_loss(trainer(args=SimpleNamespace(center_rewards_coefficient=0.01)), model, inputs)
loss.backward()
out["endToEnd"]["reward"] = dict(centering=0.01, loss=loss.item(), grads=summary(model.named_parameters()))
(here / "trl.json").write_text(json.dumps(out, indent=1) + "\n")
