"""How good decodes are: the field's measures with intervals, feature extractors, controls, and the report."""
