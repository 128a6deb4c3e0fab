"""Small real data for pictures, without a network: the handwritten digits of scikit-learn as captioned PNG files, and a small CLIP.

The digits are 1,797 pictures of 8 x 8 pixels (Alpaydin and Kaynak, UCI 1998). Each is captioned in one of 40 ways, so many pictures
are right for a caption that is not theirs: the false negatives of captioned data, with classes that tell them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.errors import MissingDependencyError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_FRAMES = (
    "a handwritten {}", "the digit {}", "a photo of the number {}", "somebody wrote {}", "a scan of {}", "this is {}",
    "{} in black ink", "a small picture of {}", "the figure {}", "{} by hand", "a postcode with {}", "number {}",
    "{}, drawn quickly", "a blurry {}", "an old {}", "pixels of {}", "one more {}", "look, {}", "a sketch: {}", "the numeral {}",
)  # fmt: skip


def captions_of(digit: int) -> list[str]:
    """The 40 captions of a digit: 20 sentences, with its name and with its figure.

    >>> captions_of(3)[:2], len(captions_of(3))
    (['a handwritten three', 'the digit three'], 40)
    """
    return [frame.replace("{}", name) for name in (NAMES[digit], str(digit)) for frame in _FRAMES]


def write_digits(folder: str | Path, *, test_every: int = 4, seed: int = 0, most: int | None = None) -> Path:
    """Write the digits as PNG files: `train` with `metadata.jsonl`, `test` with a folder for each class.

    Args:
        folder: the folder to write, from which `read_pairs` reads them.
        test_every: one picture in so many is a test picture.
        seed: of the caption of each training picture.
        most: at most so many pictures; None: all 1,797.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("pillow", "images", "writing pictures") from None
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    folder, rng, rows = Path(folder), np.random.default_rng(seed), []
    for i, (pixels, digit) in enumerate(zip(found.images[:most], found.target[:most].tolist(), strict=True)):
        image, name = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)), f"{i:04}.png"
        caption = captions_of(digit)[rng.integers(40)]
        test = i % test_every == test_every - 1
        place = folder / "test" / NAMES[digit] if test else folder / "train"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / name)
        if not test:
            rows.append({"file_name": name, "caption": caption, "label": NAMES[digit]})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train" / "metadata.jsonl").write_text(lines, "utf-8")
    return folder


def write_small_clip(folder: str | Path, *, seed: int = 0, width: int = 64, layers: int = 2, size: int = 32) -> Path:
    """Write a CLIP of 0.2 million weights, drawn from `seed`, as a model of sentence-transformers: `st:FOLDER`.

    Its tokenizer knows single letters, so it reads any text of ASCII characters.

    Args:
        folder: the folder to write.
        seed: of the weights.
        width: of both transformers, and of the vectors.
        layers: of both transformers.
        size: height and width that pictures are scaled to, in pixels.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
    except ImportError:
        raise MissingDependencyError("sentence-transformers", "st", "a small CLIP") from None
    import torch

    folder = Path(folder)
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    last = len(pieces) - 1
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=48)
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    both = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    ends = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    config = CLIPConfig(
        text_config={**both, **ends, "vocab_size": len(pieces), "max_position_embeddings": 48},
        vision_config={**both, "image_size": size, "patch_size": size // 4},
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder / "base")
    CLIPProcessor(images, tokenizer).save_pretrained(folder / "base")  # type: ignore[no-untyped-call]
    SentenceTransformer(modules=[Transformer(str(folder / "base"))], device="cpu").save_pretrained(str(folder))
    return folder
