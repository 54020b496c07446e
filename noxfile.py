"""Everything that sets the project up and checks it: one session each, made with plain pip."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
TEST_PACKAGES = nox.project.dependency_groups(PYPROJECT, "test")
ORACLES = nox.project.dependency_groups(PYPROJECT, "oracles")
# Each worker begins with half of the tests in their order, so that a room's fixtures are made once, and takes over half
# of what the other has left when it is done.
PARALLEL = ["-n", "2", "--dist", "worksteal"]
QUICK = [f"tests/{room}" for room in ("configs", "render", "rewrite", "rules", "schema", "spectral", "telemetry")]
# What of them imports PEFT, which takes as long as all the rest, or asks npm for a validator.
NOT_QUICK = [
    "--ignore=tests/configs/test_libraries.py",
    "--ignore=tests/schema/test_foreign_validators.py",
    "--deselect=tests/rules/weights/test_ranks.py::test_loraconfig_takes_the_pattern_and_the_model_has_its_ranks_and_scalings",
]
HUB_PACKAGES = ["torch", "transformers", "peft", "safetensors", "datasets"]


@nox.session
def golden_path(session: nox.Session) -> None:
    """Record, check, monitor and audit one real LoRA fine-tune, offline, from nothing."""
    _quick_install(session, "-e", ".[report]", *HUB_PACKAGES)
    out = _free_folder(Path("runs/toy"))
    session.run("python", "examples/vnext/toy_lora_run.py", "--out", out, "--device", "cpu")
    session.run(
        "gradience",
        "check",
        "--task",
        "sst2",
        "--peft-dir",
        f"{out}/peft",
        "--training-dir",
        f"{out}/training",
    )
    session.run("gradience", "monitor", f"{out}/run.jsonl", "--verbose")
    session.run("gradience", "audit", "--peft-dir", f"{out}/peft", "--top-wasteful", "10")


def _free_folder(wanted: Path) -> str:
    """Return the folder, or the first numbered sibling: an earlier run stays as it is."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder.as_posix()


def _install(session: nox.Session, *more: str) -> None:
    session.install("--upgrade", "pip")  # that of Python 3.11 takes twice as long for the packages below
    _quick_install(session, ".[hf,report]", *TEST_PACKAGES, *more)


def _quick_install(session: nox.Session, *packages: str, success_codes: Sequence[int] = (0,)) -> None:
    """Install without compiling 25 000 modules, most of which nothing imports: Python compiles those it does."""
    session.env["PYTHONDONTWRITEBYTECODE"] = ""  # where it is set, each process would compile them again
    session.install("--no-compile", *packages, success_codes=success_codes)


@nox.session
def tests(session: nox.Session) -> None:
    """Lint, layers, and the tests, on the built wheel, but those of oracles and of hostile input, which CI adds."""
    _install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")
    session.run("deptry", "src")
    session.run("pytest", *PARALLEL, *(session.posargs or ["--ignore=tests/hostile"]))


