"""The tutorial's six commands, typed as they stand, in one folder, by the commands that installing puts on PATH.

Models, teacher and data come from a Hub on loopback, at the ids that the tutorial's stubs and names lead to today.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from places import ROOT
from script_fixtures import Tiny, make_model, read_json, sentences, weights
from stand_in_hub import StandInHub

pytest_plugins = ["script_fixtures"]

COMMANDS = (Path(__file__).parent / "tutorial_commands.sh").read_text().split("\nsparseml.")[1:]
PREFIX = "sparse_quantized_bert-text_classification_"
BIN = Path(sys.executable).parent
# The tutorial's snippets with today's names: the short one is refused by the Hub's client before it asks.
SAVE_CSV = """
from datasets import load_dataset

rotten_tomatoes = load_dataset("cornell-movie-review-data/rotten_tomatoes")
rotten_tomatoes["train"].to_csv("./rotten_tomatoes-train.csv")
rotten_tomatoes["validation"].to_csv("./rotten_tomatoes-validation.csv")
"""
SAVE_RECIPE = """
from sparse_accel.zoo import Model
transfer_stub = "zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none"
download_dir = "./transfer_recipe"
zoo_model = Model(transfer_stub, download_path=download_dir)
recipe_path = zoo_model.recipes.default.path
print(recipe_path)
"""


def dataset(folder: Path, column: str, names: list[str], prefix: str = "data/") -> dict[str, Any]:
    """Parquet files of a dataset repository with train, validation and test."""
    features = Features({column: Value("string"), "label": ClassLabel(names=names)})
    files: dict[str, Any] = {}
    for number, (split, rows) in enumerate({"train": 64, "validation": 24, "test": 24}.items()):
        drawn = sentences(rows, seed=number)
        path = folder / f"{column}-{split}.parquet"
        columns = {column: [row["text"] for row in drawn], "label": [row["label"] for row in drawn]}
        Dataset.from_dict(columns, features=features).to_parquet(path)
        files[f"{prefix}{split}-00000-of-00001.parquet"] = path
    return files


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> StandInHub:
    made = tmp_path_factory.mktemp("made")
    hub = StandInHub(tmp_path_factory.mktemp("hub"))
    card = "---\nconfigs:\n- config_name: sst2\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: sst2/{split}-*\n" for split in ("train", "validation", "test")
    )
    glue = dataset(made, "sentence", ["negative", "positive"], "sst2/")
    hub.add_dataset("nyu-mll/glue", {"README.md": card + "---\n", **glue})
    hub.add_dataset("cornell-movie-review-data/rotten_tomatoes", dataset(made, "text", ["neg", "pos"]))
    hub.add_model("RedHatAI/oBERT-12-upstream-pruned-unstructured-90-v2", tiny.model)
    hub.add_model("google-bert/bert-base-uncased", make_model(made / "dense", sparse=False))
    hub.add_model("JeremiahZ/bert-base-uncased-sst2", make_model(made / "teacher", sparse=False, head=True))
    return hub


@pytest.mark.slow
def test_the_tutorial_as_it_stands(hub: StandInHub, tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    desk.mkdir()
    environment = hub.environment(tmp_path / "home") | {"SPARSEZOO_MODELS_PATH": str(tmp_path / "mirror")}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def typed(*command: str) -> str:
        done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    assert len(COMMANDS) == 6
    with hub:
        sst2, export, from_hub, from_files, dense, custom = (f"sparseml.{command}" for command in COMMANDS)
        printed = typed("bash", "-c", sst2)
        assert "STAND-IN: a dense BERT-base trained on SST-2" in printed and "1. local mirror" in printed
        assert_sparse_and_quantized(desk / f"{PREFIX}sst2")
        typed("bash", "-c", export)
        assert {"model.onnx", "config.json", "tokenizer.json"} <= {
            path.name for path in (desk / "deployment").iterdir()
        }
        typed("bash", "-c", from_hub)
        assert_sparse_and_quantized(desk / f"{PREFIX}rotten_tomatoes-hf_dataset")
        typed(sys.executable, "-c", SAVE_CSV)
        typed("bash", "-c", from_files)
        assert_sparse_and_quantized(desk / f"{PREFIX}rotten_tomatoes-local_dataset")
        typed("bash", "-c", dense)
        assert read_json(desk / "dense-teacher_rotten_tomatoes" / "all_results.json")["epoch"] == 8
        printed = typed("bash", "-c", custom)
        # It writes where the third one did: that run is finished and another one, so it is moved aside.
        assert f"{PREFIX}rotten_tomatoes-hf_dataset was moved to" in printed
        assert re.search("distill_teacher is given 2 times; the last one is used: ./dense-teacher", printed)
        assert_sparse_and_quantized(desk / f"{PREFIX}rotten_tomatoes-hf_dataset")
        assert_sparse_and_quantized(desk / f"{PREFIX}rotten_tomatoes-hf_dataset.1")
        assert "transfer_recipe/sst2_pruned90_quant.yaml" in typed(sys.executable, "-c", SAVE_RECIPE)


def assert_sparse_and_quantized(output: Path, epochs: tuple[int, ...] = (12, 13)) -> None:
    results = read_json(output / "all_results.json")
    assert results["quantized_linears"] == results["linears"] == 14 and results["epoch"] in epochs
    encoder = [weight for name, weight in weights(output).items() if ".encoder." in name and weight.ndim == 2]
    assert all((weight == 0).float().mean() > 0.85 for weight in encoder)


@pytest.mark.slow
def test_prefetched_it_runs_without_a_network(hub: StandInHub, tmp_path: Path) -> None:
    command = COMMANDS[0].replace("\\\n", " ").split()[1:]
    command += ["--recipe_args", "num_epochs=2,qat_start_epoch=1.0,observer_epoch=1.5"]
    environment = hub.environment(tmp_path / "home") | {"SPARSEZOO_MODELS_PATH": str(tmp_path / "mirror")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def script(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(ROOT / "scripts" / name), *command]
        return subprocess.run(words, cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=300)

    offline = script("text_classification.py", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2, offline.stderr
    assert "the dataset was not found" in offline.stderr or "no model was found" in offline.stderr
    server = StandInHub(hub.root)  # another server of the same files, that ends with the block
    environment["HF_ENDPOINT"] = server.url
    with server:
        fetched = script("prefetch.py")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert "64 train, 24 validation rows, model and tokenizer, recipe" in fetched.stdout
    assert not (tmp_path / f"{PREFIX}sst2").exists()
    offline = script("text_classification.py", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stdout + offline.stderr
    assert_sparse_and_quantized(tmp_path / f"{PREFIX}sst2", (2,))
