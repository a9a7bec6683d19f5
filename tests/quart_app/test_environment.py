"""The file `.env`, secrets that cannot be read, and misspelt names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quart_app import environment
from quart_app.environment import UnreadableFile, load, sentences_about_unknown
from quart_app.exits import EXIT_SETUP
from quart_app.local.ports import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an environment that is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("ENV_FILE", "PORT", "REDIS_PASSWORD"):
        os.environ.pop(name, None)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"REDIS_PASSWORD=word\n", "word"),
        (b"REDIS_PASSWORD=word\r\n", "word"),
        (b"export REDIS_PASSWORD=word # mine\n", "word"),
        (b"REDIS_PASSWORD = 'two words'\n", "two words"),
        (b'REDIS_PASSWORD="it\'s"\n', "it's"),
        (b"REDIS_PASSWORD=$HOME${HOME}\n", "$HOME${HOME}"),
        (b"\xef\xbb\xbfREDIS_PASSWORD=word\n", "word"),
        ("REDIS_PASSWORD=pässwörd\n".encode(), "pässwörd"),
    ],
)
def test_a_file_of_settings_is_read_as_it_is_written(folder: Path, line: bytes, value: str) -> None:
    """Any editor may have written the file; nothing in a value is replaced."""
    (folder / ".env").write_bytes(line)
    load()
    assert os.environ["REDIS_PASSWORD"] == value


def test_the_environment_wins_over_the_file(folder: Path) -> None:
    """What is said for one run is meant; a missing file is no error."""
    load()
    os.environ["PORT"] = "1"
    (folder / ".env").write_text("PORT=2\nHOST=::1\n")
    load()
    assert (os.environ["PORT"], os.environ["HOST"]) == ("1", "::1")


def test_another_file_can_be_named(folder: Path) -> None:
    """One that is named must exist; /dev/null is none at all."""
    (folder / ".env").write_text("PORT=2\n")
    (folder / "other").write_text("PORT=3\n")
    os.environ["ENV_FILE"] = os.devnull
    load()
    assert "PORT" not in os.environ
    os.environ["ENV_FILE"] = "other"
    load()
    assert os.environ["PORT"] == "3"
    os.environ["ENV_FILE"] = "missing"
    with pytest.raises(UnreadableFile, match="missing, which does not exist"):
        load()
    os.environ["ENV_FILE"] = "folder"
    (folder / "folder").mkdir()
    with pytest.raises(UnreadableFile, match="folder, which is a folder"):
        load()


@pytest.mark.parametrize(
    ("content", "why"), [(b"PORT\n", "PORT has no value; a line is NAME=value"), (b"PORT=\xff\n", "is not UTF-8 text")]
)
def test_a_file_that_cannot_be_read_is_a_sentence(folder: Path, content: bytes, why: str) -> None:
    """The message has the name of the file."""
    (folder / ".env").write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"^\.env.*{why}"):
        load()


def replica(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A replica that is started in this folder, with nothing else in its environment."""
    command = [sys.executable, "-m", "quart_app"]
    env = {"PATH": "", "PYTHONPATH": str(ROOT), "SERVICES": "values", "PORT": "0", "PRIVATE_PORT": "0", **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """What a replica said that ended with status 78 and a sentence."""
    said = done.stdout + done.stderr
    assert done.returncode == EXIT_SETUP and "Traceback" not in said, said
    return said


def test_a_replica_reads_the_file_of_its_folder(tmp_path: Path) -> None:
    """As in the task text: create `.env`, then start the server."""
    (tmp_path / ".env").write_text("MESH_CLASS=E\n")
    assert "MESH_CLASS" in refused(replica(tmp_path))
    (tmp_path / ".env").write_text("MESH_CLASS\n")
    assert "MESH_CLASS has no value" in refused(replica(tmp_path))


def not_text(secret: Path) -> None:
    secret.write_bytes(b"secret-word\xff")


def a_folder(secret: Path) -> None:
    secret.mkdir()


def outside(secret: Path) -> None:
    secret.symlink_to("/etc/hostname")


def no_rights(secret: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    secret.write_text("secret-word")
    secret.chmod(0)


@pytest.mark.parametrize("made", [not_text, a_folder, outside, no_rights])
@pytest.mark.parametrize("name", ["redis_password", "grades_password"])
def test_a_secret_that_cannot_be_read_is_a_sentence(tmp_path: Path, made: object, name: str) -> None:
    """Exit status 78; nothing of what was read is printed."""
    (tmp_path / "secrets").mkdir()
    made(tmp_path / "secrets" / name)  # type: ignore[operator]
    env = {"SECRETS_DIR": str(tmp_path / "secrets"), "SERVICES": "grades", "REDIS_PORT": str(free_port())}
    assert "secret-word" not in refused(replica(tmp_path, **env))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("REDIS_PASWORD", "REDIS_PASWORD is no setting; did you mean REDIS_PASSWORD?"),
        ("MESH_LEASE_TTL", "MESH_LEASE_TTL is no setting; did you mean MESH_LEASE_TTL_MS?"),
        ("MESH_COLOUR", "MESH_COLOUR is no setting"),
        ("DRAIN_MSS", "DRAIN_MSS is no setting; did you mean DRAIN_MS?"),
        ("SERVICE", "SERVICE is no setting; did you mean SERVICES?"),
        ("REDIS_PASSWORD", None),
        ("MESH_CLASS", None),
        ("MESH_DATA", None),
        ("REDIS_MAXMEMORY", None),
        ("HOSTNAME", None),
        ("HOME", None),
        ("LC_ALL", None),
        ("redis_pasword", None),
        ("REDIS_PORT_6379_TCP_ADDR", None),
        ("REDIS_SERVICE_HOST", None),
        ("MESH_SERVICE_PORT_HTTP", None),
    ],
)
def test_a_misspelt_name_is_named(name: str, said: str | None) -> None:
    """The message has the setting that was probably meant; what other programs set is left alone."""
    assert sentences_about_unknown({name: "1"}) == ([] if said is None else [said])


def test_the_check_of_names_knows_every_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of a service that does not run is no misspelt one."""
    monkeypatch.setenv("GRADES_SNAPSHOT_EVRY", "1")
    monkeypatch.setenv("GRADES_SNAPSHOT_DIR", "1")
    monkeypatch.setenv("FREE_PROVIDER_URL", "http://x")
    done = subprocess.run(
        [sys.executable, "-m", "quart_app.environment"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "GRADES_SNAPSHOT_EVRY is no setting; did you mean GRADES_SNAPSHOT_EVERY?\n"


def test_a_replica_names_misspelt_settings_in_its_log(tmp_path: Path) -> None:
    """The replica starts all the same, because the name may be meant for another program."""
    done = replica(tmp_path, MESH_DEADLINE="1", LOG_FORMAT="console", GRADES_USERNAME="", HOST="203.0.113.1")
    assert "MESH_DEADLINE is no setting; did you mean MESH_DEADLINE_MS?" in refused(done)


def test_the_example_of_a_file_of_settings_names_settings() -> None:
    """Every line of it, also those that are commented out, is a setting with its default or a sensible value."""
    lines = (ROOT / "env.example").read_text().splitlines()
    names = [line.removeprefix("#").partition("=")[0] for line in lines if "=" in line and not line.startswith("# ")]
    assert len(names) > 10
    for kind in ("values", "addresses", "messages", "grades", "movements"):
        __import__(f"quart_app.{kind}.settings")
    known = environment.OTHER_NAMES.union(*environment.names_by_class().values())
    assert [name for name in names if name not in known] == []
    assert (ROOT / ".env.example").read_text() == (ROOT / "env.example").read_text()
