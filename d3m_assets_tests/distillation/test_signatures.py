"""A bundle is signed and checked by OpenSSH, as docs/how-to/exports.md says."""

import shutil
import subprocess

import pytest

from d3m_assets_tests.distillation.test_bundle import bundle

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen signs; it comes with OpenSSH 8.0"
)
SIGN = "ssh-keygen -Y sign -n d3m-bundle -f ~/.ssh/id_ed25519 bundle.safetensors"
CHECK = "ssh-keygen -Y verify -n d3m-bundle -f allowed_signers -I ada@example.org -s bundle.safetensors.sig < bundle.safetensors"


def test_a_signature_holds_until_a_bit_changes(words, tmp_path):
    def run(command):
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
        )

    (tmp_path / ".ssh").mkdir()
    assert run("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519").returncode == 0
    key = (tmp_path / ".ssh" / "id_ed25519.pub").read_text()
    (tmp_path / "allowed_signers").write_text(f"ada@example.org {key}")
    file = tmp_path / "bundle.safetensors"
    file.write_bytes(bundle(words).to_bytes())
    assert run(SIGN).returncode == 0
    done = run(CHECK)
    assert done.returncode == 0 and b"Good" in done.stdout, done.stderr
    changed = bytearray(file.read_bytes())
    changed[100] ^= 1
    file.write_bytes(changed)
    assert run(CHECK).returncode != 0
    file.write_bytes(bundle(words, seed=1).to_bytes())  # a sound bundle, which she has not signed
    assert run(CHECK).returncode != 0
