"""Every module has its test file, `tests/<path>/test_<module>.py`, or says here where its tests are."""

import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Modules that are thin, or are tested with those that use them: where their next test goes.
ELSEWHERE = {
    "codecs/bfuse": "codecs/test_filter_codec",
    "codecs/xor": "codecs/test_filter_codec",
    "codecs/bitmap": "codecs/test_codecs",
    "federation/clients": "federation/test_rounds",
    "flower/*": "flower/test_flower",
    "methods/drive": "methods/test_averaging",
    "methods/eden": "methods/test_averaging",
    "methods/qsgd": "methods/test_averaging",
    "methods/signsgd": "methods/test_averaging",
    "methods/linear_probe": "test_heads",
    "methods/method": "methods/test_golden_rounds",
    "pretrained/__init__": "pretrained/test_checkpoints",
    "pretrained/layouts": "pretrained/test_convert",
    "pretrained/export": "test_export",
    "report": "reporting/test_report",
    "launch/comparison_report": "launch/test_compare",
    "launch/figure_*": "launch/test_runner",
    "launch/table_*": "launch/test_runner",
}
# What holds for many modules at once.
SUITES = {
    "codecs/test_golden",
    "codecs/test_hostile",
    "flower/test_deployment",
    "methods/test_golden_rounds",
    "methods/test_merge",
    "models/test_configs",
    "pretrained/test_parity",
    "test_colabs",
    "test_docs",
    "test_imports",
    "test_learning",
    "test_markdown",
    "test_mirror",
    "test_sharding",
}


def home(module: str) -> str:
    """'codecs/rice' -> 'codecs/test_rice', 'codecs/__init__' -> 'codecs/test_codecs'."""
    *folders, name = module.split("/")
    if name == "__init__":
        name = folders[-1] if folders else "deltamask_jax"
    return "/".join([*folders, f"test_{name}"])


def names(folder: str, pattern: str = "*.py", below: str = ".") -> set[str]:
    """Files of a folder without their ending; packages without code of their own are none."""
    paths = (ROOT / below / folder).rglob(pattern)
    return {
        path.relative_to(ROOT / below).with_suffix("").as_posix()
        for path in paths
        if path.name != "__init__.py" or len(path.read_text().splitlines()) > 1
    }


def test_every_module_has_a_home_for_its_tests():
    files = names(".", "test_*.py", below="tests")
    modules = names(".", below="deltamask_jax") | names("launch")
    homeless = {module for module in modules if home(module) not in files}
    elsewhere = {pattern: set(fnmatch.filter(homeless, pattern)) for pattern in ELSEWHERE}
    missing = homeless.difference(*elsewhere.values())
    assert not missing, "write tests/<path>/test_<module>.py, or say in ELSEWHERE where the tests are"
    assert all(elsewhere.values()), "ELSEWHERE names modules that have a test file, or are gone"
    assert set(ELSEWHERE.values()) | SUITES <= files
    lost = files - {home(module) for module in modules | names("benchmarks")} - SUITES
    assert not lost, "name a test file after its module, or say in SUITES that it is about many"
