"""Score answers to items that have a right one: things named, phrases, yes or no, a choice."""

from __future__ import annotations

import re

from tgalign.evaluate.items import Item

_YES_NO = re.compile(r"\b(yes|no)\b")
_CHOICE = re.compile(
    r"^\W*([a-z])(?:[.):,]|\s*$)|\(([a-z])\)|"
    r"\b(?:answer|option|choice)(?: is|:)? *\(?([a-z])\)?(?:\W|$)"
)


def score(item: Item, answer: str) -> tuple[int, int]:
    """How much of what an item's answer must hold stands in it.

    - ``names``: the lab's names, the longest first (``sun hat`` does not name ``sun``);
    - ``contains``: every target stands in the answer as whole words (a target of MM-Vet's form
      ``a<OR>b`` is met by either). This is inclusion, not the GPT-4 score of MM-Vet's paper;
    - ``yes_no``: the first "yes" or "no" is the target (as POPE's authors read answers, but that an
      answer with neither is wrong, not "no");
    - ``choice``: the letter that opens the answer, follows "answer is", or stands in brackets.

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
    pattern = _YES_NO if item.scoring == "yes_no" else _CHOICE
    match = pattern.search(said)
    letter = next((group for group in match.groups() if group), None) if match else None
    return int(letter == item.targets[0].casefold()), 1


def _stands(target: str, said: str) -> bool:
    return any(
        re.search(rf"(?<!\w){re.escape(form.strip().casefold())}(?!\w)", said)
        for form in target.split("<OR>")
        if form.strip()
    )
