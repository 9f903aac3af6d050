"""Passwords in addresses: found and hidden wherever an address is shown, logged or stored."""

from __future__ import annotations

import contextlib
import re

HIDDEN = "***"
"""What stands in the place of a password."""
_SECRET_NAME = (
    r"[\w.~-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key|sas)[\w.~-]*|sig|key"
)
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)([^\s/?#@:\"'<>]*):([^\s/?#\"'<>]*)@")
"""``scheme://user:password@``; a password may hold an unescaped @."""
_USER_WITH_SLASH = re.compile(
    r"(?i)(\b[a-z][a-z0-9+.-]*://)([^\s/?#@:\"'<>]*):((?!\d{1,5}/)(?:(?!://)[^\s?#\"'<>@])+)@"
)
"""The same with an unescaped / in the password, as secret keys of S3 have; what begins like a port is none."""
_WEB_USER = re.compile(r"(?i)(\bhttps?://)([^\s/?#@:\"'<>]+)@")
"""``https://token@``: a lone name on the web is an access token."""
_QUERY = re.compile(rf"(?i)([?&;](?:{_SECRET_NAME})=)([^&;\s\"'<>#]+)")


def masked(text: str) -> str:
    """A text with every password of an address in it replaced by ``***``.

    Hidden are what stands behind the user's name before ``@``, a lone name before ``@`` in a web address, and parameters such
    as ``token``, ``X-Amz-Signature`` or ``sig``. A text without ``://`` is returned as it is.
    """
    if "://" not in text:
        return text
    text = _USER.sub(lambda m: f"{m[1]}{m[2]}:{HIDDEN}@" if m[3] else m[0], text)
    text = _USER_WITH_SLASH.sub(rf"\1\2:{HIDDEN}@", text)
    text = _WEB_USER.sub(lambda m: f"{m[1]}{HIDDEN}@" if m[2] != HIDDEN else m[0], text)
    return _QUERY.sub(rf"\1{HIDDEN}", text)


def has_secret(address: str) -> bool:
    """Whether an address holds a password."""
    return masked(address) != address


def mask_error(error: BaseException) -> None:
    """Mask the texts of an error and of its causes: Dagster writes all of them to its event log."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        # Some errors have arguments that cannot be set, or make their text of something else; those stay as they are.
        with contextlib.suppress(Exception):
            link.args = tuple(masked(part) if isinstance(part, str) else part for part in link.args)
        if isinstance(link, OSError):
            for name in ("filename", "filename2"):
                if isinstance(value := getattr(link, name), str):
                    setattr(link, name, masked(value))
        link = link.__cause__ or link.__context__
