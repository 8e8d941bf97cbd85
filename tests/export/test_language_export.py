"""scripts/export_onnx.py for masked language models: the proof on masked tokens, batch by batch, and `fill_mask`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from datasets import Dataset
from export_fixtures import ONE_BLOCK, export, quantize, write_folder
from language_fixtures import TinyTexts, blocks, make_roberta, masked_batch, run, texts, write_texts
from onnx import numpy_helper
from places import GOLDEN
from script_fixtures import flat, make_model, read_json
from tiny import make_tokenizer
from token_fixtures import NO_DROPOUT, VOCABULARY
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    pipeline,
)

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.export.fidelity import Fidelity, Runner, check_fidelity, compare_runs, rows_at_once
from sparse_accel.export.texts import Texts
from sparse_accel.nn.losses import IGNORED
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.tasks import MaskedLanguageModeling
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.masked_language_modeling.encoding import WORDS

pytest_plugins = ["language_fixtures", "export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")

FIGURES = "perplexity and accuracy"
QUANTIZED = """
modifiers:
  - !EpochRangeModifier {end_epoch: 6}
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}
  - !QuantizationModifier
      {start_epoch: 4, disable_quantization_observer_epoch: 5, quantize_linear_activations: false}
"""


@pytest.fixture(scope="module")
def trained(language: TinyTexts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned and quantized language model, its embeddings and its output layer too, with flags of its own."""
    folder = tmp_path_factory.mktemp("language_runs")
    (folder / "recipe.yaml").write_text(QUANTIZED)
    start = make_model(folder / "pruned", sparse=True, vocabulary=VOCABULARY, **NO_DROPOUT)
    flags = {"recipe": folder / "recipe.yaml", "model_name_or_path": start, "num_train_epochs": None}
    done = run(**language.flags(**flags, learning_rate=1e-2, seed=7, mlm_probability=0.2, output_dir=folder / "out"))
    assert done.code == 0, done.all
    return folder / "out"


@pytest.fixture(scope="module")
def deployment(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "portable")  # kernels that every x86-64 CPU has
        done = export(model_path=trained, output_dir=folder, kernels=True)
    assert done.code == 0, done.all
    return folder


def checks(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["result"], check["detail"]) for check in report["checks"]}


def evaluated(folder: Path) -> dict[str, float]:
    """The figures of a run's own evaluation."""
    found = read_json(folder / "eval_results.json")
    return {name: found[f"eval_{name}"] for name in ("perplexity", "accuracy")}


# --- what is exported, and proven -------------------------------------------------------------------------------------


def test_an_export_is_proven_on_the_masked_tokens_of_the_run(
    language: TinyTexts, trained: Path, deployment: Path
) -> None:
    report = read_json(deployment / "export_report.json")
    found = checks(report)
    assert {result for result, _ in found.values()} == {"pass"}, found
    assert report["task"] == "masked_language_modeling" and report["head"] == "BertForMaskedLM"
    assert report["quantized_linears"] == report["linears"] == 14
    assert "most likely tokens are the same on" in found["agreement"][1]
    assert f"masked tokens of {language.validation}" in found["agreement"][1]
    assert report["fidelity"]["pytorch"] == pytest.approx(evaluated(trained), rel=1e-5)
    assert report["fidelity"]["onnxruntime"] == pytest.approx(evaluated(trained), rel=0.02)
    assert "perplexity" in found[FIGURES][1] and "accuracy" in found[FIGURES][1]
    assert set(report["latency"]["onnxruntime"]) == {"1", "8"}
    text = (deployment / "export_report.md").read_text()
    assert "for masked language modeling" in text and f"| {FIGURES} | pass |" in text


