"""Parses `zoo:` stubs, the addresses of SparseZoo's models and recipes.

    zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none      long form
    zoo:obert-base-sst2_wikipedia_bookcorpus-pruned90_quantized                             short form
    zoo:...?recipe=NAME    zoo:...?recipe_type=NAME                                         one of its recipes

The long form is domain, task, architecture (optionally with a size), framework, origin, dataset (optionally with a
training scheme), and the optimization: sparse name, category, and for some models a target.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparse_accel.errors import UsageError, nearest

PREFIX = "zoo:"
_WORD = r"[A-Za-z0-9._]+"
_LONG = re.compile(
    rf"(?P<domain>{_WORD})/(?P<task>{_WORD})/(?P<architecture>{_WORD})(?:-(?P<size>{_WORD}))?/(?P<framework>{_WORD})"
    rf"/(?P<repo>{_WORD})/(?P<dataset>{_WORD})(?:-(?P<scheme>{_WORD}))?/(?P<tag>{_WORD}(?:-{_WORD})*)"
)
_SHORT = re.compile(rf"{_WORD}(?:-{_WORD}){{2,}}")
_PARAMETERS = ("recipe", "recipe_type")
# The dataset on which the zoo's encoders were pretrained.
_PRETRAINING = "wikipedia_bookcorpus"
_USUAL = ("pytorch", "huggingface")


@dataclass(frozen=True)
class Stub:
    """A parsed stub.

    Attributes:
        text: the stub as typed.
        name: the stub without `zoo:` and parameters.
        recipe: name from `?recipe=` or `?recipe_type=`; empty if neither is given.
    """

    text: str
    name: str
    recipe: str = ""

    @property
    def is_long(self) -> bool:
        return "/" in self.name

    @property
    def parts(self) -> dict[str, str]:
        """Returns the parts of the long form by name; a size of `none` is omitted. Empty for the short form."""
        match = _LONG.fullmatch(self.name)
        parts = {key: value for key, value in match.groupdict().items() if value} if match else {}
        return {key: value for key, value in parts.items() if (key, value) != ("size", "none")}

    @property
    def short_name(self) -> str:
        """Returns the name of the same model in the short form, by SparseZoo's rule for encoders; empty if unknown.

        The short form omits framework, training scheme and category, so only the values common to all its encoders are
        supported.
        """
        if not self.is_long:
            return self.name
        parts = self.parts
        sparse, *rest = parts["tag"].split("-")
        if (
            (parts["framework"], parts["repo"]) != _USUAL
            or "scheme" in parts
            or rest not in (["none"], ["none", "vnni"])
        ):
            return ""
        if rest[1:] == ["vnni"]:  # pruned in blocks of four, for CPUs with VNNI instructions
            sparse = sparse.removesuffix("_quant") + ".4block" + ("_quant" if sparse.endswith("_quant") else "")
        sparse = re.sub("_quant$", "_quantized", re.sub("_obs(_quant)?$", r".obs\1", sparse))
        data = parts["dataset"] if parts["dataset"] == _PRETRAINING else f"{parts['dataset']}_{_PRETRAINING}"
        words = [parts["architecture"], parts.get("size", ""), data, sparse]
        return "-".join(word for word in words if word)

    def same_model_as(self, other: Stub) -> bool:
        """Returns whether both stubs name the same model, in either form; parameters are ignored."""
        if self.is_long and other.is_long:
            return self.parts == other.parts
        return bool(self.short_name) and self.short_name == other.short_name


def is_stub(text: str) -> bool:
    """Returns whether a text begins with `zoo:`."""
    return text.startswith(PREFIX)


def parse_stub(text: str) -> Stub:
    """Parses a stub.

    Args:
        text: with or without `zoo:`.

    Raises:
        UsageError: not a stub in either form, an unknown parameter, or two different recipes.
    """
    name, mark, query = text.removeprefix(PREFIX).partition("?")
    if not (_LONG.fullmatch(name) or _SHORT.fullmatch(name)):
        raise UsageError(
            f"{text} is not a stub. Expected zoo:DOMAIN/TASK/ARCHITECTURE-SIZE/FRAMEWORK/REPO/DATASET/NAME-CATEGORY "
            "or zoo:ARCHITECTURE-SIZE-DATASET-NAME; ?recipe=NAME may follow"
        )
    recipe = ""
    for pair in query.split("&") if mark else []:
        key, _, value = pair.partition("=")
        if key not in _PARAMETERS or not re.fullmatch(r"[A-Za-z0-9._-]+", value):
            raise UsageError(
                f"{text}: '{pair}' is not a parameter of a stub.{nearest(key, _PARAMETERS)} Expected ?recipe=NAME or "
                "?recipe_type=NAME"
            )
        if recipe not in ("", value):
            raise UsageError(f"{text} names two recipes, {recipe} and {value}: use one")
        recipe = value
    return Stub(text, name, recipe)
