"""Commands and code of README and docs run as they stand: only model ids become a tiny model, and recipes shorter."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_fixtures import make_encoder, scored, texts
from fork_server import ForkServer
from places import GOLDEN, ROOT
from script_fixtures import make_model, sentences, write_csv
from tiny import BAD, GOOD, make_bert, make_tokenizer

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
SHORT = {
    "pruned90_quant-none": {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5},
    "base-none": {"num_epochs": 1},
    "obert_pruned90.yaml": {"num_epochs": 1, "pruning_end_epoch": 0.5, "num_grads": 4},
    "structured_half.yaml": {
        "num_epochs": 2,
        "structure_end_epoch": 1.0,
        "qat_start_epoch": 1.0,
        "observer_epoch": 1.5,
    },
    "embedding_pruned80_quant.yaml": {
        "num_epochs": 3,
        "pruning_end_epoch": 1.0,
        "qat_start_epoch": 1.5,
        "observer_epoch": 2.0,
    },
}
LANGUAGES = {"bash", "shell", "python", "yaml", "text", "diff", "mermaid", "{toctree}"}
# How many bash and python blocks each page has: a block that is renamed or lost is not run any more.
RUN = {
    "README": (3, 2),
    "adding_a_modifier": (0, 1),
    "adding_a_task": (0, 1),
    "distributed": (2, 0),
    "embeddings": (2, 2),
    "export": (4, 5),
    "install": (1, 0),
    "language_modeling": (1, 0),
    "migration": (0, 1),
    "publishing": (1, 0),
    "recipes": (2, 2),
    "report": (1, 1),
    "runs": (3, 0),
    "runtime": (1, 1),
    "streams": (1, 0),
    "structure": (1, 1),
    "tasks": (7, 1),
    "tracking": (1, 0),
}
# Made by the reader of the page that names it.
EXAMPLES = {"scripts/sentence_order.py"}
# What commands leave in folders of these names.
WRITTEN = {
    "predictions": ("test_predictions.csv",),
    "deployment": ("model.onnx", "export_report.md"),
    "deployment_language": ("model.onnx", "export_report.md"),
    "sparse_quantized_bert": ("model.safetensors", "quantization.json", "all_results.json"),
    "run": ("model.safetensors", "quantization.json", "arguments.json"),
    "sparse_bert": ("model.safetensors", "eval_results.json"),
    "half_bert": ("model.safetensors", "quantization.json", "sparsity.json"),
    "half_bert_onnx": ("model.onnx", "export_report.md"),
    "sparse_minilm": ("model.safetensors", "quantization.json", "1_Pooling"),
    "sparse_minilm_onnx": ("model.onnx", "export_report.md"),
}
# What README says of the two models that it loads.
DIFFERENT = """
import torch
ids = torch.tensor([[2, 5, 9, 3]])
assert not torch.equal(model(input_ids=ids).logits, floats(input_ids=ids).logits)
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path, language: str = "bash") -> list[list[str]]:
    """The commands of a page's bash blocks, as words."""
    lines = "\n".join(blocks(page, language)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def shortened(words: list[str], model: Path) -> list[str]:
    """A command with a tiny model, the project's own files by their paths, and a recipe of this package cut short."""
    words = [str(model) if re.fullmatch(r"(RedHatAI|google-bert)/.*", word) else word for word in words]
    embeds = str(model.with_name("embedding_model"))
    words = [embeds if word.startswith("sentence-transformers/") else word for word in words]
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words]
    recipe = words[words.index("--recipe") + 1].rpartition("/")[2] if "--recipe" in words else ""
    if recipe in SHORT:
        if "--recipe_args" in words:
            at = words.index("--recipe_args")
            del words[at : at + 2]
        words += ["--recipe_args", json.dumps(SHORT[recipe])]
    return words


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(dict(os.environ)) as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_model(tmp_path_factory.mktemp("made") / "model", sparse=True)
    encoder = make_encoder(made.with_name("embedding_model"))
    config = json.loads((encoder / "config.json").read_text())
    pooling = {"sentence_embedding": {"pooling": "mean", "normalize": True}}
    (encoder / "config.json").write_text(json.dumps(config | pooling))
    return made


def write_data(folder: Path) -> None:
    (folder / "texts.txt").write_text("\n".join(texts(64, seed=1)) + "\n")
    write_csv(folder / "sts.csv", scored(30, seed=2))
    for name, count in (("train", 40), ("validation", 16), ("test", 8)):
        rows = sentences(count, seed=len(name))
        write_csv(folder / f"{name}.csv", rows if name != "test" else [{"text": row["text"]} for row in rows])
        tagged = [[(word, "B-GOOD" if word in GOOD else "O") for word in row["text"].split()] for row in rows]
        (folder / f"{name}.txt").write_text("\n".join(row["text"] for row in rows))
        text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in tagged)
        (folder / f"{name}.conll").write_text(text)
        questions = []
        for number, row in enumerate(rows):
            answer = next(word for word in row["text"].split() if word in (*GOOD, *BAD))
            answers = {"text": [answer], "answer_start": [row["text"].index(answer)]}
            questions.append({"id": str(number), "question": "good ?", "context": row["text"], "answers": answers})
        (folder / f"{name}.json").write_text(json.dumps(questions))


