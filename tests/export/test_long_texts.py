"""Rows of 1,024 and 4,096 tokens: every architecture is trained, exported with proof and run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, SPARSITY, WITHOUT_TEACHER, make_tokenizer, write_model
from datasets import Dataset
from export_fixtures import export
from model_tables import LONG, MODELS
from script_fixtures import WORDS, read_json, run, write_csv

import sparse_accel
from sparse_accel import report
from sparse_accel.export import measure
from sparse_accel.export.fidelity import Runner, Tensors, logits_of, rows_at_once, session_logits
from sparse_accel.export.kernels import MAX_LOGIT_DIFFERENCE
from sparse_accel.export.texts import Texts
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.runtime.timing import plain_session
from sparse_accel.tasks import TextClassification
from sparse_accel.tasks.label_names import Head


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that every CPU has; no charts, and no longer measurements than there must be."""
    monkeypatch.setenv(VARIABLE, "portable")
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    monkeypatch.setattr(report, "write_report", lambda folder: folder)


def rows(seed: int) -> list[dict[str, str | int]]:
    """Two rows of each length, with two special tokens each."""
    random = np.random.default_rng(seed)
    return [{"text": " ".join(random.choice(WORDS, tokens - 2)), "label": label} for tokens in LONG for label in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_long_rows(name: str, tmp_path: Path) -> None:
    architecture, longest = ARCHITECTURES[name], max(LONG)
    (tmp_path / "recipe.yaml").write_text(WITHOUT_TEACHER)
    done = run(
        model_name_or_path=write_model(tmp_path / "start", architecture, WORDS, longest, width=16),
        recipe=tmp_path / "recipe.yaml",
        distill_teacher="disable",
        train_file=write_csv(tmp_path / "train.csv", rows(1)),
        validation_file=write_csv(tmp_path / "validation.csv", rows(2)),
        max_seq_length=longest,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        save_strategy="no",
        do_train=True,
        do_eval=True,
        output_dir=tmp_path / "out",
    )
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "train_results.json")["encoder_sparsity"] == SPARSITY

    done = export(model_path=tmp_path / "out", task="text_classification")
    assert done.code == 0, done.all
    written = read_json(tmp_path / "deployment" / "export_report.json")
    assert written["texts"]["source"] == str(tmp_path / "validation.csv") and written["texts"]["rows"] == 4
    assert {check["result"] for check in written["checks"]} == {"pass"}
    assert written["sparse_kernels"]["reason"] == ""

    model = sparse_accel.load(tmp_path / "out")
    assert model.config._attn_implementation == MODELS[name].attention  # type: ignore[union-attr]
    kernels, plain = session(tmp_path / "deployment"), plain_session(tmp_path / "deployment" / "model.onnx")
    assert explain(kernels).instruction_set == "portable" and explain(kernels).kept == ()
    texts = [str(row["text"]) for row in rows(3)]
    for batch_of in (texts[:2], texts[2:], texts[1:3]):  # of each length, and of both, padded
        batch = dict(make_tokenizer(architecture, WORDS, longest)(batch_of, padding=True, return_tensors="pt"))
        with torch.no_grad():
            expected = model(**batch).logits.numpy()
        inputs = {key: values.numpy() for key, values in batch.items()}
        found = session_logits(plain, inputs)
        spread = max(float(expected.std()), 0.05)
        assert np.abs(found - expected).mean() <= 0.1 * spread
        assert np.abs(session_logits(kernels, inputs) - found).mean() <= MAX_LOGIT_DIFFERENCE * spread


# --- the memory of the proof ------------------------------------------------------------------------------------------


def test_fewer_long_rows_run_at_once() -> None:
    """Attention needs rows x tokens x tokens numbers for each head: never more than for 32 rows of 512 tokens, but for
    one row."""
    assert [rows_at_once(tokens) for tokens in (1, 128, 512, 513, 1024, 2048, 4096, 8192)] == [
        32,
        32,
        32,
        31,
        8,
        2,
        1,
        1,
    ]
    lengths = [600] * 20 + [5] * 40 + [2000] * 3
    tokenizer = make_tokenizer(ARCHITECTURES["bert"], WORDS, 4096)
    task = TextClassification.of_sentences(Head(["0", "1"]), ["good"] * len(lengths))
    columns = {"input_ids": [[number % 7 + 5] * length for number, length in enumerate(lengths)]}
    columns["attention_mask"] = [[1] * length for length in lengths]
    seen: list[tuple[int, ...]] = []

    def forward(inputs: Tensors) -> np.ndarray:
        seen.append(tuple(inputs["input_ids"].shape))
        return np.stack([inputs["input_ids"][:, 0].numpy(), inputs["attention_mask"].sum(1).numpy()], axis=1)

    for length in (None, 2048):
        seen.clear()
        found = logits_of(
            Runner("counted", forward), tokenizer, Texts("here", Dataset.from_dict(columns), task, "test"), length
        )
        assert found[:, 0].tolist() == [number % 7 + 5 for number in range(len(lengths))]
        assert found[:, 1].tolist() == lengths
        assert sum(count for count, _ in seen) == len(lengths)
        assert all(count * tokens**2 <= 32 * 512**2 for count, tokens in seen)
    assert {tokens for _, tokens in seen} == {2048}
