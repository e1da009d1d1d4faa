"""`carl-ray`: the table of commands, exit statuses, signals; the package's lazily imported names."""

from __future__ import annotations

import signal
import subprocess
import sys
import typing

import pytest

import carl_ray
from carl_ray.__main__ import COMMANDS, main
from tests.test_commands import COMMANDS as MODULES
from tests.test_commands import answer


def test_every_command_is_listed_at_once(tmp_path: typing.Any) -> None:
    status, text = answer("carl_ray.__main__", "--help", home=tmp_path)
    assert status == 0 and text.startswith("usage: python -m carl_ray COMMAND")
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == list(COMMANDS)
    modules = {name for name in MODULES if name.startswith("carl_ray.")} - {"carl_ray.__main__"}
    assert modules <= {f"carl_ray.{name.replace('-', '_')}" for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_the_console_script(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/carl-ray", command])
    monkeypatch.setattr("carl_ray.errors.handle_signals", lambda: None)
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: carl-ray {command} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["penn_action"], "did you mean datasets.penn_action?"),
        (["train", "pen_action"], "did you mean penn_action?"),
    ],
)
def test_mistakes_exit_with_status_2(arguments: list[str], message: str, tmp_path: typing.Any) -> None:
    status, text = answer("carl_ray.__main__", *arguments, home=tmp_path)
    assert (status, text.count("\n")) == (2, 0)
    assert text.startswith("carl_ray: ") and message in text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_exit_in_one_line(number: signal.Signals, status: int) -> None:
    code = (
        "import time; from carl_ray import __main__, train\n"
        "train.main = lambda arguments: (print('running', flush=True), time.sleep(60))\n"
        "__main__.main(['train'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "running\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == status
    assert errors.startswith("carl_ray: ") and errors.count("\n") == 1


def test_the_package_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, carl_ray; carl_ray.Config; carl_ray.preset\n"
        "assert not {'torch', 'ray', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_importable_and_no_commands() -> None:
    for name in carl_ray.__all__:
        assert getattr(carl_ray, name) is not None
        assert name in dir(carl_ray)
        assert name not in COMMANDS
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = carl_ray.nothing
