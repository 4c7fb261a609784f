"""How the generation tests run a mode, and how they judge it: beside one plain forward over the text that came out.

Tokens alone say little: they hide a state that is a little wrong, and in bf16 they differ where two tokens are nearly
as likely. So a run also gives the logits that each token was chosen from, and these must be those of a forward without
a cache over the whole text: to 1e-4 of the largest in fp32, and in bf16 to a third of the forward's own noise, which is
how far the logits of the same weights in fp32 lie away. Sound runs differ by at most 0.25 of it, most not at all.
States rounded to bf16 between the calls differ by 0.4 to 1.2 of it where a layer of `lru`, `rglru`, `mingru`, `gru`,
`lstm` or `mamba2` decides; by less than a third, so that they pass, where states are small integers (`bmru`, `cmru`,
`fqbmru`), and where `acmru` stands last. fp32 is the sharper half.
"""

import torch
from models import make_ids, make_model
from transformers import GenerationConfig

PROMPT, NEW = 20, 9
PADDING = {"no padding": (0, 0, 0), "left padding": (0, 3, 11)}

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
    "beam sampling": {"do_sample": True, "num_beams": 2, "top_k": 20},
    "several samples": {"do_sample": True, "top_k": 20, "num_return_sequences": 2},
    "several beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}
CACHES = {
    "no cache": {"use_cache": False},
    "dynamic": {"use_cache": True},
    "static": {"use_cache": True, "cache_implementation": "static", "disable_compile": True},
}


def models(pattern, dtype=torch.float32, **options):
    """The model, and the same weights in fp32 where it is not in fp32 itself, else None. No token ends a text."""
    options = {"dtype": dtype, "eos_token_id": None, "tie_word_embeddings": False, **options}
    exact = None if dtype == torch.float32 else make_model(pattern, **options).float()
    return make_model(pattern, **options), exact


def prompts(padding="no padding", length=PROMPT):
    """ids, mask: three rows, of which PADDING says how many tokens on the left are padding."""
    ids = make_ids(3, length)
    mask = torch.ones_like(ids)
    for row, width in enumerate(PADDING[padding]):
        mask[row, :width] = 0
    return ids.masked_fill(mask == 0, 0), mask


def generate(model, ids=None, mode="greedy", cache="dynamic", config=None, **arguments):
    """NEW tokens in a mode, as transformers' output with the logits of every step. config: further generation options;
    arguments: of `generate` itself."""
    options = {"max_new_tokens": NEW, "pad_token_id": 0, "return_dict_in_generate": True, "output_logits": True}
    options |= {**MODES[mode], **CACHES[cache], **(config or {})}
    torch.manual_seed(11)
    return model.generate(ids, generation_config=GenerationConfig(**options), **arguments)


def chosen_from(output):
    """The logits that every new token of every sequence was chosen from, (B, new, V) fp32; beams are followed back."""
    steps = torch.stack(output.logits, dim=1).float()
    rows = getattr(output, "beam_indices", None)
    if rows is None:
        return steps
    assert (rows >= 0).all()
    return torch.stack([steps[rows[:, t], t] for t in range(steps.shape[1])], dim=1)


@torch.no_grad()
def plain_forward(model, sequences, mask):
    """The logits for the tokens behind `mask`, the prompt's, from one forward over the whole texts."""
    new = sequences.shape[1] - mask.shape[1]
    mask = torch.cat([mask, mask.new_ones(len(mask), new)], dim=1)
    mask = mask.repeat_interleave(len(sequences) // len(mask), dim=0)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    logits = model(sequences, attention_mask=mask, position_ids=places, use_cache=False).logits
    return logits[:, -new - 1 : -1].float()


def assert_on_the_plain_path(model, output, mask, exact=None, what="", share=1 / 3):
    """share: of the noise in bf16."""
    got, want = chosen_from(output), plain_forward(model, output.sequences, mask)
    if exact is None:
        difference, allowed = (got - want).abs().max(), 1e-4 * want.abs().max()
    else:
        fp32 = plain_forward(exact, output.sequences, mask)
        noise = (want - fp32).square().mean().sqrt()
        assert 0 < noise < 0.4 * fp32.std()
        difference, allowed = (got - want).square().mean().sqrt(), share * noise
    assert difference <= allowed, f"{what}: {difference:.3g} where {allowed:.3g} is allowed"
