"""From the signal to fODFs: inputs, network and refinement."""
