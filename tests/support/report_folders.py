"""Made-up output folders for the tests of sparse_accel.report: every file that a run or an export writes, tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECIPE = """modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 4}
  - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 4, lr_func: linear, init_lr: 0.001, final_lr: 0}
  - !ConstantPruningModifier {start_epoch: 0, params: __ALL_PRUNABLE__}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 3}
"""
LAYERS = {
    "bert.embeddings.word_embeddings.weight": 0.0,
    "bert.encoder.layer.0.attention.self.query.weight": 0.9,
    "bert.encoder.layer.0.output.dense.weight": 0.85,
    "bert.encoder.layer.1.attention.self.query.weight": 0.95,
    "classifier.weight": 0.0,
}
QUANTIZERS = (
    "bert.embeddings.word_embeddings.weight_quantizer",
    "bert.encoder.layer.0.output.dense.weight_quantizer",
    "bert.encoder.layer.0.output.dense.input_quantizer",
)


def log_entry(epoch: float, **others: Any) -> dict[str, Any]:
    """One entry of a log with two figures, as at the end of an epoch: a chart takes time."""
    return {
        "step": round(10 * epoch),
        "epoch": epoch,
        "train/loss": 1 / (1 + epoch),
        "eval_accuracy": 0.5 + epoch / 20,
    } | others


def full_log_entry(epoch: float) -> dict[str, Any]:
    """One entry of a log with all kinds of figures."""
    others = {
        "train/task_loss": 0.5 / (1 + epoch),
        "train/learning_rate": 0.001 * (4 - epoch) / 4,
        "train/weight_decay": 0.01 / epoch,
        "train/gradient_norm": 2.0,
        "train/tokens_per_second": 1000.0 + epoch,
        "train/teacher_agreement": 0.9,
        "train/padding": 0.1,
        "memory/cpu_gb": 1.5,
        "memory/gpu_gb": 3.5,
        "eval_loss": 0.7 - epoch / 20,
        "eval_mse": 2.0,
        "sparsity/encoder": 0.9,
        "sparsity/model": 0.4,
        f"quantization/clipped/{QUANTIZERS[2]}": 0.0004 * epoch,
    }
    return log_entry(epoch, **others)


def files_of_a_run(folder: Path) -> dict[str, Any]:
    """The JSON files of a finished run in `folder`, by name."""
    ranges = {"bits": 8, "minimum": [-1.5, -0.25], "maximum": [0.5, 2.75], "scale": [0.1, 0.2], "zero_point": [0, 0]}
    return {
        "run.json": {"finished": True, "identity": {"seed": 1}},
        "arguments.json": {
            "model_name_or_path": "bert-tiny",
            "train_file": "/data/train.csv",
            "validation_file": "/data/validation.csv",
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-05,
            "seed": 1,
            "output_dir": str(folder),
        },
        "all_results.json": {
            "epoch": 4.0,
            "global_step": 40,
            "train_loss": 0.2,
            "train_runtime": 125.0,
            "linears": 14,
            "quantized_linears": 14,
            "eval_accuracy": 0.7,
            "eval_loss": 0.5,
        },
        "trainer_state.json": {
            "log_history": [log_entry(epoch) for epoch in (1.0, 2.0, 3.0, 4.0)],
            "best_metric": None,
        },
        "sparsity.json": {
            "encoder_linear": {"zeros": 900, "weights": 1000, "sparsity": 0.9},
            "model": {"zeros": 900, "weights": 2000, "sparsity": 0.45},
            "layers": {name: {"zeros": 1, "weights": 2, "sparsity": value} for name, value in LAYERS.items()},
        },
        "quantization.json": {"version": 1, "quantizers": dict.fromkeys(QUANTIZERS, ranges)},
        "environment.json": {
            "sparse_accel": "0.1.0",
            "commit": "abc1234",
            "packages": {"torch": "2.13.0"},
            "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 24, "gpus": []},
            "layout": "cpu (one process)",
            "precision": "float32",
            "started": "2026-11-26T08:01:12+00:00",
            "command": "scripts/text_classification.py --seed 1",
        },
        "evaluation.json": {
            "validation": {
                "source": "validation.csv",
                "rows": 60,
                "digest": "0" * 32,
                "headline": "accuracy",
                "figures": {"accuracy": 0.7, "f1_macro": 0.69, "loss": 0.5},
                "teacher": {"name": "teacher", "figures": {"accuracy": 0.75}},
                "labels": ["neg", "pos"],
                "confusion": [[20, 10], [8, 22]],
                "per_label": [
                    {"label": "neg", "precision": 0.714, "recall": 0.667, "f1": 0.69, "support": 30},
                    {"label": "pos", "precision": 0.6875, "recall": 0.733, "f1": 0.71, "support": 30},
                ],
                "mistakes": [
                    {"row": 17, "text": "a dull film", "label": "neg", "predicted": "pos", "confidence": 0.98},
                ],
            }
        },
        "config.json": {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "num_hidden_layers": 2,
            "hidden_size": 16,
        },
    }


def export_report(source: Path | str) -> dict[str, Any]:
    """The export_report.json of a model in `source`."""
    times = {
        "float": 40.0,
        "quantized": 20.0,
        "sparse kernels": 8.0,
        "float, no zeros": 41.0,
        "quantized, no zeros": 19.0,
    }
    return {
        "source": {"folder": str(source), "weights": "0" * 32, "model_type": "bert"},
        "checks": [{"name": "zeros", "result": "pass", "detail": "900 of 1,000 weights"}],
        "fidelity": {"rows": 60, "onnxruntime": {"accuracy": 0.7}},
        "texts": {"source": "validation.csv", "rows": 60, "labels": True},
        "files": {"float32": {"bytes": 4000, "ratio": 1.0}, "model.onnx": {"bytes": 1000, "ratio": 0.25}},
        "tokens": 20,
        "latency": {"onnxruntime": {"1": times, "32": {name: 30 * value for name, value in times.items()}}},
        "sparse_kernels": {"reason": ""},
        "cpu": {"name": "AMD EPYC", "vnni": True},
    }


# What an export removes, as export_report.json has it.
STRUCTURE = {
    "before": {
        "layers": 2,
        "attention_heads": [4, 4],
        "ffn_neurons": [64, 64],
        "parameters": 900,
        "multiply_adds": 600,
    },
    "after": {"layers": 2, "attention_heads": [3, 1], "ffn_neurons": [42, 32], "parameters": 600, "multiply_adds": 300},
}


def write_run(folder: Path, *, recipe: str | None = RECIPE, without: tuple[str, ...] = (), **files: Any) -> Path:
    """Writes a run's output folder and returns it.

    Args:
        recipe: the text of recipe.yaml; None for a run without one.
        without: files that are left out.
        files: the content of files, in place of that of `files_of_a_run`; names without `.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = files_of_a_run(folder) | {f"{name}.json": content for name, content in files.items()}
    for name, content in contents.items():
        if name not in without:
            (folder / name).write_text(json.dumps(content))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe)
    return folder


def write_export(folder: Path, source: Path | str, **entries: Any) -> Path:
    """Writes a deployment folder of the model in `source` and returns it; `entries` replace those of its report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "export_report.json").write_text(json.dumps(export_report(source) | entries))
    return folder