def run_command(server: ForkServer, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    settings = dict(word.split("=", 1) for word in itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    words = words[len(settings) :]
    if words[0] == "python" and words[1].endswith(".py"):
        return server.run(Path(words[1]), *words[2:], cwd=folder)
    program = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
    variables = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"} | settings
    return subprocess.run([program, *words[1:]], cwd=folder, env=variables, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page) or blocks(page, "python")], ids=lambda page: page.stem
)
def test_the_commands_of_a_page_run_one_after_another(
    page: Path, server: ForkServer, model: Path, tmp_path: Path
) -> None:
    write_data(tmp_path)
    if page.stem == "runtime":
        shutil.copytree(GOLDEN / "old_run" / "deployment", tmp_path / "deployment")
    for number, text in enumerate(blocks(page, "yaml")):
        if named := re.match(r"# (\w+\.yaml)\n", text):
            (tmp_path / named[1]).write_text(text)
        else:
            (tmp_path / f"recipe_{number}.yaml").write_text(text)
    for words in commands(page):
        done = run_command(server, shortened(words, model), tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    made = set(WRITTEN) & {path.name for path in tmp_path.iterdir()}
    assert {file for folder in made for file in WRITTEN[folder] if not (tmp_path / folder / file).exists()} == set()
    for code in blocks(page, "python"):
        if page == PAGES[0] and "run.step_begin()" in code:
            continue  # the loop, which has a test of its own
        if "quantizers on" in code and "floats" in code:
            code += DIFFERENT
        done = server.run(code, cwd=tmp_path)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        if "onnxruntime.InferenceSession" in code:
            assert done.stdout.strip() in ("['0']", "['1']")


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
    exec(next(block for block in blocks(PAGES[0], "python") if "run.step_begin()" in block), namespace)

    run = namespace["run"]
    assert run.progress.epoch == 2 and run.structure_final()
    layer = model.bert.encoder.layer[0].output.dense
    assert layer.weight_quantizer.enabled and not layer.weight_quantizer.observing
    assert (layer.masked_weight() == 0).float().mean() >= 0.5


def test_readme_shows_the_timeline_that_the_command_prints() -> None:
    command = next(words for words in commands(PAGES[0]) if words[1:3] == ["-m", "sparse_accel.recipe"])
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    table = done.stdout.partition("\n\n")[2].strip("\n")
    assert "\n".join(f"    {line}".rstrip() for line in table.splitlines()) in README


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "shell")], ids=lambda page: page.stem)
def test_commands_that_cannot_run_here_name_what_exists(page: Path, server: ForkServer) -> None:
    """Those of a cluster, of the Hub, of minutes. Their like runs in tests/distributed and in test_benchmarks.py."""
    for words in commands(page, "shell"):
        programs = [word for word in words if re.fullmatch(r"(\w+/)+\w+\.(py|sbatch|yaml)", word)]
        programs = [word for word in programs if word not in EXAMPLES]
        assert not [word for word in programs if not (ROOT / word).is_file()], words
        scripts = [word for word in programs if word.endswith((".py", ".sbatch")) and "pytest" not in words]
        if not scripts:
            continue
        flags = {word for word in words[words.index(scripts[0]) :] if word.startswith("--")}
        named = [word.partition("=")[2] for word in words if word.startswith("TRAIN_SCRIPT=")]
        script = scripts[0] if scripts[0].endswith(".py") else (*named, "scripts/text_classification.py")[0]
        text = server.run(ROOT / script, "--help").stdout if flags else ""
        assert flags <= set(re.findall(r"--[a-z0-9_]+", text)), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_is_left_out(page: Path) -> None:
    fences = re.findall(r"^ *```(\S+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(fences) <= LANGUAGES
    assert (fences.count("bash"), fences.count("python")) == RUN.get(page.stem, (0, 0))
    assert (len(blocks(page, "bash")), len(blocks(page, "python"))) == RUN.get(page.stem, (0, 0))


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 140


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_and_files_that_are_named_exist(page: Path) -> None:
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)(?=[`\s])", text)) if page.name != "data.md" else set()
    known = {target for target in targets if re.search(rf"^{target}:", makefile, flags=re.MULTILINE)}
    in_code = {target for target in targets if re.search(rf"(`|^ {{4}})make {target}", text, flags=re.MULTILINE)}
    assert in_code <= known
    files = re.findall(r"`((?:sparse_accel|scripts|tests|docs|examples|accelerate_configs)/[\w/.]+)`", text)
    missing = [name for name in files if not (ROOT / name).exists()]
    assert not missing
