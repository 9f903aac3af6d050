"""Passwords in addresses: found and hidden wherever an address is shown, logged or stored."""

from __future__ import annotations

import contextlib
import re

HIDDEN = "***"
"""What stands in the place of a password."""
_SECRET_NAME = (
    r"[\w.~-]*(?:password|passwd|pwd|secret|token(?![a-z])|signature|credential|api_?key|access_?key|sas)[\w.~-]*"
    r"|sig|key"
)
_SCHEME = r"(?i)((?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://)"
_USER = re.compile(rf"{_SCHEME}([^\s/?#@:\"'<>\[]*):([^\s/?#\"'<>]*)@")
"""``scheme://user:password@``; a password may hold an unescaped @."""
_USER_WITH_SLASH = re.compile(rf"{_SCHEME}([^\s/?#@:\"'<>\[]*):((?!\d{{1,5}}/)(?:(?!://)[^\s?#\"'<>@])+)@")
"""The same with an unescaped / in the password, as secret keys of S3 have; what begins like a port is none."""
_KEYS = re.compile(r"(?i)((?<![a-z0-9+.-])(?:s3a?|gcs|gs|oss)://)([^\s/?#@:\"'<>]*):((?:(?!://)[^\s?#\"'<>@])+)@")
"""The same of an object store, whose addresses have no port: a secret key may begin with digits and a slash."""
_WEB_USER = re.compile(r"(?i)(\bhttps?://)([^\s/?#@:\"'<>]+)@")
"""``https://token@``: a lone name on the web is an access token."""
_QUERY = re.compile(rf"(?i)([?&;#](?:{_SECRET_NAME})=)([^&;\s\"'<>#]+)")


def masked(text: str) -> str:
    """A text with every password of an address in it replaced by ``***``.

    Hidden are what stands behind the user's name before ``@``, a lone name before ``@`` in a web address, and parameters such
    as ``token``, ``X-Amz-Signature`` or ``sig``. A text without ``://`` is returned as it is.
    """
    if "://" not in text:
        return text
    text = _USER.sub(lambda m: f"{m[1]}{m[2]}:{HIDDEN}@" if m[3] else m[0], text)
    text = _KEYS.sub(rf"\1\2:{HIDDEN}@", text)
    text = _USER_WITH_SLASH.sub(rf"\1\2:{HIDDEN}@", text)
    text = _WEB_USER.sub(lambda m: f"{m[1]}{HIDDEN}@" if m[2] != HIDDEN else m[0], text)
    return _QUERY.sub(rf"\1{HIDDEN}", text)


def has_secret(address: str) -> bool:
    """Whether an address holds a password."""
    return masked(address) != address


def mask_error(error: BaseException) -> None:
    """Mask the texts of an error and of its causes: Dagster writes all of them to its event log.

    A cause that makes its text of something else than its arguments is replaced by one that has the masked text.
    """
    _mask_links(error, {})


def _mask_links(link: BaseException, known: dict[int, BaseException]) -> BaseException:
    """The error with masked texts, or what stands for it; a cause is often the context, too."""
    if id(link) in known:
        return known[id(link)]
    known[id(link)] = link
    suppressed = link.__suppress_context__
    if link.__cause__ is not None:
        link.__cause__ = _mask_links(link.__cause__, known)
    if link.__context__ is not None:
        link.__context__ = _mask_links(link.__context__, known)
    link.__suppress_context__ = suppressed
    # Some errors have arguments that cannot be set, or make their text of something else.
    with contextlib.suppress(Exception):
        link.args = tuple(masked(part) if isinstance(part, str) else part for part in link.args)
    if isinstance(link, OSError):
        for name in ("filename", "filename2"):
            if isinstance(value := getattr(link, name), str):
                setattr(link, name, masked(value))
    text = str(link)
    if masked(text) == text:
        return link
    stand_in = Exception(masked(f"{type(link).__name__}: {text}")).with_traceback(link.__traceback__)
    stand_in.__cause__, stand_in.__context__ = link.__cause__, link.__context__
    stand_in.__suppress_context__ = suppressed
    known[id(link)] = stand_in
    return stand_in
