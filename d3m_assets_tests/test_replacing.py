import os
import signal
import subprocess
import sys

import pytest

from d3m_assets.replacing import replacing

WRITER = """
import sys, time
from pathlib import Path
from d3m_assets.replacing import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    time.sleep(600)
"""


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


@pytest.mark.skipif(os.name != "posix", reason="process ids of the dead are known on POSIX only")
def test_what_a_killed_writer_left_is_removed_by_the_next_and_not_what_another_is_writing(tmp_path):
    file = tmp_path / "x[1].json"
    command = [sys.executable, "-c", WRITER, str(file)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, alive = (writer.stdout.readline().strip() for writer in writers)
    try:
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        (tmp_path / "x[1].json.of-another-version.tmp").touch()
        with replacing(file) as temporary:
            temporary.write_text("whole")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"x[1].json", alive, "x[1].json.of-another-version.tmp"}
        assert killed not in left
    finally:
        writers[1].kill()
        writers[1].wait()
