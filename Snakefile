"""EigenCache: from a model to the tables and figures of a paper. `snakemake -n` shows the jobs."""

import json
import os
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from eigencache.experiment import Experiment, one_of
from eigencache.provenance import source_hash
from eigencache.stale_locks import forget_stale_locks

min_version("9.12")
# Where the last run was killed, this one goes on without --unlock.
running = forget_stale_locks(".snakemake") if workflow.is_main_process else None


# A configuration given by --configfile replaces the default one: its methods are all there are.
if not workflow.configfiles:

    configfile: "config.yaml"


try:
    E = Experiment(config, workflow.source_path("workflow/schemas/config.schema.yaml"))
except (ValueError, OSError) as error:
    raise WorkflowError(f"configuration: {error}") from None

# Jobs call `python`: let it be the one that runs this, whether or not its environment is active.
path = os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()])
os.environ.update(PATH=path, EIGENCACHE_DEVICE=E.config["device"])
shell.prefix("set -euo pipefail; export TQDM_MININTERVAL=5 HF_HUB_OFFLINE=1; ")


wildcard_constraints:
    experiment=one_of([E.config["experiment"]]),
    label=one_of(E.labels),
    shard="[0-9]{3}",


STAGES = "fetch calibrate plan refine sample merge score table"
EXTRAS = "figure gallery errors costs ablation collect train"
for stage in f"{STAGES} {EXTRAS}".split():

    include: f"workflow/rules/{stage}.smk"


rule all:
    default_target: True
    input:
        E.targets,


onsuccess:
    shell(
        f"python -m eigencache.stages.timings results/{E.config['experiment']}/benchmarks"
    )
