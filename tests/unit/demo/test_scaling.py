"""Operations by formula, peaks by name, and computed hours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SIZES, make_bert
from torch.utils.flop_counter import FlopCounterMode

from sparse_accel.demo.scaling import (
    BERT_BASE,
    GPUS,
    SST2,
    TEN_MILLION,
    Cluster,
    Encoder,
    all_reduce_seconds,
    hours_table,
    peak_tflops,
    shown_hours,
    training_flops,
    training_hours,
)

COUNTS = st.integers(1, 64)


def test_weights_of_bert_base() -> None:
    assert BERT_BASE.linear_weights == 84_934_656  # as docs/performance.md says of second-order pruning


def test_operations_are_those_that_pytorch_counts() -> None:
    """Of a tiny BERT: all that it multiplies, but for pooler and classifier, which see one token of each row."""
    width, layers, rows, tokens = SIZES["hidden_size"], SIZES["num_hidden_layers"], 3, 20
    model = make_bert(dropout=0.0, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(
            input_ids=torch.randint(5, 30, (rows, tokens)), labels=torch.zeros(rows, dtype=torch.int64)
        ).loss.backward()
    head = 6 * rows * (width**2 + 2 * width)
    encoder = Encoder(layers, width, SIZES["intermediate_size"], parameters=0)
    assert counter.get_total_flops() - head == training_flops(encoder, [tokens] * rows)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Tesla T4", 65.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Radeon", None),
    ],
)
def test_a_peak_by_name(device: str, peak: float | None) -> None:
    assert peak_tflops(device) == peak


def test_hours_by_hand() -> None:
    """One step of one row, whose parts are round numbers."""
    encoder = Encoder(
        layers=1, width=1, intermediate=1, parameters=100
    )  # 6 weights: 36 operations, and 12 of attention
    job = replace(SST2, rows=1, tokens=1, batch=1, epochs=3, recipe=2.0)
    cluster = Cluster(48.0, 0.5, 0.0, gpus_per_machine=2, link_bytes=400.0, network_bytes=100.0)
    assert training_hours(job, 1, cluster, encoder) * 3600 == pytest.approx(3 * 2 * 2 + 4 / 4)
    assert all_reduce_seconds(encoder, 1, cluster) == 0
    assert all_reduce_seconds(encoder, 2, cluster) == 1.0
    assert all_reduce_seconds(encoder, 4, cluster) == 6.0
    slow = replace(cluster, step_seconds=10.0)
    assert training_hours(job, 4, slow, encoder) * 3600 == pytest.approx(3 * (10 + 6) + 10 / 4)


@settings(max_examples=30)
@given(gpus=COUNTS, more=COUNTS, share=st.floats(0.05, 1.0))
def test_a_faster_part_never_costs_time(gpus: int, more: int, share: float) -> None:
    cluster = Cluster(share=share)
    for job in (SST2, TEN_MILLION):
        hours = training_hours(job, gpus, cluster)
        assert hours <= training_hours(job, gpus, replace(cluster, share=share / 2))
        assert hours <= training_hours(job, gpus, replace(cluster, network_bytes=cluster.network_bytes / 2))
        assert hours <= training_hours(replace(job, rows=job.rows * 2), gpus, cluster)
        # Never more than the whole work divided by the number of GPUs, but for a batch that does not divide evenly.
        alone = training_hours(job, 1, cluster)
        assert hours * gpus >= alone * (1 - 1e-9)
        assert training_flops(BERT_BASE, [gpus, more]) == pytest.approx(
            training_flops(BERT_BASE, [gpus]) + training_flops(BERT_BASE, [more])
        )


def test_the_table_has_every_number_of_gpus() -> None:
    lines = hours_table().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {gpus}" for gpus in GPUS]
    assert shown_hours(training_hours(TEN_MILLION, 8, Cluster())) in lines[2 + GPUS.index(8)]
    assert len({line.count("|") for line in lines}) == 1
    assert hours_table(Cluster(share=0.6)) != hours_table()


@pytest.mark.parametrize(
    ("hours", "text"),
    [(12.34, "12 h"), (2.0, "2.0 h"), (1.5, "90 min"), (0.05, "3.0 min"), (0.01, "36 s"), (0.0, "0.0 s")],
)
def test_hours_are_shown_in_a_fitting_unit(hours: float, text: str) -> None:
    assert shown_hours(hours) == text
