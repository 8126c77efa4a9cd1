"""Score answers to items that have a right one: things named, phrases, yes or no, a choice."""

from __future__ import annotations

import re

from tgalign.evaluate.items import Item

_YES_NO = re.compile(r"\b(yes|no)\b")
_FLAGS = re.IGNORECASE | re.MULTILINE
# A letter in brackets; one that ends a phrase; or a capital one: "a solid" is no choice.
_LETTER = r"(?:\(([a-z])\)|\b([a-z])(?=[.,:;!?)*]|\s*$)|\b(?-i:([A-Z]))\b)"
_NAMED = r"\b(?:answer|option|choice)"
_CHOICES = (
    re.compile(r"\A\W*([a-z])(?:[.):,]|\s*$)", _FLAGS),
    re.compile(rf"{_NAMED}(?: is:?|:)[\s*]*(?:option |choice )?{_LETTER}", _FLAGS),
    re.compile(rf"(?<!\w)\(([a-z])\)|{_NAMED} {_LETTER}", _FLAGS),
)
"""Where a choice is looked for: the last match of the first that has one."""


def score(item: Item, answer: str) -> tuple[int, int]:
    """How much of what an item's answer must hold stands in it.

    - ``names``: the lab's names, the longest first (``sun hat`` does not name ``sun``);
    - ``contains``: every target stands in the answer as whole words (a target of MM-Vet's form
      ``a<OR>b`` is met by either). This is inclusion, not the GPT-4 score of MM-Vet's paper;
    - ``yes_no``: the first "yes" or "no" is the target (as POPE's authors read answers, but that an
      answer with neither is wrong, not "no");
    - ``choice``: the letter that opens the answer; else the last that "answer is" names; else the
      last in brackets or after "option". Small ones outside brackets must end a phrase: "the answer
      is a magnet" chooses nothing.

    Returns:
        Targets met, and targets.
    """
    if not item.targets:
        return 0, 0
    said = answer.casefold().strip()
    if item.scoring == "names":
        from tgalign.lab.language import things_named

        found = things_named(said)
        return sum(name in found for name in item.targets), len(item.targets)
    if item.scoring == "contains":
        return sum(_stands(target, said) for target in item.targets), len(item.targets)
    if item.scoring == "choice":
        given = _choice(answer)
    else:
        match = _YES_NO.search(said)
        given = match[0] if match else None
    return int(given == item.targets[0].casefold()), 1


def _choice(answer: str) -> str | None:
    for pattern in _CHOICES:
        letters = [match[match.lastindex or 0] for match in pattern.finditer(answer)]
        if letters:
            return letters[-1].casefold()
    return None


def _stands(target: str, said: str) -> bool:
    return any(
        re.search(rf"(?<!\w){re.escape(form.strip().casefold())}(?!\w)", said)
        for form in target.split("<OR>")
        if form.strip()
    )
