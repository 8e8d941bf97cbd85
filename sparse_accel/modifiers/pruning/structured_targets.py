"""How many units structured pruning removes, and which: the three kinds of targets that its keys can name.

ShareOfUnits    a share of the heads, or neurons, of each block, or of all blocks together
MultiplyAdds    heads and neurons together, until the multiply-adds that are left are few enough
ShareOfRows     a share of the rows, or columns, of single weights, as in SparseML
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from sparse_accel.errors import counted, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_accel.nn.structure_masks import MaskedUnits

# Returns the share to prune now: the arguments are a name in `initial`, and the final share.
Share = Callable[[str, float], float]
# What the parts are called in messages.
WORDS = {"attention_heads": "attention head", "ffn_neurons": "feed-forward neuron"}
_MULTIPLY_ADDS = "Multiply-adds per token in the encoder's Linear layers"


class Target(Protocol):
    """What is to be pruned.

    Attributes:
        units: those that may go.
    """

    units: Sequence[MaskedUnits]

    def scores(self) -> list[Tensor]:
        """Returns the magnitudes of units, (count,) float32 each. All processes must call it."""

    def initial(self) -> dict[str, float]:
        """Returns the shares that are 0 in the model, by name. All processes must call it."""

    def final(self) -> dict[str, float]:
        """Returns the shares to prune in the end, by the same names."""

    def masks(self, scores: Sequence[Tensor], share: Share) -> list[Tensor]:
        """Returns which units are to stay, (count,) bool each."""

    def goal(self) -> str:
        """Returns what is removed in the end and what is left, for a notice; empty if nothing is removed."""


class _Magnitudes:
    """Heads and neurons, which magnitude ranks by the norm of all that they own."""

    def __init__(self, units: Sequence[MaskedUnits]) -> None:
        self.units = units

    def scores(self) -> list[Tensor]:
        from sparse_accel.nn.structure_scores import relative_norms

        return [relative_norms(each.squares()) for each in self.units]

    def _zeros(self) -> list[int]:
        return [int((each.squares() == 0).sum()) for each in self.units]


class ShareOfUnits(_Magnitudes):
    """A share of the units of each part.

    Args:
        units: of all blocks.
        total: multiply-adds of the encoder's Linear layers with all units.
        shares: to prune in the end, by part.
        uniform: whether each block loses the same number.

    Raises:
        ValueError: a block would have no unit of a part left.
    """

    def __init__(self, units: Sequence[MaskedUnits], total: int, shares: Mapping[str, float], uniform: bool) -> None:
        super().__init__(units)
        self.total, self.shares = total, shares
        of_part = {part: [n for n, each in enumerate(units) if each.part == part] for part in shares}
        # The indices of units that are ranked together, by the name of their share.
        self.ranked: dict[str, list[int]] = dict(of_part)
        if uniform:
            self.ranked = {units[n].name: [n] for numbers in of_part.values() for n in numbers}
        for numbers in self.ranked.values():
            part, count = units[numbers[0]].part, sum(units[n].count for n in numbers)
            if round(shares[part] * count) > count - len(numbers):
                where = f"{units[numbers[0]].count} of each block" if uniform else f"{count} of {len(numbers)} blocks"
                raise ValueError(
                    f"final_sparsity {shares[part]:g} leaves none of the {WORDS[part]}s ({where}), but each block "
                    "needs one: lower it"
                )

    def initial(self) -> dict[str, float]:
        zeros = self._zeros()
        return {
            name: sum(zeros[n] for n in numbers) / sum(self.units[n].count for n in numbers)
            for name, numbers in self.ranked.items()
        }

    def final(self) -> dict[str, float]:
        return {name: self.shares[self.units[numbers[0]].part] for name, numbers in self.ranked.items()}

    def masks(self, scores: Sequence[Tensor], share: Share) -> list[Tensor]:
        from sparse_accel.nn.structure_masks import masks_of_units

        found: dict[int, Tensor] = {}
        for name, final in self.final().items():
            numbers = self.ranked[name]
            units = [self.units[n] for n in numbers]
            total = sum(each.count for each in units)
            removed = min(round(share(name, final) * total), total - len(units))
            masks = masks_of_units([scores[n] for n in numbers], removed, [each.kept for each in units])
            found |= dict(zip(numbers, masks, strict=True))
        return [found[n] for n in range(len(self.units))]

    def goal(self) -> str:
        words, less = [], 0
        for part in self.shares:
            ranked = [numbers for numbers in self.ranked.values() if self.units[numbers[0]].part == part]
            total, removed = 0, 0
            for numbers in ranked:
                count = sum(self.units[n].count for n in numbers)
                total, removed = total + count, removed + round(self.shares[part] * count)
            words.append(f"{removed:,} of {counted(total, WORDS[part])}")
            less += removed * self.units[ranked[0][0]].cost
        left = f"{self.total - less:,} of {self.total:,} are left"
        return f"{' and '.join(words)} are removed. {_MULTIPLY_ADDS}: {left}"


class MultiplyAdds(_Magnitudes):
    """Units of all parts and blocks together, until the model has few enough multiply-adds for each token.

    Args:
        units: of all blocks.
        total: multiply-adds of the encoder's Linear layers with all units.
        left: how many of them are to be left, at most.
        per_unit: whether scores are of whole units, so that they are divided by the multiply-adds of a unit; False:
            they are relative to those of the block already.

    Raises:
        ValueError: the units that must stay, or what belongs to no unit, need more; or there is nothing to prune.
    """

    NAME = "multiply_adds"

    def __init__(self, units: Sequence[MaskedUnits], total: int, left: float, per_unit: bool) -> None:
        super().__init__(units)
        self.total, self.left, self.per_unit = total, round(left), per_unit
        self.others = total - sum(each.count * each.cost for each in units)
        least = self.others + sum(each.cost for each in units)
        if self.left < least:
            raise ValueError(
                f"final_multiply_adds asks for {self.left:,} multiply-adds per token, but one unit of each block, and "
                f"what is not in parts, need {least:,} of {total:,}: raise it"
            )
        if self.left >= total:
            raise ValueError(
                f"final_multiply_adds asks for {self.left:,} multiply-adds per token, but there are only {total:,} "
                "without the dropped layers: lower it, or drop fewer layers"
            )

    def initial(self) -> dict[str, float]:
        zero = sum(zeros * each.cost for zeros, each in zip(self._zeros(), self.units, strict=True))
        return {self.NAME: zero / self.total}

    def final(self) -> dict[str, float]:
        return {self.NAME: 1 - self.left / self.total}

    def masks(self, scores: Sequence[Tensor], share: Share) -> list[Tensor]:
        from sparse_accel.nn.structure_masks import masks_within_budget

        costs = [each.cost for each in self.units]
        if self.per_unit:
            scores = [score / cost for score, cost in zip(scores, costs, strict=True)]
        budget = round((1 - share(self.NAME, self.final()[self.NAME])) * self.total) - self.others
        return masks_within_budget(scores, costs, max(budget, sum(costs)), [each.kept for each in self.units])

    def goal(self) -> str:
        return f"{_MULTIPLY_ADDS}: at most {self.left:,} of {self.total:,} are left"


class ShareOfRows:
    """A share of the rows, or columns, of single weights: those of the smallest L2 norm, as in SparseML.

    Args:
        units: rows or columns, of one weight, or of several with one mask.
        shares: to prune in the end, by the name of the units.
    """

    def __init__(self, units: Sequence[MaskedUnits], shares: Mapping[str, float]) -> None:
        self.units, self.shares = units, shares

    def scores(self) -> list[Tensor]:
        return [each.sum_of_norms() for each in self.units]

    def initial(self) -> dict[str, float]:
        return {each.name: int((each.sum_of_norms() == 0).sum()) / each.count for each in self.units}

    def final(self) -> dict[str, float]:
        return dict(self.shares)

    def masks(self, scores: Sequence[Tensor], share: Share) -> list[Tensor]:
        from sparse_accel.nn.masks import keep_all_but_lowest

        pairs = zip(self.units, scores, strict=True)
        return [
            keep_all_but_lowest(score, round(share(each.name, self.shares[each.name]) * each.count))
            for each, score in pairs
        ]

    def goal(self) -> str:
        return ""


def groups(names: Sequence[str], groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns all names, those that have one mask together: `groups` first, then each other name alone.

    Raises:
        ValueError: a group is empty, names something else, or a name twice.
    """
    if not all(groups):
        raise ValueError("param_groups: a group is empty: name weights in it, or remove it")
    grouped = [name for group in groups for name in group]
    for name in grouped:
        if name not in names:
            raise ValueError(f"param_groups: '{name}' is not one of params.{nearest(name, names)}")
        if grouped.count(name) > 1:
            raise ValueError(f"param_groups: {name} is named twice")
    return [*map(list, groups), *([name] for name in names if name not in grouped)]
