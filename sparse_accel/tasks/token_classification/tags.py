"""Tags of words, the entities that they mark, and how both meet the pieces (sub-tokens) that a tokenizer makes of them.

A tag is a letter and the entity's type, B-PER, or O outside of all entities. The letters tell where an entity begins
and ends, by one of these schemes:

- IOB1: I- in an entity; B- only where the entity before, of the same type, ends (CoNLL-2003 as it was published);
- IOB2: B- on the first word, I- on the others (CoNLL-2002 and most others);
- BIOES: as IOB2, with E- on the last word, and S- on an entity of one word. BILOU and BMEWO write L, U, W and M for E,
  S, S and I. What marks ends only (IOE1, IOE2) is read right as well;
- plain: a tag says all itself, such as a part of speech, and no entities are marked.

An underscore may stand for the hyphen, and where there is one type of entities it may be left out: B, I, O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Set

from sparse_accel.errors import UsageError, shown
from sparse_accel.nn.losses import IGNORED

PLAIN, IOB1, IOB2, BIOES = "plain", "IOB1", "IOB2", "BIOES"
OUTSIDE = "O"

# Each letter as BIOES has it.
_LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_TYPED = re.compile("([BIMELSUW])[-_](.+)")
_BEGIN = re.compile("B([-_].+)?")
_OTHER_PREFIX = re.compile("[A-Z][-_].+")
# The letter at the end, or a small one: what other tools mark entities with.
_NEARLY_TYPED = re.compile("[bimelsuw][-_].+|.+[-_][BIMELSUW]")
_ORDER = "BIMELSUW"

Tags = Sequence[str]
Span = tuple[str, int, int]


def find_scheme(sentences: Sequence[Tags], place: Callable[[int, int], str]) -> str:
    """Returns the scheme of a file's tags: PLAIN, IOB1, IOB2 or BIOES.

    Tags mark entities when one of them, at least, is a known letter with a hyphen or underscore and a type, and also
    either all but O are, or O occurs, or a type X has both B-X and I-X. So tags with a hyphen in them (-LRB-, NN-PL,
    PRP-X) are plain, and among them one that looks like an entity's (S-PL). Tags without a type mark entities when
    there are no others than letters and O, with B or I among them.

    Letters other than B and I: BIOES. An entity begins with I, and B is only where it continues the type before: IOB1.
    Else IOB2, also when some entity begins with I nonetheless; `is_valid` tells.

    Args:
        sentences: tags of each.
        place: tells where a word of a sentence is, both counted from 0, for messages.

    Raises:
        UsageError: tags mark entities, and one of them has no letter, an unknown one or no type; or all have the letter
            where no scheme has it.
    """
    found = {tag for tags in sentences for tag in tags}
    entity_tags = found - {OUTSIDE}
    typed = {tag for tag in entity_tags if _TYPED.fullmatch(tag)}
    untyped_entities = bool(entity_tags & {"B", "I"}) and entity_tags <= _LETTERS.keys()
    if not typed and not untyped_entities:
        if OUTSIDE in found and entity_tags and all(_NEARLY_TYPED.fullmatch(tag) for tag in entity_tags):
            sentence, token, tag = _first(sentences, entity_tags)
            raise UsageError(
                f"{place(sentence, token)}: the tag {shown(tag)} seems to mark an entity in a way that is "
                "not read. Write the letter first, and as a capital: B-PER, I-PER."
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
    """Raises UsageError for the first tag that cannot mark an entity; either all tags but O have a type, or none has.

    Args:
        sentences: tags of each.
        place: as for `find_scheme`.
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
        what = f"begins with {tag[:2]}, which no scheme has (IOB: B- and I-; BIOES: also E- and S-)"
    else:
        what = "does not begin with B-, I- or another letter of a scheme"
    raise UsageError(
        f"{place(sentence, token)}: the tag {shown(tag)} {what}, and others mark entities, {example}. Write O for a "
        "word outside of all entities."
    )


