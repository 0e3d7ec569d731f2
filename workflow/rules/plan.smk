rule plan:
    """Make the plans of a method from its kernel, without the network."""
    input:
        kernel=lambda w: f"results/{w.experiment}/kernels/{E.kernel(w.label)}.safetensors",
    output:
        expand(
            "results/{{experiment}}/plans/{{label}}/{budget}.safetensors",
            budget=E.config.budgets,
        ),
    log:
        "logs/{experiment}/plan-{label}.log",
    benchmark:
        "results/{experiment}/benchmarks/plan-{label}.tsv"
    wildcard_constraints:
        label=one_of(set(E.planned) - set(E.refined)),
    conda:
        "../../envs/workflow.yaml"
    params:
        method=lambda w: json.dumps(E.spec(w.label)),
        code=lambda w: E.code_of("reproduction.stages.plan", w.label),
    shell:
        "python -m reproduction.stages.plan --kernel {input.kernel:q} --method {params.method:q} "
        "--plans {output:q} > {log:q} 2>&1"
