"""The table of all modifiers: minimal recipes of each, and what is special about them.

It drives parsing, training, resuming (test_modifiers.py), training under every layout (test_modifiers_distributed.py)
and export (test_modifiers_export.py). test_modifier_table.py says whether all five take every modifier from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loop import ROWS, Session, make_accelerator, start
from tiny import make_bert, make_rows, make_tokenizer

from sparse_accel.models.teacher import Teacher
from sparse_accel.recipe import Recipe, load_recipe

EPOCHS, STEPS = 2, 3  # STEPS an epoch


@dataclass(frozen=True)
class Case:
    """One recipe, and what is to be expected of it where that is not the ordinary.

    Attributes:
        keys: of the modifier, in YAML; others may follow, each after `_AND`.
        refused: a part of the message with which a layout refuses it, by how the layout's name begins.
        pruned: share of the weights with masks that these prune at the end, and that are zero in an exported file.
        float_steps: steps before the model computes in integers for the first time.
        quantized_linears: how many of the model's 14 Linears an exported file multiplies in integers; 0: it is float.
        blocks: how many of the model's 2 blocks it has at the end.
        ties: share of the weights that may go their own way in two processes. With one scale per row, the largest
            weight of each row, if it is positive, is halfway between 127 and 128: by its last bit, it is clipped and
            has no gradient, or it has one. Under ZeRO-3, where last bits differ, 7 of the 21346 weights went their
            own way, all positive, each alone in its row; under the other layouts none.
    """

    keys: str
    refused: Mapping[str, str] = field(default_factory=dict)
    pruned: float = 0.0
    float_steps: int = EPOCHS * STEPS
    quantized_linears: int = 0
    blocks: int = 2
    ties: float = 0.0


# The model's blocks have 16384 weights, half of which are zero; its pooler and classifier have 1088, and no zeros.
_AS_IT_CAME = 0.5 * 16384 / (16384 + 1088)
_NEEDS_GRADIENTS = {"deepspeed": "needs gradients, but DeepSpeed does not provide them"}
# Begins the keys of another modifier, in the keys of a first one.
_AND = "\n  - !"
_PART_TIME = {"deepspeed": "DeepSpeed cannot freeze a parameter for part of the training"}

# What begins, changes or ends does so inside an epoch, too.
TABLE: dict[str, list[Case]] = {
    "EpochRangeModifier": [Case("")],
    "LearningRateFunctionModifier": [
        Case("{lr_func: linear, init_lr: 0.01, final_lr: 0, end_epoch: 2}"),
        Case("{lr_func: cosine, init_lr: 0.01, final_lr: 0.001, start_epoch: 0.5, end_epoch: 1.5}"),
        Case("{lr_func: cyclic_linear, init_lr: 0.01, final_lr: 0.001, end_epoch: 2, cycle_epochs: 0.7}"),
    ],
    "LearningRateModifier": [
        Case("{lr_class: StepLR, lr_kwargs: {gamma: 0.5, step_size: 0.5}, init_lr: 0.01}"),
        Case("{lr_class: CosineAnnealingWarmRestarts, lr_kwargs: {lr_min: 0.001, cycle_epochs: 1}, init_lr: 0.01}"),
    ],
    "SetLearningRateModifier": [Case("{learning_rate: 0.003, start_epoch: 1.3}")],
    "SetWeightDecayModifier": [Case("{weight_decay: 0.5, start_epoch: 0.7, param_groups: [0]}")],
    "TrainableParamsModifier": [
        Case("{params: 're:bert.embeddings', trainable: false}"),
        Case("{params: 're:bert.encoder', trainable: false, start_epoch: 0.5, end_epoch: 1.4}", refused=_PART_TIME),
    ],
    "SetParamModifier": [
        Case("{params: classifier.bias, val: [0.5, -0.5], start_epoch: 0.7}"),
        Case("{params: 're:bert.*LayerNorm.bias', val: [" + ", ".join(["0.1"] * 32) + "]}"),
    ],
    "GradualParamModifier": [
        Case(
            "{params: classifier.bias, init_val: [1, -1], final_val: [0, 0.5], start_epoch: 0.3, end_epoch: 1.4, "
            "update_frequency: 0.5, inter_func: cubic}"
        ),
        Case(
            "{params: [classifier.bias], init_val: [1, -1], final_val: [0, 0], start_epoch: 0, end_epoch: 2, "
            "update_frequency: -1}"
        ),
    ],
    "LayerPruningModifier": [
        Case("{layers: [bert.encoder.layer.0]}", blocks=1),
        Case("{layers: bert.encoder.layer.0, start_epoch: 0.7}", blocks=1),
        Case("{layers: ['re:.*[.]1$'], start_epoch: 1}", blocks=1),
    ],
    "ConstantPruningModifier": [
        Case("{params: __ALL_PRUNABLE__}", pruned=_AS_IT_CAME),
        Case("{params: ['re:.*query.weight', bert.embeddings.word_embeddings.weight], start_epoch: 0, end_epoch: 1.3}"),
        Case("{end_epoch: 2}", pruned=_AS_IT_CAME),
    ],
    "MagnitudePruningModifier": [
        Case("{end_epoch: 2, final_sparsity: 0.9}", pruned=0.9),
        Case(
            "{start_epoch: 0.3, end_epoch: 1.4, update_frequency: 0.5, init_sparsity: __FROM_PARAM__, "
            "mask_type: block4}",
            pruned=0.95,
        ),
        Case("{end_epoch: 1, final_sparsity: 0.8, leave_enabled: false}"),
        Case("{end_epoch: 2, final_sparsity: 0.8, leave_enabled: false}", pruned=0.8),
    ],
    "GMPruningModifier": [
        Case("{end_epoch: 1.5, final_sparsity: 0.9, global_sparsity: true, inter_func: linear}", pruned=0.9)
    ],
    "GlobalMagnitudePruningModifier": [
        Case("{start_epoch: 0.4, end_epoch: 1.6, update_frequency: 0.4, final_sparsity: 0.9}", pruned=0.9)
    ],
    "MovementPruningModifier": [
        Case("{end_epoch: 2, final_sparsity: 0.9}", pruned=0.9, refused=_NEEDS_GRADIENTS),
        Case(
            "{start_epoch: 0.3, end_epoch: 1.4, update_frequency: 0.5, init_sparsity: 0.3, final_sparsity: 0.8, "
            "mask_type: block4, straight_through: true}",
            pruned=0.8,
            refused=_NEEDS_GRADIENTS,
        ),
        Case(
            "{end_epoch: 2, init_sparsity: 0.3, final_sparsity: 0.8, global_sparsity: true, straight_through: true}",
            pruned=0.8,
            refused=_NEEDS_GRADIENTS,
        ),
    ],
    "OBSPruningModifier": [
        Case(
            "{end_epoch: 2, update_frequency: 0.5, init_sparsity: 0.6, final_sparsity: 0.9, num_grads: 6, "
            "fisher_block_size: 50}",
            pruned=0.9,
            refused=_NEEDS_GRADIENTS,
        ),
        Case(
            "{start_epoch: 0.3, end_epoch: 1.4, update_frequency: 0.5, init_sparsity: __FROM_PARAM__, "
            "final_sparsity: 0.8, mask_type: block4, fisher_block_size: 16, global_sparsity: false, num_grads: 6, "
            "num_recomputations: 2, damp: 1e-3, grad_sampler_kwargs: {batch_size: 4}}",
            pruned=0.8,
            refused=_NEEDS_GRADIENTS,
        ),
    ],
    "StructuredPruningModifier": [
        Case("{parts: [attention_heads, ffn_neurons], final_sparsity: 0.5, end_epoch: 2}", pruned=0.5),
        Case(  # 2 of 8 heads and 96 of 128 neurons, with 1048 and 65 of 16704 weights and biases each
            "{final_sparsity: {attention_heads: 0.25, ffn_neurons: 0.75}, uniform: false, score: taylor, "
            "start_epoch: 0.3, end_epoch: 1.4, update_frequency: 0.5}",
            pruned=(2 * 1048 + 96 * 65) / 16704,
            refused=_NEEDS_GRADIENTS,
        ),
        Case(  # so few that each block ends with one head and one neuron
            "{parts: [attention_heads, ffn_neurons], final_multiply_adds: 0.133, init_sparsity: 0.1, end_epoch: 1.4}",
            pruned=(6 * 1048 + 126 * 65) / 16704,
        ),
        Case(  # half of a block, with its biases, and 80% of the weights that are left
            "{parts: [ffn_neurons, attention_heads], layers: [0], final_sparsity: 0.5, end_epoch: 1}"
            + _AND
            + "MagnitudePruningModifier {params: ['re:.*(query|key|value).weight', 're:.*layer.*dense.weight'], "
            "end_epoch: 1.4, final_sparsity: 0.8}"
            + _AND
            + "QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 1.4}"
            + _AND
            + "DistillationModifier {hardness: 0.5}",
            pruned=(4096 + 4 * 410 + 2 * 819 + 80) / 8352,
            blocks=1,
            float_steps=3,
            quantized_linears=8,
        ),
        Case(
            "{params: ['re:.*(query|key|value).weight'], final_sparsity: 0.5, end_epoch: 1.4, param_groups: "
            "[[bert.encoder.layer.0.attention.self.query.weight, bert.encoder.layer.0.attention.self.key.weight]]}",
            pruned=0.5,
        ),
        Case(  # half of the rows, and 80% of what is left
            "{params: ['re:.*intermediate.dense.weight'], final_sparsity: 0.5, end_epoch: 1}"
            + _AND
            + "MovementPruningModifier {params: ['re:.*intermediate.dense.weight'], end_epoch: 1.4, "
            "final_sparsity: 0.8, straight_through: true}",
            pruned=(1024 + 819) / 2048,
            refused=_NEEDS_GRADIENTS,
        ),
        Case(
            "{final_sparsity: {0.25: [bert.embeddings.word_embeddings.weight], 0.5: ['re:.*dense.weight']}, "
            "mask_type: channel, end_epoch: 1, leave_enabled: false}",
        ),
    ],
    "QuantizationModifier": [
        Case("{start_epoch: 0.5, disable_quantization_observer_epoch: 1.4}", float_steps=2, quantized_linears=14),
        Case(
            "{start_epoch: 0.5, disable_quantization_observer_epoch: 1.4, quantize_linear_activations: 1}",
            float_steps=2,
            quantized_linears=14,
        ),
        Case(
            "{start_epoch: 1, disable_quantization_observer_epoch: 1, quantize_linear_activations: 0}",
            float_steps=3,
            quantized_linears=14,
        ),
        Case("{submodules: [bert.encoder, classifier]}", float_steps=0, quantized_linears=13),
        Case(
            "{custom_quantizable_module_types: [GELUActivation, LayerNorm], start_epoch: 0.5, "
            "disable_quantization_observer_epoch: 1.4, quantize_linear_activations: 0}",
            float_steps=2,
            quantized_linears=14,
        ),
        Case(
            "{scheme: tensorrt, ignore: [LayerNorm, Tanh, GELUActivation], start_epoch: 0.5, num_calibration_steps: 4}",
            float_steps=2,
            quantized_linears=14,
        ),
        Case(
            "{scheme: {weights: {symmetric: true, strategy: channel}}, ignore: [LayerNorm, GELUActivation], "
            "scheme_overrides: {bert.encoder.layer.1: {input_activations: {num_bits: 7}}}, start_epoch: 0.5, "
            "disable_quantization_observer_epoch: 1.4}",
            float_steps=2,
            quantized_linears=14,
            ties=5e-4,
        ),
        Case(
            "{tensorrt: true, weight_qconfig_kwargs: {qscheme: per_channel_symmetric}, start_epoch: 1}",
            float_steps=3,
            quantized_linears=14,
            ties=5e-4,
        ),
    ],
    "DistillationModifier": [Case("{hardness: 0.5, temperature: 2.0, start_epoch: 0.4, end_epoch: 1.6}"), Case("")],
    "HiddenStateDistillationModifier": [
        Case("{embeddings: true, attentions: true, start_epoch: 0.4, end_epoch: 1.6}"),
        Case("{project_features: true, start_epoch: 0.4, end_epoch: 1.6}", refused=_NEEDS_GRADIENTS),
        Case("{layers: {0: 1}, tokens: first, normalize: false, gain: 0.1}"),
    ],
    "PerLayerDistillationModifier": [
        Case("{start_epoch: 0.4, end_epoch: 1.6}", refused=_NEEDS_GRADIENTS),
        Case(
            "{student_layer_names: ['re:.*output.dense', bert.pooler], normalize: false, project_features: false, "
            "end_epoch: 1.4}"
        ),
    ],
}
# Each case under the name of its test: the modifier's, and its place in the list above.
CASES: dict[str, tuple[str, Case]] = {
    f"{name}-{number}": (name, case) for name, cases in TABLE.items() for number, case in enumerate(cases)
}


def recipe_of(name: str, keys: str) -> str:
    lines = ["modifiers:", f"  - !EpochRangeModifier {{end_epoch: {EPOCHS}}}"]
    return "\n".join(lines if name == "EpochRangeModifier" else [*lines, f"  - !{name} {keys or '{}'}"])


def begin(name: str, keys: str, recipe: Recipe | None = None, **options: Any) -> Session:
    """A training run of one process up to its first step; `options` are those of `loop.start`."""
    recipe = recipe or load_recipe(recipe_of(name, keys))
    teacher, needs_table = teacher_of(recipe)
    if teacher is not None and needs_table:
        teacher.make_table(make_accelerator(), make_rows(ROWS), make_tokenizer(), batch_size=8)
    return start(recipe, teacher=teacher, **options)


def teacher_of(recipe: Recipe) -> tuple[Teacher | None, bool]:
    """A teacher if the recipe needs one, and whether it needs the table of logits."""
    following = [modifier for modifier in recipe.modifiers if modifier.needs_teacher]
    needs_table = any("logits" in modifier.teacher_outputs for modifier in following)
    return Teacher(make_bert(seed=1)) if following else None, needs_table
