"""What a folder was begun with, and what a later command may change of it."""

import json
from pathlib import Path

import pytest
import torch

from training import checkpoint, export
from training.make import wanted_settings
from training.settings import EndToEnd, Settings
from training.student import SCALED, Group, load_stage


def wanted(work: Path, **given: str):
    return wanted_settings(given, work, "cpu")


@pytest.mark.parametrize("text", ["1h", "", "s", "-5", "0s", "nans", "infs"])
def test_a_wrong_length_is_refused_and_not_kept(tmp_path, text):
    wanted(tmp_path, MIX="240s")
    with pytest.raises(SystemExit, match=f"MIX={text} is no length"):
        wanted(tmp_path, MIX=text)
    assert wanted(tmp_path)[0].mix.seconds == 240


def test_a_folder_keeps_the_model_that_it_was_begun_with(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no file .*three.gguf"):
        wanted(work, FROM="three.gguf")
    begun = str(tmp_path / "one.gguf")
    assert wanted(work, FROM="one.gguf")[1] == begun
    monkeypatch.chdir(work)
    assert wanted(work)[1] == begun
    assert wanted(work, FROM="../one.gguf")[1] == begun
    with pytest.raises(SystemExit, match="begun with FROM="):
        wanted(work, FROM="../two.gguf")
    assert wanted(work)[1] == begun


@pytest.mark.parametrize("name", ["statistics.pt", "distill.pt"])
def test_a_folder_with_stages_of_its_own_takes_no_finished_model(tmp_path, name):
    (tmp_path / "one.gguf").touch()
    (tmp_path / name).touch()
    with pytest.raises(SystemExit, match="stages of its own"):
        wanted(tmp_path, FROM=str(tmp_path / "one.gguf"))
    assert wanted(tmp_path)[1] is None
    assert "FROM" not in json.loads((tmp_path / "settings.json").read_text())


def test_a_mix_of_a_finished_model_is_looked_at_while_it_runs(tmp_path, monkeypatch):
    """Its folder has no seeded.pt: the frozen codes are the finished model's."""
    layer = {"router": torch.rand(3, 4), "shared_down": torch.rand(4, 8)}
    for name in SCALED:
        layer |= {f"{name}_codes": torch.full((2, 32), 7, dtype=torch.uint8)}
        layer |= {f"{name}_{part}": torch.rand(2, 1) for part in ("scales", "minima")}
    settings, norm = Settings(), {"output_norm": torch.rand(4)}
    groups = [Group(tensors, EndToEnd(tokens=1), "cpu").state() for tensors in (layer, norm)]
    checkpoint.save({"groups": groups}, tmp_path / "mix-progress.pt")
    monkeypatch.setattr(export, "read_gguf", lambda path, shape: {"layers": [layer]})
    (loaded,), output_norm = load_stage(tmp_path, "mix", None, (None, None), settings, "one.gguf")
    assert torch.equal(output_norm, norm["output_norm"]) and torch.equal(loaded["router"], layer["router"])
    expected = 7 * layer["o_scales"] + layer["o_minima"]
    torch.testing.assert_close(loaded["o"].float(), expected.expand(2, 32), rtol=1e-2, atol=1e-2)


def test_another_seed_is_another_run_in_a_folder_of_its_own(tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    first, second = wanted(tmp_path / "one")[0].seed, wanted(tmp_path / "two", SEED="2")[0].seed
    assert second == first + 2 == wanted(tmp_path / "two")[0].seed
    for work, seed in ((tmp_path / "one", "1"), (tmp_path / "two", "0")):
        with pytest.raises(SystemExit, match="begun with SEED="):
            wanted(work, SEED=seed)
    with pytest.raises(SystemExit, match="no number"):
        wanted(tmp_path / "two", SEED="-1")
