"""Counts of zeros and of structure: biases, masks that are not stored yet, and architectures without known units."""

from __future__ import annotations

from typing import Any

import torch
from tiny import make_albert, make_bert

from sparse_accel.models.sparsity import sparsity_report, structure_figures
from sparse_accel.nn.structure import encoder_units
from sparse_accel.nn.structure_masks import masked_units
from sparse_accel.training.figures import sparsity_figures


def test_masked_units_count_before_they_are_stored() -> None:
    model: Any = make_bert()
    report = sparsity_report(model)
    assert report["encoder_linear"]["zeros"] == 0 and structure_figures(report) == {}
    assert not [name for name in sparsity_figures(report) if name.startswith("structure/")]
    biases = report["model"]["zeros"]  # new ones are 0
    heads, neurons, *_ = (masked_units(model, units) for units in encoder_units(model))
    heads.set_kept(torch.arange(4) > 0)
    neurons.set_kept(torch.arange(64) > 9)
    model.bert.encoder.layer[0].attention.self.query.bias.data += 1
    report = sparsity_report(model)
    assert report["encoder_linear"]["zeros"] == 4 * 8 * 32 + 10 * 64
    assert report["model"]["zeros"] == biases - 24 + report["encoder_linear"]["zeros"]
    assert structure_figures(report) == {
        "attention_heads": 7,
        "attention_heads_full_size": 8,
        "ffn_neurons": 118,
        "ffn_neurons_full_size": 128,
        "parameters": 21346 - (1024 + 24) - 10 * 65,
        "parameters_full_size": 21346,
        "multiply_adds": 16384 - 1024 - 640,
        "multiply_adds_full_size": 16384,
    }
    assert sparsity_figures(report)["structure/ffn_neurons"] == 118


def test_a_unit_with_one_weight_or_bias_is_there() -> None:
    model: Any = make_bert()
    units = encoder_units(model)[1]
    masked_units(model, units).clear(torch.arange(64) > 2)
    model.bert.encoder.layer[0].intermediate.dense.bias.data[0] = 1e-9
    model.bert.encoder.layer[0].output.dense.weight.data[3, 1] = 1e-9
    assert sparsity_report(model)["structure"]["after"]["ffn_neurons"] == (63, 64)


def test_a_block_keeps_one() -> None:
    model: Any = make_bert()
    for units in encoder_units(model):
        masked_units(model, units).clear(torch.zeros(units.count, dtype=torch.bool))
    after = sparsity_report(model)["structure"]["after"]
    assert after["attention_heads"] == after["ffn_neurons"] == (1, 1)


def test_an_architecture_without_known_units_has_no_structure() -> None:
    report = sparsity_report(make_albert())
    assert "structure" not in report and structure_figures(report) == {}
