"""Started by test_sequence.py: each process has a part of the sequences, and compares with a model that has all of
them, of the first process. Writes down how far the two are apart."""

import json
import sys
from itertools import accumulate, product
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from models import make_ids, make_model

from hybridlm.model.parts_hybridlm import SPLITTABLE
from hybridlm.model.scan_hybridlm import linear_scan, lru_scan, memory_scan
from hybridlm.model.sequence_hybridlm import SequenceRanks
from hybridlm.ops.dispatch import using

SEVERAL = ["rglru+bmru", "rglru bmru mamba2 lru+cmru"]
PATTERNS = [*SPLITTABLE, *SEVERAL]
EVERY = (0.0, 0.5, 1.0)
SHAPES = [
    {"dtype": "float64", "conv_kernel": 4, "lengths": [13] * 4, "epsilons": EVERY},
    {"dtype": "float64", "conv_kernel": 0, "lengths": [1] * 4},
    {"dtype": "float64", "conv_kernel": 4, "lengths": [3] * 4, "path": "torch", "ones": True},
    {"dtype": "float64", "conv_kernel": 1, "lengths": [5, 2, 9, 4], "patterns": SEVERAL},
    {"dtype": "float64", "conv_kernel": 4, "lengths": [7] * 4, "packed": False, "learn_initial_state": True},
    {
        "dtype": "float32",
        "conv_kernel": 4,
        "lengths": [40] * 4,
        "path": "torch",
        "checkpointing": True,
        "patterns": SEVERAL,
    },
    {"dtype": "float32", "conv_kernel": 4, "lengths": [70] * 4, "learn_initial_state": True, "epsilons": EVERY},
]
"""Of two processes, the last is enough. epsilons: those of `bmru`; 0.5 alone where none are given."""


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def documents(edges: list[int]) -> torch.Tensor:
    """position_ids (4, T): a row of one document; one that begins with every part; several in each part, also next to
    one another; a boundary at the last token of the first part alone."""
    length = edges[-1]
    rows = [[], edges[1:-1], [at for at in range(1, length) if at % 5 in (2, 3)], [edges[1] - 1]]
    positions = torch.arange(length).repeat(4, 1)
    for row, starts in enumerate(rows):
        for at in starts:
            positions[row, at:] = torch.arange(length - at)
    return positions


