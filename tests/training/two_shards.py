"""Started by test_sharding.py: a model in two processes, dealt out and whole; what each of them saw."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.training.config import load_config
from hybridlm.training.ema import WeightAverage
from hybridlm.training.optimizer import build_optimizer, parameter_groups
from hybridlm.training.sharding import full, gathered, give_back, is_sharded, like, local, shard, weight_mesh
from hybridlm.training.step import backward, optimizer_step


def main(out: str) -> None:
    rank = int(os.environ["RANK"])
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    recipe = ["data.folder=unused", "training.steps=1", "training.mixed_precision=bf16", "parallel.kind=fsdp"]
    config = load_config(None, [*recipe, "optimizer.eps=1e-4"])  # no update is made of rounding
    plain, dealt = model(), model()
    averages = [WeightAverage(one, 0.5, torch.device("cpu")) for one in (plain, dealt)]
    for one in (dealt, averages[1].model):
        shard(one, weight_mesh(config, accelerator), config)
    facts = {
        "sharded": [is_sharded(plain), is_sharded(dealt)],
        "groups": [names_of(one) for one in (plain, dealt)],
        "tied": dealt.lm_head.weight is dealt.model.embed_tokens.weight,
        "share": sum(local(p).numel() for p in dealt.parameters()) / sum(p.numel() for p in plain.parameters()),
    }
    seen = watch(dealt)
    optimizers = [build_optimizer(one, config.optimizer) for one in (plain, dealt)]
    runs = [(accelerator.prepare(plain), optimizers[0]), (dealt, optimizers[1])]
    pairs = [(plain, dealt), (averages[0].model, averages[1].model)]
    facts["losses"], facts["norms"], facts["apart"] = [], [], [0.0, 0.0]
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        ids = torch.randint(0, 64, (4, 16))
        batches = [{"input_ids": half, "shift_labels": half} for half in ids.split(2)]
        losses = [backward(accelerator, one, batches, 128).cross_entropy for one, _ in runs]
        facts["losses"].append([loss.item() for loss in losses])
        ends = [optimizer_step(accelerator, *run, loss, 0.1) for run, loss in zip(runs, losses, strict=True)]
        facts["norms"].append([end.grad_norm for end in ends])
        for average, one in zip(averages, (plain, dealt), strict=True):
            average.update(one)
        facts["apart"] = [max(before, apart(*pair)) for before, pair in zip(facts["apart"], pairs, strict=True)]
        # The last bit of a weight can decide which way it is rounded to bf16, so the next step begins from the same.
        for p, q in zip(plain.parameters(), dealt.parameters(), strict=True):
            q.data.copy_(like(p.detach(), q))
    facts["dtypes"] = {name: str(dtype) for name, dtype in seen.items()}
    facts["stale"] = stale(dealt)
    before = torch.get_rng_state()
    whole = gathered(dealt, rank == 0)
    facts["random"] = torch.equal(before, torch.get_rng_state())
    facts["gathered"] = None if whole is None else [tuple(p.shape) for p in whole.parameters()]
    weight = dealt.model.layers[0].mixer.in_proj.weight
    again = like(full(weight.detach()), weight)
    facts["like"] = torch.equal(local(again), local(weight)), local(again).untyped_storage().nbytes()
    facts["bytes"] = local(weight).numel() * 4
    Path(out, f"rank{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def model() -> HybridLMForCausalLM:
    torch.manual_seed(0)
    pattern = "rglru+bmru lru mamba2 gru attention"
    size = {"hidden_size": 16, "num_attention_heads": 2, "mamba_d_head": 8, "vocab_size": 64}
    return HybridLMForCausalLM(HybridLMConfig(pattern=pattern, **size)).train()


def apart(one, other) -> float:
    """The largest difference between two models' weights, of which the other may be dealt out."""
    both = zip(one.parameters(), other.parameters(), strict=True)
    return max((full(q.detach()) - p.detach()).abs().max().item() for p, q in both)


def names_of(one) -> list:
    names = {parameter: name for name, parameter in one.named_parameters()}
    return [[group["name"], [names[p] for p in group["params"]]] for group in parameter_groups(one, 0.1)]


def watch(one) -> dict:
    """The dtype of each weight as its module reads it."""
    seen = {}

    def note(name):
        def hook(module, _):
            seen.update({f"{name}.{own}": p.dtype for own, p in module.named_parameters(recurse=False)})

        return hook

    for name, module in one.named_modules():
        module.register_forward_pre_hook(note(name))
    return seen


def stale(one) -> bool:
    """Whether a forward uses gathered weights from before they were changed."""
    ids, weight = torch.arange(16).unsqueeze(0), one.model.embed_tokens.weight  # as an optimizer has it
    outputs = []
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs.append(one(input_ids=ids, use_cache=False).logits)
        give_back(one)
        with torch.no_grad():
            weight.add_(0.1)
    return torch.equal(*outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
