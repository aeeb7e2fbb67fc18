# ruff: noqa: E501 - tables of words, one line a thing
"""Says a scene in plain English, in as many ways as people do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .backgrounds import BACKGROUNDS
from .scenes import RELATIONS, STAR
from .subjects import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from .scenes import Scene

_PREFIXES = (
    "a photo of ", "a photo of ", "A photo of ", "a picture of ", "an image of ", "a drawing of ", "a painting of ",
    "a 3d render of ", "an illustration of ", "a photograph of ", "a cartoon of ", "an emoji of ", "there is ", "i want ",
    "show me ", "please draw ", "draw ", "a scene with ", "a close up of ", "a rendering of ",
)  # fmt: skip
_SUFFIXES = (
    "high quality", "highly detailed", "4k", "8k", "digital art", "masterpiece", "best quality", "3d", "cute style",
    "beautiful lighting", "trending on artstation", "sharp focus", "colorful", "cinematic", "photorealistic", "award winning",
)  # fmt: skip
_MOODS = (
    "cute", "happy", "funny", "beautiful", "cool", "friendly", "lovely", "nice", "pretty", "smiling", "sweet", "adorable",
    "shiny", "colorful", "cheerful", "magnificent", "brave", "lonely", "fluffy", "old", "young", "fancy", "wonderful",
)  # fmt: skip
_UNKNOWN = (
    "quantum", "yesterday", "marketing", "baroque", "holographic", "very", "really", "vintage", "isometric", "surreal",
    "democracy", "impressionist", "synthwave", "minimalist", "somewhere", "philosophy", "dreamy", "epic", "moody",
    "kubernetes", "retro", "futuristic", "my favourite", "some kind of", "lorem ipsum", "bokeh", "studio ghibli", "the year 1984",
    "breakfast", "mysterious", "calm", "wild", "electric", "golden hour", "monday", "strategy", "wide angle", "pixar",
)  # fmt: skip
_JUNK = (
    "blurry", "low quality", "worst quality", "ugly", "deformed", "bad anatomy", "watermark", "text", "jpeg artifacts", "extra fingers",
    "out of focus", "disfigured", "mutated", "cropped", "lowres", "signature", "username", "duplicate", "bad proportions", "grainy",
)  # fmt: skip
_SYLLABLES = [
    "ba",
    "be",
    "bo",
    "da",
    "de",
    "du",
    "fi",
    "fo",
    "ga",
    "gi",
    "ha",
    "he",
    "jo",
    "ka",
    "ki",
    "ko",
    "la",
    "li",
    "lo",
    "ma",
    "mi",
    "mo",
    "na",
    "no",
    "pa",
    "pe",
    "ra",
    "ri",
    "ro",
    "sa",
    "si",
    "ta",
    "ti",
    "to",
    "va",
    "vi",
    "wa",
    "xo",
    "ya",
    "zu",
]
_SIZES = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge", "giant")}
_SIDES = {
    "left": ("on the left", "on the left side", "at the left", "to the left"),
    "right": ("on the right", "on the right side", "at the right", "to the right"),
}
_RELATIONS = {
    "riding": ("riding", "riding", "riding", "riding on", "sitting on", "on top of", "on the back of", "on"),
    "next to": ("next to", "next to", "beside", "and", "with", "near", "standing next to", "by the side of"),
    "above": ("above", "above", "over", "floating above", "hovering over", "high above"),
    "under": ("under", "under", "below", "beneath", "underneath"),
    "holding": ("holding", "holding", "with", "carrying", "who holds", "showing"),
    "in front of": ("in front of", "in front of", "standing in front of", "before"),
    "behind": ("behind", "behind", "standing behind", "hiding behind"),
}
_NUMBERS = {2: ("two", "two", "2", "a pair of", "a couple of"), 3: ("three", "three", "3", "a group of three")}


def article(noun: str) -> str:
    """Return "a" or "an", as the noun asks for."""
    sounds_you = noun.startswith(("uni", "ufo", "eu"))
    return "an" if noun[0] in "aeiou" and not sounds_you else "a"


def _unknown(rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_UNKNOWN)
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def noun_phrase(subject: Subject, rng: Random, *, count: int = 1, size: str = "", plainly: bool = False) -> str:
    """Name a subject with its article or number.

    Args:
        subject: What to name.
        rng: Source of chance.
        count: How many.
        size: "small", "large" or "".
        plainly: The canonical name and no adjective.
    """
    names = subject.names
    singular, plural = names[0] if plainly or rng.random() < 0.6 else rng.choice(names)
    words: list[str] = []
    if size:
        words.append(_SIZES[size][0] if plainly else rng.choice(_SIZES[size]))
    if not plainly and rng.random() < 0.12:
        words.append(rng.choice(_MOODS))
    if not plainly and rng.random() < 0.03:
        words.append(_unknown(rng))
    if count > 1:
        return " ".join([_NUMBERS[count][0] if plainly else rng.choice(_NUMBERS[count]), *words, plural])
    phrase = " ".join([*words, singular])
    if not plainly and rng.random() < 0.06:
        return phrase
    if not plainly and rng.random() < 0.05:
        return f"the {phrase}"
    return f"{article(phrase)} {phrase}"


def naming(subject: Subject, rng: Random) -> str:
    """Name a subject as people do in a negative prompt: mostly its bare name."""
    odds = rng.random()
    if odds < 0.3:
        return f"{article(subject.name)} {subject.name}"
    if odds < 0.6:
        return rng.choice(rng.choice(subject.names))
    return noun_phrase(subject, rng)


def junk(rng: Random) -> str:
    """Write a negative prompt that names nothing a scene could show."""
    return ", ".join(rng.sample(_JUNK, rng.randint(1, 5)))


def _join(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def caption(scene: Scene, rng: Random) -> str:
    """Say a scene; sometimes only part of it, so that a prompt need not be complete.

    Args:
        scene: What to say.
        rng: Source of chance.
    """
    background = BACKGROUNDS[scene.background]
    if not scene.items:
        return _decorate(rng.choice(background.nouns if rng.random() < 0.8 else background.phrases), rng)
    if rng.random() < 0.05:  # keywords
        words = [rng.choice(s.names)[0 if scene.count == 1 else 1] for s in scene.items]
        words += [background.name] if rng.random() < 0.7 else []
        return ", ".join(words) if rng.random() < 0.5 else " ".join(words)
    place = rng.choice(background.phrases) if rng.random() < 0.88 else ""
    if len(scene.items) == 1:
        core = noun_phrase(scene.items[0], rng, count=scene.count, size=scene.size if rng.random() < 0.9 else "")
        side = rng.choice(_SIDES[scene.side]) if scene.side and rng.random() < 0.92 else ""
        extras = [text for text in (side, place) if text]
        if rng.random() < 0.3:
            extras.reverse()
        text = _place(core, ", ".join(extras) if len(extras) > 1 and rng.random() < 0.3 else " ".join(extras), rng)
    elif scene.relation == 0:
        text = _place(_join([noun_phrase(s, rng) for s in scene.items]), place, rng)
    else:
        text = _relation(scene, place, rng)
    return _decorate(text, rng)


def _place(core: str, place: str, rng: Random) -> str:
    if not place:
        return core
    odds = rng.random()
    if odds < 0.74:
        return f"{core} {place}"
    if odds < 0.86:
        return f"{core}, {place}"
    return f"{place}, {core}"


def _relation(scene: Scene, place: str, rng: Random) -> str:
    first, second = (noun_phrase(s, rng) for s in scene.items)
    relation = RELATIONS[scene.relation]
    verb = rng.choice(_RELATIONS[relation])
    odds = rng.random()
    if relation == "riding" and odds < 0.15:
        verb = rng.choice(("rides", "is riding", "sits on", "who rides"))
    elif relation == "holding" and odds < 0.15:
        verb = rng.choice(("holds", "is holding", "carries"))
    elif odds > 0.92:
        verb = f"is {verb}" if verb not in {"and", "with", "who holds"} else verb
    if relation == "holding" and odds > 0.88:
        return _place(f"{first} with {second} in hand", place, rng)
    if relation == "next to" and odds < 0.2:
        first, second = second, first
    if place and rng.random() < 0.12:
        return f"{first} {place} {verb} {second}"
    return _place(f"{first} {verb} {second}", place, rng)


def _decorate(text: str, rng: Random) -> str:
    if rng.random() < 0.45:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.10:
        text = f"{text}, {rng.choice(_SUFFIXES)}" + (f", {rng.choice(_SUFFIXES)}" if rng.random() < 0.4 else "")
    if rng.random() < 0.07:
        text = f"{text}, {_unknown(rng)}" if rng.random() < 0.5 else f"{_unknown(rng)} {text}"
    if rng.random() < 0.08:
        text += "."
    return text


def plain_prompt(scene: Scene) -> str:
    """Say a scene in the one way that the scores use: canonical names, no decoration.

    Args:
        scene: What to say.
    """
    background = BACKGROUNDS[scene.background]
    place = background.phrases[0]
    if scene.relation:
        first, second = (f"{article(s.name)} {s.name}" for s in scene.items)
        return f"a photo of {first} {RELATIONS[scene.relation]} {second} {place}"
    subject = scene.items[0]
    if scene.count > 1:
        return f"a photo of {_NUMBERS[scene.count][0]} {subject.names[0][1]} {place}"
    return f"a photo of {article(subject.name)} {subject.name} {place}"


SEED_PROMPT = f"A photo of an {STAR[0]} {STAR[1]} a {STAR[2]} on the {STAR[3]}"
