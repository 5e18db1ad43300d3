"""Where a search starts: real files of this repository, and the changes that parsers dislike."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct

import numpy as np
from PIL import Image

from .targets import FOLDERS, KINDS, ROOT, folder_of


def seeds(target: str) -> list[bytes]:
    """Real input of a target, from the repository's files."""
    return {"recipe": _recipes, "answers": _answers, "image": _images, "checkpoint": _checkpoints}[target]()


def _recipes() -> list[bytes]:
    files = [file.read_bytes() for file in sorted((ROOT / "recipes").glob("*.yaml"))]
    overrides = b"\xff\xfflora.r=16\nseed=1\nrewards.0.weight=2\nmodel.path=x\ndatasets.0.column_map.prompt=q"
    odd = [
        b"a: &a [1]\nb: [*a, *a]\nc: {<<: {d: 1}}", b"? [a]\n: b", b"- !!binary aGk=\n- 2001-01-01\n- 0x1F\n- 1:30\n- .inf",
        b'"\\ud800": !!int "7"\n!!set {a}: |\n  text', b"%YAML 1.1\n---\na: >-\n  b\n...\n",
    ]  # fmt: skip
    return [*files, *(file + overrides for file in files[:3]), *odd]


def _answers() -> list[bytes]:
    texts = [
        "<think>3 + 4</think>\\boxed{7}\x007", "<answer>145°</answer>\x00<answer> 145 </answer>", "so it is -1,234.5e3 %\x00#### 5",
        "\\frac{1}{2}\x000.5", "(B) 12 cm^2\x00B", "The answer is C.\x00C", "yes, it is\x00true", "(3+4)*2 = 14\x0014",
        "1234341221434321\x001", "\\boxed{\\text{a {b} c}}\x00$\\boxed{x^2}$", "−5 m²\x00-5", "½ ٣ \u202e7\x00７", "5 km/h.\x005", "1/0\x00\\frac{1}{0}",
    ]  # fmt: skip
    return [text.encode() for text in texts]


def _images() -> list[bytes]:
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, options in (
        ("PNG", {}), ("PNG", {"exif": exif}), ("JPEG", {"exif": exif}), ("GIF", {}), ("WEBP", {}), ("WEBP", {"lossless": True}),
        ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("PPM", {}), ("JPEG2000", {}), ("AVIF", {}),
        ("GIF", {"save_all": True, "append_images": [picture]}), ("PNG", {"save_all": True, "append_images": [picture]}),
    ):  # fmt: skip
        with contextlib.suppress(KeyError, OSError):
            found.append(_encoded(picture, kind, **options))
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        found.append(_encoded(picture.convert("L" if mode == "I;16" else mode).convert(mode), "PNG"))
    found.append(_encoded(picture.convert("CMYK"), "JPEG"))
    found.append(_encoded(Image.fromarray(values[:, :, 0].astype(np.uint16) * 257), "TIFF"))
    found.append(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")
    return found


def _encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _checkpoints() -> list[bytes]:
    import torch
    from safetensors.torch import save

    found = [
        bytes([KINDS.index(kind)]) + (folder_of(owner) / name).read_bytes() for kind, (owner, name) in FOLDERS.items()
    ]
    small = {"a": torch.zeros(2, 3), "b": torch.full((1,), torch.nan)}
    window = {"window": json.dumps({"step": 0, "sizes": {}, "order": [], "rows": [], "pending": {}})}
    found.append(bytes([KINDS.index("window")]) + save(small, metadata=window))
    found.append(bytes([KINDS.index("weights")]) + save(small))
    buffer = io.BytesIO()
    torch.save(small, buffer)
    plain = io.BytesIO()
    torch.save(small, plain, _use_new_zipfile_serialization=False)
    return [*found, *(bytes([KINDS.index("pickle")]) + own.getvalue() for own in (buffer, plain))]


TOKENS = [
    b"\x00", b"\xff\xff\xff\xff", struct.pack("<Q", 2**63), struct.pack(">I", 2**31), b"9" * 400, b"-1", b"null", b"[]", b"{}",
    b'"', b"\\boxed{", b"{", b"}", b"[", b"&a ", b"*a", b"<<: ", b"!!int ", b"\xed\xa0\x80", "\u202e".encode(), b"1e999", b"NaN",
    b"000000000000", b"../../", b"<think>", b"</answer>", b": ", b"\n", b"\t", b"true", b"#### ",
]  # fmt: skip


def mutated(data: bytes, seed: int) -> bytes:
    """A few random changes: bytes flipped, cut, repeated, replaced by something that parsers dislike."""
    rng = random.Random(seed)
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[min(place, len(data) - 1)] = rng.randrange(256)
            case 1:
                data[place:] = b""
            case 2:
                data[place:place] = rng.choice(TOKENS)
            case 3:
                length = rng.choice((1, 4, 16))
                data[place : place + length] = rng.choice(TOKENS)
            case 4:
                piece = data[place : place + rng.choice((1, 8, 64))]
                data[place:place] = piece * rng.choice((2, 10, 200))
            case _:
                # Numbers are where sizes hide.
                digits = [i for i in range(len(data)) if chr(data[i]).isdigit()]
                if digits:
                    at = rng.choice(digits)
                    data[at : at + 1] = str(rng.choice((-1, 0, 7, 2**31, 10**12, 10**30))).encode()
    return bytes(data)
