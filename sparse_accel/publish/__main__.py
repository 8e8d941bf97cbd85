"""Uploads a finished run to the Hugging Face Hub:

python -m sparse_accel.publish OUTPUT_DIR
python -m sparse_accel.publish OUTPUT_DIR DEPLOYMENT --hub_model_id OWNER/NAME --hub_private_repo

The token is HF_TOKEN of the environment, or that of `hf auth login`. The same command continues an upload that was cut
off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_accel.cli.parser import expanded
from sparse_accel.cli.training import check_repository
from sparse_accel.errors import UsageError
from sparse_accel.main import run_main
from sparse_accel.publish.card import write_card
from sparse_accel.publish.push import HubError, push, target_of
from sparse_accel.publish.uploads import check_folder


def main() -> None:
    """Uploads; with --card, only writes the model card."""
    parser = argparse.ArgumentParser(
        prog="python -m sparse_accel.publish",
        description="Uploads a finished run to the Hugging Face Hub, in one commit, and its deployment in another.",
        epilog="The token is HF_TOKEN of the environment, or that of `hf auth login`.",
    )
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="output folder of a training script")
    parser.add_argument("deployment", metavar="DEPLOYMENT", nargs="?", help="what export_onnx.py wrote for this model")
    parser.add_argument(
        "--hub_model_id", metavar="ID", help="OWNER/NAME, or NAME under your user (default: the name of OUTPUT_DIR)"
    )
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    parser.add_argument(
        "--hub_report",
        action="store_true",
        help="upload report.html too, which shows evaluated rows, flags and paths of this machine",
    )
    parser.add_argument("--card", action="store_true", help="only write the model card, README.md; upload nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    arguments.hub_token = None
    folder = Path(expanded(arguments.folder, "OUTPUT_DIR"))
    deployment = Path(expanded(arguments.deployment, "DEPLOYMENT")) if arguments.deployment else None
    if arguments.card:
        for each in [folder, *([deployment] if deployment else [])]:
            if (outcome := write_card(each)) == "none":
                raise UsageError(
                    f"{each} holds neither a trained model (config.json, model.safetensors) nor a deployment "
                    "(model.onnx, export_report.json): there is nothing to write a card of"
                )
            kept = ": a person wrote or changed it, so it is kept" if outcome == "kept" else ""
            print(f"{each / 'README.md'}{kept}")
        return
    check_folder(folder)
    if arguments.hub_model_id is not None:
        check_repository("--hub_model_id", arguments.hub_model_id)
    target = target_of(arguments.hub_model_id, folder, arguments)
    try:
        lines = push(folder, target, deployment, report=arguments.hub_report)
    except HubError as error:
        raise UsageError(f"{error}\nNothing on disk was changed. To upload the rest: the same command again") from error
    print("\n".join(lines))


if __name__ == "__main__":
    run_main(main)
