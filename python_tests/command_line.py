"""The command line, without a process of its own."""

import sys

import pytest

from fewseg_ext import cli


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command ``fewseg`` in this process, which has imported torch already: exit status, output and errors."""
    before = sys.argv
    sys.argv = ["fewseg", *map(str, arguments)]
    try:
        cli.main()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return status, captured.out, captured.err
