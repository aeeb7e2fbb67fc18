"""The pictures: fetched from npm by name and hash, decoded to RGBA, grouped into looks, and given legs to ride with."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .subjects import Subject, subjects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
INTEGRITY = "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="
TARBALL = "lobehub-fluent-emoji-3d-1.1.0.tgz"
SIZE = 256  # pixels; the pictures are square

_TONES = re.compile(r"-1f3f[b-f]")
_GENDER = re.compile(r"-200d-(2640|2642)$")
_HEAD = re.compile(r"^(1f468|1f469)(?=-200d-)")


def fetch(folder: Path) -> Path:
    """Get the picture package into a folder, unless it is there, and check it against the pinned hash.

    Args:
        folder: Where downloads are kept.

    Returns:
        The package's archive.

    Raises:
        ValueError: The archive is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / TARBALL
    if not archive.exists():
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    digest = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != INTEGRITY:
        raise ValueError(f"{archive} is not {PACKAGE}: its integrity is {digest}, expected {INTEGRITY}")
    return archive


def family(name: str) -> tuple[str, str]:
    """Split a picture's file name into the neutral code points and the gender.

    Args:
        name: File name without its ending, such as "1f469-1f3fd-200d-1f680".

    Returns:
        The neutral code ("1f9d1-200d-1f680") and "f", "m" or "".
    """
    plain = _TONES.sub("", name.replace("-fe0f", ""))
    gender = ""
    if match := _GENDER.search(plain):
        gender = "f" if match[1] == "2640" else "m"
        plain = _GENDER.sub("", plain)
    elif match := _HEAD.search(plain):
        gender = "f" if match[1] == "1f469" else "m"
        plain = _HEAD.sub("1f9d1", plain)
    return plain, gender


@dataclass(frozen=True)
class Sprites:
    """All pictures the composer draws with.

    Attributes:
        pixels: uint8 RGBA, shape [count, 256, 256, 4], straight alpha.
        boxes: float32 [count, 4], the opaque part as (left, top, right, bottom) in pixels.
        profiles: float32 [count, 256], for each column the topmost opaque row in pixels (256 where there is none).
        plain: For each subject, the picture in the default look.
        variants: For each subject, the pictures of all its looks (skin tones, genders), the default one first.
        seated: For each picture of a person, the same one with legs to ride with; others map to themselves.
        named: Pictures that belong to no subject, by name: scenery, and the guest that an adapter learns.
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    profiles: NDArray[np.float32]
    plain: list[int]
    variants: list[list[int]]
    seated: dict[int, int]
    named: dict[str, int]


_SCENERY = {"earth": "1f30d", "full moon": "1f315", "planet": "1fa90", "palm": "1f334", "shell": "1f41a"}
GUEST = "hedgehog"
_GUESTS = {GUEST: "1f994"}  # what the model does not know, so that an adapter can teach it


def load(archive: Path, max_variants: int = 18) -> Sprites:
    """Decode the pictures of every subject.

    Args:
        archive: The npm package's archive.
        max_variants: Looks kept for a subject.

    Returns:
        The pictures and what the composer must know of them.
    """
    wanted = {subject.code for subject in subjects()}
    found: dict[str, list[tuple[str, str]]] = {}
    scenery = {code: name for name, code in (_SCENERY | _GUESTS).items()}
    images: dict[str, NDArray[np.uint8]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.name.endswith(".webp"):
                continue
            stem = Path(member.name).stem
            code, gender = family(stem)
            bare = stem.replace("-fe0f", "")
            if code not in wanted and bare not in scenery:
                continue
            handle = tar.extractfile(member)
            if handle is None:
                continue
            picture = Image.open(io.BytesIO(handle.read())).convert("RGBA")
            if picture.size != (SIZE, SIZE):
                picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            images[stem] = np.asarray(picture, dtype=np.uint8)
            found.setdefault(code, []).append((stem, gender))
    return _assemble(images, found, scenery, max_variants)


def kept(path: Path, cache: Path) -> Sprites:
    """Return the decoded pictures from a file, or decode them and keep them there.

    Args:
        path: The file, ours.
        cache: Where downloads are kept.
    """
    if path.exists():
        return pickle.loads(path.read_bytes())  # type: ignore[no-any-return]  # noqa: S301 - our own file
    sprites = load(fetch(cache))
    fresh = path.with_suffix(".new")
    fresh.write_bytes(pickle.dumps(sprites))
    fresh.replace(path)
    return sprites


def _looks(subject: Subject, found: Mapping[str, list[tuple[str, str]]]) -> list[str]:
    stems = sorted(found[subject.code], key=lambda item: (len(item[0].replace("-fe0f", "")), item[0]))
    only = "f" if "f" in subject.flags else "m" if "m" in subject.flags else ""
    chosen = [stem for stem, gender in stems if not only or gender == only]
    return chosen or [stem for stem, _ in stems if _.strip() == ""] or [stem for stem, _ in stems]


def _assemble(
    images: dict[str, NDArray[np.uint8]],
    found: Mapping[str, list[tuple[str, str]]],
    scenery: Mapping[str, str],
    max_variants: int,
) -> Sprites:
    pixels: list[NDArray[np.uint8]] = []
    plain: list[int] = []
    variants: list[list[int]] = []
    seated: dict[int, int] = {}
    for subject in subjects():
        stems = _looks(subject, found)[:max_variants]
        first = len(pixels)
        neutral = next((i for i, stem in enumerate(stems) if family(stem)[1] == "" and not _TONES.search(stem)), 0)
        stems[0], stems[neutral] = stems[neutral], stems[0]
        pixels.extend(images[stem] for stem in stems)
        plain.append(first)
        variants.append(list(range(first, first + len(stems))))
        if subject.kind == "person" and not subject.flags & {"full", "head"}:
            for index in variants[-1]:
                seated[index] = len(pixels)
                pixels.append(with_legs(pixels[index], bulky=subject.name == "astronaut"))
    named: dict[str, int] = {}
    for code, name in scenery.items():
        stem = next(stem for stem in images if stem.replace("-fe0f", "") == code)
        named[name] = len(pixels)
        pixels.append(images[stem])
    stack = np.stack(pixels)
    return Sprites(stack, *_measure(stack), plain, variants, seated, named)


def _measure(stack: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    boxes = np.zeros((len(stack), 4), np.float32)
    profiles = np.full((len(stack), SIZE), SIZE, np.float32)
    for i, picture in enumerate(stack):
        solid = picture[..., 3] > 96
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        top = solid.argmax(0).astype(np.float32)
        profiles[i] = np.where(solid.any(0), top, SIZE)
    return boxes, profiles


def with_legs(picture: NDArray[np.uint8], *, bulky: bool = False) -> NDArray[np.uint8]:
    """Draw a leg to ride with under a bust, in the colour of its clothes.

    The set shows people to the waist. A rider needs a leg on the side of its mount that we see: a thigh that comes
    forward, a shin that hangs down, and a boot. The bust shrinks to the upper 70 % of the picture to make room.

    Args:
        picture: uint8 RGBA [256, 256, 4].
        bulky: A space suit's thick leg instead of trousers.

    Returns:
        The seated picture, the same shape, facing left.
    """
    bust = Image.fromarray(picture)
    left, top, right, bottom = bust.getchannel("A").point(lambda a: 255 * (a > 96)).getbbox() or (0, 0, SIZE, SIZE)
    crop = bust.crop((left, top, right, bottom))
    height = int(SIZE * 0.70)
    width = int(crop.width * height / crop.height)
    crop = crop.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    x0 = (SIZE - width) // 2
    # Round the flat lower edge, so that the rider sits instead of ending.
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, -60, width - 1, height - 1), radius=int(width * 0.30), fill=255)
    crop.putalpha(Image.fromarray(np.minimum(np.asarray(crop.getchannel("A")), np.asarray(mask))))
    canvas.alpha_composite(crop, (x0, 0))
    cloth = _cloth(np.asarray(crop))
    leg = _leg(cloth, thick=52 if bulky else 44, boot=(96, 110, 150) if bulky else tuple(int(c * 0.42) for c in cloth))
    canvas.alpha_composite(leg)
    return np.asarray(canvas, dtype=np.uint8)


def _cloth(crop: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return the median colour of the lower torso, off its middle line (buttons, ties)."""
    rows = crop[int(crop.shape[0] * 0.78) : int(crop.shape[0] * 0.93)]
    width = crop.shape[1]
    columns = np.r_[int(width * 0.22) : int(width * 0.42), int(width * 0.58) : int(width * 0.78)]
    area = rows[:, columns].reshape(-1, 4)
    area = area[area[:, 3] > 200]
    red, green, blue = (int(v) for v in np.median(area[:, :3], axis=0)) if len(area) else (120, 120, 120)
    return red, green, blue