def loss_of(model, batch: dict, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and what is differentiated, with a write penalty of which this process bears a share."""
    out = model(**batch, use_cache=False, num_items_in_batch=97, z_loss=1e-2)
    penalty = model.write_penalty()
    return out.logits.detach(), out.loss if penalty is None else out.loss + share * penalty


def compare_models(ranks: SequenceRanks, pattern: str, epsilon: float, shape: dict) -> dict[str, float]:
    """Logits of this part, and the gradients of all parameters summed over the processes. The first process computes
    what is compared with."""
    edges = [0, *accumulate(shape["lengths"][: ranks.size])]
    mine = slice(edges[ranks.rank], edges[ranks.rank + 1])
    options = {"conv_kernel": shape["conv_kernel"], "learn_initial_state": shape.get("learn_initial_state", False)}
    model = make_model(pattern, dtype=getattr(torch, shape["dtype"]), **options).train()
    model.set_epsilon(epsilon)
    model.record_writes(len(set(shape["lengths"])) == 1)
    whole = {"input_ids": make_ids(4, edges[-1]), "shift_labels": make_ids(4, edges[-1], seed=2)}
    if shape.get("packed", True):
        whole["position_ids"] = documents(edges)
    parameters = dict(model.named_parameters())
    sizes = [(4, edges[-1], model.config.vocab_size), *(parameter.shape for parameter in parameters.values())]
    reference = torch.empty(sum(map(prod, sizes)), dtype=model.dtype)
    with using(shape.get("path")):
        if ranks.rank == 0:
            wanted, loss = loss_of(model, whole, 1.0)
            loss.backward()
            found = [wanted, *(parameter.grad for parameter in parameters.values())]
            reference = torch.cat([tensor.flatten() for tensor in found])
            model.zero_grad(set_to_none=True)
        dist.broadcast(reference, 0)
        pieces = reference.split([prod(size) for size in sizes])
        wanted, *gradients = (piece.view(size) for piece, size in zip(pieces, sizes, strict=True))
        model.split_sequence(ranks)
        if shape.get("checkpointing"):
            model.activation_checkpointing_enable()
        part = {name: tensor[:, mine] for name, tensor in whole.items()}
        if shape.get("ones"):
            part["attention_mask"] = torch.ones_like(part["input_ids"])
        logits, loss = loss_of(model, part, 1 / ranks.size)
        loss.backward()
        model.eval()
        with torch.no_grad():
            again = model(**part, use_cache=False).logits
    # A gradient for each parameter: DistributedDataParallel waits for it.
    summed = torch.cat([parameter.grad.flatten() for parameter in parameters.values()])
    dist.all_reduce(summed)
    parts = summed.split([parameter.numel() for parameter in parameters.values()])
    worst = {name: apart(part, want.flatten()) for name, part, want in zip(parameters, parts, gradients, strict=True)}
    return {"logits": apart(logits, wanted[:, mine]), "evaluated": apart(again, wanted[:, mine])} | worst


def compare_scans(ranks: SequenceRanks) -> dict[str, float | bool]:
    """The scans by themselves."""
    found = {}
    torch.manual_seed(4)
    rows, length, width = 2, 33, 5
    mine = slice(ranks.rank * length, (ranks.rank + 1) * length)
    total = length * ranks.size
    reset = torch.rand(rows, total) < 0.02
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        c, beta = torch.randn(rows, total, width).to(dtype), 2 * torch.rand(rows, total, width).to(dtype)
        start, again = (torch.randint(0, 2, shape) * 2.0 - 1 for shape in ((rows, width), (width,)))
        states, final = memory_scan(c, beta, start, reset=reset, reset_state=again)
        with ranks.sharing():
            part, end = memory_scan(c[:, mine], beta[:, mine], start, reset=reset[:, mine], reset_state=again)
        last = ranks.rank == ranks.size - 1
        found[f"bits {dtype}"] = torch.equal(part, states[:, mine]) and (not last or torch.equal(end, final))
    # A gradient that arrives on the final state alone goes back through all parts.
    steps = rows, total, width
    a, b, s = (torch.rand(*size, dtype=torch.double) for size in (steps, steps, (rows, width)))
    a, reset[0] = 0.9 + a / 10, False
    leaves = [x.clone().requires_grad_() for x in (a, b, s)]
    linear_scan(*leaves, reset=reset)[1].sum().backward()
    parts = [x.clone().requires_grad_() for x in (a[:, mine], b[:, mine], s)]
    with ranks.sharing():
        end = linear_scan(*parts, reset=reset[:, mine])[1]
    (end.sum() * (ranks.rank == ranks.size - 1)).backward()
    found["through a"] = apart(parts[0].grad, leaves[0].grad[:, mine])
    found["through b"] = apart(parts[1].grad, leaves[1].grad[:, mine])
    dist.all_reduce(parts[2].grad)
    found["start"] = apart(parts[2].grad, leaves[2].grad)
    return found


def compare_long(ranks: SequenceRanks) -> dict[str, float]:
    """A slow rotation over many turns: how far lambda^T is off; one process in fp32, and the parts, from fp64."""
    length, width = 50_000, 4
    angle = torch.linspace(0.5, 3.0, width)
    decay = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros(1, length, width), torch.ones(1, width)
    many = torch.zeros(1, length * ranks.size, width)
    wide, double = tuple(x.double() for x in decay), many.double()
    (exact, _), _ = lru_scan(wide, (double, double), (one.double(), one.double()))
    (alone, _), _ = lru_scan(decay, (many, many), (one, one))
    with ranks.sharing():
        (part, _), _ = lru_scan(decay, (zero, zero), (one, one))
    mine = slice(ranks.rank * length, (ranks.rank + 1) * length)
    return {"alone": apart(alone[:, mine].double(), exact[:, mine]), "part": apart(part.double(), exact[:, mine])}


def compare_half(ranks: SequenceRanks) -> dict[str, float]:
    """Autocast to bf16, whose windows travel as such."""
    model, ids = make_model("rglru bmru lru mamba2").train(), make_ids(2, 12 * ranks.size)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(ids, use_cache=False).logits
        model.split_sequence(ranks)
        mine = slice(12 * ranks.rank, 12 * ranks.rank + 12)
        logits = model(ids[:, mine], use_cache=False).logits
        logits.float().sum().backward()
    return {"logits": apart(logits.float(), wanted[:, mine].float())}


def main(out: str) -> None:
    dist.init_process_group("gloo")
    ranks = SequenceRanks()
    found = {"scans": compare_scans(ranks), "long": compare_long(ranks), "half": compare_half(ranks), "models": []}
    shapes = SHAPES if ranks.size > 2 else SHAPES[-1:]
    for pattern, shape in product(PATTERNS, shapes):
        if pattern in shape.get("patterns", PATTERNS):
            annealed = "bmru" in pattern.replace("fqbmru", "")
            for epsilon in shape.get("epsilons", (0.5,)) if annealed else (0.5,):
                case = {"pattern": pattern, "epsilon": epsilon, **shape}
                found["models"].append(case | {"apart": compare_models(ranks, pattern, epsilon, shape)})
    Path(out, f"rank{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
