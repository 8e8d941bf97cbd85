"""README's commands and code run as they stand: only model names become a tiny model's folder, and recipes shorter."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from script_fixtures import make_model, sentences, write_csv
from tiny import GOOD, make_bert, make_tokenizer

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {
    "pruned90_quant-none": '{"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5}',
    "base-none": '{"num_epochs": 1}',
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The commands of README's bash blocks, as words."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def runnable(words: list[str], model: Path) -> list[str]:
    """A command of README with this Python, a tiny model, and a recipe cut short."""
    words = [str(model) if re.fullmatch(r"(RedHatAI|google-bert)/.*", word) else word for word in words]
    words = [word if not (ROOT / word).is_file() else str(ROOT / word) for word in words]
    if "--recipe" in words:
        recipe = words[words.index("--recipe") + 1].rpartition("/")[2]
        if "--recipe_args" in words:
            at = words.index("--recipe_args")
            del words[at : at + 2]
        words += ["--recipe_args", SHORT[recipe]]
    return (
        [sys.executable, *words[1:]]
        if words[0] == "python"
        else [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    )


@pytest.mark.slow
def test_the_commands_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder = make_model(tmp_path / "model", sparse=True)
    for name, count in (("train", 40), ("validation", 16), ("test", 8)):
        rows = sentences(count, seed=len(name))
        write_csv(tmp_path / f"{name}.csv", rows if name != "test" else [{"text": row["text"]} for row in rows])
        tagged = [[(word, "B-GOOD" if word in GOOD else "O") for word in row["text"].split()] for row in rows]
        text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in tagged)
        (tmp_path / f"{name}.conll").write_text(text)
    ran = 0
    for words in commands():
        if words[0] == "pip":
            continue  # how this very environment was made
        done = subprocess.run(runnable(words, model_folder), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 7
    assert (tmp_path / "predictions" / "test_predictions.csv").is_file()

    namespace: dict[str, object] = {}
    code = next(block for block in blocks("python") if "sparse_accel.load" in block)
    exec(code.replace('"sparse_quantized_bert"', repr(str(tmp_path / "sparse_quantized_bert"))), namespace)
    model, floats = namespace["model"], namespace["floats"]
    ids = torch.tensor([[2, 5, 9, 3]])
    assert not torch.equal(model(input_ids=ids).logits, floats(input_ids=ids).logits)  # type: ignore[operator]

    monkeypatch.chdir(tmp_path)
    exec(next(block for block in blocks("python") if "onnxruntime" in block), {})
    assert capsys.readouterr().out.strip() in ("['0']", "['1']")


def test_the_loop_of_your_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        "modifiers:\n"
        "  - !EpochRangeModifier\n    end_epoch: 2\n"
        "  - !ConstantPruningModifier\n    start_epoch: 0\n"
        "  - !QuantizationModifier\n    start_epoch: 1\n"
    )
    model: Any = make_bert(sparsity=0.5)
    tokenizer = make_tokenizer()
    rows: Any = [
        tokenizer(row["text"], padding="max_length", max_length=20) | {"labels": row["label"]}
        for row in sentences(16, 0)
    ]
    loader: Any = torch.utils.data.DataLoader(
        rows, batch_size=4, collate_fn=lambda batch: tokenizer.pad(batch, return_tensors="pt")
    )
    namespace: dict[str, Any] = {"model": model, "optimizer": torch.optim.AdamW(model.parameters()), "loader": loader}
    exec(next(block for block in blocks("python") if "run.step_begin()" in block), namespace)

    run = namespace["run"]
    assert run.progress.epoch == 2 and run.structure_final()
    layer = model.bert.encoder.layer[0].output.dense
    assert layer.weight_quantizer.enabled and not layer.weight_quantizer.observing
    assert (layer.masked_weight() == 0).float().mean() >= 0.5


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"quickstart", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in named)


def test_the_old_snippet_for_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path / "mirror"))
    exec(next(block for block in blocks("python") if "sparse_accel.zoo" in block), {})
    assert Path(capsys.readouterr().out.strip()).is_file()
