"""The pooling of a model in its folder: as sentence-transformers stores it, and as an entry of config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig
from transformers.utils.hub import cached_file

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, listed
from sparse_accel.hub import model_address
from sparse_accel.nn.pooling import MODES, Pooling

if TYPE_CHECKING:
    from sparse_accel.cli.sentence_embedding import SentenceEmbeddingArguments

# The entry of config.json that makes an encoder a model of this task.
SETTINGS = "sentence_embedding"
_MODULES = "modules.json"
# Keys of 1_Pooling/config.json, of any version, for modes; a mode is on, or several are joined.
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class EmbeddingSettings:
    """What turns an encoder's hidden states into embeddings.

    Attributes:
        pooling: of tokens.
        max_seq_length: tokens of a text that count, special tokens included; None: as many as the encoder takes.
    """

    pooling: Pooling
    max_seq_length: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of config.json."""
        found = {"pooling": self.pooling.mode, "normalize": self.pooling.normalize}
        return found if self.max_seq_length is None else {**found, "max_seq_length": self.max_seq_length}


def settings_in(config: Any, place: str) -> EmbeddingSettings | None:
    """Returns the settings in a model's configuration; None if there are none.

    Args:
        config: of a transformers model.
        place: where it comes from, for messages.

    Raises:
        UsageError: they are not complete, or have another pooling.
    """
    entry = getattr(config, SETTINGS, None)
    if entry is None:
        return None
    try:
        mode, normalize, length = entry["pooling"], entry["normalize"], entry.get("max_seq_length")
    except (TypeError, KeyError, AttributeError):
        raise UsageError(f"{place}: '{SETTINGS}' in config.json is incomplete: copy it from the training run") from None
    return EmbeddingSettings(Pooling(_known(mode, f"{place}: config.json"), bool(normalize)), length)


