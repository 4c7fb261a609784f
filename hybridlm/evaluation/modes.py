"""Modes of generation and training, each as a trial that runs it; `modes_table.py` makes a table of modes x models.

Every model is small, with random weights wide enough that a wrong state shows (`modes_models.py`).
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening, StaticCache
from transformers.modeling_layers import GradientCheckpointingLayer

from hybridlm.evaluation.modes_trial import NEW, Otherwise, Result, Subject, Trial, deviation

PADDING = (0, 3, 7)
"""Padding tokens of the three rows of a padded batch."""


def greedy(s: Subject) -> Trial:
    ids = s.ids()
    return Trial(s.expected(ids), lambda: s.generate(ids))


def left_padding(s: Subject) -> Trial:
    ids, mask = s.ids(3), torch.ones(3, 14, dtype=torch.long)
    for row, width in enumerate(PADDING):
        mask[row, :width] = 0
    texts = [ids[row : row + 1, width:] for row, width in enumerate(PADDING)]
    return Trial(s.expected(*texts), lambda: s.generate(ids * mask, attention_mask=mask))


def beams(s: Subject) -> Trial:
    options = {"max_new_tokens": NEW, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}

    def search(use_cache: bool) -> Result:
        output = s.model.generate(s.ids(2), do_sample=False, use_cache=use_cache, **options)
        return output.sequences, output.sequences_scores

    return Trial(search(False), lambda: search(True))


def chunked_prefill(s: Subject) -> Trial:
    ids = s.ids()
    return Trial(s.expected(ids), lambda: s.generate(ids, prefill_chunk_size=4))


def prompt_lookup(s: Subject) -> Trial:
    ids = s.ids(length=5).repeat(1, 3)
    return Trial(s.expected(ids), lambda: s.generate(ids, prompt_lookup_num_tokens=3))


def assisted(s: Subject) -> Trial:
    ids = s.ids()
    return Trial(s.expected(ids), lambda: s.generate(ids, assistant_model=s.draft))


def static_cache(s: Subject) -> Trial:
    ids = s.ids()
    return Trial(s.expected(ids), lambda: s.generate(ids, cache_implementation="static", disable_compile=True))


def compiled_step(s: Subject) -> Trial:
    """One graph without a break for every step behind the prompt; traced, and run by torch's own kernels."""
    ids = s.ids()

    def attempt() -> Result:
        torch.compiler.reset()
        graphs: list[Any] = []

        def as_traced(graph: Any, _: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        cache = StaticCache(config=s.model.config, max_cache_len=32)
        s.cached(ids[:, :8], cache)
        step = torch.compile(s.model, backend=as_traced, fullgraph=True)
        with torch.no_grad():
            steps = [step(ids[:, t : t + 1], **{s.cache_name: cache}, use_cache=True).logits for t in range(8, 14)]
        if len(graphs) != 1:
            raise Otherwise(f"{len(graphs)} graphs for {len(steps)} steps")
        return (torch.cat(steps, dim=1),)

    return Trial((s.plain(ids)[:, 8:],), attempt)


def several_tokens(s: Subject) -> Trial:
    ids = s.ids()

    def attempt() -> Result:
        cache = s.cache()
        return (torch.cat([s.cached(ids[:, :6], cache), s.cached(ids[:, 6:], cache)], dim=1),)

    return Trial((s.plain(ids),), attempt)


def right_padding(s: Subject) -> Trial:
    ids = s.ids(2)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    want = torch.cat([s.plain(ids[:1])[0], s.plain(ids[1:, :9])[0]])
    return Trial((want,), lambda: (s.plain(ids * mask, attention_mask=mask)[mask.bool()],))


def behind_right_padding(s: Subject) -> Trial:
    ids, more = s.ids(2), s.ids(2, 4, seed=2)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    texts = torch.cat([ids[:1], more[:1]], dim=1), torch.cat([ids[1:, :9], more[1:]], dim=1)

    def attempt() -> Result:
        cache = s.cache()
        s.cached(ids * mask, cache, mask)
        return (s.cached(more, cache, torch.cat([mask, torch.ones_like(more)], dim=1)),)

    return Trial((torch.cat([s.plain(text)[:, -4:] for text in texts]),), attempt)


def packed(s: Subject) -> Trial:
    """With everything that transformers' collator can say about where documents begin."""
    first, second = s.ids(length=9), s.ids(length=7, seed=2)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch: dict[str, Any] = dict(collate([{"input_ids": text[0].tolist()} for text in (first, second)]))
    ids = batch.pop("input_ids")
    del batch["labels"]
    want = torch.cat([s.plain(first), s.plain(second)], dim=1)
    return Trial((want,), lambda: (s.plain(ids, **batch),))


def new_tokens_alone(s: Subject) -> Trial:
    """The call of transformers' documentation: the mask has a column for every token, in the cache and new."""
    ids = s.ids()

    def attempt() -> Result:
        cache = s.cache()
        s.cached(ids[:, :10], cache)
        return s.generate(ids[:, 10:], cache, attention_mask=torch.ones_like(ids))

    return Trial(s.expected(ids), attempt)


def saved_cache(s: Subject) -> Trial:
    """Into a file, and on in another instance of the model; with `save_cache` where there is one, else pickled."""
    ids = s.ids()

    def attempt() -> Result:
        cache = s.cache()
        s.cached(ids[:, :10], cache)
        other = Subject(s.pristine, s.draft)
        if hasattr(s.model, "save_cache"):
            with tempfile.TemporaryDirectory() as folder:
                s.model.save_cache(cache, Path(folder) / "state")
                cache = other.model.load_cache(Path(folder) / "state")
        else:
            file = io.BytesIO()
            torch.save(cache, file)
            file.seek(0)
            cache = torch.load(file, weights_only=False)
        return (other.stepwise(ids[:, 10:], cache),)

    return Trial((s.plain(ids)[:, 10:],), attempt)


def forked_cache(s: Subject) -> Trial:
    """One text, two questions, in one batch; and the original goes on as if it had not been copied."""
    text, questions = s.ids(length=10), s.ids(2, 4, seed=2)
    texts = [torch.cat([text, question.unsqueeze(0)], dim=1) for question in questions]

    def attempt() -> Result:
        cache = s.cache()
        s.cached(text, cache)
        if hasattr(s.model, "fork_cache"):
            fork = s.model.fork_cache(cache, 2)
        else:
            fork = copy.deepcopy(cache)
            fork.reorder_cache(torch.tensor([0, 0]))  # batch_repeat_interleave is missing in recurrent layers
        return s.stepwise(questions, fork), s.stepwise(questions[:1], cache)

    both = torch.cat([s.plain(each)[:, 10:] for each in texts])
    return Trial((both, both[:1]), attempt)


def embeddings(s: Subject) -> Trial:
    ids = s.ids()
    return Trial(s.expected(ids), lambda: s.generate(None, inputs_embeds=s.model.get_input_embeddings()(ids)))


def last_logits(s: Subject) -> Trial:
    ids = s.ids(2)
    return Trial((s.plain(ids)[:, -3:],), lambda: (s.plain(ids, logits_to_keep=3),))


def checkpointing(s: Subject) -> Trial:
    """The same gradients, from layers whose insides run once more in the backward."""
    ids = s.ids(2)
    runs: list[Any] = []
    for layer in s.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            next(layer.children()).register_forward_hook(lambda module, *_: runs.append(module))

    def gradients() -> Result:
        s.model.train().zero_grad()
        s.model(ids, labels=ids, use_cache=False).loss.backward()
        return tuple(p.grad.clone() for p in s.model.parameters() if p.grad is not None)

    def attempt() -> Result:
        runs.clear()
        s.model.activation_checkpointing_enable()
        found = gradients()
        if not runs or len(runs) != 2 * len(set(runs)):
            raise Otherwise(f"{len(runs)} runs of {len(set(runs))} layers: nothing is computed again in the backward")
        return found

    return Trial(gradients(), attempt)


def exported(s: Subject) -> Trial:
    """Exported with one text, run with another."""
    ids = s.ids()

    class Logits(nn.Module):
        def __init__(self, model: Any):
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(ids, use_cache=False).logits

    def attempt() -> Result:
        with torch.no_grad():
            program = torch.export.export(Logits(s.model), (s.ids(seed=2),), strict=False)
            return (program.module()(ids),)

    return Trial((s.plain(ids),), attempt)


def bfloat16(s: Subject) -> Trial:
    """Against the forward without a cache in bf16. Rounding: twice as far as that is from the same weights in fp32,
    so a state kept in bf16 passes, which several of the models have."""
    ids = s.ids(2, 24)
    s.model.bfloat16()
    whole = s.plain(ids).float()
    exact = Subject(copy.deepcopy(s.model).float(), s.draft).plain(ids)
    noise = deviation(exact[:, 8:], whole[:, 8:])

    def attempt() -> Result:
        cache = s.cache()
        s.cached(ids[:, :8], cache)
        return (s.stepwise(ids[:, 8:], cache).float(),)

    return Trial((whole[:, 8:],), attempt, 2 * noise)


MODES: dict[str, Callable[[Subject], Trial]] = {
    "greedy, cached": greedy,
    "left padding: a row in a batch as alone": left_padding,
    "right padding, one forward": right_padding,
    "right padding, then on with the cache": behind_right_padding,
    "beam search, cached": beams,
    "several tokens behind a cache": several_tokens,
    "chunked prefill": chunked_prefill,
    "packed documents (`DataCollatorWithFlattening`)": packed,
    "prompt lookup": prompt_lookup,
    "assisted decoding": assisted,
    "static cache": static_cache,
    "static cache, compiled step, one graph": compiled_step,
    "`generate` behind a cache, new tokens alone": new_tokens_alone,
    "cache saved, loaded, continued": saved_cache,
    "cache forked into a batch": forked_cache,
    "`generate` from `inputs_embeds`": embeddings,
    "`logits_to_keep`": last_logits,
    "gradient checkpointing": checkpointing,
    "`torch.export` of a forward": exported,
    "bf16, cached": bfloat16,
}
"""What a row of the table is called, and how it is tried."""
