# The tables of data/benchmarks that are neither the main job's nor a GPU's, and their figures.
#
# Nothing else in the workflow depends on these rules. Each writes results/benchmarks/NAME.csv; the
# copies in data/benchmarks are what the documents show. `benchmarks/peers/run` makes peers.csv, since
# cache-dit needs an environment of its own; experiments make main.csv, methods.csv and ablation.csv.

# What their headings say of the setting.
BENCHMARK_FIGURES = {
    "oracle": "emoji-flux, 50 sampler steps, 24 evaluation prompts",
    "quality": "three small models, 50 sampler steps, 32 evaluation prompts or classes",
}


rule flux_benchmark:
    """Use plans of emoji-flux on other settings or guidance, or choose one for each prompt."""
    input:
        EMBEDDED,
    output:
        "results/benchmarks/{table}.csv",
    log:
        "results/benchmarks/logs/{table}.log",
    wildcard_constraints:
        table="carry_over|fit_cost|guidance|oracle",
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m benchmarks.{wildcards.table} {input} {output} 2>&1 | tee {log}"


rule small_benchmark:
    """Judge built-in plans by models left out, or predicted quality by images that no plan saw."""
    input:
        flux=EMBEDDED,
        models=expand("results/train/small/{small}", small=SMALL),
        kernels="eigencache/built_in.safetensors",
    output:
        "results/benchmarks/{table}.csv",
    log:
        "results/benchmarks/logs/{table}.log",
    wildcard_constraints:
        table="built_in|quality",
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m benchmarks.{wildcards.table} {output} {input.flux} {input.models} 2>&1 | tee {log}"


rule figure_benchmark:
    """Draw predicted against measured quality, or what a plan for each prompt could gain."""
    input:
        "data/benchmarks/{figure}.csv",
    output:
        "figures/benchmarks/{figure}.png",
        "figures/benchmarks/{figure}.pdf",
    log:
        "results/benchmarks/logs/figure_{figure}.log",
    wildcard_constraints:
        figure=one_of(BENCHMARK_FIGURES),
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        setting=lambda wildcards: BENCHMARK_FIGURES[wildcards.figure],
    shell:
        "python -m reproduction.figures.{wildcards.figure} --table {input}"
        " --setting {params.setting:q} --out {output} 2>&1 | tee {log}"


rule figure_peers:
    """Draw quality against the cost of fitting, of all that is fitted."""
    input:
        "data/benchmarks/peers.csv",
    output:
        "figures/benchmarks/peers.png",
        "figures/benchmarks/peers.pdf",
    log:
        "results/benchmarks/logs/figure_peers.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m benchmarks.peers.figure --table {input} --out {output} 2>&1 | tee {log}"