def _leg(cloth: tuple[int, ...], thick: int, boot: tuple[int, ...]) -> Image.Image:
    """Draw the leg at twice the size: capsules whose light comes from above left, as in the set."""
    big = SIZE * 2
    shape = Image.new("L", (big, big), 0)
    shoe = Image.new("L", (big, big), 0)
    hip, knee, ankle, toe = (268, 322), (196, 372), (214, 452), (176, 462)
    draw = ImageDraw.Draw(shape)
    for start, end in ((hip, knee), (knee, ankle)):
        draw.line((start, end), fill=255, width=2 * thick - 8)
    for x, y in (hip, knee, ankle):
        draw.ellipse((x - thick + 4, y - thick + 4, x + thick - 4, y + thick - 4), fill=255)
    draw = ImageDraw.Draw(shoe)
    r = int(thick * 0.86)
    draw.line((ankle, toe), fill=255, width=2 * r)
    for x, y in (ankle, toe):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    out = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    for mask, colour in ((shape, cloth), (shoe, boot)):
        out.alpha_composite(_shaded(mask, colour))
    return out.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _shaded(mask: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Fill a mask with a colour, lighter at its upper left and darker at its lower right edge."""
    inner = mask.filter(ImageFilter.GaussianBlur(16))
    height = np.asarray(inner, np.float32) / 255
    gy, gx = np.gradient(height)
    light = np.clip(0.97 + 9.0 * (gx * 0.55 + gy * 0.83), 0.66, 1.18)[..., None]
    body = np.clip(np.asarray(colour, np.float32) * light, 0, 255).astype(np.uint8)
    return Image.merge("RGBA", (*Image.fromarray(body).split(), mask))


def save_index(sprites: Sprites, path: Path) -> None:
    """Write what was found, for the curious: how many looks each subject has."""
    table = {s.name: len(v) for s, v in zip(subjects(), sprites.variants, strict=True)}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
