rule ablation:
    input:
        summary="results/{experiment}/summary.csv",
        scores=expand("results/{{experiment}}/scores/{label}.csv", label=E.labels),
    output:
        table="results/{experiment}/ablation.csv",
        markdown="results/{experiment}/ablation.md",
    log:
        "logs/{experiment}/ablation.log",
    wildcard_constraints:
        experiment=one_of([E.config["experiment"]] if E.config["ablation"] else []),
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        factors=json.dumps(E.config["ablation"]),
        configfiles=[os.path.relpath(file) for file in workflow.configfiles],
        code=source_hash("eigencache.stages.ablation"),
    shell:
        "python -m eigencache.stages.ablation --summary {input.summary} --scores {input.scores} "
        "--factors {params.factors:q} --configfiles {params.configfiles} "
        "--table {output.table} --markdown {output.markdown} > {log} 2>&1"


rule ablation_figure:
    input:
        table="results/{experiment}/ablation.csv",
    output:
        report(
            multiext("figures/{experiment}/ablation", ".pdf", ".png"),
            caption="../report/ablation.rst",
            category="Figures",
            labels={"figure": "ablations"},
        ),
    log:
        "logs/{experiment}/figure-ablation.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        code=source_hash("eigencache.figures.ablation", "style.mplstyle"),
    shell:
        "python -m eigencache.figures.ablation --table {input.table} --out {output} > {log} 2>&1"
