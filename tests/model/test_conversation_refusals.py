"""What is refused when a cache is saved, loaded or forked, and what a file of one costs; nothing is lost by it."""

import pytest
import torch
from conversations import MIXED, STACK, contents, identical, read, saved
from models import make_ids, make_model
from safetensors.torch import load_file, save_file
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionLayer

from hybridlm.model.statefile_hybridlm import fingerprint, read_header


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_size_does_not_depend_on_the_length():
    def size(pattern, length):
        model = make_model(pattern, sliding_window=8) if "sliding" in pattern else make_model(pattern)
        with open(saved(model, make_ids(1, length)), "rb") as file:
            data = file.read()
        return len(data), sum(t.nbytes for t in load_file("state.safetensors").values())

    for pattern in (STACK, "mamba2 sliding_attention"):
        (short, tensors), (long, same) = size(pattern, 20), size(pattern, 900)
        assert tensors == same > 0
        assert abs(short - long) < 64  # the digits of the lengths in the header
    assert size("bmru attention", 900)[1] > size("bmru attention", 20)[1]


def test_a_model_with_other_weights_sizes_dtype_or_epsilon_is_refused(tmp_path):
    model, ids = make_model(STACK), make_ids(1, 9)
    path = saved(model, ids)
    with pytest.raises(ValueError, match=r"another model wrote it, with weights '[0-9a-f]{16}' \(here"):
        make_model(STACK, seed=1).load_cache(path)
    with pytest.raises(ValueError, match=r"with pattern '\(rglru bmru\)\*2' \(here 'rglru bmru'\)"):
        make_model("rglru bmru").load_cache(path)
    with pytest.raises(ValueError, match=r"hidden_size 32 \(here 64\)"):
        make_model(STACK, hidden_size=64).load_cache(path)
    with pytest.raises(ValueError, match=r"dtype 'float32' \(here 'bfloat16'\)"):
        make_model(STACK, dtype=torch.bfloat16).load_cache(path)
    model.set_epsilon(0.5)
    with pytest.raises(ValueError, match=r"with epsilon 0.0 \(here 0.5\)"):
        model.load_cache(path)
    model.set_epsilon(0.0)
    with torch.no_grad():
        model.lm_head.weight[3] += 1  # a step of an optimizer changes every weight; this one changes a row
    with pytest.raises(ValueError, match="weights"):
        model.load_cache(path)


def test_every_weight_counts_for_the_fingerprint():
    model = make_model(STACK)
    before = fingerprint(model)["weights"]
    for name, weight in model.model.named_parameters():
        old = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.01).add_(1e-3)
        assert fingerprint(model)["weights"] != before, name
        with torch.no_grad():
            weight.copy_(old)
    assert fingerprint(model)["weights"] == before


def test_damaged_and_foreign_files(tmp_path):
    model, ids = make_model(STACK), make_ids(1, 9)
    path = tmp_path / saved(model, ids, notes={"title": "Émma"})
    assert read_header(path)["notes"] == {"title": "Émma"}
    assert read_header(path)["tokens"] == 9
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        model.load_cache(path)
    path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    with pytest.raises(ValueError, match="checksum"):
        model.load_cache(path)
    path.write_text("Once upon a time")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        model.load_cache(path)
    save_file({"x": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="not a conversation"):
        model.load_cache(path)
    with pytest.raises(FileNotFoundError, match=r"nothing: there is no such file"):
        model.load_cache(tmp_path / "nothing")
    path.write_bytes(data.replace(b'"hybridlm_conversation":"2"', b'"hybridlm_conversation":"9"'))
    with pytest.raises(ValueError, match="format 9 of a newer hybridlm"):
        model.load_cache(path)


def test_a_failed_write_leaves_the_old_file(monkeypatch, tmp_path):
    model, ids = make_model(STACK), make_ids(1, 9)
    path = tmp_path / saved(model, ids)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        saved(model, make_ids(1, 20), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_cache_made_under_autograd_is_saved():
    model, ids = make_model(MIXED).train(), make_ids(1, 12)
    cache = model(ids, use_cache=True).past_key_values
    assert cache.layers[0].states["0.re"].requires_grad
    model.save_cache(cache, "state")
    loaded = model.load_cache("state")
    assert identical(cache, loaded)
    assert not any(t.requires_grad for _, t in contents(loaded) if isinstance(t, torch.Tensor))


def test_a_place_that_cannot_be_written_to(tmp_path):
    model, ids = make_model(STACK), make_ids(1, 9)
    with pytest.raises(OSError, match=r"state: cannot be written \("):
        saved(model, ids, tmp_path / "nowhere" / "state")


def test_what_cannot_be_saved_or_forked():
    model, ids = make_model(STACK), make_ids(2, 9)
    for empty in (DynamicCache(config=model.config), DynamicCache()):
        with pytest.raises(ValueError, match="is empty"):
            model.save_cache(empty, "state")
        with pytest.raises(ValueError, match="is empty"):
            model.fork_cache(empty)
    cache = read(model, ids)
    with pytest.raises(ValueError, match="repeats=0: must be at least 1"):
        model.fork_cache(cache, 0)
    with pytest.raises(ValueError, match=r"pending_ids has shape \(1, 4\); the cache has 2 rows"):
        model.save_cache(cache, "state", pending_ids=ids[:1, :4])
    with pytest.raises(ValueError, match="input_ids has 9 columns, the cache has seen 9 tokens"):
        model.save_cache(cache, "state", input_ids=ids)
    with pytest.raises(ValueError, match="leave one out"):
        model.save_cache(cache, "state", input_ids=make_ids(2, 11), pending_ids=torch.full((2, 2), 5))
    foreign = read(model, ids)
    foreign.layers[1] = LinearAttentionLayer()
    with pytest.raises(ValueError, match="layer 1 of the DynamicCache is a LinearAttentionLayer"):
        model.save_cache(foreign, "state")


def test_what_a_conversation_refuses():
    model, ids = make_model(STACK), make_ids(2, 9)
    talk = model.load_conversation(saved(model, ids))
    with pytest.raises(ValueError, match="no token is pending and new_ids is empty"):
        talk.inputs()
    with pytest.raises(ValueError, match="new_ids has 3 rows, the conversation 2"):
        talk.inputs(make_ids(3, 4))
    with pytest.raises(ValueError, match="give a column for every token of new_ids"):
        talk.inputs(ids, torch.ones(2, 18))
    path = saved(model, ids, pending_ids=ids[:, :1])
    with pytest.raises(ValueError, match="holds pending_ids too"):
        model.load_cache(path)
