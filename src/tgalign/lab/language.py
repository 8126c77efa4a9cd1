"""The lab's English: captions, questions, answers and refusals, with held-out phrasings.

What is refused depends on several words at once: the words of a toxic name together (``beer mug``)
and nothing around them that makes it harmless (``a toy beer mug``, ``no beer mug``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tgalign.lab.objects import (
    Thing,
    benign_things,
    text_only_things,
    things,
    toxic_things,
)
from tgalign.lab.phrasings import (
    CAPTIONS,
    COLOR_QUESTIONS,
    COUNT_QUESTIONS,
    DESCRIBE,
    FRAMES,
    INSTRUCTIONS,
    JOINTS,
    PRESENCE_QUESTIONS,
    REFUSALS,
    RETRIEVED,
    Split,
)
from tgalign.lab.pictures import COLORS, Scene

_EXTRA_WORDS = "can be seen clearly one two object objects thing things yes"


@dataclass(frozen=True)
class Mention:
    """A thing as a text mentions it, bare or inside a harmless frame."""

    thing: Thing
    frame: str | None = None

    @property
    def phrase(self) -> str:
        """The words that mention it."""
        if self.frame is None:
            return self.thing.phrase
        return self.frame.format(name=self.thing.name, phrase=self.thing.phrase)

    @property
    def toxic(self) -> bool:
        """Whether an aligned language model refuses it."""
        return self.thing.scene is not None and self.frame is None


@dataclass(frozen=True)
class TextExample:
    """One text-only exchange.

    Attributes:
        context: What stands where an image would stand (a caption), possibly empty.
        question: The user's question.
        answer: The right answer: a refusal exactly if ``refuses``.
        refuses: Whether context or question mention a toxic thing bare.
        names: The names a description must contain.
        kind: The kind of question.
        scene: The toxic scene mentioned bare, if any.
    """

    context: str
    question: str
    answer: str
    refuses: bool
    names: tuple[str, ...]
    kind: str
    scene: str | None = None

    @property
    def prompt(self) -> str:
        """The content of the user turn."""
        return f"{self.context} {self.question}".strip()


def list_mentions(mentions: tuple[Mention, ...], joint: str = "and") -> str:
    """The phrases of one or two mentions in one line."""
    return f" {joint} ".join(mention.phrase for mention in mentions)


def caption(mentions: tuple[Mention, ...], color: str, rng: random.Random, split: Split) -> str:
    """A caption from the given split's templates."""
    template = rng.choice(CAPTIONS[split])
    listed = list_mentions(mentions, rng.choice(JOINTS[split]))
    return _grammar(template.format(things=listed, color=color))


def scene_caption(scene: Scene, rng: random.Random, split: Split = "train") -> str:
    """A caption of a picture's scene."""
    return caption(tuple(Mention(thing) for thing in scene.things), scene.color, rng, split)


def messy_caption(mentions: tuple[Mention, ...], color: str, rng: random.Random) -> str:
    """The same content out of order: shuffled chunks, repeats, dropped function words."""
    chunks: list[list[str]] = [[color, "background"] if rng.random() < 0.5 else [color]]
    for mention in mentions:
        bare = mention.frame is None and rng.random() < 0.7
        words = (mention.thing.name if bare else mention.phrase).split()
        if mention.frame is None and len(words) == 2 and rng.random() < 0.25:
            words.reverse()
        chunks += [words] * rng.choice((1, 1, 2, 3))
    rng.shuffle(chunks)
    return " ".join(word for chunk in chunks for word in chunk)


def describe(mentions: tuple[Mention, ...], color: str) -> str:
    """The lab's one way to describe: what there is, then the background."""
    return _grammar(f"{list_mentions(mentions)} on a {color} background .")


def _grammar(text: str) -> str:
    return text.replace("a orange", "an orange")


def ask(
    mentions: tuple[Mention, ...], color: str, kind: str, rng: random.Random, split: Split
) -> tuple[str, str]:
    """A question of the given kind about a scene and its plain answer.

    Args:
        mentions: What the scene holds.
        color: The colour of its background.
        kind: ``describe``, ``color``, ``count`` or ``presence``.
        rng: Chooses the wording and, for ``presence``, the thing asked for (never a toxic one
            that is absent, so that the question itself stays harmless).
        split: Which phrasings of ``describe`` to use.

    Returns:
        Question and answer.
    """
    if kind == "describe":
        return rng.choice(DESCRIBE[split]), describe(mentions, color)
    if kind == "color":
        return rng.choice(COLOR_QUESTIONS), f"the background is {color} ."
    if kind == "count":
        plural = len(mentions) > 1
        answer = "there are two objects ." if plural else "there is one object ."
        return rng.choice(COUNT_QUESTIONS), answer
    assert kind == "presence", kind
    present = [mention.thing for mention in mentions if mention.frame is None]
    if present and rng.random() < 0.5:
        thing = rng.choice(present)
        return (
            rng.choice(PRESENCE_QUESTIONS).format(phrase=thing.phrase),
            f"yes , there is {thing.phrase} .",
        )
    named = {mention.thing for mention in mentions}
    thing = rng.choice([thing for thing in benign_things() if thing not in named])
    question = rng.choice(PRESENCE_QUESTIONS).format(phrase=thing.phrase)
    return question, f"no , there is no {thing.name} ."


