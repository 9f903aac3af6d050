import os
import subprocess
import sys
from pathlib import Path

import pytest

from d3m_assets.replacing import _machine, replacing

WRITER = """
import sys, time
from pathlib import Path
from d3m_assets.replacing import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    time.sleep(600)
"""


def test_containers_without_a_machine_id_are_told_apart_by_their_processes(monkeypatch):
    read_text, readlink, spaces = Path.read_text, Path.readlink, iter(["pid:[1]", "pid:[2]", "pid:[2]"])

    def no_machine_id(path, *given):
        if str(path) == "/etc/machine-id":
            raise FileNotFoundError
        return read_text(path, *given)

    monkeypatch.setattr(Path, "read_text", no_machine_id)
    monkeypatch.setattr(Path, "readlink", lambda path: next(spaces) if "ns/pid" in str(path) else readlink(path))
    first, second, again = (_machine.__wrapped__() for _ in range(3))
    assert first != second == again


def test_what_is_written_takes_the_place_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.json"
    with replacing(file) as temporary:
        temporary.write_text("one")
        assert not file.exists()
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert file.read_text() == "one"


def test_what_a_killed_writer_left_is_removed_by_the_next_and_not_what_another_is_writing(tmp_path):
    file = tmp_path / "x[1].json"
    command = [sys.executable, "-c", WRITER, str(file)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, alive = (writer.stdout.readline().strip() for writer in writers)
    try:
        writers[0].kill()
        writers[0].wait()
        (tmp_path / "x[1].json.of-another-version.tmp").touch()
        with replacing(file) as temporary:
            temporary.write_text("whole")
        # Elsewhere nobody can say which process ids are of the dead, and what they left stays.
        of_the_dead = set() if os.name == "posix" else {killed}
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"x[1].json", alive, "x[1].json.of-another-version.tmp"} | of_the_dead
    finally:
        writers[1].kill()
        writers[1].wait()
