"""Adapters with peft: which maps LoRA adapts. Importing this module tells peft, so that it needs no `target_modules`.

    from peft import LoraConfig, get_peft_model
    import hybridlm.training.lora
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))

The default is every projection between the residual stream and a mixer or an MLP. What a cell computes inside its
recurrence (candidates, thresholds, gates) keeps its trained weights, and still sees other inputs, since `in_proj` in
front of it is adapted. `lora_target_modules(model, cells=True)` adapts the linear maps in there too. What lies in
parameters of its own keeps its trained weights in any case, since adapters of linear maps cannot reach it:

    lru                     nu_log, theta_log, gamma_log, d       decay, phase, and how much of the input passes
    rglru                   p, gate_weight, gate_bias             decay and gates
    bmru                    alpha, s0                             amplitude; first state, where it is learned
    cmru, fqbmru            alpha                                 amplitude
    nfsm                    transition_bias, values               transitions, values of the states
    gru, lstm               weight_ih, weight_hh, bias_ih, bias_hh
    mamba2                  A_log, D, dt_bias                     decay, skip and step sizes
    every layer             conv, mixer_norm, mlp_norm, norm      convolutions and norms
"""

from torch import nn

PROJECTIONS = (
    "in_proj", "gate_proj", "out_proj",  # around a recurrence; gate_proj in MLPs too
    "q_proj", "k_proj", "v_proj", "o_proj",  # attention
    "up_proj", "down_proj",  # MLP
)  # fmt: skip
"""Names of the linear maps that are adapted by default, of all mixers."""


def lora_target_modules(model: nn.Module, *, cells: bool = False) -> list[str]:
    """The `target_modules` of a LoraConfig for this model: those of PROJECTIONS that it has.

    cells: the linear maps inside the cells too. Raises ValueError where nothing fits, as for a model of others.
    """
    maps = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {name.rpartition(".")[2] for name in maps} & set(PROJECTIONS)
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has none of the maps {', '.join(PROJECTIONS)}; give a hybridlm model."
        )
    inside = {".".join(name.rsplit(".", 3)[1:]) for name in maps if ".cells." in name} if cells else set()
    return sorted(found) + sorted(inside)


try:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as _peft_default
except ImportError:  # the extra `peft` is not installed; the names are of use all the same
    pass
else:
    _peft_default["hybridlm"] = list(PROJECTIONS)
