"""What is counted on shapes alone is what a real step keeps and takes, mixer by mixer."""

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.fused_hybridlm import kernels_for
from hybridlm.model.mixers_hybridlm import MIXERS
from hybridlm.model.shapes_hybridlm import shapes_alone
from hybridlm.training.carrying import CarriedStates
from hybridlm.training.config import load_config
from hybridlm.training.memory_estimate import LOSS_ALONE, estimate_memory
from hybridlm.training.memory_trace import MemoryTrace, bytes_of

LENGTH, VOCABULARY = 24, 64


def recipe(pattern, *overrides):
    base = [
        "data.folder=x", f"data.sequence_length={LENGTH}", "training={steps: 2, batch_size: 4}",
        f"model={{pattern: {pattern}, hidden_size: 32, num_attention_heads: 2, mamba_d_head: 8, mamba_d_state: 8}}",
        "validation.batch_size=1", "logging.memory_every=0",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


def estimate(config, rows=4, device="cpu", processes=1):
    model_config = HybridLMConfig(**config.model, vocab_size=VOCABULARY)
    return estimate_memory(config, model_config, rows, device_type=device, processes=processes)


@pytest.fixture(scope="module", autouse=True)
def _kernels_have_checked_themselves():
    """On first use they do, which the mode should not see."""
    for dtype in (torch.float32, torch.bfloat16):
        kernels_for(torch.empty(1, 1, 1, dtype=dtype))


def real(config, rows=4, repeat=1):
    """Bytes of weights, and of everything else where it was most, in a step with values; packed documents."""
    model = HybridLMForCausalLM(HybridLMConfig(**config.model, vocab_size=VOCABULARY)).train()
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.logging.memory_every:
        model.record_writes(False, counts=True)
    with MemoryTrace("cpu") as trace:
        trace.assign([*model.parameters(), *model.buffers()], "weights")
        for _ in range(repeat):
            ids = torch.randint(VOCABULARY, (rows, LENGTH))
            positions = torch.arange(LENGTH).repeat(rows, 1) % 10
            labels = ids.clone()
            with torch.autocast("cpu", torch.bfloat16, enabled=config.training.mixed_precision == "bf16"):
                loss = model(input_ids=ids, position_ids=positions, shift_labels=labels, **LOSS_ALONE).loss
            loss.backward()
    return trace.most["weights"], trace.peak


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_shapes_alone_take_what_values_take(mixer, precision):
    config = recipe(mixer, f"training.mixed_precision={precision}")
    weights, peak = real(config)
    found = estimate(config)
    assert found.parts["weights"] == weights
    assert found.total - found.parts["optimizer"] == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("overrides", [
    ["training.gradient_checkpointing=true"],
    ["model.tie_word_embeddings=false", "model.conv_kernel=0"],
    ["training.gradient_checkpointing=true", "logging.memory_every=1"],
])  # fmt: skip
def test_so_do_stacks_with_options(overrides):
    config = recipe("(rglru bmru attention)*2", *overrides)
    found = estimate(config)
    assert found.total - found.parts["optimizer"] == pytest.approx(real(config)[1], rel=0.02)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_carried_states_are_those_of_a_run(precision):
    """Of all rows of a process, twice: what they go on from, and what they leave."""
    pattern = "rglru+bmru mamba2 nfsm"
    settings = "data.carry_state=true", f"training.mixed_precision={precision}", "training.micro_batch_size=2"
    config = recipe(pattern, *settings)
    model = HybridLMForCausalLM(HybridLMConfig(**config.model, vocab_size=VOCABULARY)).train()
    carried = CarriedStates(model.config, 2)
    for index in range(2):
        cache = carried.cache(index)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(torch.zeros(2, LENGTH, dtype=torch.long), past_key_values=cache)
        carried.leave(index, cache)
    carried.move_on()
    held = bytes_of(tensor for rows in carried._now for layer in rows for tensor in layer.values())
    found = estimate(config, rows=2)
    assert found.carried == held
    assert found.parts["carried"] == pytest.approx(2 * held, abs=64)
    assert estimate(config, rows=2, processes=2).carried == held / 2
    plain = estimate(recipe(pattern, *settings[1:]), rows=2)
    assert plain.carried == plain.parts.get("carried", 0) == 0


def test_gradients_are_there_while_a_second_micro_batch_runs():
    config = recipe("rglru bmru", "training.micro_batch_size=2")
    found = estimate(config, rows=2)
    assert found.parts["gradients"] == pytest.approx(found.parts["weights"], rel=0.02)
    assert found.total - found.parts["optimizer"] == pytest.approx(real(config, 2, repeat=2)[1], rel=0.02)


def test_checkpointing_keeps_less_and_computes_a_layer_again():
    plain, saved = (
        estimate(recipe("(rglru bmru)*4", f"training.gradient_checkpointing={value}")) for value in ("false", "true")
    )
    assert saved.activations < plain.activations / 5
    assert saved.parts["temporary"] > plain.parts.get("temporary", 0)


def test_what_stands_beside_the_weights():
    config = recipe("rglru bmru")
    one, two = estimate(config), estimate(config, processes=2)
    parameters = bytes_of(HybridLMForCausalLM(HybridLMConfig(**config.model, vocab_size=VOCABULARY)).parameters())
    assert one.parts["optimizer"] == pytest.approx(2 * parameters, rel=0.02)  # each tensor a multiple of 64 bytes
    assert two.parts["buckets"] == pytest.approx(parameters, rel=0.02)
    assert "buckets" not in one.parts


def test_sharded_weights_are_a_part_of_all():
    """Of one micro-batch; of several the gradients are whole until the last one."""
    options = ("training.ema_decay=0.9", "training.micro_batch_size=1")
    plain, sharded, several, kept = (
        estimate(recipe("(rglru bmru)*4", *options, *more), rows=1, device="cuda", processes=processes)
        for processes, more in (
            (4, []),
            (4, ["parallel.kind=fsdp"]),
            (2, ["parallel.kind=fsdp"]),
            (4, ["parallel={kind: fsdp, reshard: false}"]),
        )
    )
    for name in ("weights", "optimizer", "average"):
        assert sharded.parts[name] == pytest.approx(plain.parts[name] / 4, rel=1e-3)
    assert "buckets" not in sharded.parts
    assert "gathered" not in plain.parts
    assert several.parts["gradients"] > 1.5 * sharded.parts.get("gradients", 0)
    assert sharded.total < 0.75 * plain.total
    model_config = HybridLMConfig(**recipe("rglru bmru").model | {"pattern": "(rglru bmru)*4"}, vocab_size=VOCABULARY)
    layers = [bytes_of(layer.parameters()) for layer in HybridLMForCausalLM(model_config).model.layers]
    assert kept.parts["gathered"] - sharded.parts["gathered"] == sum(layers) - 2 * max(layers)
    hybrid = estimate(
        recipe("(rglru bmru)*4", *options, "parallel={kind: fsdp, shard: 2}"), rows=1, device="cuda", processes=4
    )
    assert hybrid.parts["weights"] == pytest.approx(plain.parts["weights"] / 2, rel=1e-3)


def test_sharded_linear_maps_are_gathered_in_the_precision_of_products():
    """So autocast has no copies of them to keep; what is held is in fp32 all the same."""
    fp32, bf16 = (
        estimate(
            recipe("(rglru bmru)*4", "parallel.kind=fsdp", f"training.mixed_precision={kind}"), processes=4, rows=1
        )
        for kind in ("no", "bf16")
    )
    ddp = estimate(recipe("(rglru bmru)*4", "training.mixed_precision=bf16"), processes=4, rows=1)
    assert bf16.parts["gathered"] < fp32.parts["gathered"]
    for name in ("weights", "optimizer"):
        assert bf16.parts[name] == fp32.parts[name]
    model = HybridLMForCausalLM(HybridLMConfig(**recipe("(rglru bmru)*4").model, vocab_size=VOCABULARY))
    copies = sum(m.weight.numel() * 2 for m in model.model.layers.modules() if type(m) is torch.nn.Linear)
    assert ddp.activations - bf16.activations == pytest.approx(copies, rel=0.05)


def test_a_shared_sequence_is_a_part_of_its_tokens():
    whole = estimate(recipe("(rglru bmru)*2", f"data.sequence_length={LENGTH // 2}"), rows=1, processes=4)
    shared = estimate(recipe("(rglru bmru)*2", "parallel.sequence=2", "training.batch_size=2"), rows=1, processes=4)
    assert shared.activations == whole.activations
    assert shared.total == whole.total


def test_a_gpu_has_no_fused_kernels_and_a_norm_of_its_own():
    config = recipe("rglru bmru")
    assert estimate(config, device="cuda").activations > 1.2 * estimate(config).activations


def test_a_write_penalty_keeps_what_it_needs():
    plain, penalty = (estimate(recipe("bmru", f"write_penalty={value}")) for value in (0.0, 1e-4))
    assert penalty.activations > plain.activations


def test_a_large_validation_batch_is_the_most():
    found = estimate(recipe("lru", "validation.batch_size=200"))
    assert found.moment == "validation"
    assert found.parts["temporary"] > found.activations


def test_nothing_is_left_of_it():
    estimate(recipe("rglru bmru"))
    model = HybridLMForCausalLM(HybridLMConfig(pattern="rglru bmru", hidden_size=32, vocab_size=VOCABULARY))
    ids = torch.randint(VOCABULARY, (2, 9))
    expected = model(ids).logits
    with pytest.raises(KeyError), shapes_alone():
        raise KeyError
    assert torch.equal(model(ids).logits, expected)
    assert type(expected) is torch.Tensor
