# The first reference is the one that tables and figures show.
REFERENCE = E.config.references[0]


rule table:
    """Join records and scores, and summarise every run."""
    input:
        records=expand("results/{{experiment}}/records/{label}.csv", label=E.labels),
        scores=expand("results/{{experiment}}/scores/{label}.csv", label=E.labels),
        sets=expand(
            "results/{{experiment}}/sets/{label}.csv",
            label=E.labels if E.set_metrics else [],
        ),
    output:
        tidy="results/{experiment}/scores.csv",
        parquet="results/{experiment}/scores.parquet",
        summary=report(
            "results/{experiment}/summary.csv",
            caption="../report/summary.rst",
            category="Tables",
            labels={"table": "summary, a row a run", "format": "CSV"},
        ),
    log:
        "logs/{experiment}/table.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        options=options(baseline=E.baseline, noise_seed=E.config.seed),
        # Rows follow the order of `methods`, and Snakemake does not compare the order of inputs.
        labels=E.labels,
        code=lambda w: E.code_of("reproduction.stages.table"),
    shell:
        "python -m reproduction.stages.table --records {input.records:q} --scores {input.scores:q} "
        "--sets {input.sets:q} {params.options:q} --tidy {output.tidy:q} "
        "--parquet {output.parquet:q} --summary {output.summary:q} 2>&1 | tee {log:q}"


rule compare:
    """Write the table of methods by budget."""
    input:
        summary="results/{experiment}/summary.csv",
        tidy="results/{experiment}/scores.csv",
    output:
        table=report(
            "results/{experiment}/table.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "methods by budget", "format": "CSV"},
        ),
        markdown=report(
            "results/{experiment}/table.md",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "methods by budget", "format": "Markdown"},
        ),
        latex=report(
            "results/{experiment}/table.tex",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "methods by budget", "format": "LaTeX"},
        ),
    log:
        "logs/{experiment}/compare.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        reference=REFERENCE,
        code=lambda w: E.code_of("reproduction.stages.compare"),
    shell:
        "python -m reproduction.stages.compare --summary {input.summary:q} --tidy {input.tidy:q} "
        "--reference {params.reference:q} --table {output.table:q} --markdown {output.markdown:q} "
        "--latex {output.latex:q} > {log:q} 2>&1"
