"""Reading images that may be damaged, and writing those that are stored.

Pillow reads JPEG, PNG and TIFF, because it reports a file that ends too early, where OpenCV returns grey. PGM
(https://netpbm.sourceforge.net/doc/pgm.html) is read here: 16-bit samples are big-endian.
"""

import io
import pathlib
import re
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded.frames import BadFrame

MAX_PIXELS = 64_000_000
FARTHEST_MM = 20_000
"""No depth camera that these datasets use sees farther; a file whose samples do has another byte order or unit."""
_PNG_LEVEL = 1
_GAP = rb"(?:\s|#[^\n]*\n)+"  # one way to match each byte, so that no header takes long
_PGM_HEADER = re.compile(rb"P5" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
_ORIENTATION, _UPRIGHT = 0x0112, 1  # EXIF
_GREY16 = ("I;16", "I;16B", "I;16L", "I")


def _content(root: pathlib.Path, file: str) -> bytes:
    try:
        content = (root / file).read_bytes()
    except FileNotFoundError:
        raise BadFrame("unpaired", file, "the file is missing") from None
    except OSError as error:
        raise InputError(f"cannot read {root / file} ({error.strerror}); mend its permissions or the disk") from error
    if not content:
        raise BadFrame("empty_file", file, "the file has zero bytes")
    return content


def _check_size(root: pathlib.Path, file: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{root / file} claims {width}x{height} pixels, more than {MAX_PIXELS:,}; no camera here does: remove it"
        )
    if not width * height:
        raise BadFrame("corrupt", file, f"it claims {width}x{height} pixels")


def _opened(root: pathlib.Path, file: str) -> Image.Image:
    """The decoded image; its size is checked before its pixels are."""
    content = _content(root, file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, where _check_size is stricter, and of damaged metadata
            image = Image.open(io.BytesIO(content))
            _check_size(root, file, *image.size)
            _check_whole(image.format, content)
            image.load()
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{root / file} claims more than {MAX_PIXELS:,} pixels; no camera here does: remove it"
        ) from error
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise BadFrame("corrupt", file, "it does not decode (it is no image of a known format)") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise BadFrame("corrupt", file, f"it does not decode ({_line(error)})") from error
    return image


def _check_whole(kind: str | None, content: bytes) -> None:
    """Raises SyntaxError for damage that Pillow decodes without a word, a tail of zeros for example.

    A JPEG has an end marker after the start of its last scan (whose data never hold one); a PNG has checksums.
    """
    if kind == "JPEG" and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        raise SyntaxError("it ends too early")
    if kind == "PNG":
        Image.open(io.BytesIO(content)).verify()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_rgb(root: pathlib.Path, file: str) -> np.ndarray:
    """A colour image, uint8 [H, W, 3] RGB; a grey one has three equal channels.

    Args:
        root: the tree.
        file: path below it.

    Raises:
        BadFrame: the file is missing, empty or does not decode.
        InputError: it holds 16-bit samples, as depth images do, too many pixels, or an EXIF tag that turns it.
    """
    image = _opened(root, file)
    if image.mode in _GREY16 or image.mode == "F":
        raise InputError(
            f"{root / file} has {image.mode} samples where a colour image is declared; are folders swapped?"
        )
    turned = image.getexif().get(_ORIENTATION, _UPRIGHT)
    if turned != _UPRIGHT:
        raise InputError(
            f"{root / file} says by EXIF orientation {turned} that viewers should turn it, which a depth image cannot "
            "say; store the pixels as the depth image has them, without that tag"
        )
    return np.asarray(image.convert("RGB"))


def read_depth(root: pathlib.Path, file: str, *, bits: int = 16) -> np.ndarray:
    """Depth samples as they are stored (no unit is applied), uint16 [H, W].

    Args:
        root: the tree.
        file: path below it: PGM, PNG or TIFF; with `bits` 8 also JPEG.
        bits: 16 or 8, as the dataset declares.

    Raises:
        BadFrame: the file is missing, empty or does not decode.
        InputError: it is a colour image, has samples of the other size, or too many pixels.
    """
    if file.lower().endswith(".pgm"):
        return read_pgm(root, file, maxval=65535 if bits == 16 else 255).astype(np.uint16)
    image = _opened(root, file)
    if bits == 8:
        if image.mode not in ("L", "P", "RGB") or (image.mode == "RGB" and not _is_grey(np.asarray(image))):
            raise InputError(
                f"{root / file} is {image.mode}, not the 8-bit grey depth that is declared; are folders swapped?"
            )
        return np.asarray(image.convert("L")).astype(np.uint16)
    if image.mode not in _GREY16:
        words = "8-bit samples" if image.mode in ("L", "P") else f"{image.mode} samples"
        raise InputError(
            f"{root / file} has {words} where 16-bit depth is declared; give the raw depth (are folders swapped?)"
        )
    samples = np.asarray(image)
    if samples.min(initial=0) < 0 or samples.max(initial=0) > 65535:
        raise BadFrame("corrupt", file, f"it has samples from {samples.min()} to {samples.max()}")
    return samples.astype(np.uint16)


def read_mask(root: pathlib.Path, file: str) -> np.ndarray:
    """A person's mask, uint8 [H, W]: 255 where the stored image (grey, palette or colour) is not zero.

    Raises:
        BadFrame: the file is missing, empty or does not decode.
        InputError: it has too many pixels.
    """
    pixels = np.asarray(_opened(root, file))
    person = pixels if pixels.ndim == 2 else pixels[..., :3].any(axis=2)
    return np.where(person, 255, 0).astype(np.uint8)


def _is_grey(pixels: np.ndarray) -> bool:
    """Equal channels but for what JPEG makes of them."""
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    return float(spread.mean()) < 3.0


def read_pgm(root: pathlib.Path, file: str, *, maxval: int) -> np.ndarray:
    """A binary PGM, uint8 or uint16 [H, W].

    Args:
        root: the tree.
        file: path below it.
        maxval: what the header must say: 255 for one byte a sample, 65535 for two, big-endian.

    Raises:
        BadFrame: the file is missing, empty, no PGM, or has too few or too many bytes.
        InputError: the header says another maxval, or too many pixels.
    """
    content = _content(root, file)
    header = _PGM_HEADER.match(content[:4096])
    if not header:
        raise BadFrame("corrupt", file, f"it is no binary PGM: it starts with {content[:2]!r}, not b'P5'")
    width, height, found = (int(group) for group in header.groups())
    _check_size(root, file, width, height)
    if found != maxval:
        raise InputError(f"{root / file} is a PGM with maxval {found}, expected {maxval}; give the camera's own files")
    dtype = np.dtype(">u2") if maxval > 255 else np.dtype("u1")
    samples = content[header.end() :]
    if len(samples) != width * height * dtype.itemsize:
        raise BadFrame(
            "corrupt", file, f"it has {len(samples)} bytes of samples instead of {width * height * dtype.itemsize}"
        )
    return np.frombuffer(samples, dtype).reshape(height, width).astype(dtype.newbyteorder("="))


def check_byte_order(root: pathlib.Path, file: str, samples: np.ndarray, unit_mm: float = 1.0) -> None:
    """Raises InputError if most samples, uint16 in steps of `unit_mm`, make sense only with their bytes swapped."""
    valid = samples[samples > 0]
    far, far_swapped = (
        float((one > FARTHEST_MM / unit_mm).mean()) if len(valid) else 0.0 for one in (valid, valid.byteswap())
    )
    if far > 0.5 and far_swapped < far / 2:
        raise InputError(
            f"{root / file}: {100 * far:.0f} % of its depths exceed {FARTHEST_MM / 1000:.0f} m and "
            f"{100 * far_swapped:.0f} % do with their bytes swapped: it is little-endian where PGM is big-endian; "
            "write it again"
        )


def encode_png(image: np.ndarray) -> bytes:
    """`image` uint8 [H, W, 3] (RGB), uint8 or uint16 [H, W] as a PNG file."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    assert done, "OpenCV could not encode a PNG"
    return encoded.tobytes()
