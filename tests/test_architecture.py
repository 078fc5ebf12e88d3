"""The rules of the house, checked on the source itself: sizes, imports, layers, forbidden constructs, configs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_VERB_STATEMENTS, MAX_FILE_BYTES = 400, 60, 55, 2_000_000

# Imports point down only: a module may import its own rank and lower ones. A new top-level name goes in here.
RANKS = {
    0: "exports types paths extras files json_files provenance processes locks stopping checks ambient ranges streams "
    "fingerprint seeding embodiment matching inputs flow plugins contracts spec statistics launch pointcloud "
    "diagnostics probes",
    1: "parts nets encoders heads samplers exploration normalizer actions",
    2: "policy inference checkpoint pointers tracking data rollout rl flowpolicy_envs",
    3: "deploy",  # the robot's side: nothing of the training side
    4: "results report",
    5: "trainers evaluation",
    6: "cli __main__",
    7: "__init__",  # the front door names everything; nobody inside goes through it
}
RANK = {name: rank for rank, names in RANKS.items() for name in names.split()}

SIMULATORS = ("mani_skill", "sapien", "robosuite", "robomimic", "metaworld", "mujoco", "gymnasium")
NEVER_LOADED = (*SIMULATORS, "torchvision", "wandb", "onnx", "onnxscript", "onnxruntime")
TRAINING_STACK = ("zarr", "numcodecs", "numba", "h5py")  # what a robot's computer need not have
CATALOGUES = ("heads", "nets", "encoders", "exploration", "samplers")  # final classes <-> yaml files

FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib"}
FORBIDDEN_ATTRIBUTES = {"sys.path", "torch.save"}  # the latter is pickle, as is torch.load without weights_only
CONFIG_NAMES = {"DictConfig", "ListConfig", "OmegaConf"}
# (torch.fx calls a graph's inputs placeholders: .placeholder and "placeholder" are its names)
UNFINISHED = r"\b(?:TODO|FIXME|XXX|NotImplementedError|(?<![.\"])placeholder|stub|for now|simplified version)\b"
# Where packages come from and where things lie is the user's business. Joined here so that this file passes.
FOREIGN = ["pypi" + ".org", "python" + "hosted", "debian" + ".org", "npm" + "js", "download.py" + "torch"]
PERSONAL = re.compile(r"(?<![\w.~])/(?:home|root|Users|tmp|var/tmp)/\w")  # somebody's home, or a scratch folder


@cache
def project_files() -> tuple[Path, ...]:
    """Everything git tracks or would track; without git, everything that is not an output of a tool."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError):
        skip = r"^(?:runs|outputs|data|build|dist|wandb)/|(?:^|/)(?:\.(?:git|venv|\w+_cache|hypothesis)|__pycache__)/"
        every = (str(path.relative_to(ROOT)) for path in ROOT.rglob("*"))
        listed = [name for name in every if not re.search(skip, name)]
    return tuple(path for path in (ROOT / name for name in sorted(listed)) if path.is_file())


def python_files(*tops: str) -> list[Path]:
    """Python files below the given top-level folders."""
    return [path for path in project_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in tops]


LIBRARY = python_files("flowpolicy", "envs")
EVERYTHING = python_files("flowpolicy", "envs", "scripts", "tests")


