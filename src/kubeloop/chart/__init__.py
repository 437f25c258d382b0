"""Write the Helm chart's values, their schema, and the values of the loops that it installs."""
