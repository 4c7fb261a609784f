"""Several copies of the code in one process, as when checkpoints that carry it are loaded for a target and a draft."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch
from models import make_ids, make_model
from test_conversation import identical, read
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

import hybridlm.model
from hybridlm.model.cell_hybridlm import RECURRENT_LAYER


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the code that is imported last: transformers makes its layers, for whichever model."""
    package = Path(hybridlm.model.__file__).parent
    shutil.copytree(package, tmp_path / "carried", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    for mapping in (DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING, LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING):
        monkeypatch.setitem(mapping, RECURRENT_LAYER, mapping[RECURRENT_LAYER])
    yield importlib.import_module("carried.cache_hybridlm")
    for name in [name for name in sys.modules if name.partition(".")[0] == "carried"]:
        del sys.modules[name]


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
@torch.no_grad()
def test_caches_are_loaded_and_forked_whichever_copy_was_imported_last(make, copied, tmp_path):
    model, ids = make_model("lru bmru attention"), make_ids(2, 14)
    layer = DynamicCache(config=model.config).layers[0]
    assert type(layer) is copied.HybridRecurrentLayer
    cache = read(model, ids[:, :9], make, **({} if make is DynamicCache else {"max_cache_len": 20}))
    model.save_cache(cache, tmp_path / "state")
    others = [model.load_cache(tmp_path / "state"), model.load_conversation(tmp_path / "state").cache]
    others.append(model.fork_cache(cache))
    assert all(identical(cache, other) for other in others)
    want = model(ids[:, 9:], past_key_values=cache).logits
    for other in others:
        assert torch.equal(model(ids[:, 9:], past_key_values=other).logits, want)