def test_the_figures_of_the_report_are_those_of_the_file(
    language: TinyTexts, trained: Path, deployment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows in one batch, in onnxruntime alone, with labels that this package's evaluation did not make."""
    tokenizer = AutoTokenizer.from_pretrained(deployment)
    rows = blocks(tokenizer, texts(60, seed=2))
    monkeypatch.setattr("language_fixtures.mask_tokens", _masked_as_in(trained))
    batch = masked_batch(tokenizer, rows, range(len(rows)), 0)
    labels = batch.pop("labels")
    feed = {name: value.numpy() for name, value in batch.items()} | {
        "token_type_ids": np.zeros_like(batch["input_ids"].numpy())
    }
    plain = onnxruntime.InferenceSession(deployment / "model.onnx")
    logits = torch.from_numpy(plain.run(["logits"], feed)[0])
    masked = labels != IGNORED
    loss = torch.nn.functional.cross_entropy(logits[masked], labels[masked])
    report = read_json(deployment / "export_report.json")["fidelity"]
    assert report["rows"] == int(masked.sum())
    correct = (logits[masked].argmax(-1) == labels[masked]).float().mean()
    expected = {"perplexity": float(loss.exp()), "accuracy": float(correct)}
    assert report["onnxruntime"] == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        ours = sparse_accel.load(trained)(**batch).logits[masked]
    assert report["spread"] == pytest.approx(float(ours.std(correction=0)), rel=1e-4)
    assert report["max_difference"] == pytest.approx(float((ours - logits[masked]).abs().max()), rel=0.2, abs=1e-4)


def _masked_as_in(folder: Path) -> Callable[..., Any]:
    """`mask_tokens` with the seed and the fraction of a run."""
    from sparse_accel.tasks.masked_language_modeling.masking import mask_tokens

    flags = read_json(folder / "arguments.json")
    own = {"seed": flags["seed"], "probability": flags["mlm_probability"]}
    return lambda *arguments, **settings: mask_tokens(*arguments, **{**settings, **own})


def test_embeddings_and_output_layer_are_one_weight_in_integers(deployment: Path) -> None:
    graph = onnx.load(deployment / "model.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rows = stored["bert.embeddings.word_embeddings.weight_quantized"]
    columns = stored["cls.predictions.decoder.weight_quantized"]
    assert rows.dtype == columns.dtype == np.int8 and np.array_equal(rows, columns.T)
    assert [value.name for value in graph.output] == ["logits"]
    shape = [axis.dim_value or axis.dim_param for axis in graph.output[0].type.tensor_type.shape.dim]
    assert shape[2] == len(rows) and all(isinstance(axis, str) for axis in shape[:2])
    assert {value.name for value in graph.input} == {"input_ids", "attention_mask", "token_type_ids"}


def test_the_kernels_are_proven_and_say_what_they_do_with_the_output_layer(
    deployment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = read_json(deployment / "export_report.json")["sparse_kernels"]
    assert kernels["reason"] == "" and {check["result"] for check in kernels["checks"]} == {"pass"}
    assert FIGURES in {check["name"] for check in kernels["checks"]}
    assert "cls.predictions.decoder" in {**kernels["matrices"], **kernels["kept"]}
    assert (deployment / "model.kernels.onnx").is_file()
    monkeypatch.setenv(VARIABLE, "portable")
    made = session(deployment)
    said = str(explain(made))
    assert explain(made).matrices and "cls.predictions.decoder" in said
    ids = np.array([[2, 5, 6, 4, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    plain = onnxruntime.InferenceSession(deployment / "model.onnx").run(None, feed)[0]
    assert np.abs(made.run(None, feed)[0] - plain).mean() < 0.02 * plain.std()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "format"),
    [({}, "integer"), ({"sequence_length": 40, "reduce_range": True}, "qdq")],
    ids=["integer", "fixed, 7 bits"],
)
def test_other_forms(
    flags: dict[str, Any], format: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    done = export(model_path=trained, output_dir=tmp_path / "out", format=format, **flags)
    assert done.code == 0, done.all
    report = read_json(tmp_path / "out" / "export_report.json")
    assert {result for result, _ in checks(report).values()} == {"pass"} and report["format"] == format
    if not flags.get("reduce_range"):
        assert report["fidelity"]["pytorch"] == pytest.approx(evaluated(trained), rel=1e-5)


DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "share_att_key": True,
    "type_vocab_size": 0,
}
OTHERS: dict[str, Callable[[], Any]] = {
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=30, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=64)
    ),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**ONE_BLOCK, embedding_size=16)),
    "deberta": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**ONE_BLOCK, **DEBERTA)),
    "untied": lambda: BertForMaskedLM(BertConfig(**ONE_BLOCK, tie_word_embeddings=False)),
}