@cache
def tree(path: Path) -> ast.Module:
    """Parsed source."""
    return ast.parse(path.read_text(), str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    """file:line, for messages."""
    return f"{path.relative_to(ROOT)}" + (f":{getattr(node, 'lineno', 0)}" if node else "")


def module_name(path: Path) -> str:
    """Dotted import name; a package is its folder."""
    parts = path.relative_to(ROOT / "envs" if path.is_relative_to(ROOT / "envs") else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """(node, absolute module or module.name) for every import, also those inside functions."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node, f"{stem}.{alias.name}") for alias in node.names)


def layer(module: str) -> str:
    """The name that RANKS knows: flowpolicy.flow.path -> flow, flowpolicy_envs.toy -> flowpolicy_envs."""
    parts = module.split(".")
    if parts[0] != "flowpolicy":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def is_config_code(path: Path) -> bool:
    """Whether the file may touch Hydra's containers: cli/, checkpoint.py, and no other."""
    return path.is_relative_to(ROOT / "flowpolicy" / "cli") or path == ROOT / "flowpolicy" / "checkpoint.py"


def fresh_interpreter(code: str) -> list[str]:
    """Top-level names of the modules that `code` leaves loaded."""
    code += "\nimport sys; print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))"
    path = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'envs')]}\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_no_file_is_longer_than_400_lines_and_no_function_than_60():
    long = []
    for path in EVERYTHING:
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES:
            long.append(f"{where(path)}: {lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{where(path, node)}: {node.name} has {lines} lines")
    assert not long, long


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines of a function are its docstring, which may be as long as its parameters need."""
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    return (first.end_lineno or first.lineno) - first.lineno + 1 if is_text else 0


def test_every_verb_is_one_library_call():
    """cli/: few statements per file, however many lines the formatter makes of them."""
    long = []
    for path in (ROOT / "flowpolicy" / "cli").glob("*.py"):
        if (count := sum(isinstance(node, ast.stmt) for node in ast.walk(tree(path)))) > MAX_VERB_STATEMENTS:
            long.append(f"{where(path)}: {count} statements")
    assert not long, long


def test_the_formatter_decides():
    """No line is kept from the formatter without a reason beside it."""
    kept = []
    for path in EVERYTHING:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"#\s*fmt:\s*(?:skip|off)\s*$", line):
                kept.append(f"{where(path)}:{number}")
    assert not kept, kept


def test_importing_every_module_loads_no_simulator_and_no_wandb():
    names = [module_name(path) for path in python_files("flowpolicy") if path.name != "__main__.py"]
    assert "flowpolicy.policy" in names
    loaded = fresh_interpreter("import importlib\n" + f"for name in {names!r}: importlib.import_module(name)")
    assert not set(loaded) & set(NEVER_LOADED)


def test_importing_flowpolicy_is_light():
    loaded = fresh_interpreter("import flowpolicy; assert flowpolicy.__version__")
    assert not set(loaded) & {"torch", "numpy", "scipy", "hydra", *TRAINING_STACK, *NEVER_LOADED}


def test_a_policy_needs_no_training_stack():
    packages = ("flow", "nets", "encoders", "heads", "samplers", "exploration", "policy", "checkpoint")
    names = [module_name(path) for path in python_files("flowpolicy") if layer(module_name(path)) in packages]
    loaded = fresh_interpreter("import importlib\n" + f"for name in {names!r}: importlib.import_module(name)")
    assert not set(loaded) & {*TRAINING_STACK, *NEVER_LOADED}


def test_layer_imports_point_down():
    wrong = []
    for path in LIBRARY:
        own = layer(module_name(path))
        assert own in RANK, f"{where(path)}: say in RANKS which layer {own!r} belongs to"
        for node, target in imports(path):
            if target.split(".")[0] not in ("flowpolicy", "flowpolicy_envs"):
                continue
            name = layer(target)
            if target.startswith("flowpolicy.") and target.count(".") == 1 and name not in RANK:
                name = "__init__"  # an attribute of the package, not a layer
            if target == "flowpolicy.__version__":
                continue
            assert name in RANK, f"{where(path, node)}: say in RANKS which layer {name!r} belongs to"
            outside = name == "flowpolicy_envs" and own not in ("flowpolicy_envs", "cli")
            if RANK[name] > RANK[own] or outside:
                wrong.append(f"{where(path, node)}: {own} imports {target}")
    assert not wrong, wrong


def test_hydra_containers_stay_in_cli_and_checkpoint():
    wrong = []
    for path in LIBRARY:
        if is_config_code(path):
            continue
        wrong += [where(path, node) for node, target in imports(path) if target.split(".")[0] == "omegaconf"]
        for node in ast.walk(tree(path)):
            name = getattr(node, "id", None) or getattr(node, "attr", None)
            if name in CONFIG_NAMES or (isinstance(node, ast.arg) and node.arg == "cfg"):
                wrong.append(where(path, node))
    assert not wrong, wrong


def forbidden(node: ast.AST) -> str:
    """What is wrong with this node, or nothing."""
    if isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        if any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in caught):
            return "catches everything"
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec"):
        return "eval or exec"
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
        options = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if options.get("weights_only") is not True:
            return "torch.load without weights_only=True"
    if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_ATTRIBUTES:
        return ast.unparse(node)
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", None) is not False:
        return "allow_pickle"
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
        if any(method.name == "__init__" and method.args.kwarg for method in methods):
            return "**kwargs in a public constructor"
    return ""


def test_forbidden_constructs_do_not_occur():
    wrong = []
    for path in [*LIBRARY, *python_files("scripts")]:
        wrong += [f"{where(path, node)}: {what}" for node in ast.walk(tree(path)) if (what := forbidden(node))]
        for node, target in imports(path):
            if target.split(".")[0] in FORBIDDEN_MODULES or target in {*FORBIDDEN_ATTRIBUTES, "torch.load"}:
                wrong.append(f"{where(path, node)}: imports {target}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("try: f()\nexcept: pass", True),
        ("try: f()\nexcept (OSError, Exception): pass", True),
        ("try: f()\nexcept OSError: pass", False),
        ("eval('1')", True),
        ("model.eval()", False),
        ("import sys\nsys.path.insert(0, 'x')", True),
        ("torch.load('x')", True),
        ("torch.load('x', weights_only=False)", True),
        ("torch.load('x', weights_only=True)", False),
        ("np.load('x', allow_pickle=True)", True),
        ("np.load('x', allow_pickle=False)", False),
        ("class A:\n    def __init__(self, **kwargs): pass", True),
        ("class _A:\n    def __init__(self, **kwargs): pass", False),
    ],
)
def test_the_check_for_forbidden_constructs_sees_them(code, bad):
    assert any(forbidden(node) for node in ast.walk(ast.parse(code))) == bad


def test_nothing_is_left_unfinished():
    found = []
    for path in LIBRARY:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found += [f"{where(path)}:{number}: {word}" for word in re.findall(UNFINISHED, line)]
    assert not found, found


def classes(package: str) -> dict[str, tuple[set[str], bool]]:
    """Dotted class name -> (names of its bases, whether it is @final), for one package of flowpolicy."""
    found = {}
    for path in python_files("flowpolicy"):
        if path.relative_to(ROOT).parts[1] != package:
            continue
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                final = any(ast.unparse(mark).split(".")[-1] == "final" for mark in node.decorator_list)
                found[f"{module_name(path)}.{node.name}"] = (bases, final)
    return found


def members(package: str) -> dict[str, bool]:
    """Dotted name -> whether it is @final, for every class derived from an abstract base of its package."""
    found = classes(package)
    abstract = {name.split(".")[-1] for name, (bases, _) in found.items() if "ABC" in bases}
    return {name: final for name, (bases, final) in found.items() if bases & abstract}


def target(file: Path) -> str:
    """The `_target_` of a yaml, also one that it takes from a yaml in its defaults list."""
    content = yaml.safe_load(file.read_text()) or {}
    if "_target_" in content:
        return content["_target_"]
    parents = [file.parent / f"{name}.yaml" for name in content.get("defaults", []) if isinstance(name, str)]
    return next((target(parent) for parent in parents if parent.is_file()), "")


def parts(content: Any) -> set[str]:
    """Every `_target_` in a yaml file's content, also those of its parts."""
    if not isinstance(content, dict):
        return set()
    own = {content["_target_"]} if "_target_" in content else set()
    return own.union(*(parts(value) for value in content.values()))


