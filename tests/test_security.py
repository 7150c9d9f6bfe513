"""The promises of SECURITY.md that can be read off the code: nothing pickled, no remote code, safetensors only."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "rarlhf_nb"
CALLS = [
    (path.relative_to(PACKAGE).as_posix(), node)
    for path in sorted(PACKAGE.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call)
]


def test_nothing_is_unpickled_and_no_text_is_executed():
    forbidden = {
        "torch.load",
        "torch.save",
        "pd.read_pickle",
        "np.load",
        "yaml.load",
        "yaml.unsafe_load",
        "eval",
        "exec",
    }
    assert len(CALLS) > 1000
    assert [(path, ast.unparse(call)) for path, call in CALLS if ast.unparse(call.func) in forbidden] == []
    for path in PACKAGE.rglob("*.py"):
        imported = {
            name.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert not imported & {"pickle", "dill", "joblib", "marshal", "shelve"}, path


def test_every_model_is_loaded_from_safetensors_and_a_models_code_is_never_trusted():
    loads = [(path, call) for path, call in CALLS if ast.unparse(call.func).endswith(".from_pretrained")]
    assert len(loads) >= 6
    for path, call in loads:
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        from_gguf = words.get(None) == "source"  # in smollm2, whose package holds a GGUF file
        if ast.unparse(call.func).startswith("AutoModel") and not from_gguf:
            assert words["use_safetensors"] == "True", path
        # smollm2 loads a folder that the package itself has written, and peft's adapters bring no code
        if not path.endswith(("smollm2.py", "adapter.py")):
            assert words["trust_remote_code"] == "False", path