def assert_proven(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Exports a model of the tiny tokenizer, proven on texts of --data; returns the tensors of the file."""
    monkeypatch.setenv(VARIABLE, "none")
    folder = write_folder(tmp_path / "model", model)
    data = write_texts(tmp_path / "texts.txt", ["good the plot bad", "the film was fine"] * 20)
    done = export(model_path=folder, output_dir=tmp_path / "out", data=data, max_seq_length=16)
    assert done.code == 0, done.all
    assert {result for result, _ in checks(read_json(tmp_path / "out" / "export_report.json")).values()} == {"pass"}
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their output layers have other names, biases and widths."""
    torch.manual_seed(0)
    assert_proven(quantize(OTHERS[kind]()), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "of_rows", "of_columns"),
    [
        ({"quantize_embeddings": False}, "weight", "weight_quantized"),
        ({"submodules": ["bert.embeddings", "bert.encoder"]}, "weight_quantized", "weight"),
        ({"quantize_linear_activations": True}, "weight_quantized", "weight_quantized"),
    ],
    ids=["output layer alone", "embeddings alone", "quantized logits"],
)
def test_only_what_the_recipe_quantizes_is_in_integers(
    settings: dict[str, Any], of_rows: str, of_columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**ONE_BLOCK, initializer_range=0.2))
    stored = assert_proven(quantize(model, **settings), tmp_path, monkeypatch)
    found = [name for name in stored if "word_embeddings.weight" in name or "decoder.weight" in name]
    names = [f"bert.embeddings.word_embeddings.{of_rows}", f"cls.predictions.decoder.{of_columns}"]
    assert {name for name in found if not name.endswith(("scale", "zero_point"))} == {*names}
    assert [stored[name].dtype == np.int8 for name in names] == [name.endswith("quantized") for name in names]
    assert ("cls.predictions.decoder.output_scale" in stored) == ("quantize_linear_activations" in settings)


def test_an_output_that_is_no_layer_is_refused(tmp_path: Path) -> None:
    model = write_folder(
        tmp_path / "model", DebertaV2ForMaskedLM(DebertaV2Config(**ONE_BLOCK, **DEBERTA, legacy=False))
    )
    done = export(model_path=model, output_dir=tmp_path / "out")
    assert done.code == 2 and "multiplies with the weight of its embeddings" in flat(done.err), done.all
    assert not (tmp_path / "out").exists()


# --- which texts ------------------------------------------------------------------------------------------------------


