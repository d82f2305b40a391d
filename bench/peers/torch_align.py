"""What bench/align.mjs compares with: TRL's RewardTrainer and DPOTrainer, and PPO as a plain PyTorch + Transformers loop.

Usage: torch_align.py JOB, a JSON object with what, model, reward, file, batch, minibatch, steps, maxTokens, threads, precision.
Prints one line of JSON: seconds of each step, and the largest resident set in bytes.
"""

import json
import os
import resource
import sys
import tempfile
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

job = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])
torch.manual_seed(1)
bf16 = job["precision"] == "bf16"
tokenizer = AutoTokenizer.from_pretrained(job["model"])
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
records = [json.loads(line) for line in open(job["file"], encoding="utf8")]
seconds = []


class Clock(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        seconds.append(time.perf_counter() - self.began)


def trl():
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    chat = [
        {
            "prompt": [{"role": "user", "content": r["prompt"]}],
            "chosen": [{"role": "assistant", "content": r["chosen"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]}],
        }
        for r in records
    ]
    common = dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job["batch"],
        max_steps=job["steps"],
        learning_rate=1e-5,
        bf16=bf16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
        max_length=128,
    )
    data = Dataset.from_list(chat)
    if job["what"] == "dpo":
        from trl import DPOConfig, DPOTrainer

        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        args = DPOConfig(**common, beta=0.1, precompute_ref_log_probs=True)
        trainer = DPOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    else:
        from trl import RewardConfig, RewardTrainer

        model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        args = RewardConfig(**common)
        trainer = RewardTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer.train()


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


def ppo():
    """The formulas of src/stages/ppo.ts: rollout, four models, GAE, whitening, clipped losses, 4 epochs of minibatches."""
    load = dict(dtype=torch.float32)
    actor = AutoModelForCausalLM.from_pretrained(job["model"], **load)
    ref = AutoModelForCausalLM.from_pretrained(job["model"], **load).eval()
    reward = AutoModelForSequenceClassification.from_pretrained(job["reward"], **load).eval()
    critic = AutoModelForSequenceClassification.from_pretrained(job["reward"], **load)
    for m in (ref, reward):
        m.requires_grad_(False)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-6) for m in (actor, critic)]
    tokenizer.padding_side = "left"

    def log_probs(model, ids, mask, start):
        logits = model(input_ids=ids, attention_mask=mask).logits[:, start - 1 : -1]
        return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, start:, None]).squeeze(-1)

    def values_of(model, ids, mask):
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return model.score(hidden).squeeze(-1).float()

    for step in range(job["steps"]):
        began = time.perf_counter()
        B = job["batch"]
        chosen = [records[(step * B + i) % len(records)]["prompt"] for i in range(B)]
        texts = [
            tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
            for p in chosen
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        start = batch.input_ids.shape[1]
        with torch.no_grad(), autocast():
            actor.eval()
            ids = actor.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=job["maxTokens"],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            replies = ids[:, start:]
            ended = (replies == tokenizer.eos_token_id).int().cumsum(1)
            kept = (ended - (replies == tokenizer.eos_token_id).int()) == 0  # up to the first end, which counts
            mask = torch.cat([batch.attention_mask, kept.long()], 1)
            last = start + kept.sum(1) - 1
            old = log_probs(actor, ids, mask, start)
            reference = log_probs(ref, ids, mask, start)
            scores = values_of(reward, ids, mask)[torch.arange(B), last]
            values = values_of(critic, ids, mask)[:, start - 1 : -1]
            rewards = -0.05 * (old - reference) * kept
            rewards[torch.arange(B), kept.sum(1) - 1] += scores
            advantages = torch.zeros_like(rewards)
            running, after = torch.zeros(B), torch.zeros(B)
            for t in reversed(range(replies.shape[1])):
                delta = rewards[:, t] + after - values[:, t]
                running = torch.where(kept[:, t], delta + 0.95 * running, torch.zeros(B))
                after = torch.where(kept[:, t], values[:, t], torch.zeros(B))
                advantages[:, t] = running
            returns = advantages + values
            mean = advantages[kept].mean()
            advantages = (advantages - mean) / (advantages[kept].std() + 1e-8)
        actor.train()
        for _ in range(4):
            order = torch.randperm(B)
            for at in range(0, B, job["minibatch"]):
                w = order[at : at + job["minibatch"]]
                keep, n = kept[w], kept[w].sum()
                with autocast():
                    now = log_probs(actor, ids[w], mask[w], start)
                ratio = torch.exp(now - old[w])
                A = advantages[w]
                loss = (torch.max(-A * ratio, -A * ratio.clamp(0.8, 1.2)) * keep).sum() / n
                loss.backward()
                torch.nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
                optimizers[0].step()
                optimizers[0].zero_grad()
                with autocast():
                    V = values_of(critic, ids[w], mask[w])[:, start - 1 : -1]
                clipped = values[w] + (V - values[w]).clamp(-0.2, 0.2)
                error = torch.max((V - returns[w]) ** 2, (clipped - returns[w]) ** 2)
                (0.1 * 0.5 * (error * keep).sum() / n).backward()
                torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
                optimizers[1].step()
                optimizers[1].zero_grad()
        seconds.append(time.perf_counter() - began)


ppo() if job["what"] == "ppo" else trl()
print(json.dumps({"seconds": seconds, "peakRss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
