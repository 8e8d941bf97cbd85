"""--push_to_hub and `python -m sparse_accel.publish`, with the Hub's own client, on a Hub on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import ForkServer
from places import ROOT
from script_fixtures import SCRIPT, Tiny, assert_same_model, flat, make_model, read_json, run, words
from stand_in_hub import StandInHub, User

pytest_plugins = ["script_fixtures"]

TOKEN, READ_ONLY = "hf_secret_of_someone", "hf_secret_of_a_reader"
# The command with a token in the environment; without the waits between the client's attempts.
PUBLISH = f"""
import os, runpy, sys, time
time.sleep = lambda seconds: None
os.environ["HF_TOKEN"] = "{TOKEN}"
runpy.run_module("sparse_accel.publish", run_name="__main__")
"""
# Loads a model by its id and prints a digest of its weights, its number of quantizers, and the metadata of its card.
LOAD = """
import json, sys
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
import sparse_accel
from sparse_accel.fingerprints import fingerprint_of_weights
from sparse_accel.nn.layers import quantizers
name = sys.argv[1]
plain, trained = AutoModelForSequenceClassification.from_pretrained(name), sparse_accel.load(name)
card = ModelCard.load(name)
card.validate()
print(json.dumps({
    "weights": [fingerprint_of_weights(plain), fingerprint_of_weights(trained)],
    "quantizers": len(quantizers(trained)),
    "vocabulary": len(AutoTokenizer.from_pretrained(name)),
    "card": card.data.to_dict(),
    "text": card.text,
}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Iterator[StandInHub]:
    with StandInHub(tmp_path_factory.mktemp("hub")) as hub:
        hub.tokens |= {TOKEN: User("someone", may_write=("group",)), READ_ONLY: User("reader", "read")}
        license = "---\nlicense: mit\nlanguage: en\n---\n"
        hub.add_model("google/base", tiny.model)
        hub.add_model("google/base", {"README.md": license.encode()})
        yield hub


@pytest.fixture(scope="module")
def server(hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    environment = hub.environment(tmp_path_factory.mktemp("home"))
    with ForkServer({name: value for name, value in environment.items() if name != "HF_TOKEN"}) as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub: StandInHub, server: ForkServer, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that pushed its model as someone/my_model."""
    desk = tmp_path_factory.mktemp("desk")
    flags = tiny.flags(
        model_name_or_path="google/base", output_dir="my_model", hub_token=TOKEN, report_to="tensorboard"
    )
    done = server.run(SCRIPT, *words(**flags), "--push_to_hub", cwd=desk)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{hub.url}/someone/my_model" in done.stdout and TOKEN not in done.stdout + done.stderr
    assert "warning" not in done.stderr
    return desk / "my_model"


@pytest.fixture
def copy(pushed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pushed, tmp_path / "my_model", ignore=shutil.ignore_patterns("checkpoint-*")))


def publish(server: ForkServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    return server.run(PUBLISH, *map(str, arguments))


def held(hub: StandInHub, name: str) -> set[str]:
    folder = hub.root / "models" / name
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_commit_of_the_model_and_no_more(hub: StandInHub, pushed: Path, tiny: Tiny) -> None:
    (commit,) = hub.commits["someone/my_model"]
    model = {"config.json", "model.safetensors", "quantization.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(commit.written) == model | {"recipe.yaml", "sparsity.json", "README.md"} and not commit.deleted
    folder = hub.root / "models" / "someone" / "my_model"
    assert_same_model(folder, pushed)
    published = b"".join(path.read_bytes() for path in folder.iterdir())
    assert TOKEN.encode() not in published
    for private in (pushed.parent, tiny.folder):
        assert str(private).encode() not in published


def test_the_token_is_written_nowhere(pushed: Path) -> None:
    files = [path for path in pushed.parent.rglob("*") if path.is_file()]
    assert len(files) > 15 and not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert "hub_token" not in read_json(pushed / "arguments.json")


def test_load_back_by_id(server: ForkServer, pushed: Path) -> None:
    done = server.run(LOAD, "someone/my_model")
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    here = json.loads(
        server.run(
            LOAD.replace("ModelCard.load(name)", "ModelCard.load(name + '/README.md')").replace("card.validate()", ""),
            str(pushed),
        ).stdout.splitlines()[-1]
    )
    assert there["weights"] == here["weights"] == [there["weights"][0]] * 2
    assert there["quantizers"] == here["quantizers"] > 10 and there["vocabulary"] == here["vocabulary"]
    card = there["card"]
    assert card["base_model"] == "google/base" and card["license"] == "mit" and card["language"] == "en"
    assert card["pipeline_tag"] == "text-classification" and {"sparse", "int8"} <= set(card["tags"])
    (result,) = card["model-index"]
    metrics = {metric["name"]: metric["value"] for metric in result["results"][0]["metrics"]}
    assert metrics["Accuracy"] == pytest.approx(read_json(pushed / "eval_results.json")["eval_accuracy"], abs=1e-6)
    assert '"someone/my_model"' in there["text"] and '"."' in here["text"]


def test_without_a_network_the_cache_says_whether_there_are_quantizers(
    hub: StandInHub, server: ForkServer, pushed: Path, tiny: Tiny, tmp_path: Path
) -> None:
    hub.add_model("google/float", make_model(tmp_path / "float", sparse=False, head=True))
    hub.add_model("google/partly", hub.root / "models" / "google" / "float")
    program = """
import sys
from huggingface_hub import constants, snapshot_download
import sparse_accel
from sparse_accel.nn.layers import quantizers
known = ("someone/my_model", "google/float")
for name in known:
    sparse_accel.load(name)
snapshot_download("google/partly")  # as other programs fetch it
constants.HF_HUB_OFFLINE = True
print([len(quantizers(sparse_accel.load(name))) > 0 for name in (*known, "google/partly")])
"""
    done = server.run(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[True, False, False]"
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("warning"))
    assert "google/partly" in warning and "used as a float model" in warning


def test_the_scripts_use_its_quantizers(server: ForkServer, pushed: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The figures are those of the run's own final evaluation; the float model has other ones."""
    flags = {"validation_file": tiny.validation, "do_eval": True, "output_dir": tmp_path / "evaluated"}
    done = server.run(SCRIPT, *words(**flags, model_name_or_path="someone/my_model"))
    assert done.returncode == 0, done.stdout + done.stderr
    found, expected = (read_json(folder / "eval_results.json") for folder in (tmp_path / "evaluated", pushed))
    assert found == pytest.approx(expected)
    assert not (tmp_path / "evaluated" / "README.md").exists()
    floats = Path(shutil.copytree(pushed, tmp_path / "floats"))
    (floats / "quantization.json").unlink()
    (floats / "train_results.json").unlink()
    done = server.run(SCRIPT, *words(**flags | {"output_dir": tmp_path / "of_floats"}, model_name_or_path=floats))
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(tmp_path / "of_floats" / "eval_results.json")["eval_loss"] != pytest.approx(expected["eval_loss"])


def run_code(server: ForkServer, card: Path, cwd: Path) -> int:
    """Runs the blocks of code in a card, one after another, and returns how many there are."""
    blocks = [text.partition("```")[0] for text in card.read_text().split("```python\n")[1:]]
    done = server.run("\n".join(f"{block}\nprint('next')" for block in blocks), cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert all(part.strip() for part in done.stdout.split("next")[:-1]), "each prints something"
    return len(blocks)


def test_the_code_of_the_card_runs(server: ForkServer, pushed: Path, hub: StandInHub) -> None:
    on_hub = hub.root / "models" / "someone" / "my_model" / "README.md"
    assert run_code(server, on_hub, pushed.parent) == run_code(server, pushed / "README.md", pushed) == 2


def test_the_same_command_again_changes_nothing(hub: StandInHub, server: ForkServer, pushed: Path, tiny: Tiny) -> None:
    before, count = held(hub, "someone/my_model"), len(hub.commits["someone/my_model"])
    flags = tiny.flags(
        model_name_or_path="google/base", output_dir="my_model", hub_token=TOKEN, report_to="tensorboard"
    )
    done = server.run(SCRIPT, *words(**flags), "--push_to_hub", cwd=pushed.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is trained again" in flat(done.stdout) and "already there, unchanged" in done.stdout
    assert len(hub.commits["someone/my_model"]) == count and held(hub, "someone/my_model") == before


def test_a_cut_upload_is_repeated(hub: StandInHub, server: ForkServer, copy: Path) -> None:
    hub.cut_uploads = 6  # as often as the client tries
    hub.large.clear()
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = publish(server, copy, "--hub_model_id", "group/cut")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    *_, error, remedy = done.stderr.splitlines()  # above them, the client says that it tries again
    assert error.startswith("error: group/cut") and remedy.endswith("To upload the rest: the same command again")
    assert len(done.stderr.splitlines()) < 20
    assert held(hub, "group/cut") == {".gitattributes"} and "group/cut" not in hub.commits
    hub.cut_uploads = 1  # the client itself tries again
    done = publish(server, copy, "--hub_model_id", "group/cut")
    assert done.returncode == 0, done.stderr
    assert len(hub.commits["group/cut"]) == 1 and held(hub, "group/cut") > {"model.safetensors", "quantization.json"}
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before, (
        "the folder is not changed"
    )
    assert len([line for line in hub.requests if line.startswith("PUT")]) >= 3


def test_a_failed_push_says_that_the_model_is_safe(
    hub: StandInHub, server: ForkServer, pushed: Path, tiny: Tiny
) -> None:
    """The token was fine at the start, and may not write to this owner's repositories."""
    flags = tiny.flags(
        model_name_or_path="google/base", output_dir="my_model", hub_token=TOKEN, report_to="tensorboard"
    )
    flags |= {"hub_model_id": "stranger/model", "hub_private_repo": True}
    done = server.run(SCRIPT, *words(**flags), "--push_to_hub", cwd=pushed.parent)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    message = flat(done.stderr)
    assert "error: the upload to the Hub failed: stranger/model" in message and "may not" in message
    assert "its model is complete in my_model" in message
    assert "python -m sparse_accel.publish my_model --hub_model_id stranger/model --hub_private_repo" in message
    assert len(done.stderr.splitlines()) < 10 and TOKEN not in done.stderr
    assert "stranger/model" not in hub.commits


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"hub_token": "hf_nobodys"}, "the Hub does not know this token"),
        ({"hub_token": READ_ONLY}, "the token of reader may only read"),
        ({}, "set HF_TOKEN in the environment, or log in with `hf auth login`"),
        ({"hub_token": TOKEN, "output_dir": "a name"}, "--hub_model_id"),
        ({"hub_token": TOKEN, "hub_model_id": "a/b/c"}, "not a name of a Hub repository"),
    ],
)
def test_before_training(flags: dict[str, str], message: str, server: ForkServer, tiny: Tiny, tmp_path: Path) -> None:
    done = server.run(SCRIPT, *words(**tiny.flags(output_dir="out") | flags), "--push_to_hub", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in flat(done.stderr) and len(done.stderr.splitlines()) <= 3
    assert "hf_" not in done.stderr and list(tmp_path.iterdir()) == []


def test_before_training_offline(tiny: Tiny, tmp_path: Path) -> None:
    done = run(**tiny.flags(output_dir=tmp_path / "out", push_to_hub=True))
    assert done.code == 2 and "HF_HUB_OFFLINE is set" in done.err and list(tmp_path.iterdir()) == []


def test_a_cards_editor_on_the_hub_is_not_overwritten(hub: StandInHub, server: ForkServer, copy: Path) -> None:
    assert publish(server, copy, "--hub_model_id", "group/edited").returncode == 0
    card = hub.root / "models" / "group" / "edited" / "README.md"
    card.write_text(card.read_text().replace("# edited", "# My edited model"))
    hub.commits["group/edited"].append(hub.commits["group/edited"][0])  # it was another commit
    (copy / "eval_results.json").write_text('{"eval_accuracy": 0.25}')
    done = publish(server, copy, "--hub_model_id", "group/edited")
    assert done.returncode == 0 and "it is kept" in done.stdout, done.stdout + done.stderr
    assert "# My edited model" in card.read_text() and len(hub.commits["group/edited"]) == 2
    (copy / "README.md").write_text("# Mine\n")  # a person's card in the folder is what the person wants there
    done = publish(server, copy, "--hub_model_id", "group/edited")
    assert done.returncode == 0, done.stderr
    assert card.read_text() == "# Mine\n" and hub.commits["group/edited"][-1].written == ("README.md",)


def test_another_model_leaves_nothing_of_the_first(
    hub: StandInHub, server: ForkServer, copy: Path, tmp_path: Path
) -> None:
    """Quantizers that stay would be used with weights that they do not belong to."""
    assert publish(server, copy, "--hub_model_id", "group/replaced", "--hub_private_repo").returncode == 0
    assert "group/replaced" in hub.private
    hub.add_model(
        "group/replaced", {"onnx/model.onnx": b"old", "onnx/export_report.json": b"{}", "mine/notes.txt": b"x"}
    )
    other = make_model(tmp_path / "other", sparse=False, head=True)
    done = publish(server, other, "--hub_model_id", "group/replaced")
    assert done.returncode == 0, done.stderr
    assert "quantization.json" in hub.commits["group/replaced"][-1].deleted
    assert held(hub, "group/replaced") >= {"mine/notes.txt", "model.safetensors", "README.md"}
    assert not [name for name in held(hub, "group/replaced") if name.startswith(("onnx", "quantization", "recipe"))]


def test_a_public_repository_is_not_private(hub: StandInHub, server: ForkServer, copy: Path) -> None:
    count = len(hub.commits["someone/my_model"])
    done = publish(server, copy, "--hub_private_repo")
    assert done.returncode == 2 and "exists and is public" in done.stderr
    assert len(hub.commits["someone/my_model"]) == count


def test_what_is_not_a_finished_model(server: ForkServer, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no trained model" in publish(server, tmp_path / "empty").stderr
    record = read_json(copy / "run.json")
    (copy / "run.json").write_text(json.dumps(record | {"finished": False}))
    done = publish(server, copy)
    assert done.returncode == 2 and "holds an unfinished run" in done.stderr


# --- with a deployment ------------------------------------------------------------------------------------------------

EXPORT = f"""
import runpy
from sparse_accel.export import measure
measure._SECONDS = 0.0
runpy.run_path({str(ROOT / "scripts" / "export_onnx.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_a_deployment_beside_the_model(hub: StandInHub, server: ForkServer, copy: Path, tiny: Tiny) -> None:
    done = server.run(EXPORT, "--model_path", str(copy), "--task", "text_classification")
    assert done.returncode == 0, done.stdout + done.stderr
    deployment = copy.parent / "deployment"
    assert "model.onnx" in (copy / "README.md").read_text() and (deployment / "README.md").is_file()
    done = publish(server, copy, deployment, "--hub_model_id", "group/both")
    assert done.returncode == 0, done.stderr
    model, deployed = hub.commits["group/both"]
    assert {"model.safetensors", "quantization.json", "README.md"} <= set(model.written)
    assert all(name.startswith("onnx/") for name in deployed.written)
    assert {"onnx/model.onnx", "onnx/config.json", "onnx/tokenizer.json", "onnx/export_report.json"} <= set(
        deployed.written
    )
    folder = hub.root / "models" / "group" / "both"
    published = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for private in (copy, copy.parent, tiny.folder):
        assert str(private).encode() not in published
    assert read_json(folder / "onnx" / "export_report.json")["source"]["folder"] == "group/both"

    for path, cwd, count in ((folder, copy.parent, 4), (copy, copy, 4), (deployment, deployment, 2)):
        assert run_code(server, path / "README.md", cwd) == count

    done = publish(server, copy, deployment, "--hub_model_id", "group/both")
    assert done.returncode == 0 and done.stdout.count("already there, unchanged") == 2
    assert len(hub.commits["group/both"]) == 2
    other = make_model(copy.parent / "other", sparse=False, head=True)
    done = publish(server, other, deployment, "--hub_model_id", "group/both")
    assert done.returncode == 2 and "was exported from other weights" in done.stderr
    assert "is a deployment" in publish(server, deployment).stderr
