"""Reading, answering and comparing caches: for the tests of saved conversations."""

import torch
from transformers import DynamicCache

STACK = "(rglru bmru)*2"
MIXED = "lru bmru attention"
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
SAMPLING = {"do_sample": True, "top_k": 0, "temperature": 4.0, "pad_token_id": 0, "eos_token_id": None}


def generate(model, new=8, seed=5, **options):
    torch.manual_seed(seed)
    return model.generate(max_new_tokens=new, **options)


def read(model, ids, make=DynamicCache, **options):
    cache = make(config=model.config, **options)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache


def contents(cache):
    """Everything that a cache holds, layer by layer, as (name, value) pairs."""
    found = []
    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                found += [(f"{name}.{key}", each) for key, each in value.items()]
            elif name not in ("_past", "record_past"):
                found.append((name, value))
    return found


def identical(one, two):
    for (name, x), (other, y) in zip(contents(one), contents(two), strict=True):
        assert name == other
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            assert x.device == y.device
            assert torch.equal(x, y), name
        else:
            assert x == y, name
    return True


def shares_memory(one, two):
    def places(cache):
        return {v.untyped_storage().data_ptr() for _, v in contents(cache) if isinstance(v, torch.Tensor) and v.ndim}

    return bool(places(one) & places(two))


def saved(model, ids, path="state.safetensors", **rest):
    model.save_cache(read(model, ids), path, **rest)
    return path
