"""Damaged and hostile images, decoded as the product decodes them: in memory, and by a scan of a folder.

``python -m d3m_assets_tests.faults.images --count 10000`` prints counts. Whatever is not accepted must be refused with a
sentence, within seconds and a bounded memory, and nothing may be written to the terminal. Each batch runs in a process of its
own with a limit on its memory, so that a crash of a decoder is a number too; cases of which something is wrong are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from d3m_assets.datasets.image_folder import ImageFolder
from d3m_assets.datasets.images import decode_image
from d3m_assets.errors import DatasetError

MEMORY_MIB = 1024
"""Resident memory that no image may exceed; while images are decoded one by one, address space is limited to as much more."""
SECONDS = 10.0
"""Time that no image may exceed."""
BATCH = 250
"""Images that one process and one scan work on; a scan gives up at 500 that it cannot use."""
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 8000, 7999)


def valid_images(seed: int = 0) -> dict[str, bytes]:
    """A small image of each supported format and kind, by what it is."""
    noise = np.random.default_rng(seed)
    colour = Image.fromarray(noise.integers(0, 256, (24, 16, 3), np.uint8))
    clear = colour.copy()
    clear.putalpha(Image.fromarray(noise.integers(0, 256, (24, 16), np.uint8)))
    grey, palette, wide = (
        colour.convert("L"),
        colour.quantize(16),
        Image.fromarray(noise.integers(0, 2**16, (24, 16), np.uint16)),
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    more = {"save_all": True, "append_images": [grey.convert("RGB")], "duration": 40}
    kinds = {
        "png": [(colour, {}), (grey, {}), (clear, {}), (palette, {"transparency": 3}), (wide, {}), (grey.convert("1"), {})],
        "jpeg": [
            (colour, {}), (grey, {}), (colour.convert("CMYK"), {}), (colour, {"progressive": True}), (colour, {"exif": turned}),
        ],
        "bmp": [(colour, {}), (palette, {}), (grey.convert("1"), {})],
        "webp": [(colour, {}), (clear, {"lossless": True}), (colour, more), (colour, {"exif": turned})],
        "gif": [(palette, {}), (palette, {"transparency": 1}), (colour, more), (palette, {"comment": b"c" * 600})],
        "tiff": [
            *((colour, {"compression": c}) for c in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
            (wide, {}), (colour.convert("CMYK"), {}), (colour, {"big_tiff": True}), (colour, {"exif": turned}),
            (colour, {"save_all": True, "append_images": [grey]}),
            (grey.convert("1"), {"compression": "group4"}),
        ],
    }  # fmt: skip
    saved = {
        f"{name} {number}": _saved(image, name.upper(), **options)
        for name, variants in kinds.items()
        for number, (image, options) in enumerate(variants)
    }
    return saved | {"tiff of tiles": _tiled(16)}


def hostile_images() -> dict[str, bytes]:
    """Small files that each ask for much, or for another program, by what they are."""
    png, grey = _saved(Image.new("L", (8, 8)), "PNG"), Image.new("L", (8, 8))
    bomb = zlib.compress(bytes(2**24), 9)
    gif, jpeg = _saved(grey, "GIF"), _saved(Image.new("L", (4000, 4000)), "JPEG", progressive=True, quality=5)
    scan = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    strips = _directory({256: 1, 257: 2**24, 258: 8, 273: (2**24, 8), 279: (2**24, 8)})
    exif = b"MM\0*\0\0\0\x08\xff\xff" + b"\1\x12\0\7\0\xff\xff\xff\0\0\0\0" * 1_700_000
    webp = b"VP8L\x08\0\0\0\x2f\xfe\xff\xff\x0f\0\0\0"
    return {
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch it_ran) (w) file\n%%EOF\n",
        "portable pixmap": _saved(Image.new("RGB", (8, 8)), "PPM"),
        "icon": _saved(grey, "ICO"),
        "targa": _saved(grey, "TGA"),
        "png of 2^31 pixels a side": png[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png[24:],
        "png with packed text of 16 MiB": _inserted(png, b"zTXt", b"t\0\0" + bomb),
        "png with a packed profile of 16 MiB": _inserted(png, b"iCCP", b"p\0\0" + bomb),
        "png with 4,000 packed profiles": _inserted(png, b"iCCP", b"p\0\0" + zlib.compress(bytes(10**6), 9), 4000),
        "png of 300,000 chunks": _inserted(png, b"abCd", b"", 300_000),
        "png with 20 MB of EXIF": _inserted(png, b"eXIf", exif),
        "gif with a screen of 65535 pixels a side": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "gif with a frame of 65535 pixels a side": gif.replace(b",\0\0\0\0\x08\0\x08\0", b",\0\0\0\0\xff\xff\xff\xff"),
        "gif with 40 MB of comment": gif[:-1].replace(b",\0\0", b"!\xfe" + b"\x01a" * 20_000_000 + b"\0,\0\0", 1),
        "jpeg of 2,000 scans": jpeg[:-2] + scan * 2000 + jpeg[-2:],
        "jpeg of 300,000 segments": jpeg[:2] + b"\xff\xfe\0\2" * 300_000 + jpeg[2:],
        "jpeg with 10 MB between segments": jpeg[:2] + b"\xff" * 10**7 + jpeg[2:],
        "tiff of 16 million strips": strips + bytes(2**25),
        "tiff with a tile of 65536 pixels a side": _tiled(2**16),
        "tiff whose directory is endless": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**62) + bytes(20) * 400_000,
        "bmp of 2^31 pixels a side": _saved(grey, "BMP")[:18] + struct.pack("<ii", 2**31 - 1, -(2**31)) + _saved(grey, "BMP")[26:],
        "webp of 16,383 pixels a side": b"RIFF\x26\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xfe\x3f\0" * 2 + webp,
        "nothing but a name": b"",
    }  # fmt: skip


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to three changes of an image: flipped bits, lost and repeated parts, a piece of another image, extreme numbers.

    Args:
        data: The image.
        other: Where spliced parts come from.
        rng: Decides; also one of hypothesis, which then finds the smallest case.
    """
    for _ in range(rng.randint(1, 3)):
        changed = bytearray(data)
        size = len(data)
        if not size:
            break
        at, end = sorted((rng.randrange(size), rng.randrange(size)))
        kind = rng.choice(("flip", "flip", "cut", "drop", "repeat", "splice", "number", "number", "number"))
        if kind == "flip":
            for _ in range(rng.randint(1, 16)):
                changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at:end]
        elif kind == "repeat":
            changed[at:at] = data[at:end] * min(rng.choice((1, 3, 1000)), 2**20 // max(1, end - at))
        elif kind == "splice":
            changed[at:] = other[rng.randrange(max(1, len(other))) :]
        else:  # mostly where headers are
            width = rng.choice((1, 2, 4, 8))
            place = rng.randrange(min(size, 64) if rng.random() < 0.8 else size)
            number = (rng.choice(_EXTREMES) + rng.choice((-1, 0, 0, 1))) % 256**width
            changed[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
        data = bytes(changed)
    # A PNG whose checksums are wrong is refused before its decoder sees it.
    return _with_checksums(data) if data.startswith(b"\x89PNG") and rng.random() < 0.8 else data


def cases(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Hostile images first, then mutated ones, by name.

    Args:
        count: How many in all.
        seed: The same seed gives the same images.
    """
    corpus = valid_images(seed)
    names, found = list(corpus), list(hostile_images().items())[:count]
    for number in range(len(found), count):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(names)
        found.append((f"{number} of {name}", mutated(corpus[name], corpus[rng.choice(names)], rng)))
    return found


def examine(data: bytes) -> tuple[str, str]:
    """What becomes of an image: "accepted", "refused" or "traceback"; and the words for it.

    A refusal is a ``ValueError`` on one line. Memory that was not to be had is none.
    """
    try:
        image, _ = decode_image(data)
    except MemoryError as error:
        return "traceback", repr(error)
    except ValueError as error:
        words = str(error)
        if "more memory than" in words:
            return "over memory", words
        return ("refused" if words.isprintable() else "traceback"), words
    except Exception as error:
        return "traceback", repr(error)
    sound = image.mode in ("L", "RGB") and np.asarray(image).dtype == np.uint8
    return ("accepted" if sound else "traceback"), f"{image.mode} {image.size}"


def scanned(images: list[tuple[str, bytes]], folder: Path) -> Counter[str]:
    """Scan a folder with these images in a class beside a sound one: how many are taken, refused, and lost sight of."""
    sound = np.random.default_rng(1)
    for split in ("train", "test"):
        for name in ("sound", "attacked"):
            (folder / split / name).mkdir(parents=True)
        for index in range(2):
            pixels = Image.fromarray(sound.integers(0, 256, (9, 9), np.uint8))
            pixels.save(folder / split / "sound" / f"{index}.png")
    Image.fromarray(sound.integers(0, 256, (9, 9), np.uint8)).save(folder / "test/attacked/0.png")
    for index, (_, data) in enumerate(images):
        (folder / "train/attacked" / f"{index:06d}.png").write_bytes(data)
    try:
        scan = ImageFolder(folder).scan()
    except DatasetError as error:
        print(f"scan: {error}")
        return Counter({"scans refused": 1})
    except Exception as error:
        print(f"scan: {error!r}")
        return Counter({"traceback": 1})
    taken = {image.relative_path for image in scan.classes["attacked"].of("train")}
    taken |= {image.relative_path for image in scan.classes["attacked"].of("validation")}
    refused = {error.place for error in scan.classes["attacked"].errors} - taken
    counts = Counter({"taken by a scan": len(taken), "refused by a scan": len(refused)})
    counts["lost by a scan"] = len(images) - len(taken) - sum(place.startswith("train/attacked/") for place in refused)
    counts["sound classes lost"] = int(bool(scan.classes["sound"].errors))
    return counts


def run(count: int, seed: int, keep: Path | None = None) -> dict[str, float]:
    """Attack with images, in processes of :data:`BATCH` each.

    Args:
        count: Images.
        seed: Of what is changed in them.
        keep: Folder for the cases of which something is wrong; None: they are not kept.

    Returns:
        How many were accepted, refused, ended in a traceback, wanted more memory than :data:`MEMORY_MIB` or took longer than
        :data:`SECONDS`; what scans made of them; processes that crashed or hung; lines that Python wrote on the terminal, and
        lines of decoders in C (libtiff writes past Python); the longest ``seconds`` of one image, decoded alone; and the largest
        ``peak_mib`` of a process, with all threads of a scan.
    """
    counts: Counter[str] = Counter()
    seconds = peak = 0.0
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    for start in range(0, count, BATCH):
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            "--count",
            str(count),
            "--seed",
            str(seed),
            "--from",
            str(start),
        ]
        command += [] if keep is None else ["--keep", str(keep)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            counts["hung"] += 1
            continue
        counts["lines of libraries in C"] += len(done.stderr.splitlines())
        if done.returncode:
            counts["crashed"] += 1
            print(f"from {start}: exit status {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        *lines, last = done.stdout.splitlines()
        if lines:
            print(f"from {start}:", *lines[:20], sep="\n", file=sys.stderr)
        told = json.loads(last)
        seconds, peak = max(seconds, told.pop("seconds")), max(peak, told.pop("peak_mib"))
        counts.update(told)
    return {**counts, "seconds": round(seconds, 2), "peak_mib": round(peak)}


def _batch(count: int, seed: int, start: int, keep: Path | None) -> dict[str, float]:
    """The part of :func:`run` that a process of its own does."""
    images = cases(min(count, start + BATCH), seed)[start:]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MIB * 2**20, most))
    counts: Counter[str] = Counter()
    longest = 0.0
    with contextlib.redirect_stderr(io.StringIO()) as written:
        for name, data in images:
            began = time.process_time()  # of this process: what else runs on the machine does not count
            outcome, words = examine(data)
            took = time.process_time() - began
            longest = max(longest, took)
            counts[outcome] += 1
            if outcome in ("traceback", "over memory") or took > SECONDS:
                counts["too slow"] += took > SECONDS
                print(f"{name}: {outcome} after {took:.1f} s: {words}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed} {name}").write_bytes(data)
        # Threads have stacks, and pools of memory that they do not use; what is used is in the peak.
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEMORY_MIB * 2**20, most))
        with tempfile.TemporaryDirectory() as folder:
            counts.update(scanned(images, Path(folder)))
    lines = written.getvalue().splitlines()
    counts["lines on the terminal"] = len(lines)
    print(*lines[:20], sep="\n", end="\n" if lines else "")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**counts, "seconds": longest, "peak_mib": peak}


def _saved(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, name, **options)  # saving as JPEG leaves settings in an image
    return buffer.getvalue()


def _directory(tags: dict[int, int | tuple[int, int]]) -> bytes:
    """Header and only directory of a TIFF; a value is a number, or how many there are and where."""
    entries = [struct.pack("<HHLL", tag, 4, *(v if isinstance(v, tuple) else (1, v))) for tag, v in tags.items()]
    return struct.pack("<2sHLH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4)


def _tiled(side: int) -> bytes:
    """A grey TIFF of 16 x 16 pixels in one packed tile, of which is said that it has sides of ``side``."""
    pixels = zlib.compress(bytes(range(256)))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    head = len(_directory(tags | {324: 0, 325: 0}))
    return _directory(tags | {324: head, 325: len(pixels)}) + pixels


def _inserted(png: bytes, kind: bytes, content: bytes, times: int = 1) -> bytes:
    """A PNG with a chunk behind its header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk * times + png[33:]


def _with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of their contents, as far as there are whole chunks."""
    fixed, place = bytearray(png), 8
    while place + 12 <= len(fixed):
        end = place + 8 + int.from_bytes(fixed[place : place + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return bytes(fixed)


def main() -> None:
    """Attack by command, and exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description="Decode and scan damaged and hostile images, and count what happens.")
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the images of which something is wrong")
    parser.add_argument("--from", type=int, dest="start", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.start is not None:
        print(json.dumps(_batch(asked.count, asked.seed, asked.start, asked.keep)))
        return
    found = run(asked.count, asked.seed, asked.keep)
    print(json.dumps(found, indent=1))
    sys.exit(1 if faults(found) else 0)


def faults(found: dict[str, float]) -> list[str]:
    """What is wrong in the counts of :func:`run`; empty: nothing."""
    never = ("traceback", "over memory", "too slow", "crashed", "hung", "lost by a scan", "sound classes lost")
    wrong = [name for name in (*never, "lines on the terminal", "scans refused") if found.get(name)]
    return wrong + ([f"{found['peak_mib']} MiB"] if found["peak_mib"] > MEMORY_MIB else [])


if __name__ == "__main__":
    main()
