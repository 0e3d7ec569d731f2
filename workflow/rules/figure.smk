rule pareto:
    input:
        summary="results/{experiment}/summary.csv",
    output:
        report(
            multiext("figures/{experiment}/pareto", ".pdf", ".png"),
            caption="../report/pareto.rst",
            category="Figures",
        ),
    log:
        "logs/{experiment}/figure-pareto.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("eigencache.figures.pareto", "style.mplstyle"),
    shell:
        "python -m eigencache.figures.pareto --summary {input.summary} --out {output} > {log} 2>&1"


rule samples:
    input:
        records=expand("results/{{experiment}}/records/{label}.csv", label=E.budgeted),
        scores=expand("results/{{experiment}}/scores/{label}.csv", label=E.budgeted),
    output:
        report(
            multiext("figures/{experiment}/samples", ".pdf", ".png"),
            caption="../report/samples.rst",
            category="Figures",
        ),
    log:
        "logs/{experiment}/figure-samples.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        budget=lookup(
            within=config,
            dpath="figures/samples/budget",
            default=E.config["budgets"][0],
        ),
        prompts=lookup(
            within=config,
            dpath="figures/samples/prompts",
            default=list(range(min(6, len(E.prompts)))),
        ),
        code=source_hash("eigencache.figures.samples", "style.mplstyle"),
    shell:
        "python -m eigencache.figures.samples --records {input.records} --scores {input.scores} "
        "--budget {params.budget} --prompts {params.prompts} --out {output} > {log} 2>&1"


rule plans:
    input:
        expand(
            "results/{{experiment}}/plans/{label}/{budget}.safetensors",
            label=[label for label in E.planned if label in E.budgeted],
            budget=lookup(
                within=config,
                dpath="figures/plans/budget",
                default=E.config["budgets"][0],
            ),
        ),
    output:
        report(
            multiext("figures/{experiment}/plans", ".pdf", ".png"),
            caption="../report/plans.rst",
            category="Figures",
        ),
    log:
        "logs/{experiment}/figure-plans.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("eigencache.figures.plans", "style.mplstyle"),
    shell:
        "python -m eigencache.figures.plans --plans {input} --out {output} > {log} 2>&1"


rule kernel:
    input:
        kernel="results/{experiment}/kernels/output.full.second-moment.safetensors",
    output:
        report(
            multiext("figures/{experiment}/kernel", ".pdf", ".png"),
            caption="../report/kernel.rst",
            category="Figures",
        ),
    log:
        "logs/{experiment}/figure-kernel.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("eigencache.figures.kernel", "style.mplstyle"),
    shell:
        "python -m eigencache.figures.kernel --kernel {input.kernel} --out {output} > {log} 2>&1"


rule quality:
    input:
        summary="results/{experiment}/summary.csv",
    output:
        report(
            multiext("figures/{experiment}/quality", ".pdf", ".png"),
            caption="../report/quality.rst",
            category="Figures",
        ),
    log:
        "logs/{experiment}/figure-quality.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("eigencache.figures.quality", "style.mplstyle"),
    shell:
        "python -m eigencache.figures.quality --summary {input.summary} --out {output} > {log} 2>&1"
