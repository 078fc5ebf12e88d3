"""The files of docker/ as far as they can be judged without building: pinned, not root, nothing that is not there."""

import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.test_architecture import ROOT

NAMES = ("train", "robot")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def steps(name: str) -> list[tuple[str, str]]:
    """(instruction, the rest) of docker/<name>.Dockerfile, continued lines joined, comments left out."""
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def last_stage(name: str) -> list[tuple[str, str]]:
    """What is built after the last FROM, that included."""
    every = steps(name)
    return every[max(index for index, (word, _) in enumerate(every) if word == "FROM") :]


@pytest.mark.parametrize("name", NAMES)
def test_only_known_instructions_are_used(name: str):
    known = {"FROM", "RUN", "COPY", "ENV", "ARG", "USER", "WORKDIR", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in steps(name)} <= known


@pytest.mark.parametrize("name", NAMES)
def test_bases_are_pinned_to_a_release(name: str):
    for image in (rest.split()[0] for word, rest in steps(name) if word == "FROM"):
        assert re.search(r":\d+\.\d+", image), f"{image} moves on by itself"


@pytest.mark.parametrize("name", NAMES)
def test_it_does_not_run_as_root(name: str):
    users = [rest for word, rest in last_stage(name) if word == "USER"]
    assert users == ["$USER_ID:$USER_ID"] and ("ARG", "USER_ID=1000") in last_stage(name)
    assert last_stage(name)[-1][0] in ("CMD", "ENTRYPOINT") and not [
        rest for word, rest in last_stage(name)[last_stage(name).index(("USER", users[0])) :] if word == "RUN"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_packages_come_from_the_setup_of_a_developer_and_its_constraints(name: str):
    text = " ".join(rest for word, rest in steps(name) if word == "RUN")
    assert "scripts/setup.sh --venv /opt/flowpolicy " in text
    assert "scripts/constraints.txt" in " ".join(rest for word, rest in steps(name) if word == "COPY")
    assert "pip install" not in text, "past the constraints"


def test_what_each_image_holds():
    train, robot = (" ".join(rest for _, rest in steps(name)) for name in NAMES)
    assert "--extras all " in train and "--runtime" not in train
    assert "--runtime" in robot and "--extras" not in robot and "torch" not in robot


@pytest.mark.parametrize("name", NAMES)
def test_package_lists_do_not_stay_in_a_layer(name: str):
    for rest in (rest for word, rest in steps(name) if word == "RUN" and "apt-get update" in rest):
        assert "--no-install-recommends" in rest and rest.endswith("rm -rf /var/lib/apt/lists/*")


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file from the build: the last line that fits it or a folder of it."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        whole = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        tried = parts if line.startswith("**/") else whole
        if pattern and not line.startswith("#") and any(fnmatch.fnmatchcase(part, pattern) for part in tried):
            out = not line.startswith("!")
    return out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_exists_and_enters_the_build(name: str):
    copied = [rest.split()[:-1] for word, rest in steps(name) if word == "COPY" and not rest.startswith("--from=")]
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert not ignored(source if (ROOT / source).is_file() else f"{source}/some.py"), source
    assert ignored("tests/conftest.py") and ignored(".git/HEAD") and ignored("flowpolicy/__pycache__/a.pyc")


def test_setup_needs_no_file_that_is_not_copied():
    """What pyproject.toml packs, and the texts that it names."""
    copied = " ".join(rest for word, rest in steps("robot") if word == "COPY")
    for source in ("pyproject.toml", "README.md", "LICENSE", "configs", "envs", "flowpolicy"):
        assert source in copied


def test_the_robot_image_has_a_health_check_that_runs_what_is_there():
    ((_, check),) = [step for step in last_stage("robot") if step[0] == "HEALTHCHECK"]
    words = json.loads(check.partition("CMD ")[2])
    module = words[words.index("-m") + 1]
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file() and words[-1] == "/bundle"
    assert re.search("--interval=.*--timeout=.*--retries=", check)
    assert ("HEALTHCHECK", "NONE") in last_stage("train")


@pytest.mark.parametrize("name", NAMES)
def test_compose_builds_what_is_there(name: str):
    service = COMPOSE["services"][name]
    assert (ROOT / "docker" / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]) == ROOT / "docker" / f"{name}.Dockerfile"
    known = {rest.split("=")[0] for word, rest in steps(name) if word == "ARG"}
    assert set(service["build"]["args"]) == known, "an argument that the Dockerfile does not know is dropped silently"
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service, "the image's"


def test_compose_reserves_a_gpu_for_training_alone_and_keeps_what_is_written():
    train, robot = (COMPOSE["services"][name] for name in NAMES)
    (device,) = train["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]} and "deploy" not in robot
    assert {volume["target"] for volume in train["volumes"]} == {"/workspace/data", "/workspace/runs"}
    assert robot["read_only"] and [(v["target"], v["read_only"]) for v in robot["volumes"]] == [("/bundle", True)]


def test_the_versions_agree():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "flowpolicy" / "__init__.py").read_text())
    assert version and {service["image"] for service in COMPOSE["services"].values()} == {
        f"flowpolicy-{name}:{version[1]}" for name in NAMES
    }


@pytest.mark.parametrize("name", ["egl_nvidia", "vulkan_nvidia"])
def test_the_drivers_files_name_a_library(name: str):
    said = json.loads((ROOT / "docker" / f"{name}.json").read_text())
    assert said["file_format_version"] == "1.0.0" and said["ICD"]["library_path"].startswith("lib")


def setup(*words: str | Path) -> str:
    """What scripts/setup.sh answers to words that it does not take."""
    done = subprocess.run([ROOT / "scripts" / "setup.sh", *words], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    return done.stderr


def test_setup_refuses_what_it_does_not_understand(tmp_path: Path):
    for words in (
        ["--teapot"],
        ["--extras", "all"],
        ["--runtime"],
        ["--venv", tmp_path / "x", "--extras", "a", "--runtime"],
    ):
        assert setup(*words).startswith("setup: wanted [--venv DIR")
    assert setup("--venv") == "setup: wanted [--venv DIR [--extras LIST | --runtime [PACKAGE ...]]], got --venv\n"


def test_setup_replaces_no_folder_that_is_no_environment(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("words")
    assert "is there already and no environment" in setup("--venv", tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "words"
