"""A bundle of classes whose names programs trip over, and a script that exports it in a process of its own."""

import sys
from pathlib import Path

from d3m_assets.distillation.bundle import Bundle
from d3m_assets.distillation.prompts import ClassPrompts
from d3m_assets_tests.distillation.test_bundle import bundle

NAMES = ("train", "test", "val", "100%_{x}", "café", "A", "a")


def tricky_bundle(foundation, names=NAMES, **changes) -> Bundle:
    def words(name, class_id=0):
        return ClassPrompts.of(
            class_id, f"key-{class_id}", name, templates=("a photo of a {}",), initializer=None, keep_class_name=True
        )

    return bundle(words, names, foundation_fingerprint=foundation.files.fingerprint, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents of all files of a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def resident_kib() -> int:
    """Memory that this process holds, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Export a bundle; print after every image how many are done, processor seconds since the model was there, and memory."""
    import time

    from d3m_assets.exports.images import regenerate
    from d3m_assets.foundation.files import FoundationFiles, embedded_path
    from d3m_assets.foundation.loading import load_foundation

    path, output, image_format, per_class = sys.argv[1:]
    foundation = load_foundation(FoundationFiles("embedded", embedded_path()), "cpu")
    begun = time.process_time()

    def told(event):
        print(event.done, f"{time.process_time() - begun:.2f}", resident_kib(), flush=True)

    regenerate(
        Bundle.load(path), foundation, Path(output), per_class=int(per_class), image_format=image_format, progress=told
    )


if __name__ == "__main__":
    main()
