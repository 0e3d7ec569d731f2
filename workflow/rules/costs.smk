# What steps take and what the cache holds, by where in the network features are taken.

COSTS = {"budget": E.config["budgets"][0], **E.config["figures"]["costs"]}


rule costs:
    input:
        model=f"models/{E.config['model']}/manifest.json",
        prompts=E.config["prompts"],
    output:
        "results/{experiment}/costs.csv",
    log:
        "logs/{experiment}/costs.log",
    benchmark:
        "results/{experiment}/benchmarks/costs.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config["threads"]
    resources:
        gpu=1,
    params:
        images=COSTS["images"],
        full_steps=COSTS["budget"],
        seed=E.config["seed"],
        sampler=json.dumps(E.config["sampler"]),
        threads=E.config["threads"],
        low_memory=int(E.config["low_memory"]),
        anchor_device=E.config["anchor_device"] or [],
        code=source_hash("reproduction.stages.costs"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.costs --model {input.model} --prompts {input.prompts} "
        "--images {params.images} --full-steps {params.full_steps} --seed {params.seed} "
        "--sampler {params.sampler:q} --threads {threads} --low-memory {params.low_memory} "
        "--anchor-device {params.anchor_device} --table {output} 2>&1 | tee {log}"


rule costs_figure:
    input:
        table="results/{experiment}/costs.csv",
    output:
        report(
            multiext("figures/{experiment}/costs", ".pdf", ".png"),
            caption="../report/costs.rst",
            category="Figures",
            labels={"figure": "costs by tap"},
        ),
    log:
        "logs/{experiment}/figure-costs.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("reproduction.figures.costs", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.costs --table {input.table} --out {output} > {log} 2>&1"
