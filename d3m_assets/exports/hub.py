"""Uploading a folder to the Hugging Face hub: the only writing to the network, and only when asked for by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from d3m_assets.errors import BundleError

_EXPORTED = [
    "data/train-*.parquet",
    "train-*.tar",
    "train-*_stats.json",
    "*/[0-9][0-9][0-9][0-9][0-9]*.png",
    "metadata.jsonl",
    "dataset.json",
    "croissant.json",
]
"""Names that exports have; what else is in a repository stays."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository, before anything is computed.

    Raises:
        BundleError: It is none.
    """
    if not _REPOSITORY.fullmatch(name) or ".." in name:
        raise BundleError(f"--push {name}: write owner/name, the repository of the hub that is to be written")


def push_folder(folder: Path, repository: str, kind: Literal["dataset", "model"]) -> str:
    """Upload a folder; a repository that does not exist is made, private.

    Args:
        folder: What to upload; hidden files stay.
        repository: ``owner/name``.
        kind: Of repository.

    Returns:
        The address of the commit.

    Raises:
        BundleError: The hub cannot be reached, or refuses.
    """
    check_repository(repository)
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type=kind,
            ignore_patterns=[".d3m-export*", "**/.*.part"],
            # What an earlier export left, such as shards of another number; the hub's history keeps it.
            delete_patterns=_EXPORTED,
            commit_message="Exported by d3m-assets",
        )
    except Exception as error:  # the client raises many kinds: without a token, without a network, without a right
        raise BundleError(
            f"{folder} is complete, but {repository} could not be written: {error}. `hf auth login` stores a token; the same "
            "command again uploads without generating anything anew"
        ) from error
    return str(commit.commit_url)
