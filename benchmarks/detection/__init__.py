"""Detection on public prompt sets: what calibration's probes are worth on sets that they have not seen."""
