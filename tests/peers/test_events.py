"""TensorBoard's own reader opens the event files of a short run, and finds in them what the run printed."""
import glob
import os
import re
import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator

BUILD = sys.argv[1]
SOURCE = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
RECIPE = """name: test
seed: 3
model: plain
stages:
  - name: see
    steps: 4
    data: [{frames: 1, samples: 2, conversations: 0, dense: true}]
    losses: {dense: 1}
    groups: [{name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}]
"""


def main():
    with tempfile.TemporaryDirectory() as scratch:
        os.symlink(os.path.join(SOURCE, "trainer", "recipes", "plain"), os.path.join(scratch, "plain"))
        recipe, out = os.path.join(scratch, "r.yaml"), os.path.join(scratch, "out")
        open(recipe, "w").write(RECIPE)
        said = subprocess.run([os.path.join(BUILD, "tpo-trainer"), "train", recipe, "--out", out, "--log-every", "1"], check=True,
                              capture_output=True, text=True).stdout
        (stage,) = {os.path.dirname(p) for p in glob.glob(os.path.join(out, "*", "events.out.tfevents.*"))}
        board = EventAccumulator(stage)
        board.Reload()
        tags = board.Tags()["scalars"]
        for tag in ("loss/dense", "rate/all", "norm/all", "norm/encoder", "norm/router", "norm/region", "clip", "aborted", "time/data",
                    "time/forward", "time/backward", "time/bubble", "speed/samples_per_s"):
            if tag not in tags or [e.step for e in board.Scalars(tag)] != [1, 2, 3, 4]:
                sys.exit(f"{tag}: not there for every step ({tags})")
        printed = [float(x) for x in re.findall(r" dense=(\S+)", said)]
        for value, event in zip(printed, board.Scalars("loss/dense"), strict=True):
            if abs(value - event.value) > 6e-5:
                sys.exit(f"loss/dense: printed {value}, read {event.value}")
        print(f"TensorBoard read {len(tags)} tags of 4 steps")
        done_again(scratch, recipe)


def done_again(scratch, recipe):
    """A run that is killed in step 4 goes on behind its checkpoint of step 2: step 3 is there once, in either of TensorBoard's readers."""
    out = os.path.join(scratch, "again")
    command = [os.path.join(BUILD, "tpo-trainer"), "train", recipe, "--out", out, "--checkpoint-every", "2"]
    subprocess.run(command + ["--fault", "after_commit:4"], capture_output=True)
    subprocess.run(command, check=True, capture_output=True)
    (stage,) = {os.path.dirname(p) for p in glob.glob(os.path.join(out, "*", "events.out.tfevents.*"))}
    old, new = EventAccumulator(stage), PluginEventAccumulator(stage)
    old.Reload()
    new.Reload()
    for steps in ([e.step for e in old.Scalars("loss/dense")], [e.step for e in new.Tensors("loss/dense")]):
        if steps != [1, 2, 3, 4]:
            sys.exit(f"after a kill: steps {steps}")
    print("TensorBoard read a step that was done again once")


main()
