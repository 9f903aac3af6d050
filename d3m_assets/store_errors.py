"""What to do when a disk or a service refuses: one sentence for each kind of refusal."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

_BY_NUMBER = {
    errno.EACCES: "make it writable, or name another place",
    errno.EPERM: "make it writable, or name another place",
    errno.EROFS: "it is read-only: name another place",
    errno.ENOSPC: "free some space (`d3m prune` lists what nothing needs), or name another place",
    errno.EDQUOT: "your quota is used up: free some space, or name another place",
    errno.EFBIG: "it takes no file of this size: name another place",
    errno.ENAMETOOLONG: "it is longer than the file system takes: give a shorter path",
    errno.ENOTDIR: "a part of the path is a file: give a folder",
    errno.ECONNREFUSED: "no server answers there: start it, or correct the address",
}
_BY_WORDS = (
    (("NoSuchBucket", "bucket does not exist"), "create the bucket, or correct its name in `storage`"),
    (
        ("NoCredentials", "Unable to locate credentials"),
        "give credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
    ),
    (
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "AccessDenied",
            "Access Denied",
            "Unauthorized",
            "Forbidden",
            "401",
            "403",
        ),
        "the service refuses these credentials: check them, and that they may list, read, write and delete there",
    ),
    (
        ("Could not connect", "Connect call failed", "EndpointConnectionError", "Name or service not known", "refused"),
        "no server answers there: start it, or correct the address (AWS_ENDPOINT_URL for S3)",
    ),
)


def remedy(error: BaseException) -> str:
    """What to do about an error of a file system or service; empty where nothing particular is known."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno is not None:
            if link.errno in _BY_NUMBER:
                return _BY_NUMBER[link.errno]
            continue  # of this machine, whatever words the path has in it
        text = f"{type(link).__name__} {link}"
        for words, advice in _BY_WORDS:
            if any(re.search(rf"(?<![\w/.-]){re.escape(word)}(?![\w/.-])", text) for word in words):
                return advice
    return ""


def explained(error: BaseException) -> str:
    """The text of an error, with what to do about it where that is known."""
    text = str(error) or type(error).__name__
    return f"{text}; {advice}" if (advice := remedy(error)) else text


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
