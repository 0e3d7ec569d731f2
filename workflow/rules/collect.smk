# What streams hold along one calibration run, to look at; nothing else in the workflow needs it.

from eigencache.plan import TAPS


rule collect:
    input:
        model=f"models/{E.config['model']}/manifest.json",
        prompts=E.config["calibration"]["prompts"],
    output:
        "results/{experiment}/collected/{tap}.safetensors",
    log:
        "logs/{experiment}/collect-{tap}.log",
    wildcard_constraints:
        tap=one_of(TAPS),
    conda:
        "../../envs/workflow.yaml"
    threads: E.config["threads"]
    resources:
        gpu=1,
        low_memory=int(E.config["low_memory"]),  # no result depends on it
    params:
        index=E.config["collect"]["prompt"],
        features=E.config["collect"]["features"],
        streams=lambda w: E.config["collect"]["streams"].get(w.tap, ["*"]),
        seed=E.config["calibration"]["seed"],
        sampler=json.dumps(E.config["sampler"]),
        code=source_hash("reproduction.stages.collect"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.collect --model {input.model} --prompts {input.prompts} "
        "--index {params.index} --seed {params.seed} --sampler {params.sampler:q} "
        "--low-memory {resources.low_memory} --threads {threads} "
        "--tap {wildcards.tap} --streams {params.streams:q} "
        "--features {params.features} --trajectory {output} > {log} 2>&1"


rule trajectory:
    input:
        trajectory=expand(
            "results/{{experiment}}/collected/{tap}.safetensors",
            tap=E.config["figures"]["trajectory"]["tap"],
        ),
        plan=lambda w: E.trajectory_plan,
    output:
        report(
            multiext("figures/{experiment}/trajectory", ".pdf", ".png"),
            caption="../report/trajectory.rst",
            category="Figures",
            labels={"figure": "features along a run"},
        ),
    log:
        "logs/{experiment}/figure-trajectory.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("reproduction.figures.trajectory", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.trajectory --trajectory {input.trajectory} "
        "--plan {input.plan} --out {output} > {log} 2>&1"