def test_the_flags_of_the_run_make_the_rows_and_the_masks(
    language: TinyTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    own = {"line_by_line": True, "whole_word_mask": True, "mlm_probability": 0.4, "seed": 11, "max_seq_length": 16}
    done = run(**language.flags(**own, output_dir=tmp_path / "out"))
    assert done.code == 0, done.all
    for name, flags in (("own", {}), ("named", {"data": language.validation})):
        done = export(model_path=tmp_path / "out", output_dir=tmp_path / name, **flags)
        assert done.code == 0, done.all
        report = read_json(tmp_path / name / "export_report.json")
        assert report["fidelity"]["pytorch"] == pytest.approx(evaluated(tmp_path / "out"), rel=1e-5), name
        assert report["texts"]["rows"] == 60 and report["notes"] == []


def test_a_model_of_another_program_is_proven_on_sentences_of_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    done = export(model_path=make_roberta(tmp_path / "model"), task="fill-mask")
    assert done.code == 0, done.all
    report = read_json(tmp_path / "deployment" / "export_report.json")
    assert {result for result, _ in checks(report).values()} <= {"pass", "not checked"}
    assert report["texts"]["source"] == "this package" and "name it with --data FILE" in report["notes"][0]
    assert report["fidelity"]["pytorch"]["perplexity"] > 1 and report["format"] == "float"


@pytest.mark.slow
def test_a_column_of_texts(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    rows = [{"before": "x", "line": line} for line in texts(20, seed=5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    flags = {"model_path": trained, "output_dir": tmp_path / "out", "data": tmp_path / "rows.jsonl"}
    done = export(**flags)
    assert done.code == 2 and "Name one with --input_column_names" in flat(done.err), done.all
    done = export(**flags, input_column_names="line")
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "export_report.json")["texts"]["rows"] == 20


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", "", "empty.txt"),
        ("blank.txt", "\n  \n\n", "has no text: all its lines are blank"),
        ("unknown.txt", "zzz qqq\nzzz\n", "no token can be masked, because all are special tokens such as [UNK]"),
        ("none", None, "none"),
        ("nowhere.txt", None, "nowhere.txt"),
        ("rows.xml", "<a/>", "rows.xml"),
    ],
)
def test_texts_that_cannot_be_used(name: str, content: str | None, said: str, trained: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    elif name == "none":
        (tmp_path / name).mkdir()
    assert_refused(tmp_path, said, model_path=trained, data=tmp_path / name)


def test_a_folder_of_training_texts_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_texts(tmp_path / "data" / "train.txt", texts(20, seed=5))
    assert_refused(tmp_path, "has no validation rows", model_path=trained, data=tmp_path / "data")


def test_no_texts_that_the_model_knows(tmp_path: Path) -> None:
    """Nothing is recorded, and the words of this package's sentences are unknown to a vocabulary of 30."""
    model = make_model(tmp_path / "model", sparse=False, vocabulary=["zzz"])
    assert_refused(tmp_path, "name texts with --data FILE", model_path=model)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--label_column_name label", "--label_column_name is not for masked_language_modeling"),
        ("--input_column_names one two", "reads one column of texts"),
        ("--version_2_with_negative", "--version_2_with_negative is for question_answering"),
        ("--task text_classification", "BertForMaskedLM, which does not classify texts"),
    ],
)
def test_flags_of_other_tasks(flags: str, said: str, trained: Path, language: TinyTexts, tmp_path: Path) -> None:
    assert_refused(tmp_path, said, *flags.split(), model_path=trained, data=language.validation)


def assert_refused(tmp_path: Path, said: str, *arguments: str, **flags: Any) -> None:
    done = export(*arguments, output_dir=tmp_path / "out", **flags)
    assert done.code == 2, done.all
    assert said in flat(done.err) and "Traceback" not in done.all, done.all
    assert len(done.err.strip().splitlines()) <= 3 and not (tmp_path / "out").exists()


# --- the comparison, batch by batch -----------------------------------------------------------------------------------


def of_blocks(rows: int = 50) -> Texts:
    """Rows of 8 to 24 tokens, a fifth of them masked."""
    draw, tokenizer = np.random.default_rng(3), make_tokenizer()
    task = MaskedLanguageModeling.of_sentences(Head([]), ["good"])
    task.tokenize(tokenizer, 16)  # learns the mask token
    task.probability = 0.2
    ids = [[2, *draw.integers(5, 30, length).tolist(), 3] for length in draw.integers(6, 23, rows)]
    words = [[-1, *range(len(each) - 2), -1] for each in ids]
    mask = [[1] * len(each) for each in ids]
    return Texts("here", Dataset.from_dict({"input_ids": ids, "attention_mask": mask, WORDS: words}), task, "test")


def drawn(width: int, noise: float = 0.0, seen: list[int] | None = None, shift: int = 0) -> Runner:
    """A runner whose logits are numbers that belong to a token and its position, with noise; then shifted by tokens."""
    table = np.random.default_rng(0).normal(loc=3.0, size=(64, 64, width)).astype(np.float32)
    other = np.random.default_rng(1).normal(size=table.shape).astype(np.float32) * noise

    def logits(inputs: Any) -> np.ndarray:
        ids = inputs["input_ids"].numpy()
        places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        if seen is not None:
            seen.append(ids.size * width)
        found: np.ndarray = np.roll(table[ids, places] + other[ids, places], shift, axis=-1)
        return found

    return Runner(f"noise {noise:g}", logits)


