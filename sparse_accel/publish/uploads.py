"""What is uploaded of a run and its deployment: named here, file by file. Anything else stays on this machine."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Any

from sparse_accel.errors import UsageError
from sparse_accel.files import digest_of
from sparse_accel.publish.facts import (
    CARD,
    DEPLOYMENT_REPORT,
    is_deployment,
    is_model,
    part,
    read,
    without_paths,
)

REPORT = "report.html"
MODEL: tuple[str, ...] = ("config.json", "generation_config.json", "quantization.json")
MODEL += ("model*.safetensors", "model.safetensors.index.json")
TOKENIZER: tuple[str, ...] = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER += ("vocab.*", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model", "bpe.codes")
OTHERS = ("recipe.yaml", "sparsity.json", CARD, REPORT)
OF_DEPLOYMENT = ("config.json", "model*.onnx", "model.onnx.xz", "export_report.json", "export_report.md", *TOKENIZER)
FOLDER = "onnx"  # where optimum and transformers.js look for ONNX files
# Keys of a configuration that may hold a path of this machine.
_NAMES = ("_name_or_path", "name_or_path")


def check_folder(folder: Path) -> None:
    """Checks that a folder holds a finished model.

    Raises:
        UsageError: it does not.
    """
    if is_deployment(folder) and not is_model(folder):
        raise UsageError(f"{folder} is a deployment: give the folder of its model first, then the deployment")
    if not is_model(folder):
        raise UsageError(f"{folder} holds no trained model (config.json, model.safetensors): give a run's --output_dir")
    if read(folder, "run.json").get("finished") is False:
        raise UsageError(f"{folder} holds an unfinished run: repeat its command to finish it first")


def check_deployment(folder: Path, deployment: Path) -> None:
    """Checks that a deployment was exported from the model in a folder, by the digest of its weights.

    Raises:
        UsageError: it was not.
    """
    from sparse_accel.fingerprints import fingerprint_of_weights
    from sparse_accel.models.files import load

    if not is_deployment(deployment):
        raise UsageError(
            f"{deployment} is not a folder that export_onnx.py wrote: it has no model.onnx with its report"
        )
    recorded = part(read(deployment, DEPLOYMENT_REPORT), "source")
    if recorded.get("weights") != fingerprint_of_weights(load(folder)):
        raise UsageError(f"{deployment} was exported from other weights than those in {folder}: export the model again")


def model_files(folder: Path, report: bool, notes: list[str]) -> dict[str, Path | bytes]:
    """Returns the files of a model by their paths in the repository, without the card.

    Args:
        folder: the output folder.
        report: see `push`.
        notes: gets a line for what is left out.
    """
    found: dict[str, Path | bytes] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != CARD and matches(path.name, (*MODEL, *TOKENIZER, *OTHERS)):
            found[path.name] = _published(path)
    if REPORT in found and not report:
        del found[REPORT]
        notes.append(
            f"{REPORT} stays here, because it shows evaluated rows, flags and paths of this machine; "
            "`python -m sparse_accel.publish --hub_report` uploads it too"
        )
    return found


def deployment_files(folder: Path, repository: str) -> dict[str, Path | bytes]:
    """Returns the files of a deployment by their names; its report names the repository in place of a folder."""
    recorded = read(folder, DEPLOYMENT_REPORT)
    source, texts = part(recorded, "source"), part(recorded, "texts")
    folders = {str(source.get("folder", "")): repository}
    folders[str(texts.get("source", ""))] = Path(str(texts.get("source", ""))).name
    found: dict[str, Path | bytes] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not matches(path.name, OF_DEPLOYMENT):
            continue
        found[path.name] = _published(path)
        if path.name.startswith("export_report."):
            text = path.read_text(encoding="utf-8")
            for name, public in folders.items():
                text = text.replace(name, public) if Path(name).is_absolute() else text
            found[path.name] = without_paths(text).encode()
    return found


def _published(path: Path) -> Path | bytes:
    """A file as it is uploaded: a configuration without the name of the folder that it was read from."""
    if path.name not in ("config.json", "tokenizer_config.json"):
        return path
    content = read(path.parent, path.name)
    local = [key for key in _NAMES if isinstance(content.get(key), str) and _is_local(content[key])]
    if not local:
        return path
    return (json.dumps({key: value for key, value in content.items() if key not in local}, indent=2) + "\n").encode()


def _is_local(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).is_dir()


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def same(content: Path | bytes, there: Any) -> bool:
    """Whether a file on the Hub has this content."""
    if there.lfs is not None:
        here = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else digest_of(content)
        return bool(there.lfs.sha256 == here)
    content = content if isinstance(content, bytes) else content.read_bytes()
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
