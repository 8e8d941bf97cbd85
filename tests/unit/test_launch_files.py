"""Files that other programs read: Kubernetes, SLURM, Docker, GitHub, each checked by what knows its form."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubeflow.training.models as kubeflow
import kubernetes.client.models as kubernetes
import pytest
import yaml
from places import ROOT

CONFIGS = ROOT / "accelerate_configs"
SHELL = sorted([*CONFIGS.rglob("*.sh"), *CONFIGS.rglob("*.sbatch"), ROOT / ".ci" / "run"])
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def checked(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# --- Kubernetes: its own client's classes, which know every field and type --------------------------------------------


def faults(kind: str, value: Any, place: str) -> list[str]:
    """Where a value is not what the client's types say: unknown, missing and mistyped fields.

    Args:
        kind: a type as the generated clients write it: `V1Pod`, `list[V1Container]`, `dict(str, str)`, `int`.
        place: of the value, for the message.
    """
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{place}: not a list"]
        return [fault for number, each in enumerate(value) for fault in faults(found[1], each, f"{place}[{number}]")]
    if found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        if not isinstance(value, Mapping):
            return [f"{place}: not a mapping"]
        return [fault for name, each in value.items() for fault in faults(found[1], each, f"{place}.{name}")]
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": str}
    if kind in plain:
        right = isinstance(value, plain[kind]) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
        return [] if right else [f"{place}: {value!r} is not of type {kind}"]
    model = getattr(kubernetes, kind, None) or getattr(kubeflow, kind)
    if not isinstance(value, Mapping):
        return [f"{place}: not a {kind}"]
    names = {key: attribute for attribute, key in model.attribute_map.items()}
    unknown = [f"{place}.{key}: {kind} has no such field" for key in value if key not in names]
    given = {names[key]: each for key, each in value.items() if key in names}
    deeper = [
        fault
        for attribute, each in given.items()
        for fault in faults(model.openapi_types[attribute], each, f"{place}.{model.attribute_map[attribute]}")
    ]
    try:  # what must be there, and values of an enumeration
        known = inspect.signature(model).parameters
        model(**{attribute: each for attribute, each in given.items() if attribute in known})
    except ValueError as error:
        deeper.append(f"{place}: {error}")
    return unknown + deeper


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CONFIGS / "kubernetes" / name).read_text()))


def environment_of(container: Mapping[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_the_check_of_types_finds_faults() -> None:
    pod: dict[str, Any] = {"spec": {"containers": [{"name": "x", "imgae": "y", "args": [1]}], "hostname": 3}}
    found = faults("V1PodTemplateSpec", pod, "pod")
    assert len(found) == 3 and "pod.spec.containers[0].imgae: V1Container has no such field" in found
    assert "must not be `None`" in faults("V1PodTemplateSpec", {"spec": {}}, "pod")[0]


def test_the_plain_job(tmp_path: Path) -> None:
    service, job = documents("job.yaml")
    assert faults("V1Service", service, "service") == [] and faults("V1Job", job, "job") == []
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = environment_of(container)
    # Pods find the first one by the Service's name.
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert service["spec"]["clusterIP"] == "None" and pod["subdomain"] == service["metadata"]["name"]
    assert variables["MAIN_ADDRESS"] == f"{name}-0.{service['metadata']['name']}"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == variables["PROCESSES"]
    # podFailurePolicy's rules need all of these; codes are those of docs/runs.md.
    assert pod["restartPolicy"] == "Never" and spec["podReplacementPolicy"] == "Failed"
    rules = spec["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob", "Ignore", "Ignore"]
    assert [rule["onExitCodes"]["values"] for rule in rules[:2]] == [[2], [75]]
    assert {rule["onExitCodes"]["containerName"] for rule in rules[:2]} == {container["name"]}
    assert rules[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    check_pod(pod, tmp_path)


def test_the_job_of_the_training_operator(tmp_path: Path) -> None:
    (job,) = documents("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert faults("KubeflowOrgV1PyTorchJob", job, "job") == []
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert list(replicas) == ["Master", "Worker"] and replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        # The operator looks for this name, and restarts pods with exit codes from 128 on.
        assert container["name"] == "pytorch" and replica["restartPolicy"] == "ExitCode"
        assert int(environment_of(container)["AGAIN_EXIT_CODE"]) >= 128
        assert container["resources"]["limits"]["nvidia.com/gpu"] == job["spec"]["nprocPerNode"]
        check_pod(pod, tmp_path)


def check_pod(pod: dict[str, Any], folder: Path) -> None:
    """What both kinds of job have: an unprivileged user, time to save, flags that exist, a program in the image."""
    from sparse_accel.cli.parser import parse_arguments
    from sparse_accel.cli.text_classification import TextClassificationArguments

    (container,) = pod["containers"]
    script = (CONFIGS / "elastic.sh").read_text()
    given = re.search(r"PET_SHUTDOWN_TIMEOUT:-(\d+)", script)
    assert given and pod["terminationGracePeriodSeconds"] >= int(given[1]) + 60
    assert pod["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = re.search(r"^RUN sparse_accel launch-files (\S+)$", dockerfile, re.MULTILINE)
    assert copied and container["command"] == ["bash", f"{copied[1]}/elastic.sh"]
    for name in environment_of(container).keys() - {"HF_HOME", "HF_HUB_OFFLINE"}:
        assert f"${{{name}:-" in script, name
    for name in ("train.csv", "validation.csv"):
        (folder / name).write_text("text,label\ngood,1\n")
    parse_arguments(TextClassificationArguments, [word.replace("/shared", str(folder)) for word in container["args"]])
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


# --- shell ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_files_have_no_known_mistakes(path: Path) -> None:
    checked(program("shellcheck"), path)


def told(tmp_path: Path, file: str, *words: str, **variables: str) -> tuple[int, list[str], str]:
    """Runs a shell file with a `python` and `srun` that only print what they are asked; returns code, words, errors."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("python", "srun", "scontrol"):
        (programs / name).write_text(f'#!/bin/bash\n[[ {name} == scontrol ]] || printf "%s\\n" "$@"\n')
        (programs / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "TRAIN_"))}
    done = subprocess.run(
        ["bash", str(CONFIGS / file), *words],
        cwd=tmp_path,
        env=environment | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_elastic_on_one_machine_meets_on_it(tmp_path: Path) -> None:
    code, words, _ = told(tmp_path, "elastic.sh", "--do_train", PROCESSES="2", MAIN_ADDRESS="elsewhere")
    assert code == 0
    launch, process = words[: words.index("--no-python")], words[words.index("process") + 1 :]
    assert launch[:6] == ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    assert launch[launch.index("--rdzv-endpoint") + 1] == "localhost:0" and "--rdzv-conf" not in launch
    assert process == ["-m", "sparse_accel", "train", "text-classification", "--do_train"]
    token = told(tmp_path, "elastic.sh", TRAIN_TASK="token-classification")[1]
    assert token[-4:] == ["-m", "sparse_accel", "train", "token-classification"]
    assert told(tmp_path, "elastic.sh", TRAIN_SCRIPT="my own.py")[1][-1] == "my own.py"


def test_elastic_on_several_machines(tmp_path: Path) -> None:
    assert told(tmp_path, "elastic.sh", NODES="1:4")[0] == 2
    own = {"NODES": "1:4", "MAIN_ADDRESS": "one", "MACHINE": "0", "ADDRESS": "10.0.0.7", "WAIT": "60"}
    # As the training operator sets them.
    operator = {"PET_NNODES": "2", "PET_MASTER_ADDR": "job-master-0", "PET_MASTER_PORT": "23456", "PET_NODE_RANK": "1"}
    operator |= {"PET_NPROC_PER_NODE": "8", "RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "job-master-0"}
    expected = {
        "own": ("1:4", "gpu", "one:29400", "join_timeout=60,read_timeout=60,is_host=true"),
        "operator": ("2", "8", "job-master-0:23456", "join_timeout=900,read_timeout=900,is_host=false"),
    }
    for name, variables in (("own", own), ("operator", operator)):
        code, words, _ = told(tmp_path, "elastic.sh", **variables)
        flags = ("--nnodes", "--nproc-per-node", "--rdzv-endpoint", "--rdzv-conf")
        assert code == 0 and tuple(words[words.index(flag) + 1] for flag in flags) == expected[name]
        assert ("--local-addr" in words) == (name == "own")


@pytest.mark.parametrize("file", ["slurm/one_node.sbatch", "slurm/several_nodes.sbatch"])
def test_slurm_files_find_the_program_without_a_clone(file: str, tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a,b", "PROCESSES": "2"}
    assert told(tmp_path, file, "--x", **job)[1][-5:] == ["-m", "sparse_accel", "train", "text-classification", "--x"]
    assert told(tmp_path, file, **job, TRAIN_SCRIPT="mine.py")[1][-1] == "mine.py"
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    assert told(tmp_path, file, **job)[1][-1] == "scripts/text_classification.py"
    task = told(tmp_path, file, **job, TRAIN_TASK="token-classification")[1]
    assert task[-4:] == ["-m", "sparse_accel", "train", "token-classification"]


# --- Docker and GitHub ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which(program("hadolint")) is None, reason="hadolint is for Linux on x86-64")
def test_the_dockerfile_has_no_known_mistakes() -> None:
    checked(program("hadolint"), "Dockerfile")


def test_the_image_is_made_from_what_exists() -> None:
    text = (ROOT / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in ignored if line.startswith("!") and not (ROOT / line[1:]).exists()] == []
    assert re.findall(r"^USER (\d+)$", text, re.MULTILINE) == ["1000", "1000"]
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE))
    extras = re.findall(r"\$\{wheel\}\[(.*?)\]", text)
    assert extras == ["onnx,report,wandb"] * 2, "a run in a container ends without a warning about what is missing"
    needed = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "sparse_accel", "scripts"}
    assert {f"!{name}" for name in needed | {"constraints.txt", "accelerate_configs"}} <= set(ignored)


def test_the_workflow_is_one() -> None:
    checked(program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", WORKFLOW)
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[bf]*.yml"))
    checked(program("check-jsonschema"), "--builtin-schema", "vendor.github-issue-forms", *forms)


def test_the_workflow_is_pinned_and_may_only_read() -> None:
    text = WORKFLOW.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"} and "secrets." not in text
    assert not [job for job in workflow["jobs"].values() if "permissions" in job or "timeout-minutes" not in job]
    used = re.findall(r"uses: (\S+)( # v\d+\.\d+\.\d+)?$", text, re.MULTILINE)
    assert used and all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", name) and version for name, version in used)
    targets = set(re.findall(r"run: make ([a-z-]+)", text))
    makefile = (ROOT / "Makefile").read_text()
    assert targets == {"check", "test", "test-slow", "dist"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