def settings_at(address: str, config: Any, **source: Any) -> EmbeddingSettings | None:
    """Returns the settings of a model: of its configuration, or of the files of sentence-transformers; None if it has
    neither.

    Args:
        address: folder or Hub id.
        config: its configuration.
        source: revision and cache_dir of a Hub id.

    Raises:
        UsageError: its embeddings are made in another way, or a file cannot be read.
    """
    found = settings_in(config, address)
    if found is not None:
        return found
    modules = _read(address, _MODULES, **source)
    if modules is None:
        return None
    try:
        kinds = [(str(entry["type"]).rpartition(".")[2], str(entry.get("path", ""))) for entry in modules]
    except (TypeError, KeyError, AttributeError):
        raise UsageError(f"{address}: {_MODULES} cannot be read as a list of modules: copy it again") from None
    names = [name for name, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        others = [name for name in names if name not in ("Transformer", "Pooling", "Normalize")]
        wrong = f"the module {others[0]}, which is not supported" if others else f"the modules {listed(names)}"
        raise UsageError(
            f"{address}: {_MODULES} has {wrong}: an embedding is that of a Transformer, a Pooling and perhaps a "
            "Normalize, in this order"
        )
    if kinds[0][1]:
        raise UsageError(f"{address}: its encoder is in the folder {kinds[0][1]}: move those files next to {_MODULES}")
    _check_prompt(address, **source)
    pooling = Pooling(_mode(address, kinds[1][1], **source), names[-1] == "Normalize")
    return EmbeddingSettings(pooling, _length(address, **source))


def _mode(address: str, folder: str, **source: Any) -> str:
    entries = _read(address, f"{folder}/config.json", **source)
    if not isinstance(entries, Mapping):
        raise UsageError(f"{address}: {folder}/config.json is missing: copy it from the model's origin")
    mode = entries.get("pooling_mode")
    if mode is None:
        on = [name for key, name in _OLD_MODES.items() if entries.get(key)]
        mode = on[0] if len(on) == 1 else tuple(on) or "mean"
    if isinstance(mode, list | tuple) and len(mode) == 1:
        mode = mode[0]
    return _known(mode, f"{address}: {folder}/config.json")


def _known(mode: Any, place: str) -> str:
    if mode not in MODES:
        name = (
            mode if isinstance(mode, str) else " and ".join(map(str, mode)) if isinstance(mode, list | tuple) else mode
        )
        raise UsageError(f"{place}: the pooling {name} is not supported, only {' and '.join(MODES)}")
    return str(mode)


def _check_prompt(address: str, **source: Any) -> None:
    settings = _read(address, "config_sentence_transformers.json", **source) or {}
    name = settings.get("default_prompt_name")
    if name and settings.get("prompts", {}).get(name):
        raise UsageError(
            f"{address}: every text gets the prompt '{name}' of config_sentence_transformers.json, which is not "
            "supported: set default_prompt_name to null there, and write the prompt into the texts"
        )


def _length(address: str, **source: Any) -> int | None:
    settings = _read(address, "sentence_bert_config.json", **source) or {}
    if settings.get("do_lower_case"):
        raise UsageError(
            f"{address}: do_lower_case in sentence_bert_config.json is not supported: set it to false, and use a "
            "tokenizer that lower-cases, or lower-case the texts"
        )
    length = settings.get("max_seq_length")
    return int(length) if isinstance(length, int) else None


def _read(address: str, name: str, **source: Any) -> Any:
    """Returns the content of a JSON file of a model; None if the model has none.

    Raises:
        UsageError: it cannot be read, or the Hub cannot be reached.
    """
    known = {key: value for key, value in source.items() if key in ("revision", "cache_dir") and value is not None}
    try:
        path = cached_file(address, name, _raise_exceptions_for_missing_entries=False, **known)
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{address}: {name} cannot be read: {str(error).splitlines()[0][:200]}") from error


def settings_of_run(arguments: SentenceEmbeddingArguments) -> EmbeddingSettings:
    """Returns the settings of the model, completed by the flags; training sets how many tokens of a text count.

    Raises:
        UsageError: a flag contradicts the model's own pooling, or that is not supported.
    """
    own = _own_settings(arguments)
    if own is None:
        normalize = True if arguments.normalize is None else arguments.normalize
        return EmbeddingSettings(Pooling(arguments.pooling or "mean", normalize), arguments.max_seq_length)
    asked = {"pooling": arguments.pooling, "normalize": arguments.normalize}
    has = {"pooling": own.pooling.mode, "normalize": own.pooling.normalize}
    for key, value in asked.items():
        if value not in (None, has[key]):
            raise UsageError(
                f"--{key} {str(value).lower()}: {arguments.model_name_or_path} has {key} {str(has[key]).lower()}, and "
                f"its weights were trained with it: leave out --{key}."
            )
    return EmbeddingSettings(own.pooling, arguments.max_seq_length) if arguments.do_train else own


def warn_of_settings(arguments: SentenceEmbeddingArguments) -> None:
    """Warns of a run without training whose flags say what the model does not, or otherwise than the model."""
    own, name, length = _own_settings(arguments), arguments.model_name_or_path, arguments.max_seq_length
    if own is None:
        pooling = settings_of_run(arguments).pooling
        made = f"the {'mean of all tokens' if pooling.mode == 'mean' else 'first token'}"
        made += ", normalized" if pooling.normalize else ", not normalized"
        warn(f"{name} does not say how tokens become an embedding: here it is {made} (--pooling, --normalize)")
    elif own.max_seq_length is not None and length < own.max_seq_length:
        warn(f"--max_seq_length {length}: {name} reads up to {own.max_seq_length} tokens of a text elsewhere")


def _own_settings(arguments: SentenceEmbeddingArguments) -> EmbeddingSettings | None:
    flag, name = "--model_name_or_path", str(arguments.model_name_or_path)
    source = {"revision": arguments.model_revision, "cache_dir": arguments.cache_dir}
    address = model_address(flag, name, arguments.cache_dir)
    try:
        return settings_at(address, AutoConfig.from_pretrained(address, **source), **source)
    except UsageError as error:
        raise UsageError(f"{flag} {error}") from error


def sentence_transformers_files(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Returns the files that sentence-transformers reads, by path: `SentenceTransformer(folder)` then gives the same
    embeddings."""
    settings = settings_in(model.config, "the model")
    assert settings is not None
    kinds = ["Transformer", "Pooling", *(["Normalize"] if settings.pooling.normalize else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    chosen = {key: mode == settings.pooling.mode for key, mode in _OLD_MODES.items()}
    most = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length, settings.max_seq_length]
    length = min(each for each in most if each is not None and each > 0)
    return {
        _MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": model.config.hidden_size, **chosen},
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"},
    }
