"""What to do when a disk or a service refuses: one sentence for each kind of refusal; and which refusals pass by themselves."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Any

_BY_NUMBER = {
    errno.EACCES: "make it writable, or name another place",
    errno.EPERM: "make it writable, or name another place",
    errno.EROFS: "it is read-only: name another place",
    errno.ENOSPC: "free some space (`d3m prune` lists what nothing needs), or name another place",
    errno.EDQUOT: "your quota is used up: free some space, or name another place",
    errno.EIO: "its disk is failing: copy what can be read to another one, and delete this file (`d3m distill` makes it again)",
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

LATER = "it does not answer just now: run the same command again later; what is finished is kept"
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status codes of requests that may succeed when they are made again."""
_TRANSIENT_CODES = re.compile(
    "SlowDown|ServiceUnavailable|InternalError|InternalFailure|RequestTimeout(Exception)?|Throttling(Exception)?"
    "|TooManyRequests(Exception)?|RequestLimitExceeded|OperationAborted|IncompleteBody|ServerBusy|OperationTimedOut"
)
"""Names of such errors in the answers of S3 and its like; some come with status 400 or 409."""
_TRANSIENT_NUMBERS = re.compile(
    "EBUSY|EAGAIN|ETIMEDOUT|ECONNRESET|ECONNABORTED|ECONNREFUSED|EPIPE|EHOSTUNREACH|ENETUNREACH|ENETDOWN|ENETRESET|EREMOTEIO"
)
"""Of connections; s3fs makes EBUSY of 503 and EREMOTEIO of 500."""
_TRANSIENT_TYPES = re.compile(
    "HTTPClientError|EndpointConnectionError|ConnectTimeoutError|ResponseParserError|IncompleteReadError"
    "|ResponseStreamingError|IncompleteRead|ClientConnectionError|ClientPayloadError|ServerDisconnectedError"
    "|ServiceRequestError|ServiceResponseError|RemoteDisconnected"
)
"""Of botocore, aiohttp, azure-core and http.client, by name: none of these need be installed."""
_UNREACHABLE_TYPES = re.compile("ConnectionRefusedError|EndpointConnectionError|ClientConnectorError|gaierror")


def is_transient(error: BaseException) -> bool:
    """Whether an error of a service says that it is busy or was not reached, not that it refuses or has not got the file."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    for link in _chain(error):
        status = _status(link)
        if status is not None:
            return status in _TRANSIENT_STATUS or bool(_TRANSIENT_CODES.fullmatch(_code(link)))
        if isinstance(link, TimeoutError | ConnectionError) or _is_a(link, _TRANSIENT_TYPES):
            return True
        if isinstance(link, OSError) and _TRANSIENT_NUMBERS.fullmatch(errno.errorcode.get(link.errno or 0, "")):
            return True
    return False


def is_of_one_file(error: BaseException) -> bool:
    """Whether a disk refuses this file, not every file: it is too large for it, or its path too long."""
    return any(isinstance(link, OSError) and link.errno in (errno.EFBIG, errno.ENAMETOOLONG) for link in _chain(error))


def is_unreachable(error: BaseException) -> bool:
    """Whether nobody listens at the address."""
    return any(_is_a(link, _UNREACHABLE_TYPES) for link in _chain(error))


def _is_a(error: BaseException, names: re.Pattern[str]) -> bool:
    return any(names.fullmatch(kind.__name__) for kind in type(error).__mro__)


def _response(error: BaseException) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int | None:
    """Status of the HTTP answer that an error of botocore, aiohttp, gcsfs or azure-core is about."""
    answered = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    for value in (answered, *(getattr(error, name, None) for name in ("status", "status_code", "code"))):
        with contextlib.suppress(TypeError, ValueError):
            if 300 <= int(value) < 600:  # type: ignore[arg-type]
                return int(value)  # type: ignore[arg-type]
    return None


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
    advice = remedy(error) or (LATER if is_transient(error) else "")
    return f"{text}; {advice}" if advice else text


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
