"""This project's training beside SparseML's own command and a plain transformers.Trainer, in turn, epoch by epoch.

All are processes of their own on the same rows and models; only one works at a time, and the order of turns rotates, so
that other load on the machine affects all of them equally. `peers_launcher.py` makes each wait for its turns.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparse_accel.demo.commands import ROOT
from sparse_accel.errors import UsageError, counted, listed
from sparse_accel.zoo import RECIPES

RECIPE = RECIPES / "sst2_pruned90_quant.yaml"
PHASES = ("pruned, distilled", "QAT", "QAT, ranges frozen")
SPARSEML, TRAINER, OURS = "SparseML 1.8.0", "Trainer, dense", "sparse_accel"
BFLOAT16 = f"{OURS}, bf16"
BATCH_SIZE = 32
_RECIPE_EPOCHS = 13  # of the recipe at its full length
_UNFROZEN = 0.1  # of the quantizers at most: SparseML 1.8.0 leaves 2 of 82 ranges unfrozen
_FOLDER = Path(__file__).resolve().parent
_HOW_TO_MAKE_ONE = (
    "Make one with Python 3.10:\n"
    "  python3.10 -m venv peer && peer/bin/pip install torch==2.2.2 'numpy<2' 'sparseml[torch,transformers]==1.8.0' "
    "sparsezoo==1.8.1\n"
    "  peer/bin/pip install --no-deps compressed-tensors==0.5.0\n"
    "and give --peer_python peer/bin/python"
)


@dataclass(frozen=True)
class Inputs:
    """What all train with.

    Attributes:
        dense: folder of the classifier that is the teacher, and that the Trainer fine-tunes.
        sparse: folder of the same with 90% zeros, which the recipe starts from.
        train_file: CSV file with columns `text` and `label`.
        output: a folder for what they write.
        length: the most tokens of a row.
        phase_epochs: of each phase.
    """

    dense: Path
    sparse: Path
    train_file: Path
    output: Path
    length: int
    phase_epochs: int

    @property
    def all_epochs(self) -> int:
        """Number of epochs of a run."""
        return self.phase_epochs * len(PHASES)


@dataclass(frozen=True)
class Contestant:
    """A training program.

    Attributes:
        command: of its process, but for the numbers of the pipes, which follow the third word.
        has_recipe: whether it trains by the recipe, in its phases.
    """

    command: tuple[str, ...]
    has_recipe: bool = True


@dataclass(frozen=True)
class Epoch:
    """What a program reports of an epoch.

    Attributes:
        rows, seconds: trained rows, and the time from the begin of the epoch to the end of its last step.
        threads: of PyTorch.
        rounding, observing: number of fake quantizers that round, and that follow the range of their values.
    """

    epoch: int
    rows: int
    seconds: float
    threads: int
    rounding: int
    observing: int


def check_peer(python: Path) -> None:
    """Checks that a Python has SparseML 1.8.0.

    Raises:
        UsageError: it is not there, cannot be started, or has another version; the message says how to make one.
    """
    code = "from importlib.metadata import version; print(version('sparseml'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
        found = done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it fails"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        found = str(error)
    if found != "1.8.0":
        raise UsageError(f"--peer_python {python} is no Python with SparseML 1.8.0: {found}. {_HOW_TO_MAKE_ONE}")


def contestants(peer_python: Path, inputs: Inputs) -> dict[str, Contestant]:
    """Returns the programs by name: SparseML's command, padded and not, the Trainer, and this project's script, each in
    float32, the last two in bfloat16 too."""
    shared = {
        "train_file": inputs.train_file,
        "max_seq_length": inputs.length,
        "per_device_train_batch_size": BATCH_SIZE,
    }
    variables = {
        "num_epochs": inputs.all_epochs,
        "qat_start_epoch": float(inputs.phase_epochs),
        "observer_epoch": float(2 * inputs.phase_epochs),
    }
    by_recipe = {
        "model_name_or_path": inputs.sparse,
        "distill_teacher": inputs.dense,
        "recipe": RECIPE,
        "recipe_args": json.dumps(variables),
        **shared,
        "do_train": True,
        "save_strategy": "no",
    }
    plain = {"model_name_or_path": inputs.dense, **shared, "num_train_epochs": inputs.all_epochs}
    sparseml = {**by_recipe, "validation_file": inputs.train_file, "report_to": "none", "no_cuda": True}
    programs: dict[str, tuple[object, str, object, Mapping[str, object]]] = {
        SPARSEML: (peer_python, "trainer", "sparseml.transformers.text_classification", sparseml),
        TRAINER: (sys.executable, "trainer", _FOLDER / "peers_trainer.py", plain),
        OURS: (sys.executable, "sparse_accel", ROOT / "scripts" / "text_classification.py", by_recipe),
    }
    variants: dict[str, tuple[str, dict[str, object]]] = {
        SPARSEML: (SPARSEML, {}),
        f"{SPARSEML}, not padded": (SPARSEML, {"pad_to_max_length": "false"}),
        TRAINER: (TRAINER, {}),
        f"{TRAINER}, bf16": (TRAINER, {"bf16": True}),
        OURS: (OURS, {}),
        BFLOAT16: (OURS, {"bf16": True}),
    }
    found = {}
    for number, (name, (program, more)) in enumerate(variants.items()):
        python, kind, path, flags = programs[program]
        flags = {**flags, **more, "output_dir": inputs.output / str(number)}
        words = [[f"--{key}"] if value is True else [f"--{key}", str(value)] for key, value in flags.items()]
        launched = (str(python), str(_FOLDER / "peers_launcher.py"), kind, str(path))
        found[name] = Contestant((*launched, *(word for pair in words for word in pair)), program != TRAINER)
    return found


class Program:
    """A training program that waits for its turns. `started` makes it.

    Attributes:
        teacher_seconds: the time that it took once for the teacher's logits; 0 if it has no table.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, pipes: tuple[int, int]) -> None:
        self.name, self.teacher_seconds = name, 0.0
        self.process, self._log = process, log
        self._orders, self._reports = os.fdopen(pipes[0], "w", buffering=1), os.fdopen(pipes[1])

    def wait(self) -> None:
        """Waits until it could begin an epoch: all that it does before is done.

        Raises:
            UsageError: it ended; the message has the end of its output.
        """
        report = self._read()
        if "teacher_seconds" in report:
            self.teacher_seconds = report["teacher_seconds"]
            report = self._read()
        if "waits" not in report:
            raise ValueError(f"{self.name} does not wait for its turn, but reports {report}")

    def turn(self) -> Epoch:
        """Lets it train for one epoch.

        Raises:
            UsageError: it ended; the message has the end of its output.
        """
        self._orders.write("go\n")
        return Epoch(**self._read())

    def _read(self) -> dict[str, Any]:
        line = self._reports.readline()
        if not line:
            code = self.process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise UsageError(
                f"{self.name} ended with exit code {code}. Its output ends with:\n" + "\n".join(lines[-8:])
            )
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def started(name: str, contestant: Contestant, log: Path) -> Iterator[Program]:
    """Starts a program, offline, whose output goes to a file, and ends it and its processes after the block."""
    orders, to_it = os.pipe()
    from_it, reports = os.pipe()
    python, launcher, kind, *rest = contestant.command
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NM_DISABLE_ANALYTICS": "1"}
    environment = {**os.environ, **settings}
    environment.pop("GOMP_SPINCOUNT", None)  # this program has set it for itself: each has its own way to wait
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [python, launcher, kind, str(orders), str(reports), *rest],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=log.parent,  # SparseML writes a folder of logs where it is started
            env=environment,
            pass_fds=(orders, reports),
            start_new_session=True,
        )
    os.close(orders)
    os.close(reports)
    try:
        yield Program(name, process, log, (to_it, from_it))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def take_turns(
    programs: Mapping[str, Contestant], epochs: int, folder: Path, done: Callable[[str, Epoch], None]
) -> tuple[dict[str, list[Epoch]], dict[str, float]]:
    """Runs all programs, one epoch of each in a round, in an order that rotates.

    Args:
        epochs: of each.
        folder: for their output.
        done: called after each epoch.

    Returns:
        the epochs of each program, and the seconds that it took for the teacher's logits, once.

    Raises:
        UsageError: a program ended early, or they have different numbers of threads.
    """
    found: dict[str, list[Epoch]] = {name: [] for name in programs}
    names = list(programs)
    with ExitStack() as stack:
        running = {}
        for number, (name, contestant) in enumerate(programs.items()):
            running[name] = stack.enter_context(started(name, contestant, folder / f"{number}.log"))
            running[name].wait()  # until then it loads and tokenizes, which would take time from the others
        for epoch in range(epochs):
            turn = epoch % len(names)
            for name in names[turn:] + names[:turn]:
                found[name].append(running[name].turn())
                done(name, found[name][-1])
                if epoch + 1 < epochs:
                    running[name].wait()
    return found, {name: program.teacher_seconds for name, program in running.items()}


