"""The ways of calling a model beside the plain one: embeddings, outputs, positions, compiled, checkpointed, offloaded,
quantised."""

import pytest
import torch
from generating import NEW, PADDING, PROMPT, generate, models, prompts
from models import PATTERNS, make_ids, make_model
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DataCollatorWithFlattening,
    DynamicCache,
    StaticCache,
    TorchAoConfig,
)

MIXED = [
    "(rglru bmru)*2",
    "lru bmru attention",
    "gru+fqbmru sliding_attention attention",
    "mamba2 lstm+bmru sliding_attention",
]
"""Stacks that hold every kind of layer."""
TRACED = ["rglru+lru bmru attention", "gru+fqbmru sliding_attention attention", "mamba2 lstm sliding_attention"]
"""The same kinds in fewer layers: tracing takes seconds for each."""


def close(got, want, share=1e-4):
    return (got - want).abs().max() <= share * want.abs().max()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_inputs_embeds(pattern):
    """In a forward, in a prefill that goes on with ids, and as the prompt of generate, which gives the new tokens."""
    model, _ = models(pattern)
    ids, mask = prompts("left padding")
    embeds = model.get_input_embeddings()(ids).detach()
    with torch.no_grad():
        want = model(ids, attention_mask=mask, use_cache=False).logits
        assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits, want)
        begun = model(inputs_embeds=embeds[:, :15], attention_mask=mask[:, :15], use_cache=True)
        rest = model(ids[:, 15:], attention_mask=mask, past_key_values=begun.past_key_values).logits
        assert close(rest[mask[:, 15:].bool()], want[:, 15:][mask[:, 15:].bool()])
    for mode in ("greedy", "beam sampling"):
        for cache in ("no cache", "dynamic", "static"):
            if (mode, cache) == ("beam sampling", "no cache"):
                continue  # transformers then gives the model ids of another length than the mask, whatever the model
            tokens = generate(model, ids, mode, cache, attention_mask=mask).sequences
            written = generate(model, None, mode, cache, inputs_embeds=embeds, attention_mask=mask).sequences
            assert torch.equal(written, tokens[:, PROMPT:]), (mode, cache)


@pytest.mark.parametrize("pattern", MIXED)
@torch.no_grad()
def test_hidden_states_attentions_and_tuples(pattern):
    model = make_model(pattern, attn_implementation="eager")
    ids = make_ids(2, 11)
    depth, kinds = model.config.num_hidden_layers, model.config.layer_types
    output = model(ids, labels=ids, output_hidden_states=True, output_attentions=True)
    hidden = output.hidden_states
    assert [states.shape for states in hidden] == [(2, 11, 32)] * (depth + 1)
    assert torch.equal(hidden[0], model.get_input_embeddings()(ids))
    assert torch.equal(hidden[-1], model.model(ids).last_hidden_state)
    assert torch.equal(model.lm_head(hidden[-1]), output.logits)
    assert len(output.attentions) == sum("attention" in kind and "linear" not in kind for kind in kinds)
    for weights, kind in zip(output.attentions, [kind for kind in kinds if "linear" not in kind], strict=True):
        assert weights.shape == (2, 4, 11, 11)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 11))
        seen = torch.ones(11, 11).tril().bool()
        if kind == "sliding_attention":
            seen &= torch.ones(11, 11).triu(1 - model.config.sliding_window).bool()
        assert torch.equal(weights[0, 0] > 0, seen)
    loss, logits, cache, *rest = model(
        ids, labels=ids, use_cache=True, output_hidden_states=True, output_attentions=True, return_dict=False
    )
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert isinstance(cache, DynamicCache)
    assert len(rest[0]) == depth + 1
    assert torch.equal(model.model(ids, return_dict=False)[0], hidden[-1])


