"""The process runtime and the operators: exit codes, environment, output, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from evpack.home import Home
from evpack.processes import cores
from evpack.runtime.pools import cpu_slots, pool_slots
from evpack.runtime.process import StepProcess, die_with_parent, step_command, step_environment
from tests.waiting import DEADLINE_S, until_gone


def python(code: str) -> StepProcess:
    return StepProcess([sys.executable, "-c", code], os.environ)


def test_output_lines_come_in_order_and_the_code_is_returned() -> None:
    lines: list[str] = []
    code = python("import sys; print('one'); print('two', file=sys.stderr, flush=True); sys.exit(13)").run(lines.append)
    assert (code, sorted(lines)) == (13, ["one", "two"])


def test_output_that_is_not_utf8_does_not_stop_a_step() -> None:
    lines: list[str] = []
    assert python(r"import os; os.write(1, b'a\xffb\n')").run(lines.append) == 0
    assert lines == ["a\ufffdb"]


def test_a_line_without_an_end_comes_in_pieces() -> None:
    lines: list[str] = []
    assert python("print('x' * 500_000, end='')").run(lines.append) == 0
    assert "".join(lines) == "x" * 500_000 and len(lines) > 1


def test_a_signal_shows_as_a_negative_code() -> None:
    assert python("import os; os.kill(os.getpid(), 9)").run(print) == -9


def test_terminate_ends_the_whole_group_even_when_it_ignores_sigterm() -> None:
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    process, seen, ready = python(code), [], threading.Event()

    def emit(line: str) -> None:
        seen.append(int(line))
        ready.set()

    result: list[int] = []
    runner = threading.Thread(target=lambda: result.append(process.run(emit)))
    runner.start()
    assert ready.wait(DEADLINE_S)
    process.terminate(grace_s=0.2)
    runner.join(DEADLINE_S)
    process.terminate()  # a second call finds nobody
    assert result[0] < 0
    until_gone(seen[0])


def test_terminate_before_start_does_nothing() -> None:
    python("").terminate()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_dies_with_a_killed_parent() -> None:
    code = (
        "import subprocess, signal, sys\n"
        "from evpack.runtime.process import die_with_parent\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                         preexec_fn=die_with_parent(signal.SIGKILL), stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    until_gone(child)


def test_the_hook_exists_where_the_kernel_can_do_it() -> None:
    assert (die_with_parent(signal.SIGTERM) is not None) == (sys.platform == "linux")


def test_the_command_is_the_one_every_runtime_uses(tmp_path: Path) -> None:
    command = step_command(tmp_path, "m.calibrate", attempt=2, dag_run="scheduled__2026-11-23T02:00:00+00:00")
    assert command[1:] == [
        *("-m", "evpack.cli.main", "step", str(tmp_path), "m.calibrate", "--try", "2"),
        *("--dag-run", "scheduled__2026-11-23T02:00:00+00:00"),
    ]
    assert "--dag-run" not in step_command(tmp_path, "m.calibrate", attempt=1, dag_run=None)


def test_a_step_sees_no_secret_and_no_setting(tmp_path: Path) -> None:
    environ = {
        "PATH": "/bin",
        "PACK_SIGNING_KEY": "/key.pem",
        "PACK_NET": "1",
        "INVARLOCK_SEQ_LEN": "9",
        "AIRFLOW__API_AUTH__JWT_SECRET": "s",
        "AIRFLOW_HOME": "/airflow",
        "HF_TOKEN": "hf_x",
    }
    offline = step_environment(environ, home=Home(tmp_path), threads=2, network=False)
    assert offline == {
        "PATH": "/bin",
        "EVPACK_HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "2",
        "EVPACK_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    online = step_environment({**environ, "HF_HOME": "/cache"}, home=Home(tmp_path), threads=1, network=True)
    assert online["HF_TOKEN"] == "hf_x"
    assert online["HF_HOME"] == "/cache"
    assert "HF_HUB_OFFLINE" not in online


def test_slots_are_at_least_one_and_at_most_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUM_GPUS", "0")
    assert 1 <= cpu_slots() <= cores()
    assert pool_slots() == {"cpu": cpu_slots(), "gpu": 0}
