from reproduction.experiment import OUTPUT_KERNEL


rule pareto:
    input:
        summary="results/{experiment}/summary.csv",
    output:
        report(
            multiext("figures/{experiment}/pareto", ".pdf", ".png"),
            caption="../report/pareto.rst",
            category="Figures",
            labels={"figure": "quality against speed-up"},
        ),
    log:
        "logs/{experiment}/figure-pareto.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        highlight=lookup(within=config, dpath="figures/pareto/highlight", default=[]),
        code=source_hash("reproduction.figures.pareto", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.pareto --summary {input.summary} "
        "--highlight {params.highlight} --out {output} > {log} 2>&1"


rule budget:
    input:
        summary="results/{experiment}/summary.csv",
    output:
        report(
            multiext("figures/{experiment}/budget", ".pdf", ".png"),
            caption="../report/budget.rst",
            category="Figures",
            labels={"figure": "quality against full steps"},
        ),
    log:
        "logs/{experiment}/figure-budget.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        highlight=lookup(within=config, dpath="figures/pareto/highlight", default=[]),
        code=source_hash("reproduction.figures.budget", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.budget --summary {input.summary} "
        "--highlight {params.highlight} --out {output} > {log} 2>&1"


rule samples:
    input:
        scores="results/{experiment}/scores.csv",
    output:
        report(
            multiext("figures/{experiment}/samples", ".pdf", ".png"),
            caption="../report/samples.rst",
            category="Figures",
            labels={"figure": "samples"},
        ),
    log:
        "logs/{experiment}/figure-samples.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        methods=lookup(
            within=config, dpath="figures/samples/methods", default=E.budgeted
        ),
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
        zoom=E.config["figures"]["samples"]["zoom"] or [],
        difference=int(E.config["figures"]["samples"]["difference"]),
        code=source_hash("reproduction.figures.samples", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.samples --scores {input.scores} "
        "--methods {params.methods} --budget {params.budget} --prompts {params.prompts} "
        "--zoom {params.zoom} --difference {params.difference} --out {output} > {log} 2>&1"


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
            labels={"figure": "plans"},
        ),
    log:
        "logs/{experiment}/figure-plans.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("reproduction.figures.plans", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.plans --plans {input} --out {output} > {log} 2>&1"


rule schedules:
    input:
        [plan for label in E.planned for plan in E.plans(label)],
    output:
        report(
            multiext("figures/{experiment}/schedules", ".pdf", ".png"),
            caption="../report/schedules.rst",
            category="Figures",
            labels={"figure": "schedules"},
        ),
    log:
        "logs/{experiment}/figure-schedules.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("reproduction.figures.schedules", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.schedules --plans {input} --out {output} > {log} 2>&1"


rule kernel:
    input:
        expand(
            "results/{{experiment}}/kernels/{kernel}.safetensors",
            kernel=sorted(E.kernels, key=lambda kernel: kernel != OUTPUT_KERNEL),
        ),
    output:
        report(
            multiext("figures/{experiment}/kernel", ".pdf", ".png"),
            caption="../report/kernel.rst",
            category="Figures",
            labels={"figure": "kernels"},
        ),
    log:
        "logs/{experiment}/figure-kernel.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("reproduction.figures.kernel", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.kernel --kernels {input} --out {output} > {log} 2>&1"


rule quality:
    input:
        summary="results/{experiment}/summary.csv",
    output:
        report(
            multiext("figures/{experiment}/quality", ".pdf", ".png"),
            caption="../report/quality.rst",
            category="Figures",
            labels={"figure": "predicted quality"},
        ),
    log:
        "logs/{experiment}/figure-quality.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("reproduction.figures.quality", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.quality --summary {input.summary} --out {output} > {log} 2>&1"
