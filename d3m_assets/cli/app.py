"""The program ``d3m``: its parser, and how it ends when something is wrong."""

from __future__ import annotations

import sys
import traceback

import typer

from d3m_assets.addresses import masked
from d3m_assets.cli.help import Commands
from d3m_assets.errors import D3MError
from d3m_assets.store_errors import remedy
from d3m_assets.terminal import INTERRUPTED, answer_interrupts, printable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Commands,
    help="Condense a labelled image dataset into a few learned prompt vectors per class (D3M, arXiv 2403.07142).",
)


def main() -> None:
    """Run ``d3m``; what the user can mend is told in a sentence, without a traceback."""
    import warnings

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=r".*is currently in (beta|preview).*")
    answer_interrupts()
    try:
        app()
    except D3MError as error:
        # A message may quote a file of someone else's, whose names must not steer the terminal.
        lines = [printable(line, 10_000) for line in str(error).splitlines()]
        print("d3m: " + "\n".join(lines), file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:  # a folder that cannot be written, a full disk, a server that is gone
        files = [printable(name, 200) for name in (error.filename, error.filename2) if name is not None]
        place = f": {' and '.join(files)}" if files else ""
        text = printable(error.strerror or error, 2000) + (place if error.strerror else "")
        advice = f"; {remedy(error)}" if remedy(error) else ""
        print(f"d3m: {text}{advice}; what was finished is kept", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception:
        # Not what a person did: the traceback is for us, without the passwords of addresses in it.
        print(masked(traceback.format_exc()), file=sys.stderr)
        print(
            "d3m: this is a defect of d3m-assets; please report the lines above. What was finished is kept",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer makes an exit status of Ctrl-C, without a word.
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        print("d3m: stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
