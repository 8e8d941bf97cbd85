"""What the files of a folder say about its model: read without torch, and without the names of this machine's folders.

Every file may be missing or from an older version; what it would say is then left out.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from sparse_accel.cli.text_classification import GLUE
from sparse_accel.cli.training import check_repository
from sparse_accel.errors import UsageError
from sparse_accel.files import lfs_pointer_error
from sparse_accel.hub import DATASETS, GLUE_ID, MODELS, local_folder
from sparse_accel.recipe import load_recipe
from sparse_accel.zoo import is_stub
from sparse_accel.zoo.known import on_hub
from sparse_accel.zoo.stubs import parse_stub

CARD, DEPLOYMENT_REPORT, QUANTIZERS = "README.md", "export_report.json", "quantization.json"
EVALUATION = "evaluation.json"
QUESTIONS, MASKS, RANKS, EMBEDS = "question-answering", "fill-mask", "text-ranking", "sentence-similarity"
# What rows are called, where they are not rows.
_UNITS = {QUESTIONS: "questions", MASKS: "texts", EMBEDS: "pairs"}
_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": QUESTIONS,
    "ForMaskedLM": MASKS,
}
# The most folders between a model and the Hub's model that it came from.
_LONGEST_CHAIN = 10
_PATH = re.compile(r"(?<![\w.:/])(?:~?/|[A-Za-z]:\\)[^\s\"'`|,;()<>]*[^\s\"'`|,;()<>.:]")


def read(folder: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in a file of a folder; empty if it is missing or cannot be read."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def part(content: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns a JSON object inside of another one; empty if there is none."""
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def without_paths(text: str) -> str:
    """Returns a text in which absolute paths are only their last part."""
    return _PATH.sub(lambda path: re.split(r"[/\\]", path[0].rstrip("/\\"))[-1], text)


def front_matter(card: Path) -> dict[str, Any]:
    """Returns the metadata at the beginning of a model card; empty if there is none."""
    from huggingface_hub import ModelCard

    with suppress(Exception):  # whatever a person wrote there
        return dict(ModelCard.load(card, ignore_metadata_errors=True).data.to_dict())
    return {}