@nox.session
def oracles(session: nox.Session) -> None:
    """The tests that compare with another program (TRL, Lightning, MLX, trackers...), each of which must be there."""
    _install(session, *ORACLES)
    session.run("pytest", *PARALLEL, "-m", "oracle", *session.posargs, env={"GRADIENCE_ORACLES": "1"})


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests on the lowest versions that pyproject.toml allows; torch stays the newest, which has a local build."""
    constraints = Path(session.create_tmp(), "lowest.txt")
    constraints.write_text("".join(f"{one}\n" for one in _floors()), encoding="utf-8")
    session.install("--upgrade", "pip")
    _quick_install(session, "--constraint", str(constraints), ".[hf,data,fleet,report]", *TEST_PACKAGES)
    session.env.pop("TMPDIR", None)  # that of `create_tmp` makes paths too long for sockets
    session.run("pytest", *PARALLEL, *session.posargs)


def _floors() -> list[str]:
    """Each dependency of the package and of its extras, pinned to the least version that is allowed."""
    project = PYPROJECT["project"]
    named = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    floors = dict(re.fullmatch(r"([\w.-]+)>=([\w.]+)", one).groups() for one in named if ">=" in one)
    return [f"{name}=={version}" for name, version in sorted(floors.items()) if name != "torch"]


# What differs between machines beside the processor: `.ci/run` sets it too.
OTHER_MACHINE = {"PYTHONHASHSEED": "4711", "LC_ALL": "C", "TZ": "Pacific/Kiritimati"}
# Other arithmetic by what each library asks of this processor: flags of /proc/cpuinfo that it needs, and the variables.
ARITHMETICS = {
    "the oldest of each": (
        ("sse4_1", "sse4_2", "avx"),
        {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "OPENBLAS_CORETYPE": "Nehalem",
            "XLA_FLAGS": "--xla_cpu_max_isa=AVX",
        },
    ),
    "BLAS of Haswell, two threads": (("avx2",), {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "2"}),
}
# The rooms of numbers, and what shows them whole.
NUMERIC = [
    f"tests/{room}" for room in ("spectral", "audit", "compare", "resize", "merge", "convert", "verbs", "render")
]
NUMERIC += ["tests/house/test_screens.py", "tests/house/test_readme_blocks.py"]


@nox.session
def elsewhere(session: nox.Session) -> None:
    """The rooms of numbers and the golden screens as on other machines: arithmetic, locale, zone, umask, home, load."""
    _install(session)
    flags = _processor_flags()
    for name, (needs, env) in ARITHMETICS.items():
        if flags.issuperset(needs):
            session.log(f"elsewhere: {name}")
            session.run("pytest", *PARALLEL, *(session.posargs or NUMERIC), env=env)
        else:
            session.warn(f"elsewhere: {name} is left out: this processor lacks {', '.join(needs)}")
    file = Path(session.create_tmp(), "file")
    file.touch()
    session.env.pop("TMPDIR", None)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for umask in ("077", "000"):
            session.log(f"elsewhere: {OTHER_MACHINE}, umask {umask}, a home below a file, three busy processes")
            env = {**OTHER_MACHINE, "HOME": str(file / "home")}
            command = f'umask {umask}; exec pytest {" ".join(PARALLEL)} "$@"'
            given = session.posargs or NUMERIC
            session.run("bash", "-c", command, "pytest", *given, env=env, external=True)
    finally:
        for each in busy:
            each.kill()


def _processor_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else None
    return set(found[1].split()) if found else set()


@nox.session
def coverage(session: nox.Session) -> None:
    """The share of lines and branches that the tests run."""
    _install(session, *ORACLES)
    measured = Path(session.virtualenv.location, "coverage.json")
    slipcover = ["-m", "slipcover", "--source", _where("gradience", session), "--out", str(measured)]
    session.run("python", *slipcover, "-m", "pytest", *PARALLEL, *session.posargs)
    session.log(
        f"{json.loads(measured.read_bytes())['summary']['percent_covered']:.1f} % of lines and branches covered"
    )


def _where(package: str, session: nox.Session) -> str:
    """Return the folder of a package in the session's environment."""
    found = f"from importlib.util import find_spec; print(*find_spec({package!r}).submodule_search_locations)"
    return str(session.run("python", "-c", found, silent=True)).strip()


@nox.session
def quick(session: nox.Session) -> None:
    """For a change under way (`nox -R -s quick` installs nothing): lint, types, layers, rooms that train nothing."""
    _install(session)
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")
    session.run("pytest", *PARALLEL, "-x", *(session.posargs or [*QUICK, *NOT_QUICK]))


@nox.session
def properties(session: nox.Session) -> None:
    """The laws, with many more examples than the tests take, and the slow tests."""
    _install(session, *ORACLES)
    env = {"HYPOTHESIS_PROFILE": "properties", "GRADIENCE_SLOW": "1"}
    session.run("pytest", "tests", *session.posargs, env=env)


