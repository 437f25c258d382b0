"""`python -m kubeloop.cli` is `kubeloop`."""

from kubeloop.cli.main import main

if __name__ == "__main__":
    main()
