"""A PostgreSQL of a test's own, from the programs that Debian's package ``postgresql`` installs."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from d3m_assets_tests.requirements import need

USER, PASSWORD, DATABASE = "dagster", "pass@word/with:signs", "dagster"


def _programs():
    """Folder of initdb, pg_ctl and createdb, of the newest version that is installed; None without."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return folders[-1] if folders else None


PROGRAMS = _programs()
# It refuses to run as root; then the account that the package makes does.
ACCOUNT = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}

needs_postgres = need("postgres", PROGRAMS, "no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")


class PrivatePostgres:
    """A server on a free port of this machine, with the database and the user of ``deploy/compose.yaml``."""

    def __enter__(self):
        # Not below pytest's folder, which is closed to other accounts.
        self.folder = Path(tempfile.mkdtemp(prefix="d3m-postgres-"))
        if ACCOUNT:
            shutil.chown(self.folder, **ACCOUNT)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        try:
            self._run("initdb", "-D", "data", "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
            options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
            self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-t", "60", "-o", options, "start")
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, DATABASE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder)

    def _run(self, program, *arguments):
        # To a file: the server keeps what it inherits open, and reading a pipe would wait for it.
        with (self.folder / "output").open("w+") as output:
            done = subprocess.run(
                [str(PROGRAMS / program), *arguments], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, env=os.environ | {"PGPASSWORD": PASSWORD, "LC_ALL": "C"}, timeout=120, **ACCOUNT,
            )  # fmt: skip
            output.seek(0)
            assert done.returncode == 0, output.read()

    @property
    def environment(self):
        """What ``deploy/dagster.yaml`` reads."""
        return {
            "DAGSTER_PG_HOST": "127.0.0.1", "DAGSTER_PG_PORT": str(self.port), "DAGSTER_PG_DB": DATABASE,
            "DAGSTER_PG_USERNAME": USER, "DAGSTER_PG_PASSWORD": PASSWORD,
        }  # fmt: skip
