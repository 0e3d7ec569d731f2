# What cached runs miss at every step, on a few evaluation prompts, beside what was predicted.

ERRORS = {
    "budget": E.config["budgets"][0],
    "prompts": list(range(min(4, len(E.prompts)))),
    **E.config["figures"]["errors"],
}


rule errors:
    input:
        model=f"models/{E.config['model']}/manifest.json",
        prompts=E.config["prompts"],
        plans=expand(
            "results/{{experiment}}/plans/{label}/{budget}.safetensors",
            label=[label for label in E.planned if label in E.budgeted],
            budget=ERRORS["budget"],
        ),
        kernel="results/{experiment}/kernels/output.full.second-moment.safetensors",
    output:
        "results/{experiment}/errors.csv",
    log:
        "logs/{experiment}/errors.log",
    benchmark:
        "results/{experiment}/benchmarks/errors.tsv"
    conda:
        "../../envs/workflow.yaml"
    threads: E.config["threads"]
    resources:
        gpu=1,
        low_memory=int(E.config["low_memory"]),  # no result depends on it
    params:
        indices=ERRORS["prompts"],
        seed=E.config["seed"],
        sampler=json.dumps(E.config["sampler"]),
        threads=E.config["threads"],
        anchor_device=E.config["anchor_device"] or [],
        code=source_hash("reproduction.stages.errors"),
    shell:
        "python -m reproduction.devices.lease {resources.gpu} -- "
        "python -m reproduction.stages.errors --model {input.model} --plans {input.plans} "
        "--kernel {input.kernel} --prompts {input.prompts} --indices {params.indices} "
        "--seed {params.seed} --sampler {params.sampler:q} --threads {threads} "
        "--low-memory {resources.low_memory} --anchor-device {params.anchor_device} "
        "--table {output} 2>&1 | tee {log}"


rule errors_figure:
    input:
        table="results/{experiment}/errors.csv",
    output:
        report(
            multiext("figures/{experiment}/errors", ".pdf", ".png"),
            caption="../report/errors.rst",
            category="Figures",
            labels={"figure": "errors at every step"},
        ),
    log:
        "logs/{experiment}/figure-errors.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("reproduction.figures.errors", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.errors --table {input.table} --out {output} > {log} 2>&1"