@pytest.mark.parametrize("pattern", MIXED)
@torch.no_grad()
def test_logits_to_keep(pattern):
    model, ids = make_model(pattern), make_ids(2, 11)
    full = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=0).logits, full)
    for keep, want in (
        (1, full[:, -1:]),
        (4, full[:, -4:]),
        (torch.tensor([2]), full[:, 2:3]),
        (torch.tensor([0, 10, 5]), full[:, [0, 10, 5]]),
        (torch.arange(11) % 2 == 0, full[:, ::2]),
    ):
        assert close(model(ids, logits_to_keep=keep).logits, want, 1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_position_ids(pattern):
    """Only differences of positions count, and where they restart; one row of them serves all rows."""
    model, ids = make_model(pattern), make_ids(2, 15)
    want = model(ids).logits
    positions = torch.arange(15)[None]
    for given in (positions, positions.expand(2, -1), positions + 1, positions + 1000):
        assert close(model(ids, position_ids=given).logits, want), given
    packed = torch.cat([torch.arange(6), torch.arange(9)])[None]
    apart = torch.cat([model(ids[:, :6]).logits, model(ids[:, 6:]).logits], dim=1)
    assert close(model(ids, position_ids=packed, use_cache=False).logits, apart)
    assert not close(apart, want, 1e-2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_padding_free_training_equals_padded_training(pattern):
    """What DataCollatorWithFlattening gives, with and without the arguments of flash attention, in fp64."""
    model = make_model(pattern).double().train()
    texts = [make_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 1, 14)]
    count = torch.tensor(sum(len(text) - 1 for text in texts))
    ids = torch.zeros(4, 14, dtype=torch.long)
    labels = torch.full((4, 14), -100)
    mask = torch.zeros(4, 14, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = labels[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    padded = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=count)
    padded.loss.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    for options in ({}, {"return_flash_attn_kwargs": True}):
        model.zero_grad()
        batch = DataCollatorWithFlattening(**options)([{"input_ids": text} for text in texts])
        assert batch["input_ids"].shape == (1, 28)
        assert ("cu_seq_lens_q" in batch) == bool(options)
        flat = model(**batch, num_items_in_batch=count, use_cache=False)
        assert torch.allclose(flat.loss, padded.loss, rtol=1e-6)  # transformers' loss is fp32
        flat.loss.backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter.grad, want[name], rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("pattern", MIXED)
def test_activation_checkpointing_changes_nothing(pattern, reentrant):
    """Also with dropout, whose random numbers are drawn again the same. torch's fused LSTM rounds differently where no
    gradient is asked for, as in the first forward of the reentrant kind; all else is equal to the last bit."""
    model, ids = make_model(pattern, attention_dropout=0.3).train(), make_ids(2, 12)

    def gradients():
        model.zero_grad()
        torch.manual_seed(3)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    loss, want = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    entered = []
    for layer in model.model.layers:
        assert layer.gradient_checkpointing
        layer.mixer.register_forward_hook(lambda *_: entered.append(1))
    again, got = gradients()
    assert len(entered) == 2 * model.config.num_hidden_layers  # the forward is run once more in the backward
    share = 1e-5 if "lstm" in pattern else 0.0
    assert close(again, loss, share)
    for name in want:
        assert close(got[name], want[name], share), name


def counting_backend(graphs):
    """A backend that runs the traced graph as it is: what is traced is in question, not what is made of it."""

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    return backend


# torch's own tracer makes an instance of an autograd Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("pattern", TRACED)
def test_one_graph_serves_every_step_of_every_prompt(pattern):
    """Static cache, fullgraph: a prefill and a step are a graph each, and nothing is traced again for later steps, nor
    for other prompts of the same length. A prefill into a cache that was reset is one more, for stock layers too."""
    model, _ = models(pattern)
    torch.compiler.reset()
    graphs, counts = [], []
    compiled = torch.compile(model, backend=counting_backend(graphs), fullgraph=True)
    for prompt in ("new", "new", "reset", "reset"):
        if prompt == "new":
            cache = StaticCache(config=model.config, max_cache_len=24)
        else:
            cache.reset()
        ids = make_ids(2, 14, seed=len(counts))
        with torch.no_grad():
            want = model(ids, use_cache=False).logits
            parts = [compiled(piece, past_key_values=cache).logits for piece in ids.split([8] + [1] * 6, dim=1)]
        assert close(torch.cat(parts, dim=1), want)
        counts.append(len(graphs))
    assert counts == [2, 2, 3, 3]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("pattern", TRACED)
def test_generate_compiles_its_steps(pattern):
    """Two prompts, one graph, with left padding; transformers runs the prefill as it is. Its sliding layers count their
    tokens in Python, so that the first step is traced for its length and the next for any."""
    model, _ = models(pattern)
    torch.compiler.reset()
    graphs = []
    compile_config = CompileConfig(fullgraph=True, backend=counting_backend(graphs), mode=None)
    compile_config._compile_all_devices = True  # transformers compiles on accelerators by itself, on a CPU when told so
    for padding in PADDING:
        ids, mask = prompts(padding)
        want = generate(model, ids, attention_mask=mask).sequences
        options = {"disable_compile": False, "compile_config": compile_config}
        assert torch.equal(generate(model, ids, "greedy", "static", options, attention_mask=mask).sequences, want)
        assert len(graphs) == (2 if "sliding" in pattern else 1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pattern", [*MIXED, "rglru+bmru attention"])
def test_offloaded_layers_give_the_same_tokens(pattern, tied, tmp_path):
    """Layers on the disk and in main memory beside the device, which is the CPU here: accelerate moves each in when it
    is called. Parameters that are no module's own call (gates of `rglru`, convolutions, decays) come along."""
    model, _ = models(pattern, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    ids, mask = prompts("left padding")
    want = {mode: generate(model, ids, mode, attention_mask=mask).sequences for mode in ("greedy", "beams")}
    depth = model.config.num_hidden_layers
    some = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "cpu"}
    some |= {"model.rotary_emb": "cpu"} if "attention" in pattern else {}
    some |= {f"model.layers.{i}": "cpu" if i == 1 else "disk" for i in range(depth)}
    for name, places in {"some": some, "all": {"": "disk"}}.items():
        for options in ({}, {"offload_state_dict": True}):  # the latter is taken and not needed since transformers 5
            loaded = AutoModelForCausalLM.from_pretrained(
                tmp_path / "model", device_map=places, offload_folder=tmp_path / name, **options
            )
            away = {key for key, parameter in loaded.named_parameters() if parameter.is_meta}
            assert {key.split(".")[2] for key in away if ".layers." in key} >= {
                str(i) for i in range(depth) if name == "all" or i != 1
            }
            for mode, tokens in want.items():
                output = generate(loaded, ids, mode, attention_mask=mask)
                assert torch.equal(output.sequences, tokens), (name, mode)
                assert not any(tensor.is_meta for layer in output.past_key_values.layers for tensor in held(layer))
            assert {key for key, parameter in loaded.named_parameters() if parameter.is_meta} >= away


def held(layer):
    return layer._tensors() if hasattr(layer, "_tensors") else [layer.keys, layer.values]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_int8_weights(pattern, tmp_path):
    """Loading through torchao: every linear map but the tied output becomes int8, and what a recurrence owns itself
    stays as it is. The model gives the logits of its own rounded weights, generates, is saved, and is loaded again."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao, of the extra dev, is not installed")
    model, _ = models(pattern)
    model.save_pretrained(tmp_path / "model")
    options = {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig())}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **options)
    int8 = {name: p for name, p in loaded.named_parameters() if type(p.data) is not torch.Tensor}
    linear = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert set(int8) == linear - {"lm_head.weight"}
    ids = make_ids(2, 12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in int8:
                rounded = int8[name].dequantize()
                step = parameter.abs().amax(1, keepdim=True) / 127
                assert ((rounded - parameter).abs() <= 0.51 * step).all(), name
                parameter.copy_(rounded)
        got = loaded(ids).logits
        assert close(got, model(ids).logits)
    assert torch.equal(generate(loaded, ids).sequences, generate(model, ids).sequences)
    loaded.save_pretrained(tmp_path / "int8")
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "int8")(ids).logits, got)


def test_int8_weights_with_the_memory_units_left_exact_and_in_bfloat16(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao, of the extra dev, is not installed")
    model, exact = models("rglru bmru fqbmru bmru", torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(
        quantization.Int8WeightOnlyConfig(), modules_to_not_convert=[r".*\.(candidate|threshold|drive)", "lm_head"]
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=config)
    plain = {name for name, p in loaded.named_parameters() if type(p.data) is torch.Tensor}
    parts = [(1, "candidate"), (1, "threshold"), (2, "drive"), (3, "candidate"), (3, "threshold")]
    assert {f"model.layers.{i}.mixer.cells.0.{part}.weight" for i, part in parts} <= plain
    assert "model.layers.2.mixer.out_proj.weight" not in plain  # the rest is int8
    ids = make_ids(2, 12)
    with torch.no_grad():
        difference = loaded(ids).logits - exact(ids).logits
        assert 0 < difference.square().mean().sqrt() < 0.2 * exact(ids).logits.std()
    assert generate(loaded, ids).sequences.shape == (2, 12 + NEW)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern != "attention"])
def test_a_quantised_cache_is_refused(pattern):
    """transformers quantises keys and values alone, of stacks of full attention alone; states are never rounded."""
    model, _ = models(pattern)
    with pytest.raises(ValueError, match="only supported for models with only full attention layers"):
        generate(model, make_ids(1, 8), config={"cache_implementation": "quantized"})
