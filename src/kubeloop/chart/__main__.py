"""`python -m kubeloop.chart` writes what the chart is made of."""

from kubeloop.chart.write import main

if __name__ == "__main__":
    main()
