"""Prints what a recipe does, epoch by epoch, without a model:

python -m sparse_accel.recipe recipe.yaml
python -m sparse_accel.recipe recipe.yaml --recipe_args num_epochs=12,init_lr=1e-4
python -m sparse_accel.recipe recipe.yaml --resolved > resolved.yaml
"""

from __future__ import annotations

import argparse
import io
import sys

from sparse_accel.cli.parser import expanded
from sparse_accel.errors import shortened
from sparse_accel.main import run_main
from sparse_accel.recipe import Recipe, load_recipe
from sparse_accel.zoo import recipe_path


def main() -> None:
    """Prints the timeline; with --resolved, the recipe with variables and defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m sparse_accel.recipe", description="Checks a recipe and prints what it does, epoch by epoch."
    )
    parser.add_argument("recipe", help="a .yaml, .yml or .md file, or a zoo: stub")
    parser.add_argument("--recipe_args", metavar="ARGS", help="""set variables: '{"num_epochs": 12}' or a=1,b:2""")
    parser.add_argument(
        "--resolved", action="store_true", help="print the recipe as YAML, with variables and defaults filled in"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()

    recipe = load_recipe(expanded(arguments.recipe, "recipe"), arguments.recipe_args, recipe_path)
    if arguments.resolved and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the output is a recipe, whatever the terminal's encoding
    print(recipe.resolved() if arguments.resolved else timeline_table(recipe), end="")
    for line in recipe.notes:
        print(f"note: {shortened(line)}", file=sys.stderr)
    for line in recipe.warnings:
        print(f"warning: {shortened(line)}", file=sys.stderr)


def timeline_table(recipe: Recipe) -> str:
    """Returns the events of a recipe as lines of `epoch  what happens`, with a heading."""
    rows = [(f"{epoch:g}", event) for epoch, event in recipe.timeline()]
    width = max([len("epoch"), *(len(epoch) for epoch, _ in rows)])
    epochs = recipe.max_epochs
    length = f"{epochs} epoch{'s' * (epochs != 1)}" if epochs else "number of epochs not set"
    heading = f"{recipe.source}: {length}, {len(recipe.modifiers)} modifier{'s' * (len(recipe.modifiers) != 1)}"
    lines = [heading, "", f"{'epoch':>{width}}  what happens", f"{'-' * width}  {'-' * 12}"]
    lines += [f"{epoch:>{width}}  {event}" for epoch, event in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
