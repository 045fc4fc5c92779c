"""Profiles and schedules shared as a folder or as a repository of the hub, of which a server on this machine takes the
place.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import dicache
from dicache.errors import ProfileError, ScheduleError
from dicache.files.hub import is_of_hub, located
from dicache.promise.choose_profile import SHIPPED
from dicache.promise.metrics import asked
from dicache.types import Wanted

STEPS = 28


@pytest.fixture
def profile():
    return dicache.Profile.load(SHIPPED / "reference-28-guided.json")


@pytest.fixture
def schedule():
    pipe = dicache.reference.pipeline()
    letters = "##" + "#=" * 3
    return dicache.Schedule.from_letters(pipe, letters, dicache.reference.prompts("calibration", 1))


@pytest.fixture
def front(schedule):
    pipe = dicache.reference.pipeline()
    cheap = dicache.Schedule.from_letters(pipe, "##" + "=" * 6, dicache.reference.prompts("calibration", 1))
    return dicache.ParetoSet((cheap, schedule))


def hub_of(repositories):
    """A server that answers as the hub does, of folders by repository."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            requests.append((self.command, self.path))
            user, name, _, revision, file = self.path.strip("/").split("/")
            folder = repositories.get(f"{user}/{name}")
            path = None if folder is None else folder / file
            if path is None or not path.is_file() or revision not in ("main", "v1", COMMIT):
                self.send_response(404)
                code = "RepoNotFound" if folder is None else "EntryNotFound" if path.is_file() is False else "Revision"
                self.send_header("X-Error-Code", code if code != "Revision" else "RevisionNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, requests


COMMIT = "c0ffee" * 6 + "c0ff"


def python(code, home, **environment):
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    quiet = {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=plain | quiet | environment, cwd=home
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LOADING = """
import dicache
from dicache.errors import DicacheError
for load, name in {calls}:
    try:
        made = load(name)
        schedules = made.members if isinstance(made, dicache.ParetoSet) else [made]
        print("loaded", made.name if isinstance(made, dicache.Profile) else " ".join(s.letters for s in schedules))
    except DicacheError as error:
        print(type(error).__name__, error)
"""


def test_a_repository_of_the_hub_is_loaded_once_and_then_without_a_network(tmp_path, profile, schedule, front):
    named = ("me/profile", "me/schedule", "me/nothing", "me/front")
    folders = {name: tmp_path / name.replace("/", "-") for name in named}
    profile.share(folders["me/profile"])
    schedule.share(folders["me/schedule"])
    front.share(folders["me/front"])
    folders["me/nothing"].mkdir()
    server, requests = hub_of(folders)
    home = tmp_path / "home"
    home.mkdir()
    P, S, F = "dicache.Profile.load", "dicache.Schedule.load", "dicache.ParetoSet.load"
    names = [(P, "me/profile"), (S, "me/schedule@v1"), (P, "me/nothing"), (P, "me/nobody"), (S, "me/schedule@v2")]
    names += [(F, "me/front"), (F, "me/schedule")]
    calls = "[" + ", ".join(f"({load}, {name!r})" for load, name in names) + "]"
    lines = python(LOADING.format(calls=calls), home, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    assert lines[0] == f"loaded {profile.name}" and lines[1] == f"loaded {schedule.letters}"
    assert lines[2].startswith(
        "ProfileError me/nothing is no profile that can be used: the hub's repository me/nothing"
    )
    assert "holds no profile.json. Expected one with profile.json, as share() writes it." in lines[2]
    assert lines[3].startswith("ProfileError me/nobody") and "RepositoryNotFoundError" in lines[3]
    assert lines[4].startswith("ScheduleError me/schedule@v2") and "at v2 cannot be had" in lines[4]
    assert lines[5] == f"loaded {' '.join(each.letters for each in front.members)}"
    assert lines[6].startswith("ScheduleError me/schedule") and "holds no schedules.json" in lines[6]
    arrays = [path for command, path in requests if command == "GET" and path.endswith(".safetensors")]
    assert arrays == [f"/me/profile/resolve/{COMMIT}/profile.safetensors"]
    offline = LOADING.format(calls=f"[({P}, 'me/profile'), ({P}, 'me/other')]")
    lines = python(offline, home, HF_HUB_OFFLINE="1")
    assert lines[0] == f"loaded {profile.name}"
    assert len(lines) == 2 and "me/other is not on this machine: HF_HUB_OFFLINE is set. Download it where" in lines[1]


def test_a_folder_holds_what_was_shared_and_a_card(tmp_path, profile, schedule):
    profile.share(tmp_path / "p", base_model="me/model: one", prompts="captions | of scenes\nin a closed language")
    loaded = dicache.load_profile(tmp_path / "p")
    assert loaded.name == profile.name and np.array_equal(loaded.arrays["work"], profile.arrays["work"])
    card = (tmp_path / "p" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dicache\ntags: ") and 'base_model: "me/model: one"' in card
    for text in (
        *(profile.facts.model, profile.facts.scheduler, "captions \\| of scenes in a closed language"),
        *("| guidance | 3.5 |", "| prompts it was tested on | 480 |", 'profile="USER/REPOSITORY"'),
        *(f"| 0.9 | {asked(profile.smallest('latent', 0.9))} |", "diffusers: 0.42.1"),
    ):
        assert text in card, text
    schedule.share(tmp_path / "s")
    loaded = dicache.Schedule.load(tmp_path / "s")
    assert loaded.letters == schedule.letters and loaded.error == schedule.error
    card = (tmp_path / "s" / "README.md").read_text()
    assert schedule.letters in card and f"{1 / schedule.work:.2f}x less" in card and "| finder | hand |" in card
    schedule.share(tmp_path / "s", prompts="other words")
    assert "other words" in (tmp_path / "s" / "README.md").read_text()


def test_a_set_of_schedules_has_a_card_with_a_row_for_each(tmp_path, front):
    front.share(tmp_path, base_model="me/model", prompts="captions of scenes")
    loaded = dicache.ParetoSet.load(tmp_path)
    assert repr(loaded) == repr(front)
    card = (tmp_path / "README.md").read_text()
    assert "# 2 schedules of" in card and "captions of scenes" in card and 'base_model: "me/model"' in card
    for each in front.members:
        assert f"| {each.work:.3f} | {1 / each.work:.2f}x | {each.error:.4f} | `{each.letters}` |" in card
    cost = float(card.partition("cost=")[2].partition(")")[0])
    assert loaded.at(cost).letters == front.members[-1].letters, "the card's own line runs"
    with pytest.raises(ScheduleError, match=r"schedule\.json does not exist"):
        dicache.Schedule.load(tmp_path)


def test_a_card_says_the_speed_ups_that_were_measured(tmp_path, profile):
    profile.share(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| 0.05 |"))
    level = profile.level(Wanted("latent", 0.05), 0.9)
    work = profile.arrays["work"][:, np.flatnonzero(np.isclose(profile.arrays["levels"], level))[0]]
    assert row.split("|")[3].strip() == f"{1 / work.mean():.2f}x"


def test_what_somebody_else_wrote_stays(tmp_path, profile, schedule):
    (tmp_path / "README.md").write_text("# Mine")
    for shared, error in ((profile, ProfileError), (schedule, ScheduleError)):
        with pytest.raises(error, match=r"README\.md was not written by dicache\. Give a folder of its own"):
            shared.share(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    (tmp_path / "file").touch()
    with pytest.raises(ProfileError, match="cannot be shared in"):
        profile.share(tmp_path / "file")


def test_what_is_on_the_disk_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "there").mkdir(parents=True)
    assert is_of_hub("me/other") and is_of_hub("me/other@v1.0") and not is_of_hub("me/there")
    for name in ("mine", "mine.json", "me/mine.json", "/me/other", "./other", "../other", "a/b/c", "", "me/", "~/x y"):
        assert not is_of_hub(name), name
    assert located("me/there", "profile.json", "arrays") == Path("me/there/profile.json")
    with pytest.raises(ProfileError, match=r"me/there is no profile that can be used: profile\.json does not exist"):
        dicache.load_profile("me/there")


def test_a_repository_cannot_name_files_outside_of_it(tmp_path, monkeypatch):
    import huggingface_hub

    facts = tmp_path / "profile.json"
    facts.write_text(json.dumps({"format": "dicache.profile/1", "arrays": {"file": "../secret.safetensors"}}))
    asked = []

    def download(repository, file, revision=None):
        asked.append(file)
        return str(facts)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ProfileError, match="is not the name of a safetensors file in the same folder"):
        dicache.load_profile("me/profile")
    assert asked == ["profile.json"]


def test_the_command_line_shares_all_three(tmp_path, profile, schedule, front):
    from typer.testing import CliRunner

    from dicache.cli.app import app

    profile.save(tmp_path / "p.json")
    schedule.save(tmp_path / "s.json")
    front.save(tmp_path / "f.json")
    for name, load in (("p", dicache.Profile.load), ("s", dicache.Schedule.load), ("f", dicache.ParetoSet.load)):
        where = tmp_path / f"shared-{name}"
        words = ["--base-model", "me/model", "--prompts", "scenes"]
        done = CliRunner().invoke(app, ["share", str(tmp_path / f"{name}.json"), str(where), *words])
        assert done.exit_code == 0 and f"hf upload USER/REPOSITORY {where}" in done.stdout.replace("\n", "")
        assert repr(load(where)) == repr(load(tmp_path / f"{name}.json"))
        assert 'base_model: "me/model"' in (where / "README.md").read_text()
    (tmp_path / "x.json").write_text("{}")
    for file, message in ((tmp_path / "none.json", "does not exist"), (tmp_path / "x.json", "neither a profile nor")):
        done = CliRunner().invoke(app, ["share", str(file), str(tmp_path / "x")])
        assert message in str(done.exception) and not (tmp_path / "x").exists()
