"""The whole way from a corpus to the report, as one YAML that Snakemake executes: `kd-plugin distill`."""
