"""Tags: the scheme is found, or what fits none is refused; entities are read and kept; labels have an order."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparse_accel.errors import UsageError
from sparse_accel.tasks.token_classification.tags import (
    BIOES,
    IOB1,
    IOB2,
    PLAIN,
    check_entity_tags,
    convert,
    find_scheme,
    is_valid,
    label_names,
    spans,
)

SCHEMES = (IOB1, IOB2, BIOES)
types = st.sampled_from(["PER", "LOC", "creative-work", "B", "O", ""])


@st.composite
def entities(draw: st.DrawFn) -> tuple[int, list[tuple[str, int, int]]]:
    """Number of words, and the entities among them."""
    found, word = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=5)):
        found.append((draw(types), word + gap, word + gap + length))
        word += gap + length
    return word + draw(st.integers(0, 2)), found


def tags_of(letters: str) -> st.SearchStrategy[list[str]]:
    """Tags in any order: most are no valid sequence."""
    tag = st.tuples(st.sampled_from(letters), st.sampled_from(["PER", "LOC"])).map("-".join)
    return st.lists(st.just("O") | tag, max_size=10)


def scheme_of(*sentences: str) -> str:
    return find_scheme([sentence.split() for sentence in sentences], lambda sentence, token: f"{sentence}, {token}")


# --- schemes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["O B-PER I-PER O", "B-LOC B-LOC O"], IOB2),
        (["O I-PER I-PER O", "I-LOC B-LOC O"], IOB1),
        (["O I-PER I-LOC O"], IOB1),
        (["I-PER B-PER", "B-LOC"], IOB2),  # B begins an entity after nothing: one of the two is a slip
        (["B-PER O I-PER"], IOB2),
        (["I-PER I-LOC B-PER"], IOB2),
        (["B-NP I-NP B-VP"], IOB2),
        (["O B-creative-work I-creative-work"], IOB2),
        (["O B_PER I_PER"], IOB2),
        (["O B I I O B"], IOB2),
        (["O I I O I B"], IOB1),
        (["O B-PER I-PER E-PER S-LOC"], BIOES),
        (["O B-PER I-PER L-PER U-LOC"], BIOES),
        (["O B-PER M-PER E-PER W-LOC"], BIOES),
        (["O B M E S"], BIOES),
        (["O S-PER O"], BIOES),
        (["DT NN -LRB- PRP$ NN-PL -RRB- . O"], PLAIN),
        (["DT PRP-X S-PL M-PL V-FIN"], PLAIN),
        (["N V P O S L U E"], PLAIN),
        (["PER LOC O"], PLAIN),
        (["Q-PER O"], PLAIN),
        (["O O O", "O"], PLAIN),
        ([], PLAIN),
    ],
)
def test_find_scheme(sentences: list[str], scheme: str) -> None:
    assert scheme_of(*sentences) == scheme


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (
            ["O B-PER", "O PER"],
            "1, 1: the tag 'PER' does not begin with B-, I- or another letter of a scheme, but others",
        ),
        (["O B-PER", "O PER"], "others mark entities, such as B-PER. Write O for a word outside of entities."),
        (["O PER LOC ORG B-PER"], "0, 1: the tag 'PER' does not begin with"),
        (["B-NP I-NP", "_ B-VP"], "1, 0: the tag '_' does not begin with"),
        (["B-NP O o"], "0, 2: the tag 'o' does not begin with"),
        (["B-PER O Q-PER"], "0, 2: the tag 'Q-PER' begins with Q-, which is in no scheme (IOB: B- and I-; BIOES: also"),
        (["B-PER O O-PER"], "0, 2: the tag 'O-PER' begins with O-"),
        (["B-PER I O"], "0, 1: the tag 'I' has no type, but others mark entities, such as B-PER."),
        (["B-PER I- O"], "0, 1: the tag 'I-' has no type"),
        (["B-PER O IN"], "0, 2: the tag 'IN' does not begin with"),
        (
            ["O", "O PER-B PER-I O"],
            "1, 1: the tag 'PER-B' seems to mark an entity in an unsupported form. Write a",
        ),
        (["O b-per i-per"], "0, 1: the tag 'b-per' seems to mark an entity in an unsupported form."),
    ],
)
def test_tags_that_are_refused(sentences: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        scheme_of(*sentences)
    assert message in str(caught.value)


def test_check_entity_tags() -> None:
    def place(sentence: int, token: int) -> str:
        return f"{sentence}, {token}"

    check_entity_tags([["O"], ["B-PER", "U_LOC"]], place)
    check_entity_tags([["B", "I", "O"]], place)
    with pytest.raises(UsageError, match=r"^0, 1: the tag 'NN' .* such as B and I\."):
        check_entity_tags([["O", "NN", "B"]], place)


# --- entities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("I-PER I-PER B-PER I-LOC", [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4)]),
        ("O I-PER O I-PER", [("PER", 1, 2), ("PER", 3, 4)]),
        ("B-PER I-PER E-PER S-PER B-PER E-PER", [("PER", 0, 3), ("PER", 3, 4), ("PER", 4, 6)]),
        ("B-PER M-PER L-PER U-PER W-PER", [("PER", 0, 3), ("PER", 3, 4), ("PER", 4, 5)]),
        # What BIOES does not allow.
        ("E-PER E-PER I-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 3)]),
        ("S-PER I-PER E-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-PER S-PER B-PER E-LOC", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 3), ("LOC", 3, 4)]),
        # Ends only.
        ("I-PER E-PER E-PER I-PER", [("PER", 0, 2), ("PER", 2, 3), ("PER", 3, 4)]),
        ("B I O I", [("", 0, 2), ("", 3, 4)]),
        ("B_A-1 I-A-1 B-O", [("A-1", 0, 2), ("O", 2, 3)]),
        ("", []),
    ],
)
def test_spans(tags: str, found: list[tuple[str, int, int]]) -> None:
    for scheme in SCHEMES:
        assert spans(tags.split(), scheme) == found


@given(words_and_entities=entities(), scheme=st.sampled_from(SCHEMES), to=st.sampled_from(SCHEMES))
def test_conversion_keeps_entities(
    words_and_entities: tuple[int, list[tuple[str, int, int]]], scheme: str, to: str
) -> None:
    words, found = words_and_entities
    tags = ["O"] * words
    for type_, begin, end in found:
        tags[begin:end] = [f"{letter}-{type_}".rstrip("-") for letter in "B" + "I" * (end - begin - 1)]
    assert is_valid(tags, IOB2) and convert(tags, IOB2, IOB2) == tags
    tags = convert(tags, IOB2, scheme)
    assert is_valid(tags, scheme) and spans(tags, scheme) == found
    converted = convert(tags, scheme, to)
    assert is_valid(converted, to) and spans(converted, to) == found and len(converted) == words
    assert convert(converted, to, scheme) == tags


@given(tags=tags_of("BIESLUWM"), scheme=st.sampled_from(SCHEMES))
def test_conversion_of_any_tags_makes_them_valid(tags: list[str], scheme: str) -> None:
    converted = convert(tags, BIOES, scheme)
    assert is_valid(converted, scheme) and spans(converted, scheme) == spans(tags, BIOES)


@given(tags=tags_of("BIESLUWM"))
def test_spans_are_in_order_and_apart(tags: list[str]) -> None:
    found = spans(tags, BIOES)
    covered = [word for _, begin, end in found for word in range(begin, end)]
    assert covered == [word for word, tag in enumerate(tags) if tag != "O"]


@given(words_and_entities=entities(), scheme=st.sampled_from(SCHEMES))
def test_the_scheme_of_converted_tags_is_found(
    words_and_entities: tuple[int, list[tuple[str, int, int]]], scheme: str
) -> None:
    words, found = words_and_entities
    tags = ["O"] * words
    for type_, begin, end in found:
        tags[begin:end] = ["B-" + (type_ or "X")] + ["I-" + (type_ or "X")] * (end - begin - 1)
    assume(found)
    converted = convert(tags, IOB2, scheme)
    assert find_scheme([["O"], converted], lambda *_: "") == scheme


def test_other_letters_and_signs_are_those_of_bioes() -> None:
    for tags in ("B-A I-A L-A U-A O", "B_A M_A E_A W_A O"):
        assert convert(tags.split(), BIOES, BIOES) == ["B-A", "I-A", "E-A", "S-A", "O"]
        assert is_valid(tags.split(), BIOES)


@pytest.mark.parametrize(
    ("tags", "valid"),
    [
        ("B-A I-A O B-A B-A", {IOB2}),
        ("I-A I-A B-A I-B", {IOB1}),
        ("B-A E-A S-A", {BIOES}),
        ("B-A O I-A", set()),
        ("B-A I-B", set()),
        ("O O", {IOB1, IOB2, BIOES}),
    ],
)
def test_is_valid(tags: str, valid: set[str]) -> None:
    assert {scheme for scheme in SCHEMES if is_valid(tags.split(), scheme)} == valid
    assert is_valid(["NN", "-LRB-"], PLAIN)


def test_what_has_no_entities_is_refused() -> None:
    with pytest.raises(ValueError, match="plain tags do not mark entities"):
        spans(["S-PL"], PLAIN)
    for tag in ("NN", "Q-PER", "b-per", "B-", "-"):
        with pytest.raises(ValueError, match=f"'{tag}' is not an entity tag"):
            spans(["O", tag], IOB2)
    with pytest.raises(ValueError, match="'plain' is not an entity scheme"):
        convert(["O"], IOB2, PLAIN)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_label_names() -> None:
    tags = ["I-b", "S-a", "B-b", "O", "E-a", "B-a", "I-a", "B-B"]
    assert label_names([tags[:3], tags[3:]]) == ["O", "B-B", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b"]
    assert label_names([["NN", "-LRB-", "VB", "O", "."]]) == ["O", "-LRB-", ".", "NN", "VB"]
    assert label_names([["B_A", "B-A", "I-A"]]) == ["B-A", "B_A", "I-A"]
    assert label_names([["O", "I", "B"]]) == ["O", "B", "I"]
    assert label_names([]) == []


@given(tags=tags_of("BIES"))
def test_the_order_of_labels_does_not_depend_on_that_of_tags(tags: list[str]) -> None:
    assert label_names([tags]) == label_names([[tag] for tag in reversed(tags)])
    assert sorted(label_names([tags])) == sorted(set(tags))
