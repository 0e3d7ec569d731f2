rule ablation:
    """Write the tables of an ablation: each factor's values beside its base."""
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
        experiment=one_of([E.config.experiment] if E.config.ablation else []),
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        options=options(
            reference=REFERENCE,
            factors=json.dumps(
                {k: v.model_dump() for k, v in E.config.ablation.items()}
            ),
            configfiles=[os.path.relpath(file) for file in workflow.configfiles],
        ),
        code=lambda w: E.code_of("reproduction.stages.ablation"),
    shell:
        "python -m reproduction.stages.ablation --summary {input.summary:q} --tidy {input.tidy:q} "
        "{params.options:q} --table {output.table:q} "
        "--markdown {output.markdown:q} --latex {output.latex:q} > {log:q} 2>&1"
