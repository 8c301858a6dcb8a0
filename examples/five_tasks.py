"""All five tasks on two pictures of your own, with the models that `diptych demo --all-tasks` trains.

python examples/five_tasks.py left.png right.png
"""

import sys

import diptych

left, right = sys.argv[1:] or ["runs/demo/pictures/0000.png", "runs/demo/pictures/0001.png"]
print(diptych.load("runs/demo").rank("a whale and a crab", [left, right])[0])
print(diptych.load("runs/demo/tasks/entailment").entail(left, "there is a whale or a hungry dog"))
print(diptych.load("runs/demo/tasks/vqa").answer(left, "what is to the left of the crab?")[0].text)
print(diptych.load("runs/demo/tasks/nlvr2").compare(left, right, "there is a whale in only one picture"))
crab = diptych.load("runs/demo/tasks/grounding").locate(left, "the crab")
print(crab)
crab.draw().save("found.png")
