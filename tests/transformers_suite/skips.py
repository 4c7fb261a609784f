"""Which of transformers' tests are skipped, and why: the one table. conftest.py compares every run with it."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

EVERYWHERE = "every pattern"
NO_ATTENTION = "patterns without attention"
ATTENTION = "patterns with attention"
NO_SLIDING = "patterns without sliding_attention"
_HOLDS = {
    EVERYWHERE: lambda pattern: True,
    NO_ATTENTION: lambda pattern: "attention" not in pattern,
    ATTENTION: lambda pattern: "attention" in pattern,
    NO_SLIDING: lambda pattern: "sliding_attention" not in pattern,
}


@dataclass(frozen=True)
class Skip:
    tests: tuple[str, ...]
    """Names; * stands for the parameters of a test."""
    says: str
    """What the tests say when they are skipped, a regular expression for all of it."""
    why: str
    where: str = EVERYWHERE
    always: bool = True
    """False: for want of a package that the development tools do not bring; where it is installed, the tests run."""


SKIPS = [
    Skip(
        tests=("test_generation_tester_mixin_inheritance",),
        says="the archive does not hold GenerationTesterMixin",
        why="Tests of `generate` are below tests/generation, which no archive on the package index has. Ours are in "
        "tests/model.",
    ),
    # What the pattern does not have
    Skip(
        tests=(
            "test_attention_outputs",
            "test_eager_matches_sdpa_inference_*",
            "test_sdpa_can_dispatch_composite_models",
            "test_sdpa_can_dispatch_non_composite_models",
        ),
        says="Model (architecture does not support|does not output) attentions",
        why="They compare implementations of attention, or look at its weights.",
        where=NO_ATTENTION,
    ),
    Skip(
        tests=("test_model_rope_scaling_from_config_*", "test_model_rope_scaling_frequencies"),
        says="This model does not support RoPE scaling",
        why="Only attention uses positions.",
        where=NO_ATTENTION,
    ),
    Skip(
        tests=("test_model_rope_with_partial_rotation",),
        says="This model does not have partial rope supported",
        why="Only attention uses positions.",
        where=NO_ATTENTION,
    ),
    Skip(
        tests=("test_sliding_window_mask",),
        says="the pattern has no sliding_attention",
        why="The window belongs to that mixer.",
        where=NO_SLIDING,
    ),
    # What a language model of this kind does not have
    Skip(
        tests=(
            "test_attn_implementation_composite_models",
            "test_can_set_attention_dynamically_composite_model",
            "test_internal_model_config_and_subconfig_are_same",
        ),
        says="(This model is not composite|Model is not a composite model.|"
        "No subconfigs so the test does not make sense|Model architecture does not support attentions)",
        why="For models made of several models, such as one for images and one for text.",
    ),
    Skip(
        tests=("test_sdpa_can_dispatch_composite_models",),
        says="HybridLMModel does not support SDPA",
        why="For models made of several models, which is what transformers means by that text. That SDPA is used is "
        "tested by test_sdpa_can_dispatch_non_composite_models and test_eager_matches_sdpa_inference.",
        where=ATTENTION,
    ),
    Skip(
        tests=("test_encoder_decoder_loss_no_double_shift",),
        says="No sequence-to-sequence language modeling head to check",
        why="For models with an encoder.",
    ),
    Skip(
        tests=(
            "test_eager_matches_batched_and_grouped_inference_*",
            "test_moe_models_record_router_logits",
            "test_output_router_logits_from_config",
        ),
        says="(HybridLMModel does not support grouped_mm|This model has no sparse experts.|"
        "This model has no `output_router_logits` in its config.)",
        why="For mixtures of experts.",
    ),
    Skip(
        tests=(
            "test_fsdp2_expert_parallel_2d_vs_ddp",
            "test_fsdp2_expert_parallel_bf16_grads_*",
            "test_hsdp_grad_accumulation_vs_single_device_2_expert_parallel",
        ),
        says="Model does not have a(n expert| token-dispatch expert) parallel plan.*",
        why="For mixtures of experts.",
    ),
    Skip(
        tests=("test_tied_head_has_a_tp_plan_entry", "test_tp_plan_matches_params"),
        says="Model does not have a TP plan.",
        why="No plan for tensor parallelism: training is parallel over the data, with DDP or FSDP.",
    ),
    Skip(
        tests=("test_resize_position_vector_embeddings",),
        says="Model does not have position embeddings",
        why="Positions are not embedded: recurrences need none, attention has RoPE.",
    ),
    Skip(
        tests=("test_vision_axial_rope",),
        says=r"<class 'hybridlm\.\S+'> has no axial RoPE layer defined.",
        why="For models of images.",
    ),
    Skip(
        tests=("test_keep_in_fp32_modules", "test_keep_in_fp32_modules_exist"),
        says=r"HybridLM\w+ (class )?has no _keep_in_fp32_modules n?or _keep_in_fp32_modules_strict attribute defined",
        why="No module stays in fp32 when a model is cast: recurrences compute in fp32 whatever their weights' dtype.",
    ),
    Skip(
        tests=("test_can_load_from_already_mapped_keys", "test_reverse_loading_mapping"),
        says=r"No conversion found for <class 'hybridlm\.\S+'>",
        why="For models whose weights have other names in older files.",
    ),
    # What the machine does not have. The device is the CPU, also where there is another.
    Skip(
        tests=(
            "test_can_load_with_device_context_manager",
            "test_can_load_with_global_device_set",
            "test_cpu_offload",
            "test_disk_offload_bin",
            "test_model_parallelism",
            "test_sdpa_can_compile_dynamic",
            "test_sdpa_can_dispatch_on_flash",
        ),
        says="test requires (multiple accelerators|accelerator)",
        why="They move parts of a model between an accelerator and the CPU, or use kernels that only accelerators "
        "have. test_disk_offload_safetensors, test_flex_attention_with_grads and test_torch_compile_for_training are "
        "replaced by tests for the CPU.",
    ),
    Skip(
        tests=("test_flash_attn_kernels_mps_inference_equivalence",),
        says="test requires MPS",
        why="For Apple's devices.",
    ),
    Skip(
        tests=("test_flash_attn_2_*", "test_flash_attn_3_*", "test_flash_attn_4_*"),
        says="test requires .*",
        why="Flash Attention needs a GPU.",
        always=False,
    ),
    Skip(
        tests=("test_flash_attn_kernels_inference_equivalence", "test_kernels_can_load_without_crashing"),
        says="test requires the kernels library",
        why="It downloads kernels from the Hub.",
        always=False,
    ),
    Skip(
        tests=(
            "test_resize_embeddings_untied_with_deepspeed*",
            "test_resize_tokens_embeddings_with_deepspeed*",
        ),
        says="test requires deepspeed",
        why="DeepSpeed needs a GPU.",
        always=False,
    ),
]


def entry(test: str, pattern: str) -> Skip | None:
    """The entry that this test of the class for `pattern` falls under."""
    found = [
        skip for skip in SKIPS if _HOLDS[skip.where](pattern) and any(fnmatchcase(test, name) for name in skip.tests)
    ]
    assert len(found) < 2, f"{test} on {pattern!r} stands twice in the table of skips"
    return found[0] if found else None


def problem(test: str, pattern: str, said: set[str]) -> str | None:
    """What is wrong with a test that said this when it was skipped (nothing: it ran); None where the table says the
    same."""
    skip = entry(test, pattern)
    if skip is None:
        return f"{test} was skipped, which the table of skips does not say: {'; '.join(sorted(said))}" if said else None
    if not said:
        return f"{test} ran; the table of skips says that it is skipped: {skip.why}" if skip.always else None
    other = sorted(reason for reason in said if not re.fullmatch(skip.says, reason))
    return f"{test} was skipped for another reason than the table of skips has: {'; '.join(other)}" if other else None
