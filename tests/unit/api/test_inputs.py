"""Uploaded images: what is taken becomes the right picture without metadata, all else is refused with its reason."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import threading
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from kubediffusion.api import inputs
from kubediffusion.api.errors import InvalidRequestError, TooLargeError, TooManyRequestsError, UnavailableError
from kubediffusion.api.inputs import InputStore, PlainImage, rewritten
from kubediffusion.api.settings import Settings
from kubediffusion.local.testing import eventually
from kubediffusion.resources.generation_job import MAX_INPUT_PIXELS, MAX_SIZE
from unit.api.api_builders import caller

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def halves(mode: str = "RGB") -> Image.Image:
    """Red to the left, blue to the right, 32 by 16."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    return image.convert(mode)


def decoded(plain: PlainImage) -> Image.Image:
    image = Image.open(io.BytesIO(plain.data))
    image.load()
    assert image.format == "PNG"
    assert image.size == (plain.width, plain.height)
    assert not {"exif", "icc_profile", "dpi", "Comment", "parameters"} & image.info.keys()
    return image


def near(image: Image.Image, place: tuple[int, int], color: tuple[int, ...]) -> bool:
    found: Any = image.convert("RGB").getpixel(place)
    return all(abs(a - b) <= 24 for a, b in zip(found, color, strict=True))


def reason(data: bytes) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        rewritten(data)
    detail: Any = raised.value.detail
    (problem,) = detail
    assert (problem["loc"], problem["type"]) == (["body"], "image_refused")
    return str(problem["msg"])


@pytest.mark.parametrize(
    ("mode", "form", "kept"),
    [
        ("RGB", "PNG", "RGB"),
        ("RGB", "JPEG", "RGB"),
        ("RGB", "WEBP", "RGB"),
        ("CMYK", "JPEG", "RGB"),
        ("P", "PNG", "RGB"),
        ("RGBA", "PNG", "RGB"),
        ("L", "PNG", "L"),
        ("1", "PNG", "L"),
    ],
)
def test_a_picture_is_kept_in_every_form(mode: str, form: str, kept: str) -> None:
    options = {"quality": 100} if form != "PNG" else {}
    image = decoded(rewritten(encoded(halves(mode), form, **options)))
    assert (image.mode, image.size) == (kept, (32, 16))
    if kept == "RGB":
        assert near(image, (4, 8), RED)
        assert near(image, (28, 8), BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says_which_is_dropped(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "the camera's maker"
    plain = rewritten(encoded(halves(), "JPEG", exif=exif, quality=100))
    assert b"maker" not in plain.data
    assert decoded(plain).size == ((32, 16) if orientation <= 4 else (16, 32))
    red = {1: (4, 8), 2: (28, 8), 3: (28, 8), 4: (4, 8), 5: (8, 4), 6: (8, 4), 7: (8, 28), 8: (8, 28)}[orientation]
    assert near(decoded(plain), red, RED)


def test_metadata_is_dropped_and_the_same_pixels_have_the_same_bytes() -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "a secret")
    with_text = encoded(halves(), pnginfo=told, dpi=(72, 72), icc_profile=b"not a profile")
    assert rewritten(with_text) == rewritten(encoded(halves()))


def test_transparency_is_kept_where_there_is_any() -> None:
    image = halves("RGBA")
    image.putpixel((0, 0), (255, 0, 0, 0))
    assert decoded(rewritten(encoded(image))).mode == "RGBA"
    palette = halves("P")
    indexed = decoded(rewritten(encoded(palette, transparency=palette.getpixel((0, 0)))))
    pixel = indexed.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    assert (indexed.mode, pixel[3]) == ("RGBA", 0)


def test_sixteen_bits_become_eight() -> None:
    grey = Image.new("I;16", (2, 1))
    grey.putpixel((0, 0), 0x8000)
    grey.putpixel((1, 0), 0xFFFF)
    image = decoded(rewritten(encoded(grey)))
    assert (image.mode, [image.getpixel((x, 0)) for x in (0, 1)]) == ("L", [0x80, 0xFF])


def test_one_pixel_is_a_picture() -> None:
    assert rewritten(encoded(Image.new("RGB", (1, 1)))).width == 1


def test_an_animation_is_refused() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    for form in ("PNG", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
        assert "animated" in reason(data)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_another_form_is_refused(form: str) -> None:
    assert "none of PNG, JPEG, WEBP" in reason(encoded(halves(), form))


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\x89PNG"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert "The image is not taken" in reason(data)


def bomb(width: int, height: int, idat: bytes) -> bytes:
    """A PNG whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [MAX_SIZE + 1, 12_000, 60_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    assert "a side are taken" in reason(bomb(side, side, zlib.compress(bytes(1000))))
    assert "a side are taken" in reason(bomb(1, side, zlib.compress(bytes(1000))))


def test_the_largest_square_of_a_job_is_more_than_is_decoded_at_once() -> None:
    assert f"at most {MAX_INPUT_PIXELS} in all" in reason(bomb(MAX_SIZE, MAX_SIZE, zlib.compress(bytes(1000))))
    assert rewritten(encoded(Image.new("1", (MAX_SIZE, MAX_INPUT_PIXELS // MAX_SIZE)))).width == MAX_SIZE


def test_compressed_text_that_grows_without_end_is_refused() -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    assert "cannot be decoded" in reason(encoded(halves(), pnginfo=told))


@settings(max_examples=60, deadline=None)
@given(form=st.sampled_from(["PNG", "JPEG", "WEBP"]), cut=st.floats(0, 0.99), flips=st.lists(st.integers(0, 2**20)))
def test_broken_files_are_refused_or_a_picture(form: str, cut: float, flips: list[int]) -> None:
    whole = bytearray(encoded(halves(), form))
    data = whole[: int(len(whole) * cut)] if not flips else whole
    for flip in flips:
        data[flip // 8 % len(data)] ^= 1 << flip % 8
    try:
        plain = rewritten(bytes(data))
    except InvalidRequestError:
        return
    assert decoded(plain).size == (plain.width, plain.height)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


class Held:
    """Storage that remembers, and answers once it may."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.all_asked = threading.Event()
        self._places = threading.Semaphore(inputs.AT_ONCE - 1)

    def put_input(self, key: str, data: bytes) -> None:
        if not self._places.acquire(blocking=False):
            self.all_asked.set()
        assert self.may_answer.wait(60)
        self.stored[key] = data


def store(**fields: Any) -> tuple[InputStore, Held]:
    held = Held()
    return InputStore(held, Settings(namespace="ns", s3_prefix="p", **fields)), held  # type: ignore[arg-type]


def test_an_image_lies_under_its_namespace_and_hash() -> None:
    inputs_of, held = store()
    found = asyncio.run(inputs_of.store(pieces(encoded(halves())), caller("me")))
    assert list(held.stored) == [f"p/ns/inputs/{found.id}"]
    assert (found.width, found.height, found.size) == (32, 16, len(held.stored[f"p/ns/inputs/{found.id}"]))


@pytest.mark.parametrize("leaves", [False, True], ids=["waits", "leaves"])
def test_what_storage_does_not_answer_holds_its_place_until_it_does(
    leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "STORE_SECONDS", 60 if leaves else 0.05)

    async def ask() -> None:
        some, held = store()
        held.may_answer.clear()
        asked = [
            asyncio.create_task(some.store(pieces(encoded(halves())), caller(f"{n}"))) for n in range(inputs.AT_ONCE)
        ]
        if leaves:
            assert await asyncio.to_thread(held.all_asked.wait, 60)
            for task in asked:
                task.cancel()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError if leaves else UnavailableError}
        with pytest.raises(TooManyRequestsError):
            await some.store(pieces(encoded(halves())), caller("another"))
        held.may_answer.set()
        monkeypatch.setattr(inputs, "STORE_SECONDS", 60)

        async def stored() -> bool:
            with contextlib.suppress(TooManyRequestsError):
                return bool((await some.store(pieces(encoded(halves())), caller("another"))).id)
            return False

        await eventually("a place", stored)

    asyncio.run(ask())


def test_a_client_that_is_too_slow_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "READ_SECONDS", 0.05)

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    with pytest.raises(InvalidRequestError) as refused:
        asyncio.run(store()[0].store(silent(), caller("me")))
    assert "it was not there after" in str(refused.value.detail)


