"""The file from which the web server and the daemon of one ``d3m ui`` read where its code servers are."""

from pathlib import Path

from d3m_assets.orchestration.services import _workspace_file, _written


def test_it_is_gone_afterwards_unless_another_process_wrote_over_it(tmp_path: Path) -> None:
    file = _workspace_file(tmp_path, "::1", 3000)
    with _written(file, "mine") as written:
        assert written.read_text() == "mine"
    assert not file.exists()
    with _written(file, "mine"):
        file.write_text("of another")
    assert file.read_text() == "of another"
    assert _workspace_file(tmp_path, "::1", 3001) != file