def _first(sentences: Sequence[Tags], wanted: Set[str]) -> tuple[int, int, str]:
    """The first tag that is among the wanted ones: its sentence, its word, and itself."""
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
    """A tag as ("B", "PER"), the letter as BIOES has it; ("O", "") outside."""
    if tag == OUTSIDE or tag in _LETTERS:
        return _LETTERS.get(tag, tag), ""
    match = _TYPED.fullmatch(tag)
    if match is None:
        raise ValueError(f"{tag!r} is no tag of an entity")
    return _LETTERS[match[1]], match[2]


def spans(tags: Tags, scheme: str) -> list[Span]:
    """Returns the entities of a sentence as (type, first word, word after the last one), in their order.

    Sequences that no scheme allows, such as a model predicts, are read as seqeval reads them in its default mode, and
    where there are B and I only, conlleval: B and S begin an entity always; I and E go on with the entity of the same
    type whose B or I is just before them, and else begin one; E and S end it. By this rule valid sequences are read
    right, whatever their scheme. (conlleval does not know S, and joins an entity that ends with E to a B after it.)

    Args:
        tags: of the sentence.
        scheme: what `find_scheme` found.

    Raises:
        ValueError: plain tags, or one that marks no entity.
    """
    if scheme == PLAIN:
        raise ValueError("plain tags mark no entities")
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

    In its own scheme an invalid sequence becomes the valid one that `spans` reads in it.

    Raises:
        ValueError: as `spans`, or no such scheme to convert to.
    """
    if to not in (IOB1, IOB2, BIOES):
        raise ValueError(f"{to!r} is no scheme of entities")
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
    """Whether a sentence keeps to the rules of its scheme; `spans` reads others as it can. Plain tags have no rules."""
    if scheme == PLAIN:
        return True
    found = [_letter_and_type(tag) for tag in tags]
    return found == [_letter_and_type(tag) for tag in convert(tags, scheme, scheme)]


def label_names(sentences: Iterable[Tags]) -> list[str]:
    """Returns the distinct tags in their order as labels: O first, others by type, by code point, B- before I-, E-, S-.

    A tag without letter and hyphen is its own type.
    """

    def order(tag: str) -> tuple[bool, str, int, str]:
        match = _TYPED.fullmatch(tag)
        return (tag != OUTSIDE, match[2], _ORDER.index(match[1]), tag) if match else (tag != OUTSIDE, tag, -1, tag)

    return sorted({tag for tags in sentences for tag in tags}, key=order)


# --- pieces of words --------------------------------------------------------------------------------------------------


def inside_labels(names: Sequence[str]) -> list[int]:
    """Returns, for each label, the one of a word's pieces after its first: that of I-X for B-X, if any, else itself.

    Meant for IOB1 and IOB2, where an entity of one word then has tags of the scheme on all of its pieces.
    """
    numbers = {name: number for number, name in enumerate(names)}
    return [
        numbers.get(f"I{name[1:]}", number) if _BEGIN.fullmatch(name) else number for number, name in enumerate(names)
    ]


def align(
    word_ids: Sequence[int | None], labels: Sequence[int], *, all_tokens: bool, inside: Sequence[int]
) -> list[int]:
    """Returns the labels of a sentence's pieces, as Hugging Face's run_ner.py gives them.

    Args:
        word_ids: number of each piece's word; None for special tokens.
        labels: of the words, as numbers.
        all_tokens: whether a word's pieces after its first have a label as well (--label_all_tokens).
        inside: for each label, the one that those pieces have: `inside_labels`.

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

    Each part takes as many words as fit. If the next word continues an entity that began in this part, the part ends
    before that entity instead. Parts then depend on the tags: leave `inside` out where a model is judged, since it
    gets rows without tags later.

    Args:
        lengths: number of pieces of each word.
        limit: most pieces of a part, 1 or more; a longer word is a part of its own.
        inside: whether each word continues the entity of the word before.

    Raises:
        ValueError: no piece is allowed.
    """
    if limit < 1:
        raise ValueError(f"parts of {limit} pieces")
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