@pytest.mark.parametrize("package", CATALOGUES)
def test_the_folder_of_yaml_files_is_the_catalogue_of_final_classes(package):
    parent = ROOT / "configs" if package in ("exploration", "samplers") else ROOT / "configs" / "policy"
    files = sorted((parent / package.removesuffix("s")).glob("*.yaml"))
    every = set(members(package))
    assert {target(file) for file in files} <= every
    assert every <= set().union(*(parts(yaml.safe_load(file.read_text())) for file in files))


@pytest.mark.parametrize("package", CATALOGUES)
def test_a_class_is_abstract_or_final(package):
    assert all(members(package).values()), [name for name, final in members(package).items() if not final]


def test_no_final_class_is_subclassed():
    every = {}
    for name in RANK:
        every |= classes(name)
    finals = {name.split(".")[-1] for name, (_, final) in every.items() if final}
    assert not {name for name, (bases, _) in every.items() if bases & finals}


def experiments() -> list[str]:
    """Names of the recipes for imitation; those for fine-tuning are in tests/cli/test_finetune.py."""
    names = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
    return [name for name in names if not name.startswith(("rl_", "pi_rl_"))]


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes_and_trains_a_toy_batch(name):
    import torch

    from flowpolicy.checkpoint import create_policy
    from flowpolicy.cli import config
    from flowpolicy.embodiment import Embodiment, KeySpec
    from flowpolicy.types import Batch

    words = [f"experiment={name}", "dataset.path=demos.zarr"]
    if "dims" in config.load("train", words).policy.net:
        words.append("policy.net.dims=[16,32,48]")
    whole = config.load("train", words)
    facts = config.plain(whole)
    config.instantiate(whole.task)  # the environment and the expert are named, not made
    seen = {"state": {"env_state": (2,)}, "point_cloud": {"point_cloud": (8, 3)}, "rgb": {"image_front": (96, 96, 3)}}
    shapes = {"agent_pos": (3,), **seen[facts["task"]["obs"]]}
    keys = {key: shapes[key] for key in facts["policy"]["obs_keys"] or shapes}
    embodiment = Embodiment(
        "toy",
        {key: KeySpec(shape, dtype="uint8" if len(shape) == 3 else "float32") for key, shape in keys.items()},
        KeySpec((2,)),
        "position",
        10.0,
        (-1.0, -1.0),
        (1.0, 1.0),
        next(iter(keys)),
        (0, 1),
    )
    policy = create_policy(facts["policy"], embodiment)
    obs = {key: torch.rand(4, policy.obs_horizon, *shape) for key, shape in keys.items()}
    obs = {key: (255 * value).byte() if key.startswith("image") else value for key, value in obs.items()}
    batch = Batch(obs, torch.randn(4, policy.horizon, 2), torch.ones(4, policy.horizon))
    generator = torch.Generator().manual_seed(0)
    assert torch.isfinite(policy.loss(batch, generator).loss)
    assert policy.predict(obs, generator=generator).shape == (4, policy.action_horizon, 2)


def test_no_registry_host_and_no_path_of_one_machine_is_named():
    found = []
    for path in project_files():
        if b"\0" not in (content := path.read_bytes()):
            text = content.decode(errors="replace")
            found += [f"{where(path)}: {word}" for word in [*FOREIGN, f"{ROOT}/"] if word in text]
            found += [f"{where(path)}: {match[0]}..." for match in PERSONAL.finditer(text)]
    assert not found, found


@pytest.mark.parametrize("home", ["home", "root", "Users", "tmp"])
def test_the_check_for_personal_paths_sees_them(home):
    assert PERSONAL.search(f"open('/{home}/" + "me/a.txt')")
    assert not any(PERSONAL.search(text) for text in (f"docs/{home}/a", f"~/{home}/a", f"/{home}"))


def test_no_file_is_larger_than_2_mb():
    assert not [where(path) for path in project_files() if path.stat().st_size > MAX_FILE_BYTES]
