# The first reference is the one that tables and figures show.
REFERENCE = E.config["references"][0]


rule table:
    input:
        records=expand("results/{{experiment}}/records/{label}.csv", label=E.labels),
        scores=expand("results/{{experiment}}/scores/{label}.csv", label=E.labels),
        sets=expand(
            "results/{{experiment}}/sets/{label}.csv",
            label=E.labels if SET_METRICS else [],
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
        baseline=E.baseline or [],
        seed=E.config["seed"],
        code=source_hash("reproduction.stages.table"),
    shell:
        "python -m reproduction.stages.table --records {input.records} --scores {input.scores} "
        "--sets {input.sets} --baseline {params.baseline} "
        "--noise-seed {params.seed} --tidy {output.tidy} --parquet {output.parquet} --summary {output.summary} "
        "2>&1 | tee {log}"


rule compare:
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
        code=source_hash("reproduction.stages.compare"),
    shell:
        "python -m reproduction.stages.compare --summary {input.summary} --tidy {input.tidy} "
        "--reference {params.reference} --table {output.table} --markdown {output.markdown} "
        "--latex {output.latex} > {log} 2>&1"
