"""All modifiers, by the tag that names them in a recipe. To add one, add a file here and a line in REGISTRY."""

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
REGISTRY["GMPruningModifier"] = MagnitudePruningModifier  # SparseML's second name for the same modifier

# SparseML modifiers that are not supported yet. They have an error message different from that of a misspelt name.
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
        # from SparseML's later one-shot recipes
        "GPTQModifier",
        "LogarithmicEqualizationModifier",
        "OutputDistillationModifier",
        "SmoothQuantModifier",
        "SparseGPTModifier",
        "WandaPruningModifier",
    }
)