@nox.session
def field(session: nox.Session) -> None:
    """What monitor says of published runs and of some 200 short trainings made here once (10 to 20 minutes)."""
    session.install("-e", ".", *HUB_PACKAGES, "trl")
    session.run("python", "benchmarks/field.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def mutants(session: nox.Session) -> None:
    """Change a module one expression at a time: 'nox -s mutants -- src/gradience/rules/merge.py tests/rules'."""
    _install(session)
    session.install("mutmut>=3.8")
    changed, *tests = session.posargs
    copy = Path(session.create_tmp(), "clone")
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("src", "tests", "docs", "schemas", "examples", "benchmarks"):
        shutil.copytree(name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = {
        "source_paths": ["src"],
        "only_mutate": [changed],
        "pytest_add_cli_args_test_selection": tests,
        "also_copy": ["docs", "schemas", "examples", "benchmarks", "README.md"],
    }
    shutil.copy("README.md", copy)
    own = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    (copy / "pyproject.toml").write_text(f"{text}\n[tool.mutmut]\n{own}", encoding="utf-8")
    session.chdir(copy)
    session.run("mutmut", "run", "--max-children", "2", env={"OMP_NUM_THREADS": "1"})
    session.run("mutmut", "results")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged inputs of every verb: `GRADIENCE_FUZZ=1000 nox -s fuzz` tries a thousand of each command."""
    _install(session)
    inputs = os.environ.get("GRADIENCE_FUZZ", "100")
    session.run("pytest", *PARALLEL, "tests/hostile/test_fuzz.py", *session.posargs, env={"GRADIENCE_FUZZ": inputs})


@nox.session
@nox.parametrize("extra", ["base", *sorted(PYPROJECT["project"]["optional-dependencies"])])
def installs(session: nox.Session, extra: str) -> None:
    """Each extra alone in a fresh environment: its modules import, its verbs work, others say what to install."""
    _quick_install(session, "." if extra == "base" else f".[{extra}]")
    session.run("python", "tests/installs.py", extra)


@nox.session
def schemas(session: nox.Session) -> None:
    """Generate schemas/ again from the Structs."""
    session.install("-e", ".")
    session.run("python", "-m", "gradience.schema.export", "schemas")


@nox.session
def rules_page(session: nox.Session) -> None:
    """Write again what is generated: the numbers of rules, docs/api.md, blocks of output in the README and docs/."""
    session.install("-e", ".")
    session.run("python", "tests/rules_page.py")
    session.run("python", "tests/api_page.py")
    session.run("python", "tests/readme_blocks.py")


@nox.session
def dist(session: nox.Session) -> None:
    """Build the wheel and the source distribution into dist/."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build")


@nox.session
def consumer(session: nox.Session) -> None:
    """Programs of a caller, as mypy and pyright read them beside the built wheel: each ignore is needed."""
    _quick_install(session, ".", "mypy", "pyright")
    folder = Path(session.create_tmp())
    asked = "# pyright: strict, reportUnnecessaryTypeIgnoreComment=true\n"
    programs = [Path("tests/house/caller.py"), *Path("tests/consumers").glob("*.py")]
    for program in programs:
        (folder / program.name).write_text(asked + program.read_text(encoding="utf-8"), encoding="utf-8")
    session.chdir(folder)
    names = [program.name for program in programs]
    session.run("mypy", "--strict", "--warn-unused-ignores", *names)
    session.run("pyright", *names)


@nox.session
def pictures(session: nox.Session) -> None:
    """Draw the pictures at the top of the README again, of the toy run."""
    session.install("-e", ".[report]")
    session.run("python", "tests/pictures.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build docs/ and the API reference into site/; a broken link or an unknown name fails."""
    session.install("-e", ".", "pytest", "hypothesis", *nox.project.dependency_groups(PYPROJECT, "docs"))
    session.run("mkdocs", "build", "--strict")
    session.run("pytest", "tests/house/test_docs.py")


@nox.session
def browser(session: nox.Session) -> None:
    """The pages in a real Chromium, that of Qt WebEngine: no request, no overflow, no finding of axe."""
    _quick_install(session, ".[hf,report]", *TEST_PACKAGES, *nox.project.dependency_groups(PYPROJECT, "browser"))
    session.run("pytest", "tests/report/test_browser.py")
