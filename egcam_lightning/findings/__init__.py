"""What a patch does to other images: interventions, each with its control, and the values that they give."""