def hub_card(hub_id: str, *, fetch: bool) -> dict[str, Any]:
    """Returns the metadata of a model on the Hub; empty if it is not in the cache and may not or cannot be fetched."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    with suppress(Exception):  # no network, no such model, no card
        path = hf_hub_download(hub_id, CARD) if fetch else try_to_load_from_cache(hub_id, CARD)
        return front_matter(Path(path)) if isinstance(path, str) else {}
    return {}


def is_hub_id(name: object) -> bool:
    """Returns whether a name has the form of a full Hub id, OWNER/NAME."""
    if not isinstance(name, str) or name.count("/") != 1:
        return False
    try:
        check_repository("", name)
    except UsageError:
        return False
    return True


@dataclass(frozen=True)
class Rows:
    """The rows of an evaluation, as they were recorded with it.

    Attributes:
        name: of the dataset with its configuration, or of the file, without its folder.
        count: the number of rows.
        all: the number of rows there: more, if only a part was evaluated.
        dataset, config, split: on the Hub; None for files.
        unit: what they are: rows, or questions.
    """

    name: str
    count: int
    all: int
    dataset: str | None
    config: str | None
    split: str | None
    unit: str = "rows"

    @property
    def are_complete(self) -> bool:
        """Whether they are all rows of the split or of the file: only then are figures those of the split."""
        return self.count == self.all

    def described(self) -> str:
        """Returns which rows they are, in words."""
        if self.are_complete:
            return f"{self.split}, {self.count:,} {self.unit}" if self.split else f"{self.count:,} {self.unit}"
        return f"{self.count:,} of {self.all:,} {self.unit}" + (f" of {self.split}" if self.split else "")


@dataclass(frozen=True)
class Facts:
    """The files of a model's folder.

    Attributes:
        folder: the folder.
        config, arguments, record, sparsity, environment: config.json, arguments.json, run.json, sparsity.json,
            environment.json.
        figures: by split, name -> value, of this model; without the prefix `eval_`.
        of_teacher: likewise, of its teacher.
        rows: by split, what was evaluated; not there if it was not recorded with these figures.
    """

    folder: Path
    config: dict[str, Any]
    arguments: dict[str, Any]
    record: dict[str, Any]
    sparsity: dict[str, Any]
    environment: dict[str, Any]
    figures: dict[str, dict[str, float]]
    of_teacher: dict[str, dict[str, float]]
    rows: dict[str, Rows]

    @property
    def pipeline(self) -> str | None:
        """The task as the Hub names it; None if the model has another head."""
        return _pipeline(self.config)

    @property
    def answers_questions(self) -> bool:
        """Whether the model is for question answering."""
        return self.pipeline == QUESTIONS

    @property
    def labels(self) -> list[str]:
        """The names of the outputs, in order; none where they are no labels: a score, a vector."""
        if self.pipeline in (QUESTIONS, MASKS, RANKS, EMBEDS):
            return []
        names = self.config.get("id2label")
        with suppress(ValueError, AttributeError):
            return [str(names[key]) for key in sorted(names, key=int)] if names else []
        return []

    @property
    def is_quantized(self) -> bool:
        """Whether the folder has quantizers."""
        return (self.folder / QUANTIZERS).is_file()

    def timeline(self) -> list[tuple[float, str]]:
        """The events of the recipe as (epoch, what happens); empty without a recipe."""
        path = self.folder / "recipe.yaml"
        with suppress(UsageError, OSError):
            return load_recipe(str(path)).timeline() if path.is_file() else []
        return []

    def base_model(self) -> str | list[str] | None:
        """The Hub id of the model that this one was trained from; None if it is not known."""
        return self._origin(self.arguments.get("model_name_or_path"))

    def is_local(self, flag: str) -> bool:
        """Whether the value of a flag is a folder of this machine."""
        name = self.arguments.get(flag)
        return isinstance(name, str) and (Path(name).is_absolute() or self._local(name) is not None)

    def has_teacher(self) -> bool:
        """Whether the run learned from a teacher."""
        return self.arguments.get("distill_teacher") not in (None, "disable")

    def teacher(self) -> str | list[str] | None:
        """The Hub id of the teacher, or of the model that it was trained from; None if it is not known."""
        name = self.arguments.get("distill_teacher")
        return None if name == "self" else self._origin(name)

    def dataset(self) -> tuple[str, str | None] | None:
        """The Hub id of the training data and its configuration; None for files and folders of this machine."""
        task = self.arguments.get("task_name")
        if task in GLUE and self.pipeline == "text-classification":  # of token classification, it names a column
            return GLUE_ID, str(task)
        name = self.arguments.get("dataset_name")
        if not isinstance(name, str) or self._local(name) is not None:
            return None
        name = DATASETS.get(name, name)
        return (name, self.arguments.get("dataset_config_name")) if is_hub_id(name) else None

    def data_files(self) -> list[str]:
        """The names, without folders, of the files or the folder that the rows came from."""
        flags = ("train_file", "validation_file", "test_file", "dataset_name")
        found = [self.arguments.get(flag) for flag in flags]
        return [PurePath(name).name for name in found if isinstance(name, str)]

    def _local(self, name: str) -> Path | None:
        """The folder that a flag names, also if it was relative to the working folder of the run."""
        if (found := local_folder(name)) is not None:
            return found
        written = Path(str(self.arguments.get("output_dir") or ""))
        count = len(written.parts)
        folder = self.folder.resolve()
        if written.is_absolute() or not count or folder.parts[-count:] != written.parts:
            return None
        return local_folder(str(Path(*folder.parts[:-count], name)))

    def _origin(self, name: object, left: int = _LONGEST_CHAIN) -> str | list[str] | None:
        if not isinstance(name, str) or name in ("disable", "self") or not left:
            return None
        if is_stub(name):
            with suppress(UsageError):
                model = on_hub(parse_stub(name))
                return model.hub_id if model else None
            return None
        folder = self._local(name)
        if folder is None:
            name = MODELS.get(name, name)
            return name if is_hub_id(name) else None
        named = front_matter(folder / CARD).get("base_model") if (folder / CARD).is_file() else None
        if is_hub_id(named) or (isinstance(named, list) and named and all(is_hub_id(each) for each in named)):
            return named
        there = facts_of(folder)
        for earlier in (there.arguments.get("model_name_or_path"), there.config.get("_name_or_path")):
            if (found := there._origin(earlier, left - 1)) is not None:
                return found
        return None


def facts_of(folder: Path) -> Facts:
    """Returns what the files of a folder say."""
    config = read(folder, "config.json")
    figures, of_teacher, rows = _measured(folder, _UNITS.get(_pipeline(config) or "", "rows"))
    return Facts(
        folder,
        config=config,
        arguments=read(folder, "arguments.json"),
        record=read(folder, "run.json"),
        sparsity=read(folder, "sparsity.json"),
        environment=read(folder, "environment.json"),
        figures=figures,
        of_teacher=of_teacher,
        rows=rows,
    )


def _pipeline(config: dict[str, Any]) -> str | None:
    if part(config, "sentence_embedding"):  # the pooling that training wrote
        return EMBEDS
    kinds = [str(each) for each in config.get("architectures") or []]
    found = next((task for kind in kinds for end, task in _HEADS.items() if kind.endswith(end)), None)
    # A classifier of one label that may be on or off, and that is made for sentence-transformers.
    one_score = config.get("problem_type") == "multi_label_classification" and len(part(config, "id2label")) == 1
    return RANKS if one_score and part(config, "sentence_transformers") else found


def _measured(folder: Path, unit: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Rows]]:
    """Figures of the model, figures of its teacher, and rows, by split."""
    results = read(folder, "eval_results.json")
    if "eval_model" in results:  # they are of another model
        return {}, {}, {}
    figures: dict[str, dict[str, float]] = {}
    for name, value in results.items():
        if name.startswith("eval_") and isinstance(value, int | float):
            split = "validation_mismatched" if name.endswith("_mm") else "validation"
            figures.setdefault(split, {})[name.removeprefix("eval_").removesuffix("_mm")] = float(value)
    of_teacher, rows = {}, {}
    for split, found in read(folder, EVALUATION).items():
        with suppress(KeyError, TypeError, AttributeError, ValueError):
            known = figures[split]
            if any(known[name] != value for name, value in found["figures"].items() if name in known):
                continue  # of another evaluation
            if teacher := found["teacher"]:
                of_teacher[split] = {name: float(value) for name, value in teacher["figures"].items()}
            origin = found["origin"]
            dataset, config = origin["dataset"], origin["config"]
            name = PurePath(without_paths(origin["name"])).name
            name = f"{dataset} {config}" if dataset and config else dataset or name
            counts = int(found["rows"]), int(origin["rows"])
            rows[split] = Rows(name, *counts, dataset, config, origin["split"], unit)
    return figures, of_teacher, rows


def is_model(folder: Path) -> bool:
    """Returns whether a folder holds a model as training writes it: a configuration and weights."""
    return (folder / "config.json").is_file() and bool(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """Returns the files with the weights of a folder, sorted."""
    return sorted(path for path in folder.glob("model*.safetensors") if path.is_file() and not lfs_pointer_error(path))


def is_deployment(folder: Path) -> bool:
    """Returns whether a folder was written by the export."""
    return (folder / "model.onnx").is_file() and bool(read(folder, DEPLOYMENT_REPORT))


def deployment_of(folder: Path) -> Path | None:
    """Returns the folder `deployment` next to a model's folder, if it was exported from it; else None."""
    found = folder.resolve().parent / "deployment"
    source = part(read(found, DEPLOYMENT_REPORT), "source") if is_deployment(found) else {}
    weights = weight_files(folder)
    if source.get("folder") != str(folder.resolve()) or not weights:
        return None
    newest = max(path.stat().st_mtime for path in weights)
    return found if (found / DEPLOYMENT_REPORT).stat().st_mtime >= newest else None