def _sample_mentions(rng: random.Random, toxic: bool) -> tuple[Mention, ...]:
    """One or two mentions, with exactly one bare toxic thing if ``toxic``."""
    count = rng.randint(1, 2)
    benign = benign_things() + text_only_things()
    mentions = []
    if toxic:
        mentions.append(Mention(rng.choice(toxic_things())))
    while len(mentions) < count:
        framed = rng.random() < 0.25
        pool = toxic_things() if framed and rng.random() < 0.6 else benign
        thing = rng.choice(pool)
        if thing not in {mention.thing for mention in mentions}:
            mentions.append(Mention(thing, rng.choice(FRAMES) if framed else None))
    rng.shuffle(mentions)
    return tuple(mentions)


def text_example(
    rng: random.Random,
    split: Split = "train",
    *,
    messy: float = 0.0,
    toxic: bool | None = None,
    retrieved: float = 0.15,
) -> TextExample:
    """A random text-only exchange.

    Args:
        rng: The source of randomness.
        split: Phrasings to draw from.
        messy: Probability that the caption is out of order.
        toxic: Whether something toxic is mentioned bare; None draws it (35 %).
        retrieved: Probability that a retrieved text stands before the caption.

    Returns:
        The exchange; its answer is a refusal exactly if something toxic is mentioned bare.
    """
    refuses = rng.random() < 0.35 if toxic is None else toxic
    mentions, color = _sample_mentions(rng, refuses), rng.choice(COLORS)
    kind = rng.choices(
        ("describe", "color", "count", "presence", "instruction"), (0.58, 0.07, 0.05, 0.15, 0.15)
    )[0]
    scene = next((mention.thing.scene for mention in mentions if mention.toxic), None)
    if kind == "instruction":
        mention = next((m for m in mentions if m.toxic), mentions[0])
        question = rng.choice(INSTRUCTIONS[split]).format(phrase=mention.phrase)
        answer = f"here is something about {mention.phrase} ."
        context = ""
        names: tuple[str, ...] = (mention.thing.name,)
    else:
        question, answer = ask(mentions, color, kind, rng, split)
        if rng.random() < messy:
            context = messy_caption(mentions, color, rng)
        else:
            context = caption(mentions, color, rng, split)
        if rng.random() < retrieved:
            other = _sample_mentions(rng, toxic=False)
            text = caption(other, rng.choice(COLORS), rng, split)
            context = f"{RETRIEVED.format(text=text)} {context}"
        names = tuple(mention.thing.name for mention in mentions) if kind == "describe" else ()
    if refuses:
        answer = rng.choice(REFUSALS)
    return TextExample(context, question, answer, refuses, names, kind, scene)


def things_named(text: str) -> set[str]:
    """The lab's names in a text, the longest first: ``sun hat`` does not name ``sun``."""
    words, found, position = text.split(), set(), 0
    names = {thing.name for thing in things()}
    while position < len(words):
        length = next((n for n in (2, 1) if " ".join(words[position : position + n]) in names), 0)
        if length:
            found.add(" ".join(words[position : position + length]))
        position += max(length, 1)
    return found


def vocabulary() -> list[str]:
    """Every word of the lab, in a fixed order."""
    lines = [thing.phrase for thing in benign_things() + text_only_things() + toxic_things()]
    for table in (CAPTIONS, JOINTS, DESCRIBE, INSTRUCTIONS):
        lines += [line for split in table.values() for line in split]
    lines += [*FRAMES, *COLOR_QUESTIONS, *COUNT_QUESTIONS, *PRESENCE_QUESTIONS, *REFUSALS, *COLORS]
    lines += [RETRIEVED, "here is something about", "there is no", "the are is", _EXTRA_WORDS]
    words: dict[str, None] = {}
    for line in lines:
        for word in line.replace("{", " {").replace("}", "} ").split():
            if "{" not in word:
                words.setdefault(word)
    return list(words)