def test_a_key_has_a_rate_of_its_own_and_one_place_and_a_refused_place_costs_nothing() -> None:
    async def ask() -> None:
        some, _ = store()
        slow = caller("slow", rate_limit="1000/minute", key_limits={"slow": {"rateLimit": "2/minute"}})
        never = asyncio.Event()

        async def silent() -> AsyncIterator[bytes]:
            await never.wait()
            yield b""

        first = asyncio.create_task(some.store(silent(), slow))
        await asyncio.sleep(0)
        for _ in range(5):
            with pytest.raises(TooManyRequestsError, match="one after the other"):
                await some.store(pieces(encoded(halves())), slow)
        await some.store(pieces(encoded(halves())), caller("other"))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await some.store(pieces(encoded(halves())), slow)
        with pytest.raises(TooManyRequestsError, match="2 per 1 minute"):
            await some.store(pieces(encoded(halves())), slow)

    asyncio.run(ask())


def test_bounds_of_bytes_rate_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 1000)

    async def ask() -> None:
        some, _ = store()
        me = caller("me", rate_limit="2/minute")
        with pytest.raises(TooLargeError):
            await some.store(pieces(bytes(600), bytes(600)), me)
        never = asyncio.Event()

        async def silent() -> AsyncIterator[bytes]:
            await never.wait()
            yield b""

        open_ones = [asyncio.create_task(some.store(silent(), caller(f"other {n}"))) for n in range(inputs.AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequestsError):
            await some.store(pieces(encoded(halves())), me)
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
        await some.store(pieces(encoded(halves())), me)
        with pytest.raises(TooManyRequestsError):
            await some.store(pieces(encoded(halves())), me)
        with pytest.raises(UnavailableError):
            await InputStore(None, Settings()).store(pieces(b""), me)

    asyncio.run(ask())
