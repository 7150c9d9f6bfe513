"""`rarlhf export`: the folder holds the policy as it is, and its card says what a stranger must know."""

import json
import re
import shutil
import textwrap
import types

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from small_run import rarlhf
from tiny import tiny_policy
from transformers import AutoModelForCausalLM

from rarlhf_nb.baselines.prompted import prompted_policy
from rarlhf_nb.baselines.quark import add_reward_tokens
from rarlhf_nb.lab import export, model_card
from rarlhf_nb.lab.artifacts import run_lock
from rarlhf_nb.lab.evaluation.report import build_report
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.policy import load_policy
from rarlhf_nb.risk_embedding import RiskEmbedding
from rarlhf_nb.sampling import invert_distribution
from rarlhf_nb.seeding import uniforms

HOSTILE = "<img src=x>|![x](http:y.png) [click](http:z) `<b>` **&lt;**\n# head"
RL = ["rlhf", "ra_rlhf", "ra_rlhf@0.2", "ra_rlhf_ru", "grpo", "cvar_grpo@0.2"]


def saved_policy(method):
    policy = tiny_policy(seed=sum(map(ord, method)))
    if method == "ra_rlhf_ru":  # more rows than its tokenizer has tokens, as GPT-J, and likely ones
        policy.model.resize_token_embeddings(len(policy.processing_class) + 8, mean_resizing=False)
        policy.model.get_input_embeddings().weight.data[-8:] = torch.linspace(-1, 1, 8 * 16).reshape(8, 16)
    if method == "quark":
        policy.prefix_ids = add_reward_tokens(policy, 5, seed=0)[:1]
    return prompted_policy(policy, "the plot is good") if method == "prompted" else policy


def open_run(tmp_path, profile="pocket-imdb", **settings):
    dumped = load_profile(profile).model_dump(mode="json")
    return Run.open("mine", dumped | settings, 3, tmp_path / "papermill_runs")


@pytest.fixture
def run(checkout):
    run = open_run(checkout)
    for method in ("sft", "quark", "prompted", *RL):
        saved_policy(method).save(run.path("policies", method))
    run.write("training/ra_rlhf.jsonl", '{"iteration": 1}\n')
    return run


def leave_report(run, methods=("sft", "rlhf", "ra_rlhf"), group="all"):
    def episodes(shift):
        columns = {"prompt_score": np.arange(-3.0, 9.0), "label": 1, "seed": 0, "kl": 1.0}
        table = pd.DataFrame({"prompt": [f"p{i}" for i in range(12)], "completion": "x"} | columns)
        return table.assign(reward=table["prompt_score"] + shift, group=["all"] * 11 + [group])

    tables = {method: episodes(float(shift)) for shift, method in enumerate(methods)}
    texts = pd.DataFrame({"text": ["x"], "log_likelihood": np.log([1 / 4]), "tokens": [1]})
    report = build_report(tables, {"rlhf": texts}, tail_threshold=-2.0, cvar_levels=[0.1], resamples=50)
    run.write("report.json", report.to_json())
    return report


def export_mine(*words, status=0):
    return rarlhf("export", "mine", *words, status=status).output


def card_of(folder):
    return model_card.ModelCard.load(folder / "README.md")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings_of(card):
    """The settings that the card shows, as a profile has them."""
    block = card.text.partition("under the names of a profile:\n\n")[2].partition("\n\n#")[0]
    return yaml.safe_load(textwrap.dedent(block))


def run_code(card):
    """Everything that the card's code defines."""
    names = {}
    for code in re.findall(r"```python\n(.*?)```", card.text, flags=re.S):
        exec(code, names)
    return types.SimpleNamespace(**names)


@pytest.mark.parametrize("method", ["sft", "ra_rlhf", "ra_rlhf@0.2"])
def test_the_copy_is_the_policy_bit_for_bit(run, checkout, method):
    export_mine(method, "out/copy")
    copy = files(checkout / "out" / "copy")
    card = copy.pop("README.md")
    assert (b"training_log.jsonl" in card) == (method == "ra_rlhf")
    assert copy.pop("training_log.jsonl", None) == (b'{"iteration": 1}\n' if method == "ra_rlhf" else None)
    assert copy == files(run.path("policies", method)) and "model.safetensors" in copy
    ids = torch.arange(3, 11).unsqueeze(0)
    policy, loaded = load_policy(run.path("policies", method)), load_policy(checkout / "out" / "copy")
    alone = AutoModelForCausalLM.from_pretrained(checkout / "out" / "copy").to(policy.device)
    with torch.no_grad():
        logits = [model(ids.to(policy.device)).logits for model in (policy.model, loaded.model, alone)]
    assert torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[0], logits[2])  # transformers writes its GELU out in seven operations
    assert torch.equal(policy.value_head.weight, loaded.value_head.weight) and policy.value_head.weight.any()


