"""Uploads a run to the Hugging Face Hub: one commit for the model, one for its deployment, which goes to `onnx/`.

What is uploaded is named in uploads.py; anything else in the folder (checkpoints, tracking, arguments with this
machine's paths) stays. An upload that was cut off is repeated: large files that arrived are not sent again, and a
commit has all of its files or is not made. Nothing in the folder is changed.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sparse_accel.cli.parser import HIDDEN
from sparse_accel.cli.training import check_repository
from sparse_accel.console import rank, say, warn
from sparse_accel.errors import UsageError, first_line, listed
from sparse_accel.publish.card import card_text, is_ours
from sparse_accel.publish.facts import CARD, DEPLOYMENT_REPORT
from sparse_accel.publish.uploads import (
    FOLDER,
    MODEL,
    OF_DEPLOYMENT,
    REPORT,
    TOKENIZER,
    check_deployment,
    check_folder,
    deployment_files,
    matches,
    model_files,
    same,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments

Result = TypeVar("Result")


class HubError(UsageError):
    """The Hub refused, could not be reached, or an upload was cut off: what is on disk is as it was."""


@dataclass(frozen=True)
class Target:
    """A repository on the Hub.

    Attributes:
        repository: OWNER/NAME.
        private: whether to create it private; None: as its owner's setting says.
        token: that may write to it.
    """

    repository: str
    private: bool | None
    token: str = field(repr=False)


def require_hub(arguments: TrainingArguments) -> None:
    """With --push_to_hub: checks that the upload can work. Call it before loading anything; process 0 asks the Hub.

    Raises:
        UsageError: no token, one that is not valid or may not write, no network, or an invalid name.
    """
    if arguments.push_to_hub and rank() == 0:
        target_of(arguments.hub_model_id, Path(str(arguments.output_dir)), arguments)


def publish_run(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """With --push_to_hub: uploads a finished run. The main process does it.

    Raises:
        UsageError: the upload failed; the message has the command that repeats it.
    """
    folder = Path(str(arguments.output_dir))
    if accelerator.is_main_process and arguments.push_to_hub:
        with _safe_on_disk(folder, arguments):
            target = target_of(arguments.hub_model_id, folder, arguments)
            for line in push(folder, target):
                say(accelerator, line)


@contextmanager
def _safe_on_disk(folder: Path, arguments: TrainingArguments) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        command = ["python", "-m", "sparse_accel.publish", str(folder)]
        command += ["--hub_model_id", arguments.hub_model_id] if arguments.hub_model_id else []
        command += ["--hub_private_repo"] if arguments.hub_private_repo else []
        raise UsageError(
            f"the upload to the Hub failed: {error}\nThe run is finished, and its model is complete in {folder}. To "
            f"upload it: {shlex.join(command)}"
        ) from error


def target_of(name: str | None, folder: Path, flags: Any) -> Target:
    """Returns the repository to upload to, after asking the Hub whose token it is.

    Args:
        name: OWNER/NAME, or NAME under the token's user; None: the name of the folder.
        folder: the folder to upload.
        flags: with hub_token (None: that of the environment) and hub_private_repo.

    Raises:
        UsageError: no token, one that is not valid or may not write, no network, or an invalid name.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise UsageError("an upload to the Hub needs the network, but HF_HUB_OFFLINE is set: unset it")
    if name is None:
        name = folder.resolve().name
        check_repository(
            "the name of the folder is the name of the repository, unless --hub_model_id says another:", name
        )
    token = flags.hub_token or get_token()
    if not token or token == HIDDEN:
        raise UsageError(
            "an upload to the Hub needs a token: set HF_TOKEN in the environment, or log in with `hf auth login`. "
            f"Tokens that may write are made at {constants.ENDPOINT}/settings/tokens"
        )
    who = _asking(lambda: HfApi(token=token).whoami(), f"whose token it is ({constants.ENDPOINT})", token)
    role = who.get("auth", {}).get("accessToken", {}).get("role") if isinstance(who.get("auth"), dict) else None
    if role == "read":
        raise UsageError(
            f"the token of {who['name']} may only read: make one that may write at {constants.ENDPOINT}/settings/tokens"
        )
    return Target(name if "/" in name else f"{who['name']}/{name}", flags.hub_private_repo, token)


