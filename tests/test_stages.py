"""Each stage of a run works with the files that it says it reads, and leaves those that it says it writes."""

import shutil
from functools import partial

import pytest
from small_run import SMALL

from rarlhf_nb.data.pocket import pocket_world
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.stages.data import data_stage
from rarlhf_nb.lab.stages.evaluation import evaluation_stage, report_stage
from rarlhf_nb.lab.stages.training import experts_stage, prefix_stage, sft_stage, training_stage

TRAINED = ("ra_rlhf_ru@0.2", "conditioned", "quark", "cvar_grpo@0.5")
EVALUATED = ["base", "prompted", "sft", "dexperts", "best_of_n", "quark"]
EVALUATED += ["ra_rlhf_ru@0.2", "conditioned@0.4", "cvar_grpo@0.5"]
STAGES = [
    data_stage,
    sft_stage,
    prefix_stage,
    experts_stage,
    *(partial(training_stage, method=method) for method in TRAINED),
    *(partial(evaluation_stage, method=method) for method in (*EVALUATED, "conditioned")),
    report_stage,
]


@pytest.fixture
def open_experiment(checkout):
    return lambda name: Experiment.open("pocket", run=name, overrides=SMALL)


def files(run):
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


RECORDS = ("stages", "manifest.json", ".shared")


def belongs(file, places):
    return any(file == place or file.startswith(f"{place}/") for place in places)


def hand_over(source: Run, target: Run, places):
    for place in places:
        found = source.path(place)
        assert found.exists(), place
        target.path(place).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if found.is_dir() else shutil.copy)(found, target.path(place))


def test_stages_read_and_write_what_they_say(open_experiment):
    whole = open_experiment("whole")
    for number, make in enumerate(STAGES):
        alone = open_experiment(f"alone_{number}")
        stage = make(alone)
        hand_over(whole.run, alone.run, stage.reads)
        before = files(alone.run)
        stage.run()
        after = files(alone.run)
        written = {
            file for file, content in after.items() if before.get(file) != content and not belongs(file, RECORDS)
        }
        assert written and all(belongs(file, stage.writes) for file in written), (stage, written)
        assert all(any(belongs(file, [place]) for file in written) for place in stage.writes), (stage, written)
        assert before.keys() <= after.keys()
        hand_over(alone.run, whole.run, stage.writes)
    sample = whole.sampler()
    asked = [sample(["this film is", "the plot"], alpha) for alpha in (0.4, 0.4, 1.0)]
    assert asked[0] == asked[1] and [len(text) > 0 for text, _ in asked[2]] == [True, True]
    assert [reward for _, reward in asked[0]] == whole.reward()(["this film is", "the plot"], [t for t, _ in asked[0]])
    assert list(whole.report().of("reward").index) == EVALUATED


def test_no_two_methods_share_a_training(open_experiment):
    experiment = open_experiment("mine")
    for place in ("data/train.parquet", "policies/sft/model.safetensors"):
        experiment.run.write(place, "what all of them start from")
    methods = ["rlhf", "ra_rlhf", "ra_rlhf_ru", "conditioned", "grpo", "cvar_grpo", "rloo", "cvar_rloo", "cvar_rloo@1"]
    trainings = {method: training_stage(experiment, method).fingerprint for method in methods}
    assert trainings.pop("cvar_rloo@1") == trainings["rloo"]
    assert len(set(trainings.values())) == len(methods) - 1


def test_what_is_missing_is_named_with_the_notebook_to_run(open_experiment):
    experiment = open_experiment("empty")
    for make, notebook in zip(STAGES[1:], [*["01_data_prep"] * 17, "02_baseline_rlhf"], strict=True):
        with pytest.raises(ValueError, match=f"run notebook {notebook} first"):
            make(experiment).run()
    assert [path.name for path in experiment.run.folder.iterdir()] == ["manifest.json"]
    with pytest.raises(ValueError, match="method = 'rhlf' has no policy in this run; there are: none"):
        experiment.saved("rhlf")
    with pytest.raises(ValueError, match="dexperts/expert is missing in run 'empty': run notebook 04_other_baselines"):
        experiment.policy("dexperts")


def test_texts_without_labels_leave_dexperts_out_with_a_note(checkout, capsys):
    texts = "".join(f'"this {kind} film is {word} . the plot is {word} ."\n' for kind in "abcdefgh" for word in "xyz")
    (checkout / "texts.csv").write_text(f"text\n{texts}")
    files = {"task.source": "files", "task.train_file": "texts.csv", "task.test_file": "texts.csv"}
    models = {
        "policy.model": str(pocket_world("pocket-imdb").policy),
        "reward.model": str(pocket_world("pocket-imdb").reward),
    }
    changes = {"task.prompt_length": 4, "task.minimum_characters": 1}
    experiment = Experiment.open("pocket", run="unlabelled", overrides=SMALL | files | models | changes)
    assert ["no text has a `label`" in note for note in experiment.prepare_data()] == [True, True]
    assert len(experiment.data("sft")) == 24 and experiment.data("test")["label"].isna().all()
    assert experiment.train_experts() == {}
    assert "DExperts is left out: no training text has a label but 1" in capsys.readouterr().out
    experiment.train_sft()
    episodes = experiment.evaluate("sft")
    assert episodes["label"].isna().all() and experiment.report().of("reward")["value"].notna().all()
