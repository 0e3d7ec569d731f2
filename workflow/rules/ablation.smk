rule ablation:
    input:
        summary="results/{experiment}/summary.csv",
        tidy="results/{experiment}/scores.csv",
    output:
        table=report(
            "results/{experiment}/ablation.csv",
            caption="../report/ablation_table.rst",
            category="Tables",
            labels={"table": "ablations", "format": "CSV"},
        ),
        markdown=report(
            "results/{experiment}/ablation.md",
            caption="../report/ablation_table.rst",
            category="Tables",
            labels={"table": "ablations", "format": "Markdown"},
        ),
        latex=report(
            "results/{experiment}/ablation.tex",
            caption="../report/ablation_table.rst",
            category="Tables",
            labels={"table": "ablations", "format": "LaTeX"},
        ),
    log:
        "logs/{experiment}/ablation.log",
    wildcard_constraints:
        experiment=one_of([E.config["experiment"]] if E.config["ablation"] else []),
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        reference=REFERENCE,
        factors=json.dumps(E.config["ablation"]),
        configfiles=[os.path.relpath(file) for file in workflow.configfiles],
        code=source_hash("reproduction.stages.ablation"),
    shell:
        "python -m reproduction.stages.ablation --summary {input.summary} --tidy {input.tidy} "
        "--reference {params.reference} --factors {params.factors:q} "
        "--configfiles {params.configfiles} --table {output.table} "
        "--markdown {output.markdown} --latex {output.latex} > {log} 2>&1"


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
        code=source_hash("reproduction.figures.ablation", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.ablation --table {input.table} --out {output} > {log} 2>&1"


rule calibration_figure:
    input:
        table="results/{experiment}/ablation.csv",
    output:
        report(
            multiext("figures/{experiment}/calibration", ".pdf", ".png"),
            caption="../report/calibration.rst",
            category="Figures",
            labels={"figure": "calibration runs"},
        ),
    log:
        "logs/{experiment}/figure-calibration.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        factors=E.config["figures"]["calibration"]["factors"],
        code=source_hash("reproduction.figures.calibration", "style.mplstyle"),
    shell:
        "python -m reproduction.figures.calibration --table {input.table} "
        "--factors {params.factors:q} --out {output} > {log} 2>&1"
