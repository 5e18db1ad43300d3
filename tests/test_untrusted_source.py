"""No line of the library runs or unpickles what it reads."""

from __future__ import annotations

import ast

import pytest

from .support import ROOT


GUARDED = ROOT / "rewards" / "_guard.py"
"""Its business is to run what answers say, in a process that may do nothing else."""

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load",
    "marshal.loads", "shelve.open", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "torch.hub.load", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip


def offences(source: str) -> list[str]:
    """Calls that run or unpickle what they are given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        bad = name in FORBIDDEN_CALLS or given.get("shell", "False") != "False"
        bad |= name == "torch.load" and given.get("weights_only") != "True"
        bad |= given.get("weights_only") == "False" or given.get("allow_pickle", "False") != "False"
        bad |= name == "yaml.load" and not given.get("Loader", "").endswith(("SafeLoader", "_Loader"))
        bad |= given.get("trust_remote_code") == "True"
        # Every way into transformers' Auto classes says what it thinks of code in the folder.
        bad |= (
            name.startswith("Auto")
            and name.endswith(("from_pretrained", "from_config"))
            and ("trust_remote_code" not in ast.unparse(node))
        )
        if bad:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)", "pickle.loads(x)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(x)",
        "yaml.load(x, Loader=yaml.Loader)", "np.load(f, allow_pickle=True)", "subprocess.run(x, shell=True)",
        "os.system(x)", "AutoTokenizer.from_pretrained(x)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert offences(source)
    assert not offences("yaml.load(x, Loader=_Loader); torch.load(f, weights_only=True); model.eval(); run([x])")


@pytest.mark.smoke
@pytest.mark.parametrize("package", ["unigrpo", "rewards"])
def test_no_source_runs_or_unpickles_what_it_reads(package):
    files = sorted(set((ROOT / package).rglob("*.py")) - {GUARDED})
    assert len(files) > 10
    assert not {str(file): found for file in files if (found := offences(file.read_text()))}
