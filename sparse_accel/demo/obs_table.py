"""The table of what an update of the masks by second-order scores costs."""

from __future__ import annotations

from collections.abc import Mapping

# Figures of the given model that follow from measured ones.
_EXTRAPOLATED = ("seconds_of_1024_samples", "seconds_of_epoch", "epochs_per_update")


def obs_table(cost: Mapping[str, Mapping[str, float]], *, samples: int, rows: int, block: int) -> str:
    """Returns the figures as text. Those of the whole update, of the epoch, and all of BERT-base are extrapolated.

    Args:
        cost: figures by name, by model: of the given one under `model`. Bytes have names that end in `_bytes`.
        samples: number of gradients that were taken.
        rows, block: size of a sample and of a Fisher block.
    """
    lines = [
        f"An update of the masks by OBSPruningModifier: samples of {rows} rows, blocks of {block}. Measured "
        f"with {samples} samples; figures with * are extrapolated"
    ]
    for name, row in cost.items():
        lines.append(f"\n{name}")
        for key, value in row.items():
            measured = name == "model" and key not in _EXTRAPOLATED
            star = " " if measured or key == "weights" else "*"
            words = key.replace("_bytes", " GB").replace("_", " ")
            number = f"{value:,}" if key == "weights" else f"{value / 1e9 if key == 'peak_bytes' else value:,.3f}"
            lines.append(f"  {words:<28}{number:>16}{star}")
    return "\n".join(line.rstrip() for line in lines)
