from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qexp.commands.recording import run_log
from qexp.errors import ConfigError
from qexp.files import MetricsFile, atomic_write, write_output
from qexp.report.collect import collect
from qexp.runs import RunDirectory, find_runs, link_run, made_by, made_elsewhere, read_run

CONFIG = {"epochs": 2, "output_dir": "outputs"}
IDENTITY = {"format": 1, "bits": [4, 4]}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "outputs" / "train" / "mlp-digits-pact-w4a4-s0-00000000")
    directory.prepare(CONFIG, IDENTITY, {"host": "here"})
    return directory


def test_a_runs_life(run, tmp_path):
    assert RunDirectory(tmp_path / "nowhere").status() == "missing"
    with run.lock():
        assert run.status() == "running"
    assert run.status() == "interrupted"  # killed without a word
    run.write_failure("the loss is not a number", 1)
    assert run.status() == "failed"
    run.write_failure("signal 2", 130, "interrupted")
    assert run.status() == "interrupted"
    run.write_result({"test_accuracy": 0.5, "metrics": {"x": float("nan")}})
    assert run.status() == "done"
    assert run.read_failure() is None
    assert json.loads((run.path / "result.json").read_text())["metrics"] == {"x": None}


def test_a_second_process_is_told_who_holds_the_folder(run):
    code = (
        "import sys\nfrom qexp.runs import RunDirectory\nfrom qexp.errors import ConfigError\n"
        "try:\n    RunDirectory(sys.argv[1]).lock().__enter__()\nexcept ConfigError as e:\n    sys.exit(str(e))"
    )
    with run.lock():
        done = subprocess.run(
            [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert f"in use by process {os.getpid()}" in done.stderr
    with run.lock():
        pass


def test_two_configurations_never_share_a_folder(run):
    with pytest.raises(ConfigError, match="another configuration"):
        run.prepare(CONFIG, {"format": 1, "bits": [2, 2]}, {})
    run.prepare(CONFIG, IDENTITY, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="output_dir: cannot write"):
        RunDirectory(tmp_path / "a" / "b").prepare(CONFIG, IDENTITY, {})


def test_a_place_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output_dir: cannot write"):
        RunDirectory(tmp_path / "file" / "b").prepare(CONFIG, IDENTITY, {})


def test_an_atomic_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    atomic_write(path, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_metrics_survive_a_crash_and_a_resume(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.append(1, 10, {"train_loss": 0.1, "alpha/a.b": 9.5})
    metrics.append(2, 20, {"train_loss": 1e-17, "test_accuracy": 0.9})
    with metrics.path.open("a") as stream:
        stream.write("3,30,train_l")
    assert metrics.rows()[-1] == (2, 20, "test_accuracy", 0.9)
    metrics.truncate(20)
    assert metrics.rows() == [
        (1, 10, "train_loss", 0.1), (1, 10, "alpha/a.b", 9.5), (2, 20, "train_loss", 1e-17)
    ]  # fmt: skip
    metrics.truncate(-1)
    assert metrics.rows() == []
    assert metrics.path.read_text() == "epoch,step,name,value\n"


def test_damaged_folders_are_reported_and_the_others_found(run, tmp_path):
    run.write_result({"test_accuracy": 0.5})
    broken = run.path.parent / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_bytes(b"\xff\xfe: [")
    (broken / "result.json").write_text('{"test_acc')
    cut = run.path.parent / "cut"
    cut.mkdir()
    (cut / "config.yaml").write_text("- a\n- list\n")
    (cut / "failure.json").write_text("[]")
    found = {entry.path.name: entry for entry in find_runs(tmp_path)}
    assert set(found) == {"broken", "cut", run.path.name}
    assert found[run.path.name].status == "done"
    assert found[run.path.name].problem is None
    assert found[run.path.name].config == CONFIG
    assert found[run.path.name].environment == {"host": "here"}
    assert "config.yaml" in found["broken"].problem
    assert "result.json" in found["broken"].problem
    assert "failure.json" in found["cut"].problem
    assert find_runs(tmp_path / "nowhere") == []


def test_reading_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import qexp.runs, sys; sys.exit('torch' in sys.modules)"], check=False
    )
    assert done.returncode == 0


def test_a_warning_is_kept_once(run):
    run.add_warning("a")
    run.add_warning("b")
    run.add_warning("a")
    assert run.read_warnings() == ["a", "b"]


def test_parts_of_killed_writers_are_removed_with_the_lock(run: RunDirectory):
    part = Path(run.path / ".last.ckpt.abc.part")
    part.write_text("half")
    with run.lock():
        assert not part.exists()


def test_a_disk_that_is_full_before_the_first_step_is_one_line(run: RunDirectory, monkeypatch) -> None:
    run.path.mkdir(parents=True, exist_ok=True)

    def full(handle: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qexp.locks.os.write", full)
    with pytest.raises(ConfigError, match=r"cannot write .*No space left on device"), run.lock():
        pass
    monkeypatch.undo()
    with run.lock():
        assert run.locked()


def test_two_commands_that_link_one_run_at_once(tmp_path, monkeypatch) -> None:
    found, other = tmp_path / "one" / "r", tmp_path / "other"
    found.mkdir(parents=True)
    other.mkdir()
    folder = tmp_path / "two" / "r"
    link_run(folder, found)
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)  # it was not there when this one looked
    link_run(folder, found)
    assert folder.resolve() == found.resolve()
    with pytest.raises(ConfigError, match="output_dir: cannot write"):
        link_run(folder, other)


def test_a_folder_that_may_not_be_entered_is_one_line(tmp_path, monkeypatch) -> None:
    def locked(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", locked)
    with pytest.raises(ConfigError, match="Permission denied"):
        made_elsewhere(tmp_path, tmp_path / "train" / "r-1")


def test_a_checkpoint_is_told_by_the_recipe_of_its_run_seeds_aside(tmp_path):
    made = []
    for seed in (0, 1):
        run = RunDirectory(tmp_path / f"s{seed}")
        run.prepare(CONFIG, {"seed": seed, "epochs": 2, "digests": {"data": "d"}}, {})
        run.checkpoint.touch()
        run.write_result({"metrics": {}})
        made.append(made_by(str(run.path), seed))
        assert made_by(str(run.checkpoint), seed) == made[-1]
        assert made_by(str(run.path), seed + 1) is None, "one network for several seeds is one network"
        assert made_by(str(run.path / "other.pt"), seed) is None
    assert made[0] == made[1] is not None
    # A chain: the digest of the weights that its first link started from differs by seed, their recipe does not.
    chains = []
    for seed in (0, 1):
        run = RunDirectory(tmp_path / f"chain{seed}")
        run.prepare(CONFIG, {"seed": seed, "digests": {"data": "d", "weights": f"{seed}"}}, {})
        run.write_result({"metrics": {}, "weights_recipe": made[seed]})
        chains.append(made_by(str(run.path), seed))
    assert chains[0] == chains[1] != made[0]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.yaml", "when: 2024-13-45", "config.yaml: "),
        ("config.yaml", "seed: [1]", "config.yaml: seed is no whole number"),
        ("config.yaml", "epochs: ten", "config.yaml: epochs is no whole number"),
        ("result.json", "[" * 100_000, "result.json: not readable"),
        ("result.json", '{"metrics": [1, 2]}', "its metrics are no numbers"),
        ("result.json", '{"metrics": {"alpha/act1": "big"}}', "its metrics are no numbers"),
        ("result.json", '{"format_version": 2, "metrics": {}}', "of format 2, which a newer qexp wrote"),
    ],
)
def test_whatever_a_folder_holds_is_a_problem_and_no_exception(run, tmp_path, name, content, problem):
    run.write_result({"metrics": {"test_accuracy": 0.9}})
    (run.path / name).write_text(content)
    (one,) = find_runs(tmp_path)
    assert problem in one.problem
    (run.path / "metrics.csv").write_text('epoch,step,name,value\n1,2,"' + "x" * 200_000 + "\n1,2,loss,0.5\n")
    assert run.metrics.rows() == [(1, 2, "loss", 0.5)]


def test_a_folder_of_runs_that_lies_elsewhere_is_followed_once(run, tmp_path):
    (tmp_path / "outputs" / "loop").symlink_to(tmp_path / "outputs")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "pact").symlink_to(tmp_path / "outputs" / "train")
    assert [one.path.name for one in find_runs(tmp_path / "named")] == [run.path.name]
    assert [one.path.name for one in find_runs(tmp_path / "outputs")] == [run.path.name]


def test_a_result_of_earlier_versions_gets_the_digests_of_its_identity(run, tmp_path):
    run.prepare(CONFIG, IDENTITY, {})
    run.write_result({"metrics": {}})
    (run.path / "identity.json").write_text(json.dumps({**IDENTITY, "digests": {"data": "d", "weights": "w"}}))
    (one,) = find_runs(tmp_path)
    assert one.result["weights_digest"] == "w" and "data_digest" not in one.result
    (run.path / "identity.json").write_text('{"seed": 0}')
    assert made_by(str(run.path), 0) is None


def test_what_goes_to_a_pipe_or_a_redirected_stream_replaces_nothing(tmp_path):
    code = (
        "from pathlib import Path; from qexp.files import write_output; write_output(Path('/dev/stdout'), 'new')"
    )
    target = tmp_path / "all.md"
    target.write_text("earlier ")
    with target.open("a") as stream:
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
    assert target.read_text() == "earlier new"
    (tmp_path / "link").symlink_to(target)
    write_output(tmp_path / "link", "through")
    assert (tmp_path / "link").is_symlink() and target.read_text() == "through"


def test_a_run_that_ends_while_it_is_read_is_done_with_its_result(run, monkeypatch):
    status = RunDirectory.status

    def ended(directory: RunDirectory) -> str:
        directory.write_result({"test_accuracy": 0.5})
        return status(directory)

    monkeypatch.setattr(RunDirectory, "status", ended)
    found = read_run(run.path)
    assert (found.status, found.result) == ("done", {"test_accuracy": 0.5})


def test_a_run_tells_its_identity(run):
    assert read_run(run.path).identity == IDENTITY
    (run.path / "identity.json").write_text("[")
    assert read_run(run.path).identity == {}


def test_records_are_no_runs_until_they_are_named(run, tmp_path):
    root, name = tmp_path / "outputs", "mlp-digits-pact-w4a4-s0-11111111"
    for place in ("results/lsq/compare", "pwlq/records", "mine/results"):
        RunDirectory(root / place / name).prepare(CONFIG, IDENTITY, {})
    expected = [root / "mine/results" / name, run.path]
    assert [one.path for one in find_runs(root)] == expected
    assert made_elsewhere(root, root / "train" / name) == expected[0]
    shutil.rmtree(expected[0])
    assert made_elsewhere(root, root / "train" / name) is None
    for named in ("results", "results/lsq/compare", "pwlq/records"):
        assert [one.path.name for one in find_runs(root / named)] == [name]


def test_a_run_in_a_linked_folder_is_found_and_its_link_leads_there(run, tmp_path):
    root = tmp_path / "other" / "deep" / "outputs"
    root.mkdir(parents=True)
    (root / "train").symlink_to(tmp_path / "outputs" / "train")
    (tmp_path / "big").mkdir()
    (root / "pact").symlink_to(tmp_path / "big")
    found = made_elsewhere(root, root / "pact" / run.path.name)
    assert found == root / "train" / run.path.name
    link_run(root / "pact" / run.path.name, found)
    assert (root / "pact" / run.path.name).resolve() == run.path
    assert not (tmp_path / "big" / run.path.name).readlink().is_absolute()


def test_what_may_not_be_looked_at_is_left_out_and_told(run, tmp_path, monkeypatch, caplog):
    root, private = tmp_path / "outputs", tmp_path / "outputs" / "private"
    (private / "x").mkdir(parents=True)
    scandir = os.scandir

    def locked(path):
        if Path(path) == private:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert [one.path for one in find_runs(root)] == [run.path]
    assert made_elsewhere(root, root / "new" / "r-1") is None
    assert caplog.messages == [f"{private}: left out, it cannot be read (Permission denied)"]


def test_files_that_may_not_be_looked_at_are_no_traceback(run, monkeypatch):
    def locked(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    run.metrics.append(0, 1, {"loss": 1.0})
    monkeypatch.setattr(Path, "read_text", locked)
    assert (run.metrics.rows(), run.metrics.damaged()) == ([], 1)
    for look in ("exists", "is_file", "is_symlink", "is_dir"):
        monkeypatch.setattr(Path, look, locked)
    assert run.status() == "missing"
    assert "config.yaml" in read_run(run.path).problem
    with pytest.raises(ConfigError, match="no such folder"):
        collect([run.path])


def test_where_a_run_began_is_kept_when_it_goes_on(run, caplog):
    def environment(threads, host):
        return {"host": host, "packages": {"torch": "2.1"}, "threads": threads, "gpu": None}

    run.prepare(CONFIG, IDENTITY, environment(2, "first"))  # nothing is there to go on from
    run.checkpoint.write_bytes(b"")
    run.prepare(CONFIG, IDENTITY, environment(2, "second"))
    assert caplog.messages == []
    run.prepare(CONFIG, IDENTITY, environment(4, "third"))
    assert caplog.messages == [f"{run.path} goes on with threads 4 (was 2): not bit for bit as it began."]
    assert read_run(run.path).environment["host"] == "first"
    later = json.loads((run.path / "resumed.json").read_text())
    assert [one["host"] for one in later] == ["second", "third"]


def test_a_log_on_a_full_disk_is_silent_and_hides_no_error(run, monkeypatch, capsys):
    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    close = logging.FileHandler.close
    monkeypatch.setattr(logging.StreamHandler, "flush", full)
    with pytest.raises(ValueError, match="the real one"), run_log(run):
        monkeypatch.setattr(logging.FileHandler, "close", lambda self: (close(self), full(self)))
        logging.getLogger("qexp").info("a line")
        raise ValueError("the real one")
    assert capsys.readouterr().err == ""
