"""Alerts: failures reach a person through a webhook, a command, or both, as the settings say.

A hook that fails is logged and never raised: an alert must not break what it tells of. The address of a webhook often is a
secret, so no message here holds it, nor what libraries say about it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from d3m_assets.settings import AutomationSettings

WEBHOOK_SECONDS = 10.0
COMMAND_SECONDS = 30.0
LISTED = 20
"""Failed artefacts that the text names; all of them are in ``failed``."""
UNUSABLE = "d3m/unusable"
"""Key under which the instance keeps what the dataset or the store was last found to be unusable for."""


@dataclass(frozen=True)
class Alert:
    """What a person is told.

    Attributes:
        title: One sentence.
        job: Of the failed run; empty: no run failed.
        run_id: Of the failed run.
        failed: A message for each failed artefact.
        url: Page of the run, if ``automation.ui_url`` is set.
    """

    title: str
    job: str = ""
    run_id: str = ""
    failed: Sequence[str] = ()
    url: str = ""

    @property
    def text(self) -> str:
        """Everything for people, in lines."""
        lines = [self.title, *self.failed[:LISTED]]
        if len(self.failed) > LISTED:
            lines.append(f"and {len(self.failed) - LISTED} more")
        return "\n".join([*lines, *([self.url] if self.url else [])])

    def to_json(self) -> bytes:
        """As it is posted: ``text``, which chat services show, and its parts for programs."""
        parts = {"job": self.job, "run_id": self.run_id, "failed": list(self.failed), "url": self.url}
        return json.dumps({"text": self.text, "title": self.title, **parts}, ensure_ascii=False).encode()


def send(settings: AutomationSettings, alert: Alert, log: logging.Logger) -> None:
    """Tell whoever the settings name; what goes wrong with it is logged."""
    body = alert.to_json()
    if settings.failure_webhook is not None:
        try:
            _post(settings.failure_webhook.get_secret_value(), body)
        except Exception as error:  # of several libraries; none of them may break the sensor or name the address
            log.error("automation.failure_webhook took no alert: %s", _without_address(error))
    if settings.failure_command:
        try:
            _execute(settings.failure_command, body)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            log.error("automation.failure_command took no alert: %s", error)


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(  # noqa: S310  # the settings accept http and https only
        url, data=body, headers={"Content-Type": "application/json; charset=utf-8"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):  # noqa: S310
        pass


def _without_address(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, OSError):
        return f"{type(reason).__name__} {reason.strerror or ''}".strip()
    return type(reason).__name__


def _execute(command: Sequence[str], body: bytes) -> None:
    # Files instead of pipes: a grandchild that outlives the command would hold a pipe open, and reading it never end.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(body)
        given.seek(0)
        process = subprocess.Popen(
            list(command), stdin=given, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise subprocess.SubprocessError(f"{command[0]} ran longer than {COMMAND_SECONDS:.0f} s") from None
        finally:
            if process.poll() is None:
                _kill(process)
        if status:
            said.seek(0, os.SEEK_END)
            said.seek(max(0, said.tell() - 500))
            words = said.read().decode(errors="replace").strip()
            raise subprocess.SubprocessError(f"{command[0]} ended with status {status}: {words}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def unusable(
    instance: dg.DagsterInstance,
    settings: AutomationSettings,
    error: Exception,
    log: logging.Logger,
    *,
    at_once: bool = False,
) -> None:
    """Tell that nothing can be planned because dataset, settings or store cannot be used; once for each message.

    Args:
        instance: Keeps what was told.
        settings: Whom to tell.
        error: What was raised.
        log: For a hook that fails.
        at_once: Tell at the first sight. Otherwise at the second in a row with the same message: the message about a dataset
            that is being copied is another one at each look.
    """
    state = json.loads(instance.daemon_cursor_storage.get_cursor_values({UNUSABLE}).get(UNUSABLE) or "{}")
    message = str(error)
    again = state.get("message") == message
    told = again and state.get("told", False)
    if not told and (again or at_once):
        send(settings, Alert(f"d3m-assets: nothing can be distilled: {message}"), log)
        told = True
    instance.daemon_cursor_storage.set_cursor_values({UNUSABLE: json.dumps({"message": message, "told": told})})


def usable(instance: dg.DagsterInstance) -> None:
    """Forget what :func:`unusable` told, so that the same is told again when it comes back."""
    if instance.daemon_cursor_storage.get_cursor_values({UNUSABLE}).get(UNUSABLE, "{}") != "{}":
        instance.daemon_cursor_storage.set_cursor_values({UNUSABLE: "{}"})


def build_failure_sensors(settings: AutomationSettings) -> list[dg.SensorDefinition]:
    """The sensor ``run_failures``, which tells of failed runs of this code location; none without anybody to tell."""
    if settings.failure_webhook is None and not settings.failure_command:
        return []

    @dg.run_failure_sensor(
        name="run_failures",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells a person of failed runs, through automation.failure_webhook and automation.failure_command.",
    )
    def run_failures(context: dg.RunFailureSensorContext) -> None:
        send(settings, alert_of_run(context, settings.ui_url), context.log)

    return [run_failures]


def alert_of_run(context: dg.RunFailureSensorContext, ui_url: str = "") -> Alert:
    """What is told of a failed run: each artefact that failed, or else what Dagster says."""
    run = context.dagster_run
    failed: list[str] = []
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        if (user := data.user_failure_data) is None:
            failed.append(f"{event.step_key}: {data.error.message.strip() if data.error else event.message}")
        elif isinstance(listed := user.metadata.get("failed"), dg.JsonMetadataValue):
            failed += [str(message) for message in listed.data or ()]
        else:
            failed.append(str(user.description or user.label))
    failed = failed or [str(context.failure_event.message)]
    again = "; Dagster runs it again" if run.tags.get("dagster/will_retry") == "true" else ""
    url = f"{ui_url.rstrip('/')}/runs/{run.run_id}" if ui_url else ""
    return Alert(
        f"d3m-assets: run {run.run_id[:8]} of {run.job_name} failed{again}", run.job_name, run.run_id, failed, url
    )
