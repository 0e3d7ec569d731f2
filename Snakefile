"""EigenCache: from a model to the tables and figures of a paper. `snakemake -n` shows the jobs."""

import json
import os
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.12")
# Jobs import `eigencache` and `reproduction` from here too, those of a cluster included: a job
# reads this file again before it runs.
home = str(workflow.current_basedir)
sys.path[:0] = homes = [os.path.join(home, "workflow"), home]
try:
    from reproduction.experiment import (
        Experiment,
        environment,
        one_of,
        options,
        placed,
        retyped,
    )
    from reproduction.figures._table import arguments, figures
except ModuleNotFoundError as error:
    raise WorkflowError(
        f"{error}: run `pip install -c envs/workflow.txt -e '.[workflow]'` in {home}"
    ) from None


placed(home, ["data", "envs"])

# A configuration given by --configfile, or to a module, replaces the default one: its methods are
# all there are.
if not workflow.configfiles or not config:

    configfile: "config.yaml" if os.path.exists("config.yaml") else f"{home}/config.yaml"


try:
    E = Experiment(retyped(config, workflow.config_settings.config))
except (ValueError, OSError) as error:
    raise WorkflowError(f"configuration: {error}") from None
NAME, FIGURES = E.config.experiment, figures(E)

os.environ.update(environment(homes), EIGENCACHE_DEVICE=E.config.device)
if workflow.basedir == home:  # in a module, they would be for all shells
    shell.prefix("set -euo pipefail; export TQDM_MININTERVAL=5 HF_HUB_OFFLINE=1; ")


wildcard_constraints:
    experiment=one_of([NAME]),
    label=one_of(E.labels),
    group=one_of(E.groups),
    shard="[0-9]{3}",


STAGES = "fetch calibrate plan refine sample merge score table"
EXTRAS = "errors costs figures gallery ablation collect train small benchmarks"
for stage in f"{STAGES} {EXTRAS}".split():

    include: f"workflow/rules/{stage}.smk"


rule tables:
    """Make the tables of the experiment, and what they are made from."""
    input:
        E.tables,


rule figures:
    """Draw the figures of the experiment."""
    input:
        [
            f"figures/{NAME}/{name}{kind}"
            for name, figure in FIGURES.items()
            if figure.wanted
            for kind in (".pdf", ".png")
        ],


rule all:
    """Make every table and figure of the experiment, and its gallery."""
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        [] if E.config.ablation else rules.gallery.output,


onsuccess:
    shell(f"python -m reproduction.stages.timings results/{NAME}/benchmarks")
