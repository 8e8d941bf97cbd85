"""Tags of words, the entities that they mark, and their alignment with the pieces (sub-tokens) of a tokenizer.

A tag is a letter and an entity type (B-PER), or O outside of entities. The letters mark the beginning and the end of
an entity, by one of these schemes:

- IOB1: I- inside an entity; B- only directly after an entity of the same type (CoNLL-2003 as published);
- IOB2: B- on the first word, I- on the others (CoNLL-2002 and most others);
- BIOES: as IOB2, with E- on the last word, and S- on an entity of one word. BILOU and BMEWO write L, U, W and M for E,
  S, S and I. Schemes that mark only ends (IOE1, IOE2) are read correctly too;
- plain: tags such as parts of speech, which do not mark entities.

An underscore may replace the hyphen, and with only one entity type the type may be omitted: B, I, O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Set

from sparse_accel.errors import UsageError, shown
from sparse_accel.nn.losses import IGNORED

PLAIN, IOB1, IOB2, BIOES = "plain", "IOB1", "IOB2", "BIOES"
OUTSIDE = "O"

# Each letter -> the letter of BIOES.
_LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_TYPED = re.compile("([BIMELSUW])[-_](.+)")
_BEGIN = re.compile("B([-_].+)?")
_OTHER_PREFIX = re.compile("[A-Z][-_].+")
# Unsupported ways to mark entities: the letter at the end, or in lower case.
_NEARLY_TYPED = re.compile("[bimelsuw][-_].+|.+[-_][BIMELSUW]")
_ORDER = "BIMELSUW"

Tags = Sequence[str]
Span = tuple[str, int, int]


def find_scheme(sentences: Sequence[Tags], place: Callable[[int, int], str]) -> str:
    """Returns the scheme of a file's tags: PLAIN, IOB1, IOB2 or BIOES.

    Tags mark entities if at least one of them is a known letter with a hyphen or underscore and a type, and also
    either all except O are, or O occurs, or a type X has both B-X and I-X. So tags that contain a hyphen (-LRB-, NN-PL,
    PRP-X) are plain, also with one among them that looks like an entity tag (S-PL). Tags without a type mark entities
    if all are letters or O, with B or I among them.

    Letters other than B and I: BIOES. If entities begin with I, and B only occurs directly after the same type: IOB1.
    Else IOB2, even if some entity begins with I; `is_valid` finds these.

    Args:
        sentences: tags of each sentence.
        place: returns the place of a word for messages, from (sentence, word), both from 0.

    Raises:
        UsageError: tags mark entities, but one of them has no letter, an unknown letter or no type; or all have the
            letter in an unsupported position.
    """
    found = {tag for tags in sentences for tag in tags}
    entity_tags = found - {OUTSIDE}
    typed = {tag for tag in entity_tags if _TYPED.fullmatch(tag)}
    untyped_entities = bool(entity_tags & {"B", "I"}) and entity_tags <= _LETTERS.keys()
    if not typed and not untyped_entities:
        if OUTSIDE in found and entity_tags and all(_NEARLY_TYPED.fullmatch(tag) for tag in entity_tags):
            sentence, token, tag = _first(sentences, entity_tags)
            raise UsageError(
                f"{place(sentence, token)}: the tag {shown(tag)} seems to mark an entity in an unsupported form. "
                "Write a capital letter first: B-PER, I-PER."
            )
        return PLAIN
    begun_and_continued = any(f"B{tag[1:]}" in typed for tag in typed if tag[0] == "I")
    if typed and typed != entity_tags and OUTSIDE not in found and not begun_and_continued:
        return PLAIN
    check_entity_tags(sentences, place)
    if {tag[0] for tag in entity_tags} - {"B", "I"}:
        return BIOES
    return IOB1 if _is_iob1(sentences) else IOB2


def check_entity_tags(sentences: Sequence[Tags], place: Callable[[int, int], str]) -> None:
    """Checks that all tags except O mark entities, and that all of them have a type, or none.

    Args:
        sentences: tags of each sentence.
        place: as for `find_scheme`.

    Raises:
        UsageError: for the first tag that does not mark an entity.
    """
    found = {tag for tags in sentences for tag in tags if tag != OUTSIDE}
    typed = {tag for tag in found if _TYPED.fullmatch(tag)}
    wrong = found - (typed or _LETTERS.keys())
    if not wrong:
        return
    sentence, token, tag = _first(sentences, wrong)
    example = f"such as {min(typed)}" if typed else "such as B and I"
    if tag[:1] in _LETTERS and tag[1:] in ("", "-", "_"):
        what = "has no type"
    elif _OTHER_PREFIX.fullmatch(tag):
        what = f"begins with {tag[:2]}, which is in no scheme (IOB: B- and I-; BIOES: also E- and S-)"
    else:
        what = "does not begin with B-, I- or another letter of a scheme"
    raise UsageError(
        f"{place(sentence, token)}: the tag {shown(tag)} {what}, but others mark entities, {example}. Write O for a "
        "word outside of entities."
    )


def _first(sentences: Sequence[Tags], wanted: Set[str]) -> tuple[int, int, str]:
    """Returns sentence, word and tag of the first tag that is in `wanted`."""
    return next(
        (sentence, token, tag)
        for sentence, tags in enumerate(sentences)
        for token, tag in enumerate(tags)
        if tag in wanted
    )


def _is_iob1(sentences: Sequence[Tags]) -> bool:
    begins_with_i = False
    for tags in sentences:
        open_type: str | None = None
        for tag in tags:
            letter, type_ = _letter_and_type(tag)
            if letter == "B" and type_ != open_type:
                return False
            begins_with_i |= letter == "I" and type_ != open_type
            open_type = None if letter == OUTSIDE else type_
    return begins_with_i


def _letter_and_type(tag: str) -> tuple[str, str]:
    """Returns a tag as (letter of BIOES, type), such as ("B", "PER"); ("O", "") outside of entities."""
    if tag == OUTSIDE or tag in _LETTERS:
        return _LETTERS.get(tag, tag), ""
    match = _TYPED.fullmatch(tag)
    if match is None:
        raise ValueError(f"{tag!r} is not an entity tag")
    return _LETTERS[match[1]], match[2]


def spans(tags: Tags, scheme: str) -> list[Span]:
    """Returns the entities of a sentence as (type, first word, word after the last one), in order.

    Invalid sequences, such as models predict, are read as by seqeval in its default mode and, with B and I only, as by
    conlleval: B and S always begin an entity; I and E continue the entity of the same type if its B or I is directly
    before them, else they begin one; E and S end it. With this rule, valid sequences of every scheme are read
    correctly. (conlleval does not support S, and joins an entity that ends with E and a B after it.)

    Args:
        tags: tags of the sentence.
        scheme: the scheme from `find_scheme`.

    Raises:
        ValueError: plain tags, or a tag that does not mark an entity.
    """
    if scheme == PLAIN:
        raise ValueError("plain tags do not mark entities")
    found: list[Span] = []
    open_type: str | None = None
    for word, tag in enumerate(tags):
        letter, type_ = _letter_and_type(tag)
        if letter in "IE" and type_ == open_type:
            found[-1] = (type_, found[-1][1], word + 1)
        elif letter != OUTSIDE:
            found.append((type_, word, word + 1))
        open_type = type_ if letter in "BI" else None
    return found


def convert(tags: Tags, scheme: str, to: str) -> list[str]:
    """Returns the tags of the same entities in another scheme, with hyphens: IOB1, IOB2 or BIOES.

    Converting an invalid sequence to its own scheme gives the valid sequence with the entities that `spans` reads.

    Raises:
        ValueError: as `spans`, or `to` is not an entity scheme.
    """
    if to not in (IOB1, IOB2, BIOES):
        raise ValueError(f"{to!r} is not an entity scheme")
    result = [OUTSIDE] * len(tags)
    before: Span | None = None
    for span in spans(tags, scheme):
        type_, begin, end = span
        letters = ["B"] + ["I"] * (end - begin - 1)
        if to == BIOES:
            letters[-1] = "E" if len(letters) > 1 else "S"
        elif to == IOB1 and (before is None or (before[0], before[2]) != (type_, begin)):
            letters[0] = "I"
        result[begin:end] = [f"{letter}-{type_}" if type_ else letter for letter in letters]
        before = span
    return result


def is_valid(tags: Tags, scheme: str) -> bool:
    """Whether a sentence follows the rules of its scheme; `spans` also reads others. Plain tags have no rules."""
    if scheme == PLAIN:
        return True
    found = [_letter_and_type(tag) for tag in tags]
    return found == [_letter_and_type(tag) for tag in convert(tags, scheme, scheme)]


def label_names(sentences: Iterable[Tags]) -> list[str]:
    """Returns the distinct tags in the order of labels: O, then by type (code point), B- before I-, E-, S-.

    A tag without letter and hyphen is a type.
    """

    def order(tag: str) -> tuple[bool, str, int, str]:
        match = _TYPED.fullmatch(tag)
        return (tag != OUTSIDE, match[2], _ORDER.index(match[1]), tag) if match else (tag != OUTSIDE, tag, -1, tag)

    return sorted({tag for tags in sentences for tag in tags}, key=order)


# --- pieces of words --------------------------------------------------------------------------------------------------


def inside_labels(names: Sequence[str]) -> list[int]:
    """Returns, for each label, the label of a word's pieces after the first: I-X for B-X, if it exists, else the same.

    For IOB1 and IOB2: the pieces of an entity of one word then follow the scheme.
    """
    numbers = {name: number for number, name in enumerate(names)}
    return [
        numbers.get(f"I{name[1:]}", number) if _BEGIN.fullmatch(name) else number for number, name in enumerate(names)
    ]


def align(
    word_ids: Sequence[int | None], labels: Sequence[int], *, all_tokens: bool, inside: Sequence[int]
) -> list[int]:
    """Returns the labels of a sentence's pieces, as in Hugging Face's run_ner.py.

    Args:
        word_ids: number of each piece's word; None for special tokens.
        labels: label number of each word.
        all_tokens: whether all pieces of a word have a label, not only the first (--label_all_tokens).
        inside: for each label, the label of the pieces after the first, from `inside_labels`.

    Returns:
        (pieces,): IGNORED for special tokens, and for pieces without a label.
    """
    result = []
    before: int | None = None
    for word in word_ids:
        if word is None:
            result.append(IGNORED)
        elif word != before:
            result.append(labels[word])
        else:
            result.append(inside[labels[word]] if all_tokens else IGNORED)
        before = word
    return result


def split_points(lengths: Sequence[int], limit: int, inside: Sequence[bool] | None = None) -> list[tuple[int, int]]:
    """Returns a sentence's parts of at most `limit` pieces, as (first word, word after the last one).

    Each part has as many words as fit. With `inside`, a part ends before an entity that would not fit into it
    completely. Parts then depend on the tags, so omit `inside` for evaluation: later rows have no tags.

    Args:
        lengths: number of pieces of each word.
        limit: maximum number of pieces of a part, 1 or more; a longer word is a separate part.
        inside: whether each word continues the entity of the previous word.

    Raises:
        ValueError: `limit` is less than 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    parts = []
    begin = 0
    while begin < len(lengths):
        end, pieces = begin + 1, lengths[begin]
        while end < len(lengths) and pieces + lengths[end] <= limit:
            pieces += lengths[end]
            end += 1
        if inside is not None and end < len(lengths) and inside[end]:
            end = next((word for word in range(end, begin, -1) if not inside[word]), end)
        parts.append((begin, end))
        begin = end
    return parts
