"""Calls the command line in this process, as the installed `saeflow` would be called."""

import sys
from unittest import mock

import pytest

from flows.cli import main


def saeflow(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Returns (exit code, standard output, standard error) of `saeflow ARGUMENTS`."""
    capsys.readouterr()
    code = 0
    with mock.patch.object(sys, "argv", ["saeflow", *arguments]), mock.patch.dict("os.environ", {"COLUMNS": "400"}):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err
