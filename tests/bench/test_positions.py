"""Generation against position: bytes of state, what does not fit, what is kept, what is refused."""

import gc
import json
import weakref

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.bench import position_report, positions
from hybridlm.bench.cells import Here, Problem
from hybridlm.bench.position_picture import draw, round_between, spread_out
from hybridlm.bench.position_report import check_positions, report
from hybridlm.bench.position_table import table
from hybridlm.bench.text import GrowingText, cache_bytes
from hybridlm.bench.transformer_peer import transformer_like
from hybridlm.cli import main
from hybridlm.errors import UserError

MARKS = (64, 128, 256)
WIDTH = 32


def config(pattern="rglru bmru", **sizes):
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 4, "vocab_size": 64} | sizes
    return HybridLMConfig(pattern=pattern, **sizes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(name, model) -> its folder."""
    folder = tmp_path_factory.mktemp("models")

    def save(name, model):
        if not (folder / name).exists():
            model.save_pretrained(folder / name)
        return folder / name

    return save


@pytest.fixture
def checkpoint(saved):
    return saved("recurrent", HybridLMForCausalLM(config()))


@pytest.fixture
def here(monkeypatch):
    """Models in this process, which is quicker to start."""
    monkeypatch.setattr(positions, "Apart", Here)


@pytest.fixture
def measured(here, tmp_path):
    """measured(checkpoint, ...) -> the record, and its rows by model and position."""

    def measure(checkpoint, **options):
        options = {"marks": MARKS, "steps": 4} | options
        entry = report(checkpoint, tmp_path / "out.json", **options)
        assert json.loads((tmp_path / "out.json").read_text()) == entry
        return entry, {(row["model"], row["position"]): row for row in entry["rows"]}

    return measure


def test_a_recurrent_state_is_constant_and_a_transformers_grows(checkpoint, measured):
    entry, rows = measured(checkpoint)
    layers = entry["models"]["transformer"]["layers"]
    assert [list(key) for key in rows] == [[name, mark] for mark in MARKS for name in ("checkpoint", "transformer")]
    for mark in MARKS:
        # A state and three inputs of the convolution in fp32, and a count of 8 bytes, in two layers.
        assert rows["checkpoint", mark]["state_bytes"] == 2 * ((1 + 3) * WIDTH * 4 + 8)
        assert rows["transformer", mark]["state_bytes"] == 2 * layers * mark * WIDTH * 4  # keys and values
        assert rows["transformer", mark]["tokens_read"] == mark
    assert entry["finished"]


@torch.inference_mode()
def test_counting_the_bytes_of_a_cache_keeps_no_tensor_alive():
    """What a step replaced would count as memory of the model."""
    text = GrowingText(HybridLMForCausalLM(config("attention")).eval())
    text.read(20, 8)
    gc.disable()
    try:
        assert cache_bytes(text.cache, text.model) == 2 * 20 * WIDTH * 4
        keys = weakref.ref(text.cache.layers[0].keys)
        text.step()
        assert keys() is None
    finally:
        gc.enable()


def test_the_record_has_all_that_the_figures_depend_on(checkpoint, measured):
    entry, rows = measured(checkpoint)
    assert set(entry) == {"kind", "checkpoint", "machine", "settings", "models", "rows", "finished"}
    settings = entry["settings"]
    assert (settings["positions"], settings["steps"], settings["batch_size"]) == (list(MARKS), 4, 1)
    assert settings["state_limit"].startswith("50% of the ")
    assert entry["machine"]["torch"] == torch.__version__
    ours, peer = entry["models"].values()
    assert (ours["pattern"], ours["weights"], ours["dtype"], ours["device"]) == (
        "rglru bmru",
        "saved",
        "float32",
        "cpu",
    )
    assert (peer["hidden_size"], peer["vocab_size"], peer["weights"]) == (WIDTH, 64, "random")
    assert ours["parameters"] == HybridLMForCausalLM(config()).num_parameters()
    assert abs(peer["parameters"] / ours["parameters"] - 1) <= 0.03
    row = rows["checkpoint", 64]
    assert set(row) == {
        "model", "position", "state_bytes", "tokens_read", "tokens_filled", "step_seconds", "step_seconds_90",
        "step_tokens", "generate_seconds", "generate_seconds_90", "generate_tokens", "resident_bytes",
        "peak_resident_bytes", "generate_peak_resident_bytes",
    }  # fmt: skip
    assert (row["step_tokens"], row["generate_tokens"]) == (4, 4)
    assert 0 < row["step_seconds"] <= row["step_seconds_90"]
    text = table(entry)
    assert "1,040" in text
    assert "made for this comparison" in text


def test_what_does_not_fit_says_what_it_needs_and_later_positions_too(checkpoint, measured):
    entry, rows = measured(checkpoint, memory_limit=100_000 / 2**30)
    layers = entry["models"]["transformer"]["layers"]
    one = 2 * layers * WIDTH * 4
    assert one * 64 < 100_000 < one * 256
    assert "problem" not in rows["transformer", 64]
    for mark in MARKS:
        assert "problem" not in rows["checkpoint", mark]
        if one * mark > 100_000:
            row = rows["transformer", mark]
            assert row["problem"] == f"does not fit: needs about {one * mark / 2**30:.3g} GiB of state"
            assert row["estimated_state_bytes"] == one * mark
            assert "step_seconds" not in row
    assert entry["settings"]["state_limit"] == "as given"
    assert entry["finished"]
    assert "does not fit: needs about" in table(entry)


def test_reading_that_takes_long_is_stopped_or_replaced_by_random_keys(checkpoint, measured, monkeypatch):
    monkeypatch.setattr(positions, "CHUNK", 16)
    monkeypatch.setattr(positions, "PATIENCE", 0)
    entry, rows = measured(checkpoint, seconds=1e-9)
    layers = entry["models"]["transformer"]["layers"]
    for mark in MARKS:
        row = rows["transformer", mark]
        assert row["state_bytes"] == 2 * layers * mark * WIDTH * 4
        assert (row["tokens_read"] + row["tokens_filled"], row["tokens_filled"] > 0) == (mark, True)
    first, later = rows["checkpoint", 64], rows["checkpoint", 256]
    assert first["problem"] == "reading to 64 tokens took over 1e-09 s and had come to 16"
    assert later["problem"] == f"not measured: {first['problem']}"
    assert later["estimated_state_bytes"] == 1040
    assert "the other keys and values are random numbers" in table(entry)


def test_a_stack_with_a_window_is_read_and_stays_as_large_as_the_window(measured, saved):
    model = HybridLMForCausalLM(config("rglru sliding_attention attention", sliding_window=32))
    _, rows = measured(saved("hybrid", model), alone=True)
    for mark in MARKS:
        recurrent, window, whole = (1 + 3) * WIDTH * 4 + 8, 2 * 31 * WIDTH * 4 + 8, 2 * mark * WIDTH * 4
        assert rows["checkpoint", mark]["state_bytes"] == recurrent + window + whole


def test_a_window_that_is_not_full_yet_is_not_taken_for_growth(measured, saved):
    model = HybridLMForCausalLM(config("sliding_attention", sliding_window=32))
    _, rows = measured(saved("window", model), alone=True, marks=[256], memory_limit=10_000 / 2**30)
    assert rows["checkpoint", 256]["state_bytes"] == 2 * 31 * WIDTH * 4 + 8


def test_a_peer_with_a_table_of_positions_ends_there(checkpoint, measured, saved):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 150, "eos_token_id": None}
    peer = saved("gpt2", GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None)))
    entry, rows = measured(checkpoint, peer=peer)
    assert list(entry["models"]) == ["checkpoint", "peer"]
    for mark in (64, 128):
        assert rows["peer", mark]["state_bytes"] == 2 * 2 * mark * 16 * 4
    assert rows["peer", 256]["problem"] == "it is made for at most 150 positions"
    assert entry["finished"]


def test_a_peer_with_rope_goes_beyond_what_it_was_made_for(checkpoint, measured, saved):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 100}
    entry, rows = measured(checkpoint, peer=saved("llama", LlamaForCausalLM(LlamaConfig(**sizes))))
    for mark in MARKS:
        assert rows["peer", mark]["state_bytes"] == 3 * 2 * mark * (2 * 8) * 4  # two of the four heads of 8
    assert "peer: made for 100 positions. Its RoPE goes on beyond" in table(entry)


class Ending(Here):
    """A process that ends by itself at the second position."""

    def call(self, method, seconds):
        if method == "measure" and self.cell.subject.name == "transformer" and len(self.cell.ahead) == 2:
            raise Problem("the process ended by itself, with exit code -9")
        return super().call(method, seconds)


def test_a_process_that_ends_leaves_the_other_one_alone(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(positions, "Apart", Ending)
    entry = report(checkpoint, tmp_path / "out.json", marks=MARKS, steps=4)
    problems = [row.get("problem") for row in entry["rows"]]
    words = "the process ended by itself, with exit code -9"
    assert problems == [None, None, None, words, None, f"not measured: at 128 tokens: {words}"]


def test_memory_that_runs_out_is_a_row(checkpoint, measured, monkeypatch):
    def full(text, tokens, chunk):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    read = positions.GrowingText.read
    monkeypatch.setattr(positions.GrowingText, "read", lambda *given: (full if given[1] == 64 else read)(*given))
    _, rows = measured(checkpoint, alone=True)
    assert rows["checkpoint", 64]["problem"] == "the memory did not suffice at 64 tokens"
    assert rows["checkpoint", 128]["problem"] == "not measured: the memory did not suffice at 64 tokens"


@pytest.mark.parametrize("pattern", ["rglru bmru", "(lru bmru)*3", "mamba2*2", "bmru"])
@pytest.mark.parametrize("sizes", [{}, {"tie_word_embeddings": False}, {"hidden_size": 96, "num_key_value_heads": 2}])
def test_the_transformer_has_as_many_parameters(pattern, sizes):
    ours = config(pattern, mamba_d_head=16, **sizes)
    parameters = HybridLMForCausalLM(ours).num_parameters()
    peer = transformer_like(ours, parameters, 1000)
    assert abs(HybridLMForCausalLM(peer).num_parameters() / parameters - 1) <= 0.03
    assert set(peer.block_types) == {"attention"}
    for name in ("hidden_size", "vocab_size", "tie_word_embeddings", "num_attention_heads", "num_key_value_heads"):
        assert getattr(peer, name) == getattr(ours, name)
    assert peer.max_position_embeddings == 1000


def test_a_width_that_no_transformer_has():
    odd = config("bmru", hidden_size=33)
    with pytest.raises(UserError, match=r"hidden_size=33: RoPE needs heads of an even width.* --no-peer"):
        transformer_like(odd, 10_000, 1000)
    assert (
        transformer_like(config("bmru", hidden_size=44, num_attention_heads=5), 20_000, 1000).num_attention_heads == 2
    )
    with pytest.raises(UserError, match=r"no stack of attention of this width .* has 500 parameters"):
        transformer_like(config(), 500, 1000)


def test_positions():
    assert check_positions([256, 64, 64], 4) == (64, 256)
    with pytest.raises(UserError, match="positions=0: must be at least 1"):
        check_positions([0, 64], 4)
    with pytest.raises(UserError, match="positions: there is none"):
        check_positions([], 4)
    with pytest.raises(UserError, match="positions=64,70: they must be at least 10 apart, since 4 steps"):
        check_positions([64, 70], 4)
    assert check_positions([64, 74], 4) == (64, 74)
    with pytest.raises(UserError, match="steps=2: must be at least 3"):
        check_positions([64], 2)
    assert check_positions(position_report.POSITIONS, position_report.STEPS)[-1] == 1_000_000


def refused(capsys, *words):
    assert main(["bench-generation", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_what_is_refused(checkpoint, here, saved, tmp_path, capsys):
    out = ("--out", tmp_path / "x.json")
    assert "there is no such folder" in refused(capsys, tmp_path / "none")
    assert "Give --out FILE.json" in refused(capsys, "owner/model")
    assert "positions='64,x': 'x' is no number of tokens" in refused(capsys, checkpoint, *out, "--positions", "64,x")
    assert "positions=-5: must be at least 1" in refused(capsys, checkpoint, *out, "--positions", "-5,64")
    assert "must end in .json" in refused(capsys, checkpoint, "--out", tmp_path / "x.png")
    assert "memory_limit=0: must be above 0 GiB" in refused(capsys, checkpoint, *out, "--memory-limit", 0)
    assert "memory_limit=inf: must be above 0 GiB" in refused(capsys, checkpoint, *out, "--memory-limit", "inf")
    assert "time_limit=-1: must be above 0 seconds" in refused(capsys, checkpoint, *out, "--time-limit=-1")
    assert "did you mean 'float16'" in refused(capsys, checkpoint, *out, "--dtype", "flot16")
    assert f"--peer {tmp_path}/none: there is no such" in refused(capsys, checkpoint, *out, "--peer", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(capsys, tmp_path / "empty", *out)
    assert f"--peer {tmp_path}/empty: the folder has no config.json" in refused(
        capsys, checkpoint, *out, "--peer", tmp_path / "empty"
    )
    old = saved("gpt", OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_embd=16, n_layer=1, n_head=2, vocab_size=50)))
    assert f"--peer {old}: OpenAIGPTLMHeadModel takes no cache" in refused(capsys, checkpoint, *out, "--peer", old)
    assert "a Transformer of equal size is made for checkpoints of hybridlm" in refused(
        capsys, saved("gpt2", GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50))), *out
    )
    assert not list(tmp_path.glob("x*"))


def test_weights_that_are_damaged_are_refused_before_anything_is_written(checkpoint, here, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.glob("*.json"):
        (model / file.name).write_bytes(file.read_bytes())
    (model / "model.safetensors").write_bytes(b"nothing")
    assert f"--peer {model}: cannot be loaded" in refused(capsys, checkpoint, "--peer", model)
    assert "cannot be loaded" in refused(capsys, model, "--no-peer")
    assert not (model / "evaluation").exists()


def test_a_model_that_keeps_nothing_is_refused(checkpoint, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(positions, "cache_bytes", lambda *_: 0)
    words = (checkpoint, "--no-peer", "--out", tmp_path / "x.json")
    assert f"checkpoint {checkpoint}: HybridLMForCausalLM keeps nothing in its cache" in refused(capsys, *words)


def test_the_command_in_processes_of_its_own(checkpoint, tmp_path, capsys):
    """Where a process's memory is known; the files beside the checkpoint, which a second run replaces."""
    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "evaluation").mkdir()
    (model / "evaluation" / "generation.json").write_text("old")
    words = ["bench-generation", str(model), "--no-peer", "--positions", "64,128", "--steps", "4"]
    assert main(words) == 0
    entry = json.loads((model / "evaluation" / "generation.json").read_text())
    assert (model / "evaluation" / "generation.png").read_bytes().startswith(b"\x89PNG")
    assert list(entry["models"]) == ["checkpoint"]
    before = entry["models"]["checkpoint"]["resident_before_bytes"]
    for row in entry["rows"]:
        assert before < row["resident_bytes"] <= row["peak_resident_bytes"] < 2**35
    shown = capsys.readouterr()
    assert "checkpoint at 64 tokens: " in shown.err
    assert f"{entry['rows'][0]['resident_bytes'] / 2**20:,.0f}" in shown.out


