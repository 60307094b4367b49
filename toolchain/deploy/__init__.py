"""From a checkpoint to a report, stage by stage."""