def whole(texts_of_proof: Texts, *runners: Runner) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and labels of the masked tokens in the order of rows and tokens, row by row."""
    task, found = texts_of_proof.task, []
    for runner in runners:
        logits, labels = [], []
        for number, row in enumerate(texts_of_proof.rows):
            batch = {name: torch.tensor([row[name]]) for name in ("input_ids", WORDS)}
            batch = task.prepare({**batch, "row_id": torch.tensor([number])}, 0)
            masked = batch["labels"] != IGNORED
            logits.append(runner.run(batch)[masked.numpy()])
            labels.append(batch["labels"][masked].numpy())
        found.append((np.concatenate(logits), np.concatenate(labels)))
    return found


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("most", [2**24, 2000])
def test_batches_give_what_all_logits_at_once_give(noise: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_accel.export.fidelity._MOST_LOGITS", most)
    proven, runners, seen = of_blocks(), (drawn(40), drawn(40, noise)), list[int]()
    first = drawn(40, seen=seen)
    found, kept = compare_runs(first, runners[1], make_tokenizer(), proven, None)
    assert kept.size == 0 and (len(seen) == 2 if most > 2000 else max(seen) <= 2000 * 40 / 30)  # 30 tokens, 40 logits
    (ours, labels), (theirs, _) = whole(proven, *runners)
    assert found.rows == len(labels) == proven.task.unit_counts(proven.rows).sum() > 100
    one, other = ours.argmax(1), theirs.argmax(1)
    assert found.agreement == pytest.approx((one == other).mean()) and (noise < 0.3 or (one == other).mean() < 0.95)
    assert found.mean_difference == pytest.approx(np.abs(ours - theirs).mean(), rel=1e-5)
    assert found.max_difference == pytest.approx(np.abs(ours - theirs).max(), rel=1e-6)
    assert found.spread == pytest.approx(ours.std(), rel=1e-4)
    gaps = [min(a[x] - a[y], b[y] - b[x]) for a, b, x, y in zip(ours, theirs, one, other, strict=True) if x != y]
    assert sorted(found.gaps) == pytest.approx(sorted(gaps), rel=1e-4)
    for logits, figures in zip((ours, theirs), found.metrics or (), strict=True):
        loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
        expected = {"perplexity": float(loss.exp()), "accuracy": float((logits.argmax(1) == labels).mean())}
        assert figures == pytest.approx(expected, rel=1e-5)


def failed(found: Fidelity, proven: Texts, quantized: bool = True) -> set[str]:
    return {check.name for check in check_fidelity(found, proven, quantized) if check.passed is False}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (drawn(40), set()),
        (drawn(40, 0.02), set()),
        (drawn(40, 0.3), {"agreement", "logits"}),
        (drawn(40, shift=1), {"agreement", "logits"}),
    ],
)
def test_other_logits_fail_the_proof(second: Runner, expected: set[str]) -> None:
    proven = of_blocks()
    found, _ = compare_runs(drawn(40), second, make_tokenizer(), proven, None)
    assert failed(found, proven) >= expected and bool(failed(found, proven)) == bool(expected)


def test_a_perplexity_may_differ_by_a_fraction_of_itself() -> None:
    """Of 8,000 masked tokens: 2% of it, whether it is 2 or 30,000."""
    proven = of_blocks()
    count = proven.task.support(proven.rows, "test")
    allowed = max(0.005, 1 / count) * 4
    for value in (2.0, 30_000.0):
        for factor, fails in ((1 + 0.9 * allowed, False), (1 + 1.1 * allowed, True), (1 - 1.1 * allowed, True)):
            metrics = ({"perplexity": value, "accuracy": 0.3}, {"perplexity": value * factor, "accuracy": 0.3})
            found = Fidelity(("one", "other"), count, 1.0, 0.0, 0.0, 1.0, metrics)
            assert (failed(found, proven) == {FIGURES}) == fails


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_broken_logits_fail_the_proof(broken: float) -> None:
    proven, good = of_blocks(), drawn(40)

    def logits(inputs: Any) -> np.ndarray:
        found = good.run(inputs).copy()
        found[0] = broken
        return found

    found, _ = compare_runs(good, Runner("broken", logits), make_tokenizer(), proven, None)
    assert {"logits", FIGURES} <= failed(found, proven)


def test_rows_of_a_batch_are_as_many_as_their_logits_allow() -> None:
    assert [rows_at_once(128, each) for each in (0, 30, 30_522, 250_002)] == [32, 32, 4, 1]
    assert [rows_at_once(512, each) for each in (0, 30_522)] == [32, 1]


# --- fill_mask --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_float(language: TinyTexts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployment of a float model, whose logits are those of transformers."""
    folder = tmp_path_factory.mktemp("floats") / "out"
    done = export(model_path=language.model, output_dir=folder, data=language.validation)
    assert done.code == 0, done.all
    return folder


