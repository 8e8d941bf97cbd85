"""What the export refuses of a quantized model is said before training, and can be avoided."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_fixtures import quantize, texts, vary
from tiny import SIZES, make_bert, make_tokenizer
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from sparse_accel.errors import UsageError
from sparse_accel.export.lower import lower
from sparse_accel.export.proof import prove
from sparse_accel.export.trace import trace
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import SparseConv1d, export_obstacles, quantizers
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

Capture = pytest.CaptureFixture[str]
CONV = "deberta.encoder.conv.conv"
REASON = (
    "quantized convolutions cannot be exported to ONNX yet: keep them in float with `exclude_module_types: [Conv1d]`"
)


def make_deberta() -> nn.Module:
    """A DeBERTa-v2 with a convolution after its first block, as the published xlarge and xxlarge have."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
    convolution: dict[str, Any] = {"share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu"}
    model: nn.Module = DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES, **options, **convolution))
    return model


def attach(model: nn.Module, modifier: str) -> nn.Module:
    RecipeRun(load_recipe(f"modifiers:\n  - !EpochRangeModifier {{end_epoch: 2}}\n  - !{modifier}\n")).attach(model)
    return model


def warnings(capsys: Capture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: QuantizationModifier")]


@pytest.mark.parametrize(
    "keys", ["", "start_epoch: 1", "submodules: [deberta.encoder], exclude_module_types: [Linear]"]
)
def test_a_convolution_that_would_be_quantized_is_warned_about(keys: str, capsys: Capture) -> None:
    attach(make_deberta(), f"QuantizationModifier {{{keys}}}")
    (line,) = warnings(capsys)
    assert line.startswith(f"warning: QuantizationModifier: {CONV}: {REASON}")


@pytest.mark.parametrize(
    ("make", "modifier"),
    [
        (make_bert, "QuantizationModifier {}"),
        (make_deberta, "QuantizationModifier {exclude_module_types: [Conv1d]}"),
        (make_deberta, "QuantizationModifier {submodules: [deberta.embeddings, classifier]}"),
        (make_deberta, "ConstantPruningModifier {}"),  # a convolution with a mask
    ],
)
def test_what_can_be_exported_is_not_warned_about(
    make: Callable[[], nn.Module], modifier: str, capsys: Capture
) -> None:
    model = attach(make(), modifier)
    assert not warnings(capsys) and export_obstacles(model, only_enabled=False) == {}
    assert "Constant" not in modifier or isinstance(model.get_submodule(CONV), SparseConv1d)


def test_several_layers_of_a_kind_are_one_line(capsys: Capture) -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.plane = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x

    attach(Convolutions(), "QuantizationModifier {}")
    lines = warnings(capsys)
    assert len(lines) == 2 and ": one, two: " in lines[0] and "[Conv1d]" in lines[0]
    assert ": plane: " in lines[1] and "[Conv2d]" in lines[1]


def test_quantizers_that_are_off_count_before_training_only() -> None:
    model = attach(make_deberta(), "QuantizationModifier {}")
    assert export_obstacles(model, only_enabled=True) == {}
    ((reason, names),) = export_obstacles(model, only_enabled=False).items()
    assert reason.startswith(REASON) and names == [CONV]
    for quantizer in quantizers(model).values():
        quantizer.enabled = True
    assert export_obstacles(model, only_enabled=True) == {reason: names}


def form(**changes: Any) -> FakeQuantize:
    quantizer = FakeQuantize(QuantizationScheme(**changes), channels=2)
    quantizer.enabled = True
    return quantizer


@pytest.mark.parametrize(
    ("layer", "which", "quantizer", "reason"),
    [
        ("classifier", "weight", form(), "only signed symmetric weights"),
        ("classifier", "weight", form(signed=True), "only signed symmetric weights"),
        ("classifier", "weight", form(signed=True, symmetric=True, channel_axis=1), "only signed symmetric weights"),
        ("classifier", "output", form(channel_axis=0), "only activations with one scale"),
        ("classifier", "input", None, "a Linear with a quantized weight and a float input"),
    ],
)
def test_the_export_gives_the_same_reasons(layer: str, which: str, quantizer: FakeQuantize | None, reason: str) -> None:
    model = quantize(make_bert())
    assert export_obstacles(model, only_enabled=True) == {}
    setattr(model.get_submodule(layer), f"{which}_quantizer", quantizer)
    ((found, names),) = export_obstacles(model, only_enabled=True).items()
    assert found.startswith(reason) and names[0].startswith(f"{layer}.")
    with pytest.raises(UsageError) as caught:
        lower(onnx.ModelProto(), model, "qdq")
    assert str(caught.value) == f"{names[0]}: {found}"


def test_with_its_convolution_in_float_the_model_is_exported(tmp_path: Path) -> None:
    model = make_deberta()
    vary(model)
    quantize(model, exclude_module_types=["Conv1d"])
    assert type(model.get_submodule(CONV)) is nn.Conv1d
    onnx.save(lower(trace(model, make_tokenizer()), model, "qdq"), tmp_path / "model.onnx")
    checks = prove(tmp_path / "model.onnx", model, make_tokenizer(), texts(), "qdq", 18).checks
    assert not [check for check in checks if check.passed is False]


def test_with_its_convolution_quantized_it_is_refused() -> None:
    with pytest.raises(UsageError, match=rf"{CONV}: quantized convolutions .*exclude_module_types: \[Conv1d\]"):
        lower(onnx.ModelProto(), quantize(make_deberta()), "integer")


def test_the_warning_needs_no_onnx() -> None:
    code = "import sys, sparse_accel.nn.layers, sparse_accel.modifiers.quantization; print('onnx' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.split() == ["False"]
