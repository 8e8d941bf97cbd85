"""All modifiers by the tag that names them in a recipe. A new one is a file here and a line in REGISTRY."""

from __future__ import annotations

from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.distillation import DistillationModifier
from sparse_accel.modifiers.epoch_range import EpochRangeModifier
from sparse_accel.modifiers.learning_rate import (
    LearningRateFunctionModifier,
    LearningRateModifier,
    SetLearningRateModifier,
)
from sparse_accel.modifiers.pruning.constant import ConstantPruningModifier
from sparse_accel.modifiers.pruning.magnitude import MagnitudePruningModifier
from sparse_accel.modifiers.quantization import QuantizationModifier
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
        ConstantPruningModifier,
        MagnitudePruningModifier,
        QuantizationModifier,
        DistillationModifier,
    )
}
REGISTRY["GMPruningModifier"] = MagnitudePruningModifier  # the same under its other name

# Modifiers of the old tool that are not here yet. A recipe that names one is told so, unlike a misspelt name.
KNOWN_LATER = frozenset(
    {
        "ACDCPruningModifier",
        "ASRegModifier",
        "GlobalMagnitudePruningModifier",
        "GradualParamModifier",
        "LayerPruningModifier",
        "LayerThinningModifier",
        "LegacyQuantizationModifier",
        "MFACGlobalPruningModifier",
        "MFACPruningModifier",
        "MovementPruningModifier",
        "OBSPruningModifier",
        "PerLayerDistillationModifier",
        "PowerpropagationModifier",
        "RigLPruningModifier",
        "SetParamModifier",
        "SparsificationLoggingModifier",
        "StructuredPruningModifier",
        "TopKASTPruningModifier",
        # of its later, one-shot recipes
        "GPTQModifier",
        "LogarithmicEqualizationModifier",
        "OutputDistillationModifier",
        "SmoothQuantModifier",
        "SparseGPTModifier",
        "WandaPruningModifier",
    }
)
