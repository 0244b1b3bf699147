"""Cases 60 and 62. What the page sends along with a prompt may be anything: a workflow of another program, a string, a number."""

import json
import random

from kindred_testing import MUTATIONS, ROOT, pack

JUNK = (None, True, 0, -1, 7, 10**30, 1.5, float("nan"), float("inf"), "", "workflow", "5", [], {}, [[]], [None], {"id": 3}, {"workflow": "text"}, "x" * 1000)


def real() -> dict:
    workflow = json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "KindredTrain":
            node["properties"]["kindred_run"] = {"id": "a1", "order": 4, "started": 1.0}
    workflow["definitions"] = {"subgraphs": [{"nodes": [{"type": "KindredTrain", "properties": {"kindred_run": {"order": 6}}}]}]}
    return {"workflow": workflow}


def mutate(value, draw: random.Random, depth: int = 0):
    """A copy of a JSON value in which something, somewhere, is something else or gone."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.15 * depth:
        return draw.choice(JUNK)
    copied = dict(value) if isinstance(value, dict) else list(value)
    key = draw.choice(list(copied)) if isinstance(copied, dict) else draw.randrange(len(copied))
    if draw.random() < 0.1:
        del copied[key]
    else:
        copied[key] = mutate(copied[key], draw, depth + 1)
    return copied


def test_mutations_of_what_comes_with_a_prompt_start_a_run():
    draw, workflow = random.Random(60), pack("formats.workflow")
    given = real()
    assert workflow.workflow_id(given) == given["workflow"]["id"] and workflow.runs_before(given) == 6
    progress, unknown = pack("host.progress").TrainingProgress, 0
    for _ in range(MUTATIONS):
        mutated = given
        for _ in range(draw.randint(1, 4)):
            mutated = mutate(mutated, draw)
        run = progress("4", 3, ["<v1>"], mutated).run
        assert run.workflow is None or isinstance(run.workflow, str)
        assert run.order >= 1 and json.dumps(run.head(), allow_nan=False)
        unknown += run.workflow is None
    assert 0.01 * MUTATIONS < unknown < 0.9 * MUTATIONS, "both kinds were among them"
    for extra in JUNK:
        progress("4", 3, ["<v1>"], extra)


def test_a_run_comes_after_those_that_its_workflow_knows_of():
    """Whatever the clocks say; and after the runs that this server has seen of it."""
    progress = pack("host.progress").TrainingProgress
    first = progress("4", 3, [], {"workflow": {"id": "order", "nodes": [{"properties": {"kindred_run": {"order": 11, "started": 4e9}}}]}}).run
    second = progress("4", 3, [], {"workflow": {"id": "order", "nodes": []}}).run
    assert (first.order, second.order, progress("4", 3, [], {"workflow": {"id": "another"}}).run.order) == (12, 13, 1)