def test_the_conditioned_policy_is_exported_for_one_alpha(run, checkout):
    policy = saved_policy("conditioned")
    policy.risk = RiskEmbedding(16, alpha_min=0.1)
    policy.risk.weight.data.copy_(torch.linspace(-0.2, 0.2, 16))
    policy.save(run.path("policies", "conditioned"))
    run.write("training/conditioned.jsonl", '{"iteration": 1}\n')
    assert "export it for one, such as 'conditioned@0.2'" in export_mine("conditioned", "copy", status=2)
    export_mine("conditioned@0.13", "copy")
    assert (checkout / "copy" / "training_log.jsonl").read_text() == '{"iteration": 1}\n'
    card = card_of(checkout / "copy")
    assert "fixed here at α = 0.13" in card.text and "seed 3" in card.text
    settings = settings_of(card)
    assert settings["conditioned"]["groups"] == 4
    assert settings["ppo"]["iterations"] == 80 and settings["ppo"]["kl_coef"] == 0.4
    assert "cvar" in card.data.tags and "{{" not in card.text and "\n\n\n" not in card.text
    ids = torch.arange(3, 11).unsqueeze(0)
    fixed, alone = policy.at(0.13).model, AutoModelForCausalLM.from_pretrained(checkout / "copy")
    with torch.no_grad():
        logits, found, plain = (model(ids).logits for model in (fixed, alone, policy.model))
    torch.testing.assert_close(found, logits)
    assert (found - plain).abs().max() > 0.1


@pytest.mark.parametrize("method", ["ra_rlhf_ru", "quark", "prompted"])
def test_the_cards_code_draws_from_the_distribution_that_was_measured(run, checkout, method, monkeypatch):
    export_mine(method, "copy")
    card = card_of(checkout / "copy")
    policy = load_policy(run.path("policies", method))
    sampling = load_profile("pocket-imdb").sampling
    numbers = iter(torch.from_numpy(uniforms(7, 0, 1, sampling.completion_length)).unbind(1))
    with monkeypatch.context() as patch:  # transformers draws with the numbers that our sampler draws with
        patch.setattr(torch, "multinomial", lambda p, **_: invert_distribution(p, next(numbers)).unsqueeze(1))
        found = run_code(card)
    prompt = re.search(r'tokenizer\("(.+?)", return_tensors', card.text)[1]
    wanted = policy.sample([prompt], sampling, seed=7)
    assert torch.equal(found.sampled[:, found.given.shape[1] :], wanted.completion_ids.cpu())
    assert found.text.endswith(wanted.completions[0])
    assert found.policy.prefix_ids == policy.prefix_ids and found.never_sampled == policy.forbidden_ids
    assert ("needs its prefix before every prompt" in card.text) == (method != "ra_rlhf_ru")
    if method == "prompted":
        assert "“the plot is good”" in card.text