def test_ctrl_c_keeps_the_rows_that_there_are(checkpoint, here, tmp_path, capsys, monkeypatch):
    measure = Here.call

    def call(self, method, seconds):
        if method == "measure" and len(self.cell.ahead) == 2:
            raise KeyboardInterrupt
        return measure(self, method, seconds)

    monkeypatch.setattr(Here, "call", call)
    words = ["bench-generation", checkpoint, "--positions", "64,128,256", "--steps", "4", "--out", tmp_path / "x.json"]
    assert main([str(word) for word in words]) == 130
    entry = json.loads((tmp_path / "x.json").read_text())
    assert [row["position"] for row in entry["rows"]] == [64, 64]
    assert not entry["finished"]
    assert (tmp_path / "x.png").exists()
    assert "Not finished" in capsys.readouterr().out


def test_the_picture_of_rows_with_problems(tmp_path):
    row = {"step_seconds": 0.001, "step_seconds_90": 0.002, "generate_seconds": 0.003, "generate_seconds_90": 0.004}
    row |= {"state_bytes": 1040, "resident_bytes": None, "peak_resident_bytes": None}
    row |= {"generate_peak_resident_bytes": None}
    facts = {"pattern": "bmru", "class": "X", "parameters": 1000, "layers": 1, "hidden_size": 8, "vocab_size": 9}
    facts |= {"dtype": "float32", "device": "cpu", "resident_before_bytes": None, "weights": "random"}
    missing = {"problem": "does not fit: needs about 2 GiB of state", "estimated_state_bytes": 2**31}
    settings = {"steps": 4, "chunk": 1024, "state_limit_bytes": 2**30, "state_limit": "as given"}
    entry = {
        "machine": {"kind": "cpu", "device": "processor", "threads": 1, "torch": "2"},
        "models": {"checkpoint": facts, "transformer": facts},
        "settings": settings,
        "rows": [
            {"model": "checkpoint", "position": 64, **row},
            {"model": "transformer", "position": 64, **missing},
            {"model": "checkpoint", "position": 128, "problem": "over the limit of 5 s"},
        ],
        "finished": False,
    }
    assert draw(entry, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    lines = table(entry).splitlines()
    assert next(line for line in lines if line.lstrip().startswith("64  checkpoint")).split() == [
        "64", "checkpoint", "1,040", "1.00", "2.00", "unknown", "unknown", "3.00", "4.00", "unknown",
    ]  # fmt: skip


def test_labels_of_the_axes():
    """Positions that were measured, powers of ten first where not all have room; round numbers, few but not too few."""
    assert spread_out(position_report.POSITIONS) == [1_000, 10_000, 100_000, 1_000_000]
    assert spread_out([64, 128, 256]) == [64, 128, 256]
    assert spread_out([5000]) == [5000]
    assert spread_out([1000, 1010, 4096]) == [1000, 4096]
    assert round_between(0.009, 20_000) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000, 10_000])
    assert round_between(1.1, 40) == [2, 5, 10, 20]
    assert round_between(210, 880) == [300, 400, 500, 600, 800]