def check_epochs(epochs: Mapping[str, Sequence[Epoch]], with_recipe: Sequence[str], each: int) -> None:
    """Checks that the programs did the same work: threads, rows, and quantizers as the phases of the recipe have them.

    Args:
        with_recipe: names of the programs that train by the recipe.
        each: number of epochs of a phase.

    Raises:
        UsageError: they did not; a ratio of their times would mean nothing.
    """
    for what in ("threads", "rows"):
        numbers = {name: sorted({getattr(epoch, what) for epoch in found}) for name, found in epochs.items()}
        if len({tuple(found) for found in numbers.values()}) > 1 or any(len(found) > 1 for found in numbers.values()):
            shown = listed(f"{name} {listed(found)}" for name, found in numbers.items())
            advice = ": set OMP_NUM_THREADS" if what == "threads" else ""
            raise UsageError(f"the programs trained with different numbers of {what}: {shown}{advice}")
    for name in with_recipe:
        for epoch in epochs[name]:
            phase = epoch.epoch // each
            follows = epoch.observing > _UNFROZEN * epoch.rounding
            if (epoch.rounding > 0, follows) != (phase > 0, phase == 1):
                raise UsageError(
                    f"{name}: in epoch {epoch.epoch}, which is of phase {PHASES[phase]!r}, {epoch.rounding} fake "
                    f"quantizers round and {epoch.observing} follow their ranges: the recipe is not applied as it says"
                )


