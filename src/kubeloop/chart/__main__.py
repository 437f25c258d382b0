"""`python -m kubeloop.chart` writes the chart's values and their schema."""

from kubeloop.chart.write import main

if __name__ == "__main__":
    main()
