"""How many tokens the images of a row take, by the rule of the model's processor.

`Processor` runs in the confined process of the tokenizer. Of an image only the beginning is read, for its size.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from gradience.data import Columns, Turn, every_turn
from gradience.io import pretrained
from gradience.io.reading import open_regular
from gradience.schema import Json

IMPORTS: Final = ("transformers:ProcessorMixin", "PIL.Image")
_CONFIGS: Final = ("processor_config.json", "preprocessor_config.json")
_OWN: Final = ("image", "path", "url", "base64")  # keys of a part that holds its image
_MOST_TOKENS: Final = 1 << 22  # of the images of one row: the longest contexts have 10 million, images some thousand
_INLINE: Final = "data:image/"


def has_processor(folder: Path) -> bool:
    """Whether a folder holds the config of a processor."""
    return any((folder / name).is_file() for name in _CONFIGS)


class Processor:
    """The processor of a folder.

    Raises:
        Exception: anything that a library raises that reads files of a stranger, or is not installed.
    """

    def __init__(self, folder: str) -> None:
        from transformers import AutoProcessor  # seconds, for rows with images

        self._processor: Any = pretrained.load(AutoProcessor, folder)
        self.name, self.token = type(self._processor).__name__, int(self._processor.image_token_id)
        self._tokens([(64, 64)])  # a processor without a rule raises here

    def tokens(self, images: Sequence[Json], folder: str) -> list[int]:
        """The number of tokens that stand for each image.

        Args:
            images: each a path, a `data:` URL, or a mapping with `bytes` (base64) or `path`, as `datasets` stores them.
            folder: where relative paths begin.

        Raises:
            Exception: an image cannot be opened.
        """
        return self._tokens([_size(image, Path(folder)) for image in images])

    def _tokens(self, sizes: list[tuple[int, int]]) -> list[int]:
        # transformers 5 has no public method for it
        counts: list[int] = self._processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]  # noqa: SLF001
        if any(type(one) is not int or one < 0 for one in counts) or sum(counts) > _MOST_TOKENS:
            raise ValueError(f"a rule by which an image takes {counts[0]!r} tokens")
        return counts


def _size(image: Json, folder: Path) -> tuple[int, int]:
    """Height and width."""
    from PIL import Image  # which the processors need too

    with _opened(image, folder) as file, Image.open(file) as picture:
        return picture.height, picture.width


def _opened(image: Json, folder: Path) -> BinaryIO:
    path = image.get("path") if isinstance(image, dict) else image
    inline = image.get("bytes") if isinstance(image, dict) else None
    if isinstance(path, str) and path.startswith(_INLINE):
        inline = path.partition(",")[2]
    if isinstance(inline, str):
        return io.BytesIO(base64.b64decode(inline))
    if not isinstance(path, str) or "://" in path:
        raise ValueError("an image that is neither a file nor bytes")
    return open_regular(folder / path)


def images_of(columns: Columns) -> list[Json] | None:
    """The images of a row in the order of their places; None if it is of a set without images, or has other media."""
    images = iter(columns.get("images") or ())
    pictures: list[Json] = []
    if "media" in columns:
        return None
    for turn in every_turn(columns):
        content = turn.get("content")
        for part in content if isinstance(content, list) else ():
            kind = str(part.get("type", "text")) if isinstance(part, dict) else "text"
            if kind.startswith(("video", "audio", "input_audio")):
                return None
            if kind.startswith("image"):
                pictures.append(_own(part) or next(images, None))
    return [*pictures, *images] or columns.get("images")


def _own(part: Turn) -> Json:
    """The image that a part holds itself, as messages of transformers and of OpenAI's interface do."""
    image = next((part[name] for name in _OWN if part.get(name)), None)
    stated = part.get("image_url")
    return image or (stated.get("url") if isinstance(stated, dict) else stated)


def with_images(turns: Sequence[Turn], count: int) -> Iterator[Turn]:
    """Yield turns of parts, with places of so many images before the first user's text, as SFTTrainer gives them."""
    for turn in turns:
        content = turn.get("content")
        if not isinstance(content, str):
            yield turn
            continue
        places = [{"type": "image"}] * count if turn.get("role") == "user" else []
        count -= len(places)
        yield {**turn, "content": [*places, {"type": "text", "text": content}]}


def spread(ids: Sequence[int], token: int, counts: Sequence[int]) -> list[int] | None:
    """The place here of each token that the model is given, whose images take so many; None if they are others."""
    if sum(one == token for one in ids) != len(counts):
        return None
    left = iter(counts)
    return [i for i, one in enumerate(ids) for _ in range(next(left) if one == token else 1)]
