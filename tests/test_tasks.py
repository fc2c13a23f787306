"""Tasks: T5's prompts and labels to the letter, and names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relora_lab import tasks
from relora_lab.errors import BadInput

# Raffel et al. 2020, Appendix D: what the model reads and, of the example there, what it is to write.
PROMPTS = {
    "cola": (
        ["John made Bill master of himself."],
        "cola sentence: John made Bill master of himself.",
        1,
        "acceptable",
    ),
    "rte": (
        [
            "A smaller proportion of Yugoslavia's Italians were settled in Slovenia.",
            "Slovenia has 1,700 inhabitants.",
        ],
        "rte sentence1: A smaller proportion of Yugoslavia's Italians were settled in Slovenia. "
        "sentence2: Slovenia has 1,700 inhabitants.",
        1,
        "not_entailment",
    ),
    "mnli": (
        ["The St. Louis Cardinals have always won.", "yeah well losing is i mean i'm originally from Saint Louis"],
        "mnli hypothesis: The St. Louis Cardinals have always won. "
        "premise: yeah well losing is i mean i'm originally from Saint Louis",
        2,
        "contradiction",
    ),
    "mrpc": (["We acted.", "I acted."], "mrpc sentence1: We acted. sentence2: I acted.", 1, "equivalent"),
    "qnli": (
        ["Where did Jebe die?", "Genghis Khan recalled Subutai."],
        "qnli question: Where did Jebe die? sentence: Genghis Khan recalled Subutai.",
        1,
        "not_entailment",
    ),
    "qqp": (["What?", "What is it?"], "qqp question1: What? question2: What is it?", 0, "not_duplicate"),
    "sst2": (["it confirms fincher 's status"], "sst2 sentence: it confirms fincher 's status", 1, "positive"),
    "stsb": (
        ["Representatives.", "Puretunes."],
        "stsb sentence1: Representatives. sentence2: Puretunes.",
        3.25,
        "3.2",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_and_labels_are_those_of_t5(name):
    texts, prompt, label, written = PROMPTS[name]
    task = tasks.resolve(name)
    assert task.prompt(texts) == prompt
    assert task.targets[task.target_of(label)] == written


def test_a_prompt_needs_a_text_for_each_column():
    with pytest.raises(ValueError, match="zip"):
        tasks.resolve("rte").prompt(["one"])


@pytest.mark.parametrize("name", tasks.TASKS)
def test_each_label_comes_back_from_what_is_written_for_it(name):
    task = tasks.resolve(name)
    labels = [number / 5 for number in range(26)] if task.is_regression else range(len(task.labels))
    assert [task.label_of(task.target_of(label)) for label in labels] == list(labels)
    assert len(set(task.targets)) == len(labels)


@given(label=st.floats(0, 5))
def test_a_number_is_written_to_the_nearest_fifth(label):
    task = tasks.resolve("stsb")
    target = task.target_of(label)
    assert task.targets[target] == f"{task.label_of(target):.1f}"
    assert abs(task.label_of(target) - label) <= 0.1 + 1e-9


@pytest.mark.parametrize(("name", "hint"), [("SST-2", "'sst2'"), ("rta", "'rte'"), ("wnli", "'mnli'|'qnli'")])
def test_an_unknown_task_names_the_nearest(name, hint):
    with pytest.raises(BadInput, match=f"^task.name: unknown task '{name}'; did you mean ({hint})"):
        tasks.resolve(name)


def test_another_name_lists_all():
    with pytest.raises(BadInput, match=r"one of sst2, mnli, qnli, qqp, rte, stsb, mrpc, cola, packages$"):
        tasks.resolve("translation")
