"""Images that are made of images: uploaded over HTTP, fetched and begun from by the worker, named in the recipe."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import httpx
import numpy as np
import yaml
from PIL import Image

from integration.system.studio import MODEL, Studio
from kubediffusion.local import installation
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present

SIDE = 64


def picture(side: int = SIDE) -> Image.Image:
    """Large squares of noise."""
    squares = np.random.default_rng(7).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(squares.repeat(side // 4, 0).repeat(side // 4, 1))


def right_half_kept() -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE), 255)
    mask.paste(0, (SIDE // 2, 0, SIDE, SIDE))
    return mask


async def upload(http: httpx.AsyncClient, image: Image.Image, form: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, form)
    answer = await http.post("/v1/inputs", content=file.getvalue())
    assert answer.status_code == 201, answer.text
    given: str = answer.json()["id"]
    return given


async def test_an_image_is_made_of_an_uploaded_one_and_its_recipe_makes_it_again(studio: Studio) -> None:
    async with studio.http() as http:
        given = await upload(http, picture(128))
        file = io.BytesIO()
        picture(128).save(file, "PNG")
        by_form = await http.post("/v1/inputs", files={"image": ("fox.png", file.getvalue())})
        assert (by_form.status_code, by_form.json()["id"]) == (201, given)
        key = f"{installation.PREFIX}/{studio.name}/inputs/{given}"
        assert hashlib.sha256(studio.stored(f"s3://{installation.BUCKET}/{key}")).hexdigest() == given
        body = {
            "prompt": "a fox",
            "model": MODEL,
            "num_inference_steps": 4,
            "seed": 3,
            "inputs": [{"role": "image", "id": given}],
            "strength": 0.5,
            "deterministic": True,
        }
        created = (await http.post("/v1/jobs", json=body)).json()
        job = await studio.phase(created["name"], Phase.SUCCEEDED)
        studio.assert_images_are_true(job)
        parameters = present(job.status.parameters)
        assert parameters.engine == "continuous"
        shown = (await http.get(f"/v1/jobs/{job.name}")).json()["parameters"]
        assert (shown["inputs"], shown["strength"]) == ([{"role": "image", "id": given}], 0.5)
        of_text = {name: value for name, value in body.items() if name not in {"inputs", "strength"}}
        plain = (await http.post("/v1/jobs", json=of_text)).json()["name"]
        recipe = yaml.safe_load((await http.get(f"/v1/jobs/{job.name}/recipe")).text)
        assert recipe["spec"]["inputs"] == [{"role": "image", "id": given}]
        again = await studio.submit("again", **recipe["spec"])
        same = (await studio.phase(again.name, Phase.SUCCEEDED)).status.images[0].sha256
        other = (await studio.phase(plain, Phase.SUCCEEDED)).status.images[0].sha256
    # The recipe is in the file too: the same pixels of the same recipe are the same bytes.
    assert same == job.status.images[0].sha256 != other


async def test_pixels_outside_of_the_mask_stay(studio: Studio) -> None:
    async with studio.http() as http:
        image, mask = await upload(http, picture()), await upload(http, right_half_kept())
        models = (await http.get("/v1/models")).json()["models"]
        assert {"image-to-image", "inpainting"} <= set(next(m for m in models if m["name"] == MODEL)["tasks"])
    inputs = [{"role": "mask", "id": mask}, {"role": "image", "id": image}]
    await studio.submit("masked", inputs=inputs, strength=0.9, width=SIDE, height=SIDE)
    job = await studio.phase("masked", Phase.SUCCEEDED)
    made = np.asarray(Image.open(io.BytesIO(studio.stored(job.status.images[0].uri))))
    given = np.asarray(picture())
    assert np.array_equal(made[:, SIDE // 2 :], given[:, SIDE // 2 :])
    assert not np.array_equal(made[:, : SIDE // 2], given[:, : SIDE // 2])
    assert present(job.status.parameters).engine == "diffusers"


async def test_an_input_that_is_not_there_or_is_another_fails_its_job_alone(studio: Studio) -> None:
    async with studio.http() as http:
        given = await upload(http, picture())
    forged = "b" * 64
    studio.store(f"{installation.PREFIX}/{studio.name}/inputs/{forged}", b"not what its name says")
    await studio.submit("missing", inputs=[{"role": "image", "id": "a" * 64}])
    await studio.submit("forged", inputs=[{"role": "image", "id": forged}])
    await studio.submit("good", inputs=[{"role": "image", "id": given}])
    await studio.submit("of-text")
    for name, why in (("missing", "is not in storage"), ("forged", "has another hash")):
        error = present((await studio.phase(name, Phase.FAILED)).status.error)
        assert error.code == "InvalidInput"
        assert why in error.message
    for name in ("good", "of-text"):
        studio.assert_images_are_true(await studio.phase(name, Phase.SUCCEEDED))
    assert present((await studio.job("good")).status.parameters).strength == 0.8


async def test_what_no_input_can_be_is_refused_at_the_door(studio: Studio) -> None:
    image: dict[str, Any] = {"role": "image", "id": "a" * 64}
    wrong: list[dict[str, Any]] = [
        {"inputs": [{"role": "image", "id": "../../other/secret"}]},
        {"inputs": [{"role": "image", "id": "https://example.com/fox.png"}]},
        {"inputs": [{"role": "image", "id": "s3://bucket/key"}]},
        {"inputs": [{"role": "painting", "id": "a" * 64}]},
        {"inputs": [{**image, "url": "http://127.0.0.1/"}]},
        {"inputs": [image, image]},
        {"inputs": []},
        {"inputs": [{"role": "mask", "id": "a" * 64}]},
        {"strength": 0.5},
        {"inputs": [image], "strength": 1.1},
    ]
    async with studio.http() as http:
        for fields in wrong:
            answer = await http.post("/v1/jobs", json={"prompt": "a fox", "model": MODEL, **fields})
            assert answer.status_code == 422, (fields, answer.text)
        refused = await http.post("/v1/inputs", content=b"GIF89a")
        assert (refused.status_code, refused.json()["detail"][0]["type"]) == (422, "image_refused")
        as_form = await http.post("/v1/inputs", files={"image": b"x"})
        assert (as_form.status_code, as_form.json()["detail"][0]["loc"]) == (422, ["body", "image"])
        two = await http.post("/v1/inputs", files={"image": b"x", "mask": b"x"})
        assert (two.status_code, "it has 2" in two.text) == (422, True)
        assert (await http.post("/v1/inputs", files={"image": bytes(21 * 2**20)})).status_code == 413
        assert (await http.post("/v1/inputs", content=bytes(21 * 2**20))).status_code == 413
