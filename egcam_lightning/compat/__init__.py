"""The explainer behind other packages' interfaces; each module needs the package that it is named after."""
