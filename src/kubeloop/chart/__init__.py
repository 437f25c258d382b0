"""What the Helm chart is written from: its values, their schema, and the loops that it installs."""