def test_the_card_says_how_the_policy_was_trained(run, checkout):
    for method, (words, settings) in {
        "rlhf": ("trained with RLHF to raise the average", {"risk.alpha": 1.0, "ppo.iterations": 40}),
        "ra_rlhf": (
            "CVaR at α = 0.4",
            {"risk.alpha": 0.4, "risk.estimator": "tail_selection", "risk.warm_start": 6, "ppo.batch_size": 128},
        ),
        "ra_rlhf@0.2": ("CVaR at α = 0.2", {"risk.alpha": 0.2, "risk.estimator": "tail_selection", "risk.rho": 0.5}),
        "ra_rlhf_ru": ("CVaR at α = 0.4", {"risk.estimator": "rockafellar_uryasev", "ppo.kl_coef": 0.2}),
        "grpo": ("trained with GRPO to raise the average", {"critic_free.samples_per_prompt": 8}),
        "cvar_grpo@0.2": ("CVaR at α = 0.2", {"risk.alpha": 0.2, "critic_free.estimator": "rockafellar_uryasev"}),
        "quark": ("there is no tail share α", {"quark.steps": 160, "quark.batch_size": 128}),
        "sft": ("fine-tuned on positive film reviews", {"sft.texts": load_profile("pocket-imdb").sft.texts}),
        "prompted": ("an instruction before every prompt", {"prompted.validation_prompts": 256}),
    }.items():
        export_mine(method, method)
        card = card_of(checkout / method)
        for part in (words, "seed 3", "A reward model's score is not safety", "The pocket world is a toy"):
            assert part in card.text, (method, part)
        found = settings_of(card)
        assert {key: found[key.split(".")[0]][key.split(".")[1]] for key in settings} == settings
        assert ("cvar" in (card.data.tags or [])) == method.startswith(("ra_rlhf", "cvar"))
        assert card.data.license is None and card.data.base_model is None
        assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
        assert "{{" not in card.text and "{%" not in card.text and "\n\n\n" not in card.text


def test_the_card_has_the_reports_numbers_with_intervals(run, checkout):
    report = leave_report(run)
    export_mine("ra_rlhf", "copy")
    card = card_of(checkout / "copy")
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["SFT", "RLHF", "RA-RLHF", "RA-RLHF minus RLHF"]
    low, high = report.of("reward").loc["ra_rlhf", ["low", "high"]]
    assert f"4.50\u00a0[{low:.2f},\u00a0{high:.2f}]" in rows[4]
    assert "1.00\u00a0[1.00,\u00a01.00]" in rows[5]
    assert "Intervals are over prompts, not over training seeds." in card.text
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"reward": 4.5, "tail_reward": -0.5, "cvar_10": pytest.approx(-0.8333), "kl": 1.0}
    export_mine("rlhf", "rlhf")
    assert "minus RLHF" not in (checkout / "rlhf" / "README.md").read_text()


def test_a_policy_without_a_report_says_so_and_names_the_command(run, checkout):
    leave_report(run, methods=("sft", "rlhf"))
    export_mine("ra_rlhf", "first")
    card = card_of(checkout / "first")
    assert "This policy was not evaluated. `rarlhf run`" in card.text and "03\\_ra\\_rlhf" in card.text
    assert card.data.eval_results is None
    run.write("evaluation/ra_rlhf.parquet", pd.DataFrame({"reward": [0.0]}))
    export_mine("ra_rlhf", "second")
    assert "`rarlhf report mine` writes one" in card_of(checkout / "second").text


def test_hostile_texts_and_local_paths_stay_out_of_the_card(checkout):
    settings = load_profile("pocket-imdb").model_dump(mode="json")
    for section, key in (("policy", "model"), ("reward", "model"), ("task", "dataset")):
        settings[section] |= {key: f"{checkout}/somebody/{HOSTILE}"}
    run = open_run(checkout, **settings | {"name": HOSTILE})
    policy = saved_policy("rlhf")
    policy.processing_class.add_tokens([HOSTILE.replace("\n", " ")])
    policy.model.resize_token_embeddings(len(policy.processing_class))
    policy.prefix_ids = [len(policy.processing_class) - 1]
    policy.save(run.path("policies", "rlhf"))
    leave_report(run, methods=("sft", "rlhf"), group=HOSTILE)
    export_mine("rlhf", "copy")
    card = card_of(checkout / "copy")
    html = MarkdownIt("commonmark").enable("table").render(card.text)
    assert html.count("&lt;img src=x&gt;") == 5  # profile, policy, reward, data, prefix: shown, not interpreted
    assert "<img" not in html and 'href="http:z' not in html and "**&amp;lt;** # head" in html
    assert "somebody" not in card.content and str(checkout) not in card.content
    assert card.data.base_model is None and card.data.datasets is None


