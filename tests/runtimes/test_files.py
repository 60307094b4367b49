"""Files are complete or absent, and read strictly."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from leanear.runtimes.errors import BadInput
from leanear.runtimes.files import read_json, replaced_file, replaced_folder, sha256_file, write_json


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_file_cut_off_leaves_the_old_one_and_no_litter(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_file(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_replaced_file_is_as_private_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    path.chmod(0o600)
    with replaced_file(path) as part:
        part.write_text("new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)


def test_what_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "own end").symlink_to("/proc/self/fd/1")
    for name, said in (("pipe", "a device or a pipe"), ("own end", "what a process has open"), (".", "a folder")):
        with pytest.raises(BadInput, match=said), replaced_file(tmp_path / name):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.readlink(tmp_path / "own end") == "/proc/self/fd/1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own end", "pipe"]


def test_behind_a_link_the_file_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with replaced_file(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_folder_cut_off_leaves_the_old_one_and_no_litter(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OSError, match="disk"), replaced_folder(folder) as part:
        (part / "new").touch()
        raise OSError("disk")
    assert [p.name for p in folder.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_a_folder_is_back_when_its_replacement_is_interrupted(tmp_path, monkeypatch):
    folder, moved = tmp_path / "artifact", []
    folder.mkdir()
    (folder / "old").touch()
    rename = os.replace

    def interrupted_the_second_time(source, target):
        moved.append(source)
        if len(moved) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted_the_second_time)
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder) as part:
        (part / "new").touch()
    assert [p.name for p in folder.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "disk" / "artifact").mkdir(parents=True)
    link = tmp_path / "artifact"
    link.symlink_to(tmp_path / "disk" / "artifact")
    with replaced_folder(link) as part:
        (part / "new").touch()
    assert link.is_symlink()
    assert [p.name for p in (tmp_path / "disk" / "artifact").iterdir()] == ["new"]


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "old").touch()
    with replaced_folder(folder) as part:
        (part / "new").touch()
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[1]", "expected schema"),
        ('{"schema": "leanear-plan-0"}', "found 'leanear-plan-0'"),
        ('{"schema": "leanear-plan-1"}', "missing key 'sites'"),
    ],
)
def test_json_is_read_strictly(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_json(path, "leanear-plan-1", ["sites"])
    assert str(path) in str(caught.value)


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"latency_ms": float("nan")})
    assert not list(tmp_path.iterdir())