def push(folder: Path, target: Target, deployment: Path | None = None, *, report: bool = False) -> list[str]:
    """Uploads a model and its deployment, and returns what was done, in lines for the user.

    Files of an earlier upload that no longer belong to the model are deleted in the same commit: quantizers of another
    model would silently be used with this one. A card that a person changed on the Hub is kept.

    Args:
        folder: the output folder of a finished run.
        target: the repository; created if it does not exist.
        deployment: a folder that the export wrote for this model.
        report: upload report.html too, which shows evaluated rows, flags and paths of this machine.

    Raises:
        UsageError: the folder holds no finished model, or the deployment is of another model.
        HubError: the Hub refuses or cannot be reached.
    """
    check_folder(folder)
    if deployment is not None:
        check_deployment(folder, deployment)
    from huggingface_hub import HfApi

    api, name = HfApi(token=target.token), target.repository
    ask = _Asking(target)
    ask(lambda: api.create_repo(name, private=target.private, exist_ok=True), "to create it")
    info = ask(lambda: api.model_info(name, files_metadata=True), "what it holds")
    if target.private and info.private is False:
        raise UsageError(f"{name} exists and is public, which --hub_private_repo forbids: name another --hub_model_id")
    there = {each.rfilename: each for each in info.siblings or []}
    notes: list[str] = []
    files = model_files(folder, report, notes)
    text = card_text(folder, repository=name, deployment=deployment, fetch=True).encode()
    own_card = not (folder / CARD).exists() or is_ours(folder / CARD)
    files[CARD] = text if own_card else folder / CARD
    if own_card and CARD in there and not same(text, there[CARD]):
        found = ask(lambda: api.hf_hub_download(name, CARD, revision=info.sha), "for its card")
        if not is_ours(Path(found)):
            notes.append(f"the card on the Hub, {CARD}, was written or changed by a person: it is kept")
            del files[CARD]

    changed = {path: content for path, content in files.items() if path not in there or not same(content, there[path])}
    ours = (*MODEL, *TOKENIZER, "recipe.yaml", "sparsity.json", REPORT)
    gone = [path for path in there if "/" not in path and path not in files and matches(path, ours)]
    if any(matches(path, MODEL) for path in (*changed, *gone)) and f"{FOLDER}/{DEPLOYMENT_REPORT}" in there:
        gone += [path for path in there if path.startswith(f"{FOLDER}/")]  # the deployment of another model
    head = _commit(ask, api, name, "Model", changed, gone, info.sha)
    lines = [_said(name, "model", changed, gone)]
    if deployment is not None:
        there = {path: each for path, each in there.items() if path not in gone}
        files = {f"{FOLDER}/{path}": each for path, each in deployment_files(deployment, name).items()}
        changed = {path: each for path, each in files.items() if path not in there or not same(each, there[path])}
        gone = [path for path in there if path.startswith(f"{FOLDER}/") and path not in files]
        gone = [path for path in gone if matches(path.partition("/")[2], OF_DEPLOYMENT)]
        _commit(ask, api, name, "Deployment: ONNX, proven", changed, gone, head)
        lines.append(_said(name, f"deployment ({FOLDER}/)", changed, gone))
    return [*lines, *notes, f"{api.endpoint}/{name}"]


# --- asking the Hub ---------------------------------------------------------------------------------------------------


def _commit(
    ask: _Asking, api: Any, name: str, title: str, changed: dict[str, Path | bytes], gone: list[str], parent: str | None
) -> str | None:
    """Makes one commit; none if there is nothing to change. Returns the newest commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if not changed and not gone:
        return parent
    operations: list[Any] = [CommitOperationDelete(path) for path in gone]
    operations += [CommitOperationAdd(path, content) for path, content in changed.items()]
    with _quiet():
        made = ask(lambda: api.create_commit(name, operations, commit_message=title, parent_commit=parent), "to write")
    return str(made.oid)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars in a log file, and the Hub's warnings in this program's form."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = sys.stderr.isatty() or are_progress_bars_disabled()
    if not shown:
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            yield
        for each in heard:
            if issubclass(each.category, UserWarning):  # about the card; others are for the client's developers
                warn(" ".join(str(each.message).split()))
    finally:
        if not shown:
            enable_progress_bars()


class _Asking:
    """Calls of the Hub's client for one repository, whose errors are HubErrors."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(self, call: Callable[[], Result], what: str) -> Result:
        return _asking(call, f"{self.target.repository} ({what})", self.target.token)


def _asking(call: Callable[[], Result], what: str, token: str) -> Result:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return call()
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        said = first_line(error).replace(token, HIDDEN)
        reasons = {
            401: "the Hub does not know this token: set HF_TOKEN in the environment to one that may write",
            403: "this token may not do that: it needs the right to write there",
            412: "somebody else wrote to it at the same time: upload again",
        }
        raise HubError(f"{what}: {reasons.get(code, said)}{f' ({said})' if code in reasons else ''}") from error
    except (OSError, RuntimeError, ValueError) as error:  # of the network, of an upload, of the card's metadata
        cause = error.__cause__ or error
        raise HubError(f"{what}: {first_line(cause).replace(token, HIDDEN)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "hf_xet"):
            raise
        raise HubError(f"{what}: {first_line(error).replace(token, HIDDEN)}") from error


def _said(name: str, what: str, changed: dict[str, Path | bytes], gone: list[str]) -> str:
    if not changed and not gone:
        return f"{name}: the {what} is already there, unchanged"
    parts = [f"uploaded {listed(sorted(changed))}"] if changed else []
    parts += [f"deleted {listed(sorted(gone))}"] if gone else []
    return f"{name}: {what}: {'; '.join(parts)}"
