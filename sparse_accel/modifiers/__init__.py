"""All modifiers, by the tag that names them in a recipe. To add one, add a file here and a line in REGISTRY."""

from __future__ import annotations

from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.distillation import DistillationModifier
from sparse_accel.modifiers.epoch_range import EpochRangeModifier
from sparse_accel.modifiers.hidden_distillation import HiddenStateDistillationModifier
from sparse_accel.modifiers.layer_dropping import LayerPruningModifier
from sparse_accel.modifiers.learning_rate import (
    LearningRateFunctionModifier,
    LearningRateModifier,
    SetLearningRateModifier,
)
from sparse_accel.modifiers.per_layer_distillation import PerLayerDistillationModifier
from sparse_accel.modifiers.pruning.constant import ConstantPruningModifier
from sparse_accel.modifiers.pruning.magnitude import GlobalMagnitudePruningModifier, MagnitudePruningModifier
from sparse_accel.modifiers.pruning.movement import MovementPruningModifier
from sparse_accel.modifiers.pruning.obs import OBSPruningModifier
from sparse_accel.modifiers.pruning.structured import StructuredPruningModifier
from sparse_accel.modifiers.quantization import QuantizationModifier
from sparse_accel.modifiers.set_param import GradualParamModifier, SetParamModifier
from sparse_accel.modifiers.trainable_params import TrainableParamsModifier
from sparse_accel.modifiers.weight_decay import SetWeightDecayModifier

__all__ = ["KNOWN_LATER", "REGISTRY", "FieldError", "Modifier"]

REGISTRY: dict[str, type[Modifier]] = {
    kind.__name__: kind
    for kind in (
        EpochRangeModifier,
        LearningRateFunctionModifier,
        LearningRateModifier,
        SetLearningRateModifier,
        SetWeightDecayModifier,
        TrainableParamsModifier,
        SetParamModifier,
        GradualParamModifier,
        LayerPruningModifier,
        ConstantPruningModifier,
        MagnitudePruningModifier,
        GlobalMagnitudePruningModifier,
        MovementPruningModifier,
        OBSPruningModifier,
        StructuredPruningModifier,
        QuantizationModifier,
        DistillationModifier,
        HiddenStateDistillationModifier,
        PerLayerDistillationModifier,
    )
}
REGISTRY["GMPruningModifier"] = MagnitudePruningModifier  # SparseML's second name for the same modifier

# SparseML modifiers that are not supported, each with the reason and what to use instead. They have an error message
# different from that of a misspelt name.
_NO_RECIPE = "no recipe for an encoder uses it"
_LANGUAGE_MODELS = "it is for large language models, where llm-compressor has it"
KNOWN_LATER: dict[str, str] = {
    "ACDCPruningModifier": f"{_NO_RECIPE}; use MagnitudePruningModifier",
    "ASRegModifier": f"{_NO_RECIPE}, and SparseML 1.8 itself could not load it",
    "LayerThinningModifier": "use StructuredPruningModifier with parts: the export removes what it prunes",
    "LegacyQuantizationModifier": "use QuantizationModifier with submodules and the quantize_ keys",
    "MFACGlobalPruningModifier": f"{_NO_RECIPE}; use GlobalMagnitudePruningModifier",
    "MFACPruningModifier": f"{_NO_RECIPE}; use MagnitudePruningModifier",
    "PowerpropagationModifier": f"{_NO_RECIPE}; use MagnitudePruningModifier",
    "RigLPruningModifier": f"{_NO_RECIPE}; use MovementPruningModifier with straight_through, where weights come back",
    "SparsificationLoggingModifier": "leave it out: sparsity and the quantization phase are always logged",
    "TopKASTPruningModifier": f"{_NO_RECIPE}; use MovementPruningModifier with straight_through",
    # from SparseML's later one-shot recipes
    "GPTQModifier": _LANGUAGE_MODELS,
    "LogarithmicEqualizationModifier": _LANGUAGE_MODELS,
    "OutputDistillationModifier": "it is of another recipe language; use DistillationModifier",
    "SmoothQuantModifier": _LANGUAGE_MODELS,
    "SparseGPTModifier": _LANGUAGE_MODELS,
    "WandaPruningModifier": _LANGUAGE_MODELS,
}