def test_a_hub_id_is_named_as_base_model_and_data(checkout):
    run = open_run(checkout, profile="imdb-gpt2")
    saved_policy("sft").save(run.path("policies", "sft"))
    export_mine("sft", "copy")
    card = card_of(checkout / "copy")
    assert card.data.base_model == "gpt2" and card.data.datasets == ["stanfordnlp/imdb"]
    assert "lvwerra/distilbert-imdb" in card.text and "pocket" not in card.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mien", "rlhf", "out"], "run = 'mien': there is no such run; there are: mine"),
        (["mine", "dexperts", "out"], "steered by two policies"),
        (["mine", "base", "out"], "was not trained"),
        (["mine", "best_of_n", "out"], "it trains nothing"),
        (["mine", "../rlhf", "out"], "there are: cvar_grpo@0.2, grpo, prompted, quark, ra_rlhf, ra_rlhf@0.2, "),
        (["mine", "ra_rlhf@0.3", "out"], "no policy in this run"),
        (["mine", "rlhf", "full"], "is not empty, and nothing is overwritten"),
        (["mine", "rlhf", "full/file"], "is not empty"),
        (["mine", "rlhf", "full/file/out"], "was not written"),
        (["mine", "rlhf", "out", "--push", "no name"], "write it as USER/NAME"),
        (["mine", "rlhf", "out", "--push", "name"], "write it as USER/NAME"),
        (["mine", "rlhf", "out", "--push", "me/mine"], "the hub does not answer; export without --push"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, checkout, words, message):
    (checkout / "full").mkdir()
    (checkout / "full" / "file").write_text("precious")
    before = files(checkout)
    answer = rarlhf("export", *words, status=2).output
    assert answer.startswith("error: ") and message in answer and answer.count("\n") == 1
    assert {name: data for name, data in files(checkout).items() if not name.endswith(".lock")} == before


def test_the_folder_is_written_whole_or_not_at_all(run, checkout, monkeypatch):
    shutil.rmtree(run.path("policies", "ra_rlhf"))
    assert "run notebook 03_ra_rlhf first" in export_mine("ra_rlhf", "out", status=2)
    (checkout / "out").mkdir()  # an empty folder may be there already
    with run_lock(run.folder):
        assert "is in use" in export_mine("rlhf", "out", status=2)
    with monkeypatch.context() as patch:
        patch.setattr(export, "model_card", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        assert "no space left" in export_mine("rlhf", "out", status=2)
        assert not list(checkout.glob("*out*/*"))
    export_mine("rlhf", "out")
    assert (checkout / "out" / "README.md").exists()


@pytest.fixture
def hub(monkeypatch):
    """What the hub is asked to do, once it answers."""
    calls = []

    class Recorder:
        def create_repo(self, *words, **options):
            calls.append(("create_repo", words, options))
            return f"https://huggingface.co/{words[0]}"

        def upload_folder(self, **options):
            calls.append(("upload_folder", (), options))

    monkeypatch.setattr(export, "is_offline_mode", lambda: False)
    monkeypatch.setattr(export, "hub_answers", lambda: True)
    monkeypatch.setattr(export, "get_token", lambda: "hf_of_the_user")
    monkeypatch.setattr(export, "HfApi", Recorder)
    return calls


def test_push_uploads_the_folder_to_a_private_repository(run, checkout, hub):
    assert "pushed: https://huggingface.co/me/mine" in export_mine("rlhf", "copy", "--push", "me/mine")
    assert hub == [
        ("create_repo", ("me/mine",), {"private": True, "exist_ok": True}),
        ("upload_folder", (), {"repo_id": "me/mine", "folder_path": checkout / "copy"}),
    ]
    assert 'from_pretrained("me/mine")' in (checkout / "copy" / "README.md").read_text()


def test_push_without_a_login_says_how_to_log_in_and_writes_nothing(run, checkout, hub, monkeypatch):
    monkeypatch.setattr(export, "get_token", lambda: None)
    assert "run `hf auth login` first" in export_mine("rlhf", "copy", "--push", "me/mine", status=2)
    assert not (checkout / "copy").exists() and not hub


def test_a_push_that_fails_keeps_the_folder_and_says_how_to_go_on(run, checkout, hub, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("403 Forbidden\nlong explanation")

    monkeypatch.setattr(export.HfApi, "upload_folder", refuse)
    answer = export_mine("rlhf", "copy", "--push", "me/mine", status=2)
    assert "403 Forbidden. The folder is written" in answer and f"`hf upload me/mine {checkout / 'copy'}`" in answer
    assert "long explanation" not in answer and json.loads((checkout / "copy" / "config.json").read_text())