def as_numbers(found: Any) -> Any:
    """Answers with their scores rounded, to be compared with ==."""
    if isinstance(found, list):
        return [as_numbers(each) for each in found]
    return {**found, "score": pytest.approx(found["score"], rel=1e-4)}


@pytest.mark.parametrize(
    "asked",
    [
        "anna went to [MASK] .",
        "[MASK] saw [MASK] in paris .",
        ["the old [MASK] .", "boris [MASK] [MASK]", "a film from [MASK] and anna wolf"],
    ],
)
def test_fill_mask_is_the_pipeline_of_transformers(asked: Any, language: TinyTexts, in_float: Path) -> None:
    fill: Any = pipeline("fill-mask", str(language.model))
    expected = fill(asked, top_k=3)
    assert sparse_accel.fill_mask(in_float, asked, top_k=3) == as_numbers(expected)
    assert len(fill(asked)) == len(sparse_accel.fill_mask(in_float, asked))


@pytest.mark.slow
def test_fill_mask_of_a_fixed_length(language: TinyTexts, in_float: Path, tmp_path: Path) -> None:
    done = export(model_path=language.model, output_dir=tmp_path / "out", data=language.validation, sequence_length=24)
    assert done.code == 0, done.all
    asked = ["anna went to [MASK] .", "the old [MASK] and [MASK]"]
    assert sparse_accel.fill_mask(tmp_path / "out", asked) == as_numbers(sparse_accel.fill_mask(in_float, asked))
    with pytest.raises(UsageError, match=r"text 0 \(from 0\) has 43 tokens, and the model reads 24"):
        sparse_accel.fill_mask(tmp_path / "out", " ".join(["[MASK]"] + ["the"] * 40))


def test_fill_mask_with_kernels_is_that_of_onnxruntime(deployment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["anna went to [MASK] .", "the old [MASK] ."]
    found = []
    for kernels in ("portable", "none"):
        monkeypatch.setenv(VARIABLE, kernels)
        found.append(sparse_accel.fill_mask(deployment, asked, top_k=1))
    for ours, theirs in zip(*found, strict=True):
        assert ours[0]["token_str"] == theirs[0]["token_str"] and ours[0]["score"] == pytest.approx(
            theirs[0]["score"], 0.1
        )


def test_fill_mask_refuses_what_it_cannot_fill(in_float: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"text 1 \(from 0\) has no \[MASK\]: 'anna'"):
        sparse_accel.fill_mask(in_float, ["[MASK]", "anna"])
    with pytest.raises(UsageError, match="the model reads 64: shorten it"):
        sparse_accel.fill_mask(in_float, "[MASK] " * 63)
    with pytest.raises(UsageError, match="is not a deployment of a masked language model"):
        sparse_accel.fill_mask(GOLDEN / "old_run" / "deployment", "[MASK]")
    with pytest.raises(ValueError, match="top_k is 0"):
        sparse_accel.fill_mask(in_float, "[MASK]", top_k=0)
    with pytest.raises(FileNotFoundError):
        sparse_accel.fill_mask(tmp_path, "[MASK]")
    assert sparse_accel.fill_mask(in_float, []) == []


@pytest.mark.slow
def test_code_of_the_cards_runs(
    trained: Path, deployment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of the run has the pipeline and the quantized model, that of the deployment fill_mask and onnxruntime."""
    monkeypatch.setenv(VARIABLE, "none")
    found = []
    for folder in (trained, deployment):
        code = [text.partition("```")[0] for text in (folder / "README.md").read_text().split("```python\n")[1:]]
        assert len(code) == 2
        monkeypatch.chdir(folder)
        for block in code:
            exec(block, {})
            found.append(capsys.readouterr().out.strip())
    names = [re.findall(r"'token_str': '([^']+)'", text) for text in found]
    assert [len(each) for each in names] == [5, 0, 5, 0]
    assert found[1] == found[3] == names[2][0]