def rates(epochs: Sequence[Epoch], each: int, has_recipe: bool) -> dict[str, float]:
    """Returns the rows per second by phase: all rows over all seconds. Without a recipe, each phase has that of all."""
    parts = [[epoch for epoch in epochs if not has_recipe or epoch.epoch // each == number] for number in range(3)]
    return {
        phase: sum(epoch.rows for epoch in part) / sum(epoch.seconds for epoch in part)
        for phase, part in zip(PHASES, parts, strict=True)
    }


def compare_with_peers(peer_python: Path, inputs: Inputs) -> dict[str, Any]:
    """Runs all programs in turn, with a line for each epoch, and returns what `peers_table` shows.

    Returns:
        `rates`: rows per second by phase, by program; `teacher_seconds`: by program; `epochs`: all that was measured;
        `rows`, `length`, `phase_epochs`, `threads`.

    Raises:
        UsageError: a program failed, or did not do the same work as the others.
    """
    programs = contestants(peer_python, inputs)
    inputs.output.mkdir(parents=True, exist_ok=True)

    def show(name: str, epoch: Epoch) -> None:
        print(
            f"epoch {epoch.epoch + 1} of {inputs.all_epochs}: {name}: {epoch.rows / epoch.seconds:.1f} rows/s",
            flush=True,
        )

    epochs, teacher_seconds = take_turns(programs, inputs.all_epochs, inputs.output, show)
    check_epochs(epochs, [name for name, each in programs.items() if each.has_recipe], inputs.phase_epochs)
    return {
        "rates": {name: rates(epochs[name], inputs.phase_epochs, each.has_recipe) for name, each in programs.items()},
        "teacher_seconds": teacher_seconds,
        "epochs": {name: [asdict(epoch) for epoch in found] for name, found in epochs.items()},
        "rows": epochs[OURS][0].rows,
        "length": inputs.length,
        "phase_epochs": inputs.phase_epochs,
        "threads": epochs[OURS][0].threads,
    }


def peers_table(found: Mapping[str, Any]) -> str:
    """Returns a Markdown table of rows per second by phase, and how many times as many this project's have in bfloat16
    during QAT: without the time for the teacher's table, and with it, spread over the epochs of the whole recipe.

    Args:
        found: what `compare_with_peers` returns.
    """
    once, by_program = found["teacher_seconds"], found["rates"]
    head = ["rows per second", *PHASES, f"{BFLOAT16} in QAT", "with its teacher's table"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    ours = by_program[BFLOAT16]["QAT"]
    with_table = 1 / (1 / ours + once[BFLOAT16] / found["rows"] / _RECIPE_EPOCHS)
    for name, row in by_program.items():
        times = [f"{rate / row['QAT']:.2f}x" for rate in (ours, with_table)]
        lines.append(f"| {' | '.join([name, *(f'{row[phase]:.1f}' for phase in PHASES), *times])} |")
    seconds = listed(f"{name}: {each:.1f} s" for name, each in once.items() if each > 0)
    return "\n".join(
        [
            f"{counted(found['rows'], 'row')} of at most {found['length']} tokens, {BATCH_SIZE} per step; "
            f"{counted(found['phase_epochs'], 'epoch')} of each phase; {counted(found['threads'], 'thread')}",
            "",
            *lines,
            "",
            f"The teacher's table is made once, before the first epoch ({seconds}); in the last column this time is "
            f"spread over {_RECIPE_EPOCHS} epochs. Programs without it run the teacher in each step.",
        ]
    )
