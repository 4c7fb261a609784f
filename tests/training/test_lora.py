"""LoRA through peft: the default maps, training, saving, merging, and generation with an adapter."""

import re

import pytest
import torch
from models import PATTERNS, make_ids, make_model
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from hybridlm.model.mixers_hybridlm import MIXERS
from hybridlm.training import EpsilonCallback, lora, lora_target_modules
from hybridlm.training.lora import PROJECTIONS

# peft 0.21 asks a model by the name that transformers 5.23 replaced.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def maps(model):
    """Names of the linear maps."""
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def adapters(model):
    """Names of the maps that have an adapter."""
    return {name.removeprefix("base_model.model.") for name, part in model.named_modules() if hasattr(part, "lora_A")}


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def step(model, ids, steps=3):
    """A few steps on the trainable weights alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_default_is_every_projection_and_no_cell(pattern):
    """Every adapter gets a gradient: none of the maps is read behind peft's back."""
    plain = make_model(pattern)
    wanted = {name for name in maps(plain) if ".cells." not in name and name != "lm_head"}
    assert {name.rpartition(".")[2] for name in wanted} == set(lora_target_modules(plain)) <= set(PROJECTIONS)
    before, ids = weights(plain), make_ids(3, 12)
    adapted = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    given = {
        name.removeprefix("base_model.model.") for name, part in adapted.named_modules() if hasattr(part, "lora_A")
    }
    assert given == wanted
    first = step(adapted, ids, steps=1)
    assert step(adapted, ids) < first
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(adapted.get_parameter(name).grad.abs().sum() > 0 for name in trained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(adapted.unload()).items())


def test_every_projection_belongs_to_some_mixer():
    assert set(PROJECTIONS) == set().union(*(lora_target_modules(make_model(pattern)) for pattern in PATTERNS))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_maps_inside_cells_on_demand(pattern):
    plain = make_model(pattern)
    wanted = maps(plain) - {"lm_head"}
    targets = lora_target_modules(plain, cells=True)
    adapted = get_peft_model(
        plain, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False)
    )
    given = {
        name.removeprefix("base_model.model.") for name, part in adapted.named_modules() if hasattr(part, "lora_A")
    }
    assert given == wanted
    adapted(input_ids=make_ids(3, 12), labels=make_ids(3, 12)).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_what_no_adapter_reaches_is_written_down(mixer):
    """The table of the module names, for every mixer, all parameters outside of linear maps, and no others."""
    model = make_model(mixer, learn_initial_state=True)
    reached = {name for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Embedding))}
    own = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in reached}
    inside = {name.rpartition(".")[2] for name in own if ".cell" in name}
    modules = {name.split(".")[-2] for name in own if ".cell" not in name}
    table = {}
    for line in lora.__doc__.splitlines():
        mixers, *rest = re.split(r" {2,}", line.strip())
        if rest and line.startswith("    "):
            table |= {name: set(rest[0].split(", ")) for name in mixers.split(", ")}
    assert modules <= table["every layer"]
    assert inside == table.get(mixer, set())


def test_a_model_of_others_is_refused():
    with pytest.raises(ValueError, match="give a hybridlm model"):
        lora_target_modules(nn.Linear(2, 2))


@pytest.fixture
def adapted(tmp_path):
    """A base model on the disk, and an adapter trained for it."""
    make_model("(rglru bmru)*2 attention").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4))
    step(model, make_ids(3, 12), steps=5)
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=make_ids(2, 15, seed=3)).logits


def test_saved_is_loaded(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert not torch.allclose(logits(base), logits(adapted), atol=1e-2)
    for loaded in (
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        PeftModel.from_pretrained(base, tmp_path / "adapter"),
    ):
        assert torch.equal(logits(loaded.eval()), logits(adapted))


def test_merged_is_the_same_model(adapted, tmp_path):
    wanted = logits(adapted)
    merged = adapted.merge_and_unload()
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(merged))


def test_generation_with_an_adapter(adapted):
    """With the cache as without; other words than without the adapter."""
    ids = make_ids(2, 9)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    written = adapted.generate(ids, **options)
    assert torch.equal(written, adapted.generate(ids, use_cache=False, **options))
    with adapted.disable_adapter():
        assert not torch.equal(written, adapted.generate(ids, **options))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_trainer_trains_an_adapter(tmp_path, recompute):
    """With layers recomputed in the backward pass too, whose input has no gradient of its own here."""
    base = make_model("rglru bmru")
    before = weights(base)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4))
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=6,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        activation_checkpointing=recompute,
    )
    data = [{"input_ids": ids, "labels": ids} for ids in make_ids(4, 12)]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[EpsilonCallback(start=0.5)])
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["epsilon"] == 0.5
    assert base.epsilon == 0.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model.unload()).items())


def test_a_classifier_trains_its_head_too(tmp_path):
    """peft keeps the head of a classifier beside the adapter, and saves it with it."""
    make_model("rglru bmru").save_pretrained(tmp_path / "base")

    def base():
        torch.manual_seed(0)  # a new head
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)

    model = get_peft_model(base(), LoraConfig(task_type="SEQ_CLS", r=4))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {"adapter" if "lora_" in name else name.split(".")[-4] for name in trained} == {"adapter", "score"}
    ids, labels = make_ids(4, 12), torch.tensor([0, 1, 1, 0])
    model(input_ids=ids, labels=labels).loss.backward()
    with torch.no_grad():
        for parameter in trained.values():
            parameter -= 0.1 * parameter.grad.sign()
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
